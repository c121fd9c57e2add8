"""Prepare the next batches in a background thread while the model computes."""

from collections.abc import Callable, Iterator
from queue import Queue
from threading import Event, Thread
from typing import TypeVar

T = TypeVar("T")


def prefetch(make: Callable[[int], T], start: int, stop: int, depth: int = 3) -> Iterator[tuple[int, T]]:
    """Yield `(step, make(step))` for start <= step < stop, made up to `depth` steps ahead; an error in `make` is raised here."""
    queue: Queue = Queue(depth)
    closed = Event()

    def work() -> None:
        for step in range(start, stop):
            try:
                item = (step, make(step), None)
            except Exception as error:  # noqa: BLE001  handed to the consumer
                item = (step, None, error)
            queue.put(item)
            if closed.is_set() or item[2] is not None:
                return

    Thread(target=work, daemon=True).start()
    try:
        for _ in range(start, stop):
            step, value, error = queue.get()
            if error is not None:
                raise error
            yield step, value
    finally:
        closed.set()
        while not queue.empty():  # let a worker that waits for room see the event
            queue.get_nowait()
