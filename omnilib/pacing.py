"""Speech that never starves once it began: what is done next while somebody listens, and a meter of their waits.

A listener hears one second of sound a second, from the first piece on. One worker makes it: ids of the brain, rows of
the mouth, hops of the codec. `Pace` knows what each took so far on this machine, and answers three questions:

    first_hop    how many tokens the first piece waits for, so that the second comes before the first is over
    may_begin    whether the listener gets what is ready, or more is collected first
    brain_next   whether the brain writes on, or waits because a row is more urgent

None of them changes a row or a token: only when they come. `underruns` tells from recorded times alone whether it
went well.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

ROWS_PER_ID = 2.0  # rows that a text id takes, about: a guess for what is not spoken yet
MARGIN = 1.25  # times the mean that the steps of one piece may take
SPREAD = 4.0  # mean deviations on top of that, as a network's time-out has them (Jacobson 1988)
LONG_MARGIN = 1.1  # the same for the steps of a whole answer, which even out
CHUNK_ROWS = 6  # rows without sound where a chunk ends and the next begins
NEW = 0.2  # weight of the newest time in a mean


@dataclass(frozen=True)
class Span:
    """One piece of work: its kind ("read", "first", "brain", "row", "hop"), when it began, how long it took."""

    kind: str
    start: float
    seconds: float

    @property
    def end(self) -> float:
        return self.start + self.seconds


class Listener:
    """Somebody who hears at 1x: `ends` is when what they were given is over."""

    def __init__(self):
        self.ends: float | None = None

    def give(self, now: float, seconds: float) -> float:
        """More sound; how long it was silent before, 0 for the first piece."""
        waited = 0.0 if self.ends is None else max(0.0, now - self.ends)
        self.ends = max(now, now if self.ends is None else self.ends) + seconds
        return waited

    def lead(self, now: float) -> float:
        """Seconds of sound that are still to be heard."""
        return 0.0 if self.ends is None else max(0.0, self.ends - now)


def underruns(pieces: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Waits of a listener at 1x who starts with the first piece: (when sound came back, seconds of silence) each.

    Args:
        pieces: (when it was there, seconds of sound in it), in order.
    """
    listener = Listener()
    waits = [(now, listener.give(now, seconds)) for now, seconds in pieces if seconds > 0]
    return [(now, waited) for now, waited in waits if waited > 1e-9]


class Pace:
    """What each kind of step takes, as a running mean, and what is to be done next because of it.

    Args:
        row: seconds of sound in a row of the mouth (k / 25).
        hop: seconds of sound in a hop of the codec.
        clock: seconds; another one in tests.
    """

    def __init__(self, row: float, hop: float = 1.0, clock: Callable[[], float] = time.perf_counter):
        self.row, self.hop, self.clock = row, hop, clock
        self.mean: dict[str, float] = {}
        self.spread: dict[str, float] = {}  # mean distance from the mean
        self.ratio = 1.0  # ids of the brain for one of the mouth's

    @contextmanager
    def timed(self, kind: str, spans: list[Span]) -> Iterator[None]:
        """Work whose time is kept in `spans`, and counts for what is planned."""
        start = self.clock()
        yield
        spent = self.clock() - start
        spans.append(Span(kind, start, spent))
        known, spread = self.mean.get(kind, spent), self.spread.get(kind, 0.0)
        self.mean[kind] = known + NEW * (spent - known)
        self.spread[kind] = spread + NEW * (abs(spent - known) - spread)

    @property
    def known(self) -> bool:
        """Whether every kind of step has been seen."""
        return {"brain", "row", "hop"} <= self.mean.keys()

    def piece(self, rows: float, ids: float) -> float:
        """Seconds until a further piece is there that needs so many rows, and so many ids of the mouth's for them."""
        cost = {"brain": 0.0, "row": 0.0, "hop": 0.0} | self.mean
        return rows * cost["row"] + ids * self.ratio * cost["brain"] + cost["hop"]

    def safely(self, rows: float, ids: float) -> float:
        """As `piece`, with what may come in between."""
        off = {"brain": 0.0, "row": 0.0, "hop": 0.0} | self.spread
        several = math.sqrt(rows) * off["row"] + math.sqrt(ids * self.ratio) * off["brain"]
        return MARGIN * self.piece(rows, ids) + SPREAD * (off["hop"] + several)

    @property
    def rate(self) -> float:
        """Seconds of work for a second of sound, with the margin: above 1 the worker is slower than the listener."""
        rows = self.hop / self.row
        return LONG_MARGIN * self.piece(rows, rows / ROWS_PER_ID) / self.hop

    def first_hop(self, choices: Sequence[int], seconds: Callable[[int], float]) -> int:
        """Tokens of the first hop: the fewest of `choices` whose sound lasts until the next piece, else the most.

        Args:
            seconds: of sound that a first hop of so many tokens gives.
        """
        rows = math.ceil(self.hop / self.row) + CHUNK_ROWS
        wait = self.safely(rows, 0) if self.known else math.inf
        return next((count for count in sorted(choices) if seconds(count) >= wait), max(choices))

    def may_begin(self, held: float, rows: int, left: float | None) -> bool:
        """Whether a listener who starts now will not wait.

        Args:
            held: seconds of sound that are ready.
            rows: that the next piece needs; their text is known.
            left: seconds of speech to come; None: the text is still being written.
        """
        if held < self.safely(rows, 0):
            return False
        if self.rate <= 1:
            return True
        return left is not None and held >= left * (self.rate - 1)  # the rest is made while this is heard

    def brain_next(self, lead: float | None, rows: int, ids: int) -> bool:
        """Whether the brain may write an id although a row could be made.

        Args:
            lead: seconds that the listener has still to hear; None: nobody listens yet.
            rows, ids: that the next piece needs; ids of the mouth's that are not written yet.
        """
        if lead is None:
            return self.known and self.rate > 1  # sound waits for the end of the text anyway
        return lead > self.safely(rows, ids) + self.mean.get("brain", 0.0)
