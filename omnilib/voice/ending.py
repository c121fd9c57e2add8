"""Whether speech ends in silence: a word cut off, or babble behind the last word, leaves the end of a text loud.

Measured on 120 sentences of the nano model (`eval/ends.py`): the last 40 ms of those that ended well lay 45 dB or more below
their speech, and of those that were cut within 30 dB.

Shapes: T samples, F frames of 20 ms.
"""

import torch
from torch import Tensor

FRAME, FRAMES = 480, 2  # samples of a frame: 20 ms at 24 kHz; frames of a token
LAST = 2  # frames looked at
FALL = 30.0  # dB that the end lies below the speech
ABOVE_NOISE = (
    10.0  # dB: an end that is no louder than the quietest moments is as silent as this recording gets
)
SHORTEST = 10  # frames: nothing is said about less


class Levels:
    """Loudness of a wave that comes in pieces, so that its sound need not be kept: one number for 20 ms."""

    def __init__(self) -> None:
        self.rest = torch.empty(0)
        self.decibels: list[float] = []

    def push(self, wave: Tensor) -> None:
        """Samples (T,), any number."""
        wave = torch.cat([self.rest, wave.float().cpu()])
        frames = wave[: len(wave) // FRAME * FRAME].view(-1, FRAME)  # (F, 480)
        self.rest = wave[frames.numel() :]
        self.decibels += (10 * torch.log10(frames.square().mean(1) + 1e-14)).tolist()


def ends_loud(decibels: list[float]) -> bool:
    """Whether the end of a stretch of speech (F levels) is neither far below the speech nor near the noise."""
    if len(decibels) < SHORTEST:
        return False
    levels = torch.tensor(decibels)
    speech, noise = levels.quantile(0.9), levels.quantile(0.05)
    return bool(levels[-LAST:].mean() > max(speech - FALL, noise + ABOVE_NOISE))
