"""What a curated output did to a wild set of known truth (data_prep/wild.py): precision and recall of every filter.

    python -m data_prep.score --wild data/wild --curated runs/wild --report reports/nano/curation --summary reports/nano/summary.json

Every unit of the truth (a sentence file, a turn of a long recording, a jingle, a broken file) gets one outcome. Kept and dropped
records are laid on the recording's time axis; the unit is kept when kept records cover half of it, else it is dropped for the
reason that covers most of it, `not_cut_out` where no record covers it (no speech was found there) and `lost` where the whole
file is in neither list. `held_out_text` counts as kept: that sentence was good enough, its words are in the test set.

    bad        units with a fault            good   units without; of two copies of one recording, one is good and one is spare
    borderline (noise at 15 dB) is neither

    bad kept            bad units kept / bad units
    good dropped        good units dropped / good units; a pair counts as dropped when neither copy is kept
    recall of a filter  of the units with its fault that no other filter took: the share it dropped; `recall_any`: by anything
    precision           of the units it dropped: the share with its fault; `precision_any`: with any fault
    duplicate recall    of the pairs that no other filter touched: the share of which one is gone
    boundary error      |start of the kept record - start of the speech|, and ends, of good kept units: the cut, its padding included;
                        `boundary_error_speech_s` is that of the speech regions in the record

Writes metrics.json (the form of every report) with `filters`, `faults`, `copies`, `snr`, `lengths`, copies funnel.json beside it,
and puts the headline figures into summary.json. Units: seconds. Intervals: 95 %, Wilson for shares, bootstrap for errors.
"""

import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from scipy.stats import binomtest

from omnilib import options
from omnilib.errors import DataError, UserError
from omnilib.eval.results import add_to_summary
from omnilib.eval.wer import bootstrap
from omnilib.provenance import stamp, write_json
from omnilib.report import holds, sources

KEPT = "kept"
PASSED = (KEPT, "held_out_text")
FILTERS = {  # filter -> the fault it is there for, the reasons it gives
    "decode": (
        "corrupt",
        (
            "missing_file",
            "empty_file",
            "unreadable",
            "truncated",
            "damaged",
            "not_finite",
            "unreadable_audio",
        ),
    ),
    "speech": (
        "no_speech",
        ("silent", "no_speech", "not_cut_out", "little_speech", "no_words", "no_voice", "too_short"),
    ),
    "noise": ("noisy", ("noisy", "low_quality")),
    "clipping": ("clipped", ("clipped",)),
    "language": (
        "wrong_language",
        ("wrong_language", "language_not_wanted", "language_unsure", "wrong_script"),
    ),
    "transcript": ("wrong_transcript", ("wrong_transcript", "speed_outlier", "unspeakable", "empty_text")),
    "speaker": ("wrong_speaker", ("wrong_speaker",)),
    "duplicates": ("copy", ("duplicate_audio", "duplicate_text")),
}
NO_SPEECH = ("music", "noise", "silence")
DUPLICATE = FILTERS["duplicates"][1]
SUMMARY = {
    "bad_kept": "curation_bad_kept",
    "good_dropped": "curation_good_dropped",
    "duplicate_recall": "curation_duplicate_recall",
    "wrong_transcript_recall": "curation_wrong_transcript_recall",
    "boundary_error_s": "curation_boundary_error_s",
}
TRUTH = "known truth, recipe wild"
AIMS = {  # headline figure: what it is, our aim in words and as a number, how it was measured
    "curation_bad_kept": ("bad items kept", "<= 2 %", 0.02, TRUTH),
    "curation_good_dropped": ("good items dropped", "<= 5 %", 0.05, TRUTH),
    "curation_duplicate_recall": ("duplicates found", ">= 98 %", 0.98, TRUTH),
    "curation_wrong_transcript_recall": ("wrong transcripts found", ">= 95 %", 0.95, TRUTH),
    "curation_boundary_error_s": ("boundaries (s)", "<= 0.2 s", 0.2, TRUTH),
    "curation_padding_waste": ("padding of the shards' buckets", "<= 5 %", 0.05, "shards of recipe wild"),
    "curation_audio_hours_per_hour_no_asr": (
        "audio-hours per hour without a recogniser",
        ">= 100",
        100.0,
        "2 cores, data_prep.bench.curation",
    ),
}
HALF = 0.5
NEAR = 0.2  # seconds: the aim for boundaries


# ------------------------------------------------------------------------------------------------ outcomes


def read_lines(path: Path) -> list[dict]:
    """Records of a manifest. Raises DataError where there is none."""
    if not path.is_file():
        raise DataError(f"no {path}: run `python -m data_prep.curate --recipe wild` to its end first")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def spans(
    records: Iterable[dict], lengths: dict[str, float]
) -> dict[str, list[tuple[float, float, str, dict]]]:
    """Where each record lies in its recording: {file id: [(start, end, "kept" or reason, record), ...]}."""
    found = defaultdict(list)
    for record in records:
        name = next(
            (n for n in (record.get("recording"), record.get("parent"), record["id"]) if n in lengths), None
        )
        if name is None or record.get("long"):
            continue
        whole = "segment_start" not in record
        start = (record.get("offset") or 0.0) + (0.0 if whole else record["segment_start"])
        end = start + record["duration"] if record.get("duration") else lengths[name]
        found[name].append((start, end, record.get("dropped", {}).get("reason", KEPT), record))
    return found


def covered(start: float, end: float, pieces: Iterable[tuple[float, float]]) -> float:
    """Seconds of [start, end] that the pieces cover, overlaps counted once."""
    total, reached = 0.0, start
    for a, b in sorted(pieces):
        a, b = max(a, reached), min(b, end)
        total, reached = total + max(0.0, b - a), max(reached, b)
    return total


def outcome(unit: dict, pieces: Sequence[tuple[float, float, str, dict]]) -> str:
    """What became of a unit."""
    if not pieces:
        return "lost"
    length, shares = max(unit["end"] - unit["start"], 1e-6), defaultdict(list)
    for start, end, why, _ in pieces:
        shares[why].append((start, end))
    seconds = {why: covered(unit["start"], unit["end"], places) for why, places in shares.items()}
    if sum(seconds.get(why, 0.0) for why in PASSED) >= HALF * length:
        return max(PASSED, key=lambda why: seconds.get(why, 0.0))
    best = max(sorted(w for w in seconds if w not in PASSED), key=seconds.get, default=None)
    return best if best and seconds[best] > 0 else "not_cut_out"


def fault_of(unit: dict) -> str | None:
    return "no_speech" if unit["fault"] in NO_SPEECH else unit["fault"]


def judge(truth: dict, kept: list[dict], dropped: list[dict]) -> list[dict]:
    """Every unit with its `outcome`, `fault` by filter and the kept pieces under it."""
    lengths = {f["id"]: f["duration"] for f in truth["files"]}
    places, units = spans([*kept, *dropped], lengths), []
    for file in truth["files"]:
        pieces = places.get(file["id"], [])
        passed = [p for p in pieces if p[2] in PASSED]
        for unit in file["units"]:
            mine = [p for p in passed if min(p[1], unit["end"]) - max(p[0], unit["start"]) > 0.1]
            more = {
                "outcome": outcome(unit, pieces),
                "fault": fault_of(unit),
                "file": file["id"],
                "pieces": mine,
            }
            units.append(unit | more)
    return units


# ------------------------------------------------------------------------------------------------ figures


def share(count: int, total: int) -> dict:
    """A share with its Wilson interval; null where there is nothing to count."""
    if not total:
        return {"value": None, "n": 0, "ci95": None, "unit": "rate"}
    low, high = binomtest(count, total).proportion_ci(method="wilson")
    return {"value": count / total, "n": total, "ci95": [float(low), float(high)], "unit": "rate"}


def passed(unit: dict) -> bool:
    return unit["outcome"] in PASSED


def pairs_of(units: Sequence[dict]) -> list[tuple[dict, dict]]:
    """(original, copy) of every duplicate of a good recording."""
    known = {u["id"]: u for u in units}
    return [(known[u["copy_of"]], u) for u in units if u["copy_of"] and u["fault"] is None]


def families(units: Sequence[dict]) -> list[list[dict]]:
    """Good units, those that are one recording together."""
    groups = defaultdict(list)
    for unit in units:
        if unit["fault"] is None:
            groups[unit["copy_of"] or unit["id"]].append(unit)
    return list(groups.values())


def duplicate_recall(pairs: Sequence[tuple[dict, dict]]) -> dict:
    """Pairs that both reached the search for duplicates: in how many one of the two was dropped by it."""
    reached = [pair for pair in pairs if all(passed(u) or u["outcome"] in DUPLICATE for u in pair)]
    return share(sum(any(u["outcome"] in DUPLICATE for u in pair) for pair in reached), len(reached))


def filter_rows(units: Sequence[dict]) -> list[dict]:
    """Precision and recall of every filter; duplicates, whose fault is to be the second of two, are counted in pairs."""
    pairs = pairs_of(units)
    twins = {name for u in units if u["copy_of"] for name in (u["id"], u["copy_of"])}  # with a fault or not
    rows = []
    for name, (fault, reasons) in FILTERS.items():
        taken = [u for u in units if u["outcome"] in reasons and u["fault"] != "borderline"]
        if name == "duplicates":
            right = [u for u in taken if u["id"] in twins]
            bad = [u for u in taken if u["id"] in twins or u["fault"]]
            recall = recall_any = duplicate_recall(pairs)
        else:
            right, bad = [u for u in taken if u["fault"] == fault], [u for u in taken if u["fault"]]
            mine = [u for u in units if u["fault"] == fault]
            own = [u for u in mine if u["outcome"] in reasons]
            recall = share(len(own), len(own) + sum(map(passed, mine)))
            recall_any = share(sum(not passed(u) for u in mine), len(mine))
        precision, precision_any = share(len(right), len(taken)), share(len(bad), len(taken))
        rows.append(
            {"filter": name, "fault": fault, "dropped": len(taken), "precision": precision}
            | {"precision_any": precision_any, "recall": recall, "recall_any": recall_any}
        )
    return rows


def tally(units: Iterable[dict], key: Callable[[dict], str | None]) -> dict[str, dict[str, int]]:
    """{key: {outcome: units}}."""
    found: dict[str, Counter] = defaultdict(Counter)
    for unit in units:
        if (name := key(unit)) is not None:
            found[name][unit["outcome"]] += 1
    return {name: dict(sorted(count.items(), key=lambda x: -x[1])) for name, count in sorted(found.items())}


def cut_of(piece: tuple) -> tuple[float, float]:
    """Start and end of a kept record."""
    return piece[0], piece[1]


def speech_of(piece: tuple) -> tuple[float, float]:
    """Start and end of the speech regions in a kept record, without its padding."""
    start, end, _, record = piece
    regions = record.get("speech") or [[0.0, end - start]]
    return start + regions[0][0], start + regions[-1][1]


def boundary_errors(
    units: Iterable[dict], ends_of: Callable[[tuple], tuple[float, float]] = cut_of
) -> list[float]:
    """Distance of each end of good kept speech from the end of the kept records that hold it."""
    errors = []
    for unit in units:
        if unit["fault"] is None and passed(unit) and unit["kind"] in ("sentence", "turn"):
            starts, ends = zip(*map(ends_of, unit["pieces"]), strict=True)
            errors += [abs(min(starts) - unit["start"]), abs(max(ends) - unit["end"])]
    return errors


def mixed_segments(units: Sequence[dict]) -> dict:
    """Kept records of long recordings that hold more than half a second of a second voice."""
    voices = defaultdict(lambda: defaultdict(float))
    for unit in units:
        if unit["kind"] == "turn":
            for start, end, _, record in unit["pieces"]:
                voices[record["id"]][unit["voice"]] += min(end, unit["end"]) - max(start, unit["start"])
    return share(sum(sorted(v.values())[-2] > 0.5 for v in voices.values() if len(v) > 1), len(voices))


def mean(values: Sequence[float], unit: str = "s") -> dict:
    if not values:
        return {"value": None, "n": 0, "ci95": None, "unit": unit}
    value, ci95 = bootstrap(values)
    return {"value": float(value), "n": len(values), "ci95": [float(c) for c in ci95], "unit": unit}


def metrics_of(units: Sequence[dict], kept: Sequence[dict]) -> dict[str, dict]:
    """The figures with a name."""
    bad = [u for u in units if u["fault"] not in (None, "borderline")]
    good, rows = families(units), {r["filter"]: r for r in filter_rows(units)}
    kept_bad, kept_all = sum(map(passed, bad)), sum(passed(u) for u in units if u["fault"] != "borderline")
    errors = boundary_errors(units)
    by_kind = {
        kind: boundary_errors([u for u in units if u["kind"] == kind]) for kind in ("sentence", "turn")
    }
    return {
        "bad_kept": share(kept_bad, len(bad)),
        "bad_among_kept": share(kept_bad, kept_all),
        "good_dropped": share(sum(not any(map(passed, family)) for family in good), len(good)),
        "duplicate_recall": rows["duplicates"]["recall"],
        "wrong_transcript_recall": rows["transcript"]["recall"],
        "boundary_error_s": mean(errors),
        "boundary_error_median_s": mean(errors)
        | {"value": float(np.median(errors)) if errors else None, "ci95": None},
        "boundary_error_p95_s": mean(errors)
        | {"value": float(np.percentile(errors, 95)) if errors else None, "ci95": None},
        "boundaries_near": share(sum(e <= NEAR for e in errors), len(errors)),
        "boundary_error_speech_s": mean(boundary_errors(units, speech_of)),
        "boundary_error_sentence_s": mean(by_kind["sentence"]),
        "boundary_error_turn_s": mean(by_kind["turn"]),
        "mixed_segments": mixed_segments(units),
        "lost": {
            "value": sum(u["outcome"] == "lost" for u in units),
            "n": len(units),
            "ci95": None,
            "unit": "units",
        },
        "hours_kept": {
            "value": sum(r["duration"] for r in kept if not r.get("long")) / 3600,
            "n": len(kept),
            "ci95": None,
            "unit": "h",
        },
    }


def score(wild: Path, curated: Path) -> dict:
    """Everything that goes into metrics.json.

    Raises:
        DataError: a file is missing, or the output was made of another wild set.
    """
    if not (wild / "truth.json").is_file():
        raise DataError(f"no {wild / 'truth.json'}: run `python -m data_prep.wild` first")
    truth = json.loads((wild / "truth.json").read_text(encoding="utf-8"))
    kept, dropped = read_lines(curated / "manifest.jsonl"), read_lines(curated / "dropped.jsonl")
    units = judge(truth, kept, dropped)
    if all(u["outcome"] == "lost" for u in units):
        raise DataError(f"{curated} knows no file of {wild}: score the output of the same wild set")
    lengths = [round(r["duration"], 2) for r in kept]
    return {
        "name": "curation",
        "scale": "nano",
        "settings": {
            "hours": truth["minutes"] / 60,
            "seed": truth["seed"],
            "files": len(truth["files"]),
            "units": len(units),
        },
        "metrics": metrics_of(units, kept),
        "filters": filter_rows(units),
        "faults": tally(units, lambda u: u["fault"] or ("good" if not u["copy_of"] else "copy")),
        "details": tally(units, lambda u: detail(u)),
        "copies": {
            kind: duplicate_recall([p for p in pairs_of(units) if p[1]["copy"] == kind])
            for kind in copies_of(units)
        },
        "snr": tally((u for u in units if u["snr"] is not None), lambda u: f"{u['snr']:g}"),
        "lengths": {
            "segments": [x for x, r in zip(lengths, kept, strict=True) if not r.get("long")],
            "long": [x for x, r in zip(lengths, kept, strict=True) if r.get("long")],
        },
        "wrong": [
            {k: u[k] for k in ("id", "kind", "fault", "detail", "snr", "outcome", "text")}
            for u in units
            if mistake(u)
        ],
        "figures": [],
        "sounds": [],
        "paper": [],
    }


def detail(unit: dict) -> str | None:
    """`corrupt: cut_mp3`, `wrong_transcript: mixed`, ..."""
    if unit["fault"] is None or unit["detail"] is None:
        return None
    return f"{unit['fault']}: {unit['detail']['how'] if isinstance(unit['detail'], dict) else unit['detail']}"


def copies_of(units: Sequence[dict]) -> list[str]:
    return sorted({u["copy"] for u in units if u["copy"] and u["copy_of"]})


def mistake(unit: dict) -> bool:
    """Bad and kept, or good and dropped by something else than the search for duplicates."""
    good = unit["fault"] is None and not passed(unit) and unit["outcome"] not in DUPLICATE
    return good or (unit["fault"] not in (None, "borderline") and passed(unit))


# ------------------------------------------------------------------------------------------------ report


def aim_rows(metrics: dict[str, dict]) -> list[dict]:
    """AIMS against what was measured, as rows of `Run.paper_table`; the paper reports no such figures."""
    rows = []
    for name, (claim, words, limit, judge) in AIMS.items():
        value = metrics.get(name, {}).get("value", float("nan"))
        met = value <= limit if words.startswith("<=") else value >= limit
        rows.append(
            {
                "claim": claim,
                "ref": "not reported",
                "paper": f"our aim {words}",
                "metric": name,
                "judge": judge,
                "verdict": holds(met),
            }
        )
    return rows


def percents(entries: Iterable[dict]) -> list[str]:
    """Shares as cells of a table: `98 % of 40`."""
    return ["-" if e["value"] is None else f"{100 * e['value']:.0f} % of {e['n']}" for e in entries]


def write(
    result: dict, wild: Path, curated: Path, report: Path, summary: Path | None, seconds: float = 0.0
) -> None:
    """metrics.json, provenance.json and the funnel under `report`, the headlines in `summary`."""
    write_json(report / "metrics.json", result)
    if (curated / "funnel.json").is_file():
        shutil.copyfile(curated / "funnel.json", report / "funnel.json")
    files = {
        "wild_manifest": wild / "manifest.jsonl",
        "truth": wild / "truth.json",
        "curated_manifest": curated / "manifest.jsonl",
    }
    record = stamp("nano", {"seed": result["settings"]["seed"]}, result["settings"], files, seconds)
    write_json(report / "provenance.json", {"status": "ok", "error": "", **record})
    sources.record(report, "curation")
    if summary:
        source = "/".join((*summary.parent.parts[-2:], report.name, "metrics.json"))
        add_to_summary(summary, {key: result["metrics"][name] for name, key in SUMMARY.items()}, source)


def render(result: dict) -> str:
    """The result as Markdown."""

    def percent(entry: dict) -> str:
        return "-" if entry["value"] is None else f"{100 * entry['value']:.1f} % (n {entry['n']})"

    lines = [
        "| filter | dropped | precision | any fault | recall | by anything |",
        "|---|---|---|---|---|---|",
    ]
    for r in result["filters"]:
        figures = (r["precision"], r["precision_any"], r["recall"], r["recall_any"])
        lines.append(f"| {r['filter']} | {r['dropped']} | {' | '.join(map(percent, figures))} |")
    lines += ["", "| measure | value | n |", "|---|---|---|"]
    for name, entry in result["metrics"].items():
        value = "-" if entry["value"] is None else f"{entry['value']:.4g} {entry['unit']}"
        lines.append(f"| {name.replace('_', ' ')} | {value} | {entry['n']} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = options.Parser(description=__doc__)
    parser.add_argument("--wild", type=Path, required=True, help="folder of data_prep.wild")
    parser.add_argument("--curated", type=Path, required=True, help="--out of data_prep.curate")
    parser.add_argument("--report", type=Path, help="folder for metrics.json (default: print only)")
    parser.add_argument("--summary", type=Path, help="summary.json to put the headlines in")
    args = parser.parse_args(argv)
    try:
        result = score(args.wild, args.curated)
        if args.report:
            write(result, args.wild, args.curated, args.report, args.summary)
        print(render(result))
    except UserError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
