"""From the brain's text to the mouth's ids, while the brain is still writing.

`SameIds`: both read with one vocabulary (as published): an id goes over as it is, unnormalised.
`Words`: two vocabularies (nano). The text is put into spoken form and encoded for the mouth, and only as much of
it goes over as nothing that follows can change: up to a place between plain words ("at 5 | pm" is none, "the
light | of" is), or before a Chinese mark. The ids are those of the whole text, which `tests/test_bridge.py` holds
for every kind of written form. What stands in Markdown goes over with its line.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator

from omnilib.errors import UserError
from omnilib.mouth.front_end import FrontEnd
from omnilib.text import detect_language, encode

HAN = "\u4e00-\u9fff"
# a place to cut: behind two plain words and before a third that is whole, or between a Han character and a mark
SAFE = re.compile(
    rf"(?<![^ \n])[a-z]{{2,}} [a-z]{{2,}}(?= [a-z]{{2,}}[ ,])|[{HAN}]{{2}}(?=[，。！？；][{HAN}])"
)
MARKUP = frozenset("[]`<>*_|#~\\({$")  # may be half of something: wait for the end of the line
ENOUGH = 8  # read again when the text has grown by an eighth: all readings together cost little


def same_vocabulary(brain, mouth, size: int) -> bool:
    """Whether the brain's ids mean the same to the mouth: every text id below `size`, its control tokens aside."""
    known = brain.get_vocab()
    return all(known.get(piece) == i for piece, i in mouth.get_vocab().items() if i < size - 3)


class SameIds:
    """One vocabulary: ids go over as they come."""

    def __init__(self, decode: Callable[[list[int]], str]):
        self.decode, self.ids = decode, []

    def push(self, new: int | None, text: str) -> list[int]:
        """Ids for the mouth after the brain wrote the id `new` (None: its end); `text` is all it has written."""
        ids = [] if new is None else [new]
        self.ids += ids
        return ids

    def close(self, text: str) -> list[int]:
        """The rest, when the brain has ended."""
        return []

    def said(self, taken: int) -> str:
        """What the brain wrote of the first `taken` ids that went over."""
        return self.decode(self.ids[:taken])

    def ratio(self, written: int, text: str) -> float:
        """Ids that the brain writes for one of the mouth's, given that `text` took it so many."""
        return 1.0


class Words:
    """Two vocabularies: spoken forms go over, as far as they are sure.

    Args:
        front: the mouth's.
        language: of the text; None: of its first words.
    """

    def __init__(self, front: FrontEnd, language: str | None = None):
        self.front, self.language = front, language
        self.ids: list[int] = []  # that went over
        self.marks: list[tuple[int, str]] = []  # ids so far, and the written text they stand for

    def push(self, new: int | None, text: str) -> list[int]:
        """As `SameIds.push`."""
        known = len(self.marks[-1][1]) if self.marks else 0
        if len(text) - known < known // ENOUGH or (cut := safe_cut(text, known)) is None:
            return []
        return self.hand_over(text[:cut], whole=False)

    def close(self, text: str) -> list[int]:
        """As `SameIds.close`."""
        return self.hand_over(text, whole=True)

    def said(self, taken: int) -> str:
        """As `SameIds.said`, at the last place where the text could be cut."""
        known = max((i for i, (count, _) in enumerate(self.marks) if count <= taken), default=-1)
        text, later = (self.marks[known][1] if known >= 0 else ""), self.marks[known + 1 : known + 2]
        for _, longer in later:
            cuts = sorted(c for c in safe_cuts(longer, 0) if c > len(text))
            fits = bisect_right(cuts, taken, key=lambda cut: self.spoken(longer[:cut]))
            text = longer[: cuts[fits - 1]] if fits else text
        return text

    def ratio(self, written: int, text: str) -> float:
        """As `SameIds.ratio`."""
        count, known = self.marks[-1] if self.marks else (0, "")
        return written / max(1, len(text)) * len(known) / count if count else 1.0

    def spoken(self, text: str) -> int:
        """How many ids a beginning of the text is."""
        return len(encode(self.front.tokenizer, self.front.read(text, self.language).text[:-1]))

    def hand_over(self, text: str, whole: bool) -> list[int]:
        """Ids of `text` that have not gone over yet."""
        self.language = self.language or detect_language(text)
        try:
            spoken = self.front.read(text, self.language).text
        except UserError:  # nothing to speak in it
            return []
        ids = encode(self.front.tokenizer, spoken if whole else spoken[:-1])  # `read` sets an end mark
        shared = len(self.ids)
        if ids[:shared] != self.ids:
            if not whole:
                return []  # read otherwise than before: the next words will tell
            shared = next(
                i for i, (a, b) in enumerate(zip([*ids, -1], [*self.ids, -2], strict=False)) if a != b
            )
        new = ids[shared:]
        self.ids += new
        self.marks.append((len(self.ids), text))
        return new


def safe_cut(text: str, start: int) -> int | None:
    """The last place behind `start` up to which nothing that follows can change how the text is read."""
    return next(safe_cuts(text, start), None)


def safe_cuts(text: str, start: int) -> Iterator[int]:
    """All such places, the last first."""
    for match in reversed(list(SAFE.finditer(text, start))):
        line = text[text.rfind("\n", 0, match.end()) + 1 : match.end()]
        if MARKUP.isdisjoint(line) and text.count("```", 0, match.end()) % 2 == 0:
            yield match.end()
