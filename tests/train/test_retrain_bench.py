"""The bench that predicts what retraining costs."""

import json
import time

import pytest

from omnilib import retrain as plan
from omnilib.bench import retrain
from omnilib.errors import DataError
from omnilib.paths import CONFIGS
from tests import tones


def test_every_training_stage_of_the_graph_is_timed():
    stages = retrain.stages()
    assert {"tokenizer", "speaker", "flow", "hift", "backbone", "speechlm"} <= set(stages)
    for module, config, _ in stages.values():
        assert module.startswith("omnilib.train.") and (CONFIGS / f"{config}.yaml").is_file()


def test_phases_add_up_to_the_steps_that_are_run():
    for module, config, _ in retrain.stages().values():
        if module != "omnilib.train.text":
            settings = retrain.resolved(module, config)
            assert settings["eval_every"] > 0
            assert sum(count for count, _ in retrain.phases(settings)) == (
                settings.get("stop") or settings["steps"]
            )
    assert retrain.phases({"steps": 9, "stop": 7, "encoder_steps": 5}) == [
        (5, {"stop": 0, "encoder_steps": retrain.STEPS}),
        (2, {"stop": 0, "encoder_steps": 0}),
    ]
    assert retrain.phases({"steps": 9}) == [(9, {})]


def test_a_trial_measures_the_stage_and_leaves_nothing_behind(tmp_path, monkeypatch):
    manifest = tones.build(tmp_path / "corpus", {"low": 0.8, "high": 1.3}, {"train": 4, "dev": 2, "test": 1})
    monkeypatch.setattr(retrain, "STEPS", 20)
    monkeypatch.setattr(retrain.tempfile, "tempdir", str(tmp_path / "runs"))
    (tmp_path / "runs").mkdir()
    got = retrain.trial("omnilib.train.hift", "smoke/hift", {"manifest": manifest, "eval_crops": 2})
    assert 0 < got["step"] < 5 and got["evaluation"] > 0 and got["start"] > got["step"]
    assert not any((tmp_path / "runs").iterdir())


def test_inputs_that_are_not_here_are_replaced_by_those_that_are(tmp_path, monkeypatch):
    monkeypatch.setattr(retrain, "ROOT", tmp_path)
    monkeypatch.setattr(retrain, "DATA", tmp_path / "data")
    (tmp_path / "runs" / "a" / "state").mkdir(parents=True)
    assert retrain.at_hand({"init": "runs/a"})["init"] == "runs/a"
    assert retrain.at_hand({"init": "runs/b"})["init"] == ""
    assert retrain.at_hand({"init": {"": "runs/b", "decoder.": "runs/a"}})["init"] == {"decoder.": "runs/a"}
    mouth = retrain.at_hand(
        {"stage": 2, "init": "runs/b", "tokens": "nano/tokens_whole.safetensors", "meter": "runs/b"}
    )
    assert mouth == {
        "stage": 2,
        "init": "checkpoints/nano/speechlm",
        "tokens": "nano/tokens.safetensors",
        "meter": "checkpoints/nano/tokenizer",
    }
    assert (
        retrain.at_hand({"stage": 1, "init": "checkpoints/nano/backbone"})["init"]
        == "checkpoints/nano/backbone"
    )


def test_a_stage_that_does_not_run_says_why(tmp_path):
    with pytest.raises(DataError, match="smoke/hift does not run: .*nowhere"):
        retrain.trial("omnilib.train.hift", "smoke/hift", {"manifest": tmp_path / "nowhere.jsonl"})


def test_recorded_times_stay_beside_the_predicted_ones(tmp_path, monkeypatch):
    rows = {"start": 1.0, "step": 0.5, "evaluation": 2.0}
    monkeypatch.setattr(retrain, "trial", lambda module, config, settings, threads: rows)
    monkeypatch.setattr(retrain, "REPORT", tmp_path / "retrain.json")
    kept = []
    result = retrain.measure(["hift_start"], {"corpus": 100.0, "hift_start": 3284.3}, kept.append)
    assert kept == [result], "what is timed must be kept before the next stage can fail"
    row = result["stages"]["hift_start"]
    assert row["recorded_seconds"] == 3284.3
    assert row["seconds"] == pytest.approx(
        1.0 + row["steps"] * 0.5 + 2.0 * 8
    )  # 7,500 steps, an evaluation each 1,000
    assert result["stages"]["corpus"] == {"seconds": 100.0, "recorded_seconds": 100.0}
    (tmp_path / "retrain.json").write_text(json.dumps(result))
    again = retrain.measure(["hift_start"], {"corpus": 100.0, "hift_start": row["seconds"]})
    assert again["stages"]["hift_start"]["recorded_seconds"] == 3284.3
    other = retrain.measure(["hift_whole"], {"corpus": 100.0, "hift_start": row["seconds"]})
    assert other["stages"]["hift_start"] == row, "what an earlier call timed stays as it was"


def test_stages_of_a_lane_are_timed_beside_the_other_lane_with_its_threads(tmp_path, monkeypatch):
    heard = []

    def trial(module, config, settings, threads):
        time.sleep(0.02)
        heard.append((config, threads))
        return {"start": 0.0, "step": 1.0, "evaluation": 0.0}

    monkeypatch.setattr(retrain, "trial", trial)
    monkeypatch.setattr(retrain, "REPORT", tmp_path / "retrain.json")
    times = {"tokens": 50.0, "mels": 100.0, "speechlm": 9.0}
    result = retrain.measure(["tokenizer", "hift_start", "hift_whole"], times)
    assert heard[0] == ("nano/tokenizer", None), "what comes before the lanes has all cores"
    beside = [threads for config, threads in heard if config == "nano/speechlm_stage2"]
    assert beside and set(beside) == {plan.threads()} and ("hift_nano_start", plan.threads()) in heard
    rows = result["stages"]
    assert rows["mels"]["seconds"] == 200.0 and rows["tokens"]["seconds"] == 50.0, (
        "not timed: as many times as there are lanes"
    )
    codec = rows["hift_start"]["seconds"] + rows["hift_whole"]["seconds"] + 200.0
    assert result["hours"] == pytest.approx((50.0 + rows["tokenizer"]["seconds"] + codec) / 3600, abs=0.01)
    (tmp_path / "retrain.json").write_text(json.dumps(result))
    again = retrain.measure(["hift_whole"], {name: row["seconds"] for name, row in rows.items()})
    assert again["stages"]["mels"] == rows["mels"], "counted twice once, not again"


def test_a_stage_can_take_the_steps_of_one_timed_before():
    report = json.loads(retrain.REPORT.read_text())
    row = retrain.like("flow_fast", "flow_short", report["stages"])
    other = report["stages"]["flow_short"]
    assert row["seconds_per_step"] == other["seconds_per_step"][-1:], (
        "all of it learns, as in the other's last phase"
    )
    assert (
        row["like"] == "flow_short"
        and row["steps"] == retrain.resolved("omnilib.train.flow", "flow_nano_fast")["steps"]
    )
    result = retrain.measure(
        [], {"corpus": 100.0, "flow_short": other["seconds"]}, alike={"flow_fast": "flow_short"}
    )
    assert result["stages"]["flow_fast"] == row
    with pytest.raises(DataError, match="not one of hift"):
        retrain.like("flow_fast", "hift", report["stages"])
    with pytest.raises(DataError, match="not one of flow_speeds"):  # another mel
        retrain.like("flow_fast", "flow_speeds", report["stages"])
    with pytest.raises(DataError, match="has not been timed"):
        retrain.like("flow_fast", "flow_short", {})
    with pytest.raises(SystemExit):
        retrain.main(["--stages", "--like", "flow_fast"])
