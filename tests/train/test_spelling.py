"""Pieces taken apart spell the same text, and each word of the lexicon has one line that says how it sounds."""

import numpy as np
import pytest

from omnilib.errors import MissingTool
from omnilib.mouth.chunking import ChunkRules
from omnilib.mouth.rows import chunk_sentences
from omnilib.text import encode, train_tokenizer
from omnilib.train import spelling

TEXT = ["the hospital is open at noon.", "a hospice is no hospital.", "open the door at noon."] * 20


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXT, size=400)


def test_pieces_taken_apart_spell_the_same_text_and_the_draw_is_a_function_of_its_generator(tokenizer):
    ids = encode(tokenizer, TEXT[0])
    split = lambda share, seed: [  # noqa: E731
        part for i in ids for part in spelling.Splitter(tokenizer, share, np.random.default_rng(seed))(i)
    ]
    assert split(0.0, 1) == ids
    assert len(split(1.0, 1)) > len(split(0.3, 1)) >= len(ids)
    assert split(0.3, 1) == split(0.3, 1)
    for share in (0.3, 1.0):
        assert tokenizer.decode(split(share, 1)) == tokenizer.decode(ids)


def test_a_chunk_never_ends_within_a_word_that_was_taken_apart(tokenizer):
    splitter = spelling.Splitter(tokenizer, 1.0, np.random.default_rng(0))
    rules = ChunkRules(20, 200)
    whole, plain_spans, done = chunk_sentences(tokenizer, TEXT[:6], rules)
    ids, spans, split_done = chunk_sentences(tokenizer, TEXT[:6], rules, splitter)
    assert len(ids) > len(whole) and tokenizer.decode(ids) == tokenizer.decode(whole)
    assert spans[-1][1] == len(ids) and split_done[-1] == done[-1] == 6
    assert all(tokenizer.decode(ids[a:b]).strip().endswith(".") for a, b in spans)


def test_a_piece_is_no_longer_than_allowed():
    long, short = train_tokenizer(TEXT, size=400), train_tokenizer(TEXT, size=400, longest=4)
    longest = lambda t: max(len(t.decode([i])) for i in encode(t, TEXT[0]))  # noqa: E731
    assert longest(short) <= 4 < longest(long)


def test_lines_of_the_pronunciation_task_are_words_and_their_sounds():
    pytest.importorskip("misaki")
    lines = spelling.english()
    assert len(lines) > 50_000
    assert "maid = m e ɪ d" in lines and "maiden = m e ɪ d ə n" in lines
    assert not [line for line in lines if set("ˈˌAIOWY") & set(line)]
    assert spelling.chinese(["好, ok"]) == ["好 = h a o 3"]


def test_a_missing_lexicon_is_one_line(monkeypatch):
    def gone(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(spelling, "files", gone)
    spelling.lexicon.cache_clear()
    with pytest.raises(MissingTool, match="pip install misaki") as caught:
        spelling.english()
    spelling.lexicon.cache_clear()
    assert "\n" not in str(caught.value)
