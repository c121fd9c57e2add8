"""A recording to speak with: read, its offset removed, and refused where nobody speaks in it.

Shapes: T samples, float32, mono.
"""

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from omnilib.audio import resample
from omnilib.errors import AudioError, MissingTool
from omnilib.recording import read

VAD_RATE = 16_000
LEVEL = 0.05  # root mean square that the detector gets
LEAST_SPEECH = 0.3  # seconds; the shortest of our recordings has 0.7
SILENT = 1e-4  # peak: what is quieter is refused as silence where the voice is made, see `voice.codec`
SHORT = 0.5  # seconds: refused there too
MOST_CLIPPED = 0.05  # share of samples at full scale; ours have none
FULL = 0.999
OFFSET = (
    1e-3  # of full scale: a smaller constant offset is no fault, and its removal would only change tokens
)


def load_reference(path: str | Path, rate: int, longest: float) -> Tensor:
    """A reference recording as mono float32 at `rate`, without its DC offset: (T,).

    Raises:
        AudioError: it cannot be read, is longer than `longest` seconds, cut short, clipped, or holds no speech.
    """
    samples, own_rate = read(path, longest)
    wave = torch.from_numpy(samples)
    clipped = float((wave.abs() >= FULL).float().mean())
    if clipped > MOST_CLIPPED:
        raise AudioError(
            f"{path} is clipped, {clipped:.0%} of it at full scale: record it again at a lower level"
        )
    offset = wave.double().mean().float()
    wave = wave - offset if abs(offset) > OFFSET else wave
    if len(wave) >= SHORT * own_rate and wave.abs().max() >= SILENT:
        heard = speech_seconds(resample(wave, own_rate, VAD_RATE))
        if heard < LEAST_SPEECH:
            raise AudioError(
                f"nobody speaks in {path} (noise, a tone, music?): give 3 to {longest:.0f} s of one person's speech"
            )
    return resample(wave, own_rate, rate)


def speech_seconds(wave: Tensor) -> float:
    """Seconds of speech in a 16 kHz wave (T,), by Silero VAD (MIT), the model in its PyPI package."""
    model, timestamps = detector()
    loud = wave.square()
    level = (
        loud[loud >= loud.mean()].mean().sqrt().clamp(min=1e-9)
    )  # of the louder part, so that quiet recordings are heard too
    found = timestamps((wave * (LEVEL / level)).clamp(-1, 1).numpy(), model)
    return sum(part["end"] - part["start"] for part in found) / VAD_RATE


@lru_cache(maxsize=1)
def detector() -> tuple:
    """(model, function of wave and model that finds speech)."""
    threads = torch.get_num_threads()
    try:
        from silero_vad import get_speech_timestamps_sequence, load_silero_vad

        return load_silero_vad(onnx=True, sequence=True), get_speech_timestamps_sequence
    except ImportError:
        raise MissingTool(
            "checking a reference recording needs Silero VAD: pip install silero-vad==6.2.3 onnxruntime"
        ) from None
    finally:
        torch.set_num_threads(threads)  # importing the package sets one thread for the whole process
