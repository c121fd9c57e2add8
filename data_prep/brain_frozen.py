"""Freeze held-out samples of the brain for evaluation: committed, so that answering needs no engine and no font.

    python -m data_prep.brain_frozen --samples data/brain.jsonl --out data_prep/frozen_brain --each 120

Of each measure of `omnilib.eval.brain` at most `--each` spoken test samples, tasks in equal parts as far as they go,
chosen by a hash of the id. Sound becomes Opus (16 kHz, about 35 kbit/s), pictures and videos are copied. Fails
beyond MOST_BYTES, before anything is replaced.
"""

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import soundfile

from omnilib import options
from omnilib.data import write_manifest
from omnilib.errors import DataError, UserError
from omnilib.eval.brain import SEEN, SPOKEN
from omnilib.train.brain_samples import read_samples

MOST_BYTES = 10_000_000
OPUS_LEVEL = 0.9  # as in data_prep.frozen


def choose(samples: Sequence[dict], each: int) -> list[dict]:
    """Spoken test samples of every measure: one of each of its tasks in turn."""
    chosen = []
    for tasks in (SPOKEN, *SEEN.values()):
        heaps = [
            sorted(
                (s for s in samples if s["task"] == task and s["split"] == "test" and s.get("audio")),
                key=lambda s: hashlib.sha256(s["id"].encode()).digest(),
            )
            for task in tasks
        ]
        turns = [heap[i] for i in range(max(map(len, heaps), default=0)) for heap in heaps if i < len(heap)]
        chosen += turns[:each]
    return chosen


def freeze(path: Path, out: Path, each: int) -> list[dict]:
    """Write the folder; its samples.

    Raises:
        DataError: nothing to freeze, or too large.
    """
    chosen, root = choose(read_samples(path), each), path.parent
    if not chosen:
        raise DataError(
            f"{path} has no spoken test samples: make them with `python -m data_prep.brain --speak kokoro`"
        )
    fresh = out.with_name(f"{out.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    (fresh / "media").mkdir(parents=True)
    rows = []
    for sample in chosen:
        row = {k: sample[k] for k in ("id", "split", "task", "language", "question", "answer", "turns")}
        row["audio"] = [opus(root / name, fresh) for name in sample["audio"]]
        for kind in ("images", "video"):
            if sample.get(kind):
                row[kind] = [copied(root / name, fresh) for name in sample[kind]]
        rows.append(row)
    write_manifest(fresh / "brain.jsonl", rows)
    size = sum(p.stat().st_size for p in fresh.rglob("*") if p.is_file())
    if size > MOST_BYTES:
        shutil.rmtree(fresh)
        raise DataError(
            f"the frozen samples take {size / 1e6:.1f} MB, more than {MOST_BYTES / 1e6:.0f}: lower --each"
        )
    shutil.rmtree(out, ignore_errors=True)
    fresh.rename(out)
    return rows


def opus(source: Path, out: Path) -> str:
    """Compress a recording; one file for all questions that share it."""
    name = f"media/{source.stem}.ogg"
    if not (out / name).is_file():
        wave, rate = soundfile.read(source, dtype="float32")
        form = dict(format="OGG", subtype="OPUS", compression_level=OPUS_LEVEL)
        soundfile.write(out / name, wave, rate, **form)
    return name


def copied(source: Path, out: Path) -> str:
    """Copy a picture or video."""
    shutil.copyfile(source, out / "media" / source.name)
    return f"media/{source.name}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = options.Parser(description=__doc__)
    parser.add_argument("--samples", type=Path, required=True, help="manifest of data_prep.brain")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--each", type=options.count, default=120, help="samples of each measure")
    args = parser.parse_args(argv)
    try:
        rows = freeze(args.samples, args.out, args.each)
    except UserError as error:
        parser.error(str(error))
    print(f"{len(rows)} samples in {args.out}")


if __name__ == "__main__":
    main()
