"""What FSDP2 changes in a training script: states that no process holds alone.

Any process can export the model (`accelerator.get_state_dict`). States are written and read by all
together, in the format of torch.distributed.checkpoint, which unpickles. So resume only runs of your own.
Not run yet: accelerate shards on GPUs only, and none was at hand; ZeRO-3 is tested.
"""

import json
import os
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import DistributedType

from omnilib.errors import CheckpointError, ConfigError
from omnilib.train.common import atomic_folder


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
    """Write `out/state` whole or not at all; every process must call this.

    Raises:
        CheckpointError: the disk is full or not writable; the state before is unchanged.
    """
    target = Path(out) / "state"

    def write(folder: Path) -> None:
        accelerator.wait_for_everyone()  # until the main process has made the folder
        accelerator.save_state(str(folder))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            (folder / "meta.json").write_text(
                json.dumps({"step": step, "processes": accelerator.num_processes, **extra}),
            )

    if accelerator.is_main_process:
        atomic_folder(target, write)
    else:
        write(target.with_name("state.tmp"))
    accelerator.wait_for_everyone()


def load_state(accelerator: Accelerator, model, out: Path) -> dict | None:
    """Restore what `save_state` wrote; None when there is nothing to resume.

    Raises:
        CheckpointError: the state is of another number of processes, or damaged.
    """
    folder, old = Path(out) / "state", Path(out) / "state.old"
    if accelerator.is_main_process and not folder.exists() and (old / "meta.json").is_file():
        old.rename(folder)  # killed between two renames
    accelerator.wait_for_everyone()
    if not (folder / "meta.json").is_file():
        return None
    meta = json.loads((folder / "meta.json").read_text())
    if meta.get("processes") != accelerator.num_processes:
        raise CheckpointError(
            f"{folder} is not of {accelerator.num_processes} FSDP processes: launch as before, or delete it",
        )
    try:
        accelerator.load_state(str(folder))
    except Exception as error:  # torch and pickle raise their own
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"cannot resume from {folder}: {first}; delete the folder to start again",
        ) from error
    return meta
