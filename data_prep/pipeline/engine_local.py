"""The local engine: parts in processes of this machine.

curate(manifest, "wild", out, engine=partial(local_engine, workers=4))
"""

import os
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from threading import Thread

from data_prep.pipeline.parts import Job, Part, Worker
from omnilib.errors import DataError

PROCESS: dict[str, object] = {}  # the job, later its worker, of a spawned process


def start_process(job: Job) -> None:
    """In a new process: remember the job, and end when the parent does, even when that was killed."""
    PROCESS.update(job=job)
    Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()


def work_in_process(part: Part) -> float:
    if "worker" not in PROCESS:  # not in the initializer: an error there would lose its message
        PROCESS["worker"] = Worker(PROCESS["job"])
    return PROCESS["worker"](part)


def local_engine(job: Job, parts: list[Part], workers: int) -> Iterator[float]:
    """Do parts in `workers` processes; yields the hours of each as it is finished."""
    if workers == 1 or len(parts) == 1:
        yield from map(Worker(job), parts)
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread a process: the processes fill the cores
    pool = ProcessPoolExecutor(min(workers, len(parts)), get_context("spawn"), start_process, (job,))
    queue, running = iter(parts), set()
    try:
        while True:
            while len(running) < 2 * workers and (part := next(queue, None)):
                running.add(pool.submit(work_in_process, part))
            if not running:
                return
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in finished)
    except BrokenProcessPool:
        raise DataError(
            "a worker process died (out of memory?): run again, perhaps with fewer --workers; finished parts are kept"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
