"""Run `omnilib.train.brain`, and die by SIGKILL right after step N is logged.

python killed_brain.py N --config ... --out ...
"""

import os
import signal
import sys

from omnilib.train import brain, common


class MortalLog(common.JsonlLog):
    def write(self, step: int, **values: float) -> None:
        super().write(step, **values)
        if step == last:
            os.kill(os.getpid(), signal.SIGKILL)


last = int(sys.argv.pop(1))
common.JsonlLog = MortalLog
brain.main(sys.argv[1:])
