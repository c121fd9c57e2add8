"""The listener on a corpus of tones: it learns phonemes, resumes exactly, and its loss is what the flow and the vocoder need."""

import json

import pytest
import torch

from omnilib import config as configs
from omnilib.data import read_manifest, write_manifest
from omnilib.errors import DataError
from omnilib.train import common
from omnilib.train import listener as script
from omnilib.train.listener import Listener, frame_labels, heard_loss
from tests import tones


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return tones.build(tmp_path_factory.mktemp("tones"), {"low": 0.8, "high": 1.2}, {"train": 8, "dev": 3})


def settings(manifest, *overrides: str) -> script.Config:
    return configs.load(script.Config, "listener_smoke", [f"manifest={manifest}", *overrides])


def rows(out) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(manifest, tmp_path_factory):
    out = tmp_path_factory.mktemp("listener")
    script.train(settings(manifest, "steps=120", "eval_every=60"), out)
    return out


def test_it_learns_to_hear_phonemes(trained):
    errors = [row["dev_frame_error"] for row in rows(trained) if "dev_frame_error" in row]
    assert errors[-1] < 0.3, errors


def test_labels_are_the_phoneme_at_the_centre_of_a_frame():
    record = {"phonemes": ["pau", "a", "b"], "phoneme_ends": [0.05, 0.08, 0.2]}
    labels = frame_labels(record, 12, {"a": 1, "b": 2})  # centres at 0.01, 0.03, 0.05 ...
    assert labels.tolist() == [0, 0, 0, 1, 2, 2, 2, 2, 2, 2, 0, 0]


def test_it_hears_a_fifth_of_a_second_to_each_side_and_no_more():
    cfg = configs.load(script.Config, "listener_nano").model
    cfg.phonemes = ["a", "b"]
    model, mel = Listener(cfg), torch.randn(1, 40, cfg.mels)
    other = mel.clone()
    other[0, 20] += 1.0
    moved = (model(mel)[0] != model(other)[0]).any(-1)[0].nonzero().flatten()
    assert (int(moved.min()), int(moved.max())) == (11, 29)


def test_what_sounds_alike_costs_nothing_and_what_sounds_worse_costs_more(trained, manifest):
    listener = Listener.load(trained)
    cfg = settings(manifest)
    batches = script.Batches(cfg, read_manifest(manifest), manifest.parent, {p: i + 1 for i, p in enumerate(listener.config.phonemes)})
    batches.cfg.model.phonemes = listener.config.phonemes
    mel, labels = batches.make(batches.segments.records[:4])
    valid = labels >= 0
    blurred = [torch.nn.functional.avg_pool1d(mel, width, 1, width // 2) for width in (9, 25)]
    costs = []
    for made in [mel, *blurred]:
        torch.manual_seed(0)
        costs.append(heard_loss(listener, made, mel, valid).item())
    assert costs[0] == pytest.approx(0.0, abs=1e-6) and costs[0] < costs[1] < costs[2]

    made = blurred[1].clone().requires_grad_()
    heard_loss(listener, made, mel, valid).backward()
    assert made.grad[valid].abs().sum() > 0 and not any(p.requires_grad for p in listener.parameters())


def test_a_killed_run_continues_with_the_same_losses(manifest, tmp_path, monkeypatch):
    cfg, check = settings(manifest), common.check_finite
    script.train(cfg, tmp_path / "whole")

    def killed(loss, step):
        check(loss, step)
        if step == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(common, "check_finite", killed)
        with pytest.raises(KeyboardInterrupt):
            script.train(cfg, tmp_path / "killed")
    script.train(cfg, tmp_path / "killed")
    one, two = ({row["step"]: row["loss"] for row in rows(tmp_path / run) if "loss" in row} for run in ("whole", "killed"))
    assert one == two and set(one) == set(range(1, cfg.steps + 1))


def test_a_corpus_without_times_of_phonemes_is_refused(manifest, tmp_path):
    untimed = [{k: v for k, v in r.items() if k != "phoneme_ends"} for r in read_manifest(manifest)]
    path = manifest.parent / "untimed.jsonl"
    write_manifest(path, untimed)
    with pytest.raises(DataError, match="phonemes have times"):
        script.train(settings(path), tmp_path)
