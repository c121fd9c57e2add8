"""What every part of the evaluation works with: the model, the frozen set, the judges, the figures so far."""

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from omnilib.audio import TOKENIZER_RATE, VOICE_RATE, save_wave
from omnilib.eval import cloning
from omnilib.eval.frozen import Frozen, Heard, Line
from omnilib.eval.judges import SpeakerJudge, Whisper
from omnilib.eval.naturalness import Naturalness
from omnilib.mouth.decode import DecodeSettings, Request
from omnilib.speak import TextToSpeech
from omnilib.spoken import clean_text


class Evaluation:
    """What every part of the evaluation works with.

    Args:
        limit: lines a language and role, for a quick look; None takes all.
        waves: folder that keeps every wave made, or None.
    """

    def __init__(
        self,
        speaker: TextToSpeech,
        frozen: Frozen,
        limit: int | None = None,
        seed: int = 0,
        waves: Path | None = None,
    ):
        self.speaker, self.frozen, self.limit, self.seed, self.waves = speaker, frozen, limit, seed, waves
        self.settings: DecodeSettings = replace(speaker.settings, seed=seed)
        self.metrics: dict[str, dict] = {}
        self.records: list[dict] = []
        self.long_records: list[dict] = []
        self.demos: list[tuple[str, str, torch.Tensor, int]] = []  # name, caption, wave, rate
        self.judge: Whisper | None = None
        self.voices: SpeakerJudge | None = None
        self.ears: Naturalness | None = None

    def listen(self, judge: Whisper, voices: SpeakerJudge, ears: Naturalness | None = None) -> None:
        """Bring in the judges (after the speed measurements)."""
        self.judge, self.voices, self.ears = judge, voices, ears
        self.gallery = cloning.Gallery(self.frozen, voices)
        self.heard = Heard(self.frozen.folder / "heard.json", judge)
        self.vectors: dict[str, np.ndarray] = {}

    def lines(self, role: str, language: str) -> list[Line]:
        """Lines of a role, spread over the speakers when limited."""
        found = self.frozen.of(role, language=language)
        return found if self.limit is None else found[:: max(1, len(found) // self.limit)][: self.limit]

    def reference(self, line: Line):
        """The voice of a line's speaker, from another recording."""
        other = self.frozen.references[line.speaker]
        return self.speaker.reference(other.path, other.text, other.language)

    def request(self, line: Line) -> Request:
        """The line's text in the voice of its speaker, through the door that a user's text takes."""
        reference, read = self.reference(line), self.speaker.reader.read
        said, spoken = clean_text(reference.text), clean_text(line.text, line.language)
        return Request(read(spoken).text, read(said).text, reference.voice.tokens)

    def vector(self, line: Line) -> np.ndarray:
        """Speaker vector of a recording, computed once."""
        if line.id not in self.vectors:
            self.vectors[line.id] = self.voices.embed(line.wave(TOKENIZER_RATE), TOKENIZER_RATE)
        return self.vectors[line.id]

    def sound(self, wave: torch.Tensor, line: Line) -> dict:
        """What can be said of a made wave without its words: whose voice it is, how natural it sounds."""
        reference = self.vector(self.frozen.references[line.speaker])
        facts = self.gallery.compare(wave, VOICE_RATE, line.speaker, reference, line.language)
        return facts | self.opinion(wave, line)

    def opinion(self, wave: torch.Tensor, line: Line) -> dict:
        """Naturalness of a test sentence."""
        if self.ears is None or line.role != "eval":
            return {}
        return {"dnsmos": round(self.ears.score(wave, VOICE_RATE), 4)}

    def keep(self, name: str, wave: torch.Tensor) -> None:
        """Store a wave when asked to."""
        if self.waves is not None:
            self.waves.mkdir(parents=True, exist_ok=True)
            save_wave(self.waves / f"{name}.wav", wave, VOICE_RATE)

    def note(
        self,
        name: str,
        entry: dict,
        unit: str = "",
        judged: bool = False,
        decoded: bool = False,
        normaliser: str | None = None,
    ) -> None:
        """Record a figure with everything that could have moved it."""
        s = self.settings
        entry = {
            "unit": unit,
            "seed": self.seed,
            "temperature": None,
            "retries": None,
            "judge": None,
            "normaliser": normaliser,
        } | entry
        if decoded:
            entry |= {
                "temperature": s.temperature,
                "top_k": s.top_k,
                "top_p": s.top_p,
                "retries": entry["retries"] or s.retries,
            }
        if judged:
            entry["judge"] = self.judge.id if normaliser else self.voices.id
        self.metrics[name] = entry


def normaliser_of(language: str) -> str:
    """What was done to both texts before they were compared."""
    if language == "zh":
        return f"Long-TTS-Eval rules, simplified (zhconv {version('zhconv')}), toneless pinyin (pypinyin {version('pypinyin')}) or characters"
    return f"Long-TTS-Eval rules (num2words {version('num2words')})"
