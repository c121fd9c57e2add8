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


def test_speed_figures_are_timings_with_their_spread_and_source(run, tmp_path):
    path = tmp_path / "reports" / "nano" / "speed.json"
    path.parent.mkdir(parents=True)
    entries = {
        "speed_batch16": {"ratio": 8.5, "spread": [8, 9]},
        "speed_first_tokens": 12,
        "machine": {"cores": 2},
    }
    path.write_text(json.dumps(entries))
    found = run.from_speed_bench("speed_batch16", "speed_first_tokens", "speed_other", "machine")
    assert found == {"speed_batch16": 8.5, "speed_first_tokens": 12}
    assert run.metrics["speed_batch16"]["source"] == "reports/nano/speed.json"
    assert report.told(run.metrics["speed_batch16"]) == "8.5 x (yours may be 8 to 9)"
    assert set(json.loads((run.folder / "timings.json").read_text())["metrics"]) == set(found)


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
