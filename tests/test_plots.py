"""Figures draw what they are given."""

import json

import numpy as np
import pytest

from omnilib import plots


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plots.plt.close("all")


def test_loss_curves_skip_rows_without_the_key_and_smooth_to_the_mean(tmp_path):
    rows = [{"step": s, "loss": float(s % 2)} for s in range(10)] + [{"step": 10, "dev_error": 0.5}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (axis,) = plots.loss_curves({"run": tmp_path / "log.jsonl"}, smooth=2).axes
    raw, smooth = axis.lines
    assert len(raw.get_xdata()) == 10
    assert np.allclose(smooth.get_ydata(), 0.5)


def test_token_grid_colours_cells_by_what_they_mean():
    speech = np.array([[9, 9], [1, 2], [8, 8], [9, 9]])
    figure = plots.token_grid(["a", "b", "", "sep"], speech, eos=8, pad=9, separators=[3], blanks=[2])
    kinds = figure.axes[0].images[0].get_array()
    assert kinds.tolist() == [[1, 0, 3, 4], [1, 2, 3, 4]]


def test_bars_show_value_and_interval_in_percent():
    (axis,) = plots.bars(
        {"gt": (0.05, 0.04, 0.07), "tts": (0.1, 0.08, 0.15)}, "WER", line=0.2, line_label="goal"
    ).axes
    assert [round(p.get_height(), 6) for p in axis.patches] == [5.0, 10.0]
    low, high = axis.collections[0].get_segments()[0][:, 1]
    assert (low, high) == pytest.approx((4.0, 7.0))


def test_spectrograms_share_the_time_axis_of_different_frame_rates():
    figure = plots.spectrograms({"a": np.zeros((4, 100)), "b": np.ones((8, 50))}, [100, 50], shared=True)
    assert [a.images[0].get_extent()[1] for a in figure.axes] == [1.0, 1.0]
    assert figure.axes[0].images[0].get_clim() == figure.axes[1].images[0].get_clim() == (0.0, 1.0)


def test_funnel_and_shares_name_every_part():
    texts = [t.get_text() for t in plots.funnel([("raw", 10.0), ("kept", 5.0)]).axes[0].texts]
    assert texts == [" 10 hours (100 %)", " 5 hours (50 %)"]
    labels = plots.shares({"mouth": 1.0, "flow": 3.0}, total=8.0).axes[0].get_legend_handles_labels()[1]
    assert labels == ["mouth 0.125", "flow 0.375"]


@pytest.mark.parametrize(
    ("keys", "rows"), [(("a",), 1), (("a", "b"), 1), (("a", "b", "c"), 2), (("a", "b", "c", "d"), 2)]
)
def test_loss_curves_stand_two_beside_each_other_and_leave_no_empty_panel(keys, rows):
    figure = plots.loss_curves({"run": [{"step": s, **dict.fromkeys(keys, 1.0)} for s in range(3)]}, keys)
    assert [axis.get_title() for axis in figure.axes] == list(keys)
    assert len({round(axis.get_subplotspec().rowspan.start) for axis in figure.axes}) == rows
    assert figure.get_figwidth() <= 8.8, "no wider than a page's column, so that its words keep their size"
