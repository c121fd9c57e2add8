"""Figures of the brain: what is asked in each mode, what is right, intervals, resume, records that recount."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import soundfile
from PIL import Image
from safetensors.torch import save_file

from data_prep import brain_frozen
from omnilib.brain.ask import Brain
from omnilib.brain.trained import Base, build_base
from omnilib.data import write_manifest
from omnilib.errors import DataError
from omnilib.eval import brain as evaluation
from omnilib.eval import recount
from omnilib.report.headlines import HEADLINES


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("brain")
    spec = Base(base="smoke", vision=[2, 16, 2, 24])
    model, _ = build_base(spec)
    save_file({k: v for k, v in model.state_dict().items() if "projector" in k}, place / "model.safetensors")
    (place / "meta.json").write_text(json.dumps({"base": asdict(spec), "aux_sha256": "", "lora": None}))
    return place


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """A manifest as data_prep.brain writes it."""
    place, rows = tmp_path_factory.mktemp("samples"), []
    Image.new("RGB", (56, 56), "red").save(place / "p.png")
    for i in range(6):
        soundfile.write(place / f"q{i}.wav", 0.2 * np.sin(np.arange(8000 + 800 * i) * 0.1), 16000)
        task = ("arithmetic", "capital", "emoji", "chart", "shapes", "emoji")[i]
        row = {"id": f"s{i}", "split": "train" if i == 5 else "test", "task": task, "language": "en"}
        row |= {"question": "What is it?", "answer": "red", "audio": [f"q{i}.wav"]}
        row |= {"images": ["p.png"]} if i > 1 else {}
        asked = ("<image>" if i > 1 else "") + "<speech>"
        row["turns"] = [{"role": "user", "text": asked}, {"role": "assistant", "text": "red"}]
        rows.append(row)
    write_manifest(place / "brain.jsonl", rows)
    return place / "brain.jsonl"


def test_each_question_is_asked_by_voice_in_words_and_without_what_it_is_about(samples):
    items = evaluation.question_items(samples)
    assert {i.id for i in items} == {"s0", "s1", "s2", "s3", "s4"}  # test samples alone
    by = {(i.id, i.mode): [p if isinstance(p, str) else p["type"] for p in i.asked["content"]] for i in items}
    assert (
        by["s0", "spoken"] == ["audio"]
        and by["s0", "typed"] == ["What is it?"]
        and by["s0", "blind"] == ["audio"]
    )
    assert by["s2", "spoken"] == ["image", "audio"] and by["s2", "typed"] == ["image", "What is it?"]
    assert by["s2", "blind"] == ["audio"]
    silent = next(i for i in items if (i.id, i.mode) == ("s0", "blind")).asked["content"][0]["audio"]
    assert not np.any(silent)


@pytest.mark.parametrize(
    ("truth", "answer", "task", "expected"),
    [
        ("Paris", "paris.", "capital", True),
        ("red heart", "A red heart", "emoji", True),
        ("H E L L O", "HELLO", "spelling", True),
        ("H E L L O", "H E L O", "spelling", False),
        ("12", "12!", "arithmetic", True),
        ("12", "112", "arithmetic", False),
        ("red heart", "heart", "emoji", False),
        ("a", "a", "read", True),
        ("苹果", "苹果。", "emoji_zh", True),
        ("left", "", "video_move", False),
    ],
)
def test_what_is_right(truth, answer, task, expected):
    assert evaluation.right(truth, answer, task) is expected


def row(measure: str, mode: str, hit: bool) -> dict:
    return {"measure": measure, "mode": mode, "task": "capital", "right": hit}


def test_shares_carry_exact_binomial_intervals():
    rows = [row("sqa", "spoken", i < 90) for i in range(100)] + [row("sqa", "blind", False)] * 20
    found = evaluation.figures(rows)
    assert set(found) == {"brain_sqa", "brain_sqa_blind"}
    assert found["brain_sqa"]["value"] == 0.9 and found["brain_sqa"]["n"] == 100
    assert found["brain_sqa"]["ci95"] == pytest.approx(
        [0.8238, 0.9510], abs=1e-4
    )  # Clopper and Pearson's table
    assert found["brain_sqa_blind"]["ci95"] == pytest.approx([0.0, 0.1684], abs=1e-4)


def test_transcripts_are_weighted_by_words_beside_whispers_own():
    rows = [
        {"measure": "asr_en", "mode": "spoken", "task": "transcribe", "error": e, "words": w}
        for e, w in ((0.0, 9), (1.0, 1))
    ]
    found = evaluation.figures([*rows, *({**r, "mode": "whisper", "error": 0.0} for r in rows)])
    assert found["brain_asr_en"]["value"] == pytest.approx(0.1) and found["whisper_asr_en"]["value"] == 0.0


def test_records_recount_from_their_texts_alone(samples):
    items = evaluation.question_items(samples)
    rows = [evaluation.scored(item, "Red.") for item in items]
    blank = [{k: v for k, v in r.items() if k != "right"} for r in rows]
    assert evaluation.figures(evaluation.rescored(blank)) == evaluation.figures(rows)
    assert evaluation.figures(rows)["brain_sqa"]["value"] == 1.0
    transcript = {
        "task": "transcribe",
        "truth": "the cat sat",
        "answer": "the cat sat down",
        "language": "en",
    }
    assert evaluation.rescored([transcript])[0]["error"] == pytest.approx(1 / 3)


def test_a_stopped_evaluation_asks_only_what_is_missing(folder, samples, tmp_path, monkeypatch):
    items, asked = evaluation.question_items(samples), []
    brain = Brain.load(folder)
    monkeypatch.setattr(
        brain, "ask_many", lambda turns, **_: asked.append(len(turns)) or ["red"] * len(turns)
    )
    whole = evaluation.ask_all(brain, items, tmp_path / "a.jsonl")
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    (tmp_path / "b.jsonl").write_text("\n".join([*lines[:5], lines[5][:12]]))  # the sixth line was cut
    first = sum(asked)
    again = evaluation.ask_all(brain, items, tmp_path / "b.jsonl")
    assert again == whole and first == len(items) and sum(asked) - first == len(items) - 5


def test_the_command_writes_the_same_answers_at_every_run(folder, samples, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluation, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(evaluation, "asr_items", lambda frozen: [])
    common = ["--brain", str(folder), "--samples", str(samples)]
    for name in ("a", "b"):
        if name == "b":
            monkeypatch.setattr(evaluation, "RUNS", tmp_path / "others")
        assert evaluation.main([*common, "--reports", str(tmp_path / name)]) == 0
    a, b = (tmp_path / name / "nano" / "brain" / "items.jsonl" for name in "ab")
    assert a.read_bytes() == b.read_bytes() and len(a.read_text().splitlines()) == 15
    committed, anew = evaluation.recounted(a.parent)
    assert committed == anew
    summary = json.loads((tmp_path / "a" / "nano" / "summary.json").read_text())
    assert {"brain_sqa", "brain_sqa_typed", "brain_see_emoji_blind"} <= set(summary) <= set(HEADLINES)
    assert all(check.ok for check in recount.of_brain(a.parent)) and (a.parent / "sources.json").is_file()
    assert "brain_sqa" in capsys.readouterr().out


def test_a_look_writes_nothing_to_the_reports(folder, samples, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "RUNS", tmp_path / "runs")
    given = ["--brain", str(folder), "--samples", str(samples), "--part", "sqa", "--most", "1"]
    assert evaluation.main([*given, "--reports", str(tmp_path / "reports")]) == 0
    assert not (tmp_path / "reports").exists()
    assert len((tmp_path / "runs/brain_eval/look/items.jsonl").read_text().splitlines()) == 3


def test_without_samples_or_brain_one_line_tells_what_to_do(folder, samples, tmp_path, capsys):
    write_manifest(tmp_path / "none.jsonl", [])
    assert evaluation.main(["--brain", str(folder), "--samples", str(tmp_path / "no.jsonl")]) == 2
    assert evaluation.main(["--scale", "no-such-scale"]) == 2
    assert capsys.readouterr().err.count("\n") == 2


# ---- freezing ----------------------------------------------------------------------------------------------


def test_frozen_samples_are_whole_small_and_balanced(samples, tmp_path):
    rows = brain_frozen.freeze(samples, tmp_path / "frozen", each=1)
    assert [r["task"] for r in rows] == ["arithmetic", "emoji", "shapes", "chart"]
    items = evaluation.question_items(tmp_path / "frozen" / "brain.jsonl")
    assert len(items) == 12
    both = brain_frozen.freeze(samples, tmp_path / "frozen", each=5)
    assert {r["id"] for r in both} == {"s0", "s1", "s2", "s3", "s4"}


def test_frozen_samples_that_are_too_large_leave_the_old_ones(samples, tmp_path, monkeypatch):
    brain_frozen.freeze(samples, tmp_path / "frozen", each=1)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(brain_frozen, "MOST_BYTES", 100)
    with pytest.raises(DataError, match="lower --each"):
        brain_frozen.freeze(samples, tmp_path / "frozen", each=5)
    assert sorted(tmp_path.rglob("*")) == before


def test_damaged_records_are_one_line(tmp_path):
    with pytest.raises(DataError, match="restore it with"):
        evaluation.recounted(tmp_path)
