"""Two runs side by side: `omni compare A B`; and one table and one plot of many runs (a sweep).

A and B are each one of
    runs/variants/nano/04_the_mouth@seed=1      a report folder (metrics.json, provenance.json, timings.json)
    reports/nano                                a folder of reports: its headline figures and those of every report in it
    reports/nano/summary.json                   a file of figures
    HEAD~3, v1.0, 1a2b3c4d                      a commit: reports/<scale> as it was, read by `git show`, nothing is checked out
    HEAD~3:reports/nano/eval                    a folder or file of a commit
"""

import json
import math
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omnilib.errors import DataError, UserError
from omnilib.paths import ROOT
from omnilib.provenance import scrub
from omnilib.report.headlines import is_timing, measure_of, number, unit_of
from omnilib.report.html import markdown_table

ROUNDING = 1e-9  # relative; below it two values are the same
SETTINGS = (
    *("commit", "dirty", "date", "scale", "device", "attention", "parameters", "settings", "versions"),
    *("notebook_sha256", "frozen_sha256", "checkpoint_sha256", "manifest_sha256"),
)
DIFFERENT = ("differs", "only in A", "only in B")


@dataclass
class Side:
    """One of the two: settings flattened to `decode.temperature`, figures by name."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, dict] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One compared figure."""

    name: str
    a: str
    b: str
    verdict: str
    counts: bool  # towards the exit code: a figure of speed does not


def read_side(name: str, scale: str = "nano") -> Side:
    """Figures and settings of a folder, a file or a commit.

    Raises:
        UserError: none of them, damaged, or without figures.
    """
    path = Path(name)
    if name and path.exists():
        side = collect(name, path.name if path.is_file() else "", disk(path))
    else:
        ref, colon, inside = name.partition(":")
        side = collect(
            name,
            inside if inside.endswith(".json") else "",
            commit(ref, inside.rstrip("/") if colon else f"reports/{scale}", name),
        )
    if not side.metrics:
        raise UserError(
            f"no figures in '{name}': name a report folder, reports/<scale>, a metrics.json or summary.json, or a commit"
        )
    return side


Reader = tuple[list[str], Callable[[str], str]]  # names of files below the place, and how one is read


def disk(path: Path) -> Reader:
    """JSON files at a path: it, or those in the folder and one level below."""
    if path.is_file():
        return [path.name], lambda _: path.read_text(encoding="utf-8")
    found = [p for pattern in ("*.json", "[!.]*/*.json") for p in sorted(path.glob(pattern))]
    return [p.relative_to(path).as_posix() for p in found], lambda file: (path / file).read_text(
        encoding="utf-8"
    )


def commit(ref: str, inside: str, name: str) -> Reader:
    """JSON files of a commit below a path."""
    if ref.startswith("-") or not ref:
        raise UserError(f"'{name}' is no folder, file or commit")
    known = git("rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}")
    if known is None:
        raise UserError(f"'{name}' is no folder or file here and no commit of this repository")
    identity = known.strip()
    listed = git("ls-tree", "-r", "-z", "--name-only", identity, "--", inside) or ""
    files = [f for f in listed.split("\0") if f.endswith(".json")]
    if not files:
        raise UserError(
            f"commit {ref} has no {inside} with figures: name a path with {ref}:reports/<scale>/<report>"
        )
    prefix = f"{inside.rpartition('/')[0] if files == [inside] else inside}/".lstrip("/")
    names = [f.removeprefix(prefix) for f in files if f.removeprefix(prefix).count("/") <= 1]
    return names, lambda file: git("show", f"{identity}:{prefix}{file}") or ""


def git(*arguments: str) -> str | None:
    """What git prints; None when it fails."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=False)
    except OSError:
        raise UserError("git is not installed: give folders or files instead of commits") from None
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None


def collect(name: str, single: str, reader: Reader) -> Side:
    """Put the files of a place together."""
    files, read = reader
    side = Side(name)
    for file in files:
        folder, _, base = file.rpartition("/")
        if not single and base not in ("metrics.json", "summary.json", "timings.json", "provenance.json"):
            continue
        try:
            found = json.loads(read(file))
        except (ValueError, OSError) as error:
            raise DataError(f"cannot read {file} of '{name}': {error}") from None
        if not isinstance(found, dict):
            raise DataError(f"{file} of '{name}' holds no figures")
        if base == "provenance.json" or (single and "commit" in found and "metrics" not in found):
            side.settings |= flatten(
                {k: found[k] for k in SETTINGS if k in found}, f"{folder}: " if folder else ""
            )
            continue
        figures = found.get("metrics", found if base in ("summary.json", "timings.json") or single else {})
        if base == "timings.json":
            side.settings |= flatten(
                {k: found[k] for k in ("date", "device") if k in found}, f"{folder}: " if folder else ""
            )
        elif "metrics" in found:
            side.settings |= flatten({"settings": found.get("settings", {})}, f"{folder}: " if folder else "")
        side.metrics |= {
            (f"{folder}: " if folder else "") + key: entry
            for key, entry in figures.items()
            if isinstance(entry, dict)
            and isinstance(entry.get("value"), (int, float))
            and not isinstance(entry["value"], bool)
        }
    return side


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """{"decode": {"seed": 0}} -> {"decode.seed": 0}."""
    flat = {}
    for key, item in value.items():
        if isinstance(item, dict):
            flat |= flatten(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = item
    return flat


def verdict_of(a: dict | None, b: dict | None) -> str:
    """`same`, `within` (the intervals meet), `differs` (they do not, or values without interval are not equal), `only in A`/`B`."""
    if a is None or b is None:
        return "only in A" if b is None else "only in B"
    x, y = float(a["value"]), float(b["value"])
    if x == y or (math.isnan(x) and math.isnan(y)) or math.isclose(x, y, rel_tol=ROUNDING, abs_tol=1e-15):
        return "same"
    (low_a, high_a), (low_b, high_b) = interval(a), interval(b)
    return "within" if low_a <= high_b and low_b <= high_a else "differs"


def interval(entry: dict) -> tuple[float, float]:
    """The 95 % interval; the value alone where none was measured."""
    ci = entry.get("ci95")
    return (
        (float(ci[0]), float(ci[1]))
        if isinstance(ci, list) and len(ci) == 2
        else (float(entry["value"]), float(entry["value"]))
    )


def compare(a: Side, b: Side) -> tuple[list[tuple[str, str, str]], list[Row]]:
    """(settings that differ, every figure side by side)."""
    keys = list(dict.fromkeys([*a.settings, *b.settings]))
    settings = [
        (key, shown(a.settings.get(key)), shown(b.settings.get(key)))
        for key in keys
        if shown(a.settings.get(key)) != shown(b.settings.get(key))
    ]
    rows = []
    for name in dict.fromkeys([*a.metrics, *b.metrics]):
        left, right, plain = a.metrics.get(name), b.metrics.get(name), name.rpartition(": ")[2]
        entry = left or right
        unit = unit_of(plain, entry.get("unit", ""))
        cells = [number(e, unit) if e else "-" for e in (left, right)]
        rows.append(Row(name, *cells, verdict_of(left, right), not is_timing(plain, entry)))
    return settings, rows


def shown(value: Any) -> str:
    """A setting as a cell."""
    text = (
        "-"
        if value is None
        else json.dumps(value, ensure_ascii=False)
        if isinstance(value, list)
        else str(value)
    )
    return text[:12] if len(text) == 64 and text.isalnum() else text  # a fingerprint


def text_of(a: Side, b: Side) -> tuple[str, int]:
    """The comparison as Markdown, and the exit code: 1 when a figure differs or only one side has it (speed does not count)."""
    settings, rows = compare(a, b)
    different = [r for r in rows if r.counts and r.verdict in DIFFERENT]
    cells = [(r.name, r.a, r.b, r.verdict + ("" if r.counts else " (speed)")) for r in rows]
    counts = {v: sum(r.verdict == v for r in rows) for v in ("same", "within", *DIFFERENT)}
    parts = [
        f"A: {a.name}\nB: {b.name}",
        "## Settings that differ",
        markdown_table(("setting", "A", "B"), settings) if settings else "none",
        "## Figures (95 % interval)",
        markdown_table(("figure", "A", "B", "verdict"), cells),
        "same: equal; within: the intervals meet; differs: they do not, or values without interval are unequal.",
        ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
        + (
            f"; {len(different)} that count (speed does not)"
            if different
            else "; nothing differs beyond its interval"
        ),
    ]
    return "\n\n".join(parts), 1 if different else 0


# ---- sweeps ----------------------------------------------------------------------------------------------------------


def sweep(folders: list[Path], out: Path) -> list[Path]:
    """One table (CSV, JSON) and one plot (PNG) of several report folders of one notebook.

    Args:
        folders: `<notebook>@name=value,...` or the plain report.
        out: path without ending: `runs/variants/nano/04_the_mouth-sweep`.

    Returns:
        the files written.

    Raises:
        UserError: no figures.
    """
    import pandas

    from omnilib.provenance import read_json, write_text
    from omnilib.report.headlines import read_metrics

    rows = []
    for folder in folders:
        parameters = read_json(folder / "provenance.json").get("parameters", {})
        for name, entry in read_metrics(folder)["metrics"].items():
            low, high = interval(entry) if entry.get("ci95") else (None, None)
            figure = {"metric": name, "value": entry["value"], "low": low, "high": high, "n": entry["n"]}
            rows.append(
                {"run": folder.name, **parameters, **figure, "unit": unit_of(name, entry.get("unit", ""))}
            )
    if not rows:
        raise UserError(f"no figures in {', '.join(scrub(str(f)) for f in folders) or 'no folder'}")
    table = pandas.DataFrame(rows)
    write_text(out.with_name(f"{out.name}.csv"), table.to_csv(index=False))
    write_text(
        out.with_name(f"{out.name}.json"), table.to_json(orient="records", indent=1, force_ascii=False) + "\n"
    )
    draw_sweep(table, out.with_name(f"{out.name}.png"))
    return [out.with_name(f"{out.name}.{ending}") for ending in ("csv", "json", "png")]


def varied(table: Any) -> list[str]:
    """Parameters that are not the same in every run."""
    fixed = {"run", "metric", "value", "low", "high", "n", "unit", "scale"}
    return [
        c
        for c in table.columns
        if c not in fixed and table.drop_duplicates("run")[c].astype(str).nunique() > 1
    ]


def draw_sweep(table: Any, path: Path) -> None:
    """A small panel a figure: value over the first varied parameter (a seed comes last), coloured by the second."""
    import matplotlib

    matplotlib.use("Agg")
    import seaborn

    names = sorted(varied(table), key=lambda name: name == "seed") or ["run"]
    colour = names[1] if len(names) > 1 and table[names[1]].nunique() <= 12 else None
    percent = table["unit"] == "%"
    table = table.assign(
        **{
            k: table[k].astype(float).where(~percent, table[k].astype(float) * 100)
            for k in ("value", "low", "high")
        }
    )
    table["metric"] = [
        measure_of(m) + (f", {u}" if u else "") for m, u in zip(table["metric"], table["unit"], strict=True)
    ]
    if not all(isinstance(value, (int, float)) for value in table[names[0]]):
        table[names[0]] = table[names[0]].astype(str).str.slice(0, 24)
    grid = seaborn.relplot(
        table, x=names[0], y="value", hue=colour, col="metric", col_wrap=4, kind="line", marker="o", height=2.6, aspect=1.2,
        facet_kws={"sharey": False}, errorbar=("pi", 100), legend="full" if colour else False,
    )  # fmt: skip
    grid.set_titles("{col_name}", size=8).set_ylabels("")
    for metric, axis in grid.axes_dict.items():
        rows = table[table["metric"] == metric].dropna(subset=["low", "high"])
        axis.vlines(rows[names[0]], rows["low"], rows["high"], alpha=0.35)  # 95 % interval of each run
        axis.tick_params(labelsize=8)
    temporary = path.with_name(f"{path.stem}.tmp.png")
    grid.savefig(temporary, dpi=90, metadata={"Software": None})
    temporary.replace(path)
    import matplotlib.pyplot

    matplotlib.pyplot.close(grid.figure)
