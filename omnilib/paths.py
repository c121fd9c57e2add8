"""Every folder the workspace uses, in one place.

The workspace is, in this order: $OMNILIB_HOME; the checkout that this package stands in. A copy installed without its checkout has
none: commands that need checkpoints, notebooks or reports say so, and nothing is ever written beside the installed package.

| folder | default | instead |
|---|---|---|
| checkpoints | <workspace>/checkpoints | OMNILIB_CHECKPOINTS |
| reports | <workspace>/reports | OMNILIB_REPORTS |
| data | <workspace>/data | OMNILIB_DATA |
| runs | <workspace>/runs | OMNILIB_RUNS (a checkout that cannot be written needs it) |
"""

import os
from pathlib import Path

from omnilib.errors import UserError

PACKAGE = Path(__file__).resolve().parent
CHECKOUT = (PACKAGE.parent / "pyproject.toml").is_file() and (PACKAGE.parent / "notebooks").is_dir()
HOME = os.environ.get("OMNILIB_HOME")


def workspace() -> Path:
    """The folder that holds checkpoints, notebooks and reports; a name in the current folder when there is none."""
    if HOME:
        return Path(HOME).expanduser().resolve()
    return PACKAGE.parent if CHECKOUT else Path.cwd() / "omnilib-workspace"


def folder(variable: str, name: str) -> Path:
    """A folder of the workspace, or where an environment variable puts it."""
    return (
        Path(os.environ.get(variable) or ROOT / name).expanduser().absolute()
    )  # notebooks run in another folder


ROOT = workspace()
CONFIGS = PACKAGE / "configs"
CHECKPOINTS = folder("OMNILIB_CHECKPOINTS", "checkpoints")
REPORTS = folder("OMNILIB_REPORTS", "reports")
NOTEBOOKS = ROOT / "notebooks"
DATA = folder("OMNILIB_DATA", "data")  # rebuilt by `make retrain`, never committed
RUNS = folder("OMNILIB_RUNS", "runs")  # what a run leaves, never committed


def need_workspace() -> Path:
    """The workspace, or one line on how to get one.

    Raises:
        UserError: installed without a checkout and no OMNILIB_HOME, or OMNILIB_HOME is no checkout.
    """
    if (ROOT / "notebooks").is_dir():
        return ROOT
    if HOME:
        raise UserError(f"OMNILIB_HOME={HOME} holds no notebooks/: set it to a clone of the repository")
    raise UserError("this needs the repository: clone it and run there, or set OMNILIB_HOME=<clone>")
