"""Emilia and Emilia-YODAS: in-the-wild speech cut, transcribed and filtered by Emilia-Pipe, MP3 at 24 kHz.

Two published layouts are read. The hub's: WebDataset archives of one .mp3 and one .json a clip (fields from the dataset viewer;
YODAS writes `_id` for `id` and has another licence). The first release's: one folder a batch beside a .jsonl (Amphion's README,
which also has the hours, and lhotse).
A speaker label is one voice in one recording: the same person has other labels elsewhere. Batches and archives are numbered apart.
"""

import tarfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path, PurePosixPath

from data_prep.corpora import (
    BadRow,
    Shelf,
    decode,
    hub_base,
    hub_rows,
    keep,
    lines,
    need,
    parse,
    words,
    write_bytes,
)
from omnilib.errors import DataError

SOURCE = "emilia"
LICENCE = "CC BY-NC 4.0"
YODAS_LICENCE = "CC BY 4.0"
HOURS = {"en": 46_828, "zh": 49_922}
YODAS_HOURS = (
    92_250  # en + zh: the 189k of Emilia-Large (arXiv 2501.15907) without the above; nearly all English
)
CITATION = "He et al. 2025, Emilia: a large-scale, extensive, multilingual and diverse dataset for speech generation. arXiv 2501.15907"
LAYOUT = "<root>/{Emilia,Emilia-YODAS}/<EN>/<EN-B000000>.tar of <id>.mp3 and <id>.json, or <root>/<EN>/{EN_B00000.jsonl, EN_B00000/..}"
HUB = "amphion/Emilia-Dataset"
NEEDED = ("text", "speaker", "language")


def prepare(
    root: Path, out: Path, language: str | None = None, allow_missing: bool = False
) -> Iterator[dict]:
    """Records of either layout; clips of archives are unpacked to `out/emilia/<archive>/`.

    Raises:
        DataError: missing folder, other layout, damaged archive.
    """
    shelf = Shelf(root, out, SOURCE, LICENCE, allow_missing)
    archives = sorted(p for p in need(shelf.root, LAYOUT).glob("**/*.tar") if asked(p.parent.name, language))
    batches = sorted(p for p in shelf.root.glob("**/*_B*.jsonl") if asked(p.parent.name, language))
    if not archives and not batches:
        raise DataError(
            f"no archives and no batches{f' of {language}' if language else ''} below {root}: expected {LAYOUT}"
        )
    for archive in archives:
        yield from unpack(shelf, archive)
    for batch in batches:
        for where, line in lines(batch, shelf.skip):
            try:
                meta = words(parse(line, where), ("wav",), where)
                file = shelf.file(batch.parent / meta["wav"] if meta.get("wav") else "", where)
                yield shelf.record(name_of(meta, file.stem), file, where, **fields(meta, where, str(batch)))
            except BadRow as error:
                shelf.skip(where, error)
            yield from shelf.hand_over()
    yield from shelf.hand_over()


def asked(folder: str, language: str | None) -> bool:
    """Whether a folder (EN, ZH, ..) holds the language wanted."""
    return language is None or folder.lower() == language.lower()


def name_of(meta: dict, stem: str) -> str:
    return meta.get("id") or meta.get("_id") or stem


def fields(meta: dict, where: str, path: str) -> dict:
    """The record's fields from a clip's json."""
    if missing := [k for k in NEEDED if k not in meta]:
        raise BadRow("missing_field", f"{where}: no {', '.join(missing)}")
    yodas = meta.get("_id") or "emilia-yodas" in path.lower()
    licence = YODAS_LICENCE if yodas else LICENCE
    return {k: meta[k] for k in NEEDED} | {"licence": licence, "dnsmos": meta.get("dnsmos")}


def unpack(shelf: Shelf, archive: Path) -> Iterator[dict]:
    """Records of one archive in one pass; .mp3 and .json of a clip stand side by side, in either order.

    Raises:
        DataError: damaged archive.
    """
    half: dict[str, dict[str, bytes]] = {}
    parent = archive.relative_to(shelf.root).with_suffix("")
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                name = PurePosixPath(member.name)
                if not member.isfile() or name.suffix not in (".mp3", ".json"):
                    continue
                pair = half.setdefault(name.stem, {})
                pair[name.suffix] = tar.extractfile(member).read()
                if len(pair) == 2:
                    yield clip(
                        shelf, archive, shelf.out / SOURCE / parent / f"{name.stem}.mp3", half.pop(name.stem)
                    )
                    shelf.skipped.clear()
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{archive} is damaged ({error}): download it again") from None
    for stem, pair in half.items():
        if ".mp3" in pair:
            yield shelf.skip(
                f"{archive}:{stem}",
                BadRow("no_json", f"{archive}: '{stem}' has no .json; download the archive again"),
            )
        else:
            yield clip(shelf, archive, shelf.out / SOURCE / parent / f"{stem}.mp3", pair)
        shelf.skipped.clear()


def clip(shelf: Shelf, archive: Path, file: Path, pair: dict[str, bytes]) -> dict:
    """Write the .mp3 of a clip, when the archive has it, and return the record."""
    where = f"{archive}:{file.stem}"
    try:
        meta = parse(decode(pair[".json"], where), where)
        about = fields(meta, where, str(archive))
        if ".mp3" in pair:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(file, pair[".mp3"])
        return shelf.record(name_of(meta, file.stem), file, where, **about)
    except BadRow as error:
        return shelf.skip(where, error)


def stream(
    out: Path, language: str | None = None, limit: int | None = None, source: str = HUB
) -> Iterator[dict]:
    """Clips straight from the hub (terms to accept, token needed), saved below `out`; `language` such as en or zh (default en)."""
    shelf = Shelf(out, out, SOURCE, LICENCE)
    meta = dict.fromkeys(("id", "_id", *NEEDED), "string") | {"dnsmos": "float64"}
    columns = {"__key__": "string", "__url__": "string", "mp3": "binary", "json": meta}
    rows = hub_rows(
        "webdataset", files=f"{hub_base(source)}/*/{(language or 'en').upper()}/*.tar", columns=columns
    )
    for row in islice(rows, limit):
        meta, where = row["json"], row["__url__"]
        try:
            yield keep(shelf, name_of(meta, row["__key__"]), row["mp3"], ".mp3", **fields(meta, where, where))
        except BadRow as error:
            yield shelf.skip(f"{where}:{row['__key__']}", error)
