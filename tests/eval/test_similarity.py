"""Thresholds and similarity figures."""

import numpy as np
import pytest

from omnilib.eval.similarity import cosine, equal_error, pair_scores, summary, threshold_of


def test_separated_groups_have_no_error_and_a_threshold_between_them():
    assert equal_error(np.array([0.8, 0.9]), np.array([0.1, 0.4])) == (0.0, pytest.approx(0.6))


def test_equal_error_of_known_overlap():
    same, different = np.array([0.3, 0.6, 0.7, 0.8]), np.array([0.1, 0.2, 0.4, 0.65])
    rate, threshold = equal_error(same, different)
    assert rate == pytest.approx(0.25)
    assert 0.4 < threshold <= 0.65


def test_equal_error_of_gaussians_matches_theory():
    rng = np.random.default_rng(0)
    rate, threshold = equal_error(rng.normal(1, 1, 20_000), rng.normal(-1, 1, 20_000))
    assert rate == pytest.approx(0.1587, abs=0.005)  # Phi(-1)
    assert threshold == pytest.approx(0.0, abs=0.05)


def test_one_speaker_alone_gives_no_threshold():
    with pytest.raises(ValueError, match="at least two speakers"):
        threshold_of([np.ones(3), np.ones(3)], ["ann", "ann"])


def test_pairs_are_counted_once():
    vectors = [np.eye(4)[i] for i in (0, 0, 1, 2)]
    same, different = pair_scores(vectors, ["a", "a", "b", "c"])
    assert same.tolist() == [1.0] and different.tolist() == [0.0] * 5


def test_threshold_carries_its_evidence():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 16))
    vectors = [c + 0.1 * rng.normal(size=16) for c in centres for _ in range(4)]
    found = threshold_of(vectors, [name for name in "abc" for _ in range(4)])
    assert (found["same_pairs"], found["different_pairs"], found["speakers"], found["n"]) == (18, 48, 3, 66)
    assert found["equal_error_rate"] == 0
    assert found["different_mean"] < found["value"] < found["same_mean"]
    assert found["ci95"][0] <= found["value"] <= found["ci95"][1]


def test_summary_counts_what_reaches_the_threshold():
    found = summary([0.5, 0.7, 0.9, 0.9], 0.7)
    assert (found["value"], found["above_threshold"], found["minimum"], found["n"]) == (
        pytest.approx(0.75),
        0.75,
        0.5,
        4,
    )
    assert summary([0.5], None)["above_threshold"] is None


def test_cosine_ignores_length():
    assert cosine(np.array([2.0, 0.0]), np.array([5.0, 5.0])) == pytest.approx(np.sqrt(0.5))
