"""Checkpoints: atomic on a full disk, exact to resume, clear when corrupt."""

import errno
import json
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from omnilib import storage
from omnilib.errors import CheckpointError, ConfigError, UserError
from omnilib.train import common


def make(seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2)


def steps(model, optimizer, first: int, last: int) -> list[float]:
    """Losses of steps first..last-1; dropout makes them depend on the RNG state too."""
    losses = []
    for step in range(first, last):
        x = torch.full((2, 4), float(step))
        loss = model(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_resumed_run_gives_the_same_losses(tmp_path):
    model, optimizer = make()
    steps(model, optimizer, 0, 3)
    common.save_state(tmp_path, model, optimizer, 3, {"best": 1.5})
    expected = steps(model, optimizer, 3, 8)
    fresh, fresh_optimizer = make(seed=99)
    meta = common.load_state(tmp_path, fresh, fresh_optimizer)
    assert meta == {"step": 3, "best": 1.5}
    assert steps(fresh, fresh_optimizer, 3, 8) == expected


def test_nothing_to_resume_is_none(tmp_path):
    assert common.load_state(tmp_path, *make()) is None


def test_full_disk_keeps_the_previous_state(tmp_path, monkeypatch):
    model, optimizer = make()
    common.save_state(tmp_path, model, optimizer, 1)

    def full(weights, path):
        path.write_bytes(b"half a file")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(common, "save_file", full)
    with pytest.raises(CheckpointError, match="free disk space"):
        common.save_state(tmp_path, model, optimizer, 2)
    monkeypatch.undo()
    assert common.load_state(tmp_path, *make(5)) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


def test_full_disk_while_exporting_keeps_the_exported_model(tmp_path, monkeypatch):
    model, _ = make()
    common.export_model(tmp_path, model, {"width": 4}, {"step": 1})
    before = (tmp_path / "model.safetensors").read_bytes()

    def full(weights, path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(common, "save_file", full)
    with pytest.raises(CheckpointError):
        common.export_model(tmp_path, make(7)[0], {"width": 4}, {"step": 2})
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert json.loads((tmp_path / "meta.json").read_text()) == {"step": 1}


def test_kill_between_the_two_renames_is_recovered(tmp_path):
    model, optimizer = make()
    common.save_state(tmp_path, model, optimizer, 4)
    (tmp_path / "state").rename(tmp_path / "state.old")
    assert common.load_state(tmp_path, *make(5)) == {"step": 4}


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "meta.json"])
def test_truncated_state_is_one_clear_line(tmp_path, name):
    model, optimizer = make()
    common.save_state(tmp_path, model, optimizer, 1)
    path = tmp_path / "state" / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError) as error:
        common.load_state(tmp_path, *make(5))
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_optimizer_state_is_never_unpickled_freely(tmp_path):
    import os
    import pickle

    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "attacked"),)

    model, optimizer = make()
    common.save_state(tmp_path, model, optimizer, 1)
    (tmp_path / "state" / "optimizer.pt").write_bytes(pickle.dumps(Attack()))
    with pytest.raises(CheckpointError):
        common.load_state(tmp_path, *make(5))
    assert not (tmp_path / "attacked").exists()


def test_weights_of_another_model_are_refused(tmp_path):
    common.export_model(tmp_path, nn.Linear(3, 2), {}, {})
    with pytest.raises(CheckpointError, match="does not fit"):
        storage.load_weights(nn.Linear(3, 4), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="missing"):
        storage.load_weights(nn.Sequential(nn.Linear(3, 2)), tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("form", "bytes_each", "error"), [("float32", 4, 0.0), ("bfloat16", 2, 4e-3), ("int8", 1, 8e-3)]
)
def test_an_export_loads_back_to_float32(tmp_path, form, bytes_each, error):
    model, other = nn.Conv1d(64, 128, 3), nn.Conv1d(64, 128, 3)
    with torch.no_grad():
        model.weight[0] *= 1e-3  # a row of its own size
        model.weight[1] = 0
    common.export_model(tmp_path, model, {}, {}, form)
    storage.load_weights(other, tmp_path / "model.safetensors")
    assert other.weight.dtype == torch.float32
    largest = model.weight.abs().amax((1, 2), keepdim=True)
    assert ((other.weight - model.weight).abs() <= error * largest).all()
    assert (tmp_path / "model.safetensors").stat().st_size < bytes_each * model.weight.numel() + 3000


def test_an_unknown_form_of_storage_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="int4.*use one of"):
        common.export_model(tmp_path, nn.Linear(2, 2), {}, {}, "int4")


def test_log_of_a_resumed_run_has_each_step_once(tmp_path):
    log = common.JsonlLog(tmp_path / "log.jsonl")
    for step in range(5):
        log.write(step, loss=1.0)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # killed in the middle of a line
    log = common.JsonlLog(tmp_path / "log.jsonl", resume_step=2)
    log.write(3, loss=2.0)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [0, 1, 2, 3]


def test_learning_rate_warms_up_then_falls_to_its_floor():
    rates = [common.lr_at(s, 100, 1.0, 10) for s in range(101)]
    assert rates[:10] == pytest.approx([(s + 1) / 10 for s in range(10)])
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))
    assert rates[100] == pytest.approx(0.05)


def test_nan_loss_stops_the_run():
    with pytest.raises(UserError, match="step 7"):
        common.check_finite(torch.tensor(float("nan")), 7)


@dataclass
class Settings:
    lr: float = 1.0
    steps: int = 5
    log_every: int = 1
    init: dict = field(default_factory=dict)


def test_a_run_goes_on_in_its_folder_with_its_own_settings_only(tmp_path):
    common.claim(tmp_path / "run", Settings())
    common.claim(tmp_path / "run", Settings(lr=2.0))  # nothing to go on from yet
    common.save_state(tmp_path / "run", *make(), 1)
    common.claim(tmp_path / "run", Settings(lr=2.0, steps=9, log_every=3))
    with pytest.raises(CheckpointError, match="another lr, init: name another --out"):
        common.claim(tmp_path / "run", Settings(init={"": "runs/a"}))
    common.claim(tmp_path / "run", Settings(lr=2.0))
