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


def test_a_power_law_is_found_again_and_short_lengths_may_be_left_out():
    x = np.array([1.0, 2, 4, 8, 16])
    assert plots.power_law(x, 3 * x**1.5) == pytest.approx((1.5, 3.0))
    flat = np.maximum(3 * x**1.5, 100)
    assert plots.power_law(x, flat, least=16 / 2)[0] > plots.power_law(x, flat)[0]
    for bad in (([1.0], [1.0]), ([1.0, 2.0], [0.0, 1.0])):
        with pytest.raises(ValueError, match="two points above 0"):
            plots.power_law(*bad)


def test_laws_name_their_exponent():
    x = [1.0, 2.0, 4.0]
    (axis,) = plots.laws({"prompt": (x, [n**2 for n in x])}, "seconds", "work").axes
    assert axis.get_legend_handles_labels()[1] == ["prompt: length to the power 2.00"]


def test_a_heat_map_writes_percents_and_leaves_out_what_was_not_tried():
    axis = plots.heat_map(np.array([[0.5, np.nan], [1.0, 0.0]]), ["a", "b"], ["x", "y"], "c", "r").axes[0]
    assert sorted(t.get_text() for t in axis.texts) == ["0", "100", "50"]


def test_attention_maps_have_a_range_each_and_grey_what_is_never_looked_at():
    band = np.array([[0.4, 0.6, np.nan, np.nan], [np.nan, np.nan, 0.5, 0.5]])
    figure = plots.attention_maps({"own": band, "all": np.full((2, 4), 0.25)}, "key", "query")
    own, every = (axis for axis in figure.axes if axis.images)
    assert own.images[0].get_array().mask.sum() == 4
    assert own.images[0].get_clim()[1] == 0.6 and every.images[0].get_clim()[1] == 0.25


def test_a_position_grid_writes_all_three_numbers_of_every_place():
    positions = np.array([[0, 1, 1], [0, 1, 1], [0, 1, 2]])
    (axis,) = plots.position_grid(positions, ["text", "picture", "picture"], ["a", "", ""]).axes
    assert [t.get_text() for t in axis.texts] == ["0", "0", "0", "1", "1", "1", "1", "1", "2"]
    assert [t.get_text() for t in axis.get_legend().get_texts()] == ["text", "picture"]


def test_pictures_of_a_long_film_are_chosen_evenly():
    stills = [np.full((2, 2, 3), n, np.uint8) for n in range(20)]
    shown = [int(axis.images[0].get_array()[0, 0, 0]) for axis in plots.pictures(stills, most=3).axes]
    assert shown == [0, 10, 19]


def test_loss_curves_show_the_pass_line_and_where_phases_change():
    rows = [{"step": s, "loss": 1.0, "phase": "a" if s < 3 else "b"} for s in range(1, 6)]
    (axis,) = plots.loss_curves({"run": rows}, lines={"loss": 0.5}).axes
    places = [line.get_xydata()[0] for line in axis.lines[2:]]
    assert places[0][1] == 0.5, "the dashed line"
    assert places[1][0] == 2, "the last step of the first phase"
    assert plots.phase_ends([{"step": 1}, {"step": 2}]) == []


def test_logged_leaves_out_rows_without_the_key():
    assert plots.logged([{"step": 1, "a": 2.0}, {"step": 1, "b": 1}, {"step": 2, "a": None}], "a") == [2.0]
