"""From text and a voice to 25 Hz speech tokens: the decoding loop, its settings, and the way back from rows to tokens.

    prompts --Stepper--> logits (B, k, S) --choose--> k ids a sequence --ChunkMachine--> next rows --Stepper--> ...

Notable choices
- Several texts in several voices decode in one batch, each with its own machine and its own random generator, so a
  request sounds the same alone and in company. Finished sequences leave the batch.
- Everything that moves a measured number is in `DecodeSettings`, retries included (off by default; the reference's
  benchmark script retries up to 5 times, and the paper does not say so).
- `split_tokens` keeps all speech of a chunk cut short by the row limit; `quirks=True` is the reference's `token2audio`.

Shapes: B batch, R rows, k streams, S ids a stream, T speech tokens (25 a second).
"""

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from omnilib.captured import STATIC, recorder
from omnilib.errors import ConfigError, LimitError, UserError
from omnilib.mouth.chunking import Chunk, ChunkMachine, ChunkRules, Kind, Layout, Row, split_text
from omnilib.mouth.rows import layout_of, prompt_rows
from omnilib.mouth.speechlm import SpeechLM
from omnilib.mouth.static_decode import StaticLoop, fits
from omnilib.mouth.static_step import NOISE_ROWS, Sampling
from omnilib.mouth.step import Stepper
from omnilib.text import clean_text, encode, pieces

LEAST_ROOM = 256  # rows
ROOM_PER_ID = 2  # rows, roughly what a text id takes: the cache has room for so many from the start
SEEDS = (-(2**63), 2**64 - 1000)  # what torch.Generator takes, less room for the number of a trial


@dataclass(frozen=True)
class DecodeSettings:
    """How to decode; every report records it."""

    temperature: float = 0.3  # 0 is greedy
    top_k: int = 0  # 0: off
    top_p: float = 1.0
    seed: int = 0
    max_rows: int = 8192  # 6.25 rows a second: 22 minutes
    static: str = (
        "auto"  # steps of fixed shape (static_step.py): auto (on CUDA), on, off, compiled (see its README)
    )
    retries: int = 0  # decode a text again, this often at most, while a chunk has an error flag
    retry_step: float = 0.1  # the temperature rises by this at each retry
    normalise: bool = True  # put texts into spoken form first (see spoken.py)
    chunk_min_tokens: int = 50
    chunk_max_tokens: int = 100
    rows_per_token: float = 8.0  # guard: a chunk longer than this is stopped and flagged
    blank_rows: int = 8  # guard: so many rows of silence in a run, likewise
    blank_codes: list[int] | None = None  # codes that mean silence; None: the model's own list
    blank_streams: int | None = None
    eos_streams: int | None = None  # streams that end a chunk; None: all
    reference_quirks: bool = False
    speak_retries: int = 2  # `retries` of `TextToSpeech.speak`, which also looks at how the speech ends
    pass_rows: int | None = (
        None  # rows of one pass of `TextToSpeech`, at most: the longest speech the model was trained on
    )
    passes: bool = False  # stop before a chunk that may not fit into max_rows, and leave the rest of the text to another pass

    def __post_init__(self):
        numbers = ("temperature", "top_p", "retry_step", "rows_per_token")
        if wrong := [name for name in numbers if not math.isfinite(getattr(self, name))]:
            raise ConfigError(
                f"decode settings: {wrong[0]} is {getattr(self, wrong[0])}: give a finite number"
            )
        if self.static not in STATIC:
            raise ConfigError(
                f"decode settings: static is '{self.static}': choose one of {', '.join(STATIC)}"
            )
        if self.pass_rows is not None and self.pass_rows < 1:
            raise ConfigError("decode settings: need pass_rows >= 1, or none")
        if not SEEDS[0] <= self.seed <= SEEDS[1]:
            raise ConfigError(
                f"decode settings: seed {self.seed} has more than 64 bits: give a whole number from 0 to {SEEDS[1]}"
            )
        if self.rows_per_token <= 0 or min(self.blank_rows, self.retry_step, self.speak_retries) < 0:
            raise ConfigError(
                "decode settings: need rows_per_token > 0, blank_rows >= 0, retry_step >= 0, speak_retries >= 0"
            )
        if (
            self.temperature < 0
            or not 0 < self.top_p <= 1
            or self.top_k < 0
            or self.max_rows < 1
            or self.retries < 0
        ):
            raise ConfigError(
                "decode settings: need temperature >= 0, 0 < top_p <= 1, top_k >= 0, max_rows >= 1, retries >= 0"
            )
        if not 0 <= self.chunk_min_tokens <= self.chunk_max_tokens:
            raise ConfigError("decode settings: need 0 <= chunk_min_tokens <= chunk_max_tokens")

    def rules(self, model_blanks: Sequence[int] | None = None) -> ChunkRules:
        """The chunk machine's part of the settings."""
        blanks = self.blank_codes if self.blank_codes is not None else model_blanks or ()
        return ChunkRules(
            min_tokens=self.chunk_min_tokens,
            max_tokens=self.chunk_max_tokens,
            rows_per_token=self.rows_per_token,
            blank_rows=self.blank_rows,
            blank_codes=frozenset(blanks),
            blank_streams=self.blank_streams,
            eos_streams=self.eos_streams,
            reference_quirks=self.reference_quirks,
            rows=self.max_rows if self.passes else None,
        )


@dataclass(frozen=True)
class Request:
    """One text to speak in one voice.

    Attributes:
        ids: text ids in place of those of `text`, which an earlier pass left over.
    """

    text: str
    voice_text: str  # what is said in the reference recording
    voice_tokens: Tensor = field(repr=False)  # (T,) its 25 Hz tokens
    ids: tuple[int, ...] | None = field(default=None, repr=False)


@dataclass
class Result:
    """What became of a request."""

    rows: Tensor = field(repr=False)  # (R, 1 + k)
    tokens: Tensor = field(repr=False)  # (T,)
    chunks: list[Chunk]
    temperature: float  # of the trial that is returned
    trials: int = 1

    @property
    def errors(self) -> list[str | None]:
        """One flag a chunk: None, "blank", "long", "truncated" or "end"."""
        return [chunk.error for chunk in self.chunks]

    @property
    def failed(self) -> bool:
        return any(self.errors)


def choose(logits: Tensor, settings: DecodeSettings, temperature: float, noise: Tensor | None) -> Tensor:
    """Sample one id a stream: logits (B, k, S), noise (B, k) uniform in (0, 1] -> (B, k)."""
    if temperature == 0:
        return logits.argmax(-1)
    scores = logits / temperature
    if settings.top_k:
        least = scores.topk(min(settings.top_k, scores.shape[-1])).values[..., -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    probs = scores.softmax(-1)
    if settings.top_p < 1:
        ordered, order = probs.sort(dim=-1, descending=True)
        beyond = ordered.cumsum(-1) - ordered >= settings.top_p  # the first one is never beyond
        probs = probs.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), 0.0)
    heap = probs.cumsum(-1)
    return (heap < noise[..., None] * heap[..., -1:]).sum(-1)


class Decoder:
    """A batch of texts decoding in lockstep; `step` moves each by one row (paper section 3.2).

    Args:
        model: in eval mode.
        layout: its row layout.
        prompts: (R, 1 + k) rows of each sequence.
        machines: the chunk machine of each sequence.
        settings: sampling and limits.
        temperature: in place of the settings' own.
        seed: added to the settings' own.
    """

    def __init__(
        self,
        model: SpeechLM,
        layout: Layout,
        prompts: list[Tensor],
        machines: list[ChunkMachine],
        settings: DecodeSettings,
        temperature: float | None = None,
        seed: int = 0,
    ):
        self.begin(model, layout, machines, settings, temperature, seed)
        self.noise: Tensor | None = None  # (B, NOISE_ROWS, k)
        self.noise_at = NOISE_ROWS
        texts = max(len(machine.buffer) for machine in machines)
        self.stepper = Stepper(model, prompts, min(settings.max_rows, max(LEAST_ROOM, ROOM_PER_ID * texts)))
        self.fed = True  # whether the stepper has seen the newest rows

    def begin(
        self,
        model: SpeechLM,
        layout: Layout,
        machines: list[ChunkMachine],
        settings: DecodeSettings,
        temperature: float | None,
        seed: int,
    ) -> None:
        """What the host keeps of each sequence."""
        self.layout, self.settings, self.machines = layout, settings, machines
        self.temperature = settings.temperature if temperature is None else temperature
        self.grids: list[list[Row]] = [[] for _ in machines]
        self.slots = list(range(len(machines)))  # slot of the batch -> sequence
        self.generators = [torch.Generator().manual_seed(settings.seed + seed) for _ in machines]
        self.blank = model.config.speech_blank

    @property
    def done(self) -> bool:
        return all(m.done for m in self.machines)

    def draw(self) -> Tensor | None:
        """The next uniform numbers of each slot, (B, k), from each sequence's own generator."""
        if self.temperature == 0:
            return None
        if self.noise_at == NOISE_ROWS:
            self.noise, self.noise_at = self.draw_block(self.slots), 0
        self.noise_at += 1
        return self.noise[:, self.noise_at - 1].to(self.stepper.device)

    def draw_block(self, sequences: list[int]) -> Tensor:
        """The next NOISE_ROWS uniform numbers of each: (B, NOISE_ROWS, k)."""
        shape = (NOISE_ROWS, self.layout.streams)
        return 1.0 - torch.stack([torch.rand(shape, generator=self.generators[i]) for i in sequences])

    def step(self) -> list[tuple[int, Row]]:
        """One row for every unfinished sequence: (sequence, row) pairs."""
        if not self.fed:
            self.feed()
        sampled = choose(self.stepper.logits, self.settings, self.temperature, self.draw()).tolist()
        self.fed = False
        return self.enter(self.slots, sampled)

    def enter(self, slots: list[int], sampled: list[list[int]]) -> list[tuple[int, Row]]:
        """Enter the ids sampled in each slot into the grids of its sequence."""
        rows = []
        for ids, i in zip(sampled, slots, strict=True):
            machine = self.machines[i]
            if machine.done:
                continue
            row = machine.step(ids)
            self.grids[i].append(row)
            machine.chunks[row.chunk].tokens += len(row_tokens(row, self.layout, self.blank))
            rows.append((i, row))
            beyond = len(self.grids[i]) - self.settings.max_rows
            if (
                not machine.done and beyond >= self.settings.reference_quirks
            ):  # the reference stops one row late
                machine.truncate()
        return rows

    def feed(self) -> None:
        """Put the newest rows into the model, dropping finished sequences once they are half of the batch.

        Where there is no memory for more rows, every text that is still being spoken ends here, flagged "truncated".
        """
        alive = [slot for slot, i in enumerate(self.slots) if not self.machines[i].done]
        if len(alive) * 2 <= len(self.slots):
            self.stepper.keep(alive)
            self.slots = [self.slots[slot] for slot in alive]
            self.noise = self.noise[alive] if self.noise is not None else None
            alive = list(range(len(alive)))
        newest = [(self.grids[i][-1].text, *self.grids[i][-1].speech) for i in self.slots]
        try:
            self.stepper.advance(torch.tensor(newest, device=self.stepper.device)[:, None])  # (B, 1, 1 + k)
        except LimitError:  # a text without an end must not cost the others theirs
            for slot in alive:
                self.machines[self.slots[slot]].truncate()
        self.fed = True

    def rows(self, sequence: int) -> Tensor:
        """The grid so far: (R, 1 + k)."""
        return torch.tensor([(r.text, *r.speech) for r in self.grids[sequence]], dtype=torch.long).view(
            -1, 1 + self.layout.streams
        )


@lru_cache(maxsize=16)
def sampling_of(greedy: bool, top_k: int = 0, top_p: float = 1.0) -> Sampling:
    """What a recorded step fixes of the sampling; the temperature is a tensor."""
    settings = DecodeSettings(top_k=top_k, top_p=top_p)
    return Sampling(greedy, lambda scores, noise: choose(scores, settings, 1.0, noise))


class StaticDecoder(Decoder):
    """As `Decoder`, with steps of fixed shape (see `static_step.py`), for texts that are known to their end."""

    def __init__(
        self,
        model: SpeechLM,
        layout: Layout,
        prompts: list[Tensor],
        machines: list[ChunkMachine],
        settings: DecodeSettings,
        temperature: float | None = None,
        seed: int = 0,
    ):
        self.begin(model, layout, machines, settings, temperature, seed)
        sampling = sampling_of(self.temperature == 0, settings.top_k, settings.top_p)
        record = recorder(model.lm_head.weight.device, fuse=settings.static == "compiled")
        self.loop = StaticLoop(
            model, layout, prompts, machines, settings.max_rows, self.temperature, sampling, record
        )

    def step(self) -> list[tuple[int, Row]]:
        """One row for every unfinished sequence: (sequence, row) pairs."""
        if self.done:
            return []
        rows = self.enter(*self.loop.next(self.draw_block))
        if self.done:
            self.loop.release()
        return rows


def decoder_of(
    model: SpeechLM,
    layout: Layout,
    prompts: list[Tensor],
    machines: list[ChunkMachine],
    settings: DecodeSettings,
    *rest,
    **more,
) -> Decoder:
    """A `Decoder`, or a `StaticDecoder` where it fits (see `DecodeSettings.static`); same arguments, same rows."""
    static = fits(machines, settings.static, model.lm_head.weight.device)
    kind = StaticDecoder if static else Decoder
    return kind(model, layout, prompts, machines, settings, *rest, **more)


def prepare(
    model: SpeechLM, tokenizer, request: Request, layout: Layout, rules: ChunkRules, settings: DecodeSettings
) -> tuple[Tensor, Callable]:
    """Prompt rows, and a function that makes a fresh chunk machine for the request's text.

    Raises:
        UserError: nothing to speak, or a transcript longer than its recording.
    """
    spoken = clean_text if settings.normalise else str
    prompt = prompt_rows(tokenizer, layout, spoken(request.voice_text), request.voice_tokens)
    ids = encode(tokenizer, spoken(request.text)) if request.ids is None else request.ids
    if not split_text(ids, pieces(tokenizer), rules):
        raise UserError("there is nothing to speak in this text: give some words in English or Chinese")
    return prompt, lambda: ChunkMachine(layout, rules, pieces(tokenizer), ids)


def generate(
    model: SpeechLM,
    tokenizer,
    requests: Sequence[Request],
    settings: DecodeSettings | None = None,
    batch: int = 16,
) -> list[Result]:
    """Speak every request; results stand in the order of the requests (paper section 3.2).

    Args:
        batch: sequences decoded together; neighbours in length share a batch.
    """
    settings = settings or DecodeSettings()
    layout, rules = layout_of(model.config, tokenizer), settings.rules(model.config.speech_blank_codes)
    prepared = [prepare(model, tokenizer, r, layout, rules, settings) for r in requests]
    results: list[Result | None] = [None] * len(requests)
    waiting = sorted(range(len(requests)), key=lambda i: len(requests[i].text))
    for trial in range(settings.retries + 1):
        temperature = settings.temperature + trial * settings.retry_step
        for first in range(0, len(waiting), batch):
            group = waiting[first : first + batch]
            machines = [prepared[i][1]() for i in group]
            decoder = decoder_of(
                model, layout, [prepared[i][0] for i in group], machines, settings, temperature, seed=trial
            )
            while not decoder.done:
                decoder.step()
            for n, i in enumerate(group):
                rows = decoder.rows(n)
                tokens = split_tokens(rows, layout, model.config.speech_blank, settings.reference_quirks)
                result = Result(rows, tokens, machines[n].chunks, temperature, trial + 1)
                if results[i] is None or not result.failed:
                    results[i] = result
                results[i].trials = trial + 1
        waiting = [i for i in waiting if results[i].failed]
    return results


def stream(
    model: SpeechLM, tokenizer, request: Request, settings: DecodeSettings | None = None, trial: int = 0
) -> Generator[list[int], None, ChunkMachine]:
    """Speak one request, handing out its 25 Hz tokens row by row: the same tokens as `generate` without retries.

    Args:
        trial: 0, or the number of a retry, with its temperature and seed.

    Returns:
        the chunk machine (`machine = yield from stream(...)`): what became of each chunk, and the text left over.
    """
    settings = settings or DecodeSettings()
    layout, rules = layout_of(model.config, tokenizer), settings.rules(model.config.speech_blank_codes)
    prompt, make = prepare(model, tokenizer, request, layout, rules, settings)
    return (yield from run(model, prompt, make(), settings, trial))


def run(
    model: SpeechLM, prompt: Tensor, machine: ChunkMachine, settings: DecodeSettings, trial: int = 0
) -> Generator[list[int], None, ChunkMachine]:
    """`stream` of what is prepared already: prompt rows (R, 1 + k) and a fresh chunk machine, which is returned."""
    temperature = settings.temperature + trial * settings.retry_step
    decoder = decoder_of(model, machine.layout, [prompt], [machine], settings, temperature, seed=trial)
    while not decoder.done:
        for _, row in decoder.step():
            if tokens := row_tokens(row, machine.layout, model.config.speech_blank):
                yield tokens
    return machine


def row_tokens(row: Row, layout: Layout, blank: int | None) -> list[int]:
    """The tokens of one row that reach the ear (paper section 3.2)."""
    if (
        row.kind not in (Kind.TEXT, Kind.PADDING)
        or row.index < layout.pre_pad
        or min(row.speech) >= layout.speech_eos
    ):
        return []
    speech = (s if s < layout.speech_eos else blank for s in row.speech)
    return [s for s in speech if s is not None]


def split_tokens(rows: Tensor, layout: Layout, blank: int | None = None, quirks: bool = False) -> Tensor:
    """Rows of a decoded text -> its flat 25 Hz tokens: (R, 1 + k) -> (T,).

    Of every chunk the pre_pad rows go, and with them rows without a single code (eos, pad). A stray eos or pad beside
    codes becomes the `blank` token, or goes when the model has none.

    Args:
        quirks: the reference's `token2audio`: the last two rows are dropped unseen and the last row of every segment
            too, which loses speech of a text that hit the row limit; rows without codes become blanks.
    """
    if quirks:
        assert blank is not None, "the reference replaces ids out of range by a blank token: give one"
        ends = (rows[:, 0] == layout.audio_sep).nonzero().flatten().tolist() + [max(0, len(rows) - 2)]
    else:
        end = (rows[:, 0] == layout.audio_end).nonzero().flatten().tolist()
        rows = rows[: end[0]] if end else rows
        ends = (rows[:, 0] == layout.audio_sep).nonzero().flatten().tolist() + [len(rows)]
    segments, first = [], 0
    for last in ends:
        segments.append(
            rows[first + layout.pre_pad : last - quirks, 1:]
            if last > first + layout.pre_pad
            else rows[:0, 1:]
        )
        first = last + 1
    speech = torch.cat(segments)  # (N, k)
    if not quirks:
        speech = speech[(speech < layout.speech_eos).any(-1)]
    tokens = speech.flatten()
    stray = tokens >= layout.speech_eos
    return tokens[~stray] if blank is None else tokens.masked_fill(stray, blank)
