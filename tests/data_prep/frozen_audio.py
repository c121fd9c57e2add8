"""Frozen recordings for the tests of the curation steps, and an Audio over a temporary folder."""

from pathlib import Path

import numpy as np
import soundfile
import soxr

from data_prep import frozen
from data_prep.pipeline import Audio
from omnilib.data import read_manifest

FOLDER = Path(frozen.__file__).parent / "frozen"
RECORDS = read_manifest(FOLDER / "manifest.jsonl")
RATE = 24_000


def wave_of(record: dict) -> np.ndarray:
    """A frozen recording at 24 kHz: (T,)."""
    wave, rate = soundfile.read(FOLDER / record["path"], dtype="float32")
    return soxr.resample(wave, rate, RATE)


def spoken(**fields) -> list[dict]:
    """Frozen records with these fields, longest first."""
    return sorted(
        (r for r in RECORDS if all(r[k] == v for k, v in fields.items())), key=lambda r: -r["duration"]
    )


def two_voices() -> tuple[str, str]:
    """Two English speakers with five recordings and more who sound unlike each other: no mixtures."""
    names = {r["speaker"] for r in spoken(role="eval", language="en") if "unseen" not in r["speaker"]}
    many = sorted(name for name in names if len(spoken(speaker=name)) >= 5)
    return many[0], many[-1]


class Shelf:
    """A corpus in a folder: `shelf.add(wave, **fields)` -> record."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.audio = Audio(folder, folder)
        self.count = 0

    def add(self, wave: np.ndarray, rate: int = RATE, **fields) -> dict:
        self.count += 1
        name = f"r{self.count:03d}"
        soundfile.write(self.folder / f"{name}.wav", wave, rate, subtype="FLOAT")
        return self.record(f"{name}.wav", len(wave) / rate, rate, **({"id": name} | fields))

    def record(self, path: str, duration: float | None = None, rate: int | None = None, **fields) -> dict:
        base = {
            "id": path,
            "path": path,
            "start": 0.0,
            "duration": duration,
            "rate": rate,
            "text": None,
            "language": None,
        }
        return base | {"speaker": None, "source": "test", "licence": "CC0", "split": None} | fields


def run(step, records: list[dict], shelf: Shelf) -> list[dict]:
    """Open the step and run it."""
    step.open()
    return step.run(records, shelf.audio)


def reasons(records: list[dict]) -> list[str | None]:
    """Why each was dropped, or None."""
    return [r.get("dropped", {}).get("reason") for r in records]
