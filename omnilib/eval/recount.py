"""Do the committed figures follow from the committed records? Arithmetic alone: no model, no judge, seconds.

    eval/utterances.jsonl, eval/long.jsonl    one row a sentence or text: every error rate, similarity and flag, with its interval
    eval_all/utterances.jsonl                 the same on all test lines, and the differences to recordings
    long10, long60/minutes.jsonl              errors by minute, drift and flags of speech in one go
    brain/items.jsonl, needle.jsonl           answers of the brain, right or wrong; needles found by length and depth
    talk/{answers,times,stops}.jsonl          answers spoken while they are written: errors, waits and stops
    curation/metrics.json                     its shares from its own tallies, its hours from the segments' lengths
    stage2_grid, curation_gain                means and ranges over seeds from the runs
    checkpoints/<scale>                       parameters and training hours, from the files themselves
    summary.json                              each headline equals the figure in the file it names as source

Rates are computed anew from text and transcript, not read from the row. What differs by more than rounding is a `Check` of its own.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from omnilib.errors import DataError
from omnilib.eval import all_lines, brain, curation_gain, longform, results, stage2_grid, talk
from omnilib.eval.nano import figures_of_long
from omnilib.eval.short_lines import figures_of_language, figures_of_voice
from omnilib.eval.wer import line_rates
from omnilib.report.headlines import load_summary

EXACT = 1e-9  # floating-point sums in another order
HOURS = 0.01  # lengths of segments are committed to a hundredth of a second


@dataclass(frozen=True)
class Check:
    """One compared number."""

    name: str
    committed: float
    measured: float
    tolerance: float

    @property
    def ok(self) -> bool:
        return math.isfinite(self.measured) and abs(self.committed - self.measured) <= self.tolerance


class Records:
    """Records of an evaluation, in the place of a running one: the same functions make the figures."""

    def __init__(self, records: list[dict], long_records: list[dict], threshold: dict | None):
        self.records, self.long_records = records, long_records
        self.metrics = {"sim_threshold": threshold} if threshold else {}
        self.ears = None

    def note(self, name: str, entry: dict, *_args, **_kwargs) -> None:
        self.metrics[name] = entry


def read_json(path: Path) -> dict:
    """A committed JSON file.

    Raises:
        DataError: missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"cannot read {path.name} in {path.parent.name}: {error}; restore it with `git checkout`"
        ) from None


def read_jsonl(path: Path) -> list[dict]:
    """Rows of a JSONL file.

    Raises:
        DataError: missing or damaged.
    """
    if not path.is_file():
        raise DataError(f"no {path.name} in {path.parent}: run `python -m omnilib.eval.nano` first")
    try:
        return [json.loads(row) for row in path.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise DataError(
            f"{path.name} in {path.parent.name} is damaged ({error}): restore it with `git checkout`"
        ) from None


def rated_anew(records: list[dict]) -> list[dict]:
    """Records with their rates computed from text and transcript."""
    return [
        r | {k: vars(v) for k, v in line_rates(r["text"], r["transcript"], r["language"]).items()}
        for r in records
    ]


def long_rated_anew(rows: list[dict]) -> list[dict]:
    return [
        r | vars(next(iter(line_rates(r["text"], r["transcript"], r["language"]).values()))) for r in rows
    ]


def compare(
    where: str, committed: dict[str, dict], measured: dict[str, dict], tolerance: float = EXACT
) -> list[Check]:
    """One line for all figures that agree in value, n and interval, and one for each that does not."""
    agree, differ = 0, []
    for name, entry in measured.items():
        known = committed.get(name)
        if known is None:
            differ.append(Check(f"{where}: {name} is not committed", math.nan, *floats(entry), tolerance))
            continue
        if entry["value"] is None or known["value"] is None:  # not to be had from so few records
            same = entry["value"] is known["value"]
            agree += same
            differ += [] if same else [Check(f"{where}: {name}", *floats(known, entry), tolerance)]
            continue
        pairs = [(known["value"], entry["value"]), (known["n"], entry["n"])]
        if known.get("ci95") and entry.get("ci95"):
            pairs += list(zip(known["ci95"], entry["ci95"], strict=True))
        wrong = [(a, b) for a, b in pairs if abs(a - b) > tolerance]
        agree += not wrong
        differ += [Check(f"{where}: {name}", a, b, tolerance) for a, b in wrong[:1]]
    return [*differ, Check(f"{where}: figures that follow from the records", agree, agree, 0)]


def floats(*entries: dict) -> list[float]:
    """Values as numbers: NaN for those that are none."""
    return [math.nan if entry["value"] is None else entry["value"] for entry in entries]


def of_evaluation(folder: Path) -> list[Check]:
    """Figures of the committed sample of sentences and of the long texts."""
    committed = read_json(folder / "metrics.json")["metrics"]
    rows = rated_anew(read_jsonl(folder / "utterances.jsonl"))
    long_path = folder / "long.jsonl"
    long_rows = long_rated_anew(read_jsonl(long_path)) if long_path.is_file() else []
    found = Records(rows, long_rows, committed.get("sim_threshold"))
    for language in sorted({r["language"] for r in rows}):
        figures_of_language(found, language)
    figures_of_voice(found)
    if long_rows:
        figures_of_long(found)
    return compare("eval", committed, {k: v for k, v in found.metrics.items() if k != "sim_threshold"})


def of_all_lines(folder: Path) -> list[Check]:
    """Rates on all test lines, and how many points codec and speech lie over recordings."""
    committed = read_json(folder / "metrics.json")["metrics"]
    rows = rated_anew(read_jsonl(folder / "utterances.jsonl"))
    found = Records(rows, [], None)
    for language in ("en", "zh"):
        figures_of_language(found, language)
    figures = {name: found.metrics[name] for name in all_lines.RATES}
    for name in committed:
        language, _, rest = (
            ("en", "", name[len("wer_en_") :])
            if name.startswith("wer_en_")
            else ("zh", "", name[len("zh_") :])
        )
        system, over, group = rest.partition("_over_gt")
        if over:
            seen = {"": None, "_seen": True, "_unseen": False}[group]
            figures[name] = all_lines.over_recordings(rows, language, system, seen)
    return compare("eval_all", committed, figures)


def of_long_form(folder: Path) -> list[Check]:
    """Error, drift, similarity and flags of the texts spoken in one go."""
    return compare(folder.name, *longform.anew(folder))


def of_brain(folder: Path) -> list[Check]:
    """Shares of right answers, transcription errors and needles found."""
    return compare("brain", *brain.recounted(folder))


def of_talk(folder: Path) -> list[Check]:
    """Errors and times of answers spoken while they are written."""
    return compare("talk", *talk.recounted(folder))


def of_curation(folder: Path) -> list[Check]:
    """Shares of the curation score, from its tallies of outcomes by fault."""
    whole = read_json(folder / "metrics.json")
    faults, committed = whole["faults"], whole["metrics"]
    kept = {name: count.get("kept", 0) + count.get("held_out_text", 0) for name, count in faults.items()}
    bad = [name for name in faults if name not in ("good", "copy", "borderline")]
    total = sum(sum(faults[name].values()) for name in bad)
    bad_kept, all_kept = (
        sum(kept[name] for name in bad),
        sum(kept[name] for name in faults if name != "borderline"),
    )
    pairs = whole["copies"].values()
    found = {
        "bad_kept": {"value": bad_kept / total, "n": total},
        "bad_among_kept": {"value": bad_kept / all_kept, "n": all_kept},
        "duplicate_recall": {
            "value": sum(p["value"] * p["n"] for p in pairs) / sum(p["n"] for p in pairs),
            "n": sum(p["n"] for p in pairs),
        },
    }
    checks = compare("curation", committed, found)
    hours = sum(whole["lengths"]["segments"]) / 3600
    return [
        *checks,
        Check("curation: hours kept, from the segments", committed["hours_kept"]["value"], hours, HOURS),
    ]


def of_grids(reports: Path) -> Iterator[Check]:
    """Means and ranges over seeds of the ablations that keep their runs."""
    for name, factor, measures in (
        ("stage2_grid", "variant", stage2_grid.MEASURES),
        ("curation_gain", "arm", curation_gain.MEASURES),
    ):
        path = reports / name / "metrics.json"
        if path.is_file():
            whole = read_json(path)
            anew = stage2_grid.summarise(whole["runs"], factor, measures)
            flat = {f"{a} {m}": e for a, group in anew.items() for m, e in group.items()}
            known = {f"{a} {m}": e for a, group in whole["summary"].items() for m, e in group.items()}
            yield from compare(name, known, flat)


def of_checkpoints(folder: Path, summary: dict) -> list[Check]:
    """Parameters and training hours, from the checkpoint files."""
    found = {"params_total": results.parameters_of(folder), "retrain_hours": results.training_hours(folder)}
    return compare(
        "checkpoints", summary, {k: v for k, v in found.items() if k in summary and v["value"] is not None}
    )


def of_summary(summary: dict, folder: Path) -> list[Check]:
    """Every headline against the figure of that name in the file it names as source."""
    agree, differ, files = 0, [], {}
    for name, entry in summary.items():
        if not isinstance(entry, dict) or entry.get("value") is None:
            continue
        if not entry.get("source"):
            differ.append(Check(f"summary: {name} names no source", entry["value"], math.nan, EXACT))
            continue
        place = entry["source"].split(f"{folder.name}/", 1)[-1]  # below reports/<scale>
        if place not in files:
            files[place] = read_json(folder / place)
        source = files[place]
        short = name.removeprefix("curation_").removesuffix("_all")
        figures = source.get("metrics", source)
        known = figures.get(name, figures.get(short))
        if isinstance(
            known, dict
        ):  # a figure with n and interval, or one value for each split: training counts
            known = known.get("value", known.get("train"))
        value = math.nan if known is None else float(known)
        same = abs(value - entry["value"]) <= EXACT
        agree += same
        differ += [] if same else [Check(f"summary: {name}", entry["value"], value, EXACT)]
    return [*differ, Check("summary: headlines equal to their source", agree, agree, 0)]


def recount(reports: Path, scale: str, checkpoints: Path) -> list[Check]:
    """All arithmetic checks of a scale.

    Args:
        reports: the folder that holds <scale>/.
        checkpoints: folder of the scale's checkpoints.

    Raises:
        DataError: a committed file is missing or damaged.
    """
    folder, summary = reports / scale, load_summary(scale, reports)
    if not summary:
        raise DataError(
            f"no figures in {folder.name}/summary.json: restore it with `git checkout`, or run `omni reproduce`"
        )
    parts: list[tuple[str, Callable[[Path], list[Check]]]] = [
        ("eval", of_evaluation), ("eval_all", of_all_lines), ("curation", of_curation),
        ("brain", of_brain), ("talk", of_talk),
        *((f"long{minutes}", of_long_form) for minutes in longform.LENGTHS),
    ]  # fmt: skip
    checks = [
        check
        for name, part in parts
        if (folder / name / "metrics.json").is_file()
        for check in part(folder / name)
    ]
    return [*checks, *of_grids(folder), *of_checkpoints(checkpoints, summary), *of_summary(summary, folder)]
