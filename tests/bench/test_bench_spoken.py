"""The comparison of spoken forms: what counts as right, and that the command writes what it measured."""

import json

import pytest

from omnilib.bench.spoken import interval, main, readings, right
from omnilib.errors import UserError


def test_a_pattern_stands_for_all_its_readings():
    assert set(readings("two [and] (a|b [c])")) == {
        "two and a",
        "two  a",
        "two and b c",
        "two  b c",
        "two and b ",
        "two  b ",
    }
    assert readings("plain") == ["plain"]
    for pattern in ("(a", "a]", "(a]"):
        with pytest.raises(ValueError, match="bracket"):
            readings(pattern)


def test_case_marks_hyphens_and_the_telephone_one_do_not_count_but_words_do():
    assert right("Twenty-five, o'clock!", "twenty five oclock") and right("打 幺 二零。", "打一二零")
    assert (
        not right("twentyfive", "twenty five")
        and not right("minus five", "five")
        and not right("打二零", "打一二零")
    )


def test_interval_is_wilsons():
    assert interval(8, 10) == pytest.approx([0.4902, 0.9433], abs=1e-4) and interval(10, 10)[1] == 1.0


def test_the_command_writes_accuracy_speed_and_every_answer(tmp_path, capsys):
    main(["--systems", "ours", "--tables", "fresh", "--out", str(tmp_path)])
    ours = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))["systems"]["ours"]
    answers = [
        json.loads(line) for line in (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert (
        ours["fresh"]["n"] == len(answers) >= 60 and ours["plain_changed"] == 0 and ours["versions"]["wetext"]
    )
    assert (
        ours["fresh"]["correct"] == sum(not a["wrong"] for a in answers)
        and "fresh" in capsys.readouterr().out
    )


def test_a_system_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(UserError, match="unknown system other"):
        main(["--systems", "other", "--out", str(tmp_path)])
