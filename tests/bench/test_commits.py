"""Two commits timed in turns."""

import json
import sys

import pytest

from omnilib.bench import commits
from omnilib.errors import UserError


def test_this_commit_against_itself(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(commits, "RUNS", tmp_path)
    out = tmp_path / "found.json"
    argv = ["commits", "HEAD", "HEAD", "--rounds", "1", "--sentences", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", argv)
    commits.main()
    found = json.loads(out.read_text())
    assert json.loads(capsys.readouterr().out) == found["figures"]
    assert found["commits"][0] == found["commits"][1] and len(found["commits"][0]) == 40
    (first, second), figure = found["rounds"][0], found["figures"]["rtf_total"]
    assert figure["ratio"] == first["rtf_total"] / second["rtf_total"] > 0
    assert [p.name for p in (tmp_path / "commits").iterdir()] == [found["commits"][0]], "unpacked once"


def test_ratios_are_of_rounds():
    rounds = [(dict.fromkeys(commits.FIGURES, a), dict.fromkeys(commits.FIGURES, 1.0)) for a in (2, 9, 4)]
    assert commits.compare(rounds)["rtf_hift"] == {"first": 4, "second": 1.0, "ratio": 4, "spread": [2, 9]}


def test_an_unknown_commit_and_code_that_cannot_speak_are_one_line(tmp_path):
    with pytest.raises(UserError, match="no commit 0123abcdef here"):
        commits.unpack("0123abcdef", tmp_path)
    (tmp_path / "omnilib").mkdir()
    (tmp_path / "omnilib" / "__init__.py").write_text("raise RuntimeError('too old')")
    with pytest.raises(UserError, match="too old"):
        commits.measure_once(tmp_path, ["nano", 1, []])
