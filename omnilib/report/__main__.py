"""`python -m omnilib.report index`."""

import sys

from omnilib import report
from omnilib.errors import UserError
from omnilib.paths import ROOT

if sys.argv[1:] != ["index"]:
    raise SystemExit(report.__doc__)
try:
    report.build_index(readme=ROOT / "README.md")
except UserError as error:
    print(f"report: {error}", file=sys.stderr)
    raise SystemExit(2) from None
