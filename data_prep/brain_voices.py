"""Who asks the questions of `data_prep.brain`, and how long that takes.

Speech is the dear part of these samples, so it is planned before anything is spoken: each recording is a
`Clip`, named by its words and voice, and questions with the same words share recordings ("What is in the
picture?" is spoken by TAKES voices, not a thousand times). Clips are admitted in order until their expected
length reaches the budget; the rest is asked typed. Recordings that are there already are kept, so a build
that was stopped goes on.

Engines: those of `data_prep.engines`, or `kokoro`: all its plain voices in both languages,
the held-out ones (`kokoro.HELD_OUT`) in the test split alone.
"""

import hashlib
import multiprocessing
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import soundfile
import soxr

from data_prep import fetch, kokoro
from data_prep.engines import ENGINES, Unspoken
from data_prep.speakers import SPEAKERS
from omnilib.errors import DataError, MissingTool, UserError
from omnilib.spoken import clean_text

RATE = 16_000  # of the brain
TAKES = 24  # voices that speak one question
SECONDS_PER_LETTER = {"en": 0.068, "zh": 0.24}  # Kokoro, measured on its corpus; the budget is kept with it
LEAST_SECONDS = 0.9  # of a recording, its silent ends included


@dataclass(frozen=True)
class Clip:
    """A recording to be made."""

    text: str
    language: str
    voice: str
    path: str  # relative to the folder of the manifest

    @property
    def seconds(self) -> float:
        """Expected length."""
        return LEAST_SECONDS + SECONDS_PER_LETTER[self.language] * len(self.text)


def pick(key: str, count: int) -> int:
    """A number below `count`, decided by a key alone."""
    return int(hashlib.sha256(key.encode()).hexdigest(), 16) % count


class Voices:
    """The voices of an engine by language and split; of a quick one that named, or all of `speakers.SPEAKERS`.

    Raises:
        MissingTool: not installed. DataError: no engine, or no voice, of that name.
    """

    def __init__(self, engine: str, voice: str = ""):
        self.engine = engine
        self.known: dict[tuple[str, bool], list[str]] = {}  # (language, held out) -> names
        if engine == "kokoro":
            fetch.require(fetch.FOLDER)
            for name in kokoro.voices():
                if name not in kokoro.ODD and name[0] in "abz":
                    key = ("zh" if name[0] == "z" else "en", name in kokoro.HELD_OUT)
                    self.known.setdefault(key, []).append(name)
            return
        if engine not in ENGINES:
            raise DataError(f"no engine '{engine}': use one of {', '.join(sorted([*ENGINES, 'kokoro']))}")
        names = [voice] if voice else sorted({s.voice for s in SPEAKERS if s.engine == engine})
        for name in names:
            made = ENGINES[engine](name)
            try:
                made.say("one" if made.language == "en" else "一")
            except (OSError, AttributeError, StopIteration, Unspoken):
                raise DataError(
                    f"{engine} has no voice '{name}': see data_prep/engines.py for its voices"
                ) from None
            self.known = {(made.language, held): names for held in (False, True)}

    def speaks(self, language: str) -> bool:
        """Whether anybody does."""
        return (language, False) in self.known

    def clip(self, text: str, language: str, split: str, key: str, folder: str) -> Clip | None:
        """The recording of a question; None where no voice speaks its language.

        Args:
            key: of the item: decides which voice asks.
            folder: for its file, relative to the folder of the manifest.
        """
        voices = self.known.get((language, split == "test"))
        if not voices:
            return None
        few = voices[:TAKES] if split == "test" else voices
        voice = few[pick(key, min(len(few), TAKES))]
        digest = hashlib.sha256(f"{self.engine} {voice} {text}".encode()).hexdigest()
        return Clip(text, language, voice, f"{folder}/said-{digest[:16]}.wav")


def admit(clips: Iterable[Clip], hours: float) -> tuple[list[Clip], float]:
    """Clips in order, each once, while they fit the budget; and their expected hours."""
    chosen: dict[str, Clip] = {}
    spent = 0.0
    for clip in clips:
        if clip.path not in chosen and spent + clip.seconds <= hours * 3600:
            chosen[clip.path] = clip
            spent += clip.seconds
    return list(chosen.values()), spent / 3600


@lru_cache(maxsize=64)
def engine_of(engine: str, voice: str):
    """One voice, ready to speak."""
    return kokoro.Kokoro(voice) if engine == "kokoro" else ENGINES[engine](voice)


def speak(clip: Clip, engine: str, root: Path) -> tuple[str, float]:
    """Write a recording, mono at 16 kHz, if it is not there: its path, and its seconds (0: it cannot be said)."""
    path = root / clip.path
    if path.is_file():
        return clip.path, soundfile.info(str(path)).duration
    try:
        words = clean_text(clip.text, clip.language) if engine == "kokoro" else clip.text
        spoken = engine_of(engine, clip.voice).say(words)
    except (Unspoken, UserError) as error:
        if isinstance(error, MissingTool):
            raise
        return clip.path, 0.0
    wave = soxr.resample(spoken.wave, spoken.rate, RATE)
    temporary = path.with_suffix(".tmp")
    soundfile.write(temporary, np.clip(wave, -1, 1), RATE, subtype="PCM_16", format="WAV")
    temporary.replace(path)
    return clip.path, len(wave) / RATE


def speak_all(clips: list[Clip], engine: str, root: Path, workers: int = 1) -> dict[str, float]:
    """Make the recordings: path -> seconds, without those that cannot be said."""
    work = partial(speak, engine=engine, root=root)
    if workers > 1 and len(clips) > 1:
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            made = list(pool.imap(work, clips, chunksize=8))
    else:
        made = [work(clip) for clip in clips]
    return {path: seconds for path, seconds in made if seconds}
