"""Read any audio file, write 24 kHz mono FLAC; what cannot be read whole is dropped with the reason.

wav, flac, ogg, opus and mp3 go through libsndfile, everything else (m4a, webm, ...) through FFmpeg (PyAV). Both are read in
blocks, so an 8-hour file needs little memory: it is written in pieces of `piece_seconds`, cut at the quietest moment of a
piece's last 10 s. A recording with a transcript is never cut.

Adds `recording` (the id before any cut), `offset` (seconds, of a piece) and `peak`.
Reasons: missing_file, empty_file, unreadable, damaged (in the middle), truncated, wrong_rate, wrong_units, not_finite, silent,
too_long (a transcript but more than one piece).

Shapes: T samples, float32, mono.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import soxr

from data_prep.pipeline import Audio, Step, dropped, register
from data_prep.steps.levels import frame_levels
from omnilib import recording
from omnilib.errors import MissingTool

SEARCH_SECONDS = 10.0  # a cut is looked for in so much of the end of a piece
SILENT = 1e-4  # peak of a recording that holds nothing
TOLERANCE = 0.25  # seconds a file may be shorter than it says (encoder delay, rounded durations)
SNDFILE = {".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff", ".au"}


class Unusable(Exception):
    """Why a file is not used: a short reason in snake case."""


def sndfile_blocks(path: Path, start: float, duration: float | None) -> Iterator[tuple[np.ndarray, int]]:
    """(mono block (T,), rate) through libsndfile."""
    try:
        yield from recording.blocks(path, start=start, duration=duration)
    except recording.BadRecording as error:
        raise Unusable("unreadable" if error.reason == "no_samples" else error.reason) from None


def ffmpeg_blocks(path: Path, start: float, duration: float | None) -> Iterator[tuple[np.ndarray, int]]:
    """(mono block (T,), rate) through FFmpeg, from the beginning of the file: seeking in these formats is not exact."""
    try:
        import av
    except ImportError:
        raise MissingTool("reading this format needs PyAV: pip install av") from None
    try:
        with av.open(str(path)) as file:
            if not file.streams.audio:
                raise Unusable("unreadable")
            rate, read = file.streams.audio[0].rate, 0
            first, last = round(start * rate), None if duration is None else round((start + duration) * rate)
            stated = (file.duration or 0) / 1e6 * rate
            to_mono = av.AudioResampler(format="flt", layout="mono")
            frames = (mono for frame in file.decode(audio=0) for mono in to_mono.resample(frame))
            for frame in frames:
                block = frame.to_ndarray().reshape(-1)
                begin, end = max(0, first - read), len(block) if last is None else last - read
                read += len(block)
                if begin < min(end, len(block)):
                    yield block[begin:end], rate
                if last is not None and read >= last:
                    return
            if read < stated - TOLERANCE * rate:
                raise Unusable("truncated")
    except (av.error.FFmpegError, ValueError):
        raise Unusable("unreadable") from None


def read_blocks(path: Path, start: float, duration: float | None) -> Iterator[tuple[np.ndarray, int]]:
    """Checked blocks of a file or of a part of it.

    Raises:
        Unusable: with the reason, perhaps only after some blocks.
    """
    if not path.is_file():
        raise Unusable("missing_file")
    if path.stat().st_size == 0:
        raise Unusable("empty_file")
    read = 0.0
    for block, rate in (sndfile_blocks if path.suffix.lower() in SNDFILE else ffmpeg_blocks)(
        path, start, duration
    ):
        if not np.isfinite(block).all():
            raise Unusable("not_finite")
        read += len(block) / rate
        yield block, rate
    if read == 0.0:
        raise Unusable("unreadable")
    if duration is not None and read < duration - TOLERANCE:
        raise Unusable("truncated")


def resampled(blocks: Iterator[tuple[np.ndarray, int]], rate: int) -> Iterator[np.ndarray]:
    """The blocks at `rate`."""
    stream = None
    for block, own in blocks:
        if own == rate:
            yield block
            continue
        stream = stream or soxr.ResampleStream(own, rate, 1, "float32")
        yield stream.resample_chunk(block)
    if stream is not None:
        yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


def quietest(wave: np.ndarray, rate: int) -> int:
    """Sample in the middle of the quietest 0.2 s: where a cut hurts least."""
    hop = rate // 50
    power = 10 ** (frame_levels(wave, hop) / 10)
    smooth = np.convolve(power, np.ones(10), "valid")
    return (int(smooth.argmin()) + 5) * hop


def pieces(blocks: Iterator[np.ndarray], rate: int, seconds: float) -> Iterator[np.ndarray]:
    """Waves of at most `seconds`, cut where it is quiet."""
    kept, size, search = [], 0, round(min(SEARCH_SECONDS, seconds / 2) * rate)
    for block in blocks:
        kept, size = [*kept, block], size + len(block)
        while size > seconds * rate:
            wave = np.concatenate(kept)
            end = round(seconds * rate)
            end -= search - quietest(wave[end - search : end], rate)
            yield wave[:end]
            kept, size = [wave[end:]], size - end
    if size:
        yield np.concatenate(kept)


@register
@dataclass
class Decode(Step):
    """Any format -> 24 kHz mono FLAC."""

    name: ClassVar[str] = "decode"
    modules: ClassVar[tuple[str, ...]] = ("data_prep.steps.levels", "omnilib.recording")
    rate: int = 24_000
    piece_seconds: float = 600.0

    def run(self, records: list[dict], audio: Audio) -> list[dict]:
        return [result for record in records for result in self.decode(record, audio)]

    def decode(self, record: dict, audio: Audio) -> list[dict]:
        found = []
        try:
            blocks = read_blocks(audio.source(record), record.get("start") or 0.0, record.get("duration"))
            for wave in pieces(resampled(blocks, self.rate), self.rate, self.piece_seconds):
                found.append(self.write(record, wave, len(found), sum(r["duration"] for r in found), audio))
        except Unusable as error:
            return [dropped(record, self.name, str(error))]
        if max(r["peak"] for r in found) < SILENT:
            return [dropped(record, self.name, "silent")]
        if len(found) == 1:
            return [found[0] | {"id": record["id"]}]
        if record.get("text"):
            return [dropped(record, self.name, "too_long")]
        return [r | {"parent": record["id"]} for r in found]

    def write(self, record: dict, wave: np.ndarray, number: int, offset: float, audio: Audio) -> dict:
        name = f"{record['id']}-p{number:03d}"
        return record | {
            "id": name,
            "recording": record["id"],
            "offset": round(offset, 3),
            "path": audio.write(name, wave, self.rate),
            "start": 0.0,
            "duration": len(wave) / self.rate,
            "rate": self.rate,
            "peak": round(float(np.abs(wave).max()), 4),
        }
