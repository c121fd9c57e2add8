"""How long a new voice takes before it can speak: tokens, mel, speaker vector, and what calibration adds to them.

    python -m omnilib.bench.cloning --out reports/nano/cloning.json    # a minute, idle machine
    python -m omnilib.bench.cloning --scale smoke                      # tiny networks, to see that it runs

A voice is prepared once and kept, so "time to first sound" does not count this. References are committed recordings of one
speaker that no model has met, joined and cut to 3, 10 and 30 s. Each round prepares every length without and with
`calibrate` (codec.yaml), in turns; a figure is the median of the rounds, with the quickest and slowest as its interval. Clock on
the wall, with the threads of torch that the file names.
"""

import json
import os
import platform
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from omnilib import checkpoints, frozen, options
from omnilib.audio import TOKENIZER_RATE
from omnilib.errors import DataError, in_one_line
from omnilib.eval.results import add_bench
from omnilib.provenance import write_json
from omnilib.voice.codec import Codec

SECONDS = (3, 10, 30)
HEADLINE = 10  # seconds of the reference that the headline is about


def reference(seconds: int) -> Tensor:
    """Speech of the held-out speaker with the most, (T,) at 16 kHz.

    Raises:
        DataError: no speaker has so much.
    """
    speakers: dict[str, list[dict]] = {}
    for record in frozen.recordings("eval"):
        speakers.setdefault(record["speaker"], []).append(record)
    best = max(speakers.values(), key=lambda own: sum(r["duration"] for r in own))
    wave = torch.cat([frozen.wave_of(record, TOKENIZER_RATE) for record in best])
    if len(wave) < seconds * TOKENIZER_RATE:
        raise DataError(
            f"no speaker of {frozen.FOLDER} has {seconds} s: restore the folder with `git checkout`"
        )
    return wave[: seconds * TOKENIZER_RATE]


def measure(codec: Codec, rounds: int, lengths: tuple[int, ...] = SECONDS) -> dict[str, dict]:
    """{"3s_plain": {"value", "n", "ci95"}, "3s_calibrated": ...}: seconds on the wall."""
    settings, calibrate = codec.settings, codec.settings.calibrate or 10.0
    waves, taken = {seconds: reference(seconds) for seconds in lengths}, {}
    for turn in range(rounds + 1):  # the first pays for buffers and is not counted
        for seconds, wave in waves.items():
            for name, strength in (("plain", 0.0), ("calibrated", calibrate)):
                codec.settings = replace(settings, calibrate=strength)
                began = time.perf_counter()
                codec.voice(wave, TOKENIZER_RATE)
                if turn:
                    taken.setdefault(f"{seconds}s_{name}", []).append(time.perf_counter() - began)
    codec.settings = settings
    return {
        name: {"value": median(own), "n": rounds, "ci95": [min(own), max(own)]} for name, own in taken.items()
    }


def main() -> None:
    parser = options.Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--scale", choices=("smoke", "nano"), default="nano")
    parser.add_argument("--rounds", type=options.count, default=7)
    parser.add_argument("--out", type=Path, help="a file for the JSON, beside standard output")
    args = parser.parse_args()
    codec = Codec.load(checkpoints.folder(args.scale, "tokenizer", "speaker", "flow", "hift"))
    found = measure(codec, args.rounds)
    headline = {
        "prepare_voice_s": found[f"{HEADLINE}s_{'calibrated' if codec.settings.calibrate else 'plain'}"]
    }
    written = {
        "metrics": headline | found,
        "settings": {"scale": args.scale, "calibrate": codec.settings.calibrate, "rounds": args.rounds},
        "machine": {
            "device": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "load": os.getloadavg(),
        },
    }
    if args.out:
        write_json(args.out, written)
        if args.scale == "nano":
            add_bench(args.out, headline)
    print(json.dumps(written, indent=2))


if __name__ == "__main__":
    with in_one_line():
        main()
