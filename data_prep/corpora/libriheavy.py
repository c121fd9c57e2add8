"""Libriheavy: 50,000 h of LibriVox with case, punctuation and context, as cuts over the recordings of Libri-Light.

Layout and fields from the repository's README and the file list of pkufool/libriheavy. A cut is a piece of a long recording:
many records share one file. `texts[0]` is the book's text, `texts[1]` what a recogniser heard (kept as `recognised`).
The small, medium and large lists are disjoint; the `_large` evaluation lists are left out.
"""

import gzip
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from data_prep.corpora import BadRow, Shelf, Skip, decode, need, parse, probe, words
from omnilib.errors import DataError

SOURCE = "libriheavy"
LICENCE = "Apache-2.0 (text), public domain (audio)"
HOURS = {"en": 50_000}
CITATION = "Kang et al. 2024, Libriheavy: a 50,000 hours ASR corpus with punctuation casing and context. ICASSP. arXiv 2309.08105"
LAYOUT = "<root>/{libriheavy_cuts_<small,medium,large,dev,..>.jsonl.gz, download/librilight/<small,..>/<speaker>/<book>/*.flac}"
HUB = None
WHY = "the hub holds the cuts only; the audio is Libri-Light's (github.com/facebookresearch/libri-light)"
LISTS = {
    "small": "train",
    "medium": "train",
    "large": "train",
    "dev": "dev",
    "test_clean": "test",
    "test_other": "test",
}


def prepare(
    root: Path, out: Path, language: str | None = None, allow_missing: bool = False
) -> Iterator[dict]:
    """Records of every list found.

    Raises:
        DataError: missing folder, other layout, damaged list.
    """
    shelf = Shelf(root, out, SOURCE, LICENCE, allow_missing)
    lists = [need(shelf.root, LAYOUT) / f"libriheavy_cuts_{part}.jsonl.gz" for part in LISTS]
    if not any(path.is_file() for path in lists):
        raise DataError(f"no libriheavy_cuts_*.jsonl.gz in {root}: expected {LAYOUT}")
    sound = lru_cache(maxsize=4096)(probe)  # cuts of one recording stand together
    for path, split in zip(lists, LISTS.values()):
        for where, cut in cuts(path, shelf.skip) if path.is_file() else ():
            try:
                try:
                    key, source, said = (
                        cut["id"],
                        cut["recording"]["sources"][0]["source"],
                        cut["supervisions"][0],
                    )
                    texts, speaker, start, duration = (
                        said["custom"]["texts"],
                        said["speaker"],
                        cut["start"],
                        cut["duration"],
                    )
                    text, heard = texts[0], texts[1] if len(texts) > 1 else None
                except (KeyError, IndexError, TypeError) as error:
                    raise BadRow("missing_field", f"{where}: not a Libriheavy cut (no {error})") from None
                file = locate(shelf, source, where)
                known = sound(file) if file.is_file() else None
                length = 0.0 if duration is None else duration
                yield shelf.record(
                    key, file, where, text, "en", speaker, split, start, length, sound=known, recognised=heard
                )
            except BadRow as error:
                shelf.skip(where, error)
            yield from shelf.hand_over()
    yield from shelf.hand_over()


def cuts(path: Path, skip: Skip) -> Iterator[tuple[str, dict]]:
    """("file:number", cut) of a gzipped list."""
    try:
        with gzip.open(path, "rb") as file:
            for number, raw in enumerate(file, 1):
                where = f"{path}:{number}"
                try:
                    cut = parse(decode(raw, where), where)
                except BadRow as error:
                    skip(where, error)
                else:
                    yield where, cut
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is damaged ({error}): download it again") from None


def locate(shelf: Shelf, source: str, where: str) -> Path:
    """The recording: the lists say download/librilight/..., which may be missing from the path on disk."""
    words({"source": source}, ("source",), where)
    paths = [
        shelf.file((source or "").removeprefix(p), where) for p in ("", "download/", "download/librilight/")
    ]
    return next((p for p in paths if p.is_file()), paths[0])
