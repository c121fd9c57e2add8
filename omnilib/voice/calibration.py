"""Calibration of a voice: what the flow gets wrong of the reference recording, it gets wrong of everything in that voice.

The flow speaks the reference's own codes in its own voice. A straight map from that mel to the recording's is found by ridge
regression towards no change at all, and every mel in that voice goes through it:

    mel' = (mel - a) (1 + W) + b        W = argmin |A (1 + W) - B|^2 / n + strength |W|^2

with A and B the loud frames of what the flow said and of the recording, less their means a and b. So the colour of a voice that
a small flow has never met is measured instead of guessed. Ours; the published codec has no such step, and it is off unless
`calibrate` is set in codec.yaml.

Shapes: F frames, M mels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

LOUD = 4.0  # nats of mean log-mel below the loudest frame: what is softer is no speech
LEAST = 50  # loud frames (1 s): fewer tell more of the words than of the voice


@dataclass
class Correction:
    """The map of one voice."""

    weight: Tensor  # (M, M)
    bias: Tensor  # (M,)

    def __call__(self, mel: Tensor) -> Tensor:
        """(..., M, F) -> (..., M, F)."""
        return (mel.transpose(-1, -2) @ self.weight + self.bias).transpose(-1, -2)


def fit(made: Tensor, real: Tensor, strength: float) -> Correction | None:
    """The map from what was made of a recording to the recording; None where too little of it is speech.

    Args:
        made, real: (F, M) log-mels, frame by frame the same sound.
        strength: how much a change must be worth, in variance of a log-mel; 0 fits the frames as they are.
    """
    level = real.mean(1)
    loud = level > level.max() - LOUD
    count = int(loud.sum())
    if count < LEAST:
        return None
    made, real = made[loud].double(), real[loud].double()
    before, after = made.mean(0), real.mean(0)
    made, real = made - before, real - after
    one = torch.eye(made.shape[1], dtype=made.dtype, device=made.device)
    change = torch.linalg.solve(made.T @ made / count + strength * one, made.T @ (real - made) / count)
    weight = one + change
    return Correction(weight.float(), (after - before @ weight).float())
