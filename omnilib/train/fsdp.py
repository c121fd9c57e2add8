"""What FSDP2 changes in a training script: states that no process holds alone.

Any process can export the model (`accelerator.get_state_dict`). States have the format of torch.distributed.checkpoint.
Not run yet: accelerate shards on GPUs only, and none was at hand; ZeRO-3 is tested.
"""

import os
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import DistributedType

from omnilib.errors import ConfigError
from omnilib.train import shared_state


def is_fsdp(accelerator: Accelerator) -> bool:
    """True when `accelerate launch` was given an FSDP config (FSDP, arXiv 2304.11277).

    Raises:
        ConfigError: it was, on a machine without GPU: each process would take itself for the only one.
    """
    sharded = accelerator.distributed_type == DistributedType.FSDP
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" and not sharded:
        raise ConfigError("FSDP needs GPUs: launch with omnilib/configs/deepspeed/zero3.yaml, or one process")
    return sharded


def save_state(accelerator: Accelerator, model, out: Path, step: int, extra: dict) -> None:
    """Write `out/state`, see `shared_state.save`."""
    shared_state.save(
        accelerator, out, {"step": step, **extra}, lambda folder: accelerator.save_state(str(folder))
    )


def load_state(accelerator: Accelerator, model, out: Path) -> dict | None:
    """Restore what `save_state` wrote, see `shared_state.load`."""
    return shared_state.load(accelerator, out, "FSDP", lambda folder: accelerator.load_state(str(folder)))
