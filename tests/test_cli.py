"""`omni`: quick help, one-line errors with exit code 2, and each command does what it says."""

import os
import subprocess
import sys
import time

import pytest
import soundfile

from omnilib import cli, paths, weights
from omnilib.errors import UserError
from omnilib.report import Outcome
from tests.tiny import tone, write_checkpoints

TEXT = "the light of the morning was on the water"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return write_checkpoints(tmp_path_factory.mktemp("checkpoints"))


def omni(*arguments) -> int:
    return cli.main([str(a) for a in arguments])


def test_help_imports_nothing_heavy():
    code = "import sys\nfrom omnilib.cli import build_parser\nbuild_parser().format_help()\nprint('torch' in sys.modules, 'numpy' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["False", "False"]


def test_a_reader_that_stops_early_is_no_fault():
    command = f"{sys.executable} -m omnilib.cli doctor | true; exit ${{PIPESTATUS[0]}}"
    answer = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (answer.returncode, "Traceback" in answer.stderr, "BrokenPipe" in answer.stderr) == (141, False, False)


def test_speak_writes_a_wave_and_tells_its_speed(checkpoints, tmp_path, capsys):
    assert omni("speak", TEXT, "-o", tmp_path / "a.wav", "--scale", checkpoints) == 0
    samples, rate = soundfile.read(tmp_path / "a.wav")
    assert rate == 24000 and len(samples) > 0
    assert "real-time factor" in capsys.readouterr().out


def test_speak_streaming_writes_the_same_seconds(checkpoints, tmp_path, capsys):
    assert omni("speak", TEXT, "-o", tmp_path / "a.wav", "--scale", checkpoints, "--seed", 5) == 0
    assert omni("speak", TEXT, "-o", tmp_path / "b.wav", "--scale", checkpoints, "--seed", 5, "--stream") == 0
    assert soundfile.info(tmp_path / "a.wav").frames == soundfile.info(tmp_path / "b.wav").frames
    assert "first sound after" in capsys.readouterr().out


def test_speak_clones_a_recording(checkpoints, tmp_path):
    soundfile.write(tmp_path / "ref.wav", tone(2.0, 48000), 48000)
    assert (
        omni("speak", TEXT, "-o", tmp_path / "a.wav", "--scale", checkpoints, "--voice", tmp_path / "ref.wav", "--voice-text", "the water")
        == 0
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
    ],
    ids=["empty", "emoji", "long", "language", "voice", "scale", "temperature", "mp3", "no folder", "a folder"],
)
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


def test_training_scripts_are_the_stages_and_a_wrong_one_is_named(capsys):
    assert {"tokenizer", "speaker", "flow", "hift", "backbone", "speechlm"} <= set(cli.stages())
    assert not {"common", "prefetch"} & set(cli.stages())
    assert omni("train", "vocoder") == 2
    assert "choose one of" in capsys.readouterr().err
    assert omni("train") == 0


def test_train_passes_its_flags_on_and_reports_a_wrong_config_key(tmp_path, capsys):
    assert omni("train", "hift", "--config", "hift_smoke", "--out", tmp_path, "--set", "stepz=3") == 2
    assert "stepz" in capsys.readouterr().err


def test_unknown_data_task_names_the_known_ones(capsys):
    assert omni("data", "build-mega") == 2
    assert "choose one of build-nano, corpus" in capsys.readouterr().err


def test_every_data_task_has_a_script_with_help(capsys):
    assert omni("data") == 0
    listed = capsys.readouterr().out
    for task in cli.DATA_TASKS:
        assert f"\n  {task}" in listed
        with pytest.raises(SystemExit) as stop:
            omni("data", task, "--help")
        assert stop.value.code == 0
        assert "--" in capsys.readouterr().out


def test_reproduce_goes_on_after_failures_and_exits_1(tmp_path, monkeypatch, capsys):
    from omnilib import report

    built = []
    monkeypatch.setattr(cli, "REPORTS", tmp_path)
    monkeypatch.setattr(cli.subprocess, "call", lambda *a, **k: 3)  # the evaluation fails
    monkeypatch.setattr(report, "list_notebooks", lambda only: ["one", "two"])
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
    answer = subprocess.run([sys.executable, "-m", "omnilib.cli", "--help"], capture_output=True, text=True, cwd=paths.ROOT)
    assert answer.returncode == 0 and "speak" in answer.stdout
    assert time.time() - started < 30


def test_fetch_wants_a_pinned_name(capsys):
    assert omni("fetch", "someone/tts") == 2
    error = capsys.readouterr().err
    assert "owner/name@revision" in error and error.count("\n") == 1


def test_fetch_downloads_and_says_what_fits(monkeypatch, tmp_path, capsys):
    fetched = []
    monkeypatch.setattr(weights, "download", lambda pin, folder: fetched.append((pin, folder)))
    monkeypatch.setattr(weights, "check", lambda folder: [weights.Fit("speech model", missing=["lm_head.weight"])])
    assert omni("fetch", "someone/tts@main", "-o", tmp_path) == 1
    assert fetched == [("someone/tts@main", tmp_path)]
    assert "lm_head.weight" in capsys.readouterr().out
