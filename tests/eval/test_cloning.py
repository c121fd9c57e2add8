"""Cloning: a reference, a crowd of strangers, and who is nearest."""

import numpy as np
import pytest
import torch

from omnilib.errors import AudioError
from omnilib.eval import cloning


class Ear:
    """A wave's vector is its first four samples; silence has none."""

    id = "ear"

    def embed(self, wave, rate):
        if not np.asarray(wave).any():
            raise AudioError("silence")
        return np.asarray(wave)[:4].astype(float)


class Voice:
    def __init__(self, speaker, *numbers, language="en"):
        self.speaker, self.numbers, self.language = speaker, numbers, language

    def wave(self, rate):
        return torch.tensor(self.numbers, dtype=torch.float32)


class Set:
    def __init__(self, gallery, references=()):
        self.gallery, self.references = gallery, {v.speaker: v for v in references}

    def of(self, role, language):
        return [voice for voice in self.gallery if voice.language == language]


ANN, BOB, EVE = Voice("ann", 1, 0, 0, 0), Voice("bob", 0, 1, 0, 0), Voice("eve", 1, 1, 0, 0)


def test_the_nearest_stranger_is_found_and_the_speaker_is_no_stranger_to_herself():
    gallery = cloning.Gallery(Set([ANN, BOB, EVE]), Ear())
    made = torch.tensor([1.0, 0.1, 0.0, 0.0])
    found = gallery.compare(made, 16_000, "ann", np.array([1.0, 0, 0, 0]), "en")
    assert found["similarity"] > 0.99
    assert found["impostor"] == pytest.approx(float(np.dot([1, 0.1], [1, 1]) / (np.hypot(1, 0.1) * 2**0.5)))


def test_a_voice_of_another_language_is_no_stranger_to_a_made_one():
    lin = Voice("lin", 1, 0.1, 0, 0, language="zh")
    gallery = cloning.Gallery(Set([BOB, lin]), Ear())
    made, reference = torch.tensor([1.0, 0.1, 0.0, 0.0]), np.array([1.0, 0, 0, 0])
    assert gallery.compare(made, 16_000, "ann", reference, "zh")["impostor"] > 0.99
    assert gallery.compare(made, 16_000, "ann", reference, "en")["impostor"] < 0.2


def test_each_language_has_at_most_so_many_strangers():
    crowd = [Voice(f"{x}{n}", 1, n, 0, 0, language=x) for x in ("en", "zh") for n in range(5)]
    gallery = cloning.Gallery(Set(crowd), Ear(), size=3)
    assert {language: len(found) for language, found in gallery.vectors.items()} == {"en": 3, "zh": 3}


def test_without_a_gallery_the_references_of_the_language_are_the_strangers():
    gallery = cloning.Gallery(Set([], [ANN, BOB, Voice("lin", 1, 1, 1, 1, language="zh")]), Ear())
    assert set(gallery.vectors["en"]) == {"ann", "bob"} and set(gallery.vectors["zh"]) == {"lin"}


def test_silence_is_nobody_and_a_silent_clip_is_no_stranger():
    gallery = cloning.Gallery(Set([ANN, Voice("nobody", 0, 0, 0, 0)]), Ear())
    assert set(gallery.vectors["en"]) == {"ann"}
    silent = gallery.compare(torch.zeros(4), 16_000, "bob", np.array([0, 1.0, 0, 0]), "en")
    assert silent == {"similarity": 0.0, "impostor": 0.0}


def test_figures_count_held_out_voices_only_and_a_human_one_apart():
    row = lambda role, seen, similarity, impostor: {  # noqa: E731
        "role": role, "system": "tts", "seen": seen, "similarity": similarity, "impostor": impostor
    }  # fmt: skip
    rows = [row("eval", False, 0.9, 0.7), row("eval", False, 0.6, 0.7), row("eval", True, 0.1, 0.9)]
    rows += [row("human_voice", False, 0.8, 0.75), row("open", False, 0.0, 1.0)]
    found = cloning.figures(rows)
    assert found["clone_nearest"]["value"] == 0.5 and found["clone_nearest"]["n"] == 2
    assert found["clone_similarity"]["value"] == pytest.approx(0.75)
    assert found["clone_human_nearest"]["value"] == 1.0 and found["clone_human_impostor"]["n"] == 1
    assert cloning.figures([row("open", False, 0.5, 0.4)]) == {}
