"""Cut recordings into segments of 3-30 s, as Emilia does: neighbouring speech is joined over gaps of up to 2 s.

A recording with a transcript stays one segment, only the silence around it goes. Without one, regions are joined while the gap is
short, the sum fits and the voice stays the same (`turns`, see voices.py). New records `<id>-000`, ... with `parent`; `speech`
becomes relative to the segment, `segment_start` stays when a later step writes the segment to its own file. Reasons: too_short,
too_long.
"""

from dataclasses import dataclass
from typing import ClassVar

from data_prep.pipeline import Audio, Step, dropped, register

Region = list[float]


def joined(speech: list[Region], turns: list[int], gap: float, most: float) -> list[list[int]]:
    """Indices of the regions of each segment."""
    groups: list[list[int]] = []
    for index, (start, end) in enumerate(speech):
        last = groups[-1] if groups else None
        fits = last and start - speech[last[-1]][1] <= gap and end - speech[last[0]][0] <= most
        if fits and turns[last[-1]] == turns[index]:
            last.append(index)
        else:
            groups.append([index])
    return groups


@register
@dataclass
class Segment(Step):
    """Segments of speech."""

    name: ClassVar[str] = "segment"
    least: float = 3.0  # seconds
    least_with_text: float = 1.0  # a sentence somebody wrote down may be short
    most: float = 30.0
    gap: float = 2.0
    pad: float = 0.1  # silence left on each side, never more than half the gap to a neighbour

    def run(self, records: list[dict], audio: Audio) -> list[dict]:
        return [segment for record in records for segment in self.cut(record)]

    def cut(self, record: dict) -> list[dict]:
        speech, text = record["speech"], record.get("text")
        turns = record.get("turns") or [0] * len(speech)
        groups = (
            [list(range(len(speech)))] if text else joined(speech, turns, self.gap, self.most - 2 * self.pad)
        )
        least = self.least_with_text if text else self.least
        edges = [
            0.0,
            *(edge for group in groups for edge in (speech[group[0]][0], speech[group[-1]][1])),
            record["duration"],
        ]
        results = []
        for number, group in enumerate(groups):
            before, start, end, after = edges[2 * number : 2 * number + 4]
            start -= min(self.pad, (start - before) / (2 if number else 1))
            end += min(self.pad, (after - end) / (2 if number + 1 < len(groups) else 1))
            segment = self.piece(record, number, start, end, [speech[i] for i in group])
            if record.get("turns"):
                segment |= {"speaker": f"{record['id']}-s{turns[group[0]]}", "turns": None}
            short, long = end - start < least, end - start > self.most
            results.append(
                dropped(segment, self.name, "too_short" if short else "too_long")
                if short or long
                else segment
            )
        return results

    def piece(self, record: dict, number: int, start: float, end: float, speech: list[Region]) -> dict:
        return record | {
            "id": f"{record['id']}-{number:03d}",
            "parent": record["id"],
            "start": round(record["start"] + start, 4),
            "segment_start": round(record["start"] + start, 4),
            "duration": round(end - start, 4),
            "speech": [[round(a - start, 3), round(b - start, 3)] for a, b in speech],
        }
