"""One dial: smoke parts are trained once from the frozen recordings, nano parts are read."""

import json
import random

import numpy as np
import pytest
import torch

from omnilib import scales
from omnilib.audio import VOICE_RATE
from omnilib.data import load_segment, read_manifest
from omnilib.errors import CheckpointError, ConfigError, DataError


def test_unknown_scale_or_part_is_an_error():
    with pytest.raises(ConfigError, match="scale 'paper'"):
        scales.checkpoints("paper", "flow")
    with pytest.raises(ConfigError, match="no part 'flo'"):
        scales.checkpoints("nano", "flo")


def test_a_missing_committed_part_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(scales, "CHECKPOINTS", tmp_path)
    with pytest.raises(CheckpointError, match="checkpoints/nano/flow is missing"):
        scales.checkpoints("nano", "flow")


def test_recordings_are_chosen_by_role_and_language():
    found = scales.recordings("eval", "zh")
    assert {(r["role"], r["language"]) for r in found} == {("eval", "zh")}
    with pytest.raises(DataError, match="no 'nobody' recording"):
        scales.recordings("nobody")


def test_parts_are_trained_once_after_what_they_need(tmp_path, monkeypatch):
    made = []

    def recipe(name):
        return lambda folder: made.append(name)

    monkeypatch.setattr(scales, "SMOKE", tmp_path)
    monkeypatch.setattr(
        scales,
        "RECIPES",
        {"a": ((), recipe("a")), "b": (("a",), recipe("b")), "c": (("a", "b"), recipe("c"))},
    )
    folder = scales.checkpoints("smoke", "c")
    assert made == ["a", "b", "c"]
    assert scales.checkpoints("smoke", "c", "a") == folder
    assert made == ["a", "b", "c"]


def test_a_recipe_that_failed_is_tried_again(tmp_path, monkeypatch):
    tries = []

    def recipe(folder):
        tries.append(folder)
        if len(tries) == 1:
            raise DataError("first time")

    monkeypatch.setattr(scales, "SMOKE", tmp_path)
    monkeypatch.setattr(scales, "RECIPES", {"a": ((), recipe)})
    with pytest.raises(DataError):
        scales.checkpoints("smoke", "a")
    scales.checkpoints("smoke", "a")
    assert len(tries) == 2


def test_training_at_smoke_leaves_the_callers_random_generators_alone(tmp_path, monkeypatch):
    def recipe(folder):
        print("loud")
        torch.manual_seed(1), np.random.seed(1), random.seed(1)  # noqa: NPY002

    def draw():
        return torch.rand(1).item(), np.random.rand(), random.random()  # noqa: NPY002

    monkeypatch.setattr(scales, "SMOKE", tmp_path)
    monkeypatch.setattr(scales, "RECIPES", {"a": ((), recipe)})
    torch.manual_seed(5), np.random.seed(5), random.seed(5)  # noqa: NPY002
    expected = draw()
    torch.manual_seed(5), np.random.seed(5), random.seed(5)  # noqa: NPY002
    folder = scales.checkpoints("smoke", "a")
    assert draw() == expected
    assert (folder / "a" / "output.txt").read_text() == "loud\n"


def test_smoke_corpus_has_every_split_and_whole_sounds(tmp_path):
    (tmp_path / "corpus").mkdir()
    scales.smoke_corpus(tmp_path)
    records = read_manifest(tmp_path / "corpus" / "manifest.jsonl")
    assert {r["split"] for r in records} == {"train", "dev", "test"}
    assert not {r["id"] for r in records if r["split"] != "test"} & {
        r["id"] for r in scales.recordings("eval")
    }
    wave = load_segment(records[0], tmp_path / "corpus")
    assert len(wave) == round(records[0]["duration"] * VOICE_RATE) and wave.abs().max() > 0.01


def test_voices_are_those_of_the_reference_recordings(tmp_path):
    (tmp_path / "voices").mkdir()
    scales.voices(tmp_path)
    entries = json.loads((tmp_path / "voices" / "voices.json").read_text())
    assert set(entries) == {r["speaker"] for r in scales.recordings("reference")}
    assert all((tmp_path / "voices" / e["file"]).is_file() for e in entries.values())


def test_a_missing_part_of_the_brain_names_its_training(tmp_path, monkeypatch):
    monkeypatch.setattr(scales, "CHECKPOINTS", tmp_path)
    for part, stage in {"encoders": "encoders", "brain_stage1": "brain", "brain": "brain"}.items():
        with pytest.raises(CheckpointError, match=f"{part} is missing.*omni train {stage} --config"):
            scales.checkpoints("nano", part)


@pytest.mark.parametrize("part", scales.TRAINED_BY)
def test_commands_that_train_a_missing_part_exist(part):
    words = scales.TRAINED_BY[part].split("`")[1].split()
    stage, config = words[2], words[words.index("--config") + 1]
    assert (scales.ROOT / "omnilib" / "train" / f"{stage}.py").is_file()
    assert (scales.CONFIGS / f"{config}.yaml").is_file() and words[-1] == f"checkpoints/nano/{part}"
