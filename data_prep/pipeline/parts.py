"""A part of the work: some records taken through consecutive steps by one worker.

A part is a byte range of a manifest. Its result is one file, written when all steps have run: the records
each step gave, in order. An engine (`engine_local.py`, `engine_ray.py`) only decides where parts are worked
on.
"""

import ctypes
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from copy import copy
from dataclasses import asdict, dataclass
from pathlib import Path

from data_prep.pipeline.audio import Audio
from data_prep.pipeline.files import dump, temporary
from data_prep.pipeline.recipe import PART_SECONDS
from data_prep.pipeline.step import Step, dropped
from omnilib.errors import AudioError, DataError

PART_RECORDS = 500  # a part ends here, or at its seconds of audio, whichever comes first
LIBC = ctypes.CDLL(None) if os.name == "posix" else None


@dataclass(frozen=True)
class Part:
    """A byte range of a manifest that holds whole lines."""

    index: int
    offset: int
    size: int


@dataclass(frozen=True)
class Job:
    """What a worker has to know: consecutive steps, the manifest they start from, where part results go."""

    steps: tuple[Step, ...]
    manifest: Path
    work: Path
    root: Path
    out: Path

    def result(self, part: Part) -> Path:
        return self.work / f"{part.index:07d}.jsonl"


def cut(manifest: Path, seconds: float | None) -> list[Part]:
    """Parts of about `seconds` of audio (None: one part)."""
    parts, start, size, length, count = [], 0, 0, 0.0, 0
    with manifest.open("rb") as file:
        for line in file:
            size, count = size + len(line), count + 1
            length += (json.loads(line).get("duration") or 0.0) if seconds else 0.0
            if seconds and (length >= seconds or count >= PART_RECORDS):
                parts.append(Part(len(parts), start, size))
                start, size, length, count = start + size, 0, 0.0, 0
    return parts + [Part(len(parts), start, size)] if size else parts


def begin(job: Job, part: Part) -> dict:
    """State of a part before its first step."""
    with job.manifest.open("rb") as file:
        file.seek(part.offset)
        records = [json.loads(line) for line in file.read(part.size).splitlines()]
    return {"part": asdict(part), "records": records, "lines": [], "seconds": []}


def advance(state: dict, step: Step, audio: Audio) -> dict:
    """State after one more step. Records pass through JSON, so fused steps see what a restart would read."""
    began, number = time.perf_counter(), len(state["seconds"])
    portions = [state["records"]] if step.scope == "all" else portions_of(state["records"])
    results = []
    for some in portions:
        results += run_step(step, some, audio)
        return_memory()
    lines = [{"step": number, "record": json.loads(dump(r))} for r in results]
    kept = [line["record"] for line in lines if "dropped" not in line["record"]]
    seconds = [*state["seconds"], time.perf_counter() - began]
    return {"part": state["part"], "records": kept, "lines": state["lines"] + lines, "seconds": seconds}


def return_memory() -> None:
    """Give freed memory back to the system: glibc keeps it in pieces, a few tens of megabytes more with
    every part."""
    if hasattr(LIBC, "malloc_trim"):
        LIBC.malloc_trim(0)


def portions_of(records: list[dict]) -> Iterator[list[dict]]:
    """Consecutive records, each portion ending with the one that reaches PART_SECONDS: a part that began as
    one file of eight hours has thousands of pieces later, whose waves must not be in memory together."""
    portion, seconds = [], 0.0
    for record in records:
        portion.append(record)
        seconds += record.get("duration") or 0.0
        if seconds >= PART_SECONDS:
            yield portion
            portion, seconds = [], 0.0
    if portion:
        yield portion


def finish(job: Job, state: dict) -> float:
    """Write the result of a part, complete or not at all. Returns the hours of audio that went in."""
    hours = sum(line["record"].get("duration") or 0.0 for line in state["lines"] if line["step"] == 0) / 3600
    with temporary(job.out, job.result(Part(**state["part"]))) as place, place.open("wb") as file:
        file.writelines(dump(line) for line in state["lines"])
        file.write(dump({"seconds": state["seconds"]}))
    return hours


def run_step(step: Step, records: list[dict], audio: Audio) -> list[dict]:
    """The step's records; one that cannot be read is dropped, one that gets lost is an error."""
    try:
        results = step.run(records, audio)
    except AudioError:
        if step.scope == "all":
            raise
        if len(records) == 1:
            return [dropped(records[0], step.name, "unreadable_audio")]
        return [result for record in records for result in run_step(step, [record], audio)]
    covered = {r["id"] for r in results} | {r.get("parent") for r in results}
    covered |= {p["id"] if isinstance(p, dict) else p for r in results for p in r.get("parts") or ()}
    lost = [r["id"] for r in records if r["id"] not in covered]
    if lost:
        raise DataError(
            f"step '{step.name}' lost {len(lost)} of {len(records)} records, first '{lost[0]}': it must mark them as dropped"
        )
    return results


def open_steps(steps: Iterable[Step]) -> list[Step]:
    """Copies of steps, with their models loaded."""
    opened = [copy(step) for step in steps]
    for step in opened:
        step.open()
    return opened


class Worker:
    """Holds the opened steps of a job in one process."""

    def __init__(self, job: Job):
        self.job, self.audio, self.steps = job, Audio(job.root, job.out), open_steps(job.steps)

    def __call__(self, part: Part) -> float:
        state = begin(self.job, part)
        for step in self.steps:
            state = advance(state, step, self.audio)
        return finish(self.job, state)


Engine = Callable[
    [Job, list[Part]], Iterator[float]
]  # does parts; yields the hours of audio of each as it is finished
