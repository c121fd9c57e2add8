"""ARTIFACT.md: one row a claim of README and chapters, with the command that shows it, its value, tolerance and cost.

The table is drawn from the committed figures by `omni report`; the claims that no figure holds are listed here. `QUICK` ones are run
by the test suite as they stand.
"""

import math
import shlex
from dataclasses import dataclass
from pathlib import Path

from omnilib.paths import REPORTS
from omnilib.provenance import read_stamp
from omnilib.report.headlines import (
    COSINE,
    EVERYDAY,
    HEADLINES,
    OPINION,
    is_timing,
    load_summary,
    number,
    read_metrics,
)
from omnilib.report.html import markdown_table

EVAL = "python -m omnilib.eval.nano"
ALL_LINES = (
    "python -m data_prep.frozen --corpus data/nano --out data/frozen_all --all && "
    "python -m omnilib.eval.nano --frozen data/frozen_all --parts short --reports runs/all && "
    "python -m omnilib.eval.all_lines --run runs/all"
)
CURATION = (
    "python -m data_prep.wild --seed 2 --out data/wild && "
    "python -m data_prep.curate --recipe wild --manifest data/wild/manifest.jsonl --out runs/wild && "
    "python -m data_prep.score --wild data/wild --curated runs/wild --report runs/curation"
)
SPEED = "python -m omnilib.bench.speed --out reports/nano/speed.json"
CLONING = "python -m omnilib.bench.cloning --out reports/nano/cloning.json"
OTHERS = {  # beginning of a headline's name -> what measures it, where that is not the evaluation
    "speed_": SPEED,
    "prepare_": CLONING,
    **dict.fromkeys(("serve_", "chat_"), "python -m omnilib.bench.serve"),
    "long10_": "python -m omnilib.eval.longform --minutes 10",
    "long60_": "python -m omnilib.eval.longform --minutes 60",
    **dict.fromkeys(("brain_seconds", "brain_memory"), "python -m omnilib.bench.brain --cost"),
    **dict.fromkeys(("brain_tokens", "brain_speedup"), "python -m omnilib.bench.brain --speed"),
    **dict.fromkeys(("brain_", "whisper_"), "python -m omnilib.eval.brain"),
    "needle_": "python -m data_prep.needle",
    "omni_": "python -m omnilib.eval.talk",
}
COST = {
    SPEED: (15, 8),
    CLONING: (1, 2),
    ALL_LINES: (35, 4),
    CURATION: (45, 4),
    "make retrain": (720, 8),
    "python -m data_prep.bench.curation": (10, 4),
}
# command -> minutes on 2 cores, GB of memory at most, rounded up; those of evaluation and chapters are in their timings.json


@dataclass(frozen=True)
class Claim:
    """One sentence that a reader may doubt, and how to see for oneself."""

    text: str
    where: str
    command: str
    value: str
    tolerance: str
    minutes: float
    memory: float  # GB
    quick: bool = False


LIBRARY = (
    Claim("What is typed becomes a wave", "README", 'omni speak "the light of the morning was on the water" -o runs/hello.wav',
          "a wave file", "exit code 0", 0.3, 1.5, quick=True),
    Claim("Every committed figure follows from the committed records", "README", "omni verify --arithmetic",
          "every line ok", "rounding (1e-9)", 0.3, 1, quick=True),
    Claim("No committed figure is older than what stands behind it", "README", "omni report --check",
          "exit code 0", "exact (hashes)", 0.2, 0.5, quick=True),
    Claim("Greedy decoding writes the grids of the released code", "04", "python -m pytest -p no:xdist tests/mouth -k reference",
          "all pass", "ids exact, logits 2e-4", 0.3, 1, quick=True),
    Claim("Flow and vocoder compute what the released code computes", "03", "python -m pytest -p no:xdist tests/voice -k reference",
          "all pass", "in each fixture's json", 0.5, 1, quick=True),
    Claim("The same classes have the published sizes of 0.6B, 2B and 4B", "README",
          "python -m pytest -p no:xdist tests/test_weights.py -k size", "all pass", "parameter counts exact", 0.2, 1, quick=True),
    Claim("Training goes on after kill -9 with the same losses", "05", "python -m pytest -p no:xdist tests/train -k killed",
          "all pass", "losses equal to 1e-6", 2, 2),
)  # fmt: skip


def tolerance_of(key: str) -> str:
    """How far another machine may be from a headline figure."""
    if is_timing(key, {}) or key.startswith(("curation_audio", "retrain", "brain_memory")):
        return "a time: other machines differ"
    unit = HEADLINES[key][2]
    if unit in (COSINE, OPINION):
        return "0.01" if unit == COSINE else "0.05"
    if unit.startswith("%") and not key.startswith(("curation", "needle")):
        return "2 points (the judge's arithmetic differs between processors)"
    return "exact"


def command_of(key: str) -> str:
    """What measures a headline figure."""
    if key.endswith("_all"):
        return ALL_LINES
    for beginning, command in OTHERS.items():
        if key.startswith(beginning):
            return command
    if key == "curation_audio_hours_per_hour_no_asr":
        return "python -m data_prep.bench.curation"
    return CURATION if key.startswith("curation") else "make retrain" if key == "retrain_hours" else EVAL


def cost_of(folder: Path) -> tuple[float, float]:
    """(minutes, GB) of a result when it was last measured here."""
    record = read_stamp(folder)
    return math.ceil(record.get("wall_seconds", 0) / 6) / 10, math.ceil(
        10 * record.get("peak_memory_gb", 0)
    ) / 10


def headline_claims(scale: str, reports: Path) -> list[Claim]:
    """Rows of the README's results table."""
    claims, summary = [], load_summary(scale, reports)
    for key, entry in summary.items():
        if key in HEADLINES and EVERYDAY.get(key) not in summary and entry.get("value") is not None:
            name, unit = HEADLINES[key][:2]
            command = command_of(key)
            cost = COST.get(command) or cost_of(reports / scale / "eval")
            claims.append(
                Claim(name.strip(), "README", command, number(entry, unit), tolerance_of(key), *cost)
            )
    return claims


def chapter_claims(scale: str, reports: Path) -> list[Claim]:
    """Rows of the chapters' tables "what the paper says vs what we measured" that were measured."""
    claims = []
    for path in sorted((reports / scale).glob("[0-9]*/metrics.json")):
        name = path.parent.name
        for row in read_metrics(path.parent)["paper"]:
            if row["verdict"] != "not attempted":
                command = f"omni reproduce --only {name[:2]}"
                text = f"{row['claim']}: {row['verdict']}"
                claims.append(
                    Claim(
                        text, name[:2], command, row["measured"], "the verdict stays", *cost_of(path.parent)
                    )
                )
    return claims


def table(scale: str = "nano", reports: Path = REPORTS) -> str:
    """All claims as a Markdown table."""
    rows = [
        (c.text, c.where, f"`{c.command}`", c.value, c.tolerance, f"{c.minutes:g}", f"{c.memory:g}")
        for c in (*LIBRARY, *headline_claims(scale, reports), *chapter_claims(scale, reports))
    ]
    return markdown_table(("claim", "stated in", "command", "value", "tolerance", "minutes", "GB"), rows)


def arguments(command: str, python: str) -> list[str]:
    """A quick claim's command for `subprocess`, with the `python` that the tests run in."""
    first, *rest = shlex.split(command)
    return [python, "-m", "omnilib.cli", *rest] if first == "omni" else [python, *rest]
