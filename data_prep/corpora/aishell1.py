"""AISHELL-1: read Mandarin, 400 speakers, 16 kHz. Words are written apart in the transcripts; they are joined here.

Layout from openslr.org/33, lhotse's recipe and the file list of the hub repository.
Some recordings have no transcript: their text is null.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path, PurePosixPath

from data_prep.corpora import BadRow, Shelf, hub_base, hub_rows, keep, need, transcripts
from omnilib.errors import DataError

SOURCE = "aishell1"
LICENCE = "Apache-2.0"
HOURS = {"zh": 178}
CITATION = "Bu et al. 2017, AISHELL-1: an open-source Mandarin speech corpus and a speech recognition baseline. arXiv 1709.05522"
LAYOUT = "<root>/data_aishell/{transcript/aishell_transcript_v0.8.txt, wav/{train,dev,test}/<Sxxxx>/*.wav}"
HUB = "AISHELL/AISHELL-1"
TRANSCRIPT = "transcript/aishell_transcript_v0.8.txt"
FULL_WIDTH = str.maketrans("ａｂｃｋｔ", "abckt")  # the only ones in the transcripts


def prepare(
    root: Path, out: Path, language: str | None = None, allow_missing: bool = False
) -> Iterator[dict]:
    """Records of every recording (the root holds data_aishell, or is it).

    Raises:
        DataError: missing folder, other layout, archives not unpacked.
    """
    shelf = Shelf(root, out, SOURCE, LICENCE, allow_missing)
    base = need(shelf.root, LAYOUT) / "data_aishell"
    base = base if base.is_dir() else shelf.root
    texts = transcripts(need(base / TRANSCRIPT, LAYOUT), shelf.skip)
    files = sorted(need(base / "wav", LAYOUT).glob("*/*/*.wav"))
    if not files and any(base.glob("wav/*.tar.gz")):
        raise DataError(
            f"{base / 'wav'} still holds one archive a speaker: unpack them with `for f in *.tar.gz; do tar xzf $f; done`"
        )
    if not files:
        raise DataError(f"no recordings in {base / 'wav'}: expected {LAYOUT}")
    yield from shelf.hand_over()
    for file in files:
        try:
            yield shelf.record(
                file.stem, file, str(file), **fields(file.stem, texts, file.parent.parent.name)
            )
        except BadRow as error:
            shelf.skip(str(file), error)
        yield from shelf.hand_over()


def fields(key: str, texts: dict[str, str], split: str) -> dict:
    """Text, language, speaker and split of an id such as BAC009S0002W0122."""
    text = texts.get(key, "").translate(FULL_WIDTH)
    return {"text": text, "language": "zh", "speaker": key[6:11], "split": split}


def stream(
    out: Path, language: str | None = None, limit: int | None = None, source: str = HUB
) -> Iterator[dict]:
    """Clips straight from the hub (one archive a speaker), saved below `out`."""
    shelf = Shelf(out, out, SOURCE, LICENCE)
    texts = {}
    base = f"{hub_base(source)}/data_aishell"
    for row in hub_rows("text", files=f"{base}/{TRANSCRIPT}"):
        key, *text = row["text"].split(maxsplit=1)
        texts[key] = text[0] if text else ""
    for row in islice(
        hub_rows("webdataset", files=f"{base}/wav/*.tar.gz", columns={"__key__": "string", "wav": "binary"}),
        limit,
    ):
        name = PurePosixPath(row["__key__"])  # train/S0002/BAC009S0002W0122
        yield keep(shelf, name.name, row["wav"], ".wav", **fields(name.name, texts, name.parts[0]))
