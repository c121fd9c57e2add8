"""What curation buys: one stage of the mouth on raw and on curated recordings, as many hours of each, judged on the same speech.

    python -m data_prep.curate --recipe raw --manifest data/wild/manifest.jsonl --out runs/wild-raw
    python -m data_prep.curate --recipe wild --manifest data/wild/manifest.jsonl --out runs/wild
    python -m omnilib.eval.curation_gain --raw runs/wild-raw --curated runs/wild --seeds 3 --set lr=2.0e-4   # 25 minutes at nano

Both arms start from the stage-1 checkpoint and have the same settings, steps and seed; one factor changes, the recordings. Raw is
every recording that claims a text in a wanted language, drawn at random until it has the hours of the curated ones (assembled
long recordings are left out of both). Judged on sentences of the nano corpus' development split, which the wild set does not
contain: teacher-forced loss and token error, and the phoneme error of speech decoded from text, read from its tokens by the
tokenizer's own head. A finished run is kept in --work.

Writes reports/nano/curation_gain/metrics.json (chapter 01 draws it).
"""

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from omnilib import config as configs
from omnilib import options
from omnilib.data import FIELDS, read_manifest, sha256, write_manifest
from omnilib.errors import DataError, in_one_line
from omnilib.eval.stage2_grid import fingerprint, fit, summarise
from omnilib.mouth.rows import layout_of
from omnilib.paths import DATA, REPORTS, ROOT, RUNS
from omnilib.provenance import stamp, write_json
from omnilib.report import holds, sources
from omnilib.text import load_tokenizer
from omnilib.train.common import seed_everything
from omnilib.train.speechlm import Config, Conversations, build, read_aloud

MEASURES = ("dev_speech_loss", "dev_token_error", "dev_phoneme_error_en", "dev_phoneme_error_zh")


def usable(manifest: Path, languages: list[str]) -> list[dict]:
    """Records that carry tokens and claim a text, a language and a speaker; all as training data.

    Raises:
        DataError: there are none.
    """
    records = [
        r
        for r in read_manifest(manifest)
        if r.get("tokens") and r.get("text") and r.get("speaker") and not r.get("long")
    ]
    records = [r | {"split": "train"} for r in records if r["language"] in languages]
    if not records:
        raise DataError(
            f"no record of {manifest} has tokens, text and speaker: curate it with a recipe that ends in the step `tokens`"
        )
    return records


def hours(records: list[dict]) -> float:
    return sum(r["duration"] for r in records) / 3600


def equal_hours(arms: dict[str, list[dict]], seed: int) -> dict[str, list[dict]]:
    """Random records of each arm, up to the hours of the smallest."""
    least, chosen = min(map(hours, arms.values())), {}
    for name, records in arms.items():
        order = np.random.default_rng(seed).permutation(len(records))
        ends = np.cumsum([records[i]["duration"] for i in order]) / 3600
        chosen[name] = [records[i] for i in order[: np.searchsorted(ends, least * (1 + 1e-9), "right")]]
    return chosen


def write_arm(folder: Path, records: list[dict]) -> None:
    """manifest.jsonl and tokens.safetensors, as the training script reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    write_manifest(folder / "manifest.jsonl", [{k: r.get(k) for k in FIELDS} for r in records])
    save_file(
        {r["id"]: torch.tensor(r["tokens"], dtype=torch.int16) for r in records},
        folder / "tokens.safetensors",
    )


def train_arm(config: Config, folder: Path) -> dict:
    """One run: final measures and a curve."""
    began = time.time()
    seed_everything(config.seed)
    tokenizer = load_tokenizer(ROOT / config.text)
    model = build(config, tokenizer)
    layout = layout_of(model.config, tokenizer)
    arm = replace(
        config,
        manifest=str(folder.resolve() / "manifest.jsonl"),
        tokens=str(folder.resolve() / "tokens.safetensors"),
    )
    data = Conversations(arm, tokenizer, layout)
    dev = Conversations(replace(config, corrupt=0.0, seed=0), tokenizer, layout, "dev")
    curve = fit(model, data, dev, config)
    return {**{k: v for k, v in curve[-1].items() if k != "step"}, **read_aloud(model, tokenizer, dev), "curve": curve,
            "hours": data.hours, "seconds": round(time.time() - began, 1)}  # fmt: skip


def paper_rows(metrics: dict[str, dict]) -> list[dict]:
    """Both arms in each measure that is an error, as rows of `Run.paper_table` (metrics: {"<arm>_<measure>": {"value": ...}})."""
    reader = "phoneme head of the tokenizer, equal hours and steps"
    errors = {
        "dev_token_error": ("token error", "past given, equal hours and steps"),
        "dev_phoneme_error_en": ("phoneme error of free speech (en)", reader),
        "dev_phoneme_error_zh": ("phoneme error of free speech (zh)", reader),
    }
    rows = []
    for measure, (claim, judge) in errors.items():
        raw, curated = (
            metrics.get(f"{arm}_{measure}", {}).get("value", float("nan")) for arm in ("raw", "curated")
        )
        for arm in ("raw", "curated"):
            row = {
                "claim": f"{claim}, trained on {arm} recordings",
                "ref": "not reported",
                "paper": "-",
                "metric": f"{arm}_{measure}",
            }
            rows.append(row | {"judge": judge, "verdict": holds(curated < raw)})
    return rows


def record(run, gain: dict) -> dict[str, list[dict]]:
    """Put the figures of both arms into a chapter's `run` as "<arm>_<measure>"; returns the curve of one run of each arm."""
    source = f"reports/{run.scale}/curation_gain/metrics.json"
    for arm, values in gain["summary"].items():
        for measure, found in values.items():
            seeds = (found["low"], found["high"]) if found["n"] > 1 else None
            run.metric(f"{arm}_{measure}", found["value"], found["n"], seeds, source=source)
    return {arm: next(r["curve"] for r in gain["runs"] if r["arm"] == arm) for arm in gain["summary"]}


def main(argv: list[str] | None = None) -> dict[str, dict]:
    parser = options.Parser(description=__doc__)
    parser.add_argument("--raw", type=Path, required=True, help="--out of data_prep.curate --recipe raw")
    parser.add_argument("--curated", type=Path, required=True, help="--out of data_prep.curate --recipe wild")
    parser.add_argument("--config", default="ablations/stage2_grid")
    parser.add_argument("--set", dest="overrides", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--steps", type=options.count, default=300)
    parser.add_argument("--seeds", type=options.count, default=1)
    parser.add_argument("--out", type=Path, default=REPORTS / "nano" / "curation_gain")
    parser.add_argument("--work", type=Path, default=RUNS / "curation_gain")
    args = parser.parse_args(argv)
    started, runs = time.time(), []
    fixed = [*args.overrides, f"steps={args.steps}", f"warmup={max(1, args.steps // 10)}"]
    config = configs.load(Config, args.config, fixed)
    found = {"raw": args.raw / "manifest.jsonl", "curated": args.curated / "manifest.jsonl"}
    arms = {name: usable(path, config.languages) for name, path in found.items()}
    available = {name: round(hours(records), 4) for name, records in arms.items()}
    for seed in range(args.seeds):
        for name, records in equal_hours(arms, seed).items():
            folder = args.work / f"{name}-s{seed}"
            write_arm(folder, records)
            mine = replace(config, seed=seed)
            kept = folder / f"{sha256(folder / 'tokens.safetensors')[:12]}-{fingerprint(mine)}.json"
            if not kept.is_file():
                print(f"{name}, seed {seed}, {hours(records):.2f} h", flush=True)
                run = train_arm(mine, folder)
                write_json(
                    kept, {"arm": name, "seed": seed, "steps": args.steps, "records": len(records), **run}
                )
            runs.append(json.loads(kept.read_text(encoding="utf-8")))
    summary = summarise(runs, "arm", MEASURES)
    settings = {"steps": args.steps, "seeds": args.seeds, "config": args.config, "init": config.init, "lr": config.lr,
                "optimizer": config.optimizer, "hours_available": available, "temperature": config.phoneme_reader_temperature, "retries": 0,
                "lines": config.phoneme_reader_lines, "reader": "phoneme head of the speech tokenizer"}  # fmt: skip
    files = found | {"development": DATA / config.manifest}
    scale = "smoke" if "smoke" in args.config else "nano"
    record = stamp(scale, {"steps": args.steps, "seeds": args.seeds}, settings, files, time.time() - started)
    if scale == "nano":
        sources.record(args.out, "curation_gain")
    write_json(
        args.out / "metrics.json",
        {"summary": summary, "runs": runs, "settings": settings, "provenance": record},
    )
    for name, values in summary.items():
        print(f"{name:8s} " + "  ".join(f"{k} {v['value']:.4f}" for k, v in values.items()))
    return summary


if __name__ == "__main__":
    with in_one_line():
        main()
