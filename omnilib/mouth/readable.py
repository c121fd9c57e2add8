"""What a tokenizer has learnt to read, and how a text is brought within it.

A tokenizer with byte fallback (the nano BPE) encodes any text, but what it spells in bytes stood in no training text: those
ids keep their random embeddings, and the mouth says a syllable or two of babble for them. That holds for whole scripts, for
rare Chinese characters, for "é", and in an earlier nano model for a final "!" or "?" (`eval/ends.py` measures it). So a text
passes here first:

    "!" "?"          unseen, the nearest mark the tokenizer knows: "."          (likewise ; : - and their Chinese forms)
    é ß              the plain letters: e, ss
    a rare 咖        a character of the same sound that it has seen: 喀
    any other        left out, and named in the result

A tokenizer that knows a character (the published byte-level one knows them all) gets it as it is, so a model that is trained
on questions needs no switch here.
"""

import re
import unicodedata
from dataclasses import dataclass
from functools import cached_property, lru_cache

from transformers import PreTrainedTokenizerBase

from omnilib.text import encode

MARKS = {
    "!": ".",
    "?": ".",
    ";": ",",
    ":": ",",
    "！": "。",
    "？": "。",
    "；": "，",
    "：": "，",
    "、": "，",
    "-": " ",
}
LETTERS = {"ß": "ss", "æ": "ae", "œ": "oe", "ð": "d", "þ": "th", "ı": "i", "ŋ": "ng", "ə": "e", "ĸ": "k"}
HAN = "\u4e00-\u9fff"
SPOKEN_SCRIPTS = ("Latin", "Chinese")  # those of the languages that this family of models is trained to speak


@dataclass(frozen=True)
class Reading:
    """A text as the model gets it.

    Attributes:
        left_out: the letters that nothing stands for, in the runs in which they stood.
        letters: letters of the text in all.
    """

    text: str
    left_out: tuple[str, ...]
    letters: int


@lru_cache(maxsize=4096)
def script(letter: str) -> str:
    """ "Cyrillic", "Hangul", "Chinese", ... from the first word of the letter's Unicode name."""
    name = unicodedata.name(letter, "unknown").split()[0]
    return {"CJK": "Chinese"}.get(name, name.title())


def plain(letter: str) -> str:
    """Latin letters without their marks: "é" -> "e", "ø" -> "o", "Æ" -> "ae"; any other letter as it is."""
    low = letter.lower()
    if low in LETTERS:
        return LETTERS[low]
    bare = "".join(c for c in unicodedata.normalize("NFKD", low) if not unicodedata.combining(c))
    named = re.fullmatch(
        r"LATIN SMALL LETTER ([A-Z]) WITH .+", unicodedata.name(bare, "") if len(bare) == 1 else ""
    )
    return named[1].lower() if named else bare


class Reader:
    """Brings texts within what one tokenizer knows."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab()
        self.bytes = frozenset(
            id for id in (vocabulary.get(f"<0x{i:02X}>") for i in range(256)) if id is not None
        )
        self.known: dict[str, bool] = {}

    def knows(self, char: str) -> bool:
        """Whether the tokenizer has an id for this character that is not a spelling in bytes."""
        if char not in self.known:
            self.known[char] = not self.bytes or self.bytes.isdisjoint(encode(self.tokenizer, char))
        return self.known[char]

    @cached_property
    def by_sound(self) -> dict[str, str]:
        """Pinyin with tone, and without -> a character that the tokenizer knows; those of one sound only come first."""
        from pypinyin import Style, lazy_pinyin, pinyin

        known = [c for c in self.tokenizer.get_vocab() if len(c) == 1 and script(c) == "Chinese"]
        known.sort(key=lambda c: (len(pinyin(c, heteronym=True)[0]), c))
        table: dict[str, str] = {}
        for style in (Style.TONE3, Style.NORMAL):
            for char in known:
                table.setdefault(lazy_pinyin(char, style=style)[0], char)
        return table

    def same_sound(self, han: str) -> list[str]:
        """For each of a run of Chinese characters itself or one that the tokenizer knows; "" where there is none."""
        from pypinyin import Style, lazy_pinyin

        tones, plains = (lazy_pinyin(han, style=style, errors=list) for style in (Style.TONE3, Style.NORMAL))
        found = [
            self.by_sound.get(tone, self.by_sound.get(bare, ""))
            for tone, bare in zip(tones, plains, strict=True)
        ]
        return [char if self.knows(char) else other for char, other in zip(han, found, strict=True)]

    def read(self, text: str) -> Reading:
        """The text in characters that the tokenizer knows; `text` is in spoken form."""
        letters = sum(map(str.isalpha, text))
        unknown = {c for c in text if not c.isspace() and not self.knows(c)}
        if not unknown:
            return Reading(text, (), letters)
        instead: dict[str, str] = {}
        for char in unknown:
            other = MARKS.get(char) or (plain(char) if script(char) == "Latin" else "")
            instead[char] = other if all(map(self.knows, other)) else ""
        pieces: list[str] = []
        for run in re.findall(f"[{HAN}]+|[^{HAN}]+", text):
            if script(run[0]) == "Chinese" and not unknown.isdisjoint(run):
                pieces += self.same_sound(run)
            else:
                pieces += [instead.get(c, c) for c in run]
        lost = "".join(a if not b and a.isalpha() else " " for a, b in zip(text, pieces, strict=True))
        return Reading("".join(pieces), tuple(lost.split()), letters)
