"""`omni serve`: what it refuses before it loads anything, and a server as a user starts it."""

import re
import signal
import subprocess
import sys

import openai
import pytest

from omnilib import cli
from omnilib.paths import ROOT
from omnilib.serve.__main__ import load_brain
from tests.tiny import write_brain, write_checkpoints

TEXT = "The light of the morning was on the water."


@pytest.fixture(autouse=True)
def no_token(monkeypatch):
    monkeypatch.delenv("OMNI_TOKEN", raising=False)


def code_of(*arguments) -> int:
    try:
        return cli.main(["serve", *map(str, arguments)])
    except SystemExit as stop:
        return stop.code


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--host", "0.0.0.0"], "OMNI_TOKEN"),
        (["--host", "::"], "OMNI_TOKEN"),
        (["--host", "example.org", "--token", ""], "OMNI_TOKEN"),
        (["--port", "70000"], "no port"),
        (["--port", "x"], "whole number"),
        (["--slots", "0"], "at least 1"),
        (["--patience", "nan"], "finite"),
        (["--host", "192.0.2.1", "--token", "a"], "cannot listen"),
    ],
)
def test_a_mistake_is_one_line(capsys, arguments, says):
    assert code_of(*arguments) == 2
    error = capsys.readouterr().err
    assert says in error and len(error.splitlines()) == 1


def test_a_port_that_is_taken_is_told(capsys):
    from omnilib.serve.__main__ import listen

    with listen("127.0.0.1", 0) as sock:
        assert code_of("--port", sock.getsockname()[1]) == 2
    assert "choose another --host or --port" in capsys.readouterr().err


def test_without_weights_of_the_brain_the_server_says_what_to_do(tmp_path):
    brain, why = load_brain(str(write_checkpoints(tmp_path / "tiny")), "cpu", wanted=True)
    assert brain is None and "no trained brain" in why and "python -m omnilib.train.brain" in why
    assert "\n" not in why and load_brain("nano", "cpu", wanted=False)[0] is None


@pytest.mark.slow
def test_a_server_that_was_started_in_a_terminal_answers_the_openai_client(tmp_path):
    folder = write_checkpoints(tmp_path / "tiny")
    write_brain(folder / "brain")
    (folder / "decode.yaml").write_text("rows_per_token: 2.0\n")
    command = [
        sys.executable,
        "-m",
        "omnilib.cli",
        "serve",
        "--scale",
        folder,
        "--port",
        "0",
        "--token",
        "s3",
    ]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # what runs the tests may ignore it
    )
    try:
        address = re.search(r"http://127.0.0.1:\d+/v1", line := process.stdout.readline())
        assert address and "speech, chats, transcriptions" in line
        client = openai.OpenAI(base_url=address[0], api_key="s3", max_retries=0)
        assert client.audio.speech.create(model="omni", voice="ann", input=TEXT).read()[:4] == b"RIFF"
        asked = [{"role": "user", "content": "hi"}]
        answer = client.chat.completions.create(model="omni", messages=asked, max_tokens=4)
        assert answer.usage.completion_tokens in range(5)
        assert client.audio.transcriptions.create(
            model="omni", file=folder / "voices" / "ann.wav", response_format="text"
        )
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=address[0], api_key="-").models.list()
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and errors == "omni: stopped\n"
