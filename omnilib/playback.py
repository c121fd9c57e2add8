"""Speech to the loudspeaker while it is made, through a player that is on this machine.

    with Player(24000) as player:
        player.write(wave)          # returns at once; the player takes it at its own pace
        player.stop()               # silence now

Shapes: n samples, float in [-1, 1].
"""

import contextlib
import queue
import shutil
import subprocess
import threading
import time

from omnilib.errors import MissingTool
from omnilib.output import pcm

PLAYERS = {  # name -> arguments for raw 16-bit mono on standard input
    "aplay": "-q -t raw -f S16_LE -c 1 -r {rate} -",
    "pacat": "--raw --format=s16le --channels=1 --rate={rate}",
    "play": "-q -t raw -e signed -b 16 -c 1 -r {rate} -",
    "ffplay": "-loglevel quiet -nodisp -autoexit -f s16le -ar {rate} -",
}


def find_player(rate: int) -> list[str]:
    """The command of the first player that is installed.

    Raises:
        MissingTool: there is none.
    """
    for name, arguments in PLAYERS.items():
        if program := shutil.which(name):
            return [program, *arguments.format(rate=rate).split()]
    raise MissingTool(
        f"no program plays sound here: install one of {', '.join(PLAYERS)}, or leave out --play"
    )


class Player:
    """One stretch of sound. Ctrl-C reaches whoever plays, not the player.

    Raises:
        MissingTool: no player is installed.
    """

    def __init__(self, rate: int):
        self.process = subprocess.Popen(
            find_player(rate),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.rate, self.given, self.begun, self.stopped = rate, 0, 0.0, False
        self.waiting: queue.SimpleQueue = queue.SimpleQueue()
        self.thread = threading.Thread(target=self.feed, name="player", daemon=True)
        self.thread.start()

    def feed(self) -> None:
        with contextlib.suppress(OSError):  # stopped, or broken: what is left is not heard
            while data := self.waiting.get():
                self.process.stdin.write(data)
                self.process.stdin.flush()
        with contextlib.suppress(OSError):
            self.process.stdin.close()

    def write(self, wave) -> None:
        """Samples (n,) to be heard after those before."""
        if len(wave):
            self.begun = self.begun or time.monotonic()
            self.given += len(wave)
            self.waiting.put(pcm(wave))

    @property
    def heard(self) -> float:
        """Seconds of sound that have been heard, at most: the player began with the first samples and does not wait."""
        return min(self.given / self.rate, time.monotonic() - self.begun) if self.given else 0.0

    def stop(self) -> None:
        """Silence, now."""
        self.stopped = True
        self.process.kill()
        self.waiting.put(b"")

    def __enter__(self) -> "Player":
        return self

    def __exit__(self, kind, *_) -> None:
        """Wait until all was heard; after a failure, stop."""
        if kind is not None:
            self.stop()
        self.waiting.put(b"")
        try:
            while (
                self.process.poll() is None
            ):  # another thread may have got the signal of Ctrl-C: this one looks
                time.sleep(0.02)
        except BaseException:
            self.stop()
            raise
        finally:
            self.thread.join(1)
