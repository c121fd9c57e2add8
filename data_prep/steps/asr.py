"""What a Whisper hears: the language, the words, and how far they are from the given transcript.

    language     adds `heard_language`, `language_probability`; `by: script` looks at the text instead and needs no model
    transcribe   adds these and `heard`, `heard_logprob`, `error`, `surprise`, `beyond`; the sound is encoded once for all of them

`error` is the word error rate (zh: of toneless syllables) of `heard` against the record's text, `surprise` how much less likely
(nats a token) the model finds the given text than its own: a wrong transcript is bad in both, a homophone only in the first.
`beyond` is the share of `heard` that goes on where the text ends (eval/wer.py): a text cut short is no surprise as far as it goes.
All three are null without a text, or in a language without a normaliser. `model` is a faster-whisper folder or hub id; empty takes
OMNILIB_WHISPER or Whisper base from its packages (eval/judges.py). A judge must not filter what it later scores: filter with
another Whisper than the one that judges where both matter.

Shapes: T samples at 16 kHz.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from data_prep.pipeline import Audio, Step, register
from omnilib.errors import ConfigError
from omnilib.eval.judges import FRAMES, PIECE_SECONDS, RATE, Whisper
from omnilib.eval.wer import beyond, line_rates
from omnilib.spoken import LANGUAGES, detect_language

ENCODER_FRAMES = 2  # mel frames an encoder frame
LEAST_WINDOW, MARGIN = 15.0, 8.0  # seconds


def window_frames(samples: int) -> int:
    """Mel frames of the window: the speech and 8 s of silence, 15 s at least, 30 s at most. A third of the work of always 30 s, and good
    enough to sort recordings; the judge itself (eval/judges.py) takes no such short cut."""
    seconds = max(LEAST_WINDOW, samples / RATE + MARGIN)
    return min(FRAMES, round(seconds * 50) * 2)  # even: the encoder halves the rate


class Ears:
    """A Whisper that encodes a piece of sound once and answers several questions about it."""

    def __init__(self, model: str, beam: int, threads: int = 1):
        self.judge = Whisper(model or None, workers=threads, beam=beam)
        self.whisper = self.judge.model

    def encode(self, wave: np.ndarray) -> tuple[object, int]:
        """Encoded sound of at most 28 s, and its mel frames."""
        from faster_whisper.audio import pad_or_trim

        wave = wave[: round(PIECE_SECONDS * RATE)]
        frames = window_frames(len(wave))
        return self.whisper.encode(pad_or_trim(self.whisper.feature_extractor(wave), frames)), min(
            frames, FRAMES, len(wave) // 160
        )

    def language(self, encoded: object) -> tuple[str, float]:
        """Likeliest language and its probability."""
        token, probability = self.whisper.model.detect_language(encoded)[0][0]
        return token[2:-2], float(probability)

    def tokenizer(self, language: str) -> object:
        from faster_whisper.tokenizer import Tokenizer

        return Tokenizer(self.whisper.hf_tokenizer, True, task="transcribe", language=language)

    def words(self, encoded: object, language: str) -> tuple[str, float]:
        """Transcript and its mean log probability a token."""
        from faster_whisper.transcribe import get_suppressed_tokens

        tokenizer = self.tokenizer(language)
        result = self.whisper.model.generate(
            encoded,
            [self.whisper.get_prompt(tokenizer, [], without_timestamps=True)],
            beam_size=self.judge.beam,
            max_length=self.whisper.max_length,
            suppress_blank=True,
            suppress_tokens=list(get_suppressed_tokens(tokenizer, [-1])),
            return_scores=True,
        )[0]
        return tokenizer.decode(result.sequences_ids[0]).strip(), float(result.scores[0])

    def logprob(self, encoded: object, frames: int, text: str, language: str) -> float:
        """Mean log probability a token of a given text."""
        tokenizer = self.tokenizer(language)
        tokens = tokenizer.encode(" " + text.strip() if language != "zh" else text.strip())[:200]
        start = [*tokenizer.sot_sequence, tokenizer.no_timestamps]
        aligned = self.whisper.model.align(encoded, start, [tokens], [max(1, frames)])[0]
        return float(np.log(np.maximum(aligned.text_token_probs, 1e-8)).mean())


@register
@dataclass
class Language(Step):
    """Language of the speech."""

    name: ClassVar[str] = "language"
    by: str = "whisper"  # whisper | script
    model: str = ""
    threads: int = 1

    def __post_init__(self) -> None:
        if self.by not in ("whisper", "script"):
            raise ConfigError(f"step 'language': by is 'whisper' or 'script', not '{self.by}'")

    def open(self) -> None:
        self.ears = Ears(self.model, beam=1, threads=self.threads) if self.by == "whisper" else None

    def run(self, records: list[dict], audio: Audio) -> list[dict]:
        return [self.identify(record, audio) for record in records]

    def identify(self, record: dict, audio: Audio) -> dict:
        if self.ears is None:
            heard, sure = detect_language(record.get("text") or record.get("heard") or ""), 1.0
        else:
            heard, sure = self.ears.language(self.ears.encode(audio.wave(record, RATE))[0])
        return record | {"heard_language": heard, "language_probability": round(sure, 3)}


@register
@dataclass
class Transcribe(Step):
    """Words of the speech, and the given ones checked."""

    name: ClassVar[str] = "transcribe"
    model: str = ""
    beam: int = 5
    threads: int = 1

    def open(self) -> None:
        self.ears = Ears(self.model, self.beam, self.threads)

    def run(self, records: list[dict], audio: Audio) -> list[dict]:
        return [self.hear(record, audio) for record in records]

    def hear(self, record: dict, audio: Audio) -> dict:
        encoded, frames = self.ears.encode(audio.wave(record, RATE))
        heard_language, sure = self.ears.language(encoded)
        language, text = record.get("language") or heard_language, record.get("text")
        heard, score = self.ears.words(encoded, language)
        error = surprise = more = None
        if text and language in LANGUAGES:
            rates = line_rates(text, heard, language)
            error = round(rates["pinyin" if language == "zh" else "wer"].error, 4)
            surprise = round(score - self.ears.logprob(encoded, frames, text, language), 3)
            more = round(beyond(text, heard, language), 3)
        return record | {
            "heard_language": heard_language,
            "language_probability": round(sure, 3),
            "heard": heard,
            "heard_logprob": round(score, 3),
            "error": error,
            "surprise": surprise,
            "beyond": more,
        }
