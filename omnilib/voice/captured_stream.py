"""Euler steps over one chunk of a stream as work of fixed shape; on CUDA a graph (`omnilib/captured.py`).

A stream computes a chunk of 50 frames against the keys and values of all chunks before it, with caches of its own for every
Euler step (`causal.Cache`). Caches that grow cannot be recorded. Here they have room for `CAPACITY` frames from the
start, for all steps in one tensor a layer, and a tensor says which step it is and how many frames are past; keys that are not
there yet are masked. The prompt, which is longer than a chunk, and the last, shorter chunk take the plain steps on plain
caches: `load` and `plain` go from one to the other.

Shapes: S Euler steps, C batch (2 with guidance), H heads, K cache frames, T frames of a chunk, D width, M mels.
"""

from threading import Lock

import torch
from torch import Tensor, nn

from omnilib.captured import Captured, Record, room
from omnilib.voice.captured_flow import addresses
from omnilib.voice.causal import Cache

CAPACITY = 1536  # frames of a stream: prompt, block and context of the default settings


class FixedCache(Cache):
    """A cache of one step, written in place: `slots` are those of all steps (S, ...), `at` (1,) says which."""

    def __init__(self, slots: list[Tensor], at: Tensor, places: Tensor):
        super().__init__()
        self.slots, self.at, self.places = slots, at, places  # places (T,): where the chunk's frames go

    def extend(self, new: Tensor, dim: int, keep: int | None = None) -> Tensor:
        """As `Cache.extend`; of an attention all K frames come back."""
        slot = self.slots[self.next]
        self.next += 1
        if keep is None:  # keys and values: (2, C, H, T, D / H)
            slot[self.at, :, :, :, self.places] = new.permute(3, 0, 1, 2, 4)
            return slot.index_select(0, self.at)[0]
        joined = torch.cat([slot.index_select(0, self.at)[0], new], dim)
        slot.index_copy_(0, self.at, joined.narrow(dim, joined.shape[dim] - keep, keep)[None])
        return joined


class ChunkSteps:
    """The fixed tensors of one stream, and the step over them.

    Args:
        matching: `flow.FlowMatching`, in eval mode.
        like: plain cache of one step, for the sizes.
        x: (1, T, M) of the right type and device.
        steps: S.
        record: see `captured.recorder`.
    """

    def __init__(
        self,
        matching: nn.Module,
        like: Cache,
        x: Tensor,
        steps: int,
        capacity: int,
        record: Record | None,
    ):
        c, frames, mels = matching.copies, x.shape[1], x.shape[2]
        self.matching, self.capacity, self.frames = matching, capacity, frames
        self.slots = [
            slot.new_zeros(*shape)
            for slot, shape in zip(like.slots, shapes(like, steps, capacity), strict=True)
        ]
        self.x = x.new_zeros(1, frames, mels)
        self.mu, self.prompt = x.new_zeros(2, c, frames, mels).unbind()
        self.speaker = x.new_zeros(c, mels)
        self.keep = (torch.arange(c, device=x.device) < 1).to(x.dtype)  # (C,)
        self.times = x.new_zeros(steps + 1)
        self.at, self.past = torch.zeros(2, 1, dtype=torch.long, device=x.device).unbind()
        self.chunk = torch.arange(frames, device=x.device)  # (T,)
        self.room = torch.arange(capacity, device=x.device)  # (K,)
        kept = [slot for slot in self.slots if slot.dim() == 4]  # keys are written again before they are read
        self.step = Captured(self.work, [self.x, self.at, *kept], record)

    def load(self, caches: list[Cache], past: int) -> None:
        """Take up plain caches after `past` frames."""
        for j, slot in enumerate(self.slots):
            slot.zero_()
            for i, cache in enumerate(caches):
                old = cache.slots[j]
                (slot[i, ..., :past, :] if slot.dim() == 6 else slot[i]).copy_(old)

    def plain(self, past: int) -> list[Cache]:
        """Plain caches of the same content; copies."""
        caches = [Cache() for _ in range(len(self.times) - 1)]
        for i, cache in enumerate(caches):
            cache.slots = [
                (slot[i, ..., :past, :] if slot.dim() == 6 else slot[i]).clone() for slot in self.slots
            ]
        return caches

    def work(self) -> None:
        """What is recorded: the chunk's x moves from one time to the next."""
        t, until = self.times.index_select(0, self.at), self.times.index_select(0, self.at + 1)
        weight = self.matching.estimator.final_proj.weight
        bias = torch.zeros(1, 1, 1, self.capacity, dtype=weight.dtype, device=weight.device)
        bias.masked_fill_(self.room >= self.past + self.frames, -torch.inf)
        cache = FixedCache(self.slots, self.at, self.chunk + self.past)
        given = (self.speaker, self.prompt, self.keep, None, True, cache, 0, bias)
        self.x.copy_(self.matching.euler(self.x, self.mu, t, until - t, *given))
        self.at += 1

    def solve(
        self, x: Tensor, mu: Tensor, speaker: Tensor, prompt: Tensor, times: Tensor, past: int
    ) -> Tensor:
        """x (1, T, M) after all steps; mu, prompt (C, T, M), speaker (C, M)."""
        for fixed, given in ((self.x, x), (self.mu, mu), (self.prompt, prompt), (self.speaker, speaker)):
            fixed.copy_(given)
        self.times.copy_(times)
        self.past.fill_(past)
        self.at.zero_()
        for _ in range(len(times) - 1):
            self.step()
        return self.x.clone()


def shapes(like: Cache, steps: int, capacity: int) -> list[tuple[int, ...]]:
    """Sizes of the slots of all steps, given a plain cache of one."""
    return [
        (steps, *s.shape) if s.dim() == 3 else (steps, *s.shape[:3], capacity, s.shape[4]) for s in like.slots
    ]


class Streams:
    """The `ChunkSteps` that no stream uses at the moment. A copied or saved model begins with none."""

    def __init__(self) -> None:
        self.idle: list[tuple[tuple, ChunkSteps]] = []
        self.lock = Lock()

    def __reduce__(self) -> tuple:
        return Streams, ()

    def take(
        self, matching: nn.Module, like: Cache, x: Tensor, steps: int, record: Record | None
    ) -> tuple[tuple, ChunkSteps] | None:
        """One with its key, for `put`; None when its caches would not fit into the memory that is free."""
        sizes = tuple(shapes(like, steps, CAPACITY))
        key = (sizes, x.shape, matching.precision, record, addresses(matching))
        with self.lock:
            for entry in self.idle:
                if entry[0] == key:
                    self.idle.remove(entry)
                    return entry
            self.idle.clear()
        need = sum(torch.Size(s).numel() for s in sizes) * like.slots[0].element_size()
        free = room(x.device)
        if free is not None and need > free:
            return None
        return key, ChunkSteps(matching, like, x, steps, CAPACITY, record)

    def put(self, entry: tuple[tuple, ChunkSteps]) -> None:
        with self.lock:
            self.idle.append(entry)
