"""Pictures drawn from numbers: they show what they are given, and nothing lies outside the canvas."""

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from omnilib import drawings
from omnilib.diagrams import WIDTH
from omnilib.voice.causal import chunk_mask


def examples() -> dict[str, drawings.Picture]:
    rng = np.random.default_rng(0)
    smooth = np.tanh(rng.normal(size=(6, 5)))
    digits = smooth.round()
    times = np.linspace(0, 1, 11)
    ends = rng.normal(size=(2, 30, 80))
    speech = rng.integers(0, 6561, (37, 4))
    speech[:4] = 6562
    return {
        "fsq": drawings.fsq_grid(smooth, digits, np.arange(6) * 1000),
        "flow": drawings.flow_path(np.stack([(1 - t) * ends[0] + t * ends[1] for t in times]), times),
        "mask": drawings.mask(chunk_mask(30, 30, 7, "cpu").numpy(), 7),
        "rows": drawings.token_rows(
            ["international", "系统里最需要", "<end>", "&"] + [""] * 33, speech, 6561, 6562, [36]
        ),
    }


@pytest.mark.parametrize("name", ["fsq", "flow", "mask", "rows"])
def test_everything_lies_on_the_canvas_and_the_file_is_valid(name):
    picture = examples()[name]
    root = ElementTree.fromstring(picture.svg())
    for part in root.iter():
        tag, at = part.tag.rpartition("}")[2], part.attrib
        if tag == "rect":
            assert float(at["x"]) >= 0 and float(at["x"]) + float(at["width"]) <= WIDTH
            assert float(at["y"]) >= 0 and float(at["y"]) + float(at["height"]) <= picture.height
        if tag == "text":
            wide = sum(12 if ord(c) > 0x2E00 else 7.5 for c in part.text)
            middle = {"middle": wide / 2, "start": 0}[at["text-anchor"]]
            assert float(at["x"]) - middle >= 4 and float(at["x"]) - middle + wide <= WIDTH - 4, part.text
            assert 0 < float(at["y"]) <= picture.height - 4
        if tag == "polyline":
            points = [tuple(map(float, p.split(","))) for p in at["points"].split()]
            assert all(0 <= x <= WIDTH and 0 <= y <= picture.height for x, y in points)
    assert "prefers-color-scheme:dark" in picture.svg() and len(picture.svg()) < 100_000


def test_a_straight_path_is_a_line_and_a_bent_one_is_not():
    ends = np.random.default_rng(0).normal(size=(3, 50))
    straight = np.stack([ends[0] + t * (ends[1] - ends[0]) for t in (0, 0.1, 0.5, 1)])
    flat = drawings.plane_of(straight)
    assert np.allclose(flat[:, 0], [0, 0.1, 0.5, 1]) and np.allclose(flat[:, 1], 0, atol=1e-9)
    bent = straight.copy()
    bent[2] += ends[2]
    assert np.abs(drawings.plane_of(bent)[:, 1]).max() > 0.1


def test_a_path_that_goes_nowhere_is_drawn():
    points = np.zeros((4, 5, 80))
    assert "nan" not in drawings.flow_path(points, [0, 0.3, 0.6, 1]).svg()


def test_the_mask_shows_as_many_seen_cells_as_there_are():
    seen = chunk_mask(6, 6, 2, "cpu").numpy()
    svg = drawings.mask(seen, 2).svg()
    assert svg.count('class="separator"') == seen.sum() and svg.count('class="pad"') == (~seen).sum()


def test_the_fsq_grid_names_every_code_and_has_nine_grid_points():
    svg = drawings.fsq_grid([[0.1, -0.9, 0.7]], [[0, -1, 1]], [19]).svg()
    assert ">19<" in svg and svg.count('class="target"') == 9
    assert re.findall(r">([+-]?\d)</text>", svg.split("code</text>")[1])[1:] == ["0", "-1", "+1"]


def test_the_token_grid_colours_cells_by_what_they_mean():
    speech = np.array([[9, 9], [1, 2], [8, 8], [9, 9]])
    svg = drawings.token_rows(["a", "b", "", "end"], speech, eos=8, pad=9, separators=[3], blanks=[2]).svg()
    drawn = svg.split("separator</text>")[1]  # behind the legend
    assert [drawn.count(f'class="{kind}"') for kind in ("code", "silence", "pad", "eos", "separator")] == [
        1,
        1,
        2,
        2,
        3,
    ]


def test_text_pieces_are_cut_to_the_width_of_a_cell():
    assert drawings.shorten(" light") == "light" and drawings.shorten("international") == "inter…"
    assert drawings.shorten("系统里") == "系统里" and drawings.shorten("系统里最需要") == "系统…"
