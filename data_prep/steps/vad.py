"""Where somebody speaks: Silero VAD (MIT) from its PyPI wheel, its sequence ONNX model, a whole block of frames a call.

Adds `speech`: [[start, end], ...] in seconds from the record's start. A wave is brought to one level first, so quiet recordings
are heard too. Reason: no_speech.

Shapes: T samples at 16 kHz.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from data_prep.pipeline import Audio, Step, dropped, register
from omnilib.errors import MissingTool

RATE = 16_000
LEVEL = 0.05  # root mean square of the louder half that the model gets
INSTALL = "pip install --no-deps silero-vad==6.2.3 (and onnxruntime)"


def levelled(wave: np.ndarray) -> np.ndarray:
    """The wave with its louder parts at one level, never beyond full scale."""
    square = np.square(wave)
    loud = np.sqrt(square[square >= square.mean()].mean()) if square.any() else 1.0
    return wave * np.float32(min(LEVEL / loud, 1.0 / max(float(np.abs(wave).max()), 1e-9)))


@register
@dataclass
class Vad(Step):
    """Speech regions."""

    name: ClassVar[str] = "vad"
    threshold: float = 0.5
    min_speech_ms: int = 250
    min_silence_ms: int = 200
    pad_ms: int = 30
    max_speech_seconds: float = 28.0  # a longer region is cut at its longest pause

    def open(self) -> None:
        try:
            from silero_vad import get_speech_timestamps_sequence, load_silero_vad
        except ImportError:
            raise MissingTool(f"Silero VAD is not installed: {INSTALL}") from None
        self.model, self.timestamps = (
            load_silero_vad(onnx=True, sequence=True),
            get_speech_timestamps_sequence,
        )

    def run(self, records: list[dict], audio: Audio) -> list[dict]:
        results = []
        for record in records:
            speech = self.regions(audio.wave(record, RATE))
            results.append(record | {"speech": speech} if speech else dropped(record, self.name, "no_speech"))
        return results

    def regions(self, wave: np.ndarray) -> list[list[float]]:
        """[[start, end], ...] in seconds of a 16 kHz wave (T,)."""
        found = self.timestamps(
            levelled(wave),
            self.model,
            threshold=self.threshold,
            min_speech_duration_ms=self.min_speech_ms,
            min_silence_duration_ms=self.min_silence_ms,
            speech_pad_ms=self.pad_ms,
            max_speech_duration_s=self.max_speech_seconds,
        )
        return [[round(f["start"] / RATE, 3), round(f["end"] / RATE, 3)] for f in found]
