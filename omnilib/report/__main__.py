"""`python -m omnilib.report index`."""

import sys

from omnilib import report
from omnilib.paths import ROOT

if sys.argv[1:] != ["index"]:
    raise SystemExit(report.__doc__)
report.build_index(readme=ROOT / "README.md")
