"""A user's file is never lost: what stood there stays until the new wave is complete."""

import io
import os
import signal
import stat
import subprocess
import sys
import threading
import time
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile

from omnilib.errors import UserError
from omnilib.output import WaveOutput, check_output, shown, wav_header
from omnilib.paths import ROOT

RATE = 24_000
SOUND = np.sin(np.arange(RATE) / 9).astype(np.float32) * 0.5


@pytest.fixture
def old(tmp_path):
    path = tmp_path / "old.wav"
    path.write_bytes(b"precious")
    return path


def names(folder) -> list[str]:
    return [path.name for path in folder.iterdir()]


def leftovers(folder) -> list:
    return list(folder.glob(".omni-*.part"))


def test_a_written_wave_reads_back_as_it_was(tmp_path):
    with WaveOutput(tmp_path / "a.wav", RATE) as output:
        for piece in np.array_split(SOUND, 7):
            output.write(piece)
    samples, rate = soundfile.read(tmp_path / "a.wav", dtype="float32")
    assert rate == RATE and np.abs(samples - SOUND).max() < 1 / 32000 and not leftovers(tmp_path)


def test_the_old_file_stays_until_the_new_one_is_complete(old):
    with WaveOutput(old, RATE) as output:
        output.write(SOUND)
        assert old.read_bytes() == b"precious"
    assert soundfile.info(old).frames == RATE


@pytest.mark.parametrize("problem", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_or_a_stop_leaves_the_old_file_and_nothing_else(old, problem):
    with pytest.raises(problem):
        with WaveOutput(old, RATE) as output:
            output.write(SOUND)
            raise problem
    assert old.read_bytes() == b"precious" and names(old.parent) == ["old.wav"]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(old, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        with WaveOutput(old, RATE) as output:
            output.write(SOUND)
    assert old.read_bytes() == b"precious" and names(old.parent) == ["old.wav"]


WRITER = """
import sys, time
from pathlib import Path
from omnilib import cli
from omnilib.output import WaveOutput
def slow(args):
    with WaveOutput(args.out, 24000) as output:
        output.write([0.5] * 24000)
        print("writing", flush=True)
        time.sleep(60)
    return 0
cli.COMMANDS["speak"] = slow
raise SystemExit(cli.main(["speak", "text", "-o", sys.argv[1]]))
"""


def stopped_writer(path, number) -> int:
    """Exit code of a process that is stopped by a signal while it writes."""

    def defaults() -> None:  # a test run in the background ignores these, and its children would, too
        for name in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            signal.signal(name, signal.SIG_DFL)

    command = [sys.executable, "-c", WRITER, str(path)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=defaults
    )
    assert process.stdout.readline() == b"writing\n"
    process.send_signal(number)
    return process.wait(30)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_ctrl_c_and_a_polite_kill_leave_the_old_file_and_nothing_else(old, number, code):
    assert stopped_writer(old, number) == code
    assert old.read_bytes() == b"precious" and names(old.parent) == ["old.wav"]


def test_kill_9_leaves_the_old_file_and_the_next_writer_clears_up(old):
    assert stopped_writer(old, signal.SIGKILL) == -9
    assert old.read_bytes() == b"precious" and len(leftovers(old.parent)) == 1
    with WaveOutput(old.with_name("other.wav"), RATE) as output:
        output.write(SOUND)
    assert not leftovers(old.parent)


def test_a_file_that_somebody_is_writing_is_not_cleared_away(old):
    with WaveOutput(old, RATE) as slow:
        with WaveOutput(old.with_name("other.wav"), RATE) as quick:
            quick.write(SOUND)
        slow.write(SOUND)
    assert soundfile.info(old).frames == RATE


def test_a_link_stays_a_link_and_rights_stay_as_they_were(old):
    link = old.with_name("link.wav")
    link.symlink_to(old)
    old.chmod(0o640)
    with WaveOutput(link, RATE) as output:
        output.write(SOUND)
    assert link.is_symlink() and soundfile.info(old).frames == RATE
    assert stat.S_IMODE(old.stat().st_mode) == 0o640


def test_a_new_file_gets_the_usual_rights(tmp_path):
    before = os.umask(0o027)
    try:
        with WaveOutput(tmp_path / "a.wav", RATE) as output:
            output.write(SOUND)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.wav").stat().st_mode) == 0o640


@pytest.mark.parametrize(
    "how", ["the same name", "another spelling", "a symbolic link", "a hard link", "a link to the output"]
)
def test_the_reference_is_never_written_over(old, monkeypatch, how):
    voice, out = old, old
    monkeypatch.chdir(old.parent)
    if how == "another spelling":
        voice = Path("./../" + old.parent.name + "/old.wav")
    elif how == "a symbolic link":
        out = old.with_name("new.wav")
        out.symlink_to(old)
    elif how == "a hard link":
        out = old.with_name("new.wav")
        out.hardlink_to(old)
    elif how == "a link to the output":
        voice = old.with_name("voice.wav")
        voice.symlink_to(old)
    with pytest.raises(UserError, match="the same file"):
        check_output(out, str(voice))


@pytest.mark.parametrize(
    ("name", "told"),
    [("a.mp3", "ends in .wav"), ("", "is a folder"), ("no/such/a.wav", "create it first"), ("x" * 300 + ".wav", "name"),
     ("old.wav/a.wav", "does not exist")],
)  # fmt: skip
def test_a_place_that_cannot_be_written_is_told_before_the_work(old, name, told):
    with pytest.raises(UserError, match=told) as error:
        check_output(old.parent / name)
    assert "\n" not in str(error.value)


def test_a_committed_voice_name_is_no_file(old):
    check_output(old, "af_heart")


def test_a_stream_says_that_its_length_is_open_and_players_read_it():
    data = wav_header(RATE) + (SOUND * 32767).astype("<i2").tobytes()
    samples, rate = soundfile.read(io.BytesIO(data))
    assert rate == RATE and len(samples) == RATE


def test_a_pipe_gets_the_wave_as_it_is_born(tmp_path):
    pipe, heard = tmp_path / "pipe", []
    os.mkfifo(pipe)
    check_output(pipe)

    def listen() -> None:
        with pipe.open("rb", buffering=0) as file:
            heard.append(file.read(44 + 200))
            heard.append(time.perf_counter())
            while file.read(65536):
                pass

    thread = threading.Thread(target=listen)
    thread.start()
    with WaveOutput(pipe, RATE) as output:
        output.write(SOUND[:100])
        time.sleep(0.3)
        second = time.perf_counter()
        output.write(SOUND)
    thread.join(10)
    assert heard[0][:4] == b"RIFF" and heard[1] < second
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_device_is_written_to_not_replaced():
    check_output(Path("/dev/null"))
    with WaveOutput(Path("/dev/null"), RATE) as output:
        output.write(SOUND)
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    with pytest.raises(OSError, match="No space left"):
        with WaveOutput(Path("/dev/full"), RATE) as output:
            output.write(SOUND)


def test_sound_beyond_full_scale_is_clipped_not_wrapped(tmp_path):
    with WaveOutput(tmp_path / "a.wav", RATE) as output:
        output.write(np.array([1.5, -1.5, 0.0]))
    assert soundfile.read(tmp_path / "a.wav", dtype="int16")[0].tolist() == [32767, -32767, 0]


SPEAKER = """
import sys
from pathlib import Path
from omnilib.output import WaveOutput
with WaveOutput(Path("-"), 24000, expected=int(sys.argv[1]) or None) as output:
    for _ in range(2):
        output.write([0.5] * 500)
"""


@pytest.mark.parametrize(
    ("expected", "mode"), [(0, "wb"), (1000, "wb"), (1000, "ab")], ids=["stream", "whole", "appended"]
)
def test_standard_output_that_is_a_file_gets_a_header_with_its_length(tmp_path, expected, mode):
    with (tmp_path / "a.wav").open(mode) as file:
        subprocess.run([sys.executable, "-c", SPEAKER, str(expected)], cwd=ROOT, stdout=file, check=True)
    with wave.open(str(tmp_path / "a.wav")) as heard:  # reads the header strictly
        assert (heard.getnframes(), heard.getframerate()) == (1000, RATE)
    assert (tmp_path / "a.wav").stat().st_size == 44 + 2000


def test_a_stream_behind_other_bytes_of_a_file_leaves_them_alone(tmp_path):
    path = tmp_path / "a"
    with path.open("wb") as file:
        file.write(b"before")
        file.flush()
        subprocess.run([sys.executable, "-c", SPEAKER, "0"], cwd=ROOT, stdout=file, check=True)
        file.write(b"after")
    data = path.read_bytes()
    assert (
        data[:6] == b"before"
        and data[6:10] == b"RIFF"
        and data.endswith(b"after")
        and len(data) == 6 + 2044 + 5
    )


def test_a_whole_wave_in_a_pipe_names_its_length():
    answer = subprocess.run(
        [sys.executable, "-c", SPEAKER, "1000"], cwd=ROOT, capture_output=True, check=True
    )
    with wave.open(io.BytesIO(answer.stdout)) as heard:
        assert heard.getnframes() == 1000


@pytest.mark.parametrize("name", ["a\nb.wav", "a\r\tb.wav", "a\x1b[2Jb.wav", os.fsdecode(b"\xff\n.wav")])
def test_a_name_is_shown_on_one_line_and_moves_no_cursor(name):
    assert all(c.isprintable() for c in shown(Path(name)))


def test_a_readable_name_is_shown_as_it_is():
    assert shown(Path("声 ü.wav")) == "声 ü.wav"
