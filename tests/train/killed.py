"""Run `omnilib.train.speechlm`, and die by SIGKILL right after step N is logged: `python killed.py N --config ... --out ...`."""

import os
import signal
import sys

from omnilib.train import common, speechlm


class MortalLog(common.JsonlLog):
    def write(self, step: int, **values: float) -> None:
        super().write(step, **values)
        if step == last:
            os.kill(os.getpid(), signal.SIGKILL)


last = int(sys.argv.pop(1))
common.JsonlLog = MortalLog
speechlm.main(sys.argv[1:])
