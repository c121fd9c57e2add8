"""A plain folder of audio, with or without text.

The text of `name.wav` is looked for in `metadata.csv` (header `file_name,text[,speaker,language]`, or LJSpeech's headless
`name|text|normalised text`), then in `name.txt` or `name.lab` beside it; without any it stays null, for the transcription step.
The speaker is the column, else the folder the file lies in, else null.
"""

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from data_prep.corpora import BadRow, Shelf, decode, lines, need
from omnilib.errors import DataError

SOURCE = "folder"
LICENCE = "unknown: state it in the data card"
HOURS: dict[str, float] = {}
CITATION = "none"
LAYOUT = "<root>/**/*.{wav,flac,mp3,ogg,opus,m4a} with metadata.csv, or a .txt or .lab beside each file, or nothing"
HUB = None
WHY = "it is a folder"
AUDIO = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a")
NO_SPEAKER = (
    "",
    "wav",
    "wavs",
    "audio",
    "clips",
    "flac",
    "mp3",
)  # names of folders that say nothing of who speaks
NAME_COLUMNS, TEXT_COLUMNS = (
    ("file_name", "file", "path", "id"),
    ("text", "transcription", "sentence", "transcript"),
)


def prepare(
    root: Path, out: Path, language: str | None = None, allow_missing: bool = False
) -> Iterator[dict]:
    """Records of every audio file below the root, in name order; `language` is written into each that states none.

    Files that would get one id (a.wav and a.mp3, s1/001.wav and s1-001.wav) are all kept: from the second on with another one.

    Raises:
        DataError: missing folder, no audio, metadata without the columns it needs.
    """
    shelf = Shelf(root, out, SOURCE, LICENCE, allow_missing, rename=True)
    listing = need(shelf.root, LAYOUT) / "metadata.csv"
    listed = metadata(shelf, listing) if listing.is_file() else {}
    found = {p for p in shelf.root.rglob("*") if p.suffix.lower() in AUDIO and p.is_file()}
    if not found and not listed:
        raise DataError(f"no audio in {root} ({kinds(shelf.root)}): expected {LAYOUT}")
    for file in sorted(found | set(listed)):
        where, row = listed.get(file, (str(file), {}))
        inner = file.relative_to(shelf.root)
        folder = inner.parent.name
        speaker = row.get("speaker") or (folder if folder.lower() not in NO_SPEAKER else None)
        try:
            text = row["text"] if "text" in row else beside(file)
            key = inner.with_suffix("").as_posix()
            yield shelf.record(key, file, where, text, row.get("language") or language, speaker)
        except BadRow as error:
            shelf.skip(where, error)
        yield from shelf.hand_over()
    yield from shelf.hand_over()


def metadata(shelf: Shelf, path: Path) -> dict[Path, tuple[str, dict]]:
    """{file: ("file:number", {"text", "speaker", "language"})} of a metadata.csv of either kind."""
    text = [line + "\n" for _, line in lines(path, shelf.skip)]
    if not text:
        raise DataError(f"{path} is empty: delete it or list the files in it")
    bars = (
        "|" in text[0] and "," not in text[0].split("|")[0]
    )  # LJSpeech: no header, no quoting, one or two texts
    if bars:
        table = [(number, line.rstrip("\n").split("|")) for number, line in enumerate(text, 1)]
        head = ["file_name", "text"] if len(table[0][1]) == 2 else ["file_name", "written", "text"]
    else:
        (_, head), *table = list(csv_rows(shelf, path, text)) or [(1, [])]
    name = next((c for c in NAME_COLUMNS if c in head), None)
    said = next((c for c in TEXT_COLUMNS if c in head), None)
    if name is None or said is None:
        raise DataError(
            f"{path}:1: no file and text columns; expected `file_name,text` or LJSpeech's `name|text`"
        )
    rows: dict[Path, tuple[str, dict]] = {}
    for number, values in table:
        where, row = f"{path}:{number}", dict(zip(head, values))
        try:
            if len(values) != len(head):
                hint = "quote commas inside the text"
                raise BadRow(
                    "wrong_columns", f"{where}: {len(values)} columns where {len(head)} were expected; {hint}"
                )
            file = find(shelf, row[name], where)
            if file in rows:
                raise BadRow("repeated_id", f"{where}: '{row[name]}' stands twice; keep one of the two lines")
            rows[file] = (
                where,
                {"text": row[said], "speaker": row.get("speaker"), "language": row.get("language")},
            )
        except BadRow as error:
            shelf.skip(where, error)
    return rows


def csv_rows(shelf: Shelf, path: Path, text: list[str]) -> Iterator[tuple[int, list[str]]]:
    """(line number, values) of the rows of a CSV; a line that is none, such as one with a lone quotation mark, is skipped alone."""
    at = 0
    while at < len(text):
        reader = csv.reader((text[i] for i in range(at, len(text))), strict=True)
        try:
            yield at + 1, next(reader)
            at += reader.line_num
        except csv.Error as error:
            where, at = f"{path}:{at + 1}", at + 1
            shelf.skip(
                where,
                BadRow(
                    "not_csv",
                    f"{where} is not CSV ({error}); quote the text, and double the quotation marks in it",
                ),
            )


def find(shelf: Shelf, name: str, where: str) -> Path:
    """The file a row means: as written, or LJSpeech's bare name below wavs/."""
    shelf.file(name, where)
    names = [name, *(f"{folder}{name}{suffix}" for folder in ("", "wavs/") for suffix in AUDIO)]
    paths = [shelf.file(n, where) for n in names]
    return next((p for p in paths if p.is_file()), paths[0])


def beside(file: Path) -> str | None:
    """Text of the .txt or .lab with the same name."""
    for suffix in (".txt", ".lab"):
        if (path := file.with_suffix(suffix)).is_file():
            return decode(path.read_bytes(), str(path))
    return None


def kinds(root: Path) -> str:
    """What is there instead: '40000 .pdf, 2 .md' or 'empty'."""
    counts = Counter(p.suffix or "without suffix" for p in root.rglob("*") if p.is_file())
    return ", ".join(f"{n} {s}" for s, n in counts.most_common(3)) or "empty"
