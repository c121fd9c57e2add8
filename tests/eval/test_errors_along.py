"""Where errors fall along a long text."""

import numpy as np
import pytest

from omnilib.eval import long_tts_eval


def test_errors_that_pile_up_give_a_ratio_above_one_and_equal_ones_give_one():
    rising = np.tile(np.linspace(0.1, 0.5, 10), (6, 1))
    ratio, (low, high), edge = long_tts_eval.end_over_beginning(rising)
    assert edge == 4 and ratio == pytest.approx(rising[0, -4:].mean() / rising[0, :4].mean()) and low > 1
    even, (low, high), _ = long_tts_eval.end_over_beginning(
        np.random.default_rng(0).uniform(0.1, 0.2, (8, 10))
    )
    assert low <= even <= high and low < 1.2 and even == pytest.approx(1, abs=0.2)
