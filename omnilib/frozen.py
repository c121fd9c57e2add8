"""The frozen subset: a few hundred committed recordings with their texts, so that chapters and tests need
no corpus.

    record = frozen.recordings("eval", "en")[0]            # a dict: id, path, text, language, speaker, role, duration
    wave = frozen.wave_of(record, 24_000)                  # (T,)

`data_prep/frozen.py` chooses and writes it. `eval/frozen.py` builds the evaluation on the same files: lines
that must all be there, and the judge's transcripts of them.
"""

import json

from torch import Tensor

from omnilib.audio import load_wave
from omnilib.data import read_manifest
from omnilib.errors import DataError
from omnilib.paths import ROOT

FOLDER = ROOT / "data_prep" / "frozen"


def recordings(role: str | None = None, language: str | None = None) -> list[dict]:
    """Records of the frozen subset, by role (see data_prep/frozen.py): reference, eval, open, seen, pair, train, gallery, human.

    Raises:
        DataError: none fits.
    """
    records = [
        r
        for r in read_manifest(FOLDER / "manifest.jsonl")
        if role in (None, r["role"]) and language in (None, r["language"])
    ]
    if not records:
        raise DataError(
            f"the frozen subset has no '{role}' recording in '{language}': restore data_prep/frozen with `git checkout`"
        )
    return records


def wave_of(record: dict, rate: int) -> Tensor:
    """Sound of a frozen record at `rate` Hz: (T,).

    Raises:
        AudioError: its file is missing or damaged.
    """
    return load_wave(FOLDER / record["path"], rate)


def long_texts() -> list[dict]:
    """The texts of 300-500 words for long-form speech, each with the speaker who is to read it.

    Raises:
        DataError: the file is missing.
    """
    path = FOLDER / "longform.jsonl"
    if not path.is_file():
        raise DataError("no data_prep/frozen/longform.jsonl: restore it with `git checkout`")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row["id"].startswith("long-")]
