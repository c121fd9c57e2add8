"""A report folder is replaced as a whole: the earlier one stays until the new one is finished.

A run writes into `.<name>.new-<process>` beside its target. Finished, it takes the target's place; failed, it goes to
`runs/reports-failed/`. A process killed at any moment leaves the earlier report, or (between two renames) its copy
`.<name>.old-<process>`, which the next command puts back.
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omnilib.errors import UserError
from omnilib.paths import ROOT, RUNS
from omnilib.provenance import scrub

LEFT = re.compile(r"\.(?P<name>.+)\.(?P<kind>new|old)-(?P<process>\d+)")


@contextmanager
def fresh_folder(target: Path) -> Iterator[Path]:
    """A new empty folder beside `target`, removed at the end unless `replace_folder` or `move_folder` took it.

    Raises:
        UserError: the folder cannot be written.
    """
    restore(target.parent)
    folder = target.with_name(f".{target.name}.new-{os.getpid()}")
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    except OSError as error:
        raise UserError(
            f"cannot write in {scrub(str(target.parent))}: {error.strerror}; {WHERE_ELSE}"
        ) from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


WHERE_ELSE = "make it writable, or name another place with OMNILIB_HOME or OMNILIB_REPORTS"


def replace_folder(new: Path, target: Path) -> None:
    """Put `new` in the place of `target`; an error on the way puts the old one back."""
    old = target.with_name(f".{target.name}.old-{os.getpid()}")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    try:
        new.rename(target)
    except BaseException:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def move_folder(new: Path, target: Path) -> None:
    """Put `new` in the place of `target`, on another disk too."""
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(new, target)


def restore(parent: Path) -> None:
    """Put back or clear what killed processes left in a folder of reports."""
    for path in sorted(parent.glob(".*")):
        left = LEFT.fullmatch(path.name)
        if left is None or not path.is_dir() or is_alive(int(left["process"])):
            continue
        if left["kind"] == "old" and not (parent / left["name"]).exists():
            path.rename(parent / left["name"])
        else:
            shutil.rmtree(path, ignore_errors=True)


def is_alive(process: int) -> bool:
    """Whether another process of this number runs here."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it runs and belongs to someone else
        return True
    return True


def failed_folder(reports: Path) -> Path:
    """Where the pages of failed runs are kept: never among the good ones."""
    return (
        RUNS / "reports-failed"
        if reports.resolve().is_relative_to(ROOT)
        else reports.with_name(f"{reports.name}-failed")
    )


def check_writable(reports: Path) -> None:
    """Find out before the work that a folder cannot be written.

    Raises:
        UserError: it cannot.
    """
    folder = reports.resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write in {scrub(str(reports))}: {error.strerror}; {WHERE_ELSE}") from None
