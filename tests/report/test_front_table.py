"""The tables of README.md: no headline is lost, and related figures stand in one row."""

import json

from omnilib.report.front_table import SECTIONS, front_tables
from omnilib.report.headlines import HEADLINES


def test_sections_name_headlines_and_none_twice():
    placed = [key for _, _, rows in SECTIONS for _, keys in rows for key in keys]
    assert len(placed) == len(set(placed))
    for _, cells, rows in SECTIONS:
        for _, keys in rows:
            assert len(keys) == len(cells)
            assert any(key in HEADLINES for key in keys)


def test_every_headline_of_a_summary_is_on_the_page(tmp_path):
    values = {key: 1000 + i for i, key in enumerate(HEADLINES)}
    entries = {
        key: {"value": value, "n": 7, "ci95": None, "source": f"of {key}"} for key, value in values.items()
    }
    (tmp_path / "nano").mkdir()
    (tmp_path / "nano" / "summary.json").write_text(json.dumps(entries))
    text = front_tables("nano", tmp_path)
    everyday = {"wer_en_gt", "wer_en_codec", "wer_en_tts", "zh_gt", "zh_codec", "zh_tts"}
    for key in HEADLINES:
        alone = f"of {key} |" in text or f"of {key}," in text
        assert alone == (key not in everyday), key  # the same sentences as the everyday ones: shown once


def test_what_one_command_measured_has_one_source(tmp_path):
    (tmp_path / "nano").mkdir()
    figure = {"value": 0.5, "n": 9, "ci95": [0.4, 0.6], "source": "eval.json"}
    summary = {f"wer_everyday_en_{system}": figure for system in ("gt", "codec", "tts")}
    (tmp_path / "nano" / "summary.json").write_text(json.dumps(summary))
    shown = " | ".join(["50.0 % (40.0 to 60.0)"] * 3)
    text = front_tables("nano", tmp_path)
    assert f"| English word error, everyday sentences | {shown} | 9 | eval.json |" in text
    assert "Cloning" not in text, "a section without figures has no table"
