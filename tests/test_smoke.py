"""Smoke parts are trained once from the frozen recordings."""

import json
import random

import numpy as np
import pytest
import torch

from omnilib import checkpoints, frozen, smoke
from omnilib.audio import VOICE_RATE
from omnilib.data import load_segment, read_manifest
from omnilib.errors import DataError


def test_parts_are_trained_once_after_what_they_need(tmp_path, monkeypatch):
    made = []

    def recipe(name):
        return lambda folder: made.append(name)

    monkeypatch.setattr(smoke, "SMOKE", tmp_path)
    monkeypatch.setattr(
        smoke,
        "RECIPES",
        {"a": ((), recipe("a")), "b": (("a",), recipe("b")), "c": (("a", "b"), recipe("c"))},
    )
    folder = checkpoints.folder("smoke", "c")
    assert made == ["a", "b", "c"]
    assert checkpoints.folder("smoke", "c", "a") == folder
    assert made == ["a", "b", "c"]


def test_a_recipe_that_failed_is_tried_again(tmp_path, monkeypatch):
    tries = []

    def recipe(folder):
        tries.append(folder)
        if len(tries) == 1:
            raise DataError("first time")

    monkeypatch.setattr(smoke, "SMOKE", tmp_path)
    monkeypatch.setattr(smoke, "RECIPES", {"a": ((), recipe)})
    with pytest.raises(DataError):
        checkpoints.folder("smoke", "a")
    checkpoints.folder("smoke", "a")
    assert len(tries) == 2


def test_training_at_smoke_leaves_the_callers_random_generators_alone(tmp_path, monkeypatch):
    def recipe(folder):
        print("loud")
        torch.manual_seed(1), np.random.seed(1), random.seed(1)  # noqa: NPY002

    def draw():
        return torch.rand(1).item(), np.random.rand(), random.random()  # noqa: NPY002

    monkeypatch.setattr(smoke, "SMOKE", tmp_path)
    monkeypatch.setattr(smoke, "RECIPES", {"a": ((), recipe)})
    torch.manual_seed(5), np.random.seed(5), random.seed(5)  # noqa: NPY002
    expected = draw()
    torch.manual_seed(5), np.random.seed(5), random.seed(5)  # noqa: NPY002
    folder = checkpoints.folder("smoke", "a")
    assert draw() == expected
    assert (folder / "a" / "output.txt").read_text() == "loud\n"


def test_smoke_corpus_has_every_split_and_whole_sounds(tmp_path):
    (tmp_path / "corpus").mkdir()
    smoke.smoke_corpus(tmp_path)
    records = read_manifest(tmp_path / "corpus" / "manifest.jsonl")
    assert {r["split"] for r in records} == {"train", "dev", "test"}
    assert not {r["id"] for r in records if r["split"] != "test"} & {
        r["id"] for r in frozen.recordings("eval")
    }
    wave = load_segment(records[0], tmp_path / "corpus")
    assert len(wave) == round(records[0]["duration"] * VOICE_RATE) and wave.abs().max() > 0.01


def test_voices_are_those_of_the_reference_recordings(tmp_path):
    (tmp_path / "voices").mkdir()
    smoke.voices(tmp_path)
    entries = json.loads((tmp_path / "voices" / "voices.json").read_text())
    assert set(entries) == {r["speaker"] for r in frozen.recordings("reference")}
    assert all((tmp_path / "voices" / e["file"]).is_file() for e in entries.values())
