"""How words sound and how they are spelt: what a backbone that has read the internet brings along, taught to a small one.

    pronunciations("en", words)     lines such as "maiden = m e ɪ d ə n", a reading task for the text backbone
    Splitter(tokenizer, 0.1, rng)   pieces taken apart at random, so that a model knows a word by its letters too

The lexicon is misaki's (the one that Kokoro speaks from), Chinese readings are pypinyin's. Only training needs either.
Source: BPE dropout, Provilkov et al. 2020, arXiv 1910.13267; we undo merges instead of leaving them out, which is the same choice
made from the other end and needs no second encoder.
"""

import json
import re
from collections.abc import Iterable
from functools import lru_cache
from importlib.resources import files

import numpy as np
from transformers import PreTrainedTokenizerBase

from omnilib.errors import MissingTool

DIPHTHONGS = {"A": "eɪ", "I": "aɪ", "O": "oʊ", "W": "aʊ", "Y": "ɔɪ", "ᵊ": "ə"}  # misaki's short names
SILENT = str.maketrans("", "", "ˈˌː")  # stress and length


@lru_cache(maxsize=1)
def lexicon() -> dict[str, str]:
    """{word: phonemes in misaki's symbols} of some 90,000 American English words, checked by hand.

    Raises:
        MissingTool: misaki is not installed.
    """
    try:
        text = (files("misaki") / "data" / "us_gold.json").read_text(encoding="utf-8")
    except (ModuleNotFoundError, FileNotFoundError):
        raise MissingTool(
            "the pronunciation task reads misaki's lexicon: pip install misaki, or --set pronunciations=false"
        ) from None
    found = {}
    for word, said in json.loads(text).items():
        said = said if isinstance(said, str) else said.get("DEFAULT")  # a word that is noun and verb has both
        if said and re.fullmatch(r"[a-z'-]+", word):
            found[word] = said
    return found


def english() -> list[str]:
    """One line a word, in the order of the alphabet."""
    spelt = lambda said: " ".join("".join(DIPHTHONGS.get(s, s) for s in said.translate(SILENT)))  # noqa: E731
    return [f"{word} = {spelt(said)}" for word, said in sorted(lexicon().items())]


def chinese(texts: Iterable[str]) -> list[str]:
    """One line a character of `texts`, such as "好 = h a o 3".

    Raises:
        MissingTool: pypinyin is not installed.
    """
    try:
        from pypinyin import Style, lazy_pinyin
    except ModuleNotFoundError:
        raise MissingTool(
            "the pronunciation task reads pypinyin: pip install pypinyin, or --set pronunciations=false"
        ) from None
    characters = sorted({c for text in texts for c in text if "\u4e00" <= c <= "\u9fff"})
    read = lambda c: lazy_pinyin(c, style=Style.TONE3, neutral_tone_with_five=True)[0]  # noqa: E731
    return [f"{c} = {' '.join(read(c))}" for c in characters]


def pronunciations(texts: Iterable[str]) -> list[str]:
    """All lines: English words of the lexicon, Chinese characters of `texts`."""
    return [*english(), *chinese(texts)]


@lru_cache(maxsize=8)
def halves(tokenizer: PreTrainedTokenizerBase) -> dict[int, tuple[int, int]]:
    """{id of a piece: ids of the two pieces it was merged from}."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    found: dict[int, tuple[int, int]] = {}
    for merge in model["merges"]:
        a, b = merge if isinstance(merge, list) else merge.split(" ", 1)
        found.setdefault(model["vocab"][a + b], (model["vocab"][a], model["vocab"][b]))
    return found


class Splitter:
    """Takes pieces apart: each of them, and each of what comes of it, with probability `share`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, share: float, rng: np.random.Generator):
        self.halves, self.share, self.rng = halves(tokenizer), share, rng

    def __call__(self, piece: int) -> list[int]:
        """The ids that stand for `piece` this time; they spell the same text."""
        if piece not in self.halves or self.rng.random() >= self.share:
            return [piece]
        left, right = self.halves[piece]
        return [*self(left), *self(right)]
