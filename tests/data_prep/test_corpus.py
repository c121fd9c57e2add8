"""The engines and texts of the nano corpus, and the frozen set made from it."""

import json

import numpy as np
import pytest

from data_prep import engines, frozen, texts
from omnilib.data import read_manifest
from omnilib.errors import MissingTool


@pytest.mark.parametrize(
    ("engine", "voice", "text"),
    [("flite", "kal16", "The light."), ("piper", "joe", "The light."), ("gcin", "3", "你好。")],
)
def test_an_engine_speaks_or_says_how_to_install_it(engine, voice, text):
    try:
        spoken = engines.ENGINES[engine](voice).say(text)
    except MissingTool as error:
        assert "install" in str(error) and "\n" not in str(error)
        return
    wave, phonemes, ends = engines.render(spoken, 1.0)
    again, *_ = engines.render(engines.ENGINES[engine](voice).say(text), 1.0)
    assert np.array_equal(wave, again), "the engine is not deterministic"
    assert len(wave) % engines.STEP == 0 and len(phonemes) > 3
    assert ends is None or ends[-1] == pytest.approx(len(wave) / engines.RATE)
    assert ends is None or (len(ends) == len(phonemes) and ends == sorted(ends))


def test_phonemes_of_espeak_are_written_as_those_of_flite():
    symbols = ["^", "ð", "ə", " ", "l", "ˈ", "a", "ɪ", "t", ".", "$"]
    phonemes, ends = engines.from_espeak(symbols, [0.1] * len(symbols))
    assert phonemes == ["pau", "dh", "ax", "l", "ay", "t", "pau"]
    assert ends == pytest.approx([0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.1]), (
        "stress and spaces lengthen the phoneme before them"
    )
    assert engines.from_espeak(["^", "ˈ", "d", "ʒ", "ˌ", "ɑ", "ː"], [0.1] * 7)[0] == ["pau", "jh", "aa"]


def test_missing_text_packages_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(texts, "FORTUNES", tmp_path)
    with pytest.raises(MissingTool, match="apt-get install fortunes-zh"):
        list(texts.chinese())


def test_clauses_are_plain_words_of_a_speakable_length():
    verse = "Jesus answered, “Most certainly I tell you, unless one is born anew, he can’t see God’s Kingdom.” (Selah 7)"
    for clause in texts.english_clauses(verse):
        assert (
            texts.EN_WORDS[0] <= len(clause.split()) <= texts.EN_WORDS[1]
            and clause.endswith(".")
            and not set(clause) & set("“”()7")
        )
    assert texts.chinese_clauses("你好 world，今天天气很好。a1b") == ["今天天气很好。"]


def test_the_frozen_set_holds_what_the_evaluation_needs():
    """Figures need 100 sentences and more in several held-out voices, each with a reference, in 10 MB."""
    root = frozen.Path(frozen.__file__).parent / "frozen"
    records = read_manifest(root / "manifest.jsonl")
    for language, voices in (("en", 5), ("zh", 4)):
        judged = [r for r in records if r["role"] == "eval" and r["language"] == language]
        assert len(judged) >= 100 and len({r["speaker"] for r in judged}) >= voices
        assert all(r["split"] == "test" for r in judged)
        trained = [r for r in records if r["role"] == "train" and r["language"] == language]
        assert len(trained) >= 12 and all(r["split"] == "train" for r in trained)
    references = {r["speaker"] for r in records if r["role"] == "reference"}
    assert {r["speaker"] for r in records if r["role"] in ("eval", "seen", "open")} <= references
    assert all((root / r["path"]).is_file() for r in records)
    assert sum(f.stat().st_size for f in root.rglob("*")) < 10e6
    long = [json.loads(line) for line in (root / "longform.jsonl").read_text().splitlines()]
    short = [item for item in long if item["id"].startswith("long-")]
    assert len(short) == 10 and all(300 <= item["words"] <= 500 for item in short)
