"""Speed and memory of every curation step: audio-hours a core-hour, peak memory, and all steps but the recogniser together.

    python -m data_prep.bench.curation --minutes 20 --out reports/nano/curation/bench.json
    python -m data_prep.bench.curation --minutes 5 --steps vad quality

The frozen recordings are joined into Opus files of about a minute with pauses between, repeated until they are `minutes` long. Time
is processor time (so other work on the machine hardly counts): of the recogniser in a process of its own, of the other steps in one
worker that takes everything through all of them, as a run does. Peak memory is that of each step in a process of its own, imports of
torch included (about 500 MB). Loading a model happens once a worker and is reported beside. Duplicates come last: a repeated
subset is full of them.

The rate of all steps together is stated twice: per hour of sound that reaches each step (pauses already removed are not
counted), and per hour of raw recording, of which a quarter is pauses here.
"""

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
from data_prep.pipeline import STEPS, Audio, load_recipe
from data_prep.pipeline.parts import advance
from data_prep.shards import write_shards
from omnilib import options
from omnilib.data import read_manifest, write_manifest
from omnilib.errors import UserError
from omnilib.eval.results import add_to_summary
from omnilib.paths import REPORTS

RATE = 24_000
CORES = 2  # of the machine the target is stated for
BENCHED: dict[str, tuple[str, dict]] = {  # name in the report -> step and its parameters
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
ASIDE = (
    "quality_ovrl",
    "language",
    "transcribe",
)  # not in the sum: the recogniser, and the slower of the two scores


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
        soundfile.write(
            folder / f"{number:04d}.opus",
            wave,
            RATE,
            format="OGG",
            subtype="OPUS",
            compression_level=frozen.OPUS_LEVEL,
        )
        empty = dict.fromkeys(("text", "language", "speaker", "split"))
        known = {
            "start": 0.0,
            "duration": len(wave) / RATE,
            "rate": RATE,
            "source": "frozen",
            "licence": "see the corpus",
        }
        records.append({"id": f"{number:04d}", "path": f"{number:04d}.opus"} | known | empty)
    return records


def measure(step: str, parameters: dict, records: list[dict], folder: Path) -> tuple[list[dict], dict]:
    """Run a step in this process: what it kept, and what it cost."""
    import torch

    load_recipe("wild")  # registers every step
    torch.set_num_threads(1)
    opened = STEPS[step](**parameters)
    began = time.process_time()
    opened.open()
    loaded = time.process_time()
    kept = [r for r in opened.run(records, Audio(folder, folder)) if "dropped" not in r]
    seconds = time.process_time() - loaded
    return kept, cost(records, seconds) | {
        "load_seconds": round(loaded - began, 2),
        "peak_memory_mb": peak_memory(),
    }


def measure_run(steps: list[str], records: list[dict], folder: Path) -> dict[str, dict]:
    """Processor time of each of the steps when one worker takes the records through all of them: what one step wrote or read is
    still in memory for the next."""
    import torch

    load_recipe("wild")
    torch.set_num_threads(1)
    opened = {label: STEPS[BENCHED[label][0]](**BENCHED[label][1]) for label in steps}
    for step in opened.values():
        step.open()
    audio, rows = Audio(folder, folder), {}
    for label in steps:
        if label == "text":
            records = with_words(records)
        state = {
            "part": None,
            "records": [r for r in records if not r.get("long")],
            "lines": [],
            "seconds": [],
        }
        began = time.process_time()
        after = advance(state, opened[label], audio)["records"]
        rows[label] = cost(state["records"], time.process_time() - began)
        records = after
    return rows


def cost(records: list[dict], seconds: float) -> dict:
    """Entries of a row about time."""
    hours = sum(r["duration"] for r in records) / 3600
    rate = round(hours / max(seconds, 1e-3) * 3600, 1)
    return {
        "audio_hours": round(hours, 4),
        "core_seconds": round(seconds, 2),
        "audio_hours_per_core_hour": rate,
    }


def with_words(records: list[dict]) -> list[dict]:
    """Records with a text, also where no recogniser ran."""
    return [r | {"text": f"These are the words of number {i}."} for i, r in enumerate(records)]


def measure_shards(records: list[dict], folder: Path) -> dict:
    """Cost of writing Parquet shards of the records, in this process."""
    write_manifest(folder / "manifest.jsonl", [r | {"split": "train"} for r in records])
    began = time.process_time()
    write_shards(folder / "manifest.jsonl", folder / "shards", workers=1)
    return cost(records, time.process_time() - began) | {"peak_memory_mb": peak_memory()}


def peak_memory() -> int:
    """Of this process, in MiB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


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
        first = records = make_corpus(folder, minutes)
        hours = sum(r["duration"] for r in records) / 3600
        names = [s for s in BENCHED if s not in ASIDE or wanted is None or s in wanted]
        for label in tqdm(names, desc=f"{hours:.2f} h of audio", unit="step"):
            step, parameters = BENCHED[label]
            if label == "text":  # words are needed below, also where no recogniser ran
                records = with_words(records)
            kept, row = alone(measure, step, parameters, records, folder)
            rows[label] = row
            if label not in ASIDE:
                records = kept
            if label == "tokens":
                rows["shards"] = alone(measure_shards, records, folder)
                records = [r for r in records if not r.get("long")]
        together = [label for label in names if label not in ASIDE]
        for label, row in alone(measure_run, together, first, folder).items():
            rows[label] |= row
    rows = {k: v for k, v in rows.items() if wanted is None or k in wanted}
    counted = [row for name, row in rows.items() if name not in ASIDE]
    rate = 1 / sum(1 / row["audio_hours_per_core_hour"] for row in counted) if counted else 0.0
    raw = hours * 3600 / sum(row["core_seconds"] for row in counted) if counted else 0.0
    return {
        "audio_minutes": round(hours * 60, 1),
        "steps": rows,
        "audio_hours_per_core_hour_no_asr": round(rate, 1),
        "audio_hours_per_hour_no_asr": round(CORES * rate, 1),
        "raw_audio_hours_per_hour_no_asr": round(CORES * raw, 1),
        "cores": CORES,
    }


def main(argv: list[str] | None = None) -> int:
    parser = options.Parser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument(
        "--steps", nargs="+", choices=[*BENCHED, "shards"], default=None, help="report these only"
    )
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
        add_to_summary(
            args.summary, {"curation_audio_hours_per_hour_no_asr": entry}, "/".join(args.out.parts[-4:])
        )
    for name, row in result["steps"].items():
        print(
            f"{name:14s} {row['audio_hours_per_core_hour']:10.1f} audio-h per core-h {row['peak_memory_mb']:6d} MB"
        )
    print(
        f"all but the recogniser: {result['audio_hours_per_hour_no_asr']} audio-h per hour on {CORES} cores"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
