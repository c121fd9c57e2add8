"""Sound of records: what steps read and write.

Units: seconds; T samples, float32 in [-1, 1], mono.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr

from data_prep.pipeline.files import digest, file_name, temporary
from omnilib.errors import AudioError, DataError

INPUT = "input/"  # paths of records begin with it while they are those of the input manifest
CACHE_BYTES = 256 << 20


class Audio:
    """Sound of records, for steps: read pieces, write FLAC.

    `root` holds the input, `out` what the steps wrote.
    """

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
        """Put a wave into the cache, with its rate where this class wrote it; those not asked for longest
        go."""
        wave.flags.writeable = False
        self.cache[key] = wave, written_at
        while len(self.cache) > 1 and sum(w.nbytes for w, _ in self.cache.values()) > self.cache_bytes:
            self.cache.popitem(last=False)

    def blocks(self, record: dict, seconds: float = 60.0, rate: int | None = None) -> Iterator[np.ndarray]:
        """The record's piece in consecutive blocks of about `seconds`, so that an 8-hour file needs little
        memory."""
        stream = None
        for block, own, last in self.read(record, seconds):
            if own == (rate or own):
                yield block
            else:
                stream = stream or soxr.ResampleStream(own, rate, 1, "float32")
                yield stream.resample_chunk(block, last=last)

    def read(self, record: dict, seconds: float) -> Iterator[tuple[np.ndarray, int, bool]]:
        """(block, its rate, whether it is the last) from the cache, where the piece was just written, or
        from its file."""
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
        """Write a wave (T,), or its consecutive blocks, as 16-bit FLAC (level 0: 6 % larger, read twice as
        fast); returns the path relative to `out`.

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
