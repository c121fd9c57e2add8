"""Every folder the workspace uses, in one place."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = Path(__file__).resolve().parent / "configs"
CHECKPOINTS = Path(os.environ.get("OMNILIB_CHECKPOINTS", ROOT / "checkpoints"))
REPORTS = Path(os.environ.get("OMNILIB_REPORTS", ROOT / "reports"))
NOTEBOOKS = ROOT / "notebooks"
DATA = Path(os.environ.get("OMNILIB_DATA", ROOT / "data"))  # rebuilt by `make retrain`, never committed
