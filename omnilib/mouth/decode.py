"""From text and a voice to 25 Hz speech tokens: the decoding loop, and the way back from rows to tokens.

    prompts --Stepper--> logits (B, k, S) --choose--> k ids a sequence --ChunkMachine--> next rows --Stepper--> ...

Notable choices
- Several texts in several voices decode in one batch, each with its own machine and its own random generator, so a
  request sounds the same alone and in company. Finished sequences leave the batch.
- `split_tokens` keeps all speech of a chunk cut short by the row limit; `quirks=True` is the reference's `token2audio`.

Shapes: B batch, R rows, k streams, S ids a stream, T speech tokens (25 a second).
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from omnilib.errors import UserError
from omnilib.mouth import static_decode
from omnilib.mouth.chunking import Chunk, ChunkMachine, ChunkRules, Layout, split_text
from omnilib.mouth.decoder import Decoder, DecodeSettings, row_tokens
from omnilib.mouth.decoder import choose as choose
from omnilib.mouth.rows import layout_of, prompt_rows
from omnilib.mouth.speechlm import SpeechLM
from omnilib.text import clean_text, encode, pieces


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
    fits = static_decode.fits(machines, settings, model.lm_head.weight.device)
    kind = static_decode.StaticDecoder if fits else Decoder
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
