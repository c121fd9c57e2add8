"""Training shards: Parquet files of speech by length, and the loader that streams batches from them.

    for waves, lengths, records in Shards(folder, "train", batch_seconds=120).batches(epoch=0): ...

`data_prep/shards.py` writes them; its docstring shows the folder. A shard holds records of nearly one
length, so a batch of it pads little (paper section 3.3). Memory is that of one shard.

Shapes: B batch, T samples. Units: seconds.
"""

import io
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import soundfile

from omnilib.data import FIELDS, bucket_batches, padding_waste
from omnilib.errors import DataError

PIECE = 25  # lengths are counted in 1/25 s, the length of a speech token
AUDIO_TYPE = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
SCHEMA = pyarrow.schema(
    [
        ("id", pyarrow.string()),
        ("audio", AUDIO_TYPE),
        ("duration", pyarrow.float64()),
        ("rate", pyarrow.int64()),
    ]
    + [(name, pyarrow.string()) for name in FIELDS if name not in ("id", "path", "start", "duration", "rate")]
    + [("more", pyarrow.string())]
)


def read_index(folder: Path) -> dict | None:
    """index.json of a folder of shards; None where it is absent or damaged, as in a folder that is being
    written."""
    try:
        return json.loads((folder / "index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


class Shards:
    """Batches of an epoch, streamed shard by shard.

    Args:
        batch_seconds: audio a batch holds, padding included.
        rank, world: this process and how many share the epoch.

    Raises:
        DataError: no index, or no shard of that split.
    """

    def __init__(
        self,
        folder: Path,
        split: str = "train",
        batch_seconds: float = 120.0,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ):
        self.folder, self.batch_seconds, self.seed, self.rank, self.world = (
            Path(folder),
            batch_seconds,
            seed,
            rank,
            world,
        )
        index = read_index(self.folder)
        self.shards = [s for s in index["shards"] if s["split"] == split] if index else []
        if not self.shards:
            raise DataError(
                f"no shards of split '{split}' in {folder}: write them with `python -m data_prep.shards`"
            )

    def plan(self, shard: dict, epoch: int) -> tuple[list[list[int]], list[int]]:
        """Batches (row numbers) of one shard, and all its lengths in 1/25 s; reads no audio."""
        durations = parquet.read_table(self.folder / shard["path"], columns=["duration"])[
            "duration"
        ].to_pylist()
        lengths = [math.ceil(d * PIECE) for d in durations]
        return bucket_batches(lengths, round(self.batch_seconds * PIECE), self.seed, epoch), lengths

    def records(self, numbers: Iterable[int]) -> list[dict]:
        """Fields of the records of some shards, without their sound."""
        columns = [name for name in SCHEMA.names if name != "audio"]
        rows = [
            row
            for n in numbers
            for row in parquet.read_table(self.folder / self.shards[n]["path"], columns=columns).to_pylist()
        ]
        return [fields_of(row) for row in rows]

    def batches(self, epoch: int = 0, skip: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray, list[dict]]]:
        """Waves (B, T) float32 padded with zeros, lengths (B,), records.

        `skip`: batches that a resumed run has had.
        """
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.shards))[
            self.rank :: self.world
        ]
        for number in order:
            shard = self.shards[number]
            batches, _ = self.plan(shard, epoch)
            if skip >= len(batches):
                skip -= len(batches)
                continue
            rows = parquet.read_table(self.folder / shard["path"]).to_pylist()
            for batch in batches[skip:]:
                yield collate([rows[i] for i in batch])
            skip = 0

    def padding_waste(self, epoch: int = 0) -> float:
        """Share of padded samples in an epoch's batches."""
        batches, lengths = [], []
        for shard in self.shards:
            own, its = self.plan(shard, epoch)
            batches += [[len(lengths) + i for i in batch] for batch in own]
            lengths += its
        return padding_waste(batches, lengths)


def collate(rows: list[dict]) -> tuple[np.ndarray, np.ndarray, list[dict]]:
    """Decode and pad."""
    waves = [soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="float32")[0] for row in rows]
    lengths = np.array([len(wave) for wave in waves])
    padded = np.zeros((len(waves), lengths.max()), np.float32)
    for line, wave in zip(padded, waves, strict=True):
        line[: len(wave)] = wave
    return padded, lengths, [fields_of(row) for row in rows]


def fields_of(row: dict) -> dict:
    """A record again, without its sound."""
    return {k: v for k, v in row.items() if k not in ("audio", "more")} | json.loads(row["more"])
