"""Decoding with steps of fixed shape: the rows of `decoder.Decoder`, the host one row behind the device.

    device   row 1    row 2    row 3    ...          never waits
    host              read 1   read 2   read 3       machines, flags, speech out

The device decides each next row itself (`static_rows.py`), so the host queues a row, then reads the ids of the row *before*
and runs its own chunk machines on them. It learns one row late that a sequence is done; that row is thrown away.

A `StaticStep` with its recordings is kept for the next texts (`Shelf`): recording costs as much as some hundred rows.
"""

import weakref
from collections import deque
from functools import lru_cache
from threading import Lock

import torch
from torch import Tensor

from omnilib.captured import Readback, Record, recorder
from omnilib.errors import LimitError
from omnilib.mouth.chunking import ChunkMachine, Layout, Row
from omnilib.mouth.decoder import NOISE_ROWS, Decoder, DecodeSettings, choose
from omnilib.mouth.speechlm import SpeechLM
from omnilib.mouth.static_rows import rows_at_most
from omnilib.mouth.static_step import Sampling, StaticStep, slots_for, window_for

AHEAD = 1  # rows that the device is ahead of the host


def fits(machines: list[ChunkMachine], settings: DecodeSettings, device: torch.device) -> bool:
    """Whether texts decode this way: on CUDA, or where the settings ask for it, and when no text is still to come."""
    wanted = settings.static in ("on", "compiled") or (settings.static == "auto" and device.type == "cuda")
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
        self, model: SpeechLM, layout: Layout, batch: int, capacity: int, record: Record | None
    ) -> StaticStep:
        """The smallest step that is large enough, or a new one in place of those that are smaller.

        Raises:
            LimitError: its cache does not fit into the memory that is free.
        """
        with self.lock:
            fitting = [
                s
                for s in self.steps
                if s.batch >= batch and s.capacity >= capacity and s.serves(model, layout, record)
            ]
            if fitting:
                step = min(fitting, key=lambda s: s.batch * s.capacity)
                self.steps.remove(step)
                return step
            self.steps = [s for s in self.steps if s.batch > batch or s.capacity > capacity]
            try:
                return StaticStep(model, layout, batch, capacity, record)
            except LimitError:
                self.steps = []
                return StaticStep(model, layout, batch, capacity, record)

    def put(self, step: StaticStep) -> None:
        with self.lock:
            self.steps.append(step)


@lru_cache(maxsize=16)
def sampling_of(settings: DecodeSettings, greedy: bool) -> Sampling:
    """What a recording fixes of the sampling; the temperature is a tensor."""
    return Sampling(greedy, lambda scores, noise: choose(scores, settings, 1.0, noise))


class StaticDecoder(Decoder):
    """As `Decoder`, for texts that are known to their end.

    Args:
        record: how steps are recorded, if not as the settings say (see `captured.recorder`).
    """

    def __init__(
        self,
        model: SpeechLM,
        layout: Layout,
        prompts: list[Tensor],
        machines: list[ChunkMachine],
        settings: DecodeSettings,
        temperature: float | None = None,
        seed: int = 0,
        record: Record | None = None,
    ):
        self.begin(model, layout, machines, settings, temperature, seed)
        limit = max(rows_at_most(machine, settings.max_rows) for machine in machines) + AHEAD
        self.longest, self.launched = max(map(len, prompts)), 0
        shelf, device = Shelf.of(model), model.lm_head.weight.device
        record = record or recorder(device, fuse=settings.static == "compiled")
        self.static = shelf.take(
            model, layout, slots_for(len(prompts)), window_for(self.longest + limit), record
        )
        self.release = weakref.finalize(
            self, shelf.put, self.static
        )  # also of a stream that is not read to its end
        self.release.atexit = False
        self.sampling = sampling_of(
            DecodeSettings(top_k=settings.top_k, top_p=settings.top_p), self.temperature == 0
        )
        self.static.begin(prompts, machines, self.temperature)
        self.queued: deque[tuple[list[int], Readback]] = deque()  # (sequence of each slot, their ids)

    def step(self) -> list[tuple[int, Row]]:
        """One row for every unfinished sequence: (sequence, row) pairs."""
        if self.done:
            return []
        while len(self.queued) <= AHEAD:
            self.launch()
        slots, ids = self.queued.popleft()
        rows = self.enter(slots, ids.get().tolist())
        if self.done:
            self.release()
        return rows

    def launch(self) -> None:
        """Queue the next row on the device; finished sequences leave once they are half of the batch."""
        alive = [slot for slot, i in enumerate(self.slots) if not self.machines[i].done]
        if slots_for(len(alive)) < slots_for(len(self.slots)):
            self.static.keep(alive)
            self.slots = [self.slots[slot] for slot in alive]
        if self.temperature and self.launched % NOISE_ROWS == 0:
            self.static.refill(self.draw_block())
        self.launched += 1
        slots, window = slots_for(len(self.slots)), window_for(self.longest + self.launched)
        self.static.step(slots, min(window, self.static.capacity), self.sampling)
        self.queued.append((self.slots, Readback(self.static.sampled[: len(self.slots)])))
