"""Euler steps of the flow as work of fixed shape; on CUDA a graph (`omnilib/captured.py`).

A step of the published U-Net is about a thousand small kernels, which take longer to launch than to run. So one step is
recorded for each batch size and each multiple of `FRAMES` frames, and replayed for every time of every block of speech.
Frames are padded on the right: convolutions look left, and padded keys are masked, so real frames do not notice.

Only whole blocks are recorded; a stream's chunks, whose caches grow, take the plain steps.

Shapes: B batch, C = 2 B with guidance, F frames, M mels.
"""

from threading import Lock

import torch
from torch import Tensor, nn

from omnilib.captured import Captured, Record

FRAMES = 128  # a recording is for a multiple of so many frames
STEPS = 64  # Euler steps at most
KEPT = 16  # recordings of a model


def padded(frames: int) -> int:
    """Frames of the recording that holds so many."""
    return -(-frames // FRAMES) * FRAMES


class CapturedSteps:
    """The fixed tensors of one shape, and the step over them.

    Args:
        matching: `flow.FlowMatching`, in eval mode.
        batch, frames: B and F.
        like: a tensor of the device and type that x has.
        masked: whether rows may be shorter than F. Without a mask attention takes its fastest kernel.
        streaming: whether attention sees whole chunks to the left only.
        record: see `captured.recorder`.
    """

    def __init__(
        self,
        matching: nn.Module,
        batch: int,
        frames: int,
        like: Tensor,
        masked: bool,
        streaming: bool,
        record: Record | None,
    ):
        c, mels = matching.copies * batch, like.shape[-1]
        self.matching, self.batch, self.frames, self.streaming = matching, batch, frames, streaming
        self.x = like.new_zeros(batch, frames, mels)
        self.mu, self.prompt = like.new_zeros(2, c, frames, mels).unbind()
        self.speaker = like.new_zeros(c, mels)
        self.valid = torch.zeros(c, frames, dtype=torch.bool, device=like.device) if masked else None
        self.keep = (torch.arange(c, device=like.device) < batch).to(like.dtype)  # (C,)
        self.times = like.new_zeros(STEPS + 1)
        self.at = torch.zeros(1, dtype=torch.long, device=like.device)  # the step to take next
        self.step = Captured(self.work, [self.x, self.at], record)

    def work(self) -> None:
        """What is recorded: x moves from one time to the next."""
        t, until = self.times.index_select(0, self.at), self.times.index_select(0, self.at + 1)
        self.x.copy_(
            self.matching.euler(
                self.x,
                self.mu,
                t,
                until - t,
                self.speaker,
                self.prompt,
                self.keep,
                self.valid,
                self.streaming,
            )
        )
        self.at += 1

    def solve(
        self, x: Tensor, mu: Tensor, speaker: Tensor, prompt: Tensor, times: Tensor, valid: Tensor | None
    ) -> Tensor:
        """x (B, f, M) after all steps; mu, prompt (C, f, M), speaker (C, M), valid (C, f), f <= F."""
        f = x.shape[1]
        for fixed, given in ((self.x, x), (self.mu, mu), (self.prompt, prompt)):
            fixed[:, :f].copy_(given)
            fixed[:, f:].zero_()
        self.speaker.copy_(speaker)
        if self.valid is not None:
            self.valid.zero_()
            self.valid[:, :f] = True if valid is None else valid
        self.times[: len(times)].copy_(times)
        self.at.zero_()
        for _ in range(len(times) - 1):
            self.step()
        return self.x[:, :f].clone()


class Recordings:
    """Those of one flow, newest last. A copied or saved model begins with none."""

    def __init__(self) -> None:
        self.made: dict[tuple, CapturedSteps] = {}
        self.lock = Lock()  # the fixed tensors serve one caller at a time

    def __reduce__(self) -> tuple:
        return Recordings, ()

    @torch.inference_mode()
    def solve(
        self,
        matching: nn.Module,
        x: Tensor,
        mu: Tensor,
        speaker: Tensor,
        prompt: Tensor,
        times: Tensor,
        valid: Tensor | None,
        streaming: bool,
        record: Record | None,
    ) -> Tensor:
        """As `CapturedSteps.solve`, with the recording that this shape needs."""
        batch, frames = x.shape[0], padded(x.shape[1])
        masked = valid is not None or frames != x.shape[1]
        key = (batch, frames, masked, streaming, matching.precision, x.dtype, record, addresses(matching))
        with self.lock:
            steps = self.made.pop(key, None)
            if steps is None:
                steps = CapturedSteps(matching, batch, frames, x, masked, streaming, record)
                self.made = dict(list(self.made.items())[1 - KEPT :])
            self.made[key] = steps
            return steps.solve(x, mu, speaker, prompt, times, valid)


def addresses(module: nn.Module) -> tuple[int, ...]:
    """Where its weights lie: a recording reads them there."""
    return tuple(p.data_ptr() for p in module.parameters())
