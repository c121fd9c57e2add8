"""Mouth and voice joined: text and a reference recording in, speech out, offline or streaming.

    speaker = TextToSpeech.load("nano")          # or a published MGM-Omni-TTS folder: the same classes
    speaker.speak("the light of the morning").save("hello.wav")
    for piece in speaker.stream("the light of the morning"): play(piece)          # (n,) samples at 24 kHz

text -> `mouth.decode` (25 Hz tokens in the reference's manner) -> `voice.codec` (flow, then vocoder, in the
reference's voice).

Shapes: N tokens (25 Hz), T samples (24 kHz).
"""

import json
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from omnilib import config as configs
from omnilib import notices, weights
from omnilib.audio import TOKENIZER_RATE, VOICE_RATE, save_wave
from omnilib.device import check_device
from omnilib.errors import AudioError, CheckpointError, UserError
from omnilib.mouth import decode, fast_weights
from omnilib.mouth.chunking import Chunk, ChunkRules, is_sentence_end
from omnilib.mouth.decode import DecodeSettings, Request
from omnilib.mouth.front_end import FrontEnd, Script
from omnilib.mouth.passes import chunk_ids, fit, left_over
from omnilib.mouth.speechlm import SpeechLM
from omnilib.mouth.static_step import join_weights
from omnilib.paths import CHECKPOINTS
from omnilib.reference import load_reference
from omnilib.text import detect_language, load_tokenizer
from omnilib.voice.codec import Codec, Voice
from omnilib.voice.ending import FRAMES, Levels, ends_loud

LANGUAGES = ("en", "zh")
LONGEST_REFERENCE = 30.0  # seconds
TRANSCRIPT = "the transcript of the voice"
RETRY_CHUNKS = 20  # a pass of more chunks is not decoded again because of one of them


def check_text(text: str, language: str | None = None) -> str:
    """The language that most of a text is in, or the one given.

    Raises:
        UserError: nothing to say in it, or a language we do not know.
    """
    if language is not None and language not in LANGUAGES:
        raise UserError(f"unknown language '{language}': choose one of {', '.join(LANGUAGES)}")
    if not any(map(str.isalnum, text)):
        raise UserError("there is nothing to say in this text: give at least one word")
    return language or ("zh" if notices.chinese_share(text) >= 0.5 else "en")


@dataclass
class SpeakResult:
    """Speech, its tokens and chunks, and the time it took."""

    wave: Tensor  # (T,)
    rate: int
    tokens: Tensor  # (N,)
    chunks: list[Chunk]
    timings: dict[str, float]  # seconds of work in each module
    messages: list[str] = field(
        default_factory=list
    )  # one sentence each: what the user should know about the result
    complete: bool = True  # whether all of the text was spoken

    @property
    def seconds(self) -> float:
        return len(self.wave) / self.rate

    @property
    def rtf(self) -> float:
        """Real-time factor: seconds of work per second of speech."""
        return sum(self.timings.values()) / self.seconds

    @property
    def flagged(self) -> list[int]:
        """Numbers of the chunks with a flag: stopped by a guard or the row limit, or with a loud end."""
        return [number for number, chunk in enumerate(self.chunks) if chunk.error]

    def save(self, path: str | Path) -> None:
        save_wave(path, self.wave, self.rate)


class SpeechStream:
    """Pieces of a wave, (n,) each, to be iterated over once.

    Attributes:
        chunks, messages, complete: as in `SpeakResult`, valid after the last piece.
    """

    def __init__(self, pieces: Callable[["SpeechStream"], Iterator[Tensor]], messages: Sequence[str] = ()):
        self.chunks: list[Chunk] = []
        self.messages = list(messages)
        self.complete = True
        self.pieces = pieces(self)

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        return next(self.pieces)

    def close(self) -> None:
        """Stop here; no more pieces will be asked for."""
        self.pieces.close()


@dataclass
class Reference:
    """A voice to speak with: the recording as the codec sees it, and what is said in it.

    Attributes:
        text: the transcript as given; `said` is the same as the mouth reads it.
        prompt: (R, 1 + k) rows that every text in this voice begins with.
    """

    voice: Voice
    text: str
    language: str
    name: str
    said: Script
    prompt: Tensor


@dataclass
class Job:
    """A text ready to be spoken.

    Attributes:
        request: with the ids of the whole text.
        settings: those of one pass.
        rules: where the chunks of a pass end.
        seconds: of speech that are expected.
        messages: what is to be said about the text and the voice.
        whole: whether all of the text can be spoken.
    """

    reference: Reference
    request: Request
    settings: DecodeSettings
    rules: ChunkRules
    seconds: float
    messages: list[str]
    whole: bool

    def outcome(self, chunks: list[Chunk]) -> tuple[list[str], bool]:
        """Messages about text and speech, and whether all of the text was spoken."""
        said = notices.about_chunks(chunks, greedy=self.settings.temperature == 0)
        return self.messages + said, self.whole and all(chunk.error in (None, "end") for chunk in chunks)

    def bar(self, show: bool) -> tqdm:
        """A progress bar over the speech, shown when it takes more than two seconds.

        The expected length is part of the format: tqdm forgets its total once the speech is longer than that.
        """
        form = (
            f"{{l_bar}}{{bar}}| {{n:.0f}} of about {self.seconds:.0f} s of speech [{{elapsed}}<{{remaining}}]"
        )
        return tqdm(desc="speaking", total=self.seconds, disable=not show, delay=2, bar_format=form)


class TextToSpeech:
    """All modules of one scale, ready to speak.

    Args:
        voices: name -> {"file": path inside `folder`, "text", "language"}; the first of a language is its default.
        bilingual: whether a voice of one language can speak the other, as those of the paper's models can.
    """

    def __init__(
        self,
        model: SpeechLM,
        tokenizer,
        codec: Codec,
        settings: DecodeSettings,
        folder: Path,
        voices: dict[str, dict],
        bilingual: bool = False,
    ):
        if model.lm_head.weight.is_cuda:
            join_weights(model)  # fewer kernels a row
        self.model, self.tokenizer, self.codec = model.eval(), tokenizer, codec
        self.settings, self.folder, self.voices = settings, folder, voices
        self.rate, self.bilingual = VOICE_RATE, bilingual
        self.front = FrontEnd(model.config, tokenizer)
        self.reader = self.front.reader
        self.heard: dict[tuple, Reference] = {}  # recordings are analysed once

    @classmethod
    def load(cls, scale: str | Path = "nano", device: str = "cpu", precision: str = "auto") -> "TextToSpeech":
        """Read checkpoints/<scale>, a folder of the same layout, or a published MGM-Omni-TTS folder (see
        `weights.py`).

        Args:
            precision: of the mouth's weights: auto (by size), fp32, bf16 or int8; the flow follows fp32 and bf16.

        Raises:
            UserError: a device or precision that is not there.
            CheckpointError: a module is missing, truncated or of another model.
            LimitError: the weights will not fit into the memory that is free.
        """
        check_device(device)
        folder = Path(scale) if Path(scale).is_dir() else CHECKPOINTS / scale
        if not folder.is_dir():
            if not CHECKPOINTS.is_dir():
                raise CheckpointError(
                    f"no checkpoints '{scale}': clone the repository and set OMNILIB_HOME=<clone> (or OMNILIB_CHECKPOINTS), "
                    "or give a folder with --scale"
                )
            raise CheckpointError(
                f"no checkpoints '{scale}': there are {', '.join(sorted(p.name for p in CHECKPOINTS.glob('*/'))) or 'none'}"
            )
        published = (folder / "config.json").exists()
        mouth = folder if published else folder / "speechlm"
        chosen = fast_weights.plan(mouth, precision, device)
        dtype = torch.bfloat16 if chosen == "bf16" else torch.float32
        if published:
            speaker = cls.from_published(weights.load(folder, dtype, device))
        else:
            settings = folder / "decode.yaml"
            speaker = cls(
                SpeechLM.load(mouth, dtype, device),
                load_tokenizer(mouth),
                Codec.load(folder, device=device),
                configs.load(DecodeSettings, settings if settings.exists() else None),
                folder / "voices",
                load_voices(folder / "voices"),
            )
        fast_weights.prepare(speaker.model, chosen)
        if precision in ("fp32", "bf16"):
            speaker.codec.flow.set_precision(precision)
        return speaker

    @classmethod
    def from_published(cls, parts: weights.Published) -> "TextToSpeech":
        """The paper's decoding rules, and no voices of its own: give a recording."""
        return cls(parts.mouth, parts.tokenizer, parts.codec, DecodeSettings(), Path(), {}, bilingual=True)

    def reference(self, voice: str | Path | None, voice_text: str | None, language: str) -> Reference:
        """The voice of a name, of a recording, or the language's default.

        Raises:
            UserError: unknown name, or a recording without its transcript, or with one that does not fit it.
            AudioError: the recording cannot be used.
        """
        if voice is None:
            fitting = [name for name, entry in self.voices.items() if entry["language"] == language]
            if not fitting:
                raise UserError(
                    f"no committed voice speaks '{language}': give a recording with --voice and --voice-text"
                )
            voice = fitting[0]
        if str(voice) in self.voices:
            entry = self.voices[str(voice)]
            path, text, spoken = self.folder / entry["file"], entry["text"], entry["language"]
        else:
            path, text = Path(voice), voice_text
            if not path.exists():
                raise AudioError(
                    f"no recording {voice}, and no voice of that name: choose a file or one of {', '.join(self.voices)}"
                )
            if not (text and text.strip()):
                raise UserError(
                    f"say with --voice-text what is spoken in {voice}: the model continues from it"
                )
            spoken = detect_language(text)
        key = (str(path), text)
        if key not in self.heard:
            wave = load_reference(path, TOKENIZER_RATE, LONGEST_REFERENCE)
            if len(wave) > LONGEST_REFERENCE * TOKENIZER_RATE:
                raise AudioError(
                    f"{path} lasts {len(wave) / TOKENIZER_RATE:.0f} s: cut out 3 to {LONGEST_REFERENCE:.0f} s and give their text"
                )
            analysed, said = self.codec.voice(wave, TOKENIZER_RATE), self.front.read(text)
            notices.unreadable(said.reading, TRANSCRIPT)
            prompt = self.front.prompt(said, analysed.tokens)
            self.heard[key] = Reference(analysed, text, spoken, str(voice), said, prompt)
        return self.heard[key]

    def job(self, text: str, voice, voice_text, language, seed: int, temperature: float | None) -> Job:
        """Everything `speak` and `stream` need; all errors about the arguments are raised here."""
        changes = {"seed": seed, "normalise": False} | (
            {} if temperature is None else {"temperature": temperature}
        )
        settings = replace(self.settings, **changes)
        language = check_text(text, language)
        script = self.front.read(text, language)  # the one place where a text is normalised
        reading = script.reading
        messages = notices.unreadable(reading) + notices.doubtful(reading.text)
        messages += notices.long_words(text, lambda word: self.front.seconds(word, language))
        seconds = self.front.check_length(script)
        messages += notices.silent_symbols(text, language)
        reference = self.reference(voice, voice_text, language)
        if not self.bilingual:
            messages += notices.wrong_voice(reading.text, reference.name, reference.language, self.voices)
        messages += notices.unreadable(reference.said.reading, TRANSCRIPT)
        settings = fit(settings, self.model.config.max_position_embeddings, len(reference.prompt))
        request = Request(script.text, reference.said.text, reference.voice.tokens, script.ids)
        rules = self.front.rules(settings)
        return Job(reference, request, settings, rules, seconds, messages, not reading.left_out)

    def prepare(
        self, text: str, voice, voice_text, language, seed: int, temperature: float | None
    ) -> tuple[Reference, Request, DecodeSettings]:
        """Voice, request and settings of a text, for callers that decode themselves."""
        job = self.job(text, voice, voice_text, language, seed, temperature)
        return job.reference, job.request, job.settings

    def decode(
        self, job: Job, ids: tuple[int, ...], trial: int = 0
    ) -> Generator[list[int], None, tuple[list[Chunk], tuple[int, ...]]]:
        """One pass: its tokens row by row; returns its chunks and the ids it leaves over."""
        machine = self.front.machine(ids, job.rules)
        yield from decode.run(self.model, job.reference.prompt, machine, job.settings, trial)
        for chunk, part in zip(machine.chunks, chunk_ids(ids, machine), strict=False):
            chunk.text = self.tokenizer.decode(part).strip()
        return machine.chunks, left_over(machine)

    @torch.inference_mode()
    def speak(
        self,
        text: str,
        voice: str | Path | None = None,
        voice_text: str | None = None,
        language: str | None = None,
        seed: int = 0,
        temperature: float | None = None,
        progress: bool = False,
    ) -> SpeakResult:
        """Speak a text as a whole, up to about an hour.

        A short text with a flagged chunk is decoded again, `settings.speak_retries` times at most.

        Args:
            progress: show a progress bar on standard error.

        Raises:
            UserError: the text, the voice or a setting cannot be used; the message says what to do.
        """
        started = time.perf_counter()
        job = self.job(text, voice, voice_text, language, seed, temperature)
        timings = {"voice": time.perf_counter() - started, "mouth": 0.0, "flow": 0.0, "hift": 0.0}
        waves, tokens, chunks, ids = [], [], [], job.request.ids
        with job.bar(progress) as bar:
            while ids:
                part = self.speak_pass(job, ids, timings, bar)
                waves.append(part.wave)
                tokens.append(part.tokens)
                chunks += part.chunks
                ids = part.rest
        if not sum(map(len, tokens)):
            raise no_sound(job)
        messages, complete = job.outcome(chunks)
        return SpeakResult(join(waves), self.rate, torch.cat(tokens), chunks, timings, messages, complete)

    def speak_pass(self, job: Job, ids: tuple[int, ...], timings: dict[str, float], bar: tqdm) -> "Pass":
        """One pass, decoded again while a chunk of it is flagged; of the trials the one with the fewest
        flags."""
        best = None
        for trial in range(job.settings.speak_retries + 1):
            begun, started = bar.n, time.perf_counter()
            tokens, steps = [], self.decode(job, ids, trial)
            while True:
                try:
                    tokens += (row := next(steps))
                except StopIteration as stop:
                    chunks, rest = stop.value
                    break
                bar.update(len(row) / 50)  # half of the work
            timings["mouth"] += time.perf_counter() - started
            wave, flat = torch.empty(0), torch.tensor(tokens, dtype=torch.long)
            if tokens:
                wave, seconds = speak_tokens(self.codec, flat, job.reference.voice, bar)
                timings |= {name: timings[name] + spent for name, spent in seconds.items()}
            levels = Levels()
            levels.push(wave)
            flag_loud_ends(chunks, levels)
            found = Pass(wave, flat, chunks, rest)
            if best is None or found.flags < best.flags:
                best = found
            if not best.flags or len(chunks) > RETRY_CHUNKS:
                break
            bar.n = begun
        return best

    def stream(
        self,
        text: str,
        voice: str | Path | None = None,
        voice_text: str | None = None,
        language: str | None = None,
        seed: int = 0,
        temperature: float | None = None,
        progress: bool = False,
    ) -> SpeechStream:
        """Speak while the text is being decoded: wave pieces (n,), the tokens of the first trial of `speak`.

        Raises:
            UserError: as `speak`, at once and not at the first piece.
        """
        job = self.job(text, voice, voice_text, language, seed, temperature)

        def tokens(stream: SpeechStream) -> Iterator[list[int]]:
            ids = job.request.ids
            while ids:
                chunks, ids = yield from self.decode(job, ids)
                stream.chunks += chunks
            if not any(chunk.tokens for chunk in stream.chunks):
                raise no_sound(job)

        @torch.inference_mode()
        def pieces(stream: SpeechStream) -> Iterator[Tensor]:
            levels = Levels()
            with job.bar(progress) as bar:
                for piece in self.codec.stream(tokens(stream), job.reference.voice):
                    levels.push(piece)
                    bar.update(len(piece) / self.rate)
                    yield piece
            flag_loud_ends(stream.chunks, levels)
            stream.messages, stream.complete = job.outcome(stream.chunks)

        return SpeechStream(pieces, job.messages)


@dataclass
class Pass:
    """One pass of `speak`."""

    wave: Tensor  # (T,)
    tokens: Tensor  # (N,)
    chunks: list[Chunk]
    rest: tuple[int, ...]  # text ids left over

    @property
    def flags(self) -> int:
        return sum(chunk.error is not None for chunk in self.chunks)


class NoSound(UserError):
    """The model ended a text before it said anything."""


def no_sound(job: Job) -> NoSound:
    greedy = job.settings.temperature == 0
    return NoSound(
        f"the model gave no sound for this text: {'rephrase it' if greedy else 'try another --seed or rephrase it'}"
    )


def flag_loud_ends(chunks: list[Chunk], levels: Levels) -> None:
    """Give the flag "end" to chunks whose text ends a sentence while their sound does not."""
    at = 0
    for chunk in chunks:
        frames = levels.decibels[at : at + chunk.tokens * FRAMES]
        at += chunk.tokens * FRAMES
        if chunk.error is None and is_sentence_end(chunk.text[-1:]) and ends_loud(frames):
            chunk.error = "end"


def join(waves: list[Tensor]) -> Tensor:
    """Waves (n,) one after the other: (T,). The list is emptied meanwhile, to save memory."""
    if len(waves) == 1:
        return waves.pop()
    whole, at = waves[0].new_empty(sum(map(len, waves))), 0
    waves.reverse()
    while waves:
        wave = waves.pop()
        whole[at : at + len(wave)] = wave
        at += len(wave)
    return whole


def speak_tokens(
    codec: Codec, tokens: Tensor, voice: Voice, bar: tqdm | None = None
) -> tuple[Tensor, dict[str, float]]:
    """`codec.decode` with a stop-watch on each module: wave (T,), {"flow": s, "hift": s}."""
    vocoder, pieces, seconds = codec.hift.stream(), [], {"flow": 0.0, "hift": 0.0}
    blocks = codec.mel_blocks(tokens.to(codec.device), voice)
    while True:
        started = time.perf_counter()
        block = next(blocks, None)  # the flow works here
        seconds["flow"] += time.perf_counter() - started
        if block is None:
            return join(pieces), seconds
        started = time.perf_counter()
        pieces.append(vocoder.push(*block)[0])
        seconds["hift"] += time.perf_counter() - started
        if bar is not None:
            bar.update(len(pieces[-1]) / VOICE_RATE / 2)


def load_voices(folder: Path) -> dict[str, dict]:
    """The committed voices (voices.json); {} where there are none.

    Raises:
        CheckpointError: the list is damaged, or names a file outside its folder or that is not there.
    """
    path = folder / "voices.json"
    if not path.exists():
        return {}
    try:
        voices = json.loads(path.read_text(encoding="utf-8"))
        files = [
            (folder / entry["file"]).resolve()
            for entry in voices.values()
            if entry["text"] and entry["language"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): restore it with `git checkout`") from None
    for file in files:
        if not file.is_relative_to(folder.resolve()) or not file.is_file():
            raise CheckpointError(
                f"{path} names {file.name}, which is not in its folder: restore it with `git checkout`"
            )
    return voices


Speaker = TextToSpeech  # the former name
