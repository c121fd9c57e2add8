"""The unified length pipeline: what holds for every set of lengths, and its padding beside naive batching."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnilib.errors import DataError
from omnilib.train.lengths import LengthBatches, measure_padding

LENGTHS = st.lists(st.integers(1, 400), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None)
@given(
    LENGTHS,
    st.integers(400, 3000),
    st.integers(0, 3),
    st.integers(0, 4),
    st.sampled_from([0.0, 0.05, 0.3]),
)
def test_every_epoch_holds_every_sample_once_within_budget_and_padding(lengths, budget, seed, epoch, padding):
    batches = LengthBatches(lengths, budget, seed, padding, most=16).epoch(epoch)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        cells = len(batch) * max(lengths[i] for i in batch)
        assert cells <= budget and len(batch) <= 16
        assert 1 - sum(lengths[i] for i in batch) / cells <= padding + 1e-9


@settings(max_examples=30, deadline=None)
@given(LENGTHS, st.lists(st.integers(0, 200), min_size=1, max_size=8))
def test_a_step_gives_the_same_samples_in_whatever_order_steps_are_asked_for(lengths, steps):
    straight = LengthBatches(lengths, 500, seed=1)
    known = [straight.at(step) for step in range(201)]
    for fresh in (LengthBatches(lengths, 500, seed=1), straight):
        assert [fresh.at(step) for step in steps] == [known[step] for step in steps]


def test_batches_shrink_as_samples_grow():
    lengths = [20] * 200 + [400] * 20
    batches = LengthBatches(lengths, 800, most=256).epoch(0)
    sizes = {length: max(len(b) for b in batches if lengths[b[0]] == length) for length in (20, 400)}
    assert sizes == {20: 40, 400: 2}


def test_epochs_differ_and_seeds_differ():
    lengths = list(np.random.default_rng(0).integers(10, 50, 100))
    one = LengthBatches(lengths, 400, seed=0)
    assert one.epoch(0) != one.epoch(1) and one.epoch(0) != LengthBatches(lengths, 400, seed=1).epoch(0)
    assert {tuple(sorted(b)) for b in one.epoch(0)} != {tuple(sorted(b)) for b in one.epoch(1)}


def test_padding_of_a_mixed_corpus_is_at_most_5_percent_and_far_below_naive_batching():
    rng = np.random.default_rng(0)
    mixed = [
        rng.integers(20, 60, 600),
        rng.integers(60, 300, 400),
        rng.integers(300, 2000, 60),
        rng.integers(2000, 8000, 8),
    ]
    found = measure_padding(np.concatenate(mixed), budget=8192)
    assert found.unified <= 0.05 and found.naive > 0.4
    assert found.batch_size > 1


@pytest.mark.parametrize(
    ("lengths", "words"),
    [([], "no samples"), ([5, 0], "no positions"), ([5, 99], "raise `positions`")],
)
def test_lengths_that_cannot_be_batched_are_one_line(lengths, words):
    with pytest.raises(DataError, match=words) as caught:
        LengthBatches(lengths, 50)
    assert "\n" not in str(caught.value)
