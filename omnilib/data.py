"""Manifest -> batches. A batch depends only on (seed, step), so resuming needs no data state.

Shapes: B batch, T samples.
"""

import hashlib
import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch

from omnilib.errors import DataError

FIELDS = (
    "id",
    "path",
    "start",
    "duration",
    "rate",
    "text",
    "language",
    "speaker",
    "source",
    "licence",
    "split",
)


def read_manifest(path: Path) -> list[dict]:
    """Read and check a JSONL manifest.

    Raises:
        DataError: missing file, bad JSON, missing field, repeated id, or a path that leaves the manifest's folder.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"no manifest {path}: build it with `omni data build-nano`")
    root = path.parent.resolve()
    records, seen, safe = [], set(), set()
    for number, line in enumerate(path.read_text(encoding="utf-8").removesuffix("\n").split("\n"), 1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{number}: not JSON ({error.msg}); rebuild the manifest") from None
        if not isinstance(record, dict):
            raise DataError(f"{path}:{number}: not a record; rebuild the manifest")
        missing = [f for f in FIELDS if f not in record]
        if missing:
            raise DataError(f"{path}:{number}: missing {', '.join(missing)}; rebuild the manifest")
        if record["id"] in seen:
            raise DataError(f"{path}:{number}: id '{record['id']}' stands twice; ids must be unique")
        seen.add(record["id"])
        if record["path"] not in safe:
            if not (root / record["path"]).resolve().is_relative_to(root):
                raise DataError(
                    f"{path}:{number}: path '{record['path']}' leaves the corpus folder; not read"
                )
            safe.add(record["path"])
        records.append(record)
    return records


def write_manifest(path: Path, records: list[dict]) -> str:
    """Write JSONL under a temporary name, rename, return the sha256 of the content."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(r, ensure_ascii=False, sort_keys=True) + "\n" for r in records)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
    return hashlib.sha256(text.encode()).hexdigest()


def sha256(path: Path) -> str:
    """Hash of a file's bytes."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@lru_cache(maxsize=512)
def open_shard(path: str) -> np.ndarray:
    """Memory-map the samples of a 16-bit PCM WAV shard (44-byte header, mono, as `data_prep` writes them)."""
    return np.memmap(path, dtype="<i2", mode="r", offset=44)


class FlacShard:
    """Samples of a mono 16-bit FLAC shard, read piece by piece: `shard[first:last]` is int16 (T,)."""

    def __init__(self, path: Path):
        self.path, self.frames = path, soundfile.info(path).frames

    def __len__(self) -> int:
        return self.frames

    def __getitem__(self, part: slice) -> np.ndarray:
        first, last, _ = part.indices(self.frames)
        return soundfile.read(self.path, max(0, last - first), first, dtype="int16")[0]


def load_segment(record: dict, root: Path, start: float = 0.0, duration: float | None = None) -> torch.Tensor:
    """Samples of one record, or of a part of it, as float32 in [-1, 1] at the record's own rate: (T,).

    A record may be a copy of its file resampled by `speed`, which also shifts pitch: its `start` and
    `recorded` seconds are the file's, its `duration` is its own and may end in silence.

    Raises:
        DataError: the shard is missing, or ends before the record does.
    """
    rate, speed = record["rate"], record.get("speed", 1.0)
    path = Path(root) / record["path"]
    try:
        shard = FlacShard(path) if path.suffix == ".flac" else open_shard(str(path))
    except (OSError, ValueError, soundfile.SoundFileError) as error:
        raise DataError(
            f"cannot read {record['path']} of '{record['id']}': {error}; rebuild the corpus"
        ) from None
    wanted = round((record["duration"] - start if duration is None else duration) * rate)
    first, count = round((record["start"] + start * speed) * rate), round(wanted * speed)
    if speed != 1.0:
        count = max(0, min(count, round((record["recorded"] - start * speed) * rate)))
    if first + count > len(shard) + rate // 100:  # a rounding error is no damage
        raise DataError(f"{record['path']} ends before '{record['id']}' does: rebuild the corpus")
    wave = shard[first : first + count].astype(np.float32) / 32768.0
    if speed != 1.0:
        wave = soxr.resample(wave, rate * speed, rate)[:wanted]
        wave = np.pad(wave, (0, wanted - len(wave)))
    return torch.from_numpy(wave)


def step_rng(seed: int, step: int) -> np.random.Generator:
    """The generator of one training step."""
    return np.random.default_rng([seed, step])


class Segments:
    """Random training batches of whole utterances or fixed-length crops.

    Args:
        records: manifest records (already filtered).
        root: folder of the manifest.
        seconds: crop length; None gives whole utterances drawn from one length bucket.
        batch_seconds: audio a batch holds.
    """

    def __init__(
        self,
        records: list[dict],
        root: Path,
        batch_seconds: float,
        seconds: float | None = None,
        seed: int = 0,
    ):
        keep = [r for r in records if seconds is None or r["duration"] >= seconds]
        if not keep:
            raise DataError(
                f"no recordings of at least {seconds} s in {root}: build more data or shorten the crops"
            )
        self.records = sorted(keep, key=lambda r: (r["duration"], r["id"]))
        self.durations = np.array([r["duration"] for r in self.records])
        self.root, self.batch_seconds, self.seconds, self.seed = Path(root), batch_seconds, seconds, seed

    def records_at(self, step: int) -> list[dict]:
        """The records of a step: neighbours in length, so padding stays small."""
        rng = step_rng(self.seed, step)
        if self.seconds is not None:
            count = max(1, round(self.batch_seconds / self.seconds))
            return [self.records[i] for i in rng.integers(len(self.records), size=count)]
        middle = self.records[int(rng.integers(len(self.records)))]["duration"]
        count = max(1, min(len(self.records), round(self.batch_seconds / middle)))
        low = int(np.searchsorted(self.durations, middle * 0.92))
        high = max(low + 1, int(np.searchsorted(self.durations, middle * 1.08)))
        return [self.records[i] for i in rng.integers(low, high, size=count)]

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor, list[dict]]:
        """Waves (B, T) padded with zeros at the records' rate, lengths (B,), records."""
        records = self.records_at(step)
        rng = step_rng(self.seed + 1, step)
        waves = []
        for record in records:
            start = 0.0 if self.seconds is None else float(rng.uniform(0, record["duration"] - self.seconds))
            waves.append(load_segment(record, self.root, start, self.seconds))
        lengths = torch.tensor([len(w) for w in waves])
        return torch.nn.utils.rnn.pad_sequence(waves, batch_first=True), lengths, records


def bucket_batches(lengths: list[int], budget: int, seed: int, epoch: int) -> list[list[int]]:
    """Indices grouped by similar length so that rows x longest <= budget; order shuffled by (seed, epoch).

    Longer samples come in smaller batches, as in the paper (section 3.3).
    """
    rng = np.random.default_rng([seed, epoch])
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i] + rng.uniform(0, 4), i))
    batches: list[list[int]] = []
    current: list[int] = []
    longest = 0  # the jitter of `order` may put a longer sample before a shorter one
    for index in order:
        longest = max(longest, lengths[index])
        if current and (len(current) + 1) * longest > budget:
            batches.append(current)
            current, longest = [], lengths[index]
        current.append(index)
    if current:
        batches.append(current)
    rng.shuffle(batches)
    return batches


def padding_waste(batches: list[list[int]], lengths: list[int]) -> float:
    """Share of padded cells in all batches."""
    cells = sum(len(b) * max(lengths[i] for i in b) for b in batches)
    return 1.0 - sum(lengths[i] for b in batches for i in b) / cells
