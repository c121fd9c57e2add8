"""Long-TTS-Eval and Seed-TTS-Eval as reusable protocols: layouts, weighting, and what a missing wave costs."""

import json

import pytest
import soundfile

from omnilib.errors import DataError, UserError
from omnilib.eval import long_tts_eval, seed_tts_eval
from tests.tiny import tone


class Script:
    """Says of each wave what its length in tenths of a second stands for."""

    id = "script"

    def __init__(self, texts):
        self.texts = texts

    def submit(self, wave, rate, language):
        text = self.texts[round(len(wave) / rate * 10)]
        return lambda: text


def save(path, seconds):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(seconds), 16_000)


def test_long_split_is_weighted_by_words_and_takes_the_better_reading(tmp_path):
    rows = [
        {"id": "1", "text": "Call 911.", "text_norm": "Call nine one one."},
        {"id": "2", "text": "a b c d e f g h", "text_norm": "a b c d e f g h"},
        {"id": "3", "text": "never spoken", "text_norm": "never spoken"},
    ]
    save(tmp_path / "samples" / "long_tts_eval_en" / "1.wav", 1.0)
    save(tmp_path / "samples" / "long_tts_eval_en" / "2.wav", 2.0)
    judge = Script({10: "call nine one one", 20: "a b c d e f g x"})
    figure, records = long_tts_eval.score("long_tts_eval_en", rows, tmp_path, judge)
    assert [r["error"] for r in records] == [0.0, 0.125, 1.0]
    assert figure["value"] == pytest.approx((0 * 4 + 1 + 2) / (4 + 8 + 2))
    assert (figure["n"], figure["missing"], figure["judge"]) == (3, 1, "script")


def test_long_rows_and_layout_are_checked(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"id": 7, "text": "a", "text_norm": "a"}) + "\n")
    assert long_tts_eval.read_rows(tmp_path / "rows.jsonl")[0]["id"] == "7"
    (tmp_path / "bad.jsonl").write_text('{"id": 1, "text": "a"}\n')
    with pytest.raises(DataError, match="bad.jsonl:1: missing text_norm"):
        long_tts_eval.read_rows(tmp_path / "bad.jsonl")
    with pytest.raises(DataError, match="leaves the folder"):
        long_tts_eval.sample_path(tmp_path, "hard_tts_eval_zh", "../../x")
    with pytest.raises(UserError, match="unknown split"):
        long_tts_eval.language_of("long_tts_eval_fr")
    assert [long_tts_eval.language_of(s) for s in long_tts_eval.SPLITS] == ["en", "zh", "en", "zh"]


def test_errors_fall_where_the_words_went_missing():
    text = " ".join(f"w{chr(97 + n)}" for n in range(20))
    words = text.split()
    assert long_tts_eval.errors_along(text, text, "en") == [0.0] * 5
    assert long_tts_eval.errors_along(text, " ".join(words[:16]), "en") == [0, 0, 0, 0, 1.0]
    assert long_tts_eval.errors_along(text, " ".join([*words[:4], "oops", *words[5:]]), "en") == [
        0,
        0.25,
        0,
        0,
        0,
    ]


def test_seed_list_and_plain_mean(tmp_path):
    (tmp_path / "meta.lst").write_text(
        "a|said|prompts/p.wav|It's fine, really!\nb|said|prompts/p.wav|one two three four|gt.wav\n"
    )
    items = seed_tts_eval.read_meta(tmp_path / "meta.lst")
    assert [(i.id, i.text) for i in items] == [("a", "It's fine, really!"), ("b", "one two three four")]
    assert items[0].prompt == tmp_path / "prompts" / "p.wav"
    save(tmp_path / "out" / "a.wav", 1.0)
    save(tmp_path / "out" / "b.wav", 2.0)
    judge = Script({10: "it's fine really", 20: "one two three"})
    figures, records = seed_tts_eval.score(items, tmp_path / "out", "en", judge)
    assert figures["error"]["value"] == pytest.approx(
        (0 + 0.25) / 2
    )  # lines count the same, whatever their length
    assert records[1]["deletions"] == 0.25
    figures, _ = seed_tts_eval.score(items, tmp_path / "nothing", "en", judge)
    assert figures["error"]["value"] == 1.0


def test_seed_chinese_is_compared_by_simplified_character():
    assert seed_tts_eval.line_error("这是数据。", "這是數據", "zh").error == 0
    assert seed_tts_eval.line_error("这是数据", "这是书据", "zh").error == 0.25


def test_broken_seed_list_names_the_line(tmp_path):
    (tmp_path / "meta.lst").write_text("a|b\n")
    with pytest.raises(DataError, match="meta.lst:1: need"):
        seed_tts_eval.read_meta(tmp_path / "meta.lst")
