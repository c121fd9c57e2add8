"""Samples for the brain: the same bytes at every run, true answers, splits that do not leak."""

import ast
import hashlib
import json
import random
from pathlib import Path
from types import SimpleNamespace

import easy_vqa
import numpy as np
import pytest

from data_prep import brain, brain_facts, brain_long, brain_tasks, brain_voices, fetch, kokoro
from data_prep.engines import Spoken
from omnilib.data import read_manifest
from omnilib.errors import DataError, MissingTool
from omnilib.eval.frozen import FOLDER as FROZEN
from omnilib.train.brain_samples import read_samples
from tests import tones


class Hum:
    """An engine that hums a tone as long as the text."""

    language = "en"

    def __init__(self, voice: str):
        self.voice = voice

    def say(self, text: str) -> Spoken:
        return Spoken(0.3 * np.sin(np.arange(800 * len(text)) * 0.1).astype(np.float32), 8000, [], None)


@pytest.fixture(autouse=True)
def engines(monkeypatch):
    monkeypatch.setitem(brain_voices.ENGINES, "hum", Hum)
    brain_voices.engine_of.cache_clear()


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
    found, _ = brain_tasks.items(150, 0)
    splits: dict[tuple, set] = {}
    for item in found:
        if item.task != "shapes":  # its pictures are split by easy-vqa
            splits.setdefault((item.task, item.key), set()).add(item.split)
    assert splits and all(len(s) == 1 for s in splits.values())
    assert {item.split for item in found} == {"train", "dev", "test"}


NO_FONT = "emoji are drawn with a font of the system: apt-get install fonts-noto-color-emoji"


@pytest.mark.skipif(not brain_tasks.EMOJI_FONT.is_file(), reason=NO_FONT)
def test_held_out_emoji_have_names_that_training_knows_and_drawings_that_it_does_not():
    found = [i for i in brain_tasks.items(80, 0)[0] if i.task == "emoji"]
    names = {split: {i.answer for i in found if i.split == split} for split in ("train", "test")}
    assert names["test"] and names["test"] <= names["train"]
    drawings = {i.key: i.draw()[0].tobytes() for i in found[:40]}
    assert len(set(drawings.values())) == len(drawings)


def test_arithmetic_order_and_charts_are_true():
    for item in brain_tasks.items(60, 0)[0]:
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

    for item in brain_tasks.items(30, 0)[0]:
        if item.task == "chart" and "tallest" in item.question:
            pixels = np.asarray(item.draw()[0])
            tall = {c: (pixels == rgb).all(-1).any(1).sum() for c, rgb in brain_facts.COLOURS.items()}
            assert max(tall, key=tall.get) == item.answer


@pytest.mark.skipif(not brain_tasks.EMOJI_FONT.is_file(), reason=NO_FONT)
def test_a_moving_emoji_moves_the_way_that_is_told_and_counts_grow():
    import numpy as np

    for item in brain_tasks.items(8, 0)[0]:
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
    for item in brain_tasks.opposites():
        answers.setdefault(item.question, set()).add(item.answer)
    assert all(len(a) == 1 for a in answers.values())


def test_a_missing_engine_font_or_package_is_one_line_and_the_rest_is_written(tmp_path, monkeypatch):
    def missing(voice: str):
        raise MissingTool("hum is missing: apt-get install hum")

    monkeypatch.setitem(brain_voices.ENGINES, "hum", missing)
    monkeypatch.setattr(brain_tasks, "EMOJI_FONT", tmp_path / "no.ttf")
    brain_tasks.emoji_names.cache_clear()
    rows, notes = build(tmp_path)
    brain_tasks.emoji_names.cache_clear()
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
    rows = brain.corpus_rows([manifest], tmp_path, 2)
    brain.write_manifest(tmp_path / "brain.jsonl", rows)
    assert [r["split"] for r in read_samples(tmp_path / "brain.jsonl")].count("train") == 2
    with pytest.raises(DataError, match="does not lie below"):
        brain.corpus_rows([manifest], tmp_path / "elsewhere", 2)


def test_needles_cover_lengths_and_depths_and_say_where_the_secret_stands():
    rows = brain_long.places(0)
    assert len(rows) == 6 * 11 * 5 and rows == brain_long.places(0)
    assert all(r["answer"] in r["secret"] and 0 <= r["seconds"] <= r["minutes"] * 60 for r in rows)


def test_a_coarser_grid_is_part_of_a_finer_one():
    fine = brain_long.places(0, minutes=(75,))
    assert all(row in fine for row in brain_long.places(0, minutes=(75,), depths=3, each=1))


def test_the_frozen_recordings_are_a_haystack():
    records = [
        r for r in read_manifest(FROZEN / "manifest.jsonl") if (r["split"], r["language"]) == ("test", "en")
    ]
    speech = brain_long.sentences(records, FROZEN, "0")
    wave = brain_long.haystack(speech, 20.0, None, 0.5)
    assert len(wave) == 320_000 and 0.01 < np.abs(wave).max() <= 1


def test_no_code_of_the_grid_occurs_in_training():
    grid = {r["answer"] for r in brain_long.places(0)}
    trained = {p["answer"] for p in brain_long.long_plan(400, 0) if p["answer"]}
    assert trained and not grid & trained


def test_the_needle_stands_at_the_pause_nearest_to_its_place():
    speech = lambda i: np.full(16_000 * (1 + i % 2), 0.1, np.float32)  # noqa: E731  sentences of 1 s and 2 s
    needle = np.full(16_000, 0.9, np.float32)
    for share in (0.0, 0.3, 0.5, 1.0):
        wave = brain_long.haystack(speech, 60.0, needle, share)
        start = np.flatnonzero(wave == np.float32(0.9))[0] / 16_000
        assert len(wave) == 60 * 16_000 and abs(start - share * 59) < 2.4
        assert (wave == np.float32(0.9)).sum() == 16_000  # whole, in one piece
    assert brain_long.haystack(speech, 60.0, None, 0.5).max() == np.float32(0.1)


def test_long_samples_hide_a_secret_and_some_do_not(tmp_path):
    manifest = tones.build(tmp_path / "corpus", {"low": 0.8}, {"train": 4, "dev": 1, "test": 1})
    rows, _ = build(tmp_path, count=1, corpora=[manifest], long=10)
    long = [r for r in rows if r["task"] == "needle"]
    assert len(long) == 10 and sum(not r["answer"] for r in long) == 2
    assert all(r["turns"][1]["text"] == brain_long.NONE for r in long if not r["answer"])
    read_samples(tmp_path / "brain.jsonl")
    assert all((tmp_path / r["audio"][0]).stat().st_size > 1000 for r in long)


def test_one_recording_serves_all_questions_of_the_same_words_and_voice(tmp_path):
    rows, _ = build(tmp_path, count=12)
    charts = [r["audio"][0] for r in rows if r["task"] == "chart" and "audio" in r]
    assert len(charts) >= 6 and len(set(charts)) <= 3


def test_beyond_the_budget_questions_stay_typed_and_held_out_ones_have_their_own(tmp_path):
    def spoken(folder, **budgets):
        rows, notes = build(tmp_path / folder, count=12, **budgets)
        assert any("0.02 expected" in note for note in notes)
        assert [r for r in rows if "audio" not in r and r["language"] == "en"]
        own = ("order", "arithmetic", "spelling")  # no two have the same words
        return {r["split"] for r in rows if "audio" in r and r["task"] in own}

    assert spoken("a", hours=0.02, held_out=0) == {"train"}
    assert "train" not in spoken("b", hours=0, held_out=0.02)
    assert sum(c.seconds for c in brain_voices.admit([], 1)[0]) == 0


def test_recordings_that_are_there_are_not_spoken_again(tmp_path, monkeypatch):
    build(tmp_path, count=3)
    monkeypatch.setattr(Hum, "say", lambda self, text: pytest.fail("spoken again") if text != "one" else None)
    build(tmp_path, count=3)


@pytest.mark.skipif(not fetch.FOLDER.is_dir(), reason="Kokoro's packages are fetched on demand")
def test_held_out_voices_ask_in_the_test_split_alone():
    voices = brain_voices.Voices("kokoro")
    asked = {
        split: {voices.clip("Why?", "en", split, str(i), "q").voice for i in range(200)}
        for split in ("train", "test")
    }
    assert asked["test"] <= set(kokoro.HELD_OUT) and not asked["train"] & set(kokoro.HELD_OUT)
    assert len(asked["train"]) > 10


def test_random_streams_of_tasks_do_not_depend_on_each_other():
    alone = [i.key for i, _ in zip(brain_tasks.charts(random.Random("0 charts")), range(5))]
    together = [i.key for i in brain_tasks.items(5, 0)[0] if i.task == "chart"]
    assert together == alone


def test_needle_file_is_written_beside_the_manifest(tmp_path):
    build(tmp_path, count=1, engine="")
    assert json.loads((tmp_path / "brain_needles.jsonl").read_text().splitlines()[0])["id"] == "needle-1-0-0"


@pytest.mark.skipif(not brain_tasks.EMOJI_FONT.is_file(), reason=NO_FONT)
def test_descriptions_name_all_that_is_drawn_in_order():
    found = [i for i in brain_tasks.items(10, 0)[0] if i.task == "describe"]
    assert len(found) == 10 * brain_tasks.SEVERAL["describe"]
    names = {name: character for character, name, _ in brain_tasks.emoji_names()}
    for item in found:
        if item.question.endswith("left to right."):
            shown = ast.literal_eval(item.key)
            assert [names[n] for n in item.answer.split(", ")] == [
                s[0] for s in sorted(shown, key=lambda s: s[1])
            ]
        elif item.question.startswith("Name the bars"):
            heights = [ast.literal_eval(item.key)[c] for c in item.answer.split(", ")]
            assert heights == sorted(heights, reverse=True)
        elif item.copy:
            asked = zip(*easy_vqa.get_train_questions(), strict=True)
            told = {a for q, a, image in asked if f"shape {image}" == item.key and a not in ("yes", "no")}
            assert told and told <= set(item.answer.split()) and len(item.answer.split()) == 2
    kinds = {item.question for item in found}
    assert len(kinds) == 4 and sum(bool(item.copy) for item in found) > 3, "every kind was looked at"


@pytest.mark.skipif(not brain_tasks.EMOJI_FONT.is_file(), reason=NO_FONT)
def test_no_drawing_of_a_test_is_in_the_training_of_another_task():
    drawn = [i for i in brain_tasks.items(120, 0)[0] if i.draw]
    held = {i.key for i in drawn if i.split != "train"}
    assert len(held) > 50 and not held & {i.key for i in drawn if i.split == "train"}
    assert {"emoji", "emoji_zh"} <= {i.task for i in drawn if i.split == "train"}


def test_what_the_budget_leaves_is_asked_by_a_quick_engine_in_all_its_voices(tmp_path, monkeypatch):
    monkeypatch.setitem(brain_voices.ENGINES, "buzz", Hum)
    speakers = [SimpleNamespace(engine="buzz", voice=v) for v in ("low", "high")]
    monkeypatch.setattr(brain_voices, "SPEAKERS", speakers)
    rows, notes = build(tmp_path, count=30, hours=0.01, held_out=0.0, then=["buzz"])
    asked = [r for r in rows if r["language"] == "en" and r["task"] != "transcribe"]
    left = {r["question"] for r in asked if r["split"] == "train"} - {
        r["question"] for r in asked if "audio" in r
    }
    assert not left and any(note.startswith("spoken by buzz") for note in notes)
    clips = {brain_voices.Voices("buzz").clip(str(i), "en", "train", str(i), "f").voice for i in range(40)}
    assert clips == {"low", "high"}


def test_two_corpora_are_transcribed_together(tmp_path):
    manifests = [
        tones.build(tmp_path / n, {n: 0.8}, {"train": 2, "dev": 1, "test": 1}) for n in ("low", "high")
    ]
    rows = brain.corpus_rows(manifests, tmp_path, 10)
    assert {r["audio"][0]["path"].split("/")[0] for r in rows} == {"low", "high"} and len(rows) == 8
