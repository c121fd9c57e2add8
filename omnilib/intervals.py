"""How sure a mean over samples is: 95 % intervals by drawing the samples again (bootstrap, Efron 1979)."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import binomtest

BOOTSTRAP = 2000


def bootstrap(
    values: Sequence[float], weights: Sequence[float] | None = None, seed: int = 0
) -> tuple[float, list[float]]:
    """Weighted mean over samples and its 95 % interval.

    Raises:
        ValueError: no samples.
    """
    x = np.asarray(values, dtype=float)
    w = np.ones_like(x) if weights is None else np.asarray(weights, dtype=float)
    if not len(x):
        raise ValueError("no samples: nothing to average")
    draws = np.random.default_rng(seed).integers(len(x), size=(BOOTSTRAP, len(x)))
    means = (x[draws] * w[draws]).sum(1) / w[draws].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float((x * w).sum() / w.sum()), [float(low), float(high)]


def share(hits: Sequence[bool]) -> tuple[float, list[float]]:
    """A share and its exact 95 % interval (Clopper and Pearson)."""
    interval = binomtest(sum(hits), len(hits)).proportion_ci(method="exact")
    return sum(hits) / len(hits), [float(interval.low), float(interval.high)]
