"""What produced a number: commit, parameters, versions, device model, fingerprints of data and checkpoints.

A report keeps two records, so that running it again elsewhere shows in `git diff` what matters alone:
    provenance.json   what decides the numbers: commit, parameters, settings, versions, fingerprints
    timings.json      when, where and how fast: date, device, wall seconds, and the figures that measure speed
No host name, user, address or absolute path ever enters a report (`scrub`).
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from omnilib.data import sha256
from omnilib.environment import attention_kernel, device_model, versions
from omnilib.errors import DataError
from omnilib.paths import CHECKPOINTS, DATA, ROOT

WHEN_AND_WHERE = (
    "date",
    "device",
    "wall_seconds",
    "peak_memory_gb",
)  # of timings.json; everything else stands in provenance.json


def git_state() -> dict:
    """Commit, and whether tracked or new files differ from it (reports aside: making them is what we are doing)."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return {
            "commit": git("rev-parse", "HEAD"),
            "dirty": bool(git("status", "--porcelain", "--", ".", ":!reports", ":!README.md")),
        }
    except (OSError, subprocess.CalledProcessError):
        return {"commit": "unknown", "dirty": True}


def fingerprints(scale: str) -> dict:
    """sha256 of every checkpoint of a scale and of every manifest that a result can depend on."""
    checkpoints = {
        p.parent.name: sha256(p) for p in sorted((CHECKPOINTS / scale).glob("*/model.safetensors"))
    }
    known = {
        "frozen": ROOT / "data_prep" / "frozen" / "manifest.jsonl",
        "corpus": DATA / scale / "manifest.jsonl",
    }
    manifests = {name: sha256(path) for name, path in known.items() if path.is_file()}
    return {"checkpoint_sha256": checkpoints, "manifest_sha256": manifests}


def stamp(
    scale: str,
    parameters: dict,
    settings: dict | None = None,
    files: dict[str, Path] | None = None,
    seconds: float = 0.0,
) -> dict:
    """The provenance record of one result.

    Args:
        parameters: notebook parameters or command-line values, seeds among them.
        settings: decoding, retry and judge settings the result depends on.
        files: {"notebook": path, "config": path}: their sha256 is recorded.
    """
    return {
        **git_state(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "scale": scale,
        "parameters": {k: scrub(v) if isinstance(v, str) else v for k, v in parameters.items()},
        "settings": settings or {},
        "versions": versions(),
        "device": device_model(),
        "attention": attention_kernel(),
        **{f"{name}_sha256": sha256(path) for name, path in (files or {}).items()},
        **fingerprints(scale),
        "wall_seconds": round(seconds, 1),
    }


def peak_memory_gb() -> float:
    """The most memory that this process has held, in GB."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 2)


def scrub(text: str) -> str:
    """Replace the folders of this machine by what they mean."""
    for folder, name in (
        (ROOT, "."),
        (Path(sys.prefix), "<python>"),
        (Path.home(), "~"),
        (Path(tempfile.gettempdir()), "<tmp>"),
    ):
        if len(str(folder)) > 1:  # a home of "/" would eat every slash
            text = re.sub(
                re.escape(str(folder)) + r"(?![\w.-])", lambda _, name=name: name, text
            )  # /tmp, not /tmp.old
    return text


def write_stamp(folder: Path, record: dict, speed: dict | None = None) -> None:
    """Write a record as provenance.json and timings.json.

    Args:
        speed: what else differs from machine to machine: {"metrics": {name: entry}, "paper": [row], ...}.
    """
    timings = {key: record[key] for key in WHEN_AND_WHERE if key in record}
    write_json(folder / "timings.json", timings | (speed or {}))
    write_json(
        folder / "provenance.json", {key: value for key, value in record.items() if key not in WHEN_AND_WHERE}
    )


def read_stamp(folder: Path) -> dict:
    """provenance.json of a report; {} when there is none.

    Raises:
        DataError: damaged file.
    """
    timings = read_json(folder / "timings.json")
    return {key: timings[key] for key in WHEN_AND_WHERE if key in timings} | read_json(
        folder / "provenance.json"
    )


def read_json(path: Path) -> dict:
    """A JSON object, {} when the file is not there.

    Raises:
        DataError: damaged file.
    """
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:  # UnicodeDecodeError is a ValueError
        raise DataError(
            f"cannot read {scrub(str(path))}: {error}; restore it with `git checkout` or make it again"
        ) from None
    if not isinstance(found, dict):
        raise DataError(
            f"{scrub(str(path))} holds no JSON object; restore it with `git checkout` or make it again"
        )
    return found


def commit_of(record: dict) -> str:
    """A commit as it is shown: eight digits, and whether the files differed from it."""
    return record.get("commit", "unknown")[:8] + (" + local changes" if record.get("dirty") else "")


def write_text(path: Path, text: str) -> None:
    """Write under a temporary name in the same folder, then rename: the old file stays until the new one is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write JSON under a temporary name, then rename."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")
