"""Figures of the two tracks: rows of every answer, scores that follow from texts, figures that follow from rows."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

from omnilib.brain.ask import Brain
from omnilib.brain.config import smoke_config
from omnilib.brain.inputs import BrainProcessor
from omnilib.brain.mllm import Brain as BrainModel
from omnilib.data import write_manifest
from omnilib.errors import DataError
from omnilib.eval import recount
from omnilib.eval import talk as evaluation
from omnilib.omni import Omni
from omnilib.report.headlines import HEADLINES
from omnilib.speak import TextToSpeech
from tests.brain import reference
from tests.tiny import write_checkpoints


class Scripted(Brain):
    """A brain that reads what it is asked, and says what it is told to."""

    script = "forty two is good"

    def steps(self, batch, settings):
        next(super().steps(batch, settings))
        ids = self.processor.tokenizer.encode(self.script, add_special_tokens=False)
        yield from (torch.tensor([i]) for i in [*ids[: settings.max_new_tokens - 1], 2])


class Ear:
    """A judge that hears every other wave well."""

    id = "an ear"

    def __init__(self, script: str):
        self.script, self.count = script, 0

    def transcribe(self, wave, rate, language):
        assert rate == 24000 and len(wave)
        self.count += 1
        return self.script if self.count % 2 else "for tea"


@pytest.fixture(scope="module")
def omni(tmp_path_factory):
    words = reference.longest_match(reference.WORDS, eos="<|im_end|>", pad="<|endoftext|>")
    torch.manual_seed(0)
    model = BrainModel(smoke_config(len(reference.WORDS), pad_token_id=0, eos_token_id=2)).eval()
    speech = TextToSpeech.load(write_checkpoints(tmp_path_factory.mktemp("tiny")))
    speech.settings = replace(speech.settings, rows_per_token=1.0, temperature=0.7)
    brain = Scripted(model, BrainProcessor(words, model.config), weights="")
    return Omni(brain, speech)


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    place, rows = tmp_path_factory.mktemp("samples"), []
    for i, task in enumerate(("arithmetic", "capital", "emoji")):
        soundfile.write(place / f"q{i}.wav", 0.2 * np.sin(np.arange(8000) * 0.1), 16000)
        turns = [{"role": "user", "text": "<speech>"}, {"role": "assistant", "text": "42"}]
        row = {"id": f"s{i}", "split": "test", "task": task, "language": "en", "question": "What is it?"}
        rows.append(row | {"answer": "42", "audio": [f"q{i}.wav"], "turns": turns})
    write_manifest(place / "brain.jsonl", rows)
    return place / "brain.jsonl"


@pytest.fixture(scope="module")
def measured(omni, samples, tmp_path_factory):
    """A folder as the program writes it."""
    place = tmp_path_factory.mktemp("talk")
    asked = evaluation.questions(samples, most=1)
    rows = evaluation.measure(omni, asked, Ear(omni.brain.script))
    found = evaluation.write(place, "smoke", rows, {"judge": "an ear"}, {"samples": samples}, 1.0)
    return place, rows, found


def test_questions_are_the_spoken_ones_with_open_ones_between(samples):
    asked = evaluation.questions(samples)
    assert [q.id for q in asked][:5] == ["s0", "open-0", "s1", "open-1", "open-2"]
    assert len(asked) == 2 + len(evaluation.OPEN) and [q.id for q in evaluation.questions(samples, 1)] == [
        "s0",
        "open-0",
    ]
    assert asked[0].given["audio"][0].endswith("q0.wav") and asked[0].truth == "42"


def test_without_spoken_questions_one_line_tells_what_to_do(tmp_path, capsys):
    write_manifest(tmp_path / "none.jsonl", [])
    assert evaluation.main(["--samples", str(tmp_path / "none.jsonl")]) == 2
    assert evaluation.main(["--samples", str(tmp_path / "missing.jsonl")]) == 2
    assert capsys.readouterr().err.count("\n") == 2


def test_every_answer_and_every_stop_leaves_a_row(measured):
    _, (answers, times, stops), _ = measured
    assert [r["id"] for r in answers] == [r["id"] for r in times] == [r["id"] for r in stops]
    assert all(r["pieces"] and r["spans"] and r["total"] >= r["pieces"][-1][0] for r in times)
    assert all(0 <= r["seconds"] <= r["ended"] < 30 and r["after"] >= 0 for r in stops)
    assert {r["heard"] for r in answers} == {Scripted.script} and {r["mouth"] for r in answers} == {"for tea"}


def test_parts_of_the_first_sound_add_up_to_it(measured):
    _, (_, times, _), found = measured
    for row in times:
        parts = evaluation.parts_of(row)
        assert sum(parts[name] for name in evaluation.PARTS) == pytest.approx(parts["sound"])
        assert parts["sound"] == row["pieces"][0][0] and all(s >= -1e-9 for s in parts.values())
        assert parts["rows"] > 0 and parts["hop"] > 0 and parts["wait"] > 0
    total = sum(found[f"omni_first_{name}_s"]["value"] for name in evaluation.PARTS)
    assert total == pytest.approx(found["omni_first_sound_s"]["value"])


def test_parts_are_told_apart_by_the_first_row():
    row = {
        "kind": "sqa", "encoder": 0.2, "pieces": [[2.0, 1.0]],
        "spans": [["read", 0.0, 0.1], ["first", 0.1, 0.5], ["brain", 0.6, 0.3], ["row", 0.9, 0.1],
                  ["brain", 1.0, 0.2], ["row", 1.2, 0.1], ["hop", 1.3, 0.6], ["row", 2.5, 9.0]],
    }  # fmt: skip
    parts = {"read": 0.1, "encoder": 0.2, "prefill": 0.3, "wait": 0.3, "text": 0.2, "rows": 0.2, "hop": 0.6}
    assert evaluation.parts_of(row) == pytest.approx(parts | {"other": 0.1, "sound": 2.0})
    assert evaluation.parts_of(row | {"pieces": []}) == {}


def test_figures_of_speed_are_told_apart_from_those_any_machine_repeats(measured):
    place, _, found = measured
    kept = json.loads((place / "metrics.json").read_text())["metrics"]
    speed = json.loads((place / "timings.json").read_text())["metrics"]
    assert set(kept) == {"omni_speech_wer", "omni_mouth_wer", "omni_sqa_spoken", "omni_sqa_text"}
    assert {"omni_first_sound_s", "omni_underruns"} <= set(speed) and set(kept) | set(speed) == set(found)


def test_rows_recount_and_a_changed_row_is_noticed(measured, tmp_path):
    place, _, found = measured
    committed, anew = evaluation.recounted(place)
    assert committed == anew == found and all(check.ok for check in recount.of_talk(place))
    parts = {f"omni_first_{part}_s" for part in evaluation.PARTS} | {"omni_stop_ended_s"}
    assert set(found) - parts <= set(HEADLINES)
    for name, old, new in (
        ("answers", '"text": "forty two', '"text": "forty three'),
        ("times", '"kind": "sqa", "total"', '"kind": "open", "total"'),
        ("stops", '"seconds": ', '"seconds": 7'),
    ):
        other = tmp_path / name
        shutil.copytree(place, other)
        text = (other / f"{name}.jsonl").read_text()
        assert old in text
        (other / f"{name}.jsonl").write_text(text.replace(old, new))
        committed, anew = evaluation.recounted(other)
        if name != "stops" or "omni_stop_s" in committed:
            assert committed != anew, name
    (tmp_path / "stops" / "answers.jsonl").write_text("{")
    with pytest.raises(DataError, match="restore it with"):
        evaluation.recounted(tmp_path / "stops")


def answer(
    text: str, heard: str, mouth: str, truth: str, kind="sqa", task="arithmetic", language="en"
) -> dict:
    row = {"id": "a", "kind": kind, "task": task, "language": language}
    row |= {"truth": truth, "text": text, "heard": heard, "mouth": mouth}
    return row | evaluation.score_of(row)


def test_speech_is_compared_with_what_was_written_and_answers_with_the_truth():
    rows = [
        answer("42", "forty-two", "forty two.", "42"),
        answer("It is 7.", "it is seven", "it is eleven", "8"),
        answer("", "", "", "Paris", task="capital"),
        answer("the cat sat down", "the cat", "the cat sat down", "", kind="open"),
    ]
    found = evaluation.figures(rows, [], [])
    assert set(found) == {"omni_speech_wer", "omni_mouth_wer", "omni_sqa_spoken", "omni_sqa_text"}
    assert found["omni_sqa_text"]["value"] == found["omni_sqa_spoken"]["value"] == pytest.approx(1 / 3)
    assert found["omni_speech_wer"]["n"] == 3, "an empty answer has no words to say"
    assert 0 < found["omni_mouth_wer"]["value"] < found["omni_speech_wer"]["value"] < 1
    assert rows[0]["right_spoken"] and not rows[1]["right_text"] and not rows[2]["right_spoken"]


def test_chinese_is_compared_by_its_sounds():
    row = answer("他很好", "她很好", "很坏", "", kind="open", language="zh")
    assert row["heard_error"] == 0.0 and row["mouth_error"] > 0


def test_underruns_are_those_of_the_recorded_pieces():
    times = [
        {"kind": "open", "encoder": 0.0, "spans": [], "pieces": p}
        for p in ([[1.0, 1.0], [3.0, 1.0]], [], [[1.0, 9.0]])
    ]
    found = evaluation.figures([], times, [])
    assert found["omni_underruns"]["value"] == 1 and found["omni_underruns"]["n"] == 2
    assert "omni_first_sound_s" not in found, "nothing was asked by voice"


def test_a_look_writes_nothing_to_the_reports(omni, samples, tmp_path, monkeypatch, capsys):
    brain = tmp_path / "brain"
    brain.mkdir()
    for name in ("meta.json", "model.safetensors"):
        (brain / name).write_text("{}")
    monkeypatch.setattr(evaluation, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(evaluation.Omni, "load", lambda scale: omni)
    monkeypatch.setattr(evaluation, "Whisper", lambda: Ear(omni.brain.script))
    given = ["--samples", str(samples), "--scale", str(brain), "--reports", str(tmp_path / "reports")]
    assert evaluation.main([*given, "--most", "1"]) == 0
    assert not (tmp_path / "reports").exists() and "omni_underruns" in capsys.readouterr().out
