"""The two tracks of a joint answer and what is behind them.

    question --Writer--> ids, text
    ids --Mouth (a LiveMachine decides the rows, a Decoder samples them)--> 25 Hz tokens --Sound--> wave pieces

`Mouth` knows nothing of sound, `Sound` nothing of text: between them is the cut that `omni.py` draws.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from omnilib.brain.ask import Brain
from omnilib.brain.decode import AnswerSettings, ends
from omnilib.mouth.chunking import (
    Chunk,
    ChunkMachine,
    Kind,
    Row,
    chunk_is_full,
    is_sentence_end,
    split_text,
)
from omnilib.mouth.decode import Decoder, DecodeSettings, row_tokens
from omnilib.mouth.front_end import FrontEnd
from omnilib.mouth.passes import left_over
from omnilib.mouth.speechlm import SpeechLM
from omnilib.pacing import ROWS_PER_ID, Pace
from omnilib.voice.codec import Codec, MelStream, Voice
from omnilib.voice.flow import RATIO

FEWEST_ROWS = 1.3  # that quick speech takes for a text id


@dataclass(frozen=True)
class Piece:
    """What came of a step: text (n characters) and sound (n,) at 24 kHz, either may be empty."""

    text: str
    wave: Tensor = field(repr=False)


@dataclass(frozen=True)
class Reply:
    """An answer as a whole."""

    text: str
    wave: Tensor = field(repr=False)  # (T,)
    rate: int
    chunks: list[Chunk]  # of the speech; `error` tells of one that a guard stopped


class Writer:
    """The first track: the brain writes its answer, an id a step.

    Attributes:
        text: what is written, of whole characters; ids: the same, without the id that ends it.
    """

    def __init__(self, brain: Brain, messages: list[dict], settings: AnswerSettings):
        self.decode, self.stops = brain.processor.decode, ends(brain.model, settings)
        self.steps = brain.steps(brain.processor.chat(messages).to(brain.model.device), settings)
        self.left, self.ids, self.text = settings.max_new_tokens, [], ""

    @property
    def over(self) -> bool:
        return self.left == 0

    def step(self) -> tuple[int | None, str]:
        """The next id, None if it ends the answer, and the text that is whole with it."""
        new, before = int(next(self.steps)[0]), self.text
        ended = new in self.stops
        self.left = 0 if ended else self.left - 1
        self.ids += [] if ended else [new]
        text = self.decode(self.ids)
        if self.over or not text.endswith("\ufffd"):
            self.text = text
        return None if ended else new, self.text[len(before) :]


class LiveMachine(ChunkMachine):
    """The chunk machine of a text that is still being written: the rows are those of the whole text."""

    @property
    def ready(self) -> bool:
        """With a limit on rows, whether the next chunk fits is asked when it is known where it ends."""
        waits = self.phase is Kind.SEPARATOR and self.rules.rows is not None and not self.closed
        return super().ready and not (waits and not self.room_is_known)

    @property
    def room_is_known(self) -> bool:
        """Whether text that is still to come cannot change what `room` says."""
        rest = self.rest
        for start, end in split_text(rest, self.piece, self.rules):
            if not chunk_is_full(end - start, self.piece(rest[end - 1]), self.rules):
                return False  # its end is not written yet
            if not self.sentence_over or is_sentence_end(self.piece(rest[end - 1])):
                return True
        return False

    @property
    def over(self) -> bool:
        """Whether no row will follow: the last is made, or there was nothing but blanks to speak."""
        if self.closed and self.at_chunk_start:
            self.skip_blanks()
        return self.done or (self.closed and self.at_chunk_start and not self.buffer)


class ReleasedMachine(ChunkMachine):
    """The chunk machine of the released joint loop, for comparison: it notices the end of the text a row later,
    and begins a chunk of nothing when only blanks are left. Where the released loop dies for want of a word, it waits."""

    @property
    def ready(self) -> bool:
        if self.at_chunk_start:
            self.skip_blanks()
        return self.closed or self.phase is not Kind.TEXT or bool(self.buffer)

    @property
    def over(self) -> bool:
        return self.done

    def _text(self, chunk: Chunk, speech: tuple[int, ...]) -> tuple[int, tuple[int, ...], Kind]:
        if chunk.text_tokens == 0:
            self.skip_blanks()
        if not self.buffer:
            self.phase = Kind.PADDING
            return self.layout.text_pad, speech, Kind.PADDING
        text = self.buffer.popleft()
        chunk.text_tokens += 1
        if chunk_is_full(chunk.text_tokens, self.piece(text), self.rules):
            self.phase = Kind.PADDING
        return text, speech, Kind.TEXT

    def _separator(self, chunk: Chunk, _: tuple[int, ...]) -> tuple[int, tuple[int, ...], Kind]:
        pad = (self.layout.speech_pad,) * self.layout.streams
        self.rows_counted = 0
        if self.closed and not self.buffer:
            self.phase = Kind.TAIL
            return self.layout.audio_end, pad, Kind.END
        self.phase = Kind.TEXT
        self.chunks.append(Chunk())
        return self.layout.audio_sep, pad, Kind.SEPARATOR


class Mouth:
    """Above the cut: ids in, one row a step out, in passes where the mouth has a longest speech."""

    def __init__(
        self, model: SpeechLM, front: FrontEnd, prompt: Tensor, settings: DecodeSettings, released: bool
    ):
        self.model, self.front, self.prompt = model, front, prompt
        self.settings, self.released = settings, released
        self.before: list[Chunk] = []  # of earlier passes
        self.rows: list[Row] = []
        self.pushed = 0  # ids that came over the bridge
        self.starts: list[int] = []  # ids fed before each chunk
        self.begin([], closed=False)

    def begin(self, ids: Sequence[int], closed: bool) -> None:
        """A pass: a fresh context, the same voice."""
        front, kind = self.front, ReleasedMachine if self.released else LiveMachine
        rules = replace(front.rules(self.settings), reference_quirks=self.released)
        self.machine = kind(front.layout, rules, front.piece, ids, closed)
        self.decoder = Decoder(self.model, front.layout, [self.prompt], [self.machine], self.settings)

    def push(self, ids: Sequence[int], last: bool) -> None:
        """Text from the brain."""
        self.pushed += len(ids)
        if not self.machine.closed:
            self.machine.push(ids)
            self.machine.closed = last

    @property
    def chunks(self) -> list[Chunk]:
        """What became of each chunk so far."""
        return self.before + self.machine.chunks

    @property
    def taken(self) -> int:
        """Ids that rows have fed."""
        return self.pushed - len(self.machine.rest)

    @property
    def over(self) -> bool:
        """Whether no row will follow; begins the next pass if there is one."""
        more = (
            self.machine.done
            and self.settings.passes
            and (left_over(self.machine) or not self.machine.closed)
        )
        if more:
            self.before += self.machine.chunks
            self.begin(self.machine.rest, self.machine.closed)
        return self.machine.over

    @property
    def ready(self) -> bool:
        """Whether a row can be made now."""
        return not self.over and self.machine.ready

    def step(self) -> list[int]:
        """One row, if enough text is known; the 25 Hz tokens of it that are heard."""
        if not self.ready:
            return []
        [(_, row)] = self.decoder.step()
        self.rows.append(row)
        if row.kind is Kind.TEXT and self.machine.chunks[row.chunk].text_tokens == 1:
            self.starts.append(self.taken - 1)
        return row_tokens(row, self.machine.layout, self.decoder.blank)

    def heard(self, tokens: int) -> int:
        """Ids that were spoken in the first `tokens` tokens: text is fed before it is heard, so fewer than `taken`."""
        per_id, ids = ROWS_PER_ID * self.machine.layout.streams, 0
        for start, chunk in zip(self.starts, self.chunks, strict=False):
            if chunk.finished and chunk.text_tokens:
                per_id = max(1.0, chunk.tokens / chunk.text_tokens)
            if tokens < chunk.tokens or not chunk.finished:
                return start + min(chunk.text_tokens, int(tokens / per_id))
            tokens, ids = tokens - chunk.tokens, start + chunk.text_tokens
        return self.taken if self.machine.over else ids

    def ids_for(self, rows: int) -> int:
        """Ids that must be known to make so many rows for sure: where the chunk may end, the next must be whole."""
        machine, rules = self.machine, self.machine.rules
        ids = machine.chunks[-1].text_tokens
        if machine.phase is Kind.TEXT:
            ids = max(ids, rules.min_tokens + 1)
        this = FEWEST_ROWS * ids - machine.row_in_chunk  # rows that this chunk takes at least
        return rows if rows <= this or rules.rows is None else rows + rules.max_tokens + 1

    @property
    def left(self) -> float:
        """Seconds of speech that the text known so far will still take, about."""
        fed = sum(chunk.text_tokens for chunk in self.chunks)
        rows = ROWS_PER_ID * (fed + len(self.machine.rest)) - len(self.rows)
        return 0.0 if self.machine.over else max(1.0, rows) * self.machine.layout.streams / 25


class Sound:
    """Below the cut: tokens in, wave out, in one voice. Seamless, as `Codec.stream`, but pushed and not pulled."""

    def __init__(self, codec: Codec, voice: MelStream, hop: int = 25):
        self.mels, self.hop = voice.fork(), hop
        self.vocoder = codec.hift.stream(codec.settings.vocoder_context)
        self.device, self.waiting = codec.device, []
        self.given = 0  # tokens that came
        self.goal = first_tokens(voice) + voice.ahead  # of them, for the next hop

    @property
    def missing(self) -> int:
        """Tokens until the next hop."""
        return max(0, self.goal - self.given)

    def take(self, tokens: list[int]) -> None:
        """Tokens of a row."""
        self.waiting += tokens
        self.given += len(tokens)

    def due(self, last: bool) -> bool:
        """Whether there is something to compute; `last`: no more tokens will come."""
        return self.given > 0 and (last or not self.missing)

    @torch.inference_mode()
    def step(self, last: bool = False) -> Tensor:
        """One hop: samples (n,) that are complete with the tokens so far."""
        flat = torch.tensor(self.waiting, dtype=torch.long, device=self.device)
        self.waiting = []
        self.goal += self.hop * (1 + max(0, self.given - self.goal) // self.hop)
        return self.vocoder.push(self.mels.push(flat, last=last), last=last)[0].cpu()

    def push(self, tokens: list[int], last: bool = False) -> Tensor:
        """`take`, and a hop if it is due: samples (n,)."""
        self.take(tokens)
        return self.step(last) if self.due(last) else torch.empty(0)


def first_tokens(voice: MelStream) -> int:
    """Tokens of the first hop that a voice was warmed for."""
    return voice.block % voice.chunk or voice.chunk


class WarmVoices:
    """Each voice's share of the flow, computed once for every length of the first hop; the newest stay.

    Args:
        most: kept at a time.
    """

    def __init__(self, codec: Codec, most: int = 24):
        self.codec, self.most, self.lock = codec, most, threading.Lock()
        self.kept: dict[tuple[int, int], tuple[Voice, MelStream]] = {}

    @property
    def choices(self) -> tuple[int, ...]:
        """Lengths of a first hop, in tokens: as short as can be heard, a whole chunk, and between."""
        least, most = self.codec.first_hop, self.codec.flow.config.encoder.chunk
        return least, (least + most) // 2, most

    def seconds(self, first: int) -> float:
        """Sound that a first hop of so many tokens gives: the vocoder holds some back."""
        held = self.codec.hift.stream(self.codec.settings.vocoder_context).context
        return max(0, RATIO * first - held) / (RATIO * 25)

    def warm(self, voice: Voice, pace: Pace, first: int | None = None) -> MelStream:
        """The voice, ready to speak after `first` tokens; 0: the fewest; None: as many as the pace of this machine asks
        for."""
        first = pace.first_hop(self.choices, self.seconds) if first is None else first or self.choices[0]
        key = id(voice), first
        found = self.kept.get(key) or (voice, self.codec.warm(voice, first))
        with self.lock:
            self.kept.pop(key, None)
            self.kept[key] = found  # the newest is last
            while len(self.kept) > self.most:
                del self.kept[next(iter(self.kept))]
        return found[1]
