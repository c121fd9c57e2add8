"""The end of a run: what each step kept and dropped (the funnel), the data card, the final manifest."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from data_prep.pipeline.audio import INPUT
from data_prep.pipeline.files import read_json, temporary, write_json
from omnilib.errors import DataError


def conclude(out: Path, folders: list[Path], root: Path) -> dict:
    """Write the final dropped list, funnel, card and manifest.

    Raises:
        DataError: no record was kept (the lists are complete all the same).
    """
    last = folders[-1] / "manifest.jsonl"
    linked = set()
    with last.open("rb") as file:
        for line in file:
            path = json.loads(line)["path"]
            if path.startswith(INPUT) and path not in linked:
                link(root / path.removeprefix(INPUT), out / path)
                linked.add(path)
    with temporary(out, out / "dropped.jsonl") as place, place.open("wb") as target:
        for folder in folders:
            with (folder / "dropped.jsonl").open("rb") as file:
                shutil.copyfileobj(file, target)
    table = funnel(folders)
    write_json(out, out / "funnel.json", table)
    with temporary(out, out / "card.md") as place:
        place.write_text(card(table, last), encoding="utf-8")
    with temporary(out, out / "manifest.jsonl") as place:
        shutil.copyfile(last, place)
    shutil.rmtree(out / "tmp", ignore_errors=True)
    if not last.stat().st_size:
        step, reason, count = max(
            ((s["step"], w, c["records"]) for s in table["steps"] for w, c in s["dropped"].items()),
            key=lambda x: x[2],
        )
        raise DataError(
            f"no record was kept: {count} dropped by step '{step}' as {reason}; see {out / 'dropped.jsonl'}"
        )
    return table


def link(source: Path, target: Path) -> None:
    """Make an input file part of the output without copying it where the file system allows."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)


def total(tallies: Iterable[dict]) -> dict:
    counter: Counter = Counter()
    for tally in tallies:
        counter.update(tally)
    return {k: round(v, 6) for k, v in counter.items()}


def funnel(folders: list[Path]) -> dict:
    """Per step: files, records and hours kept, and records and hours dropped by reason; the same by source."""
    steps = []
    for folder in folders:
        done = read_json(folder / "done.json")
        rows = done["sources"].values()
        reasons = sorted({reason for row in rows for reason in row["dropped"]})
        steps.append(
            {
                "step": done["step"],
                "kept": {"files": 0, "records": 0, "hours": 0.0} | total(row["kept"] for row in rows),
                "dropped": {why: total(row["dropped"].get(why, {}) for row in rows) for why in reasons},
                "sources": done["sources"],
                "seconds": done["seconds"],
            }
        )
    return {"manifest_sha256": done["manifest"], "steps": steps}


def card(table: dict, manifest: Path) -> str:
    """The data card: hours by source, licence, language and split, then the funnel."""
    groups: dict[tuple, Counter] = {}
    with manifest.open("rb") as file:
        for record in map(json.loads, file):
            key = tuple(str(record.get(k) or "unknown") for k in ("source", "licence", "language", "split"))
            groups.setdefault(key, Counter()).update(records=1, hours=(record.get("duration") or 0.0) / 3600)
    lines = [
        "# Curated speech",
        "",
        f"manifest sha256 `{table['manifest_sha256']}`",
        "",
        "| source | licence | language | split | records | hours |",
        "|---|---|---|---|---|---|",
        *(f"| {' | '.join(key)} | {c['records']} | {c['hours']:.2f} |" for key, c in sorted(groups.items())),
        "",
        "## Funnel",
        "",
        "| step | files | records | hours | dropped |",
        "|---|---|---|---|---|",
    ]
    for step in table["steps"]:
        why = ", ".join(f"{reason} {tally['records']}" for reason, tally in step["dropped"].items())
        kept = step["kept"]
        lines.append(
            f"| {step['step']} | {kept['files']} | {kept['records']} | {kept['hours']:.2f} | {why} |"
        )
    return "\n".join(lines) + "\n"
