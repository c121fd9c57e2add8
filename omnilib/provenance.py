"""What produced a number: commit, parameters, versions, device model, fingerprints of data and checkpoints.

No host name, user, address or absolute path ever enters a report (`scrub`).
"""

import json
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from omnilib.data import sha256
from omnilib.environment import attention_kernel, device_model, versions
from omnilib.paths import CHECKPOINTS, DATA, ROOT


def git_state() -> dict:
    """Commit, and whether tracked or new files differ from it (reports aside: making them is what we are doing)."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--", ".", ":!reports", ":!README.md"))}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": "unknown", "dirty": True}


def fingerprints(scale: str) -> dict:
    """sha256 of every checkpoint of a scale and of every manifest that a result can depend on."""
    checkpoints = {p.parent.name: sha256(p) for p in sorted((CHECKPOINTS / scale).glob("*/model.safetensors"))}
    known = {"frozen": ROOT / "data_prep" / "frozen" / "manifest.jsonl", "corpus": DATA / scale / "manifest.jsonl"}
    manifests = {name: sha256(path) for name, path in known.items() if path.is_file()}
    return {"checkpoint_sha256": checkpoints, "manifest_sha256": manifests}


def stamp(scale: str, parameters: dict, settings: dict | None = None, files: dict[str, Path] | None = None, seconds: float = 0.0) -> dict:
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


def scrub(text: str) -> str:
    """Replace the folders of this machine by what they mean."""
    for folder, name in ((ROOT, "."), (Path(sys.prefix), "<python>"), (Path.home(), "~"), (Path(tempfile.gettempdir()), "<tmp>")):
        if len(str(folder)) > 1:  # a home of "/" would eat every slash
            text = text.replace(f"{folder}/", f"{name}/").replace(str(folder), name)
    return text


def write_json(path: Path, value: object) -> None:
    """Write JSON under a temporary name, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)
