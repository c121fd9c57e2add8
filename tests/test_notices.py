"""What a user is told: every kind of trouble is one sentence, and only when it is there."""

import pytest

from omnilib.errors import UserError
from omnilib.mouth.chunking import Chunk
from omnilib.mouth.readable import Reading
from omnilib.notices import (
    about_chunks,
    brief,
    doubtful,
    listing,
    long_words,
    silent_symbols,
    unreadable,
    wrong_voice,
)

VOICES = {"ann": {"language": "en"}, "bo": {"language": "zh"}}


def test_half_a_text_of_unknown_letters_is_refused_and_less_is_named():
    with pytest.raises(
        UserError, match="cannot read this text: it has never seen Cyrillic letters like Привет; it speaks"
    ):
        unreadable(Reading("ok", ("Привет",), 8))
    [told] = unreadable(Reading("the word is Russian", ("Привет",), 22))
    assert told == "not spoken, because this model has never seen them: the Cyrillic letters Привет"
    assert unreadable(Reading("the word", (), 7)) == []
    [told] = unreadable(Reading("the word is Russian", ("Привет",), 22), "the transcript of the voice")
    assert told == "the transcript of the voice holds Cyrillic letters that this model has never seen: Привет"


def test_two_scripts_and_many_words_stay_one_short_line():
    with pytest.raises(UserError, match="Hiragana and Hangul letters") as error:
        unreadable(Reading("", ("こ", "안녕") * 500, 1500))
    assert len(str(error.value)) < 200 and "\n" not in str(error.value)


def test_letters_that_the_tokenizer_knows_but_nobody_taught_are_a_warning():
    assert doubtful("plain 文字 café") == []
    assert "Arabic letters" in doubtful("the word مرحبا")[0]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("I ♥ you 😀", "♥ 😀"),
        ("⌘ of all", "⌘"),
        ("plain, text! 3 + 4 = 7 & 50 % of $5", None),
        ("| a | b | ~ <tag>", None),
        ("我♥你", "♥"),
    ],
)
def test_symbols_that_no_word_stands_for_are_named(text, named):
    told = silent_symbols(text, "zh" if "我" in text else "en")
    assert told == ([f"not spoken, because nobody says them: {named}"] if named else [])


@pytest.mark.parametrize(
    "word", ["a" * 5000, "QUJD" * 60, "http://x.org/" + "ab1" * 80], ids=["held key", "base64", "address"]
)
def test_a_word_without_end_is_refused_with_its_time_or_named(word):
    with pytest.raises(
        UserError,
        match=r'"\S{20}…" has [\d,]+ characters without a space and takes about 2 minutes to speak: put',
    ):
        long_words(f"the {word} end", lambda _: 120.0)
    [told] = long_words(f"the {word} end", lambda _: 30.0)
    assert "takes about 30 seconds to speak" in told


@pytest.mark.parametrize(
    "text", ["word " * 1000, "今天天气很好" * 100, "-" * 500, "ab." * 20, "I like " + "very-" * 19 + "much"]
)
def test_ordinary_texts_and_rulers_are_no_long_words(text):
    assert long_words(text, lambda _: 999.0) == []


@pytest.mark.parametrize(
    ("text", "voice", "told"),
    [
        ("今天天气很好", "en", "100% of this text is Chinese, but the voice x speaks English"),
        ("the light", "zh", "100% of this text is English, but the voice x speaks Chinese"),
        ("我用 phone and computer", "zh", "60% of this text is English"),
        ("我喜欢喝茶也喜欢看书和 Python", "zh", None),
        ("the word 好 is a Chinese word for good", "en", None),
        ("the light of the morning", "en", None),
        ("今天天气很好", "zh", None),
    ],
)
def test_a_voice_of_the_other_language_is_a_warning_that_names_a_fitting_one(text, voice, told):
    found = wrong_voice(text, "x", voice, VOICES)
    if told is None:
        assert found == []
    else:
        [sentence] = found
        assert sentence.startswith(told) and f"use --voice {'bo' if voice == 'en' else 'ann'}" in sentence
        assert "use a recording in" in wrong_voice(text, "x", voice, {})[0]


def chunks(*errors: str | None) -> list[Chunk]:
    return [
        Chunk(text=f"part {number} of a text that has words.", error=error)
        for number, error in enumerate(errors)
    ]


def test_nothing_is_said_about_speech_without_fault():
    assert about_chunks(chunks(None, None), greedy=True) == []


def test_a_row_limit_is_not_called_a_failure_and_says_what_was_spoken():
    [told] = about_chunks(chunks(None, "truncated"), greedy=False)
    assert (
        told.startswith("the row limit was reached: spoken to the end of")
        and '"part 1 of … that has words."' in told
    )
    assert "guard" not in told and "fail" not in told and "seed" not in told


@pytest.mark.parametrize(
    ("error", "words"), [("blank", "fell silent"), ("long", "ran on"), ("end", "does not end in silence")]
)
def test_another_seed_is_advised_only_where_it_changes_something(error, words):
    [greedy], [sampled] = about_chunks(chunks(error), greedy=True), about_chunks(chunks(error), greedy=False)
    assert words in greedy and words in sampled
    assert "--seed" in sampled and "seed" not in greedy and "rephrase" in greedy


def test_many_faults_of_one_kind_are_counted():
    told = about_chunks(chunks(*["end"] * 9, *["long"] * 2), greedy=True)
    assert len(told) == 2 + 3 + 1 and told[-1] == "6 more parts do not end in silence"


def test_texts_are_quoted_by_their_ends():
    assert brief("a short text.") == '"a short text."'
    assert brief("one two three four five six seven eight nine.") == '"one two three … seven eight nine."'
    assert brief("今天天气很好" * 5) == '"今天天气很好今天 … 很好今天天气很好"'
    assert listing(["a", "b", "c"]) == "a, b and c" and listing(["a"]) == "a"
