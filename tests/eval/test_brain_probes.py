"""Probes of a brain's hearing: what is changed is changed, and what is the same costs nothing."""

import numpy as np
import pytest
import torch

from omnilib.brain.trained import Base, build_base
from omnilib.errors import ConfigError
from omnilib.eval import brain_probes
from omnilib.train.brain_samples import read_samples


@pytest.fixture(scope="module")
def brain():
    return build_base(Base(base="smoke"))


PAIRS = [(brain_probes.tone(letter, 0.8), letter) for letter in brain_probes.TONES]


def test_the_loss_is_that_of_the_model_on_the_whole_batch(brain):
    model, processor = brain
    batch = brain_probes.transcription(processor, *PAIRS[0])
    with torch.no_grad():
        whole = float(model(**batch).loss)
    assert brain_probes.text_loss(model, processor, *PAIRS[0]) == pytest.approx(whole, abs=1e-5)


def test_an_encoder_that_is_silenced_gives_zeros_and_the_other_stays():
    main, aux = torch.ones(1, 3, 4), torch.ones(1, 6, 2)
    for name, kept in {"main": (0, 1), "auxiliary": (1, 0), "both": (0, 0)}.items():
        changed = brain_probes.silence(name)(main, aux)
        assert [float(frames.mean()) for frames in changed] == list(kept), name
    with pytest.raises(ConfigError, match="no encoder 'left'"):
        brain_probes.silence("left")


def test_silence_changes_the_loss_of_a_brain_whose_features_are_loud(brain):
    model, processor = brain
    with torch.no_grad():
        for weight in model.model.mm_speech_projector.parameters():
            weight.mul_(8)
    both = brain_probes.losses(model, processor, PAIRS)
    for name in ("main", "both"):
        assert brain_probes.losses(model, processor, PAIRS, brain_probes.silence(name)) != both, name


def test_every_text_gets_the_recording_of_its_neighbour():
    swapped = brain_probes.swapped(PAIRS)
    assert [text for _, text in swapped] == [text for _, text in PAIRS]
    assert all(torch.equal(a[0], b[0]) for a, b in zip(swapped, PAIRS[::-1], strict=True))


def test_the_tone_corpus_is_one_that_training_reads(tmp_path):
    samples = read_samples(brain_probes.tone_corpus(tmp_path / "tones"))
    assert {(s["split"], s["turns"][1]["text"]) for s in samples} == {
        ("train", "l"), ("train", "h"), ("dev", "l"), ("dev", "h")
    }  # fmt: skip


@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
def test_a_hidden_tone_lies_where_it_is_asked_to(depth):
    wave = brain_probes.hidden_tone("h", 4.0, depth, seed=1).numpy()
    assert len(wave) == 64_000
    loud = np.flatnonzero(np.abs(wave) > 0.1) / 16_000
    assert loud.min() == pytest.approx(depth * 3.4, abs=0.01)
    assert loud.max() == pytest.approx(depth * 3.4 + 0.6, abs=0.01)


def test_cost_counts_every_step_and_positions_grow_with_length(brain):
    rows = [brain_probes.cost(*brain, seconds, new=3) for seconds in (1.0, 4.0)]
    assert set(rows[0]) == {"seconds", "positions", "spectrum", "encoders", "prompt", "answer"}
    assert rows[1]["positions"] - rows[0]["positions"] == 15, "5 a second"
    assert all(row[name] > 0 for row in rows for name in ("spectrum", "encoders", "prompt", "answer"))
