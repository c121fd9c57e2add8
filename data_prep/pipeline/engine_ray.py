"""The Ray engine: the parts of a job flow through Ray Data operators on a cluster.

    curate(manifest, "paper", out, engine=partial(ray_engine, workers=None, address="auto"))

Consecutive steps with the same GPU demand form one operator, a pool of actors that hold the opened models
and grows and shrinks with the load; between operators only records travel (the audio is read from the
shared file system). Killed actors and nodes are Ray's business: it restarts the actor elsewhere and repeats
its part, which is written under a temporary name and renamed, so a part done twice is still one result.
Code and `out` must be visible to all nodes under the same path.
"""

import os
import pickle
from collections.abc import Iterator
from itertools import groupby

from data_prep.pipeline.audio import Audio
from data_prep.pipeline.parts import Job, Part, advance, begin, finish, open_steps
from omnilib.errors import ConfigError, MissingTool, UserError

MOST_BLOCKS = 4096  # parts travel singly up to this number, then several in a block


class Operator:
    """An actor's work: take parts through `steps`, which are number `first` and following of the job's."""

    def __init__(self, job: Job, first: int, count: int):
        self.job, self.audio, self.first = job, Audio(job.root, job.out), first
        self.steps, self.error = [], None
        try:
            self.steps = open_steps(job.steps[first : first + count])
        except (
            UserError
        ) as error:  # handed to the driver as a result: an actor that dies would be started again and again
            self.error = error

    def __call__(self, row: dict) -> dict:
        state = pickle.loads(row["state"])
        try:
            if self.error:
                raise self.error
            state = self.work(state)
        except (UserError, OSError) as error:
            state = error
        return {"state": pickle.dumps(state)}

    def work(self, state: Part | dict | float | Exception) -> dict | float | Exception:
        """A part before the first operator, a state between operators, hours after the last; an error
        passes through."""
        if isinstance(state, Part):
            if self.job.result(state).exists():  # done by an actor that died before it could say so
                return 0.0
            state = begin(self.job, state)
        if not isinstance(state, dict):
            return state
        for step in self.steps:
            state = advance(state, step, self.audio)
        return finish(self.job, state) if len(state["seconds"]) == len(self.job.steps) else state


def connect(address: str | None, workers: int | None) -> None:
    """Join the cluster at `address`, or start Ray on this machine; stays connected until the process ends.

    Raises:
        MissingTool: Ray is not installed.
        ConfigError: no cluster at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise MissingTool("the ray engine needs Ray: pip install 'ray[data]'") from None
    if ray.is_initialized():
        return
    options = (
        {"address": address}
        if address
        else {"num_cpus": workers or os.cpu_count(), "include_dashboard": False}
    )
    try:
        ray.init(log_to_driver=False, logging_level="ERROR", **options)
    except Exception as error:  # Ray raises plain Exceptions too
        where = f"join the Ray cluster at '{address}'" if address else "start Ray on this machine"
        raise ConfigError(
            f"cannot {where} ({str(error).strip().splitlines()[0]}): see `ray status`, `ray start --help`"
        ) from None


def ray_engine(
    job: Job, parts: list[Part], workers: int | None = None, address: str | None = None
) -> Iterator[float]:
    """Do parts on the cluster; yields the hours of each as it is finished."""
    connect(address, workers)
    import ray

    for step in job.steps:
        if step.gpus and not ray.cluster_resources().get("GPU"):
            raise ConfigError(
                f"step '{step.name}' asks for {step.gpus} GPUs, the cluster has none: add a node, or `gpus: 0` in the recipe"
            )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    rows = [{"state": pickle.dumps(part)} for part in parts]
    data = ray.data.from_items(rows, override_num_blocks=min(len(rows), MOST_BLOCKS))
    first = 0
    for gpus, group in groupby(job.steps, key=lambda step: step.gpus):
        steps = list(group)
        data = data.map(
            Operator,
            fn_constructor_args=(job, first, len(steps)),
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers),
            num_cpus=max(step.cpus for step in steps),
            num_gpus=gpus,
        )
        first += len(steps)
    for row in data.iter_rows():
        state = pickle.loads(row["state"])
        if isinstance(state, Exception):
            raise state
        yield state
