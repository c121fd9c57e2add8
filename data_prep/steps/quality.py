"""How good a recording sounds: DNSMOS (Reddy et al. 2021, 2022) from the onnx files of `speechmos`, no listener needed.

`dnsmos` is P.808, one number a window from a mel spectrum; with `overall: true` also `dnsmos_ovrl`, the overall score of P.835,
which Emilia thresholds at 3.0 but costs about ten times as much. Both are means over at most `windows` windows of 9.01 s, spread
evenly; shorter audio is repeated until it fills one, as the package does. P.808 ignores level. Also adds `snr_db`,
`snr_lowest_db` and `crest_db` (see levels.py), of the segment: a recording may be noisy or clipped in one place only.

Shapes: W windows, T = 144,160 samples at 16 kHz.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from data_prep.pipeline import Audio, Step, register
from data_prep.steps.levels import crest, lowest_snr, snr
from data_prep.steps.sessions import model_file, open_session

RATE, WINDOW = 16_000, 144_160
BATCH = 2  # more is no faster on one core and takes memory: 983 MB at 8
OVRL_FIT = (-0.06766283, 1.11546468, 0.04602535)  # the package's map from network output to opinion score
INSTALL = "pip install --no-deps speechmos==0.0.1.1 (and onnxruntime librosa)"


def windows_of(wave: np.ndarray, most: int) -> np.ndarray:
    """Up to `most` windows spread evenly over the wave: (T,) -> (W, 144160)."""
    if len(wave) < WINDOW:
        wave = np.tile(wave, -(-WINDOW // max(1, len(wave))))[:WINDOW]
    count = min(most, len(wave) // WINDOW)
    starts = np.linspace(0, len(wave) - WINDOW, count + 2 if count == 1 else count).round().astype(int)
    return np.stack([wave[s : s + WINDOW] for s in (starts[1:2] if count == 1 else starts)])


def mel_db(windows: np.ndarray) -> np.ndarray:
    """What the P.808 network wants, 40 dB below the window's maximum at 0: (W, T) -> (W, 900, 120)."""
    import librosa

    mel = librosa.feature.melspectrogram(
        y=windows[:, :-160], sr=RATE, n_fft=321, hop_length=160, n_mels=120
    )  # (W, 120, 900)
    decibel = 10 * np.log10(np.maximum(mel, 1e-10))
    decibel = np.maximum(
        decibel - 10 * np.log10(np.maximum(mel.max(axis=(1, 2), keepdims=True), 1e-10)), -80.0
    )
    return ((decibel + 40) / 40).transpose(0, 2, 1).astype(np.float32)


@register
@dataclass
class Quality(Step):
    """Opinion scores, noise and clipping of each record."""

    name: ClassVar[str] = "quality"
    modules: ClassVar[tuple[str, ...]] = ("data_prep.steps.levels",)
    windows: int = 2
    overall: bool = False

    def open(self) -> None:
        mel_db(np.ones((1, WINDOW), np.float32))  # imports librosa: part of loading, not of the first record
        self.p808 = open_session(model_file("speechmos", "dnsmos_models/model_v8.onnx", INSTALL))
        self.ovrl = (
            open_session(model_file("speechmos", "dnsmos_models/sig_bak_ovr.onnx", INSTALL))
            if self.overall
            else None
        )

    def run(self, records: list[dict], audio: Audio) -> list[dict]:
        return [r for i in range(0, len(records), BATCH) for r in self.batch(records[i : i + BATCH], audio)]

    def batch(self, records: list[dict], audio: Audio) -> list[dict]:
        waves = [audio.wave(record, RATE) for record in records]
        windows = [windows_of(wave, self.windows) for wave in waves]
        scores = {"dnsmos": self.p808_scores(windows)} | (
            {"dnsmos_ovrl": self.ovrl_scores(windows)} if self.overall else {}
        )
        return [
            record
            | {"snr_db": round(snr(wave, RATE), 1), "snr_lowest_db": round(lowest_snr(wave, RATE), 1)}
            | {"crest_db": round(crest(wave, RATE), 2)}
            | {name: round(values[i], 3) for name, values in scores.items()}
            for i, (record, wave) in enumerate(zip(records, waves, strict=True))
        ]

    def p808_scores(self, windows: list[np.ndarray]) -> list[float]:
        scores = self.p808.run(None, {"input_1": mel_db(np.concatenate(windows))})[0][:, 0]
        return means(scores, windows)

    def ovrl_scores(self, windows: list[np.ndarray]) -> list[float]:
        raw = np.concatenate([self.ovrl.run(None, {"input_1": w})[0] for w in windows])[:, 2]  # (sum of W,)
        return means(np.polyval(OVRL_FIT, raw), windows)


def means(scores: np.ndarray, windows: list[np.ndarray]) -> list[float]:
    """Mean score of each record's windows."""
    ends = np.cumsum([len(w) for w in windows])[:-1]
    return [float(part.mean()) for part in np.split(scores, ends)]
