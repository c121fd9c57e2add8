"""Raw against curated recordings: equal hours, one factor, finished runs kept."""

import json

import pytest
from safetensors.torch import load_file

from omnilib.data import read_manifest, write_manifest
from omnilib.errors import DataError
from omnilib.eval import curation_gain as gain


def record(name: str, seconds: float, **more) -> dict:
    base = {
        "id": name,
        "path": f"{name}.flac",
        "start": 0.0,
        "duration": seconds,
        "rate": 24000,
        "text": "Good morning.",
        "language": "en",
    }
    return (
        base | {"speaker": "a", "source": "s", "licence": "CC0", "split": "test", "tokens": [1, 2, 3]} | more
    )


def test_usable_are_those_with_tokens_text_and_speaker(tmp_path):
    odd = [
        record("b", 1.0, tokens=None),
        record("c", 1.0, speaker=None),
        record("d", 30.0, long=True),
        record("e", 1.0, language="zh"),
    ]
    write_manifest(tmp_path / "manifest.jsonl", [record("a", 1.0), *odd])
    (found,) = gain.usable(tmp_path / "manifest.jsonl", ["en"])
    assert found["id"] == "a" and found["split"] == "train"
    write_manifest(tmp_path / "manifest.jsonl", odd)
    with pytest.raises(DataError, match="step `tokens`"):
        gain.usable(tmp_path / "manifest.jsonl", ["en"])


def test_both_arms_get_the_hours_of_the_smaller():
    arms = {
        "raw": [record(f"r{i}", 2.0 + i % 3) for i in range(300)],
        "curated": [record(f"c{i}", 3.0) for i in range(100)],
    }
    chosen = gain.equal_hours(arms, 0)
    assert len(chosen["curated"]) == 100
    assert gain.hours(chosen["raw"]) == pytest.approx(gain.hours(chosen["curated"]), abs=4 / 3600)
    assert [r["id"] for r in chosen["raw"]] != [r["id"] for r in gain.equal_hours(arms, 1)["raw"]]


def test_an_arm_is_written_as_the_training_script_reads_it(tmp_path):
    gain.write_arm(tmp_path, [record("a", 1.0, split="train")])
    assert read_manifest(tmp_path / "manifest.jsonl")[0]["id"] == "a"
    assert load_file(str(tmp_path / "tokens.safetensors"))["a"].tolist() == [1, 2, 3]


def test_finished_runs_are_read_and_not_trained_again(tmp_path, monkeypatch, capsys):
    trained = []

    def train_arm(config, folder):
        trained.append((folder.name, config.seed, config.steps))
        return dict.fromkeys(gain.MEASURES, 0.5 + len(trained)) | {"curve": [], "hours": 0.1, "seconds": 1.0}

    monkeypatch.setattr(gain, "train_arm", train_arm)
    for name in ("raw", "curated"):
        write_manifest(tmp_path / name / "manifest.jsonl", [record(f"{name}{i}", 2.0) for i in range(20)])
    write_manifest(tmp_path / "dev.jsonl", [record("dev", 1.0)])
    arguments = ["--raw", str(tmp_path / "raw"), "--curated", str(tmp_path / "curated"), "--steps", "7", "--out", str(tmp_path / "out"),
                 "--work", str(tmp_path / "work"), "--config", "smoke/speechlm", "--set", f"manifest={tmp_path / 'dev.jsonl'}"]  # fmt: skip
    summary = gain.main(arguments)
    assert trained == [("raw-s0", 0, 7), ("curated-s0", 0, 7)]
    assert summary["raw"]["dev_token_error"] == {"value": 1.5, "low": 1.5, "high": 1.5, "n": 1}
    gain.main(arguments)
    assert len(trained) == 2
    gain.main([*arguments, "lr=0.001", "--out", str(tmp_path / "other")])
    assert len(trained) == 4, "a run of other settings must not be taken for this one"
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert len(written["runs"]) == 2 and written["settings"]["hours_available"]["raw"] > 0
    with pytest.raises(SystemExit):
        gain.main([*arguments, "--steps", "0"])
    assert "--steps: 0 is too few: give at least 1" in capsys.readouterr().err


def test_rows_of_the_table_follow_the_sign_of_the_difference():
    found = {"raw_dev_token_error": {"value": 0.9}, "curated_dev_token_error": {"value": 0.8}}
    found |= {"raw_dev_phoneme_error_en": {"value": 0.5}, "curated_dev_phoneme_error_en": {"value": 0.6}}
    rows = {r["metric"]: r["verdict"] for r in gain.paper_rows(found)}
    assert rows["raw_dev_token_error"] == rows["curated_dev_token_error"] == "trend holds"
    assert rows["raw_dev_phoneme_error_en"] == rows["curated_dev_phoneme_error_en"] == "differs"
    assert len(rows) == 6 and {name.split("_", 1)[1] for name in rows} <= set(gain.MEASURES)
