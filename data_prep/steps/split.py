"""Train, dev and test without leakage: no speaker and no text of a held-out set is trained on.

Speakers are ordered by a hash of their name; the first ones go to test, the next to dev, until each set holds its share of every
language's hours. A record without a speaker counts its recording as one. A split that is already given stays. What is left is
train, except records whose text a held-out set holds. Reason: held_out_text.
"""

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from typing import ClassVar

from data_prep.pipeline import Audio, Step, dropped, register


def voice_of(record: dict) -> tuple[str, str]:
    """The speaker a record belongs to, by what its source says."""
    return record["source"], record.get("speaker") or record.get("recording") or record.get(
        "parent"
    ) or record["id"]


def letters(record: dict) -> str:
    """The text without case, spaces and punctuation."""
    return "".join(c for c in (record.get("text") or "").casefold() if c.isalnum())


def order_of(voice: tuple[str, str], seed: int) -> str:
    return hashlib.sha256(f"{seed} {voice[0]} {voice[1]}".encode()).hexdigest()


@register
@dataclass
class Split(Step):
    """Set `split` of every record."""

    name: ClassVar[str] = "split"
    scope: ClassVar[str] = "all"
    test: float = 0.02  # share of each language's hours
    dev: float = 0.01
    seed: int = 0

    def run(self, records: list[dict], audio: Audio) -> list[dict]:
        chosen = self.held_out(records)
        named = [r | {"split": r.get("split") or chosen.get(voice_of(r), "train")} for r in records]
        texts = {letters(r) for r in named if r["split"] != "train"} - {""}
        return [
            dropped(r, self.name, "held_out_text") if r["split"] == "train" and letters(r) in texts else r
            for r in named
        ]

    def held_out(self, records: list[dict]) -> dict[tuple[str, str], str]:
        """The set of each held-out voice; voices of records that are already split keep out of it."""
        given = {voice_of(r): r["split"] for r in records if r.get("split")}
        hours: dict[str, dict] = defaultdict(lambda: defaultdict(float))
        for record in records:
            if voice_of(record) not in given:
                hours[record.get("language") or ""][voice_of(record)] += record["duration"]
        chosen = dict(given)
        for voices in hours.values():
            total, left = sum(voices.values()), sorted(voices, key=lambda v: order_of(v, self.seed))
            for split, share in (("test", self.test), ("dev", self.dev)):
                held = 0.0
                while left and held < share * total and held + voices[left[0]] <= total / 2:
                    held += voices[left[0]]
                    chosen.setdefault(left.pop(0), split)
        return chosen
