"""States of a run that no process holds alone: all write and read `state/` together, each its own share.

What a share looks like is the business of `zero.py` and `fsdp.py`; both formats hold pickles, so resume only runs of your own.
"""

import json
from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator

from omnilib.errors import CheckpointError
from omnilib.train.common import atomic_folder


def save(accelerator: Accelerator, out: Path, meta: dict, share: Callable[[Path], None]) -> None:
    """Write `out/state` whole or not at all; every process must call this.

    Args:
        share: writes the share of this process into a folder.

    Raises:
        CheckpointError: the disk is full or not writable; the state before is unchanged.
    """
    target = Path(out) / "state"

    def write(folder: Path) -> None:
        accelerator.wait_for_everyone()  # until the main process has made the folder
        share(folder)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            text = json.dumps(meta | {"processes": accelerator.num_processes})
            (folder / "meta.json").write_text(text, encoding="utf-8")

    if accelerator.is_main_process:
        atomic_folder(target, write)
    else:
        write(target.with_name("state.tmp"))
    accelerator.wait_for_everyone()


def load(accelerator: Accelerator, out: Path, kind: str, share: Callable[[Path], None]) -> dict | None:
    """Restore what `save` wrote; its meta, None when there is nothing to resume.

    Args:
        kind: how these runs are called in an error.
        share: reads the share of this process from a folder; may raise anything.

    Raises:
        CheckpointError: the state is of another number of processes or another kind, or damaged.
    """
    folder, old = Path(out) / "state", Path(out) / "state.old"
    if accelerator.is_main_process and not folder.exists() and (old / "meta.json").is_file():
        old.rename(folder)  # killed between two renames
    accelerator.wait_for_everyone()
    if not (folder / "meta.json").is_file():
        return None
    meta, world = json.loads((folder / "meta.json").read_text(encoding="utf-8")), accelerator.num_processes
    if meta.get("processes") != world:
        wrote = f"{meta['processes']} {kind} processes" if "processes" in meta else f"a run without {kind}"
        raise CheckpointError(
            f"{folder} is of {wrote}, this run has {world}: launch it the same way, or delete the folder to start again"
        )
    try:
        share(folder)
    except Exception as error:  # torch, pickle and DeepSpeed raise whatever they like
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"cannot resume from {folder}: {reason}; delete the folder to start again"
        ) from error
    return meta
