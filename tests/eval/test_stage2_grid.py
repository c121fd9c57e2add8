"""The stage-2 grid: what is finished is kept, and the summary is the mean over seeds."""

import json

import pytest

from omnilib.eval import stage2_grid
from omnilib.provenance import write_json

MEASURES = ("dev_speech_loss", "dev_text_loss", "dev_token_error", "phoneme_error")


def finished(variant: str, seed: int, value: float) -> dict:
    about = {"variant": variant, "seed": seed, "steps": 7, "hours": 2.0, "curve": []}
    return about | dict.fromkeys(MEASURES, value)


def test_summary_is_mean_and_range_over_seeds():
    summary = stage2_grid.summarise(
        [finished("frozen", 0, 0.2), finished("frozen", 1, 0.4), finished("adapter x5", 0, 0.1)]
    )
    assert list(summary) == ["frozen", "adapter x5"]
    assert summary["frozen"]["phoneme_error"] == pytest.approx(
        {"value": 0.3, "low": 0.2, "high": 0.4, "n": 2}
    )


def test_finished_runs_are_read_and_not_trained_again(tmp_path, monkeypatch):
    trained = []

    def train_run(config, frozen, parts):
        trained.append((config.adapter_lr_scale, frozen, config.seed, config.steps))
        return dict.fromkeys(MEASURES, 0.5) | {"hours": 2.0, "curve": []}

    monkeypatch.setattr(stage2_grid, "train_run", train_run)
    arguments = [
        "--config",
        "smoke/speechlm",
        "--steps",
        "7",
        "--out",
        str(tmp_path),
        "--work",
        str(tmp_path / "work"),
    ]
    stage2_grid.main(arguments)
    assert trained == [
        (1.0, True, 0, 7),
        (1.0, False, 0, 7),
        (2.0, False, 0, 7),
        (5.0, False, 0, 7),
    ]  # one factor changes
    (kept,) = (tmp_path / "work").glob("frozen-*.json")
    write_json(kept, finished("frozen", 0, 0.25))
    stage2_grid.main(arguments)
    assert len(trained) == 4
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["summary"]["frozen"]["phoneme_error"]["value"] == 0.25
    assert len(written["runs"]) == 4
    assert written["settings"]["hours"] == 2.0
    stage2_grid.main([*arguments, "--set", "lr=0.001"])
    assert len(trained) == 8, "runs of other settings must not be taken for these"


def test_runs_of_another_corpus_are_not_taken_for_these(tmp_path):
    manifest = tmp_path / "manifest.jsonl"
    settings = stage2_grid.configs.load(stage2_grid.Config, "smoke/speechlm", [f"manifest={manifest}"])
    prints = {stage2_grid.fingerprint(settings)}
    for text in ("{}\n", "{}\n{}\n"):
        manifest.write_text(text)
        prints.add(stage2_grid.fingerprint(settings))
    assert len(prints) == 3


def test_no_steps_is_an_error(capsys):
    with pytest.raises(SystemExit):
        stage2_grid.main(["--steps", "0"])
    assert "--steps: 0 is too few: give at least 1" in capsys.readouterr().err
