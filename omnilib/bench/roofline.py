"""The least time that work can take on a device, from the work itself: counted on the meta device, without computing.

A kernel cannot be faster than its bytes over the memory's bandwidth, or its multiplications over the peak. `count` runs work
on meta tensors and notes both for every kernel that eager PyTorch would launch. Two bounds follow:

- roofline      all bytes at the bandwidth or all multiplications at the peak, whichever takes longer: the floor
- kernel by kernel   the sum over kernels of the larger of the two, at the share of the peak that such kernels reach, and of
                the least time that a kernel takes: what to expect from a CUDA graph

What is assumed stands in `Device` and `Reach`; everything else is counted. Bytes are those of distinct inputs and outputs of a
kernel: what stays in a cache between two kernels is counted twice, so small activations are overstated, weights are not.

Source: Williams, Waterman and Patterson 2009, "Roofline", doi 10.1145/1498765.1498785.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


@dataclass(frozen=True)
class Device:
    """What the maker's data sheet says, dense."""

    name: str
    bandwidth: float  # bytes a second
    bf16: float  # operations a second
    tf32: float
    fp32: float

    def peak(self, dtype: torch.dtype, tf32: bool = False) -> float:
        """Operations a second in a type."""
        if dtype in (torch.bfloat16, torch.float16):
            return self.bf16
        return self.tf32 if tf32 else self.fp32


def measured(device: torch.device) -> Device:
    """What a device without a data sheet here does: a copy of 64 MiB, and products of 1024 x 1024; the best of three."""
    large, square = torch.zeros(2**24, device=device), torch.rand(1024, 1024, device=device)
    bandwidth = 2 * large.numel() * 4 / best(large.clone, device)

    def peak(dtype: torch.dtype) -> float:
        a = square.to(dtype)
        return 2 * 1024**3 / best(lambda: a @ a, device)

    single = peak(torch.float32)
    return Device(f"{device.type}, measured", bandwidth, peak(torch.bfloat16), single, single)


def best(work: Callable[[], object], device: torch.device, rounds: int = 3) -> float:
    """Seconds of the quickest round."""
    return min(seconds(work, device) for _ in range(rounds))


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Seconds until the device is through with `work`."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    started = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - started


def device_of(device: torch.device) -> Device:
    """Its data sheet, or what it measures."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device).lower()
        for key, sheet in DEVICES.items():
            if key in name:
                return sheet
    return measured(device)


DEVICES = {
    "h200": Device("H200", 4.8e12, 989e12, 495e12, 67e12),
    "h100": Device("H100", 3.35e12, 989e12, 495e12, 67e12),
    "a100": Device("A100", 2.04e12, 312e12, 156e12, 19.5e12),
    "l40s": Device("L40S", 0.86e12, 362e12, 183e12, 91.6e12),
    "4090": Device("RTX 4090", 1.01e12, 165e12, 82.6e12, 82.6e12),
}


@dataclass(frozen=True)
class Reach:
    """What kernels reach of a device; usual values, to be replaced by measured ones where a GPU is at hand."""

    bandwidth: float = 0.8  # share that a large product with one vector gets
    peak: float = 0.5  # share that a product of a few thousand rows gets
    kernel: float = 2e-6  # seconds that the smallest kernel of a graph takes, its start included


USUAL = Reach()
GOOD = Reach(bandwidth=0.9, peak=0.6, kernel=1.2e-6)  # well tuned


@dataclass
class Kernel:
    """One launch."""

    name: str
    bytes: float
    operations: float
    dtype: torch.dtype


@dataclass
class Work:
    """What `count` found."""

    kernels: list[Kernel] = field(default_factory=list)

    @property
    def bytes(self) -> float:
        return sum(k.bytes for k in self.kernels)

    @property
    def operations(self) -> float:
        return sum(k.operations for k in self.kernels)

    def fused(self) -> "Work":
        """Without element-wise kernels, which torch.compile joins to their neighbours; at best."""
        return Work([k for k in self.kernels if k.operations or k.name in KEPT])

    def roofline(self, device: Device, tf32: bool = False) -> float:
        """Seconds at least."""
        compute = sum(k.operations / device.peak(k.dtype, tf32) for k in self.kernels)
        return max(self.bytes / device.bandwidth, compute)

    def expected(self, device: Device, tf32: bool = False, reach: Reach = USUAL) -> float:
        """Seconds to expect, kernel after kernel."""
        return sum(
            max(
                k.bytes / (reach.bandwidth * device.bandwidth),
                k.operations / (reach.peak * device.peak(k.dtype, tf32)),
                reach.kernel,
            )
            for k in self.kernels
        )


FUSED = {  # one kernel on a GPU, several where they are written out for other devices
    F.scaled_dot_product_attention: "scaled_dot_product_attention",
    F.rms_norm: "rms_norm",
    F.layer_norm: "layer_norm",
    F.silu: "silu",
    F.gelu: "gelu",
}
KEPT = (
    "rms_norm",
    "layer_norm",
    "scatter_",
    "scaled_dot_product_attention",
    "istft",
    "_softmax",
    "sort",
    "cumsum",
)
FREE = ("empty", "empty_like", "empty_strided", "detach", "lift_fresh", "_unsafe_view", "resize_", "alias")
PART = (
    "scatter_",
    "index_select",
    "embedding",
    "gather",
    "index",
    "_embedding_bag",
    "index_copy_",
)  # reads what it needs
PART += ("_embedding_bag_forward_only",)


def size(tensors: list) -> float:
    """Bytes of the distinct tensors."""
    seen = {id(t): t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor)}
    return float(sum(seen.values()))


def multiplications(name: str, func, args: tuple, kwargs: dict, out) -> float:
    """Operations of a product or convolution, two for each multiplication; 0 for all else."""
    if name == "addmm_":
        return 2.0 * out.numel() * args[1].shape[-1]
    if name == "linear":
        return 2.0 * out.numel() * args[0].shape[-1]
    if name == "conv1d":
        return 2.0 * out.numel() * args[1].shape[1] * args[1].shape[2]
    if name == "conv_transpose1d":
        return 2.0 * args[0].numel() * args[1].shape[1] * args[1].shape[2]
    count = flop_registry.get(func.overloadpacket)
    return float(count(*args, **kwargs, out_val=out)) if count else 0.0


class Launches(TorchDispatchMode):
    """Notes every operation that is a kernel."""

    def __init__(self, work: Work):
        super().__init__()
        self.work, self.quiet = work, False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func._schema.name.split("::")[1]
        if self.quiet or func.is_view or name in FREE:
            return out
        read, made = tree_leaves((args, kwargs)), tree_leaves(out)
        tensors = [t for t in (*read, *made) if isinstance(t, Tensor)]
        if not tensors:
            return out
        operations = multiplications(name, func, args, kwargs, out)
        if name in PART:
            moved = 2 * size([args[3] if name == "scatter_" else made[0]])
        else:
            moved = size(tensors)
        self.work.kernels.append(Kernel(name, moved, operations, tensors[0].dtype))
        return out


class Fused(TorchFunctionMode):
    """Counts what a GPU does in one kernel as one."""

    def __init__(self, launches: Launches):
        super().__init__()
        self.launches = launches

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.istft:  # looks at its window's values, which meta tensors have not got
            spectrum, hop = args[0], args[2]
            wave = torch.empty(len(spectrum), hop * (spectrum.shape[-1] - 1), device="meta")
            self.launches.work.kernels.append(Kernel("istft", size([spectrum, wave]), 0.0, wave.dtype))
            return wave
        if func not in FUSED or self.launches.quiet:
            return func(*args, **kwargs)
        self.launches.quiet = True
        try:
            out = func(*args, **kwargs)
        finally:
            self.launches.quiet = False
        operations = 0.0
        if FUSED[func] == "scaled_dot_product_attention":
            q, k = args[0], args[1]
            operations = 4.0 * q.numel() * k.shape[-2] * (0.5 if kwargs.get("is_causal") else 1.0)
        moved = size([*tree_leaves((args, kwargs)), out])
        self.launches.work.kernels.append(Kernel(FUSED[func], moved, operations, out.dtype))
        return out


def count(work: Callable[[], object]) -> Work:
    """Run `work` on meta tensors and note its kernels."""
    found = Work()
    launches = Launches(found)
    with torch.no_grad(), launches, Fused(launches):
        work()
    return found
