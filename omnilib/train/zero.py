"""What DeepSpeed ZeRO changes in a training script: clipping, and states that no process holds alone.

Any process can export the model (`accelerator.get_state_dict`), but optimiser state is spread over all of them, in DeepSpeed's own format.
"""

import os
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs
from transformers.integrations import unset_hf_deepspeed_config

from omnilib.errors import ConfigError
from omnilib.train import shared_state

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
    """Write `out/state`, see `shared_state.save`."""

    def share(folder: Path) -> None:
        engine.save_checkpoint(str(folder), tag=TAG, save_latest=False)

    shared_state.save(accelerator, out, {"step": step, **extra}, share)


def load_state(accelerator: Accelerator, engine, out: Path) -> dict | None:
    """Restore what `save_state` wrote, see `shared_state.load`."""

    def share(folder: Path) -> None:
        if engine.load_checkpoint(str(folder), tag=TAG)[0] is None:
            raise FileNotFoundError(f"it lacks the folder '{TAG}'")

    return shared_state.load(accelerator, out, "DeepSpeed", share)
