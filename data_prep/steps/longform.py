"""Long recordings out of short ones: one speaker, natural pauses, lengths uniform up to ten minutes and more.

Records of one (source, split, language, speaker) are joined in the order they were spoken. The length wanted is drawn uniformly; a
voice with less material makes one recording of what it has, so the histogram is uniform only where voices have plenty. Between
neighbours of one recording the pause they had is kept where it is 0.1-1.5 s, elsewhere it is drawn from a lognormal around 0.45 s
(Campione and Veronis 2002 find 0.2-1 s for most pauses in read speech). Short records stay beside the new ones, which have
`parts`: [{id, start, end, text}, ...] and `long: true`.

Shapes: T samples.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from data_prep.pipeline import Audio, Step, register
from omnilib.text import join_sentences

FADE = 0.01  # seconds at both ends of a part: no clicks
PAUSE, SPREAD = 0.45, 0.4
LEAST_PAUSE, MOST_PAUSE = 0.1, 1.5


def generator(seed: int, key: tuple) -> np.random.Generator:
    """Random numbers of one voice: the same whatever other voices there are."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(f"{seed} {key}".encode()).digest()[:8]))


def pause(before: dict, after: dict, rng: np.random.Generator) -> float:
    """Seconds of silence between two parts."""
    drawn = float(np.clip(rng.lognormal(np.log(PAUSE), SPREAD), LEAST_PAUSE, MOST_PAUSE))
    if not before.get("parent") or before["parent"] != after.get("parent"):
        return drawn
    kept = after["segment_start"] - before["segment_start"] - before["duration"]
    return kept if LEAST_PAUSE <= kept <= MOST_PAUSE else drawn


def faded(wave: np.ndarray, rate: int) -> np.ndarray:
    """The wave with short ramps at its ends."""
    ramp = np.linspace(0, 1, min(round(FADE * rate), len(wave) // 2), dtype=np.float32)
    gain = np.ones(len(wave), np.float32)
    gain[: len(ramp)], gain[len(wave) - len(ramp) :] = ramp, ramp[::-1]
    return wave * gain


@register
@dataclass
class LongForm(Step):
    """Add long recordings."""

    name: ClassVar[str] = "longform"
    scope: ClassVar[str] = "all"
    least: float = 30.0  # seconds
    most: float = 600.0
    splits: list[str] = field(default_factory=lambda: ["train"])
    seed: int = 0

    def run(self, records: list[dict], audio: Audio) -> list[dict]:
        return records + [self.join(name, group, audio) for name, group in self.plan(records)]

    def plan(self, records: list[dict]) -> Iterator[tuple[str, list[tuple[float, dict]]]]:
        """Name and (start, record) of the parts of each long recording; no sound is read."""
        voices = defaultdict(list)
        for record in records:
            if record.get("speaker") and record.get("text") and record.get("split") in self.splits:
                voices[record["source"], record["split"], record["language"], record["speaker"]].append(
                    record
                )
        for key in sorted(voices):
            for number, group in enumerate(self.groups(key, voices[key])):
                yield f"long-{hashlib.sha256(repr(key).encode()).hexdigest()[:10]}-{number:04d}", group

    def groups(self, key: tuple, records: list[dict]) -> Iterator[list[tuple[float, dict]]]:
        """(start, record) of each long recording of one voice."""
        rng, ordered = generator(self.seed, key), sorted(records, key=spoken_order)
        wanted, end, group = rng.uniform(self.least, self.most), 0.0, []
        for record in ordered:
            start = end + pause(group[-1][1], record, rng) if group else 0.0
            if group and start + record["duration"] > wanted:
                if end >= self.least:
                    yield group
                wanted, start, group = rng.uniform(self.least, self.most), 0.0, []
            group.append((start, record))
            end = start + record["duration"]
        if end >= self.least:
            yield group

    def join(self, name: str, group: list[tuple[float, dict]], audio: Audio) -> dict:
        """One long record, written."""
        rate, (last_start, last) = group[0][1]["rate"], group[-1]
        wave = np.zeros(round((last_start + last["duration"]) * rate) + 1, np.float32)
        for start, record in group:
            part, at = faded(audio.wave(record, rate), rate), round(start * rate)
            wave[at : at + len(part)] = part[: len(wave) - at]
        first = group[0][1]
        parts = [
            {
                "id": r["id"],
                "start": round(s * rate) / rate,
                "end": round(s * rate) / rate + r["duration"],
                "text": r["text"],
            }
            for s, r in group
        ]
        return {
            **{key: first[key] for key in ("source", "licence", "split", "language", "speaker")},
            "id": name,
            "path": audio.write(name, wave, rate),
            "start": 0.0,
            "duration": len(wave) / rate,
            "rate": rate,
            "text": join_sentences([p["text"] for p in parts])[0],
            "parts": parts,
            "long": True,
        }


def spoken_order(record: dict) -> tuple:
    return (
        record.get("recording") or record["id"],
        record.get("offset") or 0.0,
        record.get("segment_start") or 0.0,
        record["id"],
    )
