"""Ten minutes or an hour in one go: errors by minute, drift, and going on after a stop."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from omnilib.audio import load_wave
from omnilib.errors import AudioError, DataError
from omnilib.eval import longform
from omnilib.paths import ROOT
from omnilib.speak import TextToSpeech
from tests.tiny import write_checkpoints

WORDS = [a + b for a in ("red", "blue", "green", "grey", "pink") for b in ("fox", "cat", "dog", "cow", "hen")]


def piece(start: float, text: str, similarity: float | None = 0.9, seconds: float = 30.0) -> dict:
    return {"start": start, "seconds": seconds, "text": text, "similarity": similarity}


def hour(words_a_minute: int = 20, minutes: int = 6, wrong=lambda minute: 0, alike=lambda minute: 0.9):
    """A text and what was heard of it: in each minute the first `wrong(minute)` words are others."""
    said = [WORDS[n % len(WORDS)] for n in range(words_a_minute * minutes)]
    heard = []
    for m in range(minutes):
        part = said[m * words_a_minute : (m + 1) * words_a_minute]
        part = ["noise"] * wrong(m) + part[wrong(m) :]
        heard.append(piece(60.0 * m, " ".join(part), alike(m), 60.0))
    return {"id": "minutes10-x", "text": " ".join(said), "pieces": heard, "flags": [None] * minutes}


def test_an_error_is_counted_in_the_minute_in_which_it_is_heard():
    record = hour(minutes=4, wrong=lambda m: 5 if m == 2 else 0)
    found = longform.by_minute(record["text"], record["pieces"])
    assert [row["errors"] for row in found] == [0, 0, 5, 0]
    assert [row["words"] for row in found] == [20, 20, 20, 20]


def test_words_that_were_not_heard_are_errors_of_the_minute_before():
    heard = [piece(0, "one two", seconds=60), piece(60, "five", seconds=60)]
    found = longform.by_minute("one two three four five", heard)
    assert [(row["errors"], row["words"]) for row in found] == [(2, 4), (0, 1)]


def test_words_that_nobody_wrote_are_errors_of_the_minute_in_which_they_are_heard():
    heard = [piece(0, "one", seconds=60), piece(60, "so then two", seconds=60)]
    found = longform.by_minute("one two", heard)
    assert [(row["errors"], row["words"]) for row in found] == [(0, 1), (2, 1)]


def test_silence_loses_every_word():
    found = longform.by_minute("one two three", [piece(0, "", None)])
    assert found == [{"minute": 0, "errors": 3, "words": 3, "similarity": None}]
    assert longform.by_minute("one two three", [])[0]["errors"] == 3


def test_errors_by_minute_add_up_to_the_errors_of_the_whole():
    from omnilib.eval.wer import rates

    record = hour(wrong=lambda m: (3 * m) % 5)
    found = longform.by_minute(record["text"], record["pieces"])
    whole = rates(record["text"], " ".join(p["text"] for p in record["pieces"]))
    assert sum(row["errors"] for row in found) / whole.words == pytest.approx(whole.error)
    assert sum(row["words"] for row in found) == whole.words


def test_speech_that_gets_worse_has_a_drift_above_zero_and_steady_speech_has_none():
    worse = longform.figures([hour(wrong=lambda m: 2 * m, alike=lambda m: 0.9 - 0.02 * m)], 10)
    assert worse["long10_drift"]["value"] == pytest.approx(10 * 2 / 20)  # a tenth of the words a minute more
    assert worse["long10_drift"]["ci95"][0] > 0
    assert worse["long10_similarity_drift"]["value"] == pytest.approx(-0.2)
    steady = longform.figures([hour(minutes=20, wrong=lambda m: m % 3)], 10)
    low, high = steady["long10_drift"]["ci95"]
    assert low < 0 < high


def test_two_minutes_make_no_drift():
    found = longform.figures([hour(minutes=2)], 10)
    assert found["long10_drift"]["value"] is None and found["long10_wer"]["value"] == 0.0


def test_flagged_chunks_are_a_share_of_all_chunks():
    record = hour() | {"flags": [None, "long", None, "blank"]}
    assert longform.figures([record], 60)["long60_flagged"]["value"] == 0.5


def test_figures_follow_from_the_committed_rows_and_a_changed_row_is_noticed(tmp_path):
    record, folder = hour(wrong=lambda m: 1), tmp_path / "long10"
    tmp_path.mkdir(exist_ok=True)
    longform.write(folder, "tiny", 10, [record], {}, {"status": "ok"})
    committed, again = longform.anew(folder)
    assert committed == json.loads(json.dumps(again))
    record["pieces"][0]["text"] = "other words"
    (folder / "minutes.jsonl").write_text(json.dumps(record) + "\n")
    committed, again = longform.anew(folder)
    assert committed["long10_wer"]["value"] != again["long10_wer"]["value"]


def test_a_damaged_report_says_how_to_restore_it(tmp_path):
    with pytest.raises(DataError, match="git checkout"):
        longform.anew(tmp_path)


def test_a_frozen_set_without_long_texts_says_so(tmp_path):
    frozen = SimpleNamespace(folder=tmp_path, texts=lambda kind: [])
    with pytest.raises(DataError, match="60 minutes"):
        longform.texts_of(frozen, 60)


class Judge:
    id = "judge"

    def submit(self, wave, rate, language):
        return lambda: "the morning"


class Ear:
    id = "ear"

    def embed(self, wave, rate):
        if len(wave) < rate // 50:
            raise AudioError("too short")
        return np.ones(4)


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    folder = write_checkpoints(tmp_path_factory.mktemp("scale"))
    (folder / "decode.yaml").write_text("temperature: 1.0\nmax_rows: 64\nspeak_retries: 0\n")
    path = ROOT / "tests/voices/woman.ogg"
    line = SimpleNamespace(
        path=path, text="the light of the morning", wave=lambda rate: load_wave(path, rate)
    )
    text = "The quick brown fox jumps over a lazy dog. " * 2
    return TextToSpeech.load(folder), {"id": "minutes10-en-00", "text": text, "speaker": "slt"}, line


def test_a_stopped_text_goes_on_where_it_was_and_ends_the_same(spoken, tmp_path, monkeypatch):
    tts, row, line = spoken
    whole = longform.speak_and_hear(tts, row, line, Judge(), Ear(), tmp_path / "whole")
    assert whole["passes"] > 1
    real, calls = tts.speak_pass, []

    def stop_after_one(*args):
        if calls:
            raise KeyboardInterrupt
        calls.append(1)
        return real(*args)

    monkeypatch.setattr(tts, "speak_pass", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        longform.speak_and_hear(tts, row, line, Judge(), Ear(), tmp_path / "stopped")
    calls.clear()

    def count(*args):
        calls.append(1)
        return real(*args)

    monkeypatch.setattr(tts, "speak_pass", count)
    again = longform.speak_and_hear(tts, row, line, Judge(), Ear(), tmp_path / "stopped")
    assert len(calls) == whole["passes"] - 1
    assert again == whole


def test_a_pass_without_sound_and_a_piece_without_a_voice_are_heard_as_such():
    assert longform.hear(torch.zeros(0), 24_000, 3.0, np.ones(4), Judge(), Ear()) == []
    (row,) = longform.hear(torch.zeros(240), 24_000, 3.0, np.ones(4), Judge(), Ear())
    assert row["start"] == 3.0 and row["similarity"] is None


def test_another_text_or_setting_has_another_folder(tmp_path):
    voice = tmp_path / "voice.ogg"
    voice.write_bytes(b"a")
    place = lambda text, seed: longform.folder_of(  # noqa: E731
        "tiny", {"id": "x", "text": text}, voice, ["judge"], {"seed": seed}, tmp_path
    )
    assert place("a", 0) == place("a", 0)
    assert len({place("a", 0), place("b", 0), place("a", 1)}) == 3
