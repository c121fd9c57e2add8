"""Mouth and voice joined: text and a reference recording in, speech out, offline or streaming.

    speaker = Speaker.load("nano")          # or a published MGM-Omni-TTS folder: the same classes
    speaker.speak("the light of the morning").save("hello.wav")
    for piece in speaker.stream("the light of the morning"): play(piece)          # (n,) samples at 24 kHz

text -> `mouth.decode` (25 Hz tokens in the reference's manner) -> `voice.codec` (flow, then vocoder, in the reference's voice).

Shapes: N tokens (25 Hz), T samples (24 kHz).
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from omnilib import config as configs
from omnilib import weights
from omnilib.audio import TOKENIZER_RATE, VOICE_RATE, save_wave
from omnilib.errors import AudioError, CheckpointError, UserError
from omnilib.mouth import decode
from omnilib.mouth.chunking import Chunk
from omnilib.mouth.decode import DecodeSettings, Request
from omnilib.mouth.speechlm import SpeechLM
from omnilib.paths import CHECKPOINTS
from omnilib.reference import load_reference
from omnilib.spoken import clean_text
from omnilib.text import detect_language, load_tokenizer
from omnilib.voice.codec import Codec, Voice

LANGUAGES = ("en", "zh")
MAX_CHARACTERS = 20_000  # about 25 minutes of English: beyond the mouth's row limit
LONGEST_REFERENCE = 30.0  # seconds


def check_text(text: str, language: str | None = None) -> str:
    """The language of a text that can be spoken.

    Raises:
        UserError: nothing to say in it, too long, or a language we do not know.
    """
    if language is not None and language not in LANGUAGES:
        raise UserError(f"unknown language '{language}': choose one of {', '.join(LANGUAGES)}")
    if not any(map(str.isalnum, text)):
        raise UserError("there is nothing to say in this text: give at least one word")
    if len(text) > MAX_CHARACTERS:
        raise UserError(f"the text has {len(text):,} characters: speak at most {MAX_CHARACTERS:,} at a time, chapter by chapter")
    return language or detect_language(text)


@dataclass
class SpeakResult:
    """What was said, and what it cost."""

    wave: Tensor  # (T,)
    rate: int
    tokens: Tensor  # (N,)
    chunks: list[Chunk]
    timings: dict[str, float]  # seconds of work in each module

    @property
    def seconds(self) -> float:
        return len(self.wave) / self.rate

    @property
    def rtf(self) -> float:
        """Real-time factor: seconds of work per second of speech."""
        return sum(self.timings.values()) / self.seconds

    @property
    def flagged(self) -> list[int]:
        """Numbers of the chunks that a failure guard or the row limit ended."""
        return [number for number, chunk in enumerate(self.chunks) if chunk.error]

    def save(self, path: str | Path) -> None:
        save_wave(path, self.wave, self.rate)


@dataclass
class Reference:
    """A voice to speak with: the recording as the codec sees it, and what is said in it."""

    voice: Voice
    text: str


class Speaker:
    """All modules of one scale, ready to speak.

    Args:
        voices: name -> {"file": path inside `folder`, "text", "language"}; the first of a language is its default.
    """

    def __init__(self, model: SpeechLM, tokenizer, codec: Codec, settings: DecodeSettings, folder: Path, voices: dict[str, dict]):
        self.model, self.tokenizer, self.codec = model.eval(), tokenizer, codec
        self.settings, self.folder, self.voices = settings, folder, voices
        self.rate = VOICE_RATE
        self.heard: dict[tuple, Reference] = {}  # recordings are analysed once

    @classmethod
    def load(cls, scale: str | Path = "nano", device: str = "cpu") -> "Speaker":
        """Read checkpoints/<scale>, a folder of the same layout, or a published MGM-Omni-TTS folder (see `weights.py`).

        Raises:
            CheckpointError: a module is missing, truncated or of another model.
        """
        folder = Path(scale) if Path(scale).is_dir() else CHECKPOINTS / scale
        if not folder.is_dir():
            raise CheckpointError(
                f"no checkpoints '{scale}': there are {', '.join(sorted(p.name for p in CHECKPOINTS.glob('*/'))) or 'none'}"
            )
        if (folder / "config.json").exists():
            return cls.from_published(weights.load(folder, torch.bfloat16 if device.startswith("cuda") else torch.float32, device))
        settings = folder / "decode.yaml"
        return cls(
            SpeechLM.load(folder / "speechlm", device=device),
            load_tokenizer(folder / "speechlm"),
            Codec.load(folder).to(device),
            configs.load(DecodeSettings, settings if settings.exists() else None),
            folder / "voices",
            load_voices(folder / "voices"),
        )

    @classmethod
    def from_published(cls, parts: weights.Published) -> "Speaker":
        """The paper's decoding rules, and no voices of its own: give a recording."""
        return cls(parts.mouth, parts.tokenizer, parts.codec, DecodeSettings(), Path(), {})

    def reference(self, voice: str | Path | None, voice_text: str | None, language: str) -> Reference:
        """The voice of a name, of a recording, or the language's default.

        Raises:
            UserError: unknown name, or a recording without its transcript.
            AudioError: the recording cannot be used.
        """
        if voice is None:
            fitting = [name for name, entry in self.voices.items() if entry["language"] == language]
            if not fitting:
                raise UserError(f"no committed voice speaks '{language}': give a recording with --voice and --voice-text")
            voice = fitting[0]
        if str(voice) in self.voices:
            entry = self.voices[str(voice)]
            path, text = self.folder / entry["file"], entry["text"]
        else:
            path, text = Path(voice), voice_text
            if not path.exists():
                raise AudioError(f"no recording {voice}, and no voice of that name: choose a file or one of {', '.join(self.voices)}")
            if not (text and text.strip()):
                raise UserError(f"say with --voice-text what is spoken in {voice}: the model continues from it")
        key = (str(path), text)
        if key not in self.heard:
            wave = load_reference(path, TOKENIZER_RATE, LONGEST_REFERENCE)
            if len(wave) > LONGEST_REFERENCE * TOKENIZER_RATE:
                raise AudioError(
                    f"{path} lasts {len(wave) / TOKENIZER_RATE:.0f} s: cut out 3 to {LONGEST_REFERENCE:.0f} s and give their text"
                )
            self.heard[key] = Reference(self.codec.voice(wave, TOKENIZER_RATE), text)
        return self.heard[key]

    def prepare(
        self, text: str, voice, voice_text, language, seed: int, temperature: float | None
    ) -> tuple[Reference, Request, DecodeSettings]:
        """What both ways of speaking need; every mistake of the caller is found here."""
        language = check_text(text, language)
        reference = self.reference(voice, voice_text, language)
        changes = {"seed": seed} | ({} if temperature is None else {"temperature": temperature})
        return reference, Request(clean_text(text, language), reference.text, reference.voice.tokens), replace(self.settings, **changes)

    @torch.inference_mode()
    def speak(
        self,
        text: str,
        voice: str | Path | None = None,
        voice_text: str | None = None,
        language: str | None = None,
        seed: int = 0,
        temperature: float | None = None,
    ) -> SpeakResult:
        """Speak a text as a whole.

        Raises:
            UserError: the text, the voice or a setting cannot be used; the message says what to do.
        """
        timings, started = {}, time.perf_counter()
        reference, request, settings = self.prepare(text, voice, voice_text, language, seed, temperature)
        timings["voice"] = time.perf_counter() - started
        started = time.perf_counter()
        result = decode.generate(self.model, self.tokenizer, [request], settings)[0]
        timings["mouth"] = time.perf_counter() - started
        if len(result.tokens) == 0:
            raise UserError("the model gave no sound for this text: try another --seed or rephrase it")
        wave, parts = speak_tokens(self.codec, result.tokens, reference.voice)
        return SpeakResult(wave, self.rate, result.tokens, result.chunks, timings | parts)

    @torch.inference_mode()
    def stream(
        self,
        text: str,
        voice: str | Path | None = None,
        voice_text: str | None = None,
        language: str | None = None,
        seed: int = 0,
        temperature: float | None = None,
    ) -> Iterator[Tensor]:
        """Speak while the text is being decoded: wave pieces (n,), the same tokens as `speak`."""
        reference, request, settings = self.prepare(text, voice, voice_text, language, seed, temperature)
        yield from self.codec.stream(decode.stream(self.model, self.tokenizer, request, settings), reference.voice)


def speak_tokens(codec: Codec, tokens: Tensor, voice: Voice) -> tuple[Tensor, dict[str, float]]:
    """`codec.decode` with a stop-watch on each module: wave (T,), {"flow": s, "hift": s}."""
    vocoder, pieces, seconds = codec.hift.stream(), [], {"flow": 0.0, "hift": 0.0}
    blocks = codec.mel_blocks(tokens, voice)
    while True:
        started = time.perf_counter()
        block = next(blocks, None)  # the flow works here
        seconds["flow"] += time.perf_counter() - started
        if block is None:
            return torch.cat(pieces, dim=1)[0], seconds
        started = time.perf_counter()
        pieces.append(vocoder.push(*block))
        seconds["hift"] += time.perf_counter() - started


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
        files = [(folder / entry["file"]).resolve() for entry in voices.values() if entry["text"] and entry["language"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): restore it with `git checkout`") from None
    for file in files:
        if not file.is_relative_to(folder.resolve()) or not file.is_file():
            raise CheckpointError(f"{path} names {file.name}, which is not in its folder: restore it with `git checkout`")
    return voices
