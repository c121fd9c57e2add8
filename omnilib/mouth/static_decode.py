"""The loop over steps of fixed shape, the host one row behind the device; `decode.StaticDecoder` writes its rows.

    device   row 1    row 2    row 3    ...          never waits
    host              read 1   read 2   read 3       machines, flags, speech out

The device decides each next row itself (`static_rows.py`), so the host queues a row, then reads the ids of the row *before*
and runs its own chunk machines on them. It learns one row late that a sequence is done; that row is thrown away.

A `StaticStep` with its recordings is kept for the next texts (`Shelf`): recording costs as much as some hundred rows.
"""

import weakref
from collections import deque
from collections.abc import Callable
from threading import Lock

import torch
from torch import Tensor

from omnilib.captured import Readback, Record
from omnilib.errors import LimitError
from omnilib.mouth.chunking import ChunkMachine, Layout
from omnilib.mouth.speechlm import SpeechLM
from omnilib.mouth.static_rows import rows_at_most
from omnilib.mouth.static_step import NOISE_ROWS, Sampling, StaticStep, slots_for, window_for

ROWS_PER_ID, ROOM = 3, 64  # rows that the cache has room for from the start: a text id takes about two
AHEAD = 1  # rows that the device is ahead of the host


def fits(machines: list[ChunkMachine], static: str, device: torch.device) -> bool:
    """Whether texts decode this way: on CUDA, or where the settings ask for it, and when no text is still to come."""
    wanted = static in ("on", "compiled") or (static == "auto" and device.type == "cuda")
    return wanted and all(machine.closed and machine.rows_made == 0 for machine in machines)


class Shelf:
    """Steps of one model that nobody uses at the moment."""

    def __init__(self) -> None:
        self.steps: list[StaticStep] = []
        self.lock = Lock()

    def __reduce__(self) -> tuple:
        return Shelf, ()  # a copied or saved model begins with an empty one

    @classmethod
    def of(cls, model: SpeechLM) -> "Shelf":
        return model.__dict__.setdefault("static_steps", cls())

    def take(
        self, model: SpeechLM, layout: Layout, batch: int, capacity: int, text: int, record: Record | None
    ) -> StaticStep:
        """The smallest step that is large enough, or a new one in place of those that are smaller.

        Raises:
            LimitError: its cache does not fit into the memory that is free.
        """
        with self.lock:
            fitting = [
                s
                for s in self.steps
                if min(s.batch - batch, s.capacity - capacity, s.text - text) >= 0
                and s.serves(model, layout, record)
            ]
            if fitting:
                step = min(fitting, key=lambda s: s.batch * s.capacity)
                self.steps.remove(step)
                return step
            self.steps = [s for s in self.steps if s.batch > batch or s.capacity > capacity]
            try:
                return StaticStep(model, layout, batch, capacity, text, record)
            except LimitError:
                self.steps = []
                return StaticStep(model, layout, batch, capacity, text, record)

    def put(self, step: StaticStep) -> None:
        with self.lock:
            self.steps.append(step)


class StaticLoop:
    """Ids row by row of texts that are known to their end: what `StaticDecoder` runs on.

    Args:
        prompts, machines: rows (R, 1 + k) and a fresh machine of each sequence.
        max_rows, temperature: as in the settings.
        sampling: what a recording fixes of the sampling.
        record: how steps are recorded (see `captured.recorder`).

    Raises:
        LimitError: the cache does not fit into the memory that is free.
    """

    def __init__(
        self,
        model: SpeechLM,
        layout: Layout,
        prompts: list[Tensor],
        machines: list[ChunkMachine],
        max_rows: int,
        temperature: float,
        sampling: Sampling,
        record: Record | None,
    ):
        self.longest, self.launched = max(map(len, prompts)), 0
        text = max(len(machine.rest) for machine in machines)
        most = max(rows_at_most(machine, max_rows) for machine in machines) + AHEAD
        capacity = window_for(self.longest + min(most, ROWS_PER_ID * text + ROOM))
        self.slots, self.machines, self.sampling = list(range(len(machines))), machines, sampling
        shelf, batch = Shelf.of(model), slots_for(len(prompts))
        self.step = shelf.take(model, layout, batch, capacity, text, record)
        self.release = weakref.finalize(
            self, shelf.put, self.step
        )  # also of a stream that is not read to its end
        self.release.atexit = False
        self.step.begin(prompts, machines, temperature)
        self.queued: deque[tuple[list[int], Readback]] = deque()  # (sequence of each slot, their ids)

    def next(self, noise: Callable[[list[int]], Tensor]) -> tuple[list[int], list[list[int]]]:
        """The sequence of each slot and its k ids; `noise` draws (B, NOISE_ROWS, k) for the sequences given."""
        while len(self.queued) <= AHEAD and self.launch(noise):
            pass
        if not self.queued:  # a text without an end must not cost the others theirs
            for machine in self.machines:
                if not machine.done:
                    machine.truncate()
            return [], []
        slots, ids = self.queued.popleft()
        return slots, ids.get().tolist()

    def launch(self, noise: Callable[[list[int]], Tensor]) -> bool:
        """Queue the next row on the device; finished sequences leave once they are half of the batch.

        False when there is no memory for it.
        """
        if self.longest + self.launched >= self.step.capacity:
            try:
                self.step.grow(self.longest + self.launched + 1)
            except LimitError:
                return False
        alive = [slot for slot, i in enumerate(self.slots) if not self.machines[i].done]
        if slots_for(len(alive)) < slots_for(len(self.slots)):
            self.step.keep(alive)
            self.slots = [self.slots[slot] for slot in alive]
        if not self.sampling.greedy and self.launched % NOISE_ROWS == 0:
            self.step.refill(noise(self.slots))
        self.launched += 1
        slots, window = slots_for(len(self.slots)), window_for(self.longest + self.launched)
        self.step.step(slots, min(window, self.step.capacity), self.sampling)
        self.queued.append((self.slots, Readback(self.step.sampled[: len(self.slots)])))
        return True
