"""Open text: every kind of sentence as a user types it, in spoken form, no word list in between."""

import re
from itertools import islice

import pytest

from data_prep import everyday, templates, texts
from omnilib.errors import MissingTool
from omnilib.spoken import clean_text


def test_templates_repeat_with_the_same_seed_and_differ_with_another():
    first, second, other = (list(islice(templates.sentences("en", seed), 50)) for seed in (0, 0, 1))
    assert first == second != other


@pytest.mark.parametrize("language", ["en", "zh"])
def test_templates_fill_every_slot_and_can_be_spoken(language):
    drawn = list(islice(templates.sentences(language), 200))
    assert {kind for kind, _ in drawn} == {"number", "question", "exclamation", "everyday", "dialogue"}
    for _, text in drawn:
        assert not re.search(r"[{}]|\.\.", text) and not re.search(r"\d", clean_text(text, language)), text
    assert (
        sum(text[-1] in "?？" for _, text in drawn) > 20 and sum(text[-1] in "!！" for _, text in drawn) > 8
    )
    assert sum(bool(re.search(r"\d", text)) for _, text in drawn) > 40


def test_articles_agree_with_what_follows():
    drawn = " ".join(text for _, text in islice(templates.sentences("en"), 600))
    assert not re.search(r"\ba (?=[aeio])", drawn) and not re.search(r"\ban (?=[bcdfgjkmpqrtvz])", drawn)


def test_a_missing_list_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(templates, "WORDNET", tmp_path)
    templates.wordnet_words.cache_clear()
    with pytest.raises(MissingTool, match="apt-get install wordnet-base"):
        next(templates.sentences("en"))
    monkeypatch.setattr(texts, "FORTUNES", tmp_path)
    with pytest.raises(MissingTool, match="apt-get install fortunes"):
        next(texts.fortunes(["wisdom"], "fortunes"))


def test_wordnet_alone_brings_more_than_fifty_thousand_words():
    words = {word for _, text in texts.glosses() for word in texts.words(text, "en")}
    assert len(words) > 50_000


def test_long_sentences_are_cut_at_commas_and_nothing_is_lost():
    text = (
        "He said, "
        + ", ".join(["and then he went on talking about it"] * 12)
        + ". Was it true? "
        + "No, it was not!"
    )
    pieces = texts.sentences_of(text, "en", 20)
    assert " ".join(pieces) == text and len(pieces) > 5
    assert all(len(texts.words(piece, "en")) <= 20 for piece in pieces)
    assert texts.sentences_of("你好。我是老师！你呢？", "zh", 20) == ["你好。", "我是老师！", "你呢？"]


def test_open_lines_keep_rare_words_numbers_and_questions_but_drop_doubles_and_other_scripts(monkeypatch):
    written = [
        ("hsk", "everyday", "Is it 7:45?"), ("hsk", "everyday", "is it seven forty five"), ("wordnet", "gloss", "zymurgy: the branch of chemistry"),
        ("fortunes", "quote", "Привет, мир."), ("fortunes", "quote", "***"), ("wordnet", "example", "a café in Orléans!"),
    ]  # fmt: skip
    monkeypatch.setattr(texts, "raw_lines", lambda language, drawn: iter(written))
    found = [line.text for line in texts.open_lines("en", 0)]
    assert found == ["Is it seven forty five?", "Zymurgy: the branch of chemistry.", "A café in Orléans!"]


def test_sentences_by_hand_stand_in_no_other_source():
    for language, lines in everyday.LINES.items():
        assert len(lines) == len(set(lines)) >= 30
        drawn = {
            " ".join(texts.words(text, language)) for _, text in islice(templates.sentences(language), 2000)
        }
        assert not drawn & {" ".join(texts.words(clean_text(text, language), language)) for text in lines}
