"""Streams in company: pieces of several speeches that are due at the same time are computed as one batch.

    stream 1 --> |
    stream 2 --> | who finds nobody at work takes all that wait --> one pass --> piece 1, piece 2, piece 3
    stream 3 --> |

There is no thread of its own: of the threads that want a piece, one works for all. `Codec.meet` lets chunks of mel
(`flow_batch.chunks`) and pieces of sound (`hift.sounds`) meet.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

MOST = 16  # streams in one batch: bounds memory


@dataclass(eq=False)
class Guest:
    """A stream that wants its next piece."""

    stream: Any
    kind: Any
    piece: Tensor | None = None
    error: BaseException | None = None

    @property
    def served(self) -> bool:
        return self.piece is not None or self.error is not None


class Company:
    """Where streams meet.

    Args:
        work: the next piece of each of some streams of one kind.
    """

    def __init__(self, work: Callable[[list], list[Tensor]]):
        self.work, self.news, self.busy = work, threading.Condition(), False
        self.waiting: list[Guest] = []

    def piece(self, stream: Any, kind: Any = None) -> Tensor:
        """The stream's next piece, made with those of the same kind that wait; any thread may call it."""
        guest = Guest(stream, kind)
        with self.news:
            self.waiting.append(guest)
        while not guest.served:
            with self.news:
                self.news.wait_for(lambda: guest.served or not self.busy)
                if guest.served:
                    break
                self.busy, first = True, self.waiting[0]
                taken = [one for one in self.waiting if one.kind == first.kind][:MOST]
                self.waiting = [one for one in self.waiting if one not in taken]
            self.serve(taken)
            with self.news:
                self.busy = False
                self.news.notify_all()
        if guest.error is not None:
            raise guest.error
        return guest.piece

    def serve(self, guests: list[Guest]) -> None:
        """Give each its piece; where the batch fails, each alone, so that only those to blame get the error."""
        try:
            for guest, piece in zip(guests, self.work([guest.stream for guest in guests]), strict=True):
                guest.piece = piece
        except BaseException as error:
            if len(guests) == 1:
                guests[0].error = error
            else:
                for guest in guests:
                    self.serve([guest])

    def __deepcopy__(self, _memo: dict) -> None:
        """A copied model is in nobody's company."""
