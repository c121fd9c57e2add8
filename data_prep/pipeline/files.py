"""Files that are complete or absent, and their hashes.

Everything a run writes goes to `out/tmp` under a name of its own and is renamed when it is whole, so a kill
at any moment leaves no half-written file under a final name.
"""

import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def temporary(out: Path, target: Path, suffix: str = "") -> Iterator[Path]:
    """A path in out/tmp that becomes `target` at the end of the block, or vanishes if the block fails."""
    place = out / "tmp" / f"{uuid.uuid4().hex}{suffix}"
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield place
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(place, target)
    finally:
        place.unlink(missing_ok=True)


def write_json(out: Path, target: Path, value: object) -> None:
    with temporary(out, target) as place:
        place.write_text(
            json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True) + "\n", encoding="utf-8"
        )


def read_json(path: Path) -> dict | None:
    """A JSON file, or None where it is absent or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def dump(record: dict) -> bytes:
    """One manifest line. Raises ValueError on NaN and on text that UTF-8 cannot hold."""
    return (json.dumps(record, ensure_ascii=False, sort_keys=True, allow_nan=False) + "\n").encode()


def file_name(name: str) -> str:
    """A safe file name of an id: other characters become `_` and a hash keeps it unique."""
    safe = re.sub(r"[^\w\-]", "_", name, flags=re.ASCII)[:120]
    return safe if safe == name else f"{safe}-{digest(name.encode())[:12]}"
