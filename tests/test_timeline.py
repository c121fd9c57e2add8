"""Pictures of both tracks: bars as long as the steps took, and what the listener has still to hear."""

import numpy as np
import pytest

from omnilib import plots, timeline
from omnilib.pacing import Span


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plots.plt.close("all")


SPANS = [Span("first", 10.0, 0.5), Span("brain", 10.5, 0.1), Span("row", 10.6, 0.05), Span("hop", 10.7, 0.3)]


def bars(axis) -> dict[str, list[list[float]]]:
    """{label: [[start, end] of each bar]}."""
    found = {}
    for own in axis.collections:
        corners = [path.vertices[:, 0] for path in own.get_paths()]
        found[own.get_label()] = [[float(min(x)), float(max(x))] for x in corners]
    return found


def test_steps_are_drawn_to_scale_on_the_track_they_belong_to():
    (axis,) = timeline.tracks(SPANS, [(11.0, 2.0)], start=10.0).axes
    found = bars(axis)
    assert found["first"] == [pytest.approx([0.0, 0.5])] and found["row"] == [pytest.approx([0.6, 0.65])]
    assert found["hop"] == [pytest.approx([0.7, 1.0])] and found["sound"] == [pytest.approx([1.0, 3.0])]
    assert axis.get_xlim() == pytest.approx((0.0, 3.0))


def test_the_listener_hears_pieces_one_behind_the_other_and_waits_for_late_ones():
    assert timeline.heard([(1.0, 1.0), (1.5, 1.0), (9.0, 1.0)]) == [(1.0, 1.0), (2.0, 1.0), (9.0, 1.0)]


def test_what_is_still_to_hear_falls_to_zero_where_there_is_silence():
    (axis,) = timeline.lead({"a": [(5.0, 1.0), (7.0, 2.0)], "none": []}).axes
    line = axis.lines[0]
    assert list(zip(line.get_xdata(), line.get_ydata(), strict=True)) == [
        (0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (2.0, 0.0), (2.0, 2.0), (4.0, 0.0),
    ]  # fmt: skip


def test_an_answer_without_sound_is_drawn_too():
    (axis,) = timeline.tracks(SPANS, [], start=10.0).axes
    assert axis.get_xlim()[1] == pytest.approx(1.0)


def test_the_budget_puts_parts_behind_one_another():
    (axis,) = timeline.budget({"a": 0.2, "b": 0.3}, {"a": "the first", "b": "the second"}).axes
    assert [(p.get_x(), p.get_width()) for p in axis.patches] == pytest.approx(
        np.array([(0, 0.2), (0.2, 0.3)])
    )
    assert [t.get_text() for t in axis.get_yticklabels()] == ["the first", "the second"]
