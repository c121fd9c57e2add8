"""What is next in one answer: a step of the brain, a row of the mouth, or sound for the listener (by `pacing.Pace`)."""

import torch
from torch import Tensor

from omnilib.bridge import SameIds, Words
from omnilib.pacing import CHUNK_ROWS, Listener, Pace
from omnilib.tracks import Mouth, Sound, Writer


class Plan:
    """What is next in one answer, and what its listener has been given.

    Args:
        pace: of the machine.
        brain, bridge, mouth: the two tracks (`tracks.Writer`, `tracks.Mouth`) and what is between them; mouth None if
            the answer is not spoken.
        rate: samples a second.

    Attributes:
        given: samples that were handed out.
        times: (when, seconds of sound) of every piece with sound.
    """

    def __init__(self, pace: Pace, brain: Writer, bridge: SameIds | Words, mouth: Mouth | None, rate: int):
        self.pace, self.brain, self.bridge, self.mouth, self.rate = pace, brain, bridge, mouth, rate
        self.held, self.given, self.listener = torch.empty(0), 0, Listener()
        self.times: list[tuple[float, float]] = []

    def rows(self, sound: Sound) -> int:
        """Rows until the next hop, the start of a chunk among them."""
        self.pace.ratio = self.bridge.ratio(len(self.brain.ids), self.brain.text)
        return -(-sound.missing // self.mouth.machine.layout.streams) + CHUNK_ROWS

    def unwritten(self, ids: int) -> int:
        """How many of so many ids the mouth does not know yet."""
        return 0 if self.brain.over else max(0, ids - len(self.mouth.machine.rest))

    def text_missing(self, sound: Sound) -> bool:
        """Whether the piece after what is held may have to wait for text: nobody foretells when it is sure."""
        return self.unwritten(self.mouth.ids_for(self.rows(sound) - CHUNK_ROWS)) > 0

    def brain_next(self, sound: Sound | None) -> bool:
        """Whether the brain is next, and not a row that could be made."""
        if self.mouth is None or not self.mouth.ready:
            return True
        if not self.given and len(self.held) and self.text_missing(sound):
            return True
        lead, rows = self.listener.lead(self.pace.clock()) if self.given else None, self.rows(sound)
        return self.pace.brain_next(lead, rows, self.unwritten(rows))

    def hold(self, wave: Tensor) -> None:
        """Sound (n,) that is ready."""
        self.held = torch.cat([self.held, wave])

    def let_out(self, sound: Sound | None, last: bool) -> Tensor:
        """What may be heard now (n,): all that is held once the first piece was heard, and before that when nothing
        will make the listener wait."""
        if len(self.held) and not (self.given or last):
            seconds, left = len(self.held) / self.rate, self.mouth.left if self.brain.over else None
            if self.text_missing(sound) or not self.pace.may_begin(seconds, self.rows(sound), left):
                return self.held[:0]
        wave, self.held = self.held, self.held[:0]
        return wave

    def give(self, wave: Tensor) -> None:
        """The listener gets this (n,), now."""
        if len(wave):
            self.given += len(wave)
            self.times.append((self.pace.clock(), len(wave) / self.rate))
            self.listener.give(*self.times[-1])

    def tokens_heard(self, seconds: float | None = None) -> int:
        """25 Hz tokens in the first seconds of what was handed out; None: in all of it."""
        samples = self.given if seconds is None else min(self.given, max(0, round(seconds * self.rate)))
        return samples * 25 // self.rate
