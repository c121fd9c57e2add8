"""Prepare the next batches in background threads while the model computes."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")


def prefetch(
    make: Callable[[int], T], start: int, stop: int, depth: int = 3, threads: int = 1
) -> Iterator[tuple[int, T]]:
    """Yield `(step, make(step))` for start <= step < stop in order, made up to `depth` steps ahead; an error in `make` is raised here."""
    depth = max(depth, 2 * threads)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="prefetch")
    waiting = deque(pool.submit(make, step) for step in range(start, min(start + depth, stop)))
    try:
        for step in range(start, stop):
            value = waiting.popleft().result()
            if step + depth < stop:
                waiting.append(pool.submit(make, step + depth))
            yield step, value
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def threads_for(device: torch.device) -> int:
    """Threads that keep a device fed: one beside a CPU's own work, more beside an accelerator."""
    return 1 if device.type == "cpu" else 8
