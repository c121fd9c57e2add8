"""What DeepSpeed ZeRO changes in a training script: clipping, and states that no process holds alone.

Any process can export the model (`accelerator.get_state_dict`), but optimiser state is spread over all of them: they write
and read `state/` together, in DeepSpeed's own format, which torch has to unpickle. So resume only runs of your own.
"""

import json
import os
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs
from transformers.integrations import unset_hf_deepspeed_config

from omnilib.errors import CheckpointError, ConfigError
from omnilib.train.common import atomic_folder

TAG = "zero"  # the sub-folder of state/ that DeepSpeed writes


def make_accelerator() -> Accelerator:
    """`Accelerator()`; on a machine without GPU DeepSpeed is told how its processes talk, or each takes itself for the only one."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") != "true":
        return Accelerator()
    if torch.cuda.is_available():
        accelerator = Accelerator()
    else:
        import deepspeed  # an optional package

        deepspeed.ops.__compatible_ops__ = {}  # else it compiles an all-reduce of its own at first use; gloo has one
        accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")])
    unset_hf_deepspeed_config()  # else transformers loads models in parts under ZeRO-3; ours are shared out by `prepare`
    return accelerator


def is_zero(accelerator: Accelerator) -> bool:
    """True when `accelerate launch` was given a DeepSpeed config."""
    return accelerator.distributed_type == DistributedType.DEEPSPEED


def set_up(accelerator: Accelerator, optimizers: int, clip: float) -> None:
    """Tell DeepSpeed what the script decides; call before `accelerator.prepare` (ZeRO, arXiv 1910.02054).

    Raises:
        ConfigError: more than one optimiser.
    """
    if optimizers != 1:
        raise ConfigError("DeepSpeed takes one optimizer: set optimizer=adamw")
    settings = accelerator.state.deepspeed_plugin.deepspeed_config
    settings["gradient_clipping"] = clip
    settings["train_micro_batch_size_per_gpu"] = (
        1  # our batches hold rows, not a fixed number of samples; only printed
    )


def save_state(accelerator: Accelerator, engine, out: Path, step: int, extra: dict) -> None:
    """Write `out/state` whole or not at all; every process must call this.

    Raises:
        CheckpointError: the disk is full or not writable; the state before is unchanged.
    """
    target = Path(out) / "state"

    def write(folder: Path) -> None:
        engine.save_checkpoint(
            str(folder), tag=TAG, save_latest=False
        )  # its first barrier waits for the main process
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            (folder / "meta.json").write_text(
                json.dumps({"step": step, "processes": accelerator.num_processes, **extra})
            )

    if accelerator.is_main_process:
        atomic_folder(target, write)
    else:
        write(target.with_name("state.tmp"))
    accelerator.wait_for_everyone()


def load_state(accelerator: Accelerator, engine, out: Path) -> dict | None:
    """Restore what `save_state` wrote; None when there is nothing to resume.

    Raises:
        CheckpointError: the state is of another number of processes, not of DeepSpeed, or damaged.
    """
    folder, old = Path(out) / "state", Path(out) / "state.old"
    if accelerator.is_main_process and not folder.exists() and (old / "meta.json").is_file():
        old.rename(folder)  # killed between two renames
    accelerator.wait_for_everyone()
    if not (folder / "meta.json").is_file():
        return None
    meta = json.loads((folder / "meta.json").read_text())
    world = accelerator.num_processes
    if meta.get("processes") != world:
        wrote = (
            f"{meta['processes']} DeepSpeed processes" if "processes" in meta else "a run without DeepSpeed"
        )
        raise CheckpointError(
            f"{folder} is of {wrote}, this run has {world}: launch it the same way, or delete the folder to start again"
        )
    try:
        path, _ = engine.load_checkpoint(str(folder), tag=TAG)
    except Exception as error:  # DeepSpeed lets through whatever torch, pickle or an assertion raise
        raise CheckpointError(
            f"cannot resume from {folder}: {error}; delete the folder to start again"
        ) from error
    if path is None:
        raise CheckpointError(
            f"cannot resume from {folder}: it lacks the folder '{TAG}'; delete it to start again"
        )
    return meta
