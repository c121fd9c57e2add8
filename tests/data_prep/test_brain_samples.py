"""Samples for the brain: the same bytes at every run, true answers, splits that do not leak."""

import hashlib
import json
import random
from pathlib import Path

import pytest

from data_prep import brain, brain_facts
from data_prep.engines import Spoken
from omnilib.errors import DataError, MissingTool
from omnilib.train.brain_samples import read_samples
from tests import tones


class Hum:
    """An engine that hums a tone as long as the text."""

    language = "en"

    def __init__(self, voice: str):
        self.voice = voice

    def say(self, text: str) -> Spoken:
        import numpy as np

        return Spoken(0.3 * np.sin(np.arange(800 * len(text)) * 0.1).astype(np.float32), 8000, [], None)


@pytest.fixture(autouse=True)
def engines(monkeypatch):
    monkeypatch.setitem(brain.ENGINES, "hum", Hum)


def build(folder: Path, count: int = 4, engine: str = "hum", **options) -> tuple[list[dict], list[str]]:
    return brain.build(folder / "brain", count, engine=engine, **options)


def hashes(folder: Path) -> dict[str, str]:
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_two_builds_give_the_same_bytes_and_a_manifest_the_training_reads(tmp_path):
    rows, _ = build(tmp_path / "a")
    build(tmp_path / "b")
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")
    read = read_samples(tmp_path / "a" / "brain.jsonl")
    assert len(read) == len(rows) and {"arithmetic", "order", "transcribe"} <= {r["task"] for r in read}
    build(tmp_path / "c", seed=1)
    assert hashes(tmp_path / "c") != hashes(tmp_path / "a")


def test_spoken_rows_name_the_question_and_some_are_also_typed(tmp_path):
    rows, _ = build(tmp_path, count=12)
    spoken = [r for r in rows if "audio" in r and r["task"] != "transcribe"]
    asked = [r["turns"][0]["text"] for r in spoken]
    assert all(r["question"] not in text and "<speech>" in text for r, text in zip(spoken, asked))
    typed = {r["id"] for r in rows if r["id"].endswith("-typed") and r["language"] == "en"}
    assert 0.1 < len(typed) / len(spoken) < 0.45
    said = {r["id"]: r for r in rows if r["id"].endswith("-said")}
    assert said and all(r["answer"] in {s["question"] for s in spoken} for r in said.values())


def test_no_question_or_picture_stands_in_two_splits():
    found, _ = brain.items(150, 0)
    splits: dict[tuple, set] = {}
    for item in found:
        if item.task != "shapes":  # its pictures are split by easy-vqa
            splits.setdefault((item.task, item.key), set()).add(item.split)
    assert splits and all(len(s) == 1 for s in splits.values())
    assert {item.split for item in found} == {"train", "dev", "test"}


NO_FONT = "emoji are drawn with a font of the system: apt-get install fonts-noto-color-emoji"


@pytest.mark.skipif(not brain.EMOJI_FONT.is_file(), reason=NO_FONT)
def test_held_out_emoji_have_names_that_training_knows_and_drawings_that_it_does_not():
    found = [i for i in brain.items(80, 0)[0] if i.task == "emoji"]
    names = {split: {i.answer for i in found if i.split == split} for split in ("train", "test")}
    assert names["test"] and names["test"] <= names["train"]
    drawings = {i.key: i.draw()[0].tobytes() for i in found[:40]}
    assert len(set(drawings.values())) == len(drawings)


def test_arithmetic_order_and_charts_are_true():
    for item in brain.items(60, 0)[0]:
        if item.task == "arithmetic":
            a, sign, b = item.key.split()
            a, b = int(a), int(b)
            assert int(item.answer) == {"plus": a + b, "minus": a - b, "times": a * b}[sign]
        if item.task == "order":
            words = item.key.split()
            assert item.answer == words[0 if "came first" in item.question else -1]
        if item.task == "spelling":
            assert item.answer.replace(" ", "").lower() in item.question


def test_the_tallest_bar_of_a_chart_is_the_tallest_that_is_drawn():
    import numpy as np

    for item in brain.items(30, 0)[0]:
        if item.task == "chart" and "tallest" in item.question:
            pixels = np.asarray(item.draw()[0])
            tall = {c: (pixels == rgb).all(-1).any(1).sum() for c, rgb in brain_facts.COLOURS.items()}
            assert max(tall, key=tall.get) == item.answer


@pytest.mark.skipif(not brain.EMOJI_FONT.is_file(), reason=NO_FONT)
def test_a_moving_emoji_moves_the_way_that_is_told_and_counts_grow():
    import numpy as np

    for item in brain.items(8, 0)[0]:
        if item.task.startswith("video"):
            frames = [np.asarray(f, dtype=int) for f in item.draw()]
            marks = [np.abs(f - f[-1, -1]).sum(-1) > 0 for f in frames]
            if item.task == "video_move":
                centres = [np.nonzero(m)[1].mean() for m in marks]
                assert (centres[-1] > centres[0]) == (item.answer == "right")
            elif item.task == "video_count":
                assert len(frames) == int(item.answer)


def test_facts_are_pairs_without_contradictions():
    assert len(set(brain_facts.CAPITALS.values())) == len(brain_facts.CAPITALS) >= 50
    assert len(set(brain_facts.WORDS)) == len(brain_facts.WORDS)
    assert all(len(pair) == 2 for pair in brain_facts.OPPOSITES)
    answers: dict[str, set] = {}
    for item in brain.opposites():
        answers.setdefault(item.question, set()).add(item.answer)
    assert all(len(a) == 1 for a in answers.values())


def test_a_missing_engine_font_or_package_is_one_line_and_the_rest_is_written(tmp_path, monkeypatch):
    def missing(voice: str):
        raise MissingTool("hum is missing: apt-get install hum")

    monkeypatch.setitem(brain.ENGINES, "hum", missing)
    monkeypatch.setattr(brain, "EMOJI_FONT", tmp_path / "no.ttf")
    brain.emoji_names.cache_clear()
    rows, notes = build(tmp_path)
    brain.emoji_names.cache_clear()
    assert rows and all("audio" not in r for r in rows)
    assert sum("hum is missing" in note for note in notes) == 1 and all("\n" not in note for note in notes)
    assert any("emoji left out" in note for note in notes) and not any(r["task"] == "emoji" for r in rows)


@pytest.mark.parametrize(
    ("flags", "words"),
    [(["--speak", "parrot"], "no engine 'parrot'"), (["--count", "0"], "at least 1")],
)
def test_wrong_arguments_end_with_code_2_and_one_line(tmp_path, capsys, flags, words):
    with pytest.raises(SystemExit) as stop:
        brain.main(["--out", str(tmp_path / "x"), *flags])
    assert stop.value.code == 2 and words in capsys.readouterr().err


def test_a_speech_corpus_is_transcribed_from_pieces_of_its_files(tmp_path):
    manifest = tones.build(tmp_path / "corpus", {"low": 0.8}, {"train": 3, "dev": 1, "test": 1})
    rows = brain.corpus_rows(manifest, tmp_path, 2)
    brain.write_manifest(tmp_path / "brain.jsonl", rows)
    assert [r["split"] for r in read_samples(tmp_path / "brain.jsonl")].count("train") == 2
    with pytest.raises(DataError, match="does not lie below"):
        brain.corpus_rows(manifest, tmp_path / "elsewhere", 2)


def test_needles_cover_lengths_and_depths_and_say_where_the_secret_stands():
    rows = brain.needles(0)
    assert len(rows) == 6 * 11 * 5 and rows == brain.needles(0)
    assert all(r["answer"] in r["secret"] and 0 <= r["seconds"] <= r["minutes"] * 60 for r in rows)


def test_random_streams_of_tasks_do_not_depend_on_each_other():
    alone = [i.key for i, _ in zip(brain.charts(random.Random("0 charts")), range(5))]
    together = [i.key for i in brain.items(5, 0)[0] if i.task == "chart"]
    assert together == alone


def test_needle_file_is_written_beside_the_manifest(tmp_path):
    build(tmp_path, count=1, engine="")
    assert json.loads((tmp_path / "brain_needles.jsonl").read_text().splitlines()[0])["id"] == "needle-1-0-0"
