"""Speaking speed: characters a second of speech, inside the 1.5 IQR fence of its source and language (as Emilia fences it).

A wrong transcript or a stuck recording falls out of the fence. Groups of fewer than `least_records` have no fence.
Adds `chars_per_second`. Reason: speed_outlier.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from data_prep.pipeline import Audio, Step, dropped, register


def speed(record: dict) -> float:
    """Letters, digits and Han characters a second of speech."""
    spoken = sum(end - start for start, end in record.get("speech") or ()) or record["duration"]
    return sum(c.isalnum() for c in record["text"]) / max(spoken, 0.1)


def fence(values: list[float], reach: float) -> tuple[float, float]:
    """Tukey's fence: `reach` times the interquartile range beyond the quartiles."""
    low, high = np.percentile(values, [25, 75])
    return float(low - reach * (high - low)), float(high + reach * (high - low))


@register
@dataclass
class Speed(Step):
    """Drop outliers of speaking speed."""

    name: ClassVar[str] = "speed"
    scope: ClassVar[str] = "all"
    reach: float = 1.5
    least_records: int = 20

    def run(self, records: list[dict], audio: Audio) -> list[dict]:
        measured = [r | {"chars_per_second": round(speed(r), 3)} for r in records]
        groups = defaultdict(list)
        for record in measured:
            groups[record["source"], record["language"]].append(record["chars_per_second"])
        fences = {
            key: fence(values, self.reach)
            for key, values in groups.items()
            if len(values) >= self.least_records
        }
        return [dropped(r, self.name, "speed_outlier") if self.outside(r, fences) else r for r in measured]

    def outside(self, record: dict, fences: dict[tuple, tuple[float, float]]) -> bool:
        low, high = fences.get((record["source"], record["language"]), (0.0, np.inf))
        return not low <= record["chars_per_second"] <= high
