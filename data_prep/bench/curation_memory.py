"""Memory of the whole curation pipeline on single files of growing length: it must not grow with them.

    python -m data_prep.bench.curation_memory --hours 1 8 --out reports/nano/curation/memory.json       # 15 minutes

Each file is one recording that goes through every step but the recogniser, in one process that is manager and worker at once. Its
peak resident memory is what a worker of a cluster must have; imports of torch are in it (about 500 MB). The file is 20 minutes of
frozen recordings again and again, each time at another speed, so that it does not hold the same sound twice.
"""

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np
import soundfile
import soxr

from data_prep.bench.curation import RATE, alone, recordings
from data_prep.pipeline import curate
from omnilib import options
from omnilib.data import write_manifest
from omnilib.errors import UserError
from omnilib.paths import REPORTS

RECIPE = """
steps:
  - name: decode
  - name: vad
  - name: turns
  - name: segment
  - name: quality
  - name: filter
    rules: {noise: {least: 15.0}, clipping: {}, quality: {least: 2.4}, speech_share: {}}
  - name: voiceprint
  - name: speakers
  - name: loudness
  - name: tokens
  - name: fingerprint
  - name: duplicates
  - name: split
"""
NO_CLAIMS = dict.fromkeys(("text", "language", "speaker", "split"))


def minutes_of_sound(hours: float) -> Iterator[np.ndarray]:
    """Pieces of about a minute, `hours` together."""
    shelf, left = list(recordings(20.0)), round(hours * 3600 * RATE)
    for turn in count():
        speed = 1 + 0.02 * (turn // 2 + turn % 2) * (-1) ** turn  # 1, 0.98, 1.02, 0.96, ...
        for wave in shelf:
            if left <= 0:
                return
            wave = soxr.resample(wave, RATE, RATE / speed)[:left]
            yield wave
            left -= len(wave)


def curate_one(hours: float) -> dict:
    """Curate one file of `hours` in this process, and what that took."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with soundfile.SoundFile(
            str(folder / "long.flac"), "w", RATE, 1, "PCM_16", format="FLAC", compression_level=0.0
        ) as file:
            for wave in minutes_of_sound(hours):
                file.write(wave)
        whole = {"id": "long", "path": "long.flac", "start": 0.0, "duration": hours * 3600, "rate": RATE}
        write_manifest(
            folder / "manifest.jsonl", [whole | {"source": "frozen", "licence": "see the corpus"} | NO_CLAIMS]
        )
        (folder / "recipe.yaml").write_text(RECIPE)
        written, began = (folder / "long.flac").stat().st_size, time.process_time()
        table = curate(folder / "manifest.jsonl", str(folder / "recipe.yaml"), folder / "out", workers=1)
    return {
        "hours_in_one_file": hours,
        "file_mb": round(written / 1e6),
        "pieces": max(step["kept"]["records"] for step in table["steps"]),
        "core_seconds": round(time.process_time() - began, 1),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def main(argv: list[str] | None = None) -> int:
    parser = options.Parser(description=__doc__)
    parser.add_argument("--hours", type=float, nargs="+", default=[1.0, 8.0])
    parser.add_argument("--out", type=Path, default=REPORTS / "nano" / "curation" / "memory.json")
    args = parser.parse_args(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        rows = [alone(curate_one, hours) for hours in args.hours]
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"files": rows}, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        print(
            f"{row['hours_in_one_file']:g} h: {row['peak_memory_mb']} MB, {row['pieces']} pieces, {row['core_seconds']} core-seconds"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
