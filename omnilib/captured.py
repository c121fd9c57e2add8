"""Work of fixed shape, recorded once on a CUDA device and replayed with one call: a CUDA graph.

A small model spends its time on launching kernels: a row of the mouth is some hundred of them, a step of the flow a
thousand. A graph launches all of them at once. What may be recorded: work without arguments or results that reads and
writes fixed tensors in place, never looks at a value and makes no tensor on the host. Python runs only while it is
recorded, so every number that changes from call to call must lie in a tensor; `tests/test_captured.py` and the tests of the
two users, `mouth/static_step.py` and `voice/captured_flow.py`, prove that on a CPU by replaying a trace.

Source: https://pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from omnilib.device import free_memory

Work = Callable[[], None]
Record = Callable[[Work, Work], Work]  # (work, reset) -> replay; it resets the state after each run of work

STATIC = ("auto", "on", "off", "compiled")  # whether steps have fixed shapes; auto: on CUDA. See `recorder`
BACKEND = "inductor"  # of torch.compile
RECORDINGS = 256  # of one function that torch.compile may make; it gives up at 8 otherwise
WARM_UP = 2  # runs before recording: libraries choose kernels and take workspaces then


def cuda_graph(work: Work, reset: Work) -> Work:
    """Record `work` on the current CUDA device; call the result to run it."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            work()
            reset()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may go on allocating
        work()
    return graph.replay


def compiled(work: Work, reset: Work) -> Work:
    """Let torch.compile join the small operations of `work`; takes a minute or so, and a compiler on this machine."""
    fused = torch.compile(work, fullgraph=True, dynamic=False, backend=BACKEND)
    with torch._dynamo.config.patch(recompile_limit=RECORDINGS):
        fused()
    reset()
    return fused


def compiled_cuda_graph(work: Work, reset: Work) -> Work:
    """A graph of fewer, larger kernels."""
    return cuda_graph(compiled(work, reset), reset)


def recorder(device: torch.device, fuse: bool = False) -> Record | None:
    """How work is recorded on a device; None: it is simply called.

    Args:
        fuse: by torch.compile first.
    """
    if device.type == "cuda":
        return compiled_cuda_graph if fuse else cuda_graph
    return compiled if fuse else None


class Captured:
    """Work that is recorded at its first call.

    Args:
        work: see the module docstring.
        state: the tensors whose values `work` both reads and changes; recording leaves them as they were.
        record: see `recorder`.
    """

    def __init__(self, work: Work, state: Sequence[Tensor], record: Record | None):
        self.work, self.state, self.record = work, state, record
        self.replay: Work | None = None if record else work

    def __call__(self) -> None:
        if self.replay is None:
            before = [t.clone() for t in self.state]

            def reset() -> None:
                for t, old in zip(self.state, before, strict=True):
                    t.copy_(old)

            self.replay = self.record(self.work, reset)
        self.replay()


def room(device: torch.device) -> int | None:
    """Bytes that torch can still take on a device; None where nobody can tell."""
    free = free_memory(device)
    if device.type == "cuda":  # what torch has taken and does not use counts as free
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free


def to_device(host: Tensor, device: torch.device) -> Tensor:
    """A copy that the host does not wait for: from pinned memory on CUDA. What is on a device already may stay there."""
    if device.type != "cuda" or host.is_cuda:
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)


class Readback:
    """A small tensor on its way to the host: `get` waits for this copy, not for what was queued after it."""

    def __init__(self, source: Tensor):
        self.event = None
        if source.is_cuda:
            self.copy = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
            self.copy.copy_(source, non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record()
        else:
            self.copy = source.clone()

    def get(self) -> Tensor:
        if self.event is not None:
            self.event.synchronize()
        return self.copy
