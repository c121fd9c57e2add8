"""Voice similarity: is it the same speaker? Cosine of two judge vectors, with a threshold from held-out speakers.

The threshold stands where as many same-speaker pairs fall below it as different-speaker pairs above it (equal error rate).

Shape legend: N recordings, E embedding width.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from omnilib.eval.wer import bootstrap


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine of two vectors (E,)."""
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def pair_scores(vectors: Sequence[np.ndarray], speakers: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of all pairs: of one speaker, and of two."""
    same, different = [], []
    for i, j in combinations(range(len(vectors)), 2):
        (same if speakers[i] == speakers[j] else different).append(cosine(vectors[i], vectors[j]))
    return np.array(same), np.array(different)


def equal_error(same: np.ndarray, different: np.ndarray) -> tuple[float, float]:
    """(equal error rate, threshold): `score >= threshold` means the same speaker.

    With no overlap the rate is 0 and the threshold lies midway between the two groups.

    Raises:
        ValueError: a group is empty.
    """
    if not len(same) or not len(different):
        raise ValueError(
            "need pairs of one speaker and of two: at least two speakers, one of them with two recordings"
        )
    same, different = np.sort(same), np.sort(different)
    if same[0] > different[-1]:
        return 0.0, float((same[0] + different[-1]) / 2)
    thresholds = np.unique(np.concatenate([same, different]))
    rejected = np.searchsorted(same, thresholds) / len(same)  # same speaker below the threshold
    accepted = 1 - np.searchsorted(different, thresholds) / len(different)  # two speakers at or above it
    best = int(np.argmin(np.abs(rejected - accepted)))
    return float((rejected[best] + accepted[best]) / 2), float(thresholds[best])


def threshold_of(vectors: Sequence[np.ndarray], speakers: Sequence[str], seed: int = 0) -> dict:
    """Same-speaker threshold with its error rate and an interval over resampled pairs."""
    same, different = pair_scores(vectors, speakers)
    rate, threshold = equal_error(same, different)
    rng = np.random.default_rng(seed)
    draws = [
        equal_error(rng.choice(same, len(same)), rng.choice(different, len(different)))[1] for _ in range(200)
    ]
    low, high = np.percentile(draws, [2.5, 97.5])
    return {
        "value": threshold,
        "n": len(same) + len(different),
        "ci95": [float(low), float(high)],
        "equal_error_rate": rate,
        "speakers": len(set(speakers)),
        "same_pairs": len(same),
        "different_pairs": len(different),
        "same_mean": float(same.mean()),
        "different_mean": float(different.mean()),
    }


def summary(scores: Sequence[float], threshold: float | None, seed: int = 0) -> dict:
    """Mean similarity with ci95 and the share of scores at or above the threshold, where one was measured."""
    value, interval = bootstrap(scores, seed=seed)
    return {
        "value": value,
        "n": len(scores),
        "ci95": interval,
        "above_threshold": None if threshold is None else float(np.mean(np.asarray(scores) >= threshold)),
        "minimum": float(min(scores)),
    }
