"""Results of parts -> one manifest, dropped list and done.json a step."""

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np

from data_prep.pipeline.files import dump, temporary, write_json
from data_prep.pipeline.parts import Job, Part
from omnilib.errors import DataError


class Output:
    """Manifest and dropped list of one step while they are written, and what the funnel needs to know of
    them."""

    def __init__(self, out: Path, stack: ExitStack, folder: Path):
        self.places = [
            stack.enter_context(temporary(out, folder / name)) for name in ("manifest.jsonl", "dropped.jsonl")
        ]
        self.files: list[BinaryIO] = [stack.enter_context(p.open("wb")) for p in self.places]
        self.hashes = [hashlib.sha256(), hashlib.sha256()]
        self.ids, self.sources, self.seconds = array("Q"), {}, 0.0

    def add(self, record: dict) -> None:
        drop, line = record.get("dropped"), dump(record)
        self.files[bool(drop)].write(line)
        self.hashes[bool(drop)].update(line)
        self.ids.append(number_of(record["id"]))
        row = self.sources.setdefault(record["source"], {"paths": array("Q"), "kept": Counter(), "why": {}})
        tally = row["why"].setdefault(drop["reason"], Counter()) if drop else row["kept"]
        tally.update(records=1, hours=(record.get("duration") or 0.0) / 3600)
        if not drop:
            row["paths"].append(number_of(record["path"]))

    def repeated(self) -> int | None:
        """The number of an id that stands twice."""
        ordered = np.sort(np.frombuffer(self.ids, np.uint64)) if self.ids else np.zeros(0, np.uint64)
        twice = ordered[1:][ordered[1:] == ordered[:-1]]
        return int(twice[0]) if len(twice) else None

    def summary(self) -> dict:
        """Files, records and hours kept, and why others were dropped, by source."""
        return {
            source: {
                "kept": {
                    "files": len(set(row["paths"])),
                    "records": row["kept"]["records"],
                    "hours": round(row["kept"]["hours"], 6),
                },
                "dropped": {
                    why: {"records": c["records"], "hours": round(c["hours"], 6)}
                    for why, c in sorted(row["why"].items())
                },
            }
            for source, row in sorted(self.sources.items())
        }


def number_of(text: str) -> int:
    """A 64-bit number of an id or path: eight bytes a record is what the check of millions may cost."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def join(out: Path, folders: list[Path], results: Iterable[dict], done: list[dict], source: str) -> str:
    """Write manifest, dropped list and done.json of consecutive steps from result lines `{"step",
    "record"}` in order.

    `source` is the hash of what the first step read; returns that of the last manifest.

    Raises:
        DataError: a step gave two records one id.
    """
    outputs = []
    with ExitStack() as stack:  # leaving it renames the files
        outputs += [Output(out, stack, folder) for folder in folders]
        for line in results:
            if "seconds" in line:
                for output, seconds in zip(outputs, line["seconds"], strict=True):
                    output.seconds += seconds
            else:
                outputs[line["step"]].add(line["record"])
        for output, entry in zip(outputs, done, strict=True):
            if (number := output.repeated()) is not None:
                for file in output.files:
                    file.flush()
                lines = (json.loads(x) for place in output.places for x in place.open("rb"))
                twice = next(r["id"] for r in lines if number_of(r["id"]) == number)
                raise DataError(f"step '{entry['step']}' gave the id '{twice}' twice; ids must be unique")
    for output, entry in zip(outputs, done, strict=True):
        manifest, drops = (h.hexdigest() for h in output.hashes)
        entry |= {"input": source, "manifest": manifest, "dropped": drops}
        entry |= {"seconds": round(output.seconds, 3), "sources": output.summary()}
        source = manifest
    for folder, entry in reversed(
        list(zip(folders, done, strict=True))
    ):  # the first step last: killed in between, all are joined again
        write_json(out, folder / "done.json", entry)
    return source


def part_lines(job: Job, parts: list[Part]) -> Iterator[dict]:
    for part in parts:
        with job.result(part).open("rb") as file:
            yield from map(json.loads, file)
