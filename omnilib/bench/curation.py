"""Speed and memory of every curation step: audio-hours a core-hour, peak memory, and all steps but the recogniser together.

    python -m omnilib.bench.curation --minutes 20 --out reports/nano/curation/bench.json
    python -m omnilib.bench.curation --minutes 5 --steps vad quality

The frozen recordings are joined into files of about a minute with pauses between, repeated until they are `minutes` long. Each step
gets what the step before it kept, in a process of its own: its processor time (not the wall time, so other work on the machine does
not count) and its peak resident memory are those of the step alone, imports of torch included (about 500 MB). Loading a model
happens once a worker and is reported beside. Duplicates come last: a repeated subset is full of them.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from data_prep import frozen
from data_prep.score import add_to_summary
from omnilib.data import read_manifest, write_manifest
from omnilib.errors import UserError
from omnilib.paths import REPORTS

RATE = 24_000
CORES = 2  # of the machine the target is stated for
STEPS: dict[str, tuple[str, dict]] = {  # name in the report -> step and its parameters
    "decode": ("decode", {}),
    "vad": ("vad", {}),
    "turns": ("turns", {}),
    "segment": ("segment", {}),
    "quality": ("quality", {}),
    "quality_ovrl": ("quality", {"overall": True}),
    "language": ("language", {}),
    "transcribe": ("transcribe", {}),
    "text": ("text", {}),
    "speed": ("speed", {}),
    "voiceprint": ("voiceprint", {}),
    "speakers": ("speakers", {}),
    "loudness": ("loudness", {}),
    "longform": ("longform", {}),
    "tokens": ("tokens", {}),
    "fingerprint": ("fingerprint", {}),
    "duplicates": ("duplicates", {}),
    "split": ("split", {}),
}
ASIDE = ("quality_ovrl", "language", "transcribe")  # not in the sum: the recogniser, and the slower of the two scores


def recordings(minutes: float) -> Iterator[np.ndarray]:
    """Waves of about a minute: frozen recordings with a pause between, in turn."""
    folder = Path(frozen.__file__).parent / "frozen"
    waves, total, index, rng = [], 0, 0, np.random.default_rng(0)
    records = read_manifest(folder / "manifest.jsonl")
    while total < minutes * 60 * RATE:
        wave, rate = soundfile.read(folder / records[index % len(records)]["path"], dtype="float32")
        if rate == RATE:  # human prompts and Mandarin kept as FLAC have 16 kHz
            waves += [wave, np.zeros(round(rng.uniform(0.3, 2.5) * RATE), np.float32)]
        index += 1
        if sum(map(len, waves)) > 60 * RATE:
            yield np.concatenate(waves)
            total += sum(map(len, waves))
            waves = []


def make_corpus(folder: Path, minutes: float) -> list[dict]:
    """Opus files and their records."""
    records = []
    for number, wave in enumerate(recordings(minutes)):
        soundfile.write(folder / f"{number:04d}.opus", wave, RATE, format="OGG", subtype="OPUS", compression_level=frozen.OPUS_LEVEL)
        empty = dict.fromkeys(("text", "language", "speaker", "split"))
        known = {"start": 0.0, "duration": len(wave) / RATE, "rate": RATE, "source": "frozen", "licence": "see the corpus"}
        records.append({"id": f"{number:04d}", "path": f"{number:04d}.opus"} | known | empty)
    return records


def measure(step: str, parameters: dict, records: list[dict], folder: Path) -> tuple[list[dict], dict]:
    """Run a step in this process: what it kept, and what it cost."""
    import torch

    from data_prep.pipeline import STEPS, Audio, load_recipe

    load_recipe("wild")  # registers every step
    torch.set_num_threads(1)
    opened = STEPS[step](**parameters)
    began = time.process_time()
    opened.open()
    loaded = time.process_time()
    kept = [r for r in opened.run(records, Audio(folder, folder)) if "dropped" not in r]
    seconds, hours = time.process_time() - loaded, sum(r["duration"] for r in records) / 3600
    return kept, {
        "audio_hours": round(hours, 4),
        "core_seconds": round(seconds, 2),
        "audio_hours_per_core_hour": round(hours / max(seconds, 1e-3) * 3600, 1),
        "load_seconds": round(loaded - began, 2),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def measure_shards(records: list[dict], folder: Path) -> dict:
    """Cost of writing Parquet shards of the records, in this process."""
    from data_prep.shards import write_shards

    write_manifest(folder / "manifest.jsonl", [r | {"split": "train"} for r in records])
    began = time.process_time()
    write_shards(folder / "manifest.jsonl", folder / "shards", workers=1)
    seconds, hours = time.process_time() - began, sum(r["duration"] for r in records) / 3600
    return {
        "audio_hours": round(hours, 4),
        "core_seconds": round(seconds, 2),
        "audio_hours_per_core_hour": round(hours / max(seconds, 1e-3) * 3600, 1),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def alone(function, *args):
    """The result of a function in a fresh process."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(function, args)


def bench(minutes: float, wanted: list[str] | None = None) -> dict:
    """Measure the steps; those not wanted run too where later ones need their fields, except the recogniser's."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    rows: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        records = make_corpus(folder, minutes)
        hours = sum(r["duration"] for r in records) / 3600
        names = [s for s in STEPS if s not in ASIDE or wanted is None or s in wanted]
        for label in tqdm(names, desc=f"{hours:.2f} h of audio", unit="step"):
            step, parameters = STEPS[label]
            if label == "text":  # words are needed below, also where no recogniser ran
                records = [r | {"text": f"These are the words of number {i}."} for i, r in enumerate(records)]
            kept, row = alone(measure, step, parameters, records, folder)
            rows[label] = row
            if label not in ASIDE:
                records = kept
            if label == "tokens":
                rows["shards"] = alone(measure_shards, records, folder)
                records = [r for r in records if not r.get("long")]
    rows = {k: v for k, v in rows.items() if wanted is None or k in wanted}
    counted = [row["audio_hours_per_core_hour"] for name, row in rows.items() if name not in ASIDE]
    together = 1 / sum(1 / rate for rate in counted) if counted else 0.0
    return {
        "audio_minutes": round(hours * 60, 1),
        "steps": rows,
        "audio_hours_per_core_hour_no_asr": round(together, 1),
        "audio_hours_per_hour_no_asr": round(CORES * together, 1),
        "cores": CORES,
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--steps", nargs="+", choices=[*STEPS, "shards"], default=None, help="report these only")
    parser.add_argument("--out", type=Path, default=REPORTS / "nano" / "curation" / "bench.json")
    parser.add_argument("--summary", type=Path, help="summary.json to put the rate without the recogniser in")
    args = parser.parse_args(argv)
    try:
        result = bench(args.minutes, args.steps)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if args.summary:
        entry = {"value": result["audio_hours_per_hour_no_asr"], "n": len(result["steps"]), "ci95": None}
        add_to_summary(args.summary, {"curation_audio_hours_per_hour_no_asr": entry}, "/".join(args.out.parts[-4:]))
    for name, row in result["steps"].items():
        print(f"{name:14s} {row['audio_hours_per_core_hour']:10.1f} audio-h per core-h {row['peak_memory_mb']:6d} MB")
    print(f"all but the recogniser: {result['audio_hours_per_hour_no_asr']} audio-h per hour on {CORES} cores")
    return 0


if __name__ == "__main__":
    sys.exit(main())
