"""LibriSpeech: read English audiobooks, upper-case transcripts without punctuation.

Layout from the corpus's README.TXT (openslr.org/12) and lhotse's recipe; hub columns from the dataset card.
"""

from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

from data_prep.corpora import BadRow, Shelf, hub_rows, keep, need, table
from omnilib.errors import DataError

SOURCE = "librispeech"
LICENCE = "CC BY 4.0"
HOURS = {"en": 982}  # 960 h of training, 22 h of evaluation
CITATION = "Panayotov et al. 2015, LibriSpeech: an ASR corpus based on public domain audio books. ICASSP. openslr.org/12"
LAYOUT = "<root>/{train-clean-100,...,dev-clean,test-other}/<speaker>/<chapter>/{<speaker>-<chapter>.trans.txt, *.flac}"
HUB = "openslr/librispeech_asr"
PARTS = (
    "train-clean-100",
    "train-clean-360",
    "train-other-500",
    "dev-clean",
    "dev-other",
    "test-clean",
    "test-other",
)
PARTS += ("train-clean-5", "dev-clean-2")  # mini LibriSpeech, openslr.org/31


def prepare(
    root: Path, out: Path, language: str | None = None, allow_missing: bool = False
) -> Iterator[dict]:
    """Records of every part found below the root (the folder that holds train-clean-100 and so on).

    Raises:
        DataError: missing folder, other layout.
    """
    shelf = Shelf(root, out, SOURCE, LICENCE, allow_missing)
    need(shelf.root, LAYOUT)
    parts = [shelf.root / name for name in PARTS if (shelf.root / name).is_dir()]
    if not parts:
        raise DataError(f"no part of LibriSpeech in {root}: expected {LAYOUT}")
    for part in parts:
        found = False
        for listing in sorted(part.glob("*/*/*.trans.txt")):
            found = True
            for where, key, text in table(listing, shelf.skip):
                try:
                    file = shelf.file(listing.parent / f"{key}.flac", where)
                    yield shelf.record(
                        key, file, where, text, "en", key.split("-")[0], part.name.split("-")[0]
                    )
                except BadRow as error:
                    shelf.skip(where, error)
                yield from shelf.hand_over()
            yield from shelf.hand_over()
        if not found:
            raise DataError(f"no transcripts in {part}: expected {LAYOUT}")


def stream(
    out: Path, language: str | None = None, limit: int | None = None, source: str = HUB
) -> Iterator[dict]:
    """Training clips straight from the hub (Parquet, all three training parts), saved below `out`."""
    shelf = Shelf(out, out, SOURCE, LICENCE)
    parts = (("clean", "train.100"), ("clean", "train.360"), ("other", "train.500"))
    for row in islice(
        chain.from_iterable(hub_rows(source, config, split=part) for config, part in parts), limit
    ):
        fields = {"text": row["text"], "language": "en", "speaker": str(row["speaker_id"]), "split": "train"}
        yield keep(shelf, row["id"], row["audio"]["bytes"], ".flac", **fields)
