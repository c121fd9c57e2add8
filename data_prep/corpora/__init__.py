"""One file per corpus: what it is, who may use it, how it lies on disk, and `prepare()` that reads it from there.

    python -m data_prep.corpora                                                  # the table
    python -m data_prep.corpora librispeech --root raw/LibriSpeech --out raw     # read what was downloaded
    python -m data_prep.corpora emilia --language zh --stream --limit 500 --out data/emilia    # or take it from the hub

A corpus module has SOURCE (short name, also the records' `source`), LICENCE, HOURS (by language), CITATION, LAYOUT, HUB
(the repository `stream()` reads, or None and WHY), and

    prepare(root, out, language=None, allow_missing=False) -> Iterator[record]
    stream(out, language=None, limit=None, source=HUB) -> Iterator[record]          # only where the set lives on the hub

Records are those of `omnilib.data`: seconds, `path` below `out`, where the manifest will lie. Audio inside `out` stays where
it is; audio elsewhere is hard-linked below `out` (no bytes are copied, raw data is never written). An unreadable or unusable
item is a record with `dropped`; a folder that contradicts its published layout raises `DataError` in one line.
Ids of a corpus are kept in memory to find repeated ones: about 100 bytes a record.
"""

import importlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import ModuleType

import soundfile
from tqdm import tqdm

from omnilib.errors import DataError, MissingTool

CORPORA = ("emilia", "libriheavy", "common_voice", "aishell1", "aishell2", "aishell3", "librispeech", "folder")
CJK = r"[\u3000-\u303f\u3400-\u9fff\uff01-\uff65]"
SLACK = 0.1  # seconds a transcript may end after its recording does


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
        DataError: other bytes.
    """
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{where} is not UTF-8: convert it, e.g. `iconv -f GB18030 -t UTF-8`") from None


def lines(path: Path) -> Iterator[tuple[str, str]]:
    """("file:number", line) of the non-empty lines of a UTF-8 text file."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            where = f"{path}:{number}"
            if text := decode(raw, where).strip("\r\n"):
                yield where, text


def table(path: Path) -> Iterator[tuple[str, str, str]]:
    """("file:number", key, value) of lines `key<space or tab>value`."""
    for where, line in lines(path):
        key, *value = line.split(maxsplit=1)
        yield where, key, value[0] if value else ""


def transcripts(path: Path) -> dict[str, str]:
    """`table` as a dict.

    Raises:
        DataError: a key stands twice.
    """
    texts: dict[str, str] = {}
    for where, key, text in table(path):
        if key in texts:
            raise DataError(f"{where}: '{key}' stands twice; keep one of the two lines")
        texts[key] = text
    return texts


def parse(line: str, where: str) -> dict:
    """A line of JSON that is an object.

    Raises:
        DataError: it is not.
    """
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON ({error.msg}); download the file again") from None
    if not isinstance(value, dict):
        raise DataError(f"{where}: not a JSON object; download the file again")
    return value


def probe(file: Path) -> tuple[float, int] | None:
    """(seconds, rate) from the header, None when it is not readable as audio."""
    try:
        info = soundfile.info(str(file))
    except (soundfile.SoundFileError, RuntimeError, TypeError):
        return probe_av(file) if file.suffix.lower() == ".m4a" else None
    return (info.frames / info.samplerate, info.samplerate) if info.frames > 0 else None


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


def tidy(text: str | None) -> str | None:
    """Single spaces, none between Chinese characters (some corpora write words apart); None when nothing is left."""
    text = " ".join((text or "").split())
    return re.sub(rf"(?<={CJK}) (?={CJK})", "", text) or None


# ---- writing records -------------------------------------------------------------------------------------------------


@dataclass
class Shelf:
    """Turns the items of one corpus into records and sees to it that ids are unique and paths stay inside.

    Args:
        root: folder of the corpus.
        out: folder the manifest will lie in.
        source, licence: fields of every record.
        allow_missing: a listed file that is absent becomes a dropped record instead of an error.
    """

    root: Path
    out: Path
    source: str
    licence: str
    allow_missing: bool = False
    seen: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.root, self.out = Path(self.root).resolve(), Path(self.out).resolve()

    def file(self, listed: str | Path, where: str) -> Path:
        """The file a list names, relative to the root.

        Raises:
            DataError: it leaves the root.
        """
        path = Path(os.path.normpath(self.root / listed))
        if not path.is_relative_to(self.root):
            raise DataError(f"{where}: '{listed}' leaves the corpus folder; not read")
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

        Raises:
            DataError: the id stands twice, or the audio is missing.
        """
        name = re.sub(r"[/\\\s]+", "-", key)
        if name in self.seen:
            raise DataError(f"{where}: id '{name}' stands twice; ids must be unique")
        self.seen.add(name)
        reason = None
        if not file.is_file():
            if not self.allow_missing:
                raise DataError(f"{where}: no audio file {file}; download it again, or pass --allow-missing to go without")
            reason = "missing_audio"
        else:
            sound = sound or probe(file)
            if sound is None:
                reason = "unreadable_audio"
            elif duration is not None and start + duration > sound[0] + SLACK:
                reason = "beyond_the_end"
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
        return record | {"dropped": {"step": "prepare", "reason": reason}} if reason else record


def save(records: Iterable[dict], out: Path, name: str) -> dict:
    """Stream records to `out/manifest.jsonl` and `out/dropped.jsonl`, both renamed into place at the end; returns the counts.

    Raises:
        DataError: no records, the disk is full, or something cannot be read.
    """
    out = Path(out)
    counts = {"kept": 0, "dropped": 0, "hours": 0.0}
    kept, dropped = (out / f"{part}.jsonl.tmp" for part in ("manifest", "dropped"))
    try:
        out.mkdir(parents=True, exist_ok=True)
        with kept.open("w", encoding="utf-8") as good, dropped.open("w", encoding="utf-8") as bad:
            for record in tqdm(records, desc=name, unit=" records"):
                (bad if "dropped" in record else good).write(json.dumps(record, ensure_ascii=False, sort_keys=True) + "\n")
                counts["dropped" if "dropped" in record else "kept"] += 1
                counts["hours"] += 0.0 if "dropped" in record else record["duration"] / 3600
        if not counts["kept"]:
            raise DataError(f"{name}: nothing usable found ({counts['dropped']} dropped); check --root and --language")
        dropped.replace(out / "dropped.jsonl")
        kept.replace(out / "manifest.jsonl")
    except OSError as error:
        raise DataError(f"{name} stopped at {error.filename or out} ({error.strerror}): free space or change permissions") from None
    finally:
        kept.unlink(missing_ok=True)
        dropped.unlink(missing_ok=True)
    return counts


# ---- streaming from the hub ------------------------------------------------------------------------------------------


def hub_rows(builder: str, *config: str, files: str = "", columns: dict | None = None, split: str = "train") -> Iterator[dict]:
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
        raise DataError(f"cannot stream {files or builder} ({reason}): accept the terms of the set, then `hf auth login`") from None


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
    return shelf.record(key, file, where=f"{shelf.source} '{key}'", **fields)


def write_bytes(file: Path, data: bytes) -> None:
    """Write under a temporary name, then rename; an equal-sized file is left alone."""
    if file.is_file() and file.stat().st_size == len(data):
        return
    temporary = file.with_name(file.name + ".tmp")
    temporary.write_bytes(data)
    temporary.replace(file)
