"""The frozen evaluation set: committed recordings and texts, the same for every model, and the transcripts already heard.

    data_prep/frozen/manifest.jsonl    records with a `role` (see data_prep/frozen.py) and an Opus file each
    data_prep/frozen/longform.jsonl    long texts, each with the speaker to be spoken by; an id begins with its kind:
                                       long- (300-500 words), minutes10-, minutes60-
    data_prep/frozen/heard.json        {judge id: {sha256 of the audio file: transcript}}

What a judge hears in a frozen recording never changes, so it is kept; `recheck.py` listens to a sample again.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from omnilib.audio import load_wave
from omnilib.data import read_manifest, sha256
from omnilib.errors import DataError
from omnilib.eval.judges import Whisper
from omnilib.paths import ROOT
from omnilib.provenance import write_json

FOLDER = ROOT / "data_prep" / "frozen"


@dataclass(frozen=True)
class Line:
    """One recording with its text."""

    id: str
    role: str
    text: str
    language: str
    speaker: str
    seen: bool  # whether the speaker was heard in training
    path: Path
    set: str = ""  # of the natural corpus: everyday, open, seen

    def wave(self, rate: int) -> torch.Tensor:
        """Samples (T,) at `rate`."""
        return load_wave(self.path, rate)


class Frozen:
    """Lines by role, a reference recording for every speaker, the long texts.

    Raises:
        DataError: the set is missing or incomplete.
    """

    def __init__(self, folder: Path = FOLDER):
        self.folder = Path(folder)
        if not (self.folder / "manifest.jsonl").is_file():
            raise DataError(
                f"no frozen evaluation set in {self.folder}: restore it with `git checkout` or run `python -m data_prep.frozen`"
            )
        self.lines = [
            Line(
                r["id"],
                r.get("role", "eval"),
                r["text"],
                r["language"],
                r["speaker"],
                bool(r.get("seen_speaker")),
                self.folder / r["path"],
                r.get("set", ""),
            )
            for r in read_manifest(self.folder / "manifest.jsonl")
        ]
        self.references = {line.speaker: line for line in self.lines if line.role == "reference"}
        absent = {line.speaker for line in self.of("eval", "open", "seen")} - set(self.references)
        if absent:
            raise DataError(
                f"{self.folder}: no reference recording of {', '.join(sorted(absent))}; rebuild it with `python -m data_prep.frozen`"
            )

    def of(self, *roles: str, language: str | None = None) -> list[Line]:
        """Lines of the given roles, in the order of the manifest."""
        return [x for x in self.lines if x.role in roles and language in (None, x.language)]

    @property
    def long_texts(self) -> list[dict]:
        """The texts of 300-500 words."""
        return self.texts("long-")

    def texts(self, kind: str) -> list[dict]:
        """[{id, language, text, speaker}] of a kind of long text, those whose speaker has a reference."""
        return [row for row in self.every_text if row["id"].startswith(kind)]

    @cached_property
    def every_text(self) -> list[dict]:
        path = self.folder / "longform.jsonl"
        if not path.is_file():
            return []
        rows = [json.loads(row) for row in path.read_text(encoding="utf-8").splitlines()]
        return [row for row in rows if row["speaker"] in self.references]


class Heard:
    """Transcripts of frozen recordings, remembered by judge and audio.

    Args:
        path: heard.json; created at the first `save`.
    """

    def __init__(self, path: Path, judge: Whisper):
        self.path, self.judge = path, judge
        self.book: dict[str, dict[str, str]] = (
            json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        )
        self.page = self.book.setdefault(judge.id, {})
        self.listened = 0

    def texts(self, lines: list[Line]) -> list[str]:
        """What the judge hears in each line; only unheard recordings cost time."""
        keys = [sha256(line.path) for line in lines]
        waiting = {}
        for key, line in zip(keys, lines, strict=True):
            if key not in self.page and key not in waiting:
                waiting[key] = self.judge.submit(line.wave(16_000), 16_000, line.language)
        for key, text in waiting.items():
            self.page[key] = text()
            self.listened += 1
        return [self.page[key] for key in keys]

    def save(self) -> None:
        """Write what is new."""
        if self.listened:
            write_json(
                self.path, {judge: dict(sorted(page.items())) for judge, page in sorted(self.book.items())}
            )
