"""Where the trained parts of a scale are."""

import pytest

from omnilib import checkpoints
from omnilib.errors import CheckpointError, ConfigError
from omnilib.retrain import graph


def test_unknown_scale_or_part_is_an_error():
    with pytest.raises(ConfigError, match="scale 'paper'"):
        checkpoints.folder("paper", "flow")
    with pytest.raises(ConfigError, match="no part 'flo'"):
        checkpoints.folder("nano", "flo")


def test_a_missing_committed_part_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "CHECKPOINTS", tmp_path)
    with pytest.raises(CheckpointError, match="checkpoints/nano/flow is missing"):
        checkpoints.folder("nano", "flow")


def test_a_log_or_report_that_is_not_there_is_told_or_none(tmp_path, monkeypatch):
    (tmp_path / "nano" / "flow").mkdir(parents=True)
    monkeypatch.setattr(checkpoints, "CHECKPOINTS", tmp_path)
    monkeypatch.setattr(checkpoints, "REPORTS", tmp_path)
    with pytest.raises(CheckpointError, match="no flow/log.jsonl at nano: train it"):
        checkpoints.training_log("nano", "flow")
    (tmp_path / "nano" / "flow" / "log.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    assert [row["step"] for row in checkpoints.training_log("nano", "flow")] == [1, 2]
    assert checkpoints.report_of("nano", "stage2_grid") is None


@pytest.mark.parametrize("part", ["speechlm", "encoders", "brain"])
def test_a_missing_part_says_how_to_get_it_and_a_stage_of_its_name_trains_it(tmp_path, monkeypatch, part):
    monkeypatch.setattr(checkpoints, "CHECKPOINTS", tmp_path)
    with pytest.raises(CheckpointError, match=f"{part} is missing.*git checkout.*make retrain"):
        checkpoints.folder("nano", part)
    assert f"checkpoints/nano/{part}" in graph()[part]["cmd"]
