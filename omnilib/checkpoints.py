"""Where the trained parts of a scale are, and what their training left behind.

    smoke   every training script runs a few steps on the frozen recordings (see `smoke.py`): seconds, numbers mean nothing
    nano    checkpoints/nano, trained in hours on 2 CPU cores and committed

Both have the same folders, so a chapter reads the same at either scale:

    folder = checkpoints.folder(scale, "tokenizer")        # trains it first at smoke
    codes, _ = SpeechTokenizer.load(folder / "tokenizer").encode(mel)
"""

import json
from pathlib import Path

from transformers.utils import logging

from omnilib import smoke
from omnilib.errors import CheckpointError, ConfigError
from omnilib.paths import CHECKPOINTS, REPORTS

TEXT_TO_SPEECH = (
    "speechlm",
    "tokenizer",
    "speaker",
    "flow",
    "hift",
    "voices",
)  # what `speak.TextToSpeech` needs


def folder(scale: str, *parts: str) -> Path:
    """Folder that holds `parts` of a scale; at smoke, parts not there yet are trained first (seconds).

    Raises:
        ConfigError: no such scale or part.
        CheckpointError: a committed part is missing.
    """
    logging.disable_progress_bar()  # a bar for each loaded file only fills a report's pages
    unknown = [p for p in parts if p not in smoke.RECIPES]
    if unknown:
        raise ConfigError(f"no part '{unknown[0]}': choose from {', '.join(smoke.RECIPES)}")
    if scale == "smoke":
        return smoke.folder(*parts)
    if scale != "nano":
        raise ConfigError(
            f"scale '{scale}': a chapter runs at smoke or nano; paper scale needs the published weights (see weights.py)"
        )
    missing = [p for p in parts if not (CHECKPOINTS / scale / p).is_dir()]
    if missing:
        raise CheckpointError(
            f"checkpoints/nano/{missing[0]} is missing: restore it with `git checkout` or run `make retrain`"
        )
    return CHECKPOINTS / scale


def training_log(scale: str, part: str) -> list[dict]:
    """What a training script logged, one dict a line.

    Raises:
        CheckpointError: the part is missing, or has no log.
    """
    path = folder(scale, part) / part / "log.jsonl"
    if not path.is_file():
        raise CheckpointError(f"no {part}/log.jsonl at {scale}: train it with `make retrain`")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def meta(scale: str, part: str) -> dict:
    """meta.json of a trained part: resolved config, steps, wall time, final metrics."""
    return json.loads((folder(scale, part) / part / "meta.json").read_text(encoding="utf-8"))


def report_of(scale: str, name: str) -> dict | None:
    """metrics.json of a report that a script wrote; at smoke the script runs now; None when nobody ran it
    at nano."""
    path = (folder(scale, name) / name if scale == "smoke" else REPORTS / scale / name) / "metrics.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
