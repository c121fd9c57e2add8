"""What a tokenizer has learnt to read, and what happens to the rest."""

import pytest

from omnilib.mouth.readable import Reader, plain, script
from omnilib.paths import CHECKPOINTS
from omnilib.text import encode, load_tokenizer, train_tokenizer


@pytest.fixture(scope="module")
def reader():
    """Of a tokenizer that has seen every plain letter, a full stop, a comma and a few Chinese characters."""
    return Reader(
        train_tokenizer(
            ["the quick brown fox, it jumps over a lazy dog.", "早上好，今天天气很好。妈马骂"] * 4, size=500
        )
    )


@pytest.fixture(scope="module")
def nano():
    return Reader(load_tokenizer(CHECKPOINTS / "nano" / "speechlm"))


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("Is it?", "Is it."),
        ("Stop! Now: go; far", "Stop. Now, go, far"),
        ("a well-known dog", "a well known dog"),
        ("早上好！", "早上好。"),
        ("早、上；好？", "早，上，好。"),
        ("Zürich café naïve", "zurich cafe naive"),
        ("Ærø Łódź straße Þórr", "aero lodz strasse thorr"),
        ("Việt Nam", "viet nam"),
    ],
)
def test_marks_and_letters_never_seen_are_read_as_the_nearest_that_was(reader, text, read):
    assert reader.read(text).text.lower() == read.lower()
    assert reader.read(text).left_out == ()
    spelt = set(encode(reader.tokenizer, reader.read(text).text)) & reader.bytes
    assert not spelt, "the model would meet an id that it never saw in training"


def test_a_chinese_character_never_seen_is_read_as_one_of_the_same_sound(reader):
    assert reader.read("码好").text == "马好"  # ma3: the tone decides between 妈, 马 and 骂
    assert reader.read("嬷好").text == "妈好"
    assert reader.read("琴好").left_out == ("琴",)  # nothing known sounds like qin


@pytest.mark.parametrize(
    ("text", "left_out", "letters"),
    [
        ("Привет мир", ("Привет", "мир"), 9),
        ("the word Привет is a word", ("Привет",), 20),
        ("مرحبا", ("مرحبا",), 5),
        ("こんにちは", ("こんにちは",), 5),
        ("안녕", ("안녕",), 2),
        ("the π of it", ("π",), 8),
    ],
)
def test_letters_of_other_scripts_are_left_out_and_named(reader, text, left_out, letters):
    reading = reader.read(text)
    assert reading.left_out == left_out and reading.letters == letters
    assert not any(letter in reading.text for word in left_out for letter in word)


def test_a_tokenizer_that_has_seen_a_mark_keeps_it(tokenizer):
    """The one of these tests was trained on lines with "!", "?" and ";"."""
    text = "Yes, I do! Is it? The lord; he"
    assert Reader(tokenizer).read(text).text == text


def test_a_tokenizer_without_byte_ids_knows_everything(nano):
    class Published:
        """Stands for a byte-level tokenizer, whose ids are pieces of bytes without names."""

        def get_vocab(self):
            return {"Ġthe": 0, "ÐŁ": 1}

    text = "Привет! مرحبا? café"
    assert Reader(Published()).read(text).text == text


def test_the_nano_tokenizer_has_seen_every_end_mark_in_training(nano):
    assert all(nano.knows(mark) for mark in ".,!?;:。，！？")


def test_no_chinese_character_breaks_the_search_for_its_sound(nano):
    block = "".join(map(chr, range(0x4E00, 0xA000)))
    reading = nano.read(block)
    assert set(encode(nano.tokenizer, reading.text)).isdisjoint(nano.bytes)
    assert len(reading.text) + sum(map(len, reading.left_out)) == len(block)


@pytest.mark.parametrize(
    ("letter", "name"),
    [
        ("é", "Latin"),
        ("Ж", "Cyrillic"),
        ("好", "Chinese"),
        ("の", "Hiragana"),
        ("한", "Hangul"),
        ("ש", "Hebrew"),
    ],
)
def test_scripts_are_told_from_letters(letter, name):
    assert script(letter) == name


def test_plain_letters_stay(reader):
    assert [plain(c) for c in "aZéøŁßж"] == ["a", "z", "e", "o", "l", "ss", "ж"]
