"""Audio files as people have them: opened, measured before they are decoded, and checked while they are read.

    for block, rate in blocks("a.wav", longest=30.0): ...      # mono blocks (n,), never the whole file at once
    samples, rate = read("a.wav", longest=30.0)                # all of it, (T,)

What a header says is never trusted with memory: a length above `longest` is refused before anything is decoded, and no more than that
is read. A file that is shorter than its header promises is reported, since its text would no longer be that of its sound. The
exception is a WAV that was written to a pipe, whose header holds 0 or nearly 2^31 or 2^32 bytes: it is read to the end of the file.

Shapes: T samples in all, n samples of a block, C channels; float32 in [-1, 1].
"""

import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from io import SEEK_CUR, SEEK_END, BufferedReader
from pathlib import Path

import numpy as np
import soundfile

from omnilib.errors import AudioError

RATES = (2_000, 768_000)  # Hz: outside, the header is wrong
BLOCK_SECONDS = 30.0
BLOCK_VALUES = 1 << 23  # samples of all channels in one block, however many channels and whatever rate
TOLERANCE = 0.25  # seconds a compressed file or a part may be shorter than stated (delay of encoders, rounded durations)
PIPED = 0x7FFF0000  # bytes: a WAV whose header says at least so much was written to a pipe
UNKNOWN_FRAMES = 1 << 48  # libsndfile's word for a length that is not in the header
CANCELLED = 0.03  # power of the channels' mean over the mean of their powers: equal channels have 1, one of sixteen 0.06
UNITS = (2.0**15, 2.0**23, 2.0**31)  # full scale of float files that hold integers
LEAST_UNIT = 8.0  # no float file goes 18 dB over full scale by loudness


class BadRecording(AudioError):
    """A file that cannot be used: one line for a person, and `reason`, a short word for a list."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


class PipedWave:
    """A binary file whose size fields at `places` read as "unknown": libsndfile then reads to the end of the file."""

    def __init__(self, file: BufferedReader, places: tuple[int, ...]):
        self.file, self.places = file, places

    def read(self, size: int = -1) -> bytes:
        start = self.file.tell()
        data = bytearray(self.file.read(size))
        for place in self.places:
            for offset in range(place, place + 4):
                if 0 <= offset - start < len(data):
                    data[offset - start] = 0xFF
        return bytes(data)

    def readinto(self, buffer: memoryview) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()


def unclosed(file: BufferedReader) -> tuple[int, ...]:
    """Where the data size of a WAV stands, if it says 0 although samples follow; () for every other file."""
    head = file.read(12)
    place, size = 12, file.seek(0, SEEK_END)
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        while place + 8 < size:
            file.seek(place)
            name, length = struct.unpack("<4sI", file.read(8))
            if name == b"data":
                follows = file.read(4)
                file.seek(-len(follows), SEEK_CUR)
                another = len(follows) == 4 and all(
                    32 <= byte < 127 for byte in follows
                )  # the name of a further chunk
                return (place + 4,) if length == 0 and not another else ()
            place += 8 + length + length % 2
    return ()


@contextmanager
def opened(path: str | Path) -> Iterator[soundfile.SoundFile]:
    """The file, open for reading; damage met anywhere in the block becomes one line.

    Raises:
        BadRecording: missing, empty, not audio, a rate no recording has, or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise BadRecording("missing_file", f"no audio file {path}: check the path")
    readable = False
    try:
        with path.open("rb") as raw:
            places = unclosed(raw)
            raw.seek(0)
            with soundfile.SoundFile(PipedWave(raw, places) if places else str(path)) as file:
                readable = True
                if not RATES[0] <= file.samplerate <= RATES[1]:
                    raise BadRecording(
                        "wrong_rate",
                        f"{path} says it has {file.samplerate:,} samples a second, no rate of a recording: export it again",
                    )
                yield file
    except OSError as error:
        raise BadRecording(
            "unreadable", f"cannot read {path} ({error.strerror}): change its permissions"
        ) from None
    except (soundfile.SoundFileError, RuntimeError, TypeError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0].rsplit(": ", 1)[-1]
        if readable:
            raise BadRecording(
                "damaged", f"{path} is damaged or cut short ({said}): copy or record it again"
            ) from None
        reason = "unreadable" if path.stat().st_size else "empty_file"
        raise BadRecording(
            reason, f"{path} is not readable as audio ({said}): give a wav, flac, ogg or mp3 file"
        ) from None


def missing_seconds(file: soundfile.SoundFile) -> float:
    """How much shorter the file is than its header promises, where the decoder only says so in its log: seconds.

    libsndfile reads a WAV, AIFF, AU or W64 that ends early as if its header said so. In an Ogg file the last page is marked; without
    the mark an unknown time is missing: infinity.
    """
    log = file.extra_info
    if re.search(r"Ogg ?: (Last page lacks an end-of-stream bit|Junk after the last page)", log):
        return float("inf")
    found = re.search(
        rf"(?:data|SSND|Data Size|{'riff' if file.format == 'W64' else 'data'})\s*: (\d+) \(should be (\d+)\)",
        log,
    )
    promised, held = (int(number) for number in found.groups()) if found else (0, 0)
    if promised <= held or (promised >= PIPED and file.format in ("WAV", "WAVEX")):
        return 0.0
    return file.frames / file.samplerate * (promised - held) / held if held else float("inf")


def length_is_written(path: Path, file: soundfile.SoundFile) -> bool:
    """Whether the length is in the header; that of an MP3 without one is a guess from its bit rate."""
    if file.format not in ("MP3", "MPEG"):
        return True
    with path.open("rb") as raw:
        head = raw.read(1 << 18)  # pictures may come first
    return any(mark in head for mark in (b"Xing", b"Info", b"VBRI"))


def to_mono(block: np.ndarray) -> np.ndarray:
    """The mean of the channels (T, C), or one of them where they cancel each other, as a pair with one side inverted: (T,)."""
    mono = block.mean(axis=1)
    if block.shape[1] > 1:
        powers = np.square(block, dtype=np.float64).mean(axis=0)  # (C,)
        if np.square(mono, dtype=np.float64).mean() < CANCELLED * powers.mean():
            return np.ascontiguousarray(block[:, int((powers > powers.max() / 2).argmax())])
    return mono


def full_scale(file: soundfile.SoundFile) -> float:
    """The number that means full scale: 1, or a power of two in a float file that holds integers. Reads such a file once more.

    Raises:
        BadRecording: larger numbers than any integer format has.
    """
    if file.subtype not in ("FLOAT", "DOUBLE"):
        return 1.0
    frames = max(1, BLOCK_VALUES // file.channels)
    peak = 0.0
    while len(block := file.read(frames, dtype="float32", always_2d=True)):
        with np.errstate(invalid="ignore"):
            top = float(np.abs(block).max())
        if not np.isfinite(top):  # whoever reads it will say so
            peak = 0.0
            break
        peak = max(peak, top)
    file.seek(0)
    if peak <= LEAST_UNIT:
        return 1.0
    if peak > UNITS[-1]:
        raise BadRecording(
            "wrong_units", f"{file.name} holds samples up to {peak:.3g}: export it again, as 16-bit wav"
        )
    return next(unit for unit in UNITS if peak <= unit)


def blocks(
    path: str | Path, longest: float = float("inf"), start: float = 0.0, duration: float | None = None
) -> Iterator[tuple[np.ndarray, int]]:
    """Consecutive mono blocks (n,) with their rate: of a file, or of `duration` seconds of it from `start` on.

    Raises:
        BadRecording: as `opened`, or no samples, longer than `longest` seconds, cut short, NaN, or ends before the part does; perhaps
            only after some blocks.
    """
    path = Path(path)
    with opened(path) as file:
        rate, claimed = file.samplerate, file.frames
        if claimed >= UNKNOWN_FRAMES:  # which soundfile cannot read in blocks
            raise BadRecording(
                "unknown_length", f"{path} does not say how long it is: convert it to wav, e.g. with ffmpeg"
            )
        if duration is None and claimed / rate - start > longest:
            raise BadRecording(
                "too_long", f"{path} lasts {claimed / rate:.0f} s: cut out at most {longest:.0f} s"
            )
        if duration is None and (missing := missing_seconds(file)) > 0.02:
            raise BadRecording("truncated", cut_short(path, missing))
        scale = full_scale(file)
        first = round(start * rate)
        if first and first >= claimed:
            raise BadRecording("truncated", f"{path} ends before second {start:g}: correct the start")
        file.seek(first)
        wanted = claimed - first if duration is None else round(duration * rate)
        size, read = max(1, min(round(BLOCK_SECONDS * rate), BLOCK_VALUES // file.channels)), 0
        while read < wanted and len(
            block := file.read(min(size, wanted - read), dtype="float32", always_2d=True)
        ):
            if not np.isfinite(block).all():
                raise BadRecording(
                    "not_finite", f"{path} holds NaN or infinite samples: export it again as 16-bit wav"
                )
            read += len(block)
            yield to_mono(block) if scale == 1.0 else to_mono(block / np.float32(scale)), rate
        missing = (wanted - read) / rate
        if missing > TOLERANCE and (duration is not None or length_is_written(path, file)):
            raise BadRecording("truncated", cut_short(path, missing))
        if not read:
            raise BadRecording("no_samples", f"{path} holds no sound: record it again")


def cut_short(path: Path, missing: float) -> str:
    end = "its end is missing" if missing == float("inf") else f"{missing:.2f} s are missing at its end"
    return f"{path} is cut short, {end}: copy or record it again (its text would not be that of its sound)"


def read(path: str | Path, longest: float) -> tuple[np.ndarray, int]:
    """All samples of a file of at most `longest` seconds, mono: (T,), and their rate.

    Raises:
        BadRecording: it cannot be used, in one line; see `blocks`.
    """
    found = list(blocks(path, longest))
    return np.concatenate([block for block, _ in found]), found[0][1]
