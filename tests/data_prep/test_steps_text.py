"""Steps on words: spoken form and script, language, what a Whisper hears and how far a transcript is from it."""

import pytest
from frozen_audio import Shelf, reasons, run, spoken, wave_of

from data_prep.filters import transcript
from data_prep.steps.asr import RATE, Language, Transcribe, window_frames
from data_prep.steps.text import Text


def record(text, language=None, **fields) -> dict:
    return {"id": "a", "text": text, "language": language} | fields


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("He paid $5, **really**.", "en", "He paid five dollars, really."),
        ("一共105个", "zh", "一共一百零五个。"),
        ("这是一个test。", "zh", "这是一个test。"),
        ("x &lt; y &amp; z", "en", "x less than y and z."),
        ("The <i>third</i> of 2024-05-01", "en", "The third of May first twenty twenty four."),
        ("涨了.5%", "zh", "涨了百分之零点五。"),
    ],
)
def test_texts_become_their_spoken_form_and_keep_the_written_one(text, language, expected):
    (result,) = Text().run([record(text, language)], None)
    assert (result["text"], result["written"], result.get("dropped")) == (expected, text, None)


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("", "en", "empty_text"),
        (None, None, "empty_text"),
        ("Добрый день", "en", "wrong_script"),
        ("hello 你好", "en", "wrong_script"),
        ("good morning", "zh", "wrong_script"),
        ("!?!", "en", "wrong_script"),
        ("\u200b\u200b", None, "wrong_script"),
    ],
)
def test_texts_that_cannot_be_spoken_are_dropped(text, language, expected):
    assert reasons(Text().run([record(text, language)], None)) == [expected]


def test_a_record_without_text_takes_what_was_heard():
    (result,) = Text().run([record(None, heard="two dogs", heard_language="en")], None)
    assert (result["text"], result["language"], result["text_source"]) == ("two dogs.", "en", "heard")


def test_language_by_script_needs_no_model():
    step = Language(by="script")
    step.open()
    results = step.run([record("hello"), record("你好")], None)
    assert [r["heard_language"] for r in results] == ["en", "zh"]


@pytest.mark.slow
def test_a_wrong_transcript_and_a_wrong_language_are_heard(tmp_path):
    shelf = Shelf(tmp_path)
    human, other = spoken(role="human")[:2]
    chinese = spoken(role="eval", language="zh")[0]
    records = [
        shelf.add(wave_of(human), text=human["text"], language="en"),
        shelf.add(wave_of(human), text=other["text"], language="en"),
        shelf.add(wave_of(chinese), text=chinese["text"]),
    ]
    right, wrong, zh = run(Transcribe(beam=1), records, shelf)
    assert right["error"] < 0.3 and transcript(right) is None
    assert (
        wrong["error"] > 0.7
        and wrong["surprise"] > right["surprise"] + 1
        and transcript(wrong) == "wrong_transcript"
    )
    assert (right["heard_language"], zh["heard_language"]) == ("en", "zh") and zh["heard"]


def test_window_grows_with_the_speech_from_15_to_30_s():
    assert [window_frames(RATE * s) for s in (1, 7, 10, 22, 28)] == [1500, 1500, 1800, 3000, 3000]
