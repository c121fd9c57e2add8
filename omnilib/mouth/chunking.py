"""The chunk state machine: what row comes next while a text is spoken (paper section 3.2, chunk-based parallel decoding).

Pure Python: no tensors, no model. The decoder hands in the k speech ids it sampled, the machine says which row enters
the sequence. A chunk looks like this (k = 2, pre_pad = 2, `.` pad, `E` eos):

    text     Hel  lo   wor  ld   .    pad  pad  pad  pad  sep
    speech   ..   ..   ab   cd   ef   gh   ij   kl   EE   ..
             TEXT ------------------  PADDING -------  EOS  SEPARATOR (END after the last chunk)

- TEXT: one text id a row. The chunk's text ends with a sentence end once more than `min_tokens` ids are in it, at more
  than `max_tokens`, or with the text.
- PADDING: text is pad until every stream says eos, or a guard stops a chunk that has gone wrong (the error flag).
- EOS: that row, rewritten to eos in all streams. SEPARATOR / END: a forced row, speech pad. Earlier chunks stay in context.

Where the reference misbehaves this machine does not, unless `reference_quirks` asks for it; `mouth/README.md` lists the
differences. Text may arrive while the machine runs (`push`, `close`): it then waits (`ready` is false) for one id of
look-ahead, so the rows are the same as when the whole text is known from the start.
"""

import math
import re
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

SENTENCE_ENDS = frozenset(".?!;。？！；\n")
BLANK_TEXT = re.compile(r"[ \n*#]+")


@dataclass(frozen=True)
class Layout:
    """The ids of a row: one text id and `streams` speech ids, each numbered from 0 (no vocabulary offset).

    Source: paper eq. 2.
    """

    text_size: int  # text ids; the last three are the audio control tokens
    speech_size: int  # ids of one stream: codes, then eos, then pad
    streams: int = 4
    pre_pad: int = 4  # rows at a chunk's start whose speech is pad: the delay between text and speech
    text_pad: int = 151643  # <|endoftext|>
    text_eos: int = 151645  # <|im_end|>
    reference_pad: int | None = None  # fills the reference transcript; text_pad when None

    @property
    def audio_start(self) -> int:
        return self.text_size - 3

    @property
    def audio_end(self) -> int:
        return self.text_size - 2

    @property
    def audio_sep(self) -> int:
        return self.text_size - 1

    @property
    def speech_eos(self) -> int:
        return self.speech_size - 2

    @property
    def speech_pad(self) -> int:
        return self.speech_size - 1


@dataclass(frozen=True)
class ChunkRules:
    """When a chunk ends and when it has failed; defaults are the published ones (paper section 3.2)."""

    min_tokens: int = 50  # a sentence end closes the chunk only beyond this many text ids
    max_tokens: int = 100  # any id closes it beyond this many
    rows_per_token: float = 8.0  # guard: more rows than this per text id is a runaway
    blank_rows: int = 8  # guard: more rows than this of silence in a run (10 inside the omni model)
    blank_codes: frozenset[int] = frozenset()  # the codes that mean silence; empty switches the guard off
    blank_streams: int | None = (
        None  # streams that must be blank to count a row as blank; None: 3 of 4, 1 of 1
    )
    eos_streams: int | None = None  # streams that must say eos to end a chunk; None: all, as published
    reference_quirks: bool = False
    rows: int | None = (
        None  # a further chunk begins only if so many rows in all surely hold it; else the text waits in `rest`
    )

    def __post_init__(self):
        if not 0 <= self.min_tokens <= self.max_tokens:
            raise ValueError(
                f"need 0 <= min_tokens <= max_tokens, got {self.min_tokens} and {self.max_tokens}"
            )

    def longest(self, ids: int) -> int:
        """Rows that a chunk of so many text ids takes at most, its separator included."""
        return math.ceil(max(1.0, self.rows_per_token) * ids) + 3


class Kind(Enum):
    """What a row is."""

    TEXT = "text"
    PADDING = "padding"
    EOS = "eos"
    SEPARATOR = "separator"
    END = "end"
    TAIL = "tail"  # the row after audio_end that the reference still emits


class Row(NamedTuple):
    """One row of the grid and what it is for."""

    text: int
    speech: tuple[int, ...]
    kind: Kind
    chunk: int  # number of the chunk it belongs to
    index: int  # number of the row in its chunk


@dataclass
class Chunk:
    """What became of one chunk."""

    text_tokens: int = 0
    rows: int = 0  # up to and including the eos row
    tokens: int = 0  # 25 Hz tokens that are heard, counted by the decoder
    text: str = ""  # what it reads, filled in by `TextToSpeech`
    error: str | None = (
        None  # "blank", "long" (a guard stopped it), "truncated" (the row limit did), "end" (see `speak.py`)
    )
    finished: bool = False


def is_sentence_end(piece: str) -> bool:
    """True for a token that *begins* with an end mark or ends in a newline: ".5" is one, " ." is not (as published)."""
    return bool(piece) and (piece[0] in SENTENCE_ENDS or piece[-1] == "\n")


def is_blank_text(piece: str) -> bool:
    """True for a token of blanks, newlines, `*` and `#` only: skipped where a chunk begins."""
    return BLANK_TEXT.fullmatch(piece) is not None


class ChunkMachine:
    """One text being spoken (paper section 3.2).

    Args:
        layout: ids.
        rules: chunk ends and guards.
        piece: text of one token id, as decoded alone.
        text: the ids known so far.
        closed: whether that is all of the text.
    """

    def __init__(
        self,
        layout: Layout,
        rules: ChunkRules,
        piece: Callable[[int], str],
        text: Iterable[int] = (),
        closed: bool = True,
    ):
        self.layout, self.rules, self.piece = layout, rules, piece
        self.buffer, self.closed = deque(text), closed
        self.phase = Kind.TEXT
        self.done = False
        self.chunks = [Chunk()]
        self.blank_run = 0
        self.rows_counted = 0  # the guard's row counter; differs from chunk.rows only under reference_quirks
        self.rows_made = 0  # of all chunks, separators included
        self.row_in_chunk = 0
        self.sentence_over = False  # whether the newest text id ends a sentence
        k = layout.streams
        self.eos_needed = k if rules.eos_streams is None else min(rules.eos_streams, k)
        blank = 3 if rules.reference_quirks else max(1, k - k // 4)  # the reference has 3 for any k
        self.blank_needed = blank if rules.blank_streams is None else rules.blank_streams

    # ---- text in -------------------------------------------------------------------------------------------------

    def push(self, ids: Iterable[int]) -> None:
        """More text has arrived."""
        assert not self.closed, "text arrived after close()"
        self.buffer.extend(ids)

    def close(self) -> None:
        """No more text will come."""
        self.closed = True

    def skip_blanks(self) -> None:
        """Drop leading blank tokens of the text not yet fed."""
        while self.buffer and is_blank_text(self.piece(self.buffer[0])):
            self.buffer.popleft()

    @property
    def ready(self) -> bool:
        """Whether enough text is known to say what the next row is."""
        if self.closed or self.phase in (Kind.PADDING, Kind.TAIL):
            return True
        if self.phase is Kind.SEPARATOR or self.at_chunk_start:
            self.skip_blanks()
        return len(self.buffer) > (1 if self.phase is Kind.TEXT else 0)  # look-ahead: is the fed id the last?

    @property
    def at_chunk_start(self) -> bool:
        return self.phase is Kind.TEXT and self.chunks[-1].text_tokens == 0

    # ---- rows out ------------------------------------------------------------------------------------------------

    def step(self, sampled: Sequence[int]) -> Row:
        """The next row, given the k speech ids the model just sampled."""
        assert not self.done and self.ready, "step() on a finished or waiting machine"
        blank = sum(s in self.rules.blank_codes for s in sampled) >= self.blank_needed
        self.blank_run = self.blank_run + 1 if blank else 0
        chunk = self.chunks[-1]
        number, index = len(self.chunks) - 1, self.row_in_chunk
        text, speech, kind = getattr(self, f"_{self.phase.value}")(chunk, tuple(sampled))
        self.rows_counted += 1
        self.rows_made += 1
        self.row_in_chunk += 1
        if kind in (Kind.TEXT, Kind.PADDING, Kind.EOS):
            chunk.rows += 1
        elif kind is Kind.SEPARATOR:
            self.row_in_chunk = 0
            if not self.rules.reference_quirks:
                self.rows_counted = self.blank_run = 0  # the reference carries both over into the next chunk
        return Row(text, speech, kind, number, index)

    @property
    def rest(self) -> list[int]:
        """Text ids that no row has been fed yet."""
        return list(self.buffer)

    @property
    def room(self) -> bool:
        """Whether the text up to the next sentence end surely fits into the rows allowed; inside a sentence, the next chunk."""
        if self.rules.rows is None:
            return True
        left, rest = self.rules.rows - self.rows_made - 1, self.rest
        for start, end in split_text(rest, self.piece, self.rules):
            left -= self.rules.longest(end - start)
            if left < 0 or not self.sentence_over or is_sentence_end(self.piece(rest[end - 1])):
                break
        return left >= 0

    def truncate(self) -> None:
        """The row limit was reached: stop here, keep what was spoken."""
        self.done = True
        if not self.chunks[-1].finished:
            self.chunks[-1].error = self.chunks[-1].error or "truncated"

    def _text(self, chunk: Chunk, speech: tuple[int, ...]) -> tuple[int, tuple[int, ...], Kind]:
        if chunk.text_tokens == 0:
            self.skip_blanks()
        assert self.buffer, "there is no text to speak"
        text = self.buffer.popleft()
        chunk.text_tokens += 1
        self.sentence_over = is_sentence_end(self.piece(text))
        if chunk_is_full(chunk.text_tokens, self.piece(text), self.rules) or not self.buffer:
            self.phase = Kind.PADDING
        return text, speech, Kind.TEXT

    def _padding(self, chunk: Chunk, speech: tuple[int, ...]) -> tuple[int, tuple[int, ...], Kind]:
        rules, layout = self.rules, self.layout
        ended = sum(s == layout.speech_eos for s in speech) >= self.eos_needed
        silent = self.blank_run > rules.blank_rows
        long = self.rows_counted > rules.rows_per_token * chunk.text_tokens
        if not (ended or silent or long):
            return layout.text_pad, speech, Kind.PADDING
        if rules.reference_quirks or not ended:  # a natural end at the same row is no error
            chunk.error = "blank" if silent else "long" if long else None
        chunk.finished = True
        self.phase = Kind.SEPARATOR
        return layout.text_pad, (layout.speech_eos,) * layout.streams, Kind.EOS

    def _separator(self, chunk: Chunk, _: tuple[int, ...]) -> tuple[int, tuple[int, ...], Kind]:
        pad = (self.layout.speech_pad,) * self.layout.streams
        self.skip_blanks()  # only blanks left is the end; the reference crashes one row later
        self.rows_counted = 0
        if self.buffer and self.room:
            self.phase = Kind.TEXT
            self.chunks.append(Chunk())
            return self.layout.audio_sep, pad, Kind.SEPARATOR
        self.phase = Kind.TAIL
        self.done = not self.rules.reference_quirks
        return self.layout.audio_end, pad, Kind.END

    def _tail(self, chunk: Chunk, speech: tuple[int, ...]) -> tuple[int, tuple[int, ...], Kind]:
        self.done = True
        return self.layout.text_eos, speech, Kind.TAIL


def chunk_is_full(count: int, piece: str, rules: ChunkRules) -> bool:
    """Whether the `count`-th text id of a chunk, reading `piece`, is its last (the end of the text aside)."""
    return count > rules.max_tokens or (count > rules.min_tokens and is_sentence_end(piece))


def split_text(ids: Sequence[int], piece: Callable[[int], str], rules: ChunkRules) -> list[tuple[int, int]]:
    """(start, end) of the text ids each chunk feeds, blanks at chunk starts left out: where the machine will split.

    Source: paper section 3.2.
    """
    spans, start, size = [], 0, len(ids)
    while True:
        while start < size and is_blank_text(piece(ids[start])):
            start += 1
        if start == size:
            return spans
        end = start + 1
        while end < size and not chunk_is_full(end - start, piece(ids[end - 1]), rules):
            end += 1
        spans.append((start, end))
        start = end
