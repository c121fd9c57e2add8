"""Committed figures follow from committed records; an edit of either is found by name."""

import json
import shutil

import pytest

from omnilib.errors import DataError
from omnilib.eval.recount import recount
from omnilib.paths import CHECKPOINTS, REPORTS

KEPT = ("eval", "eval_all", "long10", "long60", "curation", "stage2_grid", "curation_gain", "brain", "talk")


@pytest.fixture
def copy(tmp_path):
    """The committed records and figures, to be spoilt."""
    folder = tmp_path / "nano"
    for name in KEPT:
        shutil.copytree(
            REPORTS / "nano" / name, folder / name, ignore=shutil.ignore_patterns("*.mp3", "*.html", "audio")
        )
    shutil.copy(REPORTS / "nano" / "summary.json", folder)
    return folder


def wrong(folder) -> list[str]:
    return [c.name for c in recount(folder.parent, "nano", CHECKPOINTS / "nano") if not c.ok]


def edit(path, change) -> None:
    """Change a JSON file, or the first row of a JSONL file."""
    first, _, rest = (
        path.read_text(encoding="utf-8").partition("\n")
        if path.suffix == ".jsonl"
        else (path.read_text(), "", "")
    )
    value = json.loads(first)
    change(value)
    path.write_text(json.dumps(value, ensure_ascii=False) + ("\n" + rest if rest else ""), encoding="utf-8")


def test_every_committed_figure_follows_from_its_records():
    checks = recount(REPORTS, "nano", CHECKPOINTS / "nano")
    assert not [c for c in checks if not c.ok]
    counted = {c.name.split(":")[0]: c.measured for c in checks if "follow" in c.name}
    assert counted["eval"] >= 30 and counted["curation"] >= 3
    every = json.loads((REPORTS / "nano" / "eval_all" / "metrics.json").read_text())["metrics"]
    assert counted["eval_all"] == len(every) > 0, "of all lines, each figure"


def test_a_changed_transcript_a_changed_long_text_and_a_changed_flag_are_found(copy):
    edit(copy / "eval" / "utterances.jsonl", lambda r: r.update(transcript="something else was heard"))
    edit(copy / "eval" / "long.jsonl", lambda r: r.update(transcript=r["transcript"][:200]))
    found = wrong(copy)
    assert "eval: wer_en_gt" in found and "eval: long_wer_en" in found and "eval: zh_gt" not in found


def test_a_changed_line_of_all_lines_is_found_in_its_rate_and_in_the_difference(copy):
    edit(copy / "eval_all" / "utterances.jsonl", lambda r: r.update(transcript="no"))
    assert {"eval_all: wer_en_gt", "eval_all: wer_en_codec_over_gt"} <= set(wrong(copy))


def test_a_changed_tally_of_curation_and_a_changed_run_of_a_grid_are_found(copy):
    edit(copy / "curation" / "metrics.json", lambda m: m["faults"]["clipped"].update(kept=9))
    edit(copy / "stage2_grid" / "metrics.json", lambda m: m["runs"][0].update(phoneme_error=0.1))
    assert {"curation: bad_kept", "stage2_grid: frozen phoneme_error"} <= set(wrong(copy))


def test_a_changed_interval_and_a_changed_headline_are_found(copy):
    edit(copy / "eval" / "metrics.json", lambda m: m["metrics"]["zh_tts"].update(ci95=[0.1, 0.2]))
    edit(copy / "summary.json", lambda s: s["curation_padding_waste"].update(value=0.01))
    assert wrong(copy) == ["eval: zh_tts", "summary: curation_padding_waste"]


def test_a_missing_or_damaged_file_is_one_line(copy):
    (copy / "eval" / "utterances.jsonl").write_text('{"id": ')
    with pytest.raises(DataError, match="utterances.jsonl in eval is damaged"):
        wrong(copy)
    (copy / "summary.json").unlink()
    with pytest.raises(DataError, match="restore it with `git checkout`"):
        wrong(copy)
