"""Where a model runs: the device a user names, checked before anything is loaded; what it has got."""

import os
from typing import TYPE_CHECKING

from omnilib.errors import UserError

if TYPE_CHECKING:
    import torch

GIB = 2**30


def check_device(name: str) -> str:
    """The name of a device that is there.

    Raises:
        UserError: no such kind of device, or none here.
    """
    import torch

    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (number and not number.isdecimal()) or name.endswith(":"):
        raise UserError(f"no device '{name}': choose cpu or cuda (cuda:1 for the second card)")
    if kind == "cuda":
        if not torch.cuda.is_available():
            raise UserError(
                "no CUDA device is available here: use --device cpu, or install a CUDA build of torch"
            )
        if number and int(number) >= torch.cuda.device_count():
            raise UserError(f"no device '{name}': there are {torch.cuda.device_count()}, counted from cuda:0")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError("no MPS device is available here: use --device cpu")
    if kind == "cpu" and number not in ("", "0"):
        raise UserError(f"no device '{name}': choose cpu")
    return name


def fast_bfloat16(device: "torch.device") -> bool:
    """Whether a device multiplies bfloat16 matrices in hardware."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def free_memory(device: "torch.device") -> int | None:
    """Bytes that are free on a device; None where nobody can tell."""
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu" or not os.path.exists("/proc/meminfo"):  # noqa: PTH110  a kernel file
        return None
    with open("/proc/meminfo") as file:  # noqa: PTH123
        free = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in file}
    return free.get("MemAvailable")
