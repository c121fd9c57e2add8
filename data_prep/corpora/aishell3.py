"""AISHELL-3: 218 speakers, 44.1 kHz, made for speech synthesis. Transcripts alternate characters and pinyin.

Layout from openslr.org/93, lhotse's recipe and a published count of the whole corpus (88,035 files; every transcript has its
file and the other way round). Most speakers occur in both `train` and `test`: the split step of the pipeline divides anew.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path, PurePosixPath

import fsspec

from data_prep.corpora import BadRow, Shelf, Skip, hub_base, hub_rows, keep, lines, need, table
from omnilib.errors import DataError

SOURCE = "aishell3"
LICENCE = "Apache-2.0"
HOURS = {"zh": 85.6}
CITATION = (
    "Shi et al. 2020, AISHELL-3: a multi-speaker Mandarin TTS corpus and the baselines. arXiv 2010.11567"
)
LAYOUT = "<root>/{spk-info.txt, {train,test}/{content.txt, wav/<SSBxxxx>/*.wav}}"
HUB = "AISHELL/AISHELL-3"


def prepare(
    root: Path, out: Path, language: str | None = None, allow_missing: bool = False
) -> Iterator[dict]:
    """Records of train and test; either may be absent.

    Raises:
        DataError: missing folder, other layout.
    """
    shelf = Shelf(root, out, SOURCE, LICENCE, allow_missing)
    people = speakers(need(need(shelf.root, LAYOUT) / "spk-info.txt", LAYOUT), shelf.skip)
    parts = [p for p in ("train", "test") if (shelf.root / p).is_dir()]
    if not parts:
        raise DataError(f"neither train nor test in {root}: expected {LAYOUT}")
    for part in parts:
        folder = shelf.root / part
        for where, name, content in table(need(folder / "content.txt", LAYOUT), shelf.skip):
            try:
                file = shelf.file(folder / "wav" / name[:7] / name, where)
                record = shelf.record(
                    file.stem, file, where, **fields(name, content), split=part, **people.get(name[:7], {})
                )
                if record["text"] is None and "dropped" not in record:
                    detail = f"{where}: characters and pinyin do not pair up"
                    record["dropped"] = {"step": "prepare", "reason": "bad_transcript", "detail": detail}
                yield record
            except BadRow as error:
                shelf.skip(where, error)
            yield from shelf.hand_over()
    yield from shelf.hand_over()


def fields(name: str, content: str) -> dict:
    """Text and pinyin of `广 guang3 州 zhou1`; no text when they do not pair up."""
    tokens = content.split()
    paired = len(tokens) % 2 == 0
    return {
        "text": "".join(tokens[::2]) if paired else None,
        "pinyin": " ".join(tokens[1::2]) if paired else None,
        "language": "zh",
        "speaker": name[:7],
    }


def speakers(path: Path, skip: Skip) -> dict[str, dict]:
    """{speaker: age group, gender, accent} from tab-separated lines below a commented head."""
    people = {}
    for where, line in lines(path, skip):
        if not line.startswith("#"):
            columns = line.split()
            if len(columns) != 4:
                skip(where, BadRow("wrong_columns", f"{where}: expected `speaker age gender accent`"))
                continue
            people[columns[0]] = dict(zip(("age", "gender", "accent"), columns[1:]))
    return people


def stream(
    out: Path, language: str | None = None, limit: int | None = None, source: str = HUB
) -> Iterator[dict]:
    """Training clips straight from the hub (single files), saved below `out`."""
    shelf = Shelf(out, out, SOURCE, LICENCE)
    contents = {}
    base = f"{hub_base(source)}/train"
    for row in hub_rows("text", files=f"{base}/content.txt"):
        name, *content = row["text"].split(maxsplit=1)
        contents[name] = content[0] if content else ""
    for row in islice(
        hub_rows("audiofolder", files=f"{base}/wav/*/*.wav", columns={"audio": "string"}), limit
    ):
        name = PurePosixPath(row["audio"]).name
        with fsspec.open(row["audio"], "rb") as file:
            data = file.read()
        yield keep(
            shelf,
            name.removesuffix(".wav"),
            data,
            ".wav",
            **fields(name, contents.get(name, "")),
            split="train",
        )
