"""Does this code speak faster than that of an earlier commit? The same sentences and checkpoints, commits in turns.

    python -m omnilib.bench.commits b4a8e34 HEAD --out reports/nano/commits.json    # a minute a round, idle machine

A round is one process a commit: its code is unpacked below runs/, reads the checkpoints of this checkout, speaks ten sentences of
the frozen set and times them as `omnilib.eval.rtf` of that commit does. A ratio is the first commit's figure over the second's in
the same round: above 1 the second is faster. Written: each round's figures, the median ratio with the lowest and the highest.
Both commits need `omnilib.eval.rtf` and `TextToSpeech`.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from statistics import median

from tqdm import tqdm

from omnilib import options
from omnilib.bench.speed import machine
from omnilib.errors import UserError, in_one_line
from omnilib.eval.frozen import FOLDER, Frozen
from omnilib.paths import CHECKPOINTS, ROOT, RUNS
from omnilib.provenance import write_json

FIGURES = ("rtf_total", "rtf_mouth", "rtf_flow", "rtf_hift", "ttfs_stream_s")
CHILD = """
import json, sys, torch
from omnilib.eval import rtf
from omnilib.speak import TextToSpeech
scale, threads, sentences = json.load(sys.stdin)
torch.set_num_threads(threads)
speech = TextToSpeech.load(scale)
found = rtf.real_time_factor(speech, sentences) | {"ttfs_stream_s": rtf.time_to_first_sound(speech, sentences)}
print(json.dumps({name: entry["value"] for name, entry in found.items()}))
"""


def unpack(commit: str, runs: Path) -> tuple[str, Path]:
    """(full hash, folder) of a commit's package.

    Raises:
        UserError: no such commit here (a shallow clone lacks older ones).
    """
    found = subprocess.run(
        ["git", "rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if found.returncode:
        raise UserError(
            f"no commit {commit} here: name one of `git log`; a shallow clone needs `git fetch --unshallow`"
        )
    name = found.stdout.strip()
    folder = runs / "commits" / name
    if not folder.is_dir():
        whole = subprocess.run(["git", "archive", name, "omnilib"], cwd=ROOT, capture_output=True)
        if whole.returncode:
            raise UserError(f"commit {commit} has no omnilib/: name a later one")
        unfinished = folder.with_name(f"{name}.part")
        with tarfile.open(fileobj=io.BytesIO(whole.stdout)) as archive:
            archive.extractall(unfinished, filter="data")
        unfinished.rename(folder)
    return name, folder


def measure_once(folder: Path, work: list) -> dict[str, float]:
    """Figures of one process that runs the code in `folder`.

    Raises:
        UserError: that code cannot speak with these checkpoints.
    """
    places = {"PYTHONPATH": str(folder), "OMNILIB_CHECKPOINTS": str(CHECKPOINTS)}
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        input=json.dumps(work),
        cwd=folder,
        env=os.environ | places,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise UserError(f"the code of {folder.name[:9]} cannot speak with these checkpoints: {last[0]}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(rounds: list[tuple[dict, dict]]) -> dict[str, dict]:
    """Median of first / second of each figure, with the lowest and highest round."""
    found = {}
    for name in FIGURES:
        ratios = [a[name] / b[name] for a, b in rounds]
        found[name] = {
            "first": median(a[name] for a, _ in rounds),
            "second": median(b[name] for _, b in rounds),
            "ratio": median(ratios),
            "spread": [min(ratios), max(ratios)],
        }
    return found


def main() -> None:
    parser = options.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commits", nargs=2, metavar="COMMIT")
    parser.add_argument("--scale", type=options.scale, default="nano")
    parser.add_argument("--rounds", type=options.count, default=5)
    parser.add_argument("--sentences", type=options.count, default=10)
    parser.add_argument("--threads", type=options.count, default=1)
    parser.add_argument("--frozen", type=Path, default=FOLDER)
    parser.add_argument("--out", type=Path, help="a file for the JSON, beside standard output")
    args = parser.parse_args()
    names, folders = zip(*(unpack(commit, RUNS) for commit in args.commits), strict=True)
    frozen = Frozen(args.frozen)
    lines = frozen.of("eval", language="en") or frozen.of("eval")
    chosen = lines[:: max(1, len(lines) // args.sentences)][: args.sentences]
    known = [(line.text, frozen.references[line.speaker]) for line in chosen]
    work = [args.scale, args.threads, [(text, str(voice.path), voice.text) for text, voice in known]]
    rounds = []
    for _ in tqdm(range(args.rounds), unit="round", disable=None):
        rounds.append(tuple(measure_once(folder, work) for folder in folders))
    settings = {"scale": args.scale, "sentences": [line.id for line in chosen], "threads": args.threads}
    found = {
        "commits": names,
        "machine": machine() | {"threads": args.threads},
        "settings": settings,
        "figures": compare(rounds),
        "rounds": rounds,
    }
    if args.out:
        write_json(args.out, found)
    print(json.dumps(found["figures"], indent=2))


if __name__ == "__main__":
    with in_one_line():
        main()
