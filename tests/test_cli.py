"""`omni`: quick help, one-line errors with exit code 2, and each command does what it says."""

import argparse
import errno
import io
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
import soundfile

from omnilib import cli, paths, weights
from omnilib.errors import UserError
from omnilib.report import Outcome
from tests.tiny import tone, write_checkpoints

SPOKE = (0, 1)  # a random mouth rambles, which the exit code tells
TEXT = "the light of the morning was on the water"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return write_checkpoints(tmp_path_factory.mktemp("checkpoints"))


def omni(*arguments) -> int:
    try:
        return cli.main([str(a) for a in arguments])
    except SystemExit as stop:  # a wrong option value
        return stop.code


def run(*arguments, stdin: bytes = b"", shell: str = "", **environment) -> subprocess.CompletedProcess:
    """The command as a process of its own; `shell` is what stands behind it on the line."""
    command = " ".join(map(shlex.quote, [sys.executable, "-m", "omnilib.cli", *map(str, arguments)]))
    return subprocess.run(
        ["bash", "-c", f"{command} {shell}"],
        input=stdin,
        capture_output=True,
        cwd=paths.ROOT,
        env=os.environ | environment,
    )


def test_help_imports_nothing_heavy():
    code = "import sys\nfrom omnilib.cli import build_parser\nbuild_parser().format_help()\nprint('torch' in sys.modules, 'numpy' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["False", "False"]


def test_a_reader_that_stops_early_is_no_fault():
    command = f"{sys.executable} -m omnilib.cli doctor | true; exit ${{PIPESTATUS[0]}}"
    answer = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (answer.returncode, "Traceback" in answer.stderr, "BrokenPipe" in answer.stderr) == (
        141,
        False,
        False,
    )


def test_speak_writes_a_wave_and_tells_its_speed(checkpoints, tmp_path, capsys):
    assert omni("speak", TEXT, "-o", tmp_path / "a.wav", "--scale", checkpoints) in SPOKE
    samples, rate = soundfile.read(tmp_path / "a.wav")
    assert rate == 24000 and len(samples) > 0
    assert "real-time factor" in capsys.readouterr().out


def test_speak_streaming_writes_the_same_seconds(checkpoints, tmp_path, capsys):
    assert omni("speak", TEXT, "-o", tmp_path / "a.wav", "--scale", checkpoints, "--seed", 5) in SPOKE
    assert (
        omni("speak", TEXT, "-o", tmp_path / "b.wav", "--scale", checkpoints, "--seed", 5, "--stream")
        in SPOKE
    )
    assert soundfile.info(tmp_path / "a.wav").frames == soundfile.info(tmp_path / "b.wav").frames
    assert "first sound after" in capsys.readouterr().out


def test_speak_clones_a_recording(checkpoints, tmp_path):
    soundfile.write(tmp_path / "ref.wav", tone(2.0, 48000), 48000)
    assert (
        omni(
            "speak",
            TEXT,
            "-o",
            tmp_path / "a.wav",
            "--scale",
            checkpoints,
            "--voice",
            tmp_path / "ref.wav",
            "--voice-text",
            "the water",
        )
        in SPOKE
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["", "-o", "{tmp}/a.wav"], "nothing to say"),
        (["😀", "-o", "{tmp}/a.wav"], "nothing to say"),
        (["x" * 100_000, "-o", "{tmp}/a.wav"], "100,000 characters"),
        ([TEXT, "--language", "fr", "-o", "{tmp}/a.wav"], "unknown language 'fr'"),
        ([TEXT, "--voice", "{tmp}/none.wav", "--voice-text", "t", "-o", "{tmp}/a.wav"], "no recording"),
        ([TEXT, "--scale", "gigantic", "-o", "{tmp}/a.wav"], "no checkpoints 'gigantic'"),
        ([TEXT, "--temperature", "-1", "-o", "{tmp}/a.wav"], "temperature"),
        ([TEXT, "-o", "{tmp}/a.mp3"], "ends in .wav"),
        ([TEXT, "-o", "{tmp}/no/such/a.wav"], "create it first"),
        ([TEXT, "-o", "{tmp}"], "give a name"),
        ([TEXT, "--device", "tpu", "-o", "{tmp}/a.wav"], "choose cpu or cuda"),
        ([TEXT, "--device", "cuda:99", "-o", "{tmp}/a.wav"], "device"),
        ([TEXT, "--precision", "fp8", "-o", "{tmp}/a.wav"], "auto, fp32, bf16, int8"),
        ([TEXT, "--seed", "9" * 20, "-o", "{tmp}/a.wav"], "no seed"),
        ([TEXT, "--seed", "-1", "-o", "{tmp}/a.wav"], "no seed"),
        ([TEXT, "--seed", "one", "-o", "{tmp}/a.wav"], "whole number"),
        ([TEXT, "--temperature", "nan", "-o", "{tmp}/a.wav"], "no temperature"),
        ([TEXT, "--temperature", "inf", "-o", "{tmp}/a.wav"], "no temperature"),
        ([TEXT, "-o", "{tmp}/a.wav", "--voise", "slt"], "--voise"),
        ([TEXT, "-o", "{tmp}/a.wav", "--voice-text", "t"], "give the recording"),
    ],
    ids=["empty", "emoji", "long", "language", "voice", "scale", "temperature", "mp3", "no folder", "a folder",
         "device", "cuda", "precision", "seed", "negative", "word", "nan", "inf", "option", "text alone"],
)  # fmt: skip
def test_a_mistake_is_one_line_and_exit_code_2(checkpoints, tmp_path, capsys, arguments, told):
    arguments = [a.replace("{tmp}", str(tmp_path)) for a in arguments]
    if "--scale" not in arguments:
        arguments += ["--scale", str(checkpoints)]
    assert omni("speak", *arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    told_lines = [line for line in lines if line.startswith("omni: ")]
    assert len(told_lines) == 1 and told in told_lines[0]
    assert not any("Traceback" in line for line in lines)
    assert not (tmp_path / "a.wav").exists()


def test_output_that_may_not_be_written_is_found_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere, so ask for it
    with pytest.raises(UserError, match="no permission"):
        cli.check_output(tmp_path / "a.wav")


@pytest.mark.parametrize("more", [[], ["--stream"]], ids=["whole", "stream"])
def test_a_failure_leaves_the_file_that_stood_there(checkpoints, tmp_path, more):
    (tmp_path / "a.wav").write_bytes(b"precious")
    assert (
        omni(
            "speak",
            TEXT,
            "-o",
            tmp_path / "a.wav",
            "--voice",
            tmp_path / "none.wav",
            "--scale",
            checkpoints,
            *more,
        )
        == 2
    )
    assert (tmp_path / "a.wav").read_bytes() == b"precious"


@pytest.mark.parametrize("more", [[], ["--stream"]], ids=["whole", "stream"])
def test_the_wave_goes_to_standard_output_and_words_to_standard_error(checkpoints, more):
    answer = run("speak", TEXT, "-o", "-", "--scale", checkpoints, *more, shell="| cat")
    samples, rate = soundfile.read(io.BytesIO(answer.stdout))
    assert rate == 24000 and len(samples) > 0 and b"s of speech" in answer.stderr


def test_a_result_that_nobody_can_be_told_of_is_kept_and_one_line(checkpoints, tmp_path):
    for shell in ("> /dev/full", ">&-"):
        out = tmp_path / f"a{len(shell)}.wav"
        answer = run("speak", TEXT, "-o", out, "--scale", checkpoints, shell=shell)
        told = [line for line in answer.stderr.decode().splitlines() if line.startswith("omni: ")]
        assert answer.returncode == 1 and len(told) == 1 and b"Traceback" not in answer.stderr, answer.stderr
        assert soundfile.info(out).frames > 0


@pytest.mark.parametrize(
    ("raw", "told"),
    [("the café".encode("utf-16"), "not UTF-8"), ("the café".encode("latin-1"), "not UTF-8 (line 1)"), (b"a\n\xff", "not UTF-8 (line 2)"),
     (b"a\0b", "not UTF-8"), (b"", "nothing to say"), (b" \r\n", "nothing to say")],
    ids=["utf-16", "latin-1", "second line", "nul", "empty", "blank"],
)  # fmt: skip
def test_text_that_cannot_be_read_is_one_line(monkeypatch, capsys, tmp_path, raw, told):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
    assert omni("speak", "-", "-o", tmp_path / "a.wav") == 2
    assert told in capsys.readouterr().err


def test_a_byte_order_mark_and_line_ends_of_windows_are_read(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbfone\r\ntwo")))
    assert cli.read_text("-") == "one\r\ntwo"


def test_names_and_texts_beyond_the_locale_are_written_and_spoken(checkpoints, tmp_path):
    locale = {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    answer = run("speak", "the café", "-o", tmp_path / "声.wav", "--scale", checkpoints, **locale)
    assert answer.returncode in SPOKE and (tmp_path / "声.wav").exists(), answer.stderr
    assert b"Traceback" not in answer.stderr
    answer = run("speak", "the light", "-o", tmp_path / "音" / "声.wav", "--scale", checkpoints, **locale)
    assert (
        answer.returncode == 2 and b"Traceback" not in answer.stderr and b"create it first" in answer.stderr
    )


def test_what_the_system_refuses_is_one_line_and_a_fault_of_ours_is_not_hidden(monkeypatch, capsys):
    def refuse(error):
        def command(args):
            raise error

        monkeypatch.setitem(cli.COMMANDS, "doctor", command)

    refuse(OSError(errno.EROFS, "Read-only file system", "/x/reports"))
    monkeypatch.setattr(cli, "drop_output", lambda: None)
    assert omni("doctor") == 1
    assert capsys.readouterr().err.strip() == (
        "omni: Read-only file system: /x/reports; set OMNILIB_RUNS and OMNILIB_REPORTS to folders that can be written"
    )
    refuse(KeyError("a bug"))
    with pytest.raises(KeyError):
        omni("doctor")


HOMELESS = "import sys; from omnilib import paths; print(paths.ROOT); print(paths.CHECKPOINTS)"


def test_the_workspace_is_the_checkout_or_what_the_environment_says(tmp_path):
    def ask(**environment) -> list[str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("OMNILIB_")} | environment
        answer = subprocess.run(
            [sys.executable, "-c", HOMELESS],
            env=environment,
            capture_output=True,
            text=True,
            cwd=paths.PACKAGE.parent,
        )
        return answer.stdout.split()

    assert ask()[0] == str(paths.PACKAGE.parent)
    assert ask(OMNILIB_HOME=str(tmp_path)) == [str(tmp_path), str(tmp_path / "checkpoints")]
    assert ask(OMNILIB_HOME=str(tmp_path), OMNILIB_CHECKPOINTS="/c")[1] == "/c"


@pytest.mark.slow
def test_an_installed_copy_says_where_to_get_the_rest_and_writes_nothing_beside_itself(tmp_path):
    site = tmp_path / "site"
    shutil.copytree(paths.PACKAGE, site / "omnilib", ignore=shutil.ignore_patterns("__pycache__"))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OMNILIB_")} | {
        "PYTHONPATH": str(site)
    }
    ignored = shutil.ignore_patterns("__pycache__", "frozen")
    shutil.copytree(paths.PACKAGE.parent / "data_prep", site / "data_prep", ignore=ignored)
    before = sorted(p for p in site.rglob("*") if "__pycache__" not in p.parts)
    wild = ["data", "wild", "--minutes", "3", "--out", "w"]
    for command in (
        ["speak", TEXT, "-o", "a.wav"],
        ["report"],
        ["verify"],
        ["reproduce", "--only", "00"],
        wild,
    ):
        answer = subprocess.run(
            [sys.executable, "-m", "omnilib.cli", *command],
            env=environment,
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        told = [line for line in answer.stderr.splitlines() if line.startswith("omni: ")]
        assert answer.returncode == 2 and len(told) == 1 and "clone" in told[0], (command, answer.stderr)
    assert sorted(p for p in site.rglob("*") if "__pycache__" not in p.parts) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["site"]


@pytest.mark.parametrize(
    "variable", ["OMNILIB_REPORTS", "OMNILIB_RUNS", "OMNILIB_DATA", "OMNILIB_CHECKPOINTS"]
)
def test_a_folder_named_from_here_is_the_same_from_elsewhere(tmp_path, variable):
    code = f"import os\nfrom omnilib import paths\nos.chdir('/')\nprint(paths.{variable.removeprefix('OMNILIB_')})"
    environment = os.environ | {variable: "mine", "PYTHONPATH": str(paths.PACKAGE.parent)}
    answer = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.strip() == str(tmp_path / "mine")


CLOSED = """
import os, sys
from omnilib import cli
def speak(args):
    numbers = sorted(os.open(os.devnull, os.O_RDONLY) for _ in range(2))
    os.write(int(sys.argv[1]), repr((numbers[0] > 2, sys.stderr is not None)).encode())
    print("a warning", file=sys.stderr)
    return 0
cli.COMMANDS["speak"] = speak
raise SystemExit(cli.main(["speak", "text", "-o", "a.wav"]))
"""


@pytest.mark.parametrize("shell", ["2>&-", "<&- 2>&-", "<&- >&- 2>&-"])
def test_a_file_opened_later_never_stands_in_for_a_closed_stream(tmp_path, shell):
    answer = subprocess.run(
        ["bash", "-c", f'exec 9> "$2"; exec "$0" -c "$1" 9 {shell}', sys.executable, CLOSED, tmp_path / "told"],
        cwd=paths.ROOT, capture_output=True,
    )  # fmt: skip
    assert (answer.returncode, (tmp_path / "told").read_text()) == (0, "(True, True)")
    assert answer.stdout == answer.stderr == b"", "a warning is no part of a wave on standard output"


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        handlers = cli.stop_on_signals()
        now = signal.getsignal(signal.SIGHUP)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert now == signal.SIG_IGN and signal.SIGTERM in handlers


@pytest.mark.parametrize(
    "error",
    [IsADirectoryError(21, "Is a directory", "/x"), NotADirectoryError(20, "Not a directory"), ConnectionRefusedError(111, "refused"),
     TimeoutError("too slow"), OSError(errno.EIO, "Input/output error"), OSError(), shutil.Error([("a", "b", "no space")])],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_what_the_system_refuses_is_one_line(monkeypatch, capsys, error):
    def refused(args):
        raise error

    monkeypatch.setitem(cli.COMMANDS, "doctor", refused)
    monkeypatch.setattr(cli, "drop_output", lambda: None)
    assert omni("doctor") == 1
    line = capsys.readouterr().err
    assert line.startswith("omni: ") and line.count("\n") == 1 and len(line) > len("omni: \n")


@pytest.mark.parametrize("error", [TypeError("a fault of ours"), ChildProcessError(10, "No child processes")])
def test_a_programming_error_keeps_its_traceback(monkeypatch, error):
    def wrong(args):
        raise error

    monkeypatch.setitem(cli.COMMANDS, "doctor", wrong)
    with pytest.raises(type(error)):
        omni("doctor")


def test_a_message_about_a_name_with_a_line_end_is_one_line(tmp_path, capsys):
    for place in ("a\nb/c.wav", "a\nb.mp3"):
        assert omni("speak", TEXT, "-o", tmp_path / place) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert omni("speak", TEXT, "--scale", "no\nsuch", "-o", tmp_path / "a.wav") == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_committed_voice_is_not_written_over(checkpoints, tmp_path, capsys):
    own = shutil.copytree(checkpoints, tmp_path / "own")
    before = (own / "voices" / "ann.wav").read_bytes()
    assert omni("speak", TEXT, "--scale", own, "-o", own / "voices" / "ann.wav") == 2
    assert "the same file" in capsys.readouterr().err and (own / "voices" / "ann.wav").read_bytes() == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["data", "plan", "--hours", "inf"],
        ["data", "plan", "--hours", "-1"],
        ["data", "plan", "--days", "many"],
        ["data", "plan", "--cores-per-node", "0.5"],
        ["data", "plan", "--json"],
        ["data", "shards", "--manifest", "{tmp}", "--out", "{tmp}/s"],
        ["data", "shards", "--manifest", "m", "--out", "{tmp}/s", "--seconds", "nan"],
        ["data", "shards", "--manifest", "m", "--out", "{tmp}/s", "--workers", "0"],
        ["data", "build-nano", "--out", "{tmp}/n", "--hours", "nan"],
        ["data", "build-nano", "--out", "{tmp}/n", "--workers", "-1"],
        ["data", "synthesise", "--conversations", "c", "--out", "{tmp}/y", "--hours", "inf"],
        ["data", "synthesise", "--conversations", "c", "--out", "{tmp}/y", "--hours", "1", "--seed", "-1"],
        ["data", "corpus", "folder", "--root", "{tmp}", "--limit", "-3"],
        ["data", "corpus", "no-such"],
        ["data", "wild", "--out", "{tmp}/w", "--minutes", "nan"],
        ["data", "score", "--wild", "{tmp}", "--curated", "{tmp}"],
        ["data", "curate", "--recipe", "no-such", "--manifest", "m", "--out", "{tmp}/c", "--workers", "x"],
        ["train", "hift"],
        ["train", "hift", "--config", "smoke/hift", "--out", "{tmp}/h", "--bogus"],
        ["fetch", "x", "--bogus"],
    ],
    ids=" ".join,
)
def test_a_mistake_in_the_options_of_a_script_is_one_line_too(tmp_path, capsys, arguments):
    code = omni(*(a.replace("{tmp}", str(tmp_path)) for a in arguments))
    line = capsys.readouterr().err
    assert code == (1 if arguments[:3] == ["data", "shards", "--manifest"] and len(arguments) == 6 else 2)
    assert line.count("\n") == 1 and "Traceback" not in line
    assert not list(tmp_path.iterdir()), "nothing was begun"


def test_the_parser_of_a_script_is_left_as_it_was(capsys):
    before = argparse.ArgumentParser.error
    assert omni("data", "plan", "--bogus") == 2
    assert argparse.ArgumentParser.error is before


def test_help_of_speak_names_standard_output_and_the_workspace(capsys):
    assert omni("speak", "--help") == 0
    told = capsys.readouterr().out
    assert "-o -" in told and "OMNILIB_HOME" in told


def test_training_scripts_are_the_stages_and_a_wrong_one_is_named(capsys):
    assert {"tokenizer", "speaker", "flow", "hift", "backbone", "speechlm"} <= set(cli.stages())
    assert not {"common", "prefetch"} & set(cli.stages())
    assert omni("train", "vocoder") == 2
    assert "choose one of" in capsys.readouterr().err
    assert omni("train") == 0


def test_train_passes_its_flags_on_and_reports_a_wrong_config_key(tmp_path, capsys):
    assert omni("train", "hift", "--config", "smoke/hift", "--out", tmp_path, "--set", "stepz=3") == 2
    assert "stepz" in capsys.readouterr().err


def test_unknown_data_task_names_the_known_ones(capsys):
    assert omni("data", "build-mega") == 2
    assert "choose one of build-nano, corpus" in capsys.readouterr().err


def test_every_data_task_has_a_script_with_help(capsys):
    assert omni("data") == 0
    listed = capsys.readouterr().out
    for task in cli.DATA_TASKS:
        assert f"\n  {task}" in listed
        assert omni("data", task, "--help") == 0
        assert "--" in capsys.readouterr().out


def test_reproduce_goes_on_after_failures_and_exits_1(tmp_path, monkeypatch, capsys):
    from omnilib import report

    built = []
    monkeypatch.setattr(cli, "REPORTS", tmp_path)
    monkeypatch.setattr(cli.subprocess, "call", lambda *a, **k: 3)  # the evaluation fails
    monkeypatch.setattr(report, "list_notebooks", lambda only: [])
    monkeypatch.setattr(report, "with_parts", lambda *a: (["one", "two"], []))
    outcomes = [Outcome("01_one", False, 1.0, "Kernel died"), Outcome("02_two", True, 1.0)]
    monkeypatch.setattr(report, "run_notebooks", lambda *a, **k: outcomes)
    monkeypatch.setattr(report, "build_index", lambda *a, **k: built.append(a))
    assert omni("reproduce") == 1
    told = capsys.readouterr()
    assert not built and "stays as it was" in told.out and "1 of 2 notebooks ok" in told.out
    assert "FAILED omnilib.eval.nano" in told.err and "FAILED 01_one: Kernel died" in told.err
    outcomes[0] = Outcome("01_one", True, 1.0)
    assert omni("reproduce", "--only", "0") == 0 and not built, "a part of the notebooks is no whole run"
    assert omni("reproduce", "--notebooks") == 0 and len(built) == 1


def test_reproduce_leaves_out_chapters_whose_parts_are_not_there(tmp_path, monkeypatch, capsys):
    from omnilib import checkpoints, report

    ran = []
    (tmp_path / "tokenizer").mkdir()
    monkeypatch.setattr(cli, "REPORTS", tmp_path / "reports")
    monkeypatch.setattr(checkpoints, "CHECKPOINTS", tmp_path)
    monkeypatch.setattr(report, "check_scale", lambda scale: None)
    monkeypatch.setattr(report, "run_notebooks", lambda notebooks, *a, **k: ran.extend(notebooks) or [])
    monkeypatch.setattr(report, "build_index", lambda *a, **k: None)
    assert omni("reproduce", "--notebooks") == 0
    told = capsys.readouterr().out
    assert "08_the_brain left out: checkpoints/nano/encoders is missing" in told and "make retrain" in told
    assert [p.stem[:2] for p in ran] == [f"{n:02d}" for n in range(8)], "the others run"
    assert omni("reproduce", "--only", "08") == 2, "nothing is left to run: that is no success"
    assert "checkpoints/nano/encoders is missing" in capsys.readouterr().err
    for part in ("brain", "brain_stage1", "encoders"):
        (tmp_path / "nano" / part).mkdir(parents=True)
    assert omni("reproduce", "--only", "08") == 0 and ran[-1].stem == "08_the_brain"


def test_reproduce_of_a_notebook_that_is_not_there_exits_2(capsys):
    assert omni("reproduce", "--only", "99", "--scale", "smoke") == 2
    assert "no notebook starts with '99'" in capsys.readouterr().err


def test_verify_prints_every_check_and_fails_on_a_difference(monkeypatch, capsys):
    from omnilib.eval import recheck

    checks = [recheck.Check("same", 0.1, 0.1, 1e-9), recheck.Check("moved", 0.1, 0.4, 0.1)]
    monkeypatch.setattr(recheck, "recheck", lambda scale: checks)
    assert omni("verify") == 1
    text = capsys.readouterr().out
    assert "DIFFERS" in text and "moved" in text and "same" in text
    checks.pop()
    assert omni("verify") == 0


def test_verify_without_reports_says_what_to_run(tmp_path, monkeypatch, capsys):
    from omnilib.eval import recheck

    real = recheck.recheck
    monkeypatch.setattr(recheck, "recheck", lambda scale: real(scale, reports=tmp_path))
    assert omni("verify") == 2
    assert "omnilib.eval.nano" in capsys.readouterr().err


def test_module_runs_as_a_program():
    started = time.time()
    answer = subprocess.run(
        [sys.executable, "-m", "omnilib.cli", "--help"], capture_output=True, text=True, cwd=paths.ROOT
    )
    assert answer.returncode == 0 and "speak" in answer.stdout
    assert time.time() - started < 30


def test_fetch_wants_a_pinned_name(capsys):
    assert omni("fetch", "someone/tts") == 2
    error = capsys.readouterr().err
    assert "owner/name@revision" in error and error.count("\n") == 1


def test_fetch_downloads_and_says_what_fits(monkeypatch, tmp_path, capsys):
    fetched = []
    monkeypatch.setattr(weights, "download", lambda pin, folder: fetched.append((pin, folder)))
    monkeypatch.setattr(
        weights, "check", lambda folder: [weights.Fit("speech model", missing=["lm_head.weight"])]
    )
    assert omni("fetch", "someone/tts@main", "-o", tmp_path) == 1
    assert fetched == [("someone/tts@main", tmp_path)]
    assert "lm_head.weight" in capsys.readouterr().out
