"""The input manifest, checked line by line: a record, or what is wrong with it."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep.corpora import MAX_BAD, BadRows
from data_prep.pipeline.audio import INPUT
from data_prep.pipeline.files import dump
from omnilib.errors import DataError

DEFAULTS = {"start": 0.0} | dict.fromkeys(("duration", "rate", "text", "language", "speaker", "split"))


FIELD_TYPES = {
    "text": str,
    "language": str,
    "speaker": str,
    "split": str,
    "start": float,
    "duration": float,
    "rate": float,
}


@dataclass(frozen=True)
class BadRow:
    """A line of a manifest that is no usable record: where it stands, a short reason and a line for a
    person."""

    number: int
    reason: str
    detail: str
    id: str = ""  # what the line says, if it says one


def wrong(record: dict) -> tuple[str, str] | None:
    """(reason, what is wrong) of a record whose fields no step could work with."""
    if missing := [
        f for f in ("id", "path", "source", "licence") if not isinstance(record.get(f), str) or not record[f]
    ]:
        return "missing_field", f"missing {', '.join(missing)}"
    for name, kind in FIELD_TYPES.items():
        value = record.get(name)
        fits = (
            isinstance(value, str)
            if kind is str
            else isinstance(value, int | float) and not isinstance(value, bool)
        )
        if value is not None and not fits:
            return "wrong_type", f"{name} is {ascii(value):.40}, not {'text' if kind is str else 'a number'}"
    start, duration = record.get("start") or 0.0, record.get("duration")
    if (
        not math.isfinite(start)
        or start < 0
        or (duration is not None and not (math.isfinite(duration) and duration > 0))
    ):
        return "bad_offset", f"{duration} s from second {start}"
    return None


def rows(manifest: Path) -> Iterator[tuple[int, dict | BadRow]]:
    """(byte offset, record or what is wrong with it) of every line of a manifest that is not empty; paths
    as they stand there.

    Raises:
        DataError: the file cannot be read.
    """
    root, seen, safe, offset = manifest.parent.resolve(), set(), set(), 0
    try:
        file = manifest.open("rb")
    except OSError as error:
        raise DataError(f"cannot read {manifest} ({error.strerror}): check the path and its rights") from None
    with file:
        for number, line in enumerate(file, 1):
            place, offset = offset, offset + len(line)
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                dump(record)
            except UnicodeError:
                yield place, BadRow(number, "not_utf8", "not UTF-8 text; save the manifest as UTF-8")
                continue
            except (ValueError, RecursionError) as error:
                not_a_number = "not JSON compliant" in str(
                    error
                )  # NaN and infinity, which Python reads and nobody else
                yield (
                    place,
                    BadRow(
                        number,
                        "not_a_number" if not_a_number else "not_json",
                        f"not JSON ({error}); rebuild the manifest",
                    ),
                )
                continue
            found = wrong(record) if isinstance(record, dict) else ("not_json", "not a JSON object")
            if found is None and record["id"] in seen:
                found = "repeated_id", f"id '{record['id']}' stands twice; the first is kept"
            if found is None and record["path"] not in safe:
                if "\0" in record["path"] or not (root / record["path"]).resolve().is_relative_to(root):
                    found = (
                        "outside_the_folder",
                        f"path {ascii(record['path'])} leaves the manifest's folder; not read",
                    )
                else:
                    safe.add(record["path"])
            if found:
                name = record.get("id") if isinstance(record, dict) else None
                yield place, BadRow(number, *found, name if isinstance(name, str) else "")
                continue
            seen.add(record["id"])
            record = {k: v for k, v in record.items() if k != "start" or v is not None}
            yield place, record


def check_input(manifest: Path, max_bad: float = MAX_BAD, drop: bool = False) -> Iterator[dict]:
    """Records of the input manifest, checked, defaults filled in, paths below `input/`.

    Args:
        max_bad: share of bad lines above which the manifest is refused.
        drop: give bad lines too, as dropped records.

    Raises:
        DataError: unreadable, no records, or too many bad lines.
    """
    bad = BadRows(str(manifest), max_bad)
    for _, row in rows(manifest):
        bad.rows += 1
        if isinstance(row, BadRow):
            bad.add(row.reason, f"line {row.number}: {row.detail}")
            if drop:
                name = f"{manifest.name}:{row.number}"
                empty = DEFAULTS | {"id": name, "path": name, "source": "unknown", "licence": "unknown"}
                yield empty | {"dropped": {"step": "input", "reason": row.reason, "detail": row.detail}}
        else:
            yield DEFAULTS | row | {"path": INPUT + row["path"]}
    if not bad.rows:
        raise DataError(f"{manifest} holds no records: nothing to curate")
    bad.check()
    if bad.reasons.total() == bad.rows:
        raise DataError(f"{manifest} holds no usable record ({bad}); first: {bad.first}")
