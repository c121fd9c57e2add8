"""Curated records -> Parquet shards by length, as `omnilib.shards` streams them into training.

    python -m data_prep.shards --manifest out/manifest.jsonl --out shards --workers 2
    datasets.load_dataset("shards", split="train")        # or streaming=True; `audio` holds FLAC bytes

Records of a split are ordered by length (lengths within RATIO mixed by a hash of the id) and cut every
`seconds` of audio, so a shard holds records of nearly one length and a batch of it pads little. Writing
again continues: a shard is complete or absent.

    shards/<split>/00000-<key>.parquet    id, audio {bytes, path}, duration, rate, ..., more (JSON of the other fields)
    shards/index.json                     written last: records, seconds, lengths, sha256 of each shard
    shards/checksums.sha256, README.md    for `sha256sum -c` and for `load_dataset`

Units: seconds.
"""

import io
import json
import math
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import soundfile
from tqdm import tqdm

from data_prep.corpora import MAX_BAD, BadRows
from data_prep.pipeline.audio import Audio
from data_prep.pipeline.files import digest, file_digest, file_name, temporary, write_json
from data_prep.pipeline.manifest import BadRow, rows
from omnilib import options
from omnilib.errors import AudioError, ConfigError, DataError, UserError
from omnilib.eval.results import add_to_summary
from omnilib.shards import SCHEMA, Shards

SECONDS = 900.0
RATIO = 1.05  # lengths that may be mixed


@dataclass(frozen=True)
class Shard:
    """A shard to write: its place, and the byte offsets of its records in the manifest."""

    path: str
    offsets: tuple[int, ...]


def plan(manifest: Path, seconds: float, bad: BadRows) -> list[Shard]:
    """Which records go into which shard: depends on the records only, not on their order. Lines that are no
    record are counted in `bad`.

    Raises:
        DataError: a record was never decoded.
    """
    splits: dict[str, list[tuple]] = {}
    with manifest.open("rb") as file:
        for offset, record in rows(manifest):
            bad.rows += 1
            if isinstance(record, BadRow):
                bad.add(record.reason, f"line {record.number}: {record.detail}")
                continue
            if not record.get("duration") or not record.get("rate"):
                lacks = "rate" if record.get("duration") else "duration"
                raise DataError(
                    f"'{record['id']}' has no {lacks}: run the manifest through a recipe with `decode` first"
                )
            file.seek(offset)
            bucket = int(math.log(record["duration"], RATIO))
            entry = (
                bucket,
                digest(record["id"].encode()),
                offset,
                record["duration"],
                digest(file.readline()),
            )
            splits.setdefault(file_name(record.get("split") or "train"), []).append(entry)
    return [
        shard for split, entries in sorted(splits.items()) for shard in pack(split, sorted(entries), seconds)
    ]


def pack(split: str, entries: list[tuple], seconds: float) -> Iterator[Shard]:
    """Cut entries (length bucket, id hash, offset, duration, line hash) into shards of about `seconds`."""
    group, length, index = [], 0.0, 0
    for number, entry in enumerate(entries, 1):
        group.append(entry)
        length += entry[3]
        if length >= seconds or number == len(entries):
            key = digest("".join(e[4] for e in group).encode())[
                :12
            ]  # other records, other name: a stale shard is never taken up
            yield Shard(f"{split}/{index:05d}-{key}.parquet", tuple(e[2] for e in group))
            group, length, index = [], 0.0, index + 1


def flac(record: dict, audio: Audio) -> bytes:
    """The record's sound as FLAC: the file itself where it is one, else its piece encoded anew."""
    path = audio.source(record)
    try:
        info = soundfile.info(str(path)) if path.suffix == ".flac" else None
    except soundfile.SoundFileError:
        info = None  # `audio.wave` says what is wrong
    if (
        info
        and not record["start"]
        and info.channels == 1
        and info.frames == round(record["duration"] * info.samplerate)
    ):
        return path.read_bytes()
    rate = record["rate"]
    samples = np.clip(np.rint(audio.wave(record, rate) * 32768.0), -32768, 32767).astype(np.int16)
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, "PCM_16", format="FLAC")
    return buffer.getvalue()


def row_of(record: dict, audio: Audio) -> dict:
    named = {name: record.get(name) for name in SCHEMA.names if name not in ("audio", "more")}
    more = {k: v for k, v in record.items() if k not in named and k not in ("path", "start")}
    sound = {"bytes": flac(record, audio), "path": f"{record['id']}.flac"}
    return named | {"audio": sound, "more": json.dumps(more, ensure_ascii=False, sort_keys=True)}


def write_shard(job: tuple[Path, Path, Shard]) -> dict:
    """Write one shard unless it is there; returns its line of the index."""
    manifest, out, shard = job
    audio = Audio(manifest.parent, manifest.parent, cache_bytes=0)
    records = []
    with manifest.open("rb") as file:
        for offset in shard.offsets:
            file.seek(offset)
            records.append(json.loads(file.readline()))
    target, bad = out / shard.path, []
    if target.exists():
        kept = set(parquet.read_table(target, columns=["id"])["id"].to_pylist())
        bad = [
            f"'{record['id']}' was left out by the run that wrote {shard.path}"
            for record in records
            if record["id"] not in kept
        ]
        records = [record for record in records if record["id"] in kept]
    else:
        found = []
        for record in records:
            try:
                found.append((record, row_of(record, audio)))
            except AudioError as error:
                bad.append(str(error))
        records, lines = [record for record, _ in found], [line for _, line in found]
        if lines:
            with temporary(out, target) as place:
                parquet.write_table(
                    pyarrow.Table.from_pylist(lines, SCHEMA), place, compression="zstd", row_group_size=32
                )
    if not records:
        return {"bad": bad}
    lengths = [record["duration"] for record in records]
    extent = {"seconds": round(sum(lengths), 3), "shortest": min(lengths), "longest": max(lengths)}
    line = {
        "path": shard.path,
        "split": shard.path.split("/")[0],
        "records": len(records),
        "sha256": file_digest(target),
    } | extent
    return line | ({"bad": bad} if bad else {})


def write_shards(
    manifest: Path, out: Path, seconds: float = SECONDS, workers: int = 1, max_bad: float = MAX_BAD
) -> dict:
    """Write, or go on writing, the shards of a manifest; returns the index.

    Lines that are no record and records whose audio cannot be read are left out and counted in the index
    under `dropped`.

    Raises:
        DataError: no manifest, more than a share of `max_bad` of it is bad, or no place to write.
    """
    if not 0 <= max_bad <= 1:
        raise ConfigError(f"--max-bad is {max_bad}: give a share from 0 to 1")
    manifest, out, bad = Path(manifest), Path(out), BadRows(str(manifest), max_bad)
    jobs = [(manifest, out, shard) for shard in plan(manifest, seconds, bad)]
    if not jobs:
        raise DataError(
            f"{manifest} holds no usable record{f' ({bad}); first: {bad.first}' if bad.first else ''}: nothing to write"
        )
    bad.check()
    try:
        (out / "index.json").unlink(missing_ok=True)
        with ExitStack() as stack:
            bar = stack.enter_context(tqdm(total=len(jobs), desc="shards", unit="shard"))
            many = (
                stack.enter_context(ProcessPoolExecutor(workers, get_context("spawn"))).map
                if workers > 1
                else map
            )
            lines = []
            for line in many(write_shard, jobs):
                for detail in line.pop("bad", ()):
                    bad.add("unreadable_audio", detail)
                lines += [line] if line else []
                bar.update()
        bad.check()
        if not lines:
            raise DataError(f"no record of {manifest} could be read ({bad}); first: {bad.first}")
        for stale in {str(p.relative_to(out)) for p in out.glob("*/*.parquet")} - {
            line["path"] for line in lines
        }:
            (out / stale).unlink()
        (out / "checksums.sha256").write_text(
            "".join(f"{line['sha256']}  {line['path']}\n" for line in lines), encoding="utf-8"
        )
        (out / "README.md").write_text(card(lines, manifest), encoding="utf-8")
        index = {"manifest_sha256": file_digest(manifest), "shards": lines}
        index |= {"dropped": dict(bad.reasons)} if bad.reasons else {}
        write_json(out, out / "index.json", index)
        (out / "tmp").rmdir()
    except BrokenProcessPool:
        raise DataError(
            "a worker process died (out of memory?): run again with fewer --workers; finished shards are kept"
        ) from None
    except OSError as error:
        raise DataError(
            f"cannot write {error.filename or out} ({error.strerror or error}): free some space and run again"
        ) from None
    return index


def card(lines: list[dict], manifest: Path) -> str:
    """README.md of the shards: what `load_dataset` reads, hours by split, then the card of the manifest."""
    splits = sorted({line["split"] for line in lines})
    config = "".join(f"  - split: {s}\n    path: {s}/*.parquet\n" for s in splits)
    rows = []
    for split in splits:
        mine = [line for line in lines if line["split"] == split]
        hours = sum(line["seconds"] for line in mine) / 3600
        rows.append(f"| {split} | {len(mine)} | {sum(line['records'] for line in mine)} | {hours:.2f} |\n")
    about = manifest.with_name("card.md")
    return (
        f"---\nconfigs:\n- config_name: default\n  data_files:\n{config}---\n# Speech shards\n\n"
        f"| split | shards | records | hours |\n|---|---|---|---|\n{''.join(rows)}\n"
        + (about.read_text(encoding="utf-8") if about.is_file() else "")
    )


def main(argv: list[str] | None = None) -> int:
    parser = options.Parser(description=__doc__)
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=options.positive, default=SECONDS, help="audio a shard holds")
    parser.add_argument("--workers", type=options.count, default=1)
    parser.add_argument(
        "--max-bad",
        type=float,
        default=MAX_BAD,
        help="share of bad rows above which nothing is written (default: %(default)s)",
    )
    parser.add_argument(
        "--report", type=Path, help="JSON file for what the data loader would waste on padding"
    )
    parser.add_argument(
        "--summary", type=Path, help="summary.json to put the padding of the training split in"
    )
    args = parser.parse_args(argv)
    try:
        index = write_shards(args.manifest, args.out, args.seconds, args.workers, args.max_bad)
        waste = {
            split: Shards(args.out, split).padding_waste()
            for split in sorted({s["split"] for s in index["shards"]})
        }
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    counts = {split: sum(s["records"] for s in index["shards"] if s["split"] == split) for split in waste}
    if args.report:
        args.report.parent.mkdir(parents=True, exist_ok=True)
        report = {"padding_waste": waste, "records": counts, "manifest_sha256": file_digest(args.manifest)}
        args.report.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if args.summary and "train" in waste:
        source = "/".join(args.report.parts[-4:]) if args.report else str(args.out)
        entry = {"value": waste["train"], "n": counts["train"], "ci95": None}
        add_to_summary(args.summary, {"curation_padding_waste": entry}, source)
    if index.get("dropped"):
        print(
            "bad rows, left out: "
            + ", ".join(f"{reason} {count}" for reason, count in index["dropped"].items())
        )
    print(
        f"{len(index['shards'])} shards; padding waste "
        + ", ".join(f"{split} {share:.1%}" for split, share in waste.items())
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
