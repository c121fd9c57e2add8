"""How loud, how clipped, how far above its own noise: arithmetic on waves, and the step that brings pieces to one loudness.

`loudness` measures ITU-R BS.1770 (pyloudnorm), writes the piece at `target` LUFS (less where its peak would pass `peak`) and
points the record to the new file, without its constant offset. Put it after the filters: only what is kept is written a second time.

Shapes: T samples, float32, mono; N frames.
"""

import warnings
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from data_prep.pipeline import Audio, Step, dropped, register
from omnilib.errors import MissingTool

FLOOR_DB = -90.0  # quieter counts as this: digital silence has no level


def frames_of(wave: np.ndarray, hop: int) -> np.ndarray:
    """Consecutive frames: (T,) -> (N, hop), N = T // hop; a wave shorter than one is a frame by itself."""
    return wave[: len(wave) // hop * hop].reshape(-1, hop) if len(wave) >= hop else wave[None]


def frame_levels(wave: np.ndarray, hop: int) -> np.ndarray:
    """Level of consecutive frames of `hop` samples in dB of full scale: (T,) -> (N,)."""
    return np.maximum(FLOOR_DB, 10 * np.log10(np.mean(np.square(frames_of(wave, hop)), axis=1) + 1e-12))


def snr(wave: np.ndarray, rate: int) -> float:
    """Signal to noise in dB, by order statistics: power of the loudest half over that of the quietest 5 % of 20 ms frames.

    Speech pauses often, noise does not. Between words the quietest frames are the noise.
    """
    levels = np.sort(frame_levels(wave, rate // 50))
    power = 10 ** (levels / 10)
    noise = power[: max(1, len(power) // 20)].mean()
    signal = power[len(power) // 2 :].mean()
    return float(10 * np.log10(max(signal - noise, 1e-12) / noise))


def lowest_snr(wave: np.ndarray, rate: int, seconds: float = 4.0) -> float:
    """The worst `snr` of windows of `seconds` that overlap by half: noise in one part of a long piece, whose quiet parts hide it."""
    size = round(seconds * rate)
    if 2 * len(wave) <= 3 * size:
        return snr(wave, rate)
    starts = np.linspace(0, len(wave) - size, max(2, -(-2 * len(wave) // size) - 1)).astype(int)
    return min(snr(wave[s : s + size], rate) for s in starts)


def crest(wave: np.ndarray, rate: int) -> float:
    """How far the peaks (99.5th percentile) of the louder half of the frames stand above their 90th percentile, in dB.

    Clean speech has 3.7-8 dB; a wave clipped 10 dB under its peak has 0-2.7 dB, also after resampling or a lossy codec, which turn
    flat tops into ripples and so hide them from a search for equal samples.
    """
    frames = frames_of(wave, rate // 50)
    power = np.mean(np.square(frames), axis=1)
    body, peak = np.percentile(np.abs(frames[power >= np.median(power)]), [90, 99.5])
    return float(20 * np.log10(max(peak, 1e-9) / max(body, 1e-9)))


@register
@dataclass
class Loudness(Step):
    """One loudness for every piece."""

    name: ClassVar[str] = "loudness"
    target: float = -23.0  # LUFS
    peak: float = 0.97

    def open(self) -> None:
        try:
            import pyloudnorm
        except ImportError:
            raise MissingTool("pyloudnorm is not installed: pip install pyloudnorm") from None
        self.meter = pyloudnorm.Meter

    def run(self, records: list[dict], audio: Audio) -> list[dict]:
        return [self.level(record, audio) for record in records]

    def level(self, record: dict, audio: Audio) -> dict:
        wave, rate = audio.wave(record), record["rate"]
        wave = wave - wave.mean(dtype=np.float64).astype(np.float32)  # a constant offset is no sound
        if len(wave) < 0.4 * rate:  # one gating block of the standard
            return dropped(record, self.name, "too_short")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # silence: log of zero
            measured = float(self.meter(rate).integrated_loudness(wave))
        if not np.isfinite(measured):
            return dropped(record, self.name, "silent")
        gain = min(10 ** ((self.target - measured) / 20), self.peak / max(float(np.abs(wave).max()), 1e-9))
        path = audio.write(f"{record['id']}-level", wave * np.float32(gain), rate)
        return record | {
            "path": path,
            "start": 0.0,
            "duration": len(wave) / rate,
            "loudness": round(measured, 2),
            "gain_db": round(float(20 * np.log10(gain)), 2),
        }
