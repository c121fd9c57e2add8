"""The runner of data curation: a recipe names steps, each step turns records into records and writes its own manifest.

    curate(Path("in/manifest.jsonl"), "wild", Path("out"), engine="local", workers=2)

A record is a JSON dict (fields of `omnilib.data.FIELDS`; text, language, speaker, split, duration and rate may be null until a
step fills them). The input manifest is cut into parts of about `part_seconds` of audio; a worker takes a part through all the
consecutive "map" steps (audio is decoded once) and writes the part's results under a temporary name, then renames. When all
parts are there they are joined, in order, into one manifest a step. So the result does not depend on the number of workers, on
the engine or on kills, and a second run does only what is missing. A step of scope "all" gets every record as one part.

    out/00_input/ ... NN_<step>/   manifest.jsonl, dropped.jsonl, done.json (written last: hashes, counts, hours, seconds)
    out/audio/                     FLAC files the steps wrote            out/input/   links to input files still in use
    out/manifest.jsonl, dropped.jsonl, funnel.json, card.md              out/work, out/tmp   unfinished parts, half-written files

Inside a run a path starts with `input/` (below the input manifest's folder) or with `audio/` (written by a step).
On a cluster `out` and the input lie on a file system that all nodes share.

Units: seconds, hours where named so; T samples, float32 in [-1, 1], mono.
"""

import ctypes
import hashlib
import importlib
import inspect
import json
import math
import os
import pkgutil
import re
import shutil
import time
import uuid
from abc import ABC, abstractmethod
from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import asdict, dataclass, fields
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import BinaryIO, ClassVar

import numpy as np
import soundfile
import soxr
import yaml
from filelock import FileLock, Timeout
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from tqdm import tqdm

from data_prep.corpora import MAX_BAD, BadRows
from omnilib.errors import AudioError, ConfigError, DataError

RECIPES, OPS = Path(__file__).parent / "recipes", Path(__file__).parent / "steps"
INPUT = "input/"
DEFAULTS = {
    "start": 0.0,
    "duration": None,
    "rate": None,
    "text": None,
    "language": None,
    "speaker": None,
    "split": None,
}
PART_SECONDS, PART_RECORDS = 1800.0, 500  # a part ends at whichever comes first
CACHE_BYTES = 256 << 20
LIBC = ctypes.CDLL(None) if os.name == "posix" else None


# ------------------------------------------------------------------------------------------------------- audio


class Audio:
    """Sound of records, for steps: read pieces, write FLAC. `root` holds the input, `out` what the steps wrote."""

    def __init__(self, root: Path, out: Path, cache_bytes: int = CACHE_BYTES):
        self.root, self.out, self.cache_bytes = Path(root), Path(out), cache_bytes
        self.cache: OrderedDict[tuple, tuple[np.ndarray, int | None]] = OrderedDict()

    def source(self, record: dict) -> Path:
        """The file of a record: for the decode step, which reads formats that `wave` does not."""
        path = record["path"]
        if path.startswith(INPUT):
            return self.root / path.removeprefix(INPUT)
        return self.out / path if (self.out / path).exists() else self.root / path

    def wave(self, record: dict, rate: int | None = None) -> np.ndarray:
        """The record's piece, mono, at `rate` (default: the file's own): (T,), read-only, from a small cache.

        Raises:
            AudioError: the file is missing, unreadable or shorter than the record says.
        """
        key = (str(self.source(record)), record.get("start"), record.get("duration"), rate)
        if key not in self.cache:
            pieces = list(self.blocks(record, rate=rate))
            self.keep(key, np.concatenate(pieces) if pieces else np.zeros(0, np.float32))
        self.cache.move_to_end(key)
        return self.cache[key][0]

    def keep(self, key: tuple, wave: np.ndarray, written_at: int | None = None) -> None:
        """Put a wave into the cache, with its rate where this class wrote it; those not asked for longest go."""
        wave.flags.writeable = False
        self.cache[key] = wave, written_at
        while len(self.cache) > 1 and sum(w.nbytes for w, _ in self.cache.values()) > self.cache_bytes:
            self.cache.popitem(last=False)

    def blocks(self, record: dict, seconds: float = 60.0, rate: int | None = None) -> Iterator[np.ndarray]:
        """The record's piece in consecutive blocks of about `seconds`, so that an 8-hour file needs little memory."""
        stream = None
        for block, own, last in self.read(record, seconds):
            if own == (rate or own):
                yield block
            else:
                stream = stream or soxr.ResampleStream(own, rate, 1, "float32")
                yield stream.resample_chunk(block, last=last)

    def read(self, record: dict, seconds: float) -> Iterator[tuple[np.ndarray, int, bool]]:
        """(block, its rate, whether it is the last) from the cache, where the piece was just written, or from its file."""
        path = self.source(record)
        wave, own = self.cache.get(
            (str(path), record.get("start"), record.get("duration"), None), (None, None)
        )
        if own:
            size = round(seconds * own)
            yield from ((wave[i : i + size], own, i + size >= len(wave)) for i in range(0, len(wave), size))
            return
        try:
            with soundfile.SoundFile(str(path)) as file:
                first = round((record.get("start") or 0.0) * file.samplerate)
                length = record.get("duration")
                count = file.frames - first if length is None else round(length * file.samplerate)
                if first + count > file.frames + file.samplerate // 100:  # a rounding error is no damage
                    raise AudioError(f"{record['path']} ends before '{record['id']}' does: decode it again")
                file.seek(first)
                while count > 0:
                    block = file.read(
                        min(count, round(seconds * file.samplerate)), dtype="float32", always_2d=True
                    ).mean(axis=1)
                    count = count - len(block) if len(block) else 0
                    yield block, file.samplerate, count <= 0
        except soundfile.SoundFileError as error:
            reason = str(error).splitlines()[0].rsplit(": ", 1)[-1]
            raise AudioError(
                f"cannot read {record['path']} of '{record['id']}' ({reason}): give a readable audio file"
            ) from None

    def write(self, name: str, wave: np.ndarray | Iterable[np.ndarray], rate: int) -> str:
        """Write a wave (T,), or its consecutive blocks, as 16-bit FLAC (level 0: 6 % larger, read twice as fast); returns the path relative to `out`.

        Raises:
            DataError: the disk is full or not writable (nothing is left half written).
        """
        path = f"audio/{digest(name.encode())[:2]}/{file_name(name)}.flac"
        with temporary(self.out, self.out / path, ".flac") as place:
            try:
                with soundfile.SoundFile(
                    str(place), "w", rate, 1, "PCM_16", format="FLAC", compression_level=0.0
                ) as file:
                    for block in (wave,) if isinstance(wave, np.ndarray) else wave:
                        samples = np.clip(np.rint(np.asarray(block) * 32768.0), -32768, 32767).astype(
                            np.int16
                        )
                        file.write(samples)
            except soundfile.SoundFileError as error:
                raise DataError(
                    f"cannot write {path} ({str(error).splitlines()[0]}): free some space, then run again"
                ) from None
        if isinstance(wave, np.ndarray):  # as it will be read
            self.keep(
                (str(self.out / path), 0.0, len(wave) / rate, None),
                samples.astype(np.float32) / 32768.0,
                rate,
            )
        return path


def file_name(name: str) -> str:
    """A safe file name of an id: other characters become `_` and a hash keeps it unique."""
    safe = re.sub(r"[^\w\-]", "_", name, flags=re.ASCII)[:120]
    return safe if safe == name else f"{safe}-{digest(name.encode())[:12]}"


# -------------------------------------------------------------------------------------------------- files, hashes


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def temporary(out: Path, target: Path, suffix: str = "") -> Iterator[Path]:
    """A path in out/tmp that becomes `target` at the end of the block, or vanishes if the block fails."""
    place = out / "tmp" / f"{uuid.uuid4().hex}{suffix}"
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield place
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(place, target)
    finally:
        place.unlink(missing_ok=True)


def write_json(out: Path, target: Path, value: object) -> None:
    with temporary(out, target) as place:
        place.write_text(
            json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True) + "\n", encoding="utf-8"
        )


def read_json(path: Path) -> dict | None:
    """A JSON file, or None where it is absent or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def dump(record: dict) -> bytes:
    """One manifest line. Raises ValueError on NaN and on text that UTF-8 cannot hold."""
    return (json.dumps(record, ensure_ascii=False, sort_keys=True, allow_nan=False) + "\n").encode()


# -------------------------------------------------------------------------------------------------- steps, recipes


@dataclass
class Step(ABC):
    """A step of the pipeline. A subclass is a dataclass under `@register`: its fields are its parameters in the recipe.

    `run` is pure: the same records give the same result, in any company ("map") or given all of them ("all"). It returns every
    record it got: itself, changed copies, new records (`parent`, or `parts` with the ids they are made of) or with
    `dropped(record, step.name, reason)`. The runner stops a step that loses a record.
    """

    name: ClassVar[str]
    scope: ClassVar[str] = "map"  # "map": a part at a time; "all": every record at once
    modules: ClassVar[
        tuple[str, ...]
    ] = ()  # further modules whose code decides the result, e.g. ("data_prep.filters",)
    gpus: float = 0.0  # what a Ray actor of it asks for; does not change the result
    cpus: float = 1.0

    def open(self) -> None:  # noqa: B027  a step without models needs none
        """Load models; called once a worker."""

    @abstractmethod
    def run(self, records: list[dict], audio: Audio) -> list[dict]:
        """The step itself."""

    def parameters(self) -> dict:
        return {
            f.name: getattr(self, f.name) for f in fields(self) if f.init and f.name not in ("gpus", "cpus")
        }

    def code(self) -> str:
        """Hash of the source files that decide the result."""
        files = [inspect.getsourcefile(type(self))] + [
            importlib.import_module(m).__file__ for m in self.modules
        ]
        return digest("".join(file_digest(Path(f)) for f in files).encode())


STEPS: dict[str, type[Step]] = {}


def register(cls: type[Step]) -> type[Step]:
    """Make a step known to recipes under its `name`."""
    cls = cls if "__dataclass_fields__" in cls.__dict__ else dataclass(cls)
    STEPS[cls.name] = cls
    return cls


def dropped(record: dict, step: str, reason: str) -> dict:
    """The record, marked as dropped."""
    return record | {"dropped": {"step": step, "reason": reason}}


def load_recipe(recipe: str | Path) -> tuple[list[Step], float]:
    """Steps and part length of a recipe: a YAML file or the name of one in `data_prep/recipes`.

    Raises:
        ConfigError: no such recipe, not YAML, or an unknown step, parameter or key.
    """
    for module in pkgutil.iter_modules([str(OPS)]):
        importlib.import_module(f"data_prep.steps.{module.name}")
    path = next((p for p in (Path(recipe), RECIPES / f"{recipe}.yaml") if p.is_file()), None)
    if path is None:
        known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.yaml")))
        raise ConfigError(f"no recipe '{recipe}': give a YAML file or one of: {known}")
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (OmegaConfBaseException, yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(
            f"recipe {path.name} is not readable YAML: {' '.join(str(error).split())}"
        ) from None
    if not isinstance(content, dict) or not isinstance(content.get("steps"), list) or not content["steps"]:
        raise ConfigError(f"recipe {path.name}: needs a list `steps:` of at least one step")
    if unknown := set(content) - {"steps", "part_seconds"}:
        raise ConfigError(
            f"recipe {path.name}: unknown key '{sorted(unknown)[0]}'; known: steps, part_seconds"
        )
    part_seconds = content.get("part_seconds", PART_SECONDS)
    if not isinstance(part_seconds, int | float) or part_seconds <= 0:
        raise ConfigError(
            f"recipe {path.name}: part_seconds is {part_seconds}: give seconds of audio, e.g. 1800"
        )
    return [build_step(entry, path.name) for entry in content["steps"]], part_seconds


def build_step(entry: object, recipe: str) -> Step:
    """A step from its recipe entry `{name: vad, threshold: 0.5}`; types are checked against the dataclass."""
    entry = {"name": entry} if isinstance(entry, str) else entry
    if not isinstance(entry, dict) or entry.get("name") not in STEPS:
        name = entry.get("name") if isinstance(entry, dict) else entry
        raise ConfigError(f"recipe {recipe}: unknown step '{name}'; known: {', '.join(sorted(STEPS))}")
    cls = STEPS[entry["name"]]
    parameters = {k: v for k, v in entry.items() if k != "name"}
    if unknown := set(parameters) - {f.name for f in fields(cls) if f.init}:
        known = ", ".join(f.name for f in fields(cls) if f.init)
        raise ConfigError(
            f"recipe {recipe}: step '{cls.name}' has no parameter '{sorted(unknown)[0]}'; known: {known}"
        )
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), parameters))
    except OmegaConfBaseException as error:
        raise ConfigError(f"recipe {recipe}: step '{cls.name}': {str(error).splitlines()[0]}") from None


# ------------------------------------------------------------------------------------------------- parts of a job


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
    """Give freed memory back to the system: glibc keeps it in pieces, a few tens of megabytes more with every part."""
    if hasattr(LIBC, "malloc_trim"):
        LIBC.malloc_trim(0)


def portions_of(records: list[dict]) -> Iterator[list[dict]]:
    """Consecutive records, each portion ending with the one that reaches PART_SECONDS: a part that began as one file of eight hours
    has thousands of pieces later, whose waves must not be in memory together."""
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


# -------------------------------------------------------------------------------------------------- local engine

PROCESS: dict[str, object] = {}  # the job, later its worker, of a spawned process


def start_process(job: Job) -> None:
    """In a new process: remember the job, and end when the parent does, even when that was killed."""
    PROCESS.update(job=job)
    Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()


def work_in_process(part: Part) -> float:
    if "worker" not in PROCESS:  # not in the initializer: an error there would lose its message
        PROCESS["worker"] = Worker(PROCESS["job"])
    return PROCESS["worker"](part)


def local_engine(job: Job, parts: list[Part], workers: int) -> Iterator[float]:
    """Do parts in `workers` processes; yields the hours of each as it is finished."""
    if workers == 1 or len(parts) == 1:
        yield from map(Worker(job), parts)
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread a process: the processes fill the cores
    pool = ProcessPoolExecutor(min(workers, len(parts)), get_context("spawn"), start_process, (job,))
    queue, running = iter(parts), set()
    try:
        while True:
            while len(running) < 2 * workers and (part := next(queue, None)):
                running.add(pool.submit(work_in_process, part))
            if not running:
                return
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in finished)
    except BrokenProcessPool:
        raise DataError(
            "a worker process died (out of memory?): run again, perhaps with fewer --workers; finished parts are kept"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


# ------------------------------------------------------------------------------------------------ input and joining


FIELD_TYPES = {
    "text": str,
    "language": str,
    "speaker": str,
    "split": str,
    "start": float,
    "duration": float,
    "rate": float,
}


@dataclass(frozen=True)
class BadRow:
    """A line of a manifest that is no usable record: where it stands, a short reason and a line for a person."""

    number: int
    reason: str
    detail: str
    id: str = ""  # what the line says, if it says one


def wrong(record: dict) -> tuple[str, str] | None:
    """(reason, what is wrong) of a record whose fields no step could work with."""
    if missing := [
        f for f in ("id", "path", "source", "licence") if not isinstance(record.get(f), str) or not record[f]
    ]:
        return "missing_field", f"missing {', '.join(missing)}"
    for name, kind in FIELD_TYPES.items():
        value = record.get(name)
        fits = (
            isinstance(value, str)
            if kind is str
            else isinstance(value, int | float) and not isinstance(value, bool)
        )
        if value is not None and not fits:
            return "wrong_type", f"{name} is {ascii(value):.40}, not {'text' if kind is str else 'a number'}"
    start, duration = record.get("start") or 0.0, record.get("duration")
    if (
        not math.isfinite(start)
        or start < 0
        or (duration is not None and not (math.isfinite(duration) and duration > 0))
    ):
        return "bad_offset", f"{duration} s from second {start}"
    return None


def rows(manifest: Path) -> Iterator[tuple[int, dict | BadRow]]:
    """(byte offset, record or what is wrong with it) of every line of a manifest that is not empty; paths as they stand there.

    Raises:
        DataError: the file cannot be read.
    """
    root, seen, safe, offset = manifest.parent.resolve(), set(), set(), 0
    try:
        file = manifest.open("rb")
    except OSError as error:
        raise DataError(f"cannot read {manifest} ({error.strerror}): check the path and its rights") from None
    with file:
        for number, line in enumerate(file, 1):
            place, offset = offset, offset + len(line)
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                dump(record)
            except UnicodeError:
                yield place, BadRow(number, "not_utf8", "not UTF-8 text; save the manifest as UTF-8")
                continue
            except (ValueError, RecursionError) as error:
                not_a_number = "not JSON compliant" in str(
                    error
                )  # NaN and infinity, which Python reads and nobody else
                yield (
                    place,
                    BadRow(
                        number,
                        "not_a_number" if not_a_number else "not_json",
                        f"not JSON ({error}); rebuild the manifest",
                    ),
                )
                continue
            found = wrong(record) if isinstance(record, dict) else ("not_json", "not a JSON object")
            if found is None and record["id"] in seen:
                found = "repeated_id", f"id '{record['id']}' stands twice; the first is kept"
            if found is None and record["path"] not in safe:
                if "\0" in record["path"] or not (root / record["path"]).resolve().is_relative_to(root):
                    found = (
                        "outside_the_folder",
                        f"path {ascii(record['path'])} leaves the manifest's folder; not read",
                    )
                else:
                    safe.add(record["path"])
            if found:
                name = record.get("id") if isinstance(record, dict) else None
                yield place, BadRow(number, *found, name if isinstance(name, str) else "")
                continue
            seen.add(record["id"])
            record = {k: v for k, v in record.items() if k != "start" or v is not None}
            yield place, record


def check_input(manifest: Path, max_bad: float = MAX_BAD, drop: bool = False) -> Iterator[dict]:
    """Records of the input manifest, checked, defaults filled in, paths below `input/`.

    Args:
        max_bad: share of bad lines above which the manifest is refused.
        drop: give bad lines too, as dropped records.

    Raises:
        DataError: unreadable, no records, or too many bad lines.
    """
    bad = BadRows(str(manifest), max_bad)
    for _, row in rows(manifest):
        bad.rows += 1
        if isinstance(row, BadRow):
            bad.add(row.reason, f"line {row.number}: {row.detail}")
            if drop:
                name = f"{manifest.name}:{row.number}"
                empty = DEFAULTS | {"id": name, "path": name, "source": "unknown", "licence": "unknown"}
                yield empty | {"dropped": {"step": "input", "reason": row.reason, "detail": row.detail}}
        else:
            yield DEFAULTS | row | {"path": INPUT + row["path"]}
    if not bad.rows:
        raise DataError(f"{manifest} holds no records: nothing to curate")
    bad.check()
    if bad.reasons.total() == bad.rows:
        raise DataError(f"{manifest} holds no usable record ({bad}); first: {bad.first}")


class Output:
    """Manifest and dropped list of one step while they are written, and what the funnel needs to know of them."""

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
    """Write manifest, dropped list and done.json of consecutive steps from result lines `{"step", "record"}` in order.

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


# ------------------------------------------------------------------------------------------------------- the run


def is_done(folder: Path, wanted: dict) -> bool:
    """Has this step finished with the same input, parameters and code?

    Raises:
        DataError: it has, but its manifest is no longer the one it wrote.
    """
    found = read_json(folder / "done.json")
    if found is None or any(found.get(k) != v for k, v in wanted.items()):
        return False
    for name, key in (("manifest.jsonl", "manifest"), ("dropped.jsonl", "dropped")):
        if not (folder / name).is_file() or file_digest(folder / name) != found[key]:
            raise DataError(
                f"{folder / name} was changed after it was written: restore it, or delete {folder} to do the step again"
            )
    return True


def curate(
    manifest: Path,
    recipe: str | Path,
    out: Path,
    engine: str = "local",
    workers: int | None = None,
    address: str | None = None,
    max_bad: float = MAX_BAD,
) -> dict:
    """Run a recipe over a manifest, or continue a run; returns the funnel (see `funnel`).

    Lines of the manifest that are no usable record are dropped with a reason, and counted in the funnel; more than a share of
    `max_bad` stops the run before its first step.

    Raises:
        UserError: bad recipe, input, folder or disk, in one line; whatever was finished stays and is not done again.
    """
    manifest, out = Path(manifest), Path(out)
    steps, part_seconds = load_recipe(recipe)
    if engine not in ("local", "ray"):
        raise ConfigError(f"unknown engine '{engine}'; known: local, ray")
    if not 0 <= max_bad <= 1:
        raise ConfigError(f"--max-bad is {max_bad}: give a share from 0 to 1")
    if workers is not None and workers < 1:
        raise ConfigError(f"{workers} workers: give at least 1")
    if manifest.parent.resolve() == out.resolve():
        raise ConfigError(f"--out {out} is the folder of the input, which stays as it is: choose another")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with FileLock(out / ".lock", timeout=0):
            shutil.rmtree(out / "tmp", ignore_errors=True)
            final, written = out / "manifest.jsonl", read_json(out / "funnel.json")
            if written and final.is_file() and file_digest(final) != written["manifest_sha256"]:
                raise DataError(
                    f"{final} was changed after it was written: give it another name, then run again"
                )
            last = run_steps(
                manifest, steps, part_seconds, out, choose_engine(engine, workers, address), max_bad
            )
            return conclude(out, last, manifest.parent)
    except Timeout:
        raise DataError(f"another run is working in {out}: wait for it or choose another --out") from None
    except OSError as error:
        where = error.filename or out
        raise DataError(
            f"cannot read or write {where} ({error.strerror or error}): put that right and run again; nothing finished is lost"
        ) from None


def choose_engine(engine: str, workers: int | None, address: str | None):
    """A function (job, parts) -> hours of each part as it is finished."""
    if engine == "local":
        return lambda job, parts: local_engine(job, parts, workers or os.cpu_count())
    from data_prep.engine_ray import ray_engine

    return lambda job, parts: ray_engine(job, parts, workers, address)


def run_steps(
    manifest: Path, steps: list[Step], part_seconds: float, out: Path, engine, max_bad: float
) -> list[Path]:
    """Do what is not done yet; returns the folders of all steps, the input's first."""
    folders = [out / "00_input"] + [out / f"{i:02d}_{s.name}" for i, s in enumerate(steps, 1)]
    source, index = take_input(manifest, folders[0], out, max_bad), 0
    while index < len(steps):
        wanted = [{"step": s.name, "parameters": s.parameters(), "code": s.code()} for s in steps]
        if is_done(folders[index + 1], wanted[index] | {"input": source}):
            source = read_json(folders[index + 1] / "done.json")["manifest"]
            index += 1
            continue
        end = index + 1
        while steps[index].scope == "map" and end < len(steps) and steps[end].scope == "map":
            end += 1
        forget(out, folders[index + 1 :])
        key = digest(json.dumps([source, wanted[index:end], part_seconds], sort_keys=True).encode())[:16]
        job = Job(
            tuple(steps[index:end]),
            folders[index] / "manifest.jsonl",
            out / "work" / key,
            manifest.parent,
            out,
        )
        parts = cut(job.manifest, part_seconds if steps[index].scope == "map" else None)
        do_parts(job, parts, engine)
        source = join(out, folders[index + 1 : end + 1], part_lines(job, parts), wanted[index:end], source)
        shutil.rmtree(out / "work", ignore_errors=True)
        index = end
    return folders


def take_input(manifest: Path, folder: Path, out: Path, max_bad: float) -> str:
    """Check the input and copy its records to 00_input; returns the hash of the copy."""
    if not manifest.is_file():
        raise DataError(
            f"no manifest {manifest}: give a JSON-lines file, e.g. one that `python -m data_prep.corpora` wrote"
        )
    source = file_digest(manifest)
    if (found := read_json(folder / "done.json")) and found["input"] != source:
        raise DataError(f"{out} holds what was made of another manifest: choose another --out, or delete it")
    if not is_done(folder, {"step": "input", "input": source}):
        join(
            out,
            [folder],
            ({"step": 0, "record": r} for r in check_input(manifest, max_bad, drop=True)),
            [{"step": "input"}],
            source,
        )
    return read_json(folder / "done.json")["manifest"]


def forget(out: Path, folders: list[Path]) -> None:
    """Delete what the steps in `folders` and the whole run wrote before: it belongs to another input or recipe."""
    for name in ("manifest.jsonl", "dropped.jsonl", "funnel.json", "card.md"):
        (out / name).unlink(missing_ok=True)
    for folder in folders:
        for name in ("done.json", "manifest.jsonl", "dropped.jsonl"):
            (folder / name).unlink(missing_ok=True)


def do_parts(job: Job, parts: list[Part], engine) -> None:
    """Do the parts that have no result yet, with a progress bar."""
    todo = [part for part in parts if not job.result(part).exists()]
    began, hours = time.perf_counter(), 0.0
    with tqdm(
        total=len(parts),
        initial=len(parts) - len(todo),
        desc=" ".join(s.name for s in job.steps),
        unit="part",
    ) as bar:
        for got in engine(job, todo) if todo else ():
            hours += got
            bar.update()
            bar.set_postfix_str(
                f"{hours:.2f} h, {3600 * hours / (time.perf_counter() - began):.0f} audio-h/h"
            )
    if missing := sum(not job.result(part).exists() for part in todo):
        raise DataError(f"{missing} of {len(todo)} parts were not finished: run again to do them")


def conclude(out: Path, folders: list[Path], root: Path) -> dict:
    """Write the final dropped list, funnel, card and manifest.

    Raises:
        DataError: no record was kept (the lists are complete all the same).
    """
    last = folders[-1] / "manifest.jsonl"
    linked = set()
    with last.open("rb") as file:
        for line in file:
            path = json.loads(line)["path"]
            if path.startswith(INPUT) and path not in linked:
                link(root / path.removeprefix(INPUT), out / path)
                linked.add(path)
    with temporary(out, out / "dropped.jsonl") as place, place.open("wb") as target:
        for folder in folders:
            with (folder / "dropped.jsonl").open("rb") as file:
                shutil.copyfileobj(file, target)
    table = funnel(folders)
    write_json(out, out / "funnel.json", table)
    with temporary(out, out / "card.md") as place:
        place.write_text(card(table, last), encoding="utf-8")
    with temporary(out, out / "manifest.jsonl") as place:
        shutil.copyfile(last, place)
    shutil.rmtree(out / "tmp", ignore_errors=True)
    if not last.stat().st_size:
        step, reason, count = max(
            ((s["step"], w, c["records"]) for s in table["steps"] for w, c in s["dropped"].items()),
            key=lambda x: x[2],
        )
        raise DataError(
            f"no record was kept: {count} dropped by step '{step}' as {reason}; see {out / 'dropped.jsonl'}"
        )
    return table


def link(source: Path, target: Path) -> None:
    """Make an input file part of the output without copying it where the file system allows."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)


def total(tallies: Iterable[dict]) -> dict:
    counter: Counter = Counter()
    for tally in tallies:
        counter.update(tally)
    return {k: round(v, 6) for k, v in counter.items()}


def funnel(folders: list[Path]) -> dict:
    """Per step: files, records and hours kept, and records and hours dropped by reason; the same by source."""
    steps = []
    for folder in folders:
        done = read_json(folder / "done.json")
        rows = done["sources"].values()
        reasons = sorted({reason for row in rows for reason in row["dropped"]})
        steps.append(
            {
                "step": done["step"],
                "kept": {"files": 0, "records": 0, "hours": 0.0} | total(row["kept"] for row in rows),
                "dropped": {why: total(row["dropped"].get(why, {}) for row in rows) for why in reasons},
                "sources": done["sources"],
                "seconds": done["seconds"],
            }
        )
    return {"manifest_sha256": done["manifest"], "steps": steps}


def card(table: dict, manifest: Path) -> str:
    """The data card: hours by source, licence, language and split, then the funnel."""
    groups: dict[tuple, Counter] = {}
    with manifest.open("rb") as file:
        for record in map(json.loads, file):
            key = tuple(str(record.get(k) or "unknown") for k in ("source", "licence", "language", "split"))
            groups.setdefault(key, Counter()).update(records=1, hours=(record.get("duration") or 0.0) / 3600)
    lines = [
        "# Curated speech",
        "",
        f"manifest sha256 `{table['manifest_sha256']}`",
        "",
        "| source | licence | language | split | records | hours |",
        "|---|---|---|---|---|---|",
        *(f"| {' | '.join(key)} | {c['records']} | {c['hours']:.2f} |" for key, c in sorted(groups.items())),
        "",
        "## Funnel",
        "",
        "| step | files | records | hours | dropped |",
        "|---|---|---|---|---|",
    ]
    for step in table["steps"]:
        why = ", ".join(f"{reason} {tally['records']}" for reason, tally in step["dropped"].items())
        kept = step["kept"]
        lines.append(
            f"| {step['step']} | {kept['files']} | {kept['records']} | {kept['hours']:.2f} | {why} |"
        )
    return "\n".join(lines) + "\n"
