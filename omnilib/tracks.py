"""The two tracks of a joint answer and what is behind them.

    question --Writer--> ids, text
    ids --Mouth (a LiveMachine decides the rows, a Decoder samples them)--> 25 Hz tokens --Sound--> wave pieces

`Mouth` knows nothing of sound, `Sound` nothing of text: between them is the cut that `omni.py` draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from omnilib.brain.ask import Brain
from omnilib.brain.decode import AnswerSettings, ends
from omnilib.mouth.chunking import Chunk, ChunkMachine, Kind, Row, chunk_is_full
from omnilib.mouth.decode import Decoder, DecodeSettings, row_tokens
from omnilib.mouth.front_end import FrontEnd
from omnilib.mouth.passes import left_over
from omnilib.mouth.speechlm import SpeechLM
from omnilib.voice.codec import Codec, MelStream


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
        """With a limit on rows, whether the next chunk fits is asked when the text is known."""
        waits = self.phase is Kind.SEPARATOR and self.rules.rows is not None
        return self.closed if waits else super().ready

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

    def step(self) -> list[int]:
        """One row, if enough text is known; the 25 Hz tokens of it that are heard."""
        if self.over or not self.machine.ready:
            return []
        [(_, row)] = self.decoder.step()
        self.rows.append(row)
        return row_tokens(row, self.machine.layout, self.decoder.blank)


class Sound:
    """Below the cut: tokens in, wave out, in one voice. Seamless, as `Codec.stream`, but pushed and not pulled."""

    def __init__(self, codec: Codec, voice: MelStream, hop: int = 25):
        self.mels, self.hop = voice.fork(), hop
        self.vocoder = codec.hift.stream(codec.settings.vocoder_context)
        self.device, self.waiting, self.heard, self.given = codec.device, [], False, False

    @torch.inference_mode()
    def push(self, tokens: list[int], last: bool = False) -> Tensor:
        """Samples (n,) that are complete with these tokens; the first hop is as short as can be heard."""
        self.waiting += tokens
        self.given = self.given or bool(tokens)
        if not self.given or not (last or (tokens and (not self.heard or len(self.waiting) >= self.hop))):
            return torch.empty(0)
        flat = torch.tensor(self.waiting, dtype=torch.long, device=self.device)
        self.waiting = []
        wave = self.vocoder.push(self.mels.push(flat, last=last), last=last)[0].cpu()
        self.heard = self.heard or len(wave) > 0
        return wave
