"""The chunk machine as tensors: what row comes next, decided on the device, for texts that are known to their end.

`ChunkMachine` asks the host after each row. That costs a GPU more than the row itself: it stands still until the host has
read the ids and answered. Here the same rules work on tensors, a few integers a sequence, and tables that the host fills
once (`tables_of`). The host still runs its `ChunkMachine` over the sampled ids, later, and it alone says what is kept and
how a chunk ended; `tests/mouth/test_static_step.py` holds the two together.

Shapes: B sequences, N text ids, k streams, S ids a stream.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from omnilib.captured import to_device
from omnilib.mouth.chunking import ChunkMachine, ChunkRules, Layout, is_sentence_end, split_text

TEXT, PADDING, SEPARATOR, TAIL = range(4)  # phases, as in `chunking.Kind`
NEVER, ALWAYS = -1, 2**62
STATE = ("phase", "at", "counted", "made", "blank_run", "done")


@dataclass
class Tables:
    """What the host knows of one text before it is spoken; lists of N."""

    ids: list[int] = field(default_factory=list)  # all that will be fed, blanks at chunk starts left out
    limit: list[int] = field(default_factory=list)  # at the last id of a chunk: its rows at most; else NEVER
    room: list[int] = field(default_factory=list)  # likewise: another chunk follows up to so many rows in all


def tables_of(machine: ChunkMachine) -> Tables:
    """The tables of a fresh machine whose text is known."""
    rules, ids, piece = machine.rules, machine.rest, machine.piece
    spans, tables = split_text(ids, piece, rules), Tables()
    for n, (start, end) in enumerate(spans):
        chunk = ids[start:end]
        most = rules.rows_per_token * len(chunk)
        tables.ids += chunk
        tables.limit += [NEVER] * (len(chunk) - 1) + [math.floor(most) if most < ALWAYS else ALWAYS]
        tables.room += [NEVER] * (len(chunk) - 1) + [room_after(machine, ids, spans, n)]
    return tables


def room_after(machine: ChunkMachine, ids: list[int], spans: list[tuple[int, int]], n: int) -> int:
    """Rows made at most when chunk n + 1 begins (see `ChunkMachine.room`); NEVER after the last chunk."""
    rules, piece = machine.rules, machine.piece
    if n + 1 == len(spans):
        return NEVER
    if rules.rows is None:
        return ALWAYS
    left, over = rules.rows - 1, is_sentence_end(piece(ids[spans[n][1] - 1]))
    for start, end in spans[n + 1 :]:
        left -= rules.longest(end - start)
        if not over or is_sentence_end(piece(ids[end - 1])):
            break
    return max(left, NEVER)


def rows_at_most(machine: ChunkMachine, limit: int) -> int:
    """Rows that a fresh machine makes at most, the one beyond the limit included that the reference makes."""
    spans = split_text(machine.rest, machine.piece, machine.rules)
    return min(sum(machine.rules.longest(end - start) for start, end in spans) + 2, limit + 1)


class StaticRows:
    """B chunk machines in lockstep. Slots that are not filled are done.

    Args:
        layout: ids.
        batch, size: B and N.
        device: where the tensors lie.
    """

    def __init__(self, layout: Layout, batch: int, size: int, device: torch.device):
        self.layout, self.device = layout, device

        def integers(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.long, device=device)

        self.ids, self.limit, self.room = (integers(batch, size) for _ in range(3))  # (B, N)
        self.phase, self.at, self.counted, self.made, self.blank_run = (integers(batch) for _ in range(5))
        self.done = torch.ones(batch, dtype=torch.bool, device=device)
        self.silent_code = torch.zeros(layout.speech_size, dtype=torch.bool, device=device)  # (S,)
        self.blank_needed, self.blank_rows, self.eos_needed = integers(1), integers(1), integers(1)
        self.quirks = torch.zeros(1, dtype=torch.bool, device=device)
        self.constants = torch.tensor(  # once: a number in `torch.where` would be a tensor made for every row
            [0, 1, TEXT, PADDING, SEPARATOR, TAIL]
            + [layout.text_pad, layout.audio_sep, layout.audio_end, layout.text_eos]
            + [layout.speech_eos, layout.speech_pad],
            device=device,
        )

    def of_slots(self) -> list[Tensor]:
        """Every tensor that has a first dimension B."""
        return [self.ids, self.limit, self.room, *self.state()]

    def state(self) -> list[Tensor]:
        """The tensors that `next` changes, (B,) each."""
        return [getattr(self, name) for name in STATE]

    def fill(self, machines: list[ChunkMachine]) -> None:
        """Begin with fresh machines in the first slots, of at most N ids each."""
        size, rules = self.ids.shape[1], machines[0].rules
        host = torch.full((3, len(self.ids), size), NEVER, dtype=torch.long)
        for slot, machine in enumerate(machines):
            tables = tables_of(machine)
            for table, values in zip(host, (tables.ids, tables.limit, tables.room), strict=True):
                table[slot, : len(values)] = torch.tensor(values, dtype=torch.long)
        host[0].clamp_(min=0)
        for table, values in zip(
            (self.ids, self.limit, self.room), to_device(host, self.device), strict=True
        ):
            table.copy_(values)
        for state in self.state():
            state.zero_()
        self.done[len(machines) :] = True
        self.set_rules(rules, machines[0])

    def set_rules(self, rules: ChunkRules, machine: ChunkMachine) -> None:
        """The guards, the same for all slots."""
        codes = torch.zeros(self.layout.speech_size, dtype=torch.bool)
        codes[[c for c in rules.blank_codes if 0 <= c < len(codes)]] = True
        self.silent_code.copy_(to_device(codes, self.device))
        self.blank_needed.fill_(machine.blank_needed)
        self.eos_needed.fill_(machine.eos_needed)
        self.blank_rows.fill_(rules.blank_rows)
        self.quirks.fill_(rules.reference_quirks)

    def next(self, sampled: Tensor) -> Tensor:
        """The row after the ids that the model sampled, (n, k), for the first n slots: (n, 1 + k).

        No branch asks for a value: every phase is computed and the right one selected (`ChunkMachine.step`).
        """
        n, layout = len(sampled), self.layout
        ids, limit, room = self.ids[:n], self.limit[:n], self.room[:n]
        phase, at, counted, made, blank_run, done = (state[:n] for state in self.state())
        zero, one, to_text, to_padding, to_separator, to_tail, *forced = self.constants.unbind()
        pad, separator, end, tail, speech_eos, speech_pad = forced

        in_text, in_padding, in_separator, in_tail = (
            phase == p for p in (TEXT, PADDING, SEPARATOR, TAIL)
        )  # (n,) each
        newest = torch.where(in_text, at, at - 1).clamp(0, ids.shape[1] - 1)[:, None]  # the id fed last
        chunk_limit, chunk_room = limit.gather(1, newest)[:, 0], room.gather(1, newest)[:, 0]

        silent = self.silent_code[sampled].sum(-1) >= self.blank_needed
        run = torch.where(silent, blank_run + 1, zero)
        ended = (sampled == layout.speech_eos).sum(-1) >= self.eos_needed
        stop = in_padding & (ended | (run > self.blank_rows) | (counted > chunk_limit))
        goes_on = in_separator & (made <= chunk_room)

        text = torch.where(in_text, ids.gather(1, newest)[:, 0], pad)
        text = torch.where(in_separator, torch.where(goes_on, separator, end), text)
        text = torch.where(in_tail, tail, text)
        speech = torch.where(stop[:, None], speech_eos, sampled)
        speech = torch.where(in_separator[:, None], speech_pad, speech)

        last = in_text & (chunk_limit >= 0)
        following = torch.where(last, to_padding, phase)
        following = torch.where(stop, to_separator, following)
        following = torch.where(in_separator, torch.where(goes_on, to_text, to_tail), following)
        fresh = goes_on & ~self.quirks  # the reference carries both counters over into the next chunk
        done |= in_tail | (in_separator & ~goes_on & ~self.quirks)
        blank_run.copy_(torch.where(fresh, zero, run))
        counted.copy_(torch.where(fresh, zero, torch.where(in_separator, one, counted + 1)))
        made += 1
        at += in_text
        phase.copy_(following)
        return torch.cat([text[:, None], speech], 1)
