"""The short figures on every everyday test sentence instead of the committed sample: 300 English lines, not 170.

    python -m data_prep.frozen --corpus data/nano --out data/frozen_all --all                   # 1 minute; needs the corpus
    python -m omnilib.eval.nano --frozen data/frozen_all --parts short --reports runs/all       # 25 minutes on 2 cores
    python -m omnilib.eval.all_lines --run runs/all

The last command writes reports/<scale>/eval_all/ and headline figures whose names end in `_all`. Beside the error rates it gives what the
aims are about, how many points codec and speech lie over recordings: the difference on the same lines, which is surer than the
difference of two rates, each with its own interval.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from omnilib import options
from omnilib.errors import DataError, UserError, in_one_line
from omnilib.eval.results import add_to_summary
from omnilib.eval.wer import bootstrap
from omnilib.paths import REPORTS
from omnilib.provenance import write_json
from omnilib.report import sources

RATES = ("wer_en_gt", "wer_en_codec", "wer_en_tts", "zh_gt", "zh_codec", "zh_tts")
MEASURES = {"en": "wer", "zh": "pinyin"}


def over_recordings(records: Sequence[dict], language: str, system: str, seen: bool | None = None) -> dict:
    """Error of `system` less that of recordings on the same lines, weighted by words, with its interval.

    Raises:
        DataError: no such lines.
    """
    key = MEASURES[language]
    rows = [
        r for r in records if r["role"] == "eval" and r["language"] == language and seen in (None, r["seen"])
    ]
    errors = {name: {r["id"]: r[key] for r in rows if r["system"] == name} for name in ("gt", system)}
    both = sorted(errors["gt"].keys() & errors[system].keys())
    if not both:
        raise DataError(f"no {language} lines that have both recordings and '{system}'")
    differences = [errors[system][i]["error"] - errors["gt"][i]["error"] for i in both]
    words = [errors["gt"][i]["words"] for i in both]
    value, interval = bootstrap(differences, words, 0)
    return {
        "value": float(value),
        "n": len(both),
        "ci95": interval,
        "words": int(np.sum(words)),
        "unit": "rate",
    }


def collect(run: Path, reports: Path, scale: str) -> dict[str, dict]:
    """Copy the records of an evaluation in `run`, add the differences, write the headlines; returns all figures.

    Raises:
        DataError: there is no evaluation of short lines in `run`.
    """
    source = run / scale / "eval"
    try:
        whole = json.loads((source / "metrics.json").read_text(encoding="utf-8"))
        records = [
            json.loads(line)
            for line in (source / "utterances.jsonl").read_text(encoding="utf-8").splitlines()
        ]
    except (OSError, json.JSONDecodeError) as error:
        raise DataError(
            f"no evaluation in {run} ({error}): run `python -m omnilib.eval.nano --parts short --reports {run}`"
        ) from None
    rates = {
        name: whole["metrics"][name]
        for name in RATES
        if whole["metrics"].get(name, {}).get("value") is not None
    }
    if len(rates) < len(RATES):
        raise DataError(
            f"{run} lacks {', '.join(sorted(set(RATES) - set(rates)))}: run `omnilib.eval.nano --parts short` on all lines"
        )
    figures = dict(rates)
    for language, prefix in (("en", "wer_en"), ("zh", "zh")):
        for system in ("codec", "tts"):
            heard = {r["seen"] for r in records if r["language"] == language and r["role"] == "eval"}
            for name, seen in (("", None), ("_seen", True), ("_unseen", False)):
                if seen is not None and seen not in heard:
                    continue
                about = {k: rates[f"{prefix}_{system}"][k] for k in ("seed", "judge", "normaliser")}
                figures[f"{prefix}_{system}_over_gt{name}"] = (
                    over_recordings(records, language, system, seen) | about
                )
    folder = reports / scale / "eval_all"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("utterances.jsonl", "provenance.json"):
        shutil.copyfile(source / name, folder / name)
    write_json(
        folder / "metrics.json",
        {"name": "eval_all", "scale": scale, "settings": whole["settings"], "metrics": figures},
    )
    sources.record(folder, "eval_all", scale)
    headlines = {f"{name}_all": figures[name] for name in RATES}
    add_to_summary(reports / scale / "summary.json", headlines, f"reports/{scale}/eval_all/metrics.json")
    return figures


def main(argv: Sequence[str] | None = None) -> int:
    parser = options.Parser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="--reports folder of the evaluation")
    parser.add_argument("--reports", type=Path, default=REPORTS)
    parser.add_argument("--scale", type=options.scale, default="nano")
    args = parser.parse_args(argv)
    try:
        figures = collect(args.run, args.reports, args.scale)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, entry in figures.items():
        low, high = entry["ci95"]
        print(
            f"{name:28} {100 * entry['value']:5.1f} % ({100 * low:.1f} to {100 * high:.1f})  n={entry['n']}"
        )
    return 0


if __name__ == "__main__":
    with in_one_line():
        raise SystemExit(main())
