"""AISHELL-2: 1,000 h of read Mandarin from iPhones, by application, for research and education.

Layout from Kaldi's recipe by the publishers (egs/aishell2) and lhotse's: the speaker is the folder a recording lies in.
`spk_info.txt` is not read: nothing in it is needed. The development and test sets come as folders of the same kind beside `data`.
"""

from collections.abc import Iterator
from pathlib import Path

from data_prep.corpora import BadRow, Shelf, need, table, transcripts
from omnilib.errors import DataError

SOURCE = "aishell2"
LICENCE = "AISHELL-2 academic licence"
HOURS = {"zh": 1000}
CITATION = (
    "Du et al. 2018, AISHELL-2: transforming Mandarin ASR research into industrial scale. arXiv 1808.10583"
)
LAYOUT = "<root>/iOS/{data,dev,test}/{wav.scp, trans.txt, wav/<speaker>/*.wav}"
HUB = None
WHY = "given out on application only, aishelltech.com/aishell_2"
SPLITS = {"data": "train", "train": "train", "dev": "dev", "test": "test"}


def prepare(
    root: Path, out: Path, language: str | None = None, allow_missing: bool = False
) -> Iterator[dict]:
    """Records of every folder below the root that holds a wav.scp.

    Raises:
        DataError: missing folder, other layout.
    """
    shelf = Shelf(root, out, SOURCE, LICENCE, allow_missing)
    lists = sorted(need(shelf.root, LAYOUT).glob("**/wav.scp"))
    if not lists:
        raise DataError(f"no wav.scp below {root}: expected {LAYOUT}")
    for listing in lists:
        texts = transcripts(need(listing.parent / "trans.txt", LAYOUT), shelf.skip)
        for where, key, path in table(listing, shelf.skip):
            try:
                file = shelf.file(listing.parent / path if path else "", where)
                text, split = unquote(texts.get(key, "")), SPLITS.get(listing.parent.name)
                yield shelf.record(key, file, where, text, "zh", file.parent.name, split)
            except BadRow as error:
                shelf.skip(where, error)
            yield from shelf.hand_over()
    yield from shelf.hand_over()


def unquote(text: str) -> str:
    """Drop the apostrophes some Chinese lines carry around a word; those of English words stay."""
    return "".join(c for i, c in enumerate(text) if not (c == "'" and (i == 0 or ord(text[i - 1]) > 0x2E7F)))
