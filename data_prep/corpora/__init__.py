"""One file per corpus: what it is, who may use it, how it lies on disk, and `prepare()` that reads it from there.

    python -m data_prep.corpora                                                  # the table
    python -m data_prep.corpora librispeech --root raw/LibriSpeech --out raw     # read what was downloaded
    python -m data_prep.corpora emilia --language zh --stream --limit 500 --out data/emilia    # or take it from the hub

A corpus module has SOURCE (short name, also the records' `source`), LICENCE, HOURS (by language), CITATION, LAYOUT, HUB
(the repository `stream()` reads, or None and WHY), and

    prepare(root, out, language=None, allow_missing=False) -> Iterator[record]
    stream(out, language=None, limit=None, source=HUB) -> Iterator[record]          # only where the set lives on the hub

Records are those of `omnilib.data`: seconds, `path` below `out`, where the manifest will lie. Audio inside `out` stays where
it is; audio elsewhere is hard-linked below `out` (no bytes are copied, raw data is never written). A row, a line or a file that
cannot be used is a record with `dropped` (a reason and a detail) and the corpus goes on; `save` stops where they are too many. A
folder that contradicts its published layout, a damaged archive or a damaged list raises `DataError` in one line.
Ids of a corpus are kept in memory to find repeated ones: about 100 bytes a record.
"""

import importlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import ModuleType

from tqdm import tqdm

from omnilib.errors import DataError, MissingTool
from omnilib.recording import UNKNOWN_FRAMES, BadRecording, opened

CORPORA = (
    "emilia",
    "libriheavy",
    "common_voice",
    "aishell1",
    "aishell2",
    "aishell3",
    "librispeech",
    "folder",
)
CJK = r"[\u3000-\u303f\u3400-\u9fff\uff01-\uff65]"
SLACK = 0.1  # seconds a transcript may end after its recording does
MAX_BAD = 0.2  # share of bad rows above which a corpus is not what it is taken for
FEW_BAD = 5  # so many bad rows never stop a corpus, however small it is
ENOUGH = 2000  # rows after which too large a share of bad ones stops at once


class BadRow(DataError):
    """One row that cannot be used: a line for a person, and `reason`, a short word for the count."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


Skip = Callable[[str, BadRow], object]


def load(name: str) -> ModuleType:
    """The module of a corpus.

    Raises:
        DataError: no such corpus.
    """
    if name not in CORPORA:
        raise DataError(f"no corpus '{name}': choose one of {', '.join(CORPORA)}")
    return importlib.import_module(f"data_prep.corpora.{name}")


# ---- reading ---------------------------------------------------------------------------------------------------------


def need(path: Path, layout: str) -> Path:
    """`path`, which must exist and be readable.

    Raises:
        DataError: it is not; the message repeats the published layout.
    """
    if not path.exists():
        raise DataError(f"no {path}: expected {layout}")
    if not os.access(path, os.R_OK):
        raise DataError(f"cannot read {path}: change its permissions")
    return path


def decode(raw: bytes, where: str) -> str:
    """UTF-8 text, without a byte order mark.

    Raises:
        BadRow: other bytes.
    """
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadRow(
            "not_utf8", f"{where} is not UTF-8: convert it, e.g. `iconv -f GB18030 -t UTF-8`"
        ) from None


def lines(path: Path, skip: Skip | None = None) -> Iterator[tuple[str, str]]:
    """("file:number", line) of the non-empty lines of a UTF-8 text file; others are given to `skip`, or raise `BadRow` without it."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            where = f"{path}:{number}"
            try:
                text = decode(raw, where).strip("\r\n")
            except BadRow as error:
                if skip is None:
                    raise
                skip(where, error)
                continue
            if text.strip():
                yield where, text


def table(path: Path, skip: Skip) -> Iterator[tuple[str, str, str]]:
    """("file:number", key, value) of lines `key<space or tab>value`."""
    for where, line in lines(path, skip):
        key, *value = line.split(maxsplit=1)
        yield where, key, value[0] if value else ""


def transcripts(path: Path, skip: Skip) -> dict[str, str]:
    """`table` as a dict; of a key that stands twice the first line counts."""
    texts: dict[str, str] = {}
    for where, key, text in table(path, skip):
        if key in texts:
            skip(where, BadRow("repeated_id", f"{where}: '{key}' stands twice; keep one of the two lines"))
        texts.setdefault(key, text)
    return texts


def parse(line: str, where: str) -> dict:
    """A line of JSON that is an object.

    Raises:
        BadRow: it is not.
    """
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadRow(
            "not_json", f"{where}: not JSON ({getattr(error, 'msg', error)}); download the file again"
        ) from None
    if not isinstance(value, dict):
        raise BadRow("not_json", f"{where}: not a JSON object; download the file again")
    return value


def probe(file: Path) -> tuple[float, int] | None:
    """(seconds, rate) from the header, None when it is not readable as audio."""
    try:
        with opened(file) as sound:
            frames, rate = sound.frames, sound.samplerate
    except BadRecording:
        return probe_av(file) if file.suffix.lower() == ".m4a" else None
    return (frames / rate, rate) if 0 < frames < UNKNOWN_FRAMES else None


def probe_av(file: Path) -> tuple[float, int] | None:
    """`probe` for what libsndfile does not read."""
    try:
        import av
    except ImportError:
        raise MissingTool("reading m4a needs PyAV: pip install av") from None
    try:
        with av.open(str(file)) as container:
            stream = container.streams.audio[0]
            return float(stream.duration * stream.time_base), stream.rate
    except (av.FFmpegError, IndexError, TypeError):
        return None


def number(value: object, where: str, name: str) -> float:
    """A finite number, perhaps written as text.

    Raises:
        BadRow: it is not.
    """
    try:
        found = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise BadRow("bad_offset", f"{where}: {name} is {value!r:.40}, not a number of seconds")
    return found


def words(row: dict, names: Iterable[str], where: str) -> dict:
    """The row, whose fields `names` are text or absent.

    Raises:
        BadRow: one is of another type.
    """
    for name in names:
        if not isinstance(row.get(name), str | None):
            raise BadRow("wrong_type", f"{where}: {name} is {row[name]!r:.40}, not text")
    return row


def tidy(text: str | None) -> str | None:
    """Single spaces, none between Chinese characters (some corpora write words apart); None when nothing is left."""
    text = " ".join((text or "").split())
    return re.sub(rf"(?<={CJK}) (?={CJK})", "", text) or None


# ---- writing records -------------------------------------------------------------------------------------------------


@dataclass
class Shelf:
    """Turns the items of one corpus into records; checks that ids are unique and that no path leaves the folder.

    Args:
        root: folder of the corpus.
        out: folder the manifest will lie in.
        source, licence: fields of every record.
        allow_missing: listed files that are absent are expected, and not counted as bad rows.
        rename: a second file of one id gets another id, instead of being dropped.
    """

    root: Path
    out: Path
    source: str
    licence: str
    allow_missing: bool = False
    rename: bool = False
    seen: set[str] = field(default_factory=set)
    skipped: list[dict] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.root, self.out = Path(self.root).resolve(), Path(self.out).resolve()

    def file(self, listed: str | Path, where: str) -> Path:
        """The file a list names, relative to the root.

        Raises:
            BadRow: it leaves the root, or cannot be a name.
        """
        if not str(listed).strip() or "\0" in str(listed):
            raise BadRow("no_file_name", f"{where}: no name of a file")
        path = Path(os.path.normpath(self.root / listed))
        if not path.is_relative_to(self.root):
            raise BadRow("outside_the_folder", f"{where}: '{listed}' leaves the corpus folder; not read")
        return path

    def place(self, file: Path) -> str:
        """Path of the audio below `out`: its own, or that of a hard link to it."""
        if file.is_relative_to(self.out):
            return file.relative_to(self.out).as_posix()
        link = self.out / self.source / file.relative_to(self.root)
        link.parent.mkdir(parents=True, exist_ok=True)
        try:
            link.hardlink_to(file)
        except OSError as error:
            if link.exists() and link.samefile(file):  # linked by an earlier run
                return link.relative_to(self.out).as_posix()
            raise DataError(
                f"cannot link {file} below {self.out} ({error.strerror}): give as --out the corpus folder or one above it"
            ) from None
        return link.relative_to(self.out).as_posix()

    def skip(self, where: str, error: BadRow) -> dict:
        """A dropped record of a row that could not be read; `skipped` keeps it until the reader hands it over."""
        name = where.removeprefix(f"{self.root}/")
        row = {
            "id": name,
            "path": name,
            "start": 0.0,
            "duration": 0.0,
            "source": self.source,
            "licence": self.licence,
        }
        row["dropped"] = {"step": "prepare", "reason": error.reason, "detail": str(error)}
        self.skipped.append(row)
        return row

    def hand_over(self) -> Iterator[dict]:
        """The skipped rows since the last call."""
        rows, self.skipped = self.skipped, []
        yield from rows

    def fresh(self, name: str, where: str) -> str:
        """`name`, or where it is taken and files may be renamed, `name-2` and so on.

        Raises:
            BadRow: it is taken.
        """
        if name in self.seen and not self.rename:
            raise BadRow("repeated_id", f"{where}: id '{name}' stands twice; the first is kept")
        new, count = name, 2
        while new in self.seen:
            new, count = f"{name}-{count}", count + 1
        self.seen.add(new)
        return new

    def record(
        self,
        key: str,
        file: Path,
        where: str,
        text: str | None = None,
        language: str | None = None,
        speaker: str | None = None,
        split: str | None = None,
        start: float = 0.0,
        duration: float | None = None,
        licence: str | None = None,
        sound: tuple[float, int] | None = None,
        **more,
    ) -> dict:
        """One record; `where` ("file:line") goes into error messages, `sound` is what `probe` said if already known.

        A missing or unreadable file, and a part that its recording does not have, is a record with `dropped`.

        Raises:
            BadRow: the id is no id or stands twice, or a field is of another type.
        """
        if not isinstance(key, str) or not key.strip():
            raise BadRow("no_id", f"{where}: the id is {key!r:.40}")
        words(
            {"text": text, "language": language, "speaker": speaker}, ("text", "language", "speaker"), where
        )
        start, duration = (
            number(start, where, "start"),
            None if duration is None else number(duration, where, "duration"),
        )
        wanted = re.sub(r"[/\\\s]+", "-", key)
        name = self.fresh(wanted, where)
        if name != wanted:
            more["renamed"] = wanted
        reason = detail = None
        if not file.is_file():
            reason = "missing_audio"
            detail = (
                f"{where}: no audio file {file}; download it again, or pass --allow-missing to go without"
            )
        else:
            sound = sound or probe(file)
            if sound is None:
                reason, detail = "unreadable_audio", f"{file} is not readable as audio"
            elif start < 0 or (duration is not None and duration <= 0):
                reason, detail = "bad_offset", f"{where}: {duration} s from second {start}"
            elif start >= sound[0] or (duration is not None and start + duration > sound[0] + SLACK):
                reason, detail = (
                    "beyond_the_end",
                    f"{where}: {duration} s from second {start} of {sound[0]:.2f} s",
                )
        seconds, rate = sound or (0.0, 0)
        record = {
            "id": name,
            "path": f"{self.source}/{name}" if reason == "missing_audio" else self.place(file),
            "start": round(start, 4),
            "duration": round(seconds - start if duration is None else duration, 4),
            "rate": rate,
            "text": tidy(text),
            "language": language,
            "speaker": speaker and f"{self.source}-{speaker}",
            "source": self.source,
            "licence": licence or self.licence,
            "split": split,
            **{k: v for k, v in more.items() if v not in (None, "")},
        }
        return (
            record | {"dropped": {"step": "prepare", "reason": reason, "detail": detail}}
            if reason
            else record
        )


@dataclass
class BadRows:
    """Counts bad rows by reason and says when they are too many."""

    name: str
    most: float = MAX_BAD
    rows: int = 0
    reasons: Counter = field(default_factory=Counter)
    first: str = ""

    def add(self, reason: str, detail: str) -> None:
        self.reasons[reason] += 1
        self.first = self.first or detail

    def check(self) -> None:
        """Stop where more than `most` of the rows are bad.

        Raises:
            DataError: they are.
        """
        bad = self.reasons.total()
        if bad > FEW_BAD and bad > self.most * self.rows:
            raise DataError(
                f"{self.name}: {bad:,} of {self.rows:,} rows are bad ({self}), more than {self.most:.0%}; first: {self.first}; "
                "correct them, or allow more with --max-bad"
            )

    def __str__(self) -> str:
        return ", ".join(f"{reason} {count}" for reason, count in self.reasons.most_common())


def save(
    records: Iterable[dict], out: Path, name: str, max_bad: float = MAX_BAD, allow_missing: bool = False
) -> dict:
    """Stream records to `out/manifest.jsonl` and `out/dropped.jsonl`, both renamed into place at the end; returns the counts.

    Args:
        max_bad: share of dropped records above which nothing is written.
        allow_missing: records dropped for missing audio do not count as bad.

    Raises:
        DataError: no records, too many bad ones, the disk is full, or something cannot be read.
    """
    out, bad_rows = Path(out), BadRows(name, max_bad)
    counts = {"kept": 0, "dropped": 0, "renamed": 0, "hours": 0.0, "reasons": bad_rows.reasons}
    kept, dropped = (out / f"{part}.jsonl.tmp" for part in ("manifest", "dropped"))
    try:
        out.mkdir(parents=True, exist_ok=True)
        with kept.open("w", encoding="utf-8") as good, dropped.open("w", encoding="utf-8") as bad:
            for record in tqdm(records, desc=name, unit=" records"):
                line = json.dumps(record, ensure_ascii=False, sort_keys=True, allow_nan=False) + "\n"
                (bad if "dropped" in record else good).write(
                    line.encode("utf-8", "backslashreplace").decode()
                )
                bad_rows.rows += 1
                if (drop := record.get("dropped")) and not (
                    allow_missing and drop["reason"] == "missing_audio"
                ):
                    bad_rows.add(drop["reason"], drop.get("detail") or f"'{record['id']}'")
                    if bad_rows.rows >= ENOUGH:
                        bad_rows.check()
                counts["renamed"] += "renamed" in record
                counts["dropped" if "dropped" in record else "kept"] += 1
                counts["hours"] += 0.0 if "dropped" in record else record["duration"] / 3600
        if not counts["kept"]:
            why = f"{bad_rows}; first: {bad_rows.first}" if bad_rows.first else f"{counts['dropped']} dropped"
            raise DataError(f"{name}: nothing usable found ({why}); check --root and --language")
        bad_rows.check()
        dropped.replace(out / "dropped.jsonl")
        kept.replace(out / "manifest.jsonl")
    except OSError as error:
        raise DataError(
            f"{name} stopped at {error.filename or out} ({error.strerror}): free space or change permissions"
        ) from None
    finally:
        kept.unlink(missing_ok=True)
        dropped.unlink(missing_ok=True)
    return counts


# ---- streaming from the hub ------------------------------------------------------------------------------------------


def hub_rows(
    builder: str, *config: str, files: str = "", columns: dict | None = None, split: str = "train"
) -> Iterator[dict]:
    """Rows streamed by `datasets`: of a repository, or of `files` read by a builder such as "webdataset"; needs the network.

    `columns` names the type of each column ("string", "binary", ..), which keeps `datasets` from decoding the audio.

    Raises:
        MissingTool: `datasets` is not installed.
        DataError: the repository or the files are not there, or not open to this user.
    """
    try:
        import datasets
    except ImportError:
        raise MissingTool("streaming needs datasets: pip install datasets") from None
    try:
        features = datasets.Features(typed(columns, datasets.Value)) if columns else None
        options = {"data_files": {split: files}, "features": features} if files else {}
        rows = datasets.load_dataset(builder, *config, split=split, streaming=True, **options)
        yield from rows if files else rows.cast_column("audio", datasets.Audio(decode=False))
    except Exception as error:  # the hub, its client and each builder raise their own kinds
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(
            f"cannot stream {files or builder} ({reason}): accept the terms of the set, then `hf auth login`"
        ) from None


def typed(columns: dict, value: type) -> dict:
    """{"a": "string", "b": {"c": "binary"}} with each name of a type in a `datasets.Value`."""
    return {k: typed(v, value) if isinstance(v, dict) else value(v) for k, v in columns.items()}


def hub_base(source: str) -> str:
    """Prefix of file names in a hub repository, or in a local folder that stands for one."""
    return source if Path(source).is_dir() else f"hf://datasets/{source}"


def keep(shelf: Shelf, key: str, data: bytes, suffix: str, **fields) -> dict:
    """Write one streamed clip to `out/<source>/<key><suffix>` and return its record."""
    file = shelf.out / shelf.source / (PurePosixPath(key).name + suffix)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(file, data)
    where = f"{shelf.source} '{key}'"
    try:
        return shelf.record(key, file, where=where, **fields)
    except BadRow as error:
        return shelf.skip(where, error)


def write_bytes(file: Path, data: bytes) -> None:
    """Write under a temporary name, then rename; an equal-sized file is left alone."""
    if file.is_file() and file.stat().st_size == len(data):
        return
    temporary = file.with_name(file.name + ".tmp")
    temporary.write_bytes(data)
    temporary.replace(file)
