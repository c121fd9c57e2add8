"""What the judge hears of a text that was spoken: its transcript beside the text, word by word.

    heard = HearBack().hear(spoken.wave, spoken.rate, text, "en")
    print(heard)          # 8.3 % of 12 words wrong; text and transcript

The same judge and the same rule as every reported word error: against the text or its spoken form, whichever is nearer.
Chapter 00 shows it under its box. Mandarin is compared by toneless syllables, because the judge often writes another
character with the right sound.
"""

import html
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from omnilib.errors import UserError
from omnilib.eval.judges import RATE, Whisper
from omnilib.eval.normalize import normalize
from omnilib.eval.wer import rates, toneless_pinyin
from omnilib.reference import load_reference
from omnilib.spoken import clean_text

LONGEST = 30.0  # seconds of a recording that is to be cloned

KINDS = {"equal": "", "substitute": "background:#f3d9c4;color:#1c2430", "delete": "text-decoration:line-through", "insert": "background:#cfe6e4;color:#1c2430"}  # fmt: skip


@dataclass(frozen=True)
class Heard:
    """A transcript and its errors.

    Attributes:
        transcript: what the judge wrote down, "" when it heard no speech.
        error: wrong words over the words of the text.
        words: of the text, as they were compared.
        marks: (kind, word) from left to right; a kind of `KINDS`, of a `delete` the word of the text that is missing.
    """

    transcript: str
    error: float
    words: int
    marks: list[tuple[str, str]]

    def __str__(self) -> str:
        said = f"'{self.transcript}'" if self.transcript else "no speech"
        return f"the judge heard {said}: {100 * self.error:.0f} % of {self.words} words wrong"

    def html(self) -> str:
        """The words with what is wrong marked: orange another word, teal one too many, struck out one missing."""
        words = " ".join(
            f'<span style="{KINDS[kind]}">{html.escape(word)}</span>' for kind, word in self.marks
        )
        return f"<p>heard back ({100 * self.error:.0f} % of {self.words} words wrong): {words}</p>"


def compare(text: str, transcript: str, language: str) -> Heard:
    """Text against transcript, or its spoken form against it when that is nearer.

    Raises:
        UserError: no word of the text can be compared.
    """
    import jiwer

    clean = toneless_pinyin if language == "zh" else lambda words: normalize(words, language)
    truths = [words for words in map(clean, (clean_text(text, language), text)) if words.strip()]
    if not truths:
        raise UserError("there is no word in this text to listen for: give at least one")
    heard = clean(transcript)
    truth = min(truths, key=lambda words: rates(words, heard).error)
    found = rates(truth, heard)
    if not heard.strip():
        return Heard(transcript, found.error, found.words, [("delete", word) for word in truth.split()])
    marks = []
    for chunk in jiwer.process_words(truth, heard).alignments[0]:
        missing = chunk.type == "delete"
        words = truth.split()[chunk.ref_start_idx : chunk.ref_end_idx] if missing else heard.split()[chunk.hyp_start_idx : chunk.hyp_end_idx]  # fmt: skip
        marks += [(chunk.type, word) for word in words]
    return Heard(transcript, found.error, found.words, marks)


class HearBack:
    """Whisper base, loaded when it is first asked.

    Raises:
        MissingTool: at the first question, when the judge is not installed.
    """

    def __init__(self) -> None:
        self.judge: Whisper | None = None

    def transcribe(self, wave: np.ndarray | Tensor, rate: int, language: str) -> str:
        """What is said in a wave (T,)."""
        if self.judge is None:
            self.judge = Whisper(workers=1)
        return self.judge.transcribe(wave, rate, language)

    def words_of(self, path: str | Path, language: str) -> str:
        """What is said in a recording that is to be cloned.

        Raises:
            AudioError: the recording cannot be used.
        """
        return self.transcribe(load_reference(path, RATE, LONGEST), RATE, language)

    def hear(self, wave: np.ndarray | Tensor, rate: int, text: str, language: str) -> Heard:
        """The transcript of a wave (T,) against the text that it should say."""
        return compare(text, self.transcribe(wave, rate, language), language)
