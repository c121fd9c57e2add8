"""Needle in a haystack: the rule, controls, exact intervals, resume."""

import json

import numpy as np
import pytest

from data_prep import needle
from data_prep.brain_long import places
from omnilib.brain.ask import Reply

ROWS = places(0, minutes=(0.2, 0.5), depths=3, each=2)


class Parrot:
    """Says a code for every recording that holds a loud second."""

    def __init__(self, code=None):
        self.code, self.asked = code, 0

    def ask(self, text, audio, **settings):
        self.asked += 1
        hidden = next((r for r in ROWS if audio[0].max() == np.float32(loudness(r))), None)
        words = self.code or (hidden["answer"].upper() + "!" if hidden else "There is no secret code.")
        return Reply(words, 10, 3, 1, True)


def loudness(row) -> float:
    return 0.5 + ROWS.index(row) / 1000


def run(brain, path, mark="a"):
    codes = {r["answer"]: np.full(8000, loudness(r), np.float32) for r in ROWS}
    speech = lambda row: lambda index: np.full(16_000, 0.1, np.float32)  # noqa: E731
    return needle.run(brain, ROWS, speech, codes, path, mark)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The secret code is red river 41.", True),
        ("red, river: 41", True),
        ("41 river red", True),
        ("red river", False),
        ("red river 411", False),
        ("There is no secret code.", False),
        ("", False),
    ],
)
def test_a_code_is_found_when_every_key_token_is_a_word_of_the_answer(answer, expected):
    assert needle.found("red river 41", answer) is expected


def test_needles_are_found_and_controls_are_not(tmp_path):
    records = run(Parrot(), tmp_path / "n.jsonl")
    assert len(records) == 12 + 4  # one control for each length and recording
    made = needle.figures(records, trained=0.2)
    assert made["metrics"]["needle_success_trained"] == {
        "value": 1.0,
        "n": 6,
        "ci95": pytest.approx([0.5407, 1.0], abs=1e-4),  # Clopper and Pearson
        "unit": "rate",
    }
    assert made["metrics"]["needle_false"]["value"] == 0.0 and made["metrics"]["needle_false"]["n"] == 12
    assert [(g["minutes"], g["depth"], g["n"]) for g in made["grid"]][:3] == [
        (0.2, 0.0, 2),
        (0.2, 0.5, 2),
        (0.2, 1.0, 2),
    ]
    assert set(made["by_minutes"]) == {"0.2", "0.5"}
    assert made["tokens_by_minutes"]["0.2"] == {"needle": 1.0, "control": 0.0}


def test_a_brain_that_guesses_is_shown_by_the_control(tmp_path):
    code = ROWS[0]["answer"]
    made = needle.figures(run(Parrot(code), tmp_path / "n.jsonl"))
    assert made["metrics"]["needle_false"]["value"] > 0
    assert 0 < made["tokens_by_minutes"]["0.2"]["control"] < 1


def test_a_stopped_run_asks_only_the_rest_and_other_weights_start_anew(tmp_path):
    path = tmp_path / "n.jsonl"
    whole = run(Parrot(), path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:7], lines[7][:20]]))
    brain = Parrot()
    again = run(brain, path)
    assert brain.asked == len(whole) - 7
    assert {(r["id"], r["mode"], r["found"]) for r in again} == {
        (r["id"], r["mode"], r["found"]) for r in whole
    }
    assert len(list(map(json.loads, path.read_text().splitlines()))) == len(whole)
    other = Parrot()
    run(other, path, mark="b")
    assert other.asked == len(whole)


def test_longer_speech_gets_a_coarser_grid_and_a_place_is_asked_once():
    rows = needle.planned([1], [15, 60], [240], depths=11, recordings=5)
    assert [(r["minutes"], r["depth"]) for r in rows[55:]] == [
        *((m, d) for m in (15, 60) for d in (0.0, 0.5, 1.0)),
        (240, 0.5),
    ]
    assert [r["mode"] for r in needle.asked(rows[-1:], set())] == ["needle"]  # four hours: no control
    assert len(needle.planned([1], [1], [1], depths=11, recordings=5)) == 55


def test_wrong_lengths_are_one_line(capsys):
    for minutes in ("x", "-1", "1,,2"):
        with pytest.raises(SystemExit):
            needle.main(["--minutes", minutes])
        with pytest.raises(SystemExit):
            needle.main(["--once", minutes])
    assert "for example 1,5,15" in capsys.readouterr().err
