"""Figures of the needle in a haystack (`data_prep/needle.py` asks), from the kept answers alone."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from omnilib.eval.normalize import plain
from omnilib.intervals import share

TRAINED_MINUTES = 2.0  # the longest training sample (data_prep.brain_long.TRAIN_SECONDS)


def found(code: str, answer: str) -> bool:
    """Whether every key token of a code is a word of the answer."""
    said = set(plain(answer).split())
    return all(token in said for token in plain(code).split())


def tokens(code: str, answer: str) -> float:
    """Share of the key tokens of a code that are words of the answer: how near it came, no success."""
    said = set(plain(answer).split())
    return sum(token in said for token in plain(code).split()) / len(plain(code).split())


def read_kept(path: Path) -> list[dict]:
    """Records of an earlier run; a line that a stop cut off is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def shown(hits: Sequence[bool]) -> dict:
    """A figure of a share."""
    value, ci95 = share(hits)
    return {"value": value, "n": len(hits), "ci95": ci95, "unit": "rate"}


def figures(records: Sequence[dict], trained: float = TRAINED_MINUTES) -> dict:
    """`grid` of minutes x depth, `by_minutes`, and the headline figures; from the records alone.

    `tokens_by_minutes`: mean share of key tokens in the answers, with the needle and in the control.
    """
    needles = [r | {"found": found(r["secret"], r["answer"])} for r in records if r["mode"] == "needle"]
    controls = [r for r in records if r["mode"] == "control"]
    minutes, depths = (sorted({r[k] for r in needles}) for k in ("minutes", "depth"))
    at = lambda **where: [r["found"] for r in needles if all(r[k] == v for k, v in where.items())]  # noqa: E731
    grid = [
        {"minutes": m, "depth": d} | shown(hits)
        for m in minutes
        for d in depths
        if (hits := at(minutes=m, depth=d))
    ]
    metrics = {}
    if inside := [r["found"] for r in needles if r["minutes"] <= trained]:
        metrics["needle_success_trained"] = shown(inside)
    if hits := at(minutes=75):
        metrics["needle_success_75min"] = shown(hits)
    pairs = [  # each control against the codes of all depths of its recording
        (n, c["answer"])
        for c in controls
        for n in needles
        if (n["minutes"], n["recording"]) == (c["minutes"], c["recording"])
    ]
    if controls:
        said = [found(n["secret"], answer) for n, answer in pairs]
        metrics["needle_false"] = shown(said or [r["found"] for r in controls])
    by = {f"{m:g}": shown(at(minutes=m)) for m in minutes}
    near = {
        f"{m:g}": {
            "needle": mean_tokens((n, n["answer"]) for n in needles if n["minutes"] == m),
            "control": mean_tokens(pair for pair in pairs if pair[0]["minutes"] == m),
        }
        for m in minutes
    }
    return {"metrics": metrics, "by_minutes": by, "tokens_by_minutes": near, "grid": grid}


def mean_tokens(pairs: Iterable[tuple[dict, str]]) -> float | None:
    """Of needles and answers; None if there are none."""
    shares = [tokens(needle["secret"], answer) for needle, answer in pairs]
    return round(sum(shares) / len(shares), 4) if shares else None
