"""Common Voice (scripted speech): sentences read by volunteers, MP3.

Layout and columns from common-voice/cv-dataset (datasets/scripted-speech/README.md); hours of release 24.0 from its statistics
(all clips; validated: en 2,750, zh-CN 239, zh-TW 79). A delta release has the same files without train, dev and test.
Only `validated.tsv` is read, which holds train, dev and test too; those give the split.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from data_prep.corpora import BadRow, Shelf, Skip, lines, need
from omnilib.errors import DataError

SOURCE = "common_voice"
LICENCE = "CC0-1.0"
HOURS = {"en": 3779, "zh": 1205, "yue": 450}  # zh-CN + zh-TW; yue + zh-HK
CITATION = "Ardila et al. 2020, Common Voice: a massively-multilingual speech corpus. LREC. arXiv 1912.06670"
LAYOUT = "<root>/[cv-corpus-<version>[-delta]-<date>/]<locale>/{validated.tsv, [train.tsv, dev.tsv, test.tsv,] clips/*.mp3}"
HUB = None
WHY = "left the hub in October 2025; download it from datacollective.mozillafoundation.org"
LANGUAGES = {"zh-CN": "zh", "zh-TW": "zh", "zh-HK": "yue"}  # Hong Kong reads Cantonese
NEEDED = ("client_id", "path", "sentence")


def prepare(
    root: Path, out: Path, language: str | None = None, allow_missing: bool = False
) -> Iterator[dict]:
    """Validated clips of every locale below the root whose language is asked for.

    Raises:
        DataError: missing folder, other layout, or a list without the published columns.
    """
    shelf = Shelf(root, out, SOURCE, LICENCE, allow_missing)
    lists = [
        p
        for depth in ("", "*/", "*/*/")
        for p in sorted(need(shelf.root, LAYOUT).glob(f"{depth}validated.tsv"))
    ]
    if not lists:
        raise DataError(f"no validated.tsv below {root}: expected {LAYOUT}")
    for listing in lists:
        locale = listing.parent.name
        spoken = LANGUAGES.get(locale, locale.split("-")[0])
        if language not in (None, spoken, locale):
            continue
        splits = {}
        for split in ("train", "dev", "test"):
            if (listing.parent / f"{split}.tsv").is_file():
                splits |= {
                    row["path"]: split for _, row in rows(listing.parent / f"{split}.tsv", lambda *_: None)
                }
        for where, row in rows(listing, shelf.skip):
            text, split = plain(row["sentence"]), splits.get(row["path"])
            about = {k: row.get(k) for k in ("age", "gender", "accents", "variant")}
            try:
                file = shelf.file(listing.parent / "clips" / row["path"], where)
                yield shelf.record(file.stem, file, where, text, spoken, row["client_id"], split, **about)
            except BadRow as error:
                shelf.skip(where, error)
            yield from shelf.hand_over()
    yield from shelf.hand_over()


def rows(path: Path, skip: Skip) -> Iterator[tuple[str, dict[str, str]]]:
    """("file:number", columns) of a TSV without quoting: a sentence may hold any number of quotation marks, and no tab or line break."""
    head: list[str] = []
    for where, line in lines(path, skip):
        cells = line.split("\t")
        if not head:
            head = cells
            if missing := [c for c in NEEDED if c not in head]:
                raise DataError(f"{where}: no column {', '.join(missing)}; expected {LAYOUT}")
        elif len(cells) != len(head):
            skip(
                where,
                BadRow("wrong_columns", f"{where}: {len(cells)} columns where the head has {len(head)}"),
            )
        else:
            yield where, dict(zip(head, cells))


def plain(sentence: str) -> str:
    """Undo the quoting some releases put around sentences that hold quotation marks."""
    quoted = re.fullmatch(r'"(.*)"', sentence)
    return quoted[1].replace('""', '"') if quoted and '""' in sentence else sentence
