"""A chapter takes figures and drawings from files that programs wrote, and says so when they are not there."""

import json

import numpy as np
import pytest

from omnilib import drawings, report
from omnilib.report import run as runs


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "REPORTS", tmp_path / "reports")
    return report.start("00_x", "nano", 0, str(tmp_path / "out"))


@pytest.mark.parametrize("file", runs.SPEED_FILES)
def test_speed_figures_are_timings_with_their_source(run, tmp_path, file):
    path = tmp_path / "reports" / "nano" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps({"metrics": {"speed_batch16": {"value": 8.5, "n": 5, "ci95": [8, 9], "unit": "x"}}})
    )
    assert run.from_speed_bench("speed_batch16", "speed_other") == {"speed_batch16": 8.5}
    assert run.metrics["speed_batch16"]["source"] == f"reports/nano/{file}"
    assert "speed_batch16" in json.loads((run.folder / "timings.json").read_text())["metrics"]


def test_a_missing_speed_file_is_one_line(run, capsys):
    capsys.readouterr()
    assert run.from_speed_bench("speed_batch16") == {}
    (line,) = capsys.readouterr().out.splitlines()
    assert "python -m omnilib.bench.speed" in line


def test_a_drawing_is_kept_as_svg_and_shown_with_its_caption(run, monkeypatch):
    shown = []
    monkeypatch.setattr(runs, "show", lambda *given: shown.append(given))
    run.drawing(drawings.mask(np.eye(3)), "mask", "who sees <whom>")
    assert (run.folder / "figures" / "mask.svg").read_text().startswith("<svg")
    assert run.figures == [{"file": "figures/mask.svg", "caption": "who sees <whom>"}]
    assert "data:image/svg+xml" in shown[0][0] and "&lt;whom&gt;" in shown[0][0]
