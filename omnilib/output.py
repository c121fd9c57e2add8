"""Where a wave goes: a file that is replaced only when the new one is complete, standard output, a pipe or a device.

A file is written under a temporary name, `.omni-XXXXXXXX.part`, in the folder it will stand in, and renamed at the end: whatever
stood there before stays until then, after an error, Ctrl-C or a kill too. What a killed process leaves behind is removed by the
next one that writes into that folder. Standard output, pipes and devices get a WAV stream, whose header leaves the length open
when it is not known yet.

    with WaveOutput(Path("hello.wav"), 24_000) as output:
        output.write(wave)                                  # (n,) samples in [-1, 1], as often as there is sound
"""

import os
import stat
import struct
import sys
import tempfile
from pathlib import Path
from typing import BinaryIO

from omnilib.errors import UserError

try:
    import fcntl
except ImportError:  # no such locks on Windows: leftovers stay there
    fcntl = None

STANDARD_OUTPUT = ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")
OPEN_LENGTH = 0xFFFFFFFF  # of a WAV stream; players read on to the end


def is_stream(path: Path) -> bool:
    """Whether it is standard output, a pipe or a device, which cannot be replaced by renaming."""
    if str(path) in STANDARD_OUTPUT:
        return True
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISSOCK(mode)


def shown(path: Path) -> str:
    """A path with characters that a terminal may not print escaped."""
    if str(path) in STANDARD_OUTPUT:
        return "standard output"
    name = "".join(
        c if c.isprintable() or "\udc80" <= c <= "\udcff" else repr(c)[1:-1] for c in str(path)
    )  # a line end, say
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def check_output(path: Path, reference: str | Path | None = None) -> None:
    """Find out now, not after the work, that a wave cannot be written.

    Args:
        reference: the recording that is read, which must not be written over.

    Raises:
        UserError: no such folder, not writable, not a .wav name, or the reference itself.
    """
    name = shown(path)
    if str(path) in STANDARD_OUTPUT:
        if sys.stdout is None:
            raise UserError("standard output is closed: give a file with -o")
        if sys.stdout.isatty():
            raise UserError(
                "a wave is no text for a terminal: give a file with -o, or a program behind a pipe"
            )
        return
    try:
        if path.is_dir():
            raise UserError(f"cannot write {name}: it is a folder; give a name that ends in .wav")
        if is_stream(path):
            return
        target = Path(os.path.realpath(path))
        there = target.exists()
    except OSError as error:  # the name is too long, say
        raise UserError(f"cannot write {name}: {error.strerror}; give another name with -o") from None
    if path.suffix.lower() != ".wav":
        raise UserError(f"cannot write {name}: give a name that ends in .wav")
    if len(os.fsencode(path.name)) > 255:
        raise UserError(f"cannot write {name[:60]}...: the name is too long; give a shorter one with -o")
    if not target.parent.is_dir():
        raise UserError(
            f"cannot write {name}: the folder {shown(target.parent)} does not exist; create it first"
        )
    if not os.access(target.parent, os.W_OK | os.X_OK) or (there and not os.access(target, os.W_OK)):
        raise UserError(f"cannot write {name}: no permission; choose another folder with -o")
    if reference is not None and there and Path(reference).exists() and target.samefile(reference):
        raise UserError(
            f"-o and --voice are the same file, {name}: give another name with -o, the recording would be lost"
        )


def wav_header(rate: int, samples: int | None = None) -> bytes:
    """Header of a mono 16-bit WAV; None leaves the length open."""
    size = OPEN_LENGTH if samples is None else 2 * samples
    whole = OPEN_LENGTH if samples is None else 36 + size
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI", b"RIFF", whole, b"WAVE", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16, b"data", size
    )


def pcm(wave) -> bytes:
    """Samples in [-1, 1], a tensor or array (n,), as 16-bit little-endian."""
    import numpy as np

    samples = np.asarray(wave.cpu() if hasattr(wave, "cpu") else wave, dtype=np.float32)
    return np.round(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()


def remove_leftovers(folder: Path) -> None:
    """Delete temporary files that no running process has locked."""
    if fcntl is None:
        return
    for path in folder.glob(".omni-*.part"):
        try:
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
        except OSError:
            pass  # in use, or somebody else's


class WaveOutput:
    """A mono 16-bit wave on its way to a file or stream; see the head of this file.

    Args:
        rate: samples a second.
        expected: samples that will be written, where that is known: the header of a stream names them.

    Raises (from every method):
        OSError: the disk is full, the reader of a pipe is gone, ...
    """

    def __init__(self, path: Path, rate: int, expected: int | None = None):
        self.path, self.rate, self.samples, self.expected = path, rate, 0, expected
        self.stream = is_stream(path)
        self.file: BinaryIO | None = None
        self.temporary: Path | None = None
        self.start: int | None = None

    def __enter__(self) -> "WaveOutput":
        if str(self.path) in STANDARD_OUTPUT:
            sys.stdout.flush()
            self.file = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
        elif self.stream:
            self.file = self.path.open("wb", buffering=0)
        else:
            self.open_temporary()
            self.file.write(wav_header(self.rate, 0))
        return self

    def open_temporary(self) -> None:
        self.target = Path(os.path.realpath(self.path))  # a link stays a link
        remove_leftovers(self.target.parent)
        handle, name = tempfile.mkstemp(prefix=".omni-", suffix=".part", dir=self.target.parent)
        self.temporary, self.file = Path(name), os.fdopen(handle, "wb")
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_SH)
        try:
            mode = stat.S_IMODE(self.target.stat().st_mode)
        except OSError:
            mask = os.umask(0)
            os.umask(mask)
            mode = 0o666 & ~mask
        self.temporary.chmod(mode)

    def write(self, wave) -> None:
        """Append samples (n,)."""
        if self.stream and not self.samples:
            self.start = self.header_place()
            self.send(
                wav_header(self.rate, self.expected)
            )  # with the first sound: a failure before it leaves nothing
        data = pcm(wave)
        self.samples += len(data) // 2
        self.send(data)

    def header_place(self) -> int | None:
        """Where the header of a stream can be written again at the end: `-o - > hello.wav` is a file after all."""
        number = self.file.fileno()
        appends = fcntl is None or fcntl.fcntl(number, fcntl.F_GETFL) & os.O_APPEND  # `>>`
        return (
            None
            if appends or not stat.S_ISREG(os.fstat(number).st_mode)
            else os.lseek(number, 0, os.SEEK_CUR)
        )

    def send(self, data: bytes) -> None:
        """All of it: an unbuffered pipe may take less at a time."""
        while data:
            data = data[self.file.write(data) :]

    def __exit__(self, kind, *_) -> None:
        if self.temporary is None:
            with self.file:
                if kind is None and self.samples not in (0, self.expected) and self.start is not None:
                    os.pwrite(self.file.fileno(), wav_header(self.rate, self.samples), self.start)
            return
        try:
            if kind is None:
                self.file.seek(0)
                self.file.write(wav_header(self.rate, self.samples))
                self.file.flush()
                os.fsync(self.file.fileno())
                self.temporary.replace(self.target)
                self.temporary = None
        finally:
            try:
                self.file.close()
            finally:
                if self.temporary is not None:
                    self.temporary.unlink(missing_ok=True)
