"""Recording work: what replays it begins where the caller stood, and copies go where they should."""

import pytest
import torch

from omnilib import captured
from omnilib.captured import Captured, Readback, recorder, to_device

CPU = torch.device("cpu")


def test_recording_leaves_the_state_as_it_was():
    count, runs = torch.zeros(1), []

    def work():
        runs.append(1)
        count.add_(1)

    def record(work, reset):
        for _ in range(3):  # warm up
            work()
            assert count.item() == 1, "every run begins with the same state"
            reset()
        return lambda: count.add_(1)

    step = Captured(work, [count], record)
    for expected in (1, 2, 3):
        step()
        assert count.item() == expected and len(runs) == 3


def test_without_a_recorder_work_is_called():
    runs = []
    step = Captured(lambda: runs.append(1), [], recorder(CPU))
    step(), step()
    assert len(runs) == 2


def test_the_device_and_the_wish_decide_how_work_is_recorded():
    cuda = torch.device("cuda")
    assert recorder(CPU) is None and recorder(CPU, fuse=True) is captured.compiled
    assert recorder(cuda) is captured.cuda_graph and recorder(cuda, fuse=True) is captured.compiled_cuda_graph


def test_compiling_resets_and_breaks_no_graph(monkeypatch):
    monkeypatch.setattr(captured, "BACKEND", "eager")
    torch._dynamo.reset()
    count = torch.zeros(1)
    step = Captured(lambda: count.add_(1), [count], captured.compiled)
    for expected in (1, 2):
        step()
        assert count.item() == expected
    broken = Captured(torch._dynamo.graph_break, [count], captured.compiled)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        broken()


def test_a_readback_keeps_what_was_there():
    source = torch.tensor([1, 2])
    back = Readback(source)
    source.add_(5)
    assert back.get().tolist() == [1, 2]
    assert to_device(source, CPU) is source


@pytest.mark.gpu
def test_a_cuda_graph_replays_on_what_the_tensors_hold_then():
    x, total = torch.ones(3, device="cuda"), torch.zeros(3, device="cuda")
    step = Captured(lambda: total.add_(x), [total], recorder(x.device))
    step()
    x.fill_(10)
    step()
    assert Readback(total).get().tolist() == [11, 11, 11]
