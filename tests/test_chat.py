"""`omni chat`: turns from the command line and a pipe, all of them in a folder, whatever ends the program."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from omnilib import chat, cli
from omnilib.omni import Omni
from omnilib.paths import ROOT
from omnilib.speak import TextToSpeech
from tests.serve.conftest import STORY, tiny_brain
from tests.tiny import tone, write_brain, write_checkpoints


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Checkpoints of random weights: mouth and brain."""
    place = write_checkpoints(tmp_path_factory.mktemp("tiny"))
    write_brain(place / "brain")
    return place


@pytest.fixture
def brain(folder, monkeypatch):
    """What the program loads: a tiny mouth, and a brain whose words are given."""
    speech = TextToSpeech.load(folder)
    speech.settings = replace(speech.settings, rows_per_token=1.0)
    made = tiny_brain()
    monkeypatch.setattr(Omni, "load", lambda *_: Omni(made, speech))
    return made


@pytest.fixture
def media(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(1.0), 16000)
    Image.new("RGB", (60, 60), "red").save(tmp_path / "p.png")
    return tmp_path


@pytest.fixture
def omni(monkeypatch, tmp_path):
    """`omni(arguments, lines on standard input) -> (exit code, the conversation)`."""

    def call(*arguments, lines="", out=tmp_path / "talk"):
        monkeypatch.setattr(
            sys, "stdin", io.TextIOWrapper(io.BytesIO(lines if isinstance(lines, bytes) else lines.encode()))
        )
        try:
            code = cli.main(["chat", "-o", str(out), *map(str, arguments)])
        except SystemExit as stop:
            code = stop.code
        path = out / "conversation.json"
        return code, json.loads(path.read_text()) if path.exists() else None

    return call


def test_an_answer_is_printed_spoken_and_kept(brain, omni, tmp_path, capsys):
    code, kept = omni("hi", "--voice", "ann")
    [turn] = kept["turns"]
    wave, rate = soundfile.read(tmp_path / "talk" / turn["wave"])
    said = capsys.readouterr()
    assert code == 0 and said.out == STORY + "\n" and "s of speech" in said.err
    assert turn["text"] == turn["said"] == STORY and turn["state"] == "complete"
    assert (
        rate == 24000 and len(wave) / rate == pytest.approx(turn["seconds"], abs=0.01) and turn["seconds"] > 0
    )
    assert 0 < turn["first_sound_s"] < 60


def test_lines_of_a_pipe_are_turns_of_one_talk(brain, omni, media, capsys):
    lines = f"/audio {media / 'a.wav'}\n/image {media / 'p.png'}\n\nand now?\n/quit\nnot asked\n"
    code, kept = omni("--text-only", lines=lines)
    first, second = kept["turns"]
    assert code == 0 and first["asked"]["text"] == "" and second["asked"]["text"] == "and now?"
    assert first["asked"]["audio"] == ["01-audio-1.wav"] and first["asked"]["images"] == ["01-image-1.png"]
    assert capsys.readouterr().out == f"{STORY}\n{STORY}\n" and first["wave"] is None
    assert torch.equal(brain.heard[0]["input_features"], brain.heard[1]["input_features"])


def test_a_folder_named_again_goes_on_although_the_files_are_gone(brain, omni, media):
    omni(
        "what?",
        "--text-only",
        "--audio",
        media / "a.wav",
        "--image",
        media / "p.png",
        "--system",
        "Be brief.",
    )
    before = brain.heard[-1]
    (media / "a.wav").unlink()
    code, kept = omni("and now?", "--text-only")
    after = brain.heard[-1]
    assert code == 0 and len(kept["turns"]) == 2 and kept["about"]["system"] == "Be brief."
    assert torch.equal(before["input_features"], after["input_features"])
    text = brain.processor.decode(after["input_ids"][0][after["input_ids"][0] >= 0])
    assert "Be brief." in text and STORY in text and "and now?" in text


def test_an_answer_that_is_cut_says_so(brain, omni, capsys):
    code, kept = omni("hi", "--text-only", "--max-new-tokens", 5)
    assert code == 1 and kept["turns"][0]["state"] == "cut" and "cut" in capsys.readouterr().err


def interrupt_after(seconds, times=1):
    def run():
        for _ in range(times):
            time.sleep(seconds)
            os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=run, daemon=True).start()


def test_ctrl_c_stops_the_answer_and_the_talk_goes_on(brain, omni, tmp_path):
    brain.script, brain.pause = " ".join([STORY] * 20), 0.01
    steps, once = brain.steps, []

    def interrupted(batch, settings):
        for number, made in enumerate(steps(batch, settings)):
            if number == 60 and not once:
                once.append(os.kill(os.getpid(), signal.SIGINT))
            yield made

    brain.steps = interrupted
    code, kept = omni("hi", "--max-new-tokens", 80, lines="go on\n")
    first, second = kept["turns"]
    assert code == 1 and first["state"] == "stopped" and second["state"] == "cut"
    assert len(first["text"]) <= 62 and first["text"].startswith(first["said"]) and len(second["text"]) == 80
    if first["wave"]:
        assert soundfile.info(tmp_path / "talk" / first["wave"]).frames > 0


def test_a_second_ctrl_c_ends_the_program_and_the_folder_is_whole(brain, omni, tmp_path):
    steps = brain.steps

    def stuck(batch, settings):
        for number, made in enumerate(steps(batch, settings)):
            if number == 8:
                interrupt_after(0.1, times=2)
                time.sleep(2)
            yield made

    brain.steps = stuck
    code, kept = omni("hi", "--text-only", lines="not asked\n")
    assert code == 130 and len(kept["turns"]) == 1 and kept["turns"][0]["said"] == STORY[:8].strip()


@pytest.mark.parametrize(
    "lines, says",
    [
        ("/audio nowhere.wav\n\n", "no audio file nowhere.wav"),
        ("/image {0}/a.wav\n\n", "a.wav is not readable as a picture"),
        ("/audio {0}/p.png\n\n", "p.png is not readable as audio"),
        ("/audio /tmp\n\n", "no audio file /tmp"),
        ("<image> is what?\n", "<image>"),
    ],
)
def test_a_question_that_cannot_be_asked_is_one_line_and_the_talk_goes_on(
    brain, omni, media, capsys, lines, says
):
    code, kept = omni("--text-only", lines=lines.format(media) + "hi\n")
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("omni:")]
    assert code == 2 and len(errors) == 1 and says in errors[0] and "talk/" not in errors[0]
    assert [turn["asked"]["text"] for turn in kept["turns"]] == ["hi"]
    assert sorted(p.name for p in (media / "talk").iterdir() if p.suffix) == ["conversation.json"]


def test_a_line_that_is_no_text_is_told(brain, omni, capsys):
    code, kept = omni("--text-only", lines=b"\xff\xfe\nhi\n")
    assert code == 2 and len(kept["turns"]) == 1 and "UTF-8" in capsys.readouterr().err


def test_a_first_question_that_cannot_be_asked_leaves_nothing(brain, omni, tmp_path, capsys):
    for arguments in (["--audio", "nowhere.wav"], ["hi", "--voice", "nobody"], ["hi", "--voice-text", "a"]):
        code, kept = omni(*arguments)
        assert code == 2 and kept is None and not (tmp_path / "talk").exists()
        assert capsys.readouterr().err.count("omni:") == 1


@pytest.mark.parametrize(
    "made, says",
    [
        ("file", "choose another --out"),
        ("other", "holds other files"),
        ("{", "damaged"),
        ("[]", "damaged"),
        ('{"about": {}, "turns": [{"asked": {"text": "", "audio": ["../a.wav"], "images": [], "videos": []}}]}', "names files"),
    ],
)  # fmt: skip
def test_a_folder_that_holds_something_else_stays_as_it_is(brain, omni, media, capsys, made, says):
    place = media / "talk"
    if made == "file":
        place.write_text("mine")
    else:
        place.mkdir()
        (place / ("mine.txt" if made == "other" else "conversation.json")).write_text(made)
    before = (
        {p.name: p.read_bytes() for p in place.iterdir() if p.name != ".lock"} if place.is_dir() else None
    )
    assert cli.main(["chat", "hi", "-o", str(place)]) == 2
    assert says in capsys.readouterr().err
    if before is None:
        assert place.read_text() == "mine"
    else:
        assert before == {p.name: p.read_bytes() for p in place.iterdir() if p.name != ".lock"}


def test_two_chats_do_not_share_a_folder(brain, omni, tmp_path, capsys):
    record = chat.Record(tmp_path / "talk", {})
    try:
        code, _ = omni("hi")
        assert code == 2 and "in use by another chat" in capsys.readouterr().err
    finally:
        record.close()


def test_the_answer_is_played_as_it_was_written(brain, omni, tmp_path, monkeypatch):
    player = tmp_path / "bin" / "aplay"
    player.parent.mkdir()
    player.write_text(f'#!/bin/sh\nexec cat > "{tmp_path}/heard"\n')
    player.chmod(0o755)
    monkeypatch.setenv("PATH", str(player.parent), prepend=os.pathsep)
    _, kept = omni("hi", "--play")
    wave, _ = soundfile.read(tmp_path / "talk" / kept["turns"][0]["wave"], dtype="int16")
    assert np.array_equal(np.fromfile(tmp_path / "heard", dtype="<i2"), wave) and len(wave)


def test_ctrl_c_while_a_complete_answer_is_played_keeps_what_was_heard(brain, omni, tmp_path, monkeypatch):
    brain.script = " ".join([STORY] * 4)
    player = tmp_path / "bin" / "aplay"  # has everything, is still playing, and Ctrl-C is pressed
    player.parent.mkdir()
    player.write_text("#!/bin/sh\ncat > /dev/null\nkill -INT $PPID\nexec sleep 60\n")
    player.chmod(0o755)
    monkeypatch.setenv("PATH", str(player.parent), prepend=os.pathsep)
    monkeypatch.setattr(chat.Player, "heard", property(lambda self: 0.2))
    code, kept = omni("hi", "--play", lines="go on\n")
    first = kept["turns"][0]
    assert code == 0 and first["state"] == "stopped" and len(kept["turns"]) == 2
    assert first["text"].startswith(first["said"]) and len(first["said"]) < len(first["text"].strip())


def test_real_weights_that_were_loaded_answer(folder, omni):
    code, kept = omni("hi", "--scale", folder, "--text-only", "--max-new-tokens", 6)
    assert code in (0, 1) and kept["turns"][0]["state"] in ("cut", "complete") and "scale" in kept["about"]


def test_without_a_player_play_says_what_to_install(brain, omni, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    code, kept = omni("hi", "--play")
    assert code == 2 and kept is None and "aplay" in capsys.readouterr().err


def test_without_a_brain_it_says_how_to_get_one(omni, tmp_path, capsys):
    code, kept = omni("hi", "--scale", write_checkpoints(tmp_path / "tiny"))
    assert code == 2 and kept is None and "no trained brain" in capsys.readouterr().err


KILLED = """
import sys
from omnilib import cli
from omnilib.omni import Omni
from omnilib.speak import TextToSpeech
from tests.serve.conftest import STORY, tiny_brain

brain = tiny_brain()
brain.script, brain.pause = " ".join([STORY] * 50), 0.005
Omni.load = lambda *_: Omni(brain, TextToSpeech.load(sys.argv[1]))
cli.main(["chat", "hi", "-o", sys.argv[2], "--max-new-tokens", "1500"])
"""


@pytest.mark.slow
def test_a_chat_that_is_killed_loses_nothing(folder, tmp_path):
    out = tmp_path / "talk"
    process = subprocess.Popen([sys.executable, "-c", KILLED, folder, out], cwd=ROOT, stdout=subprocess.PIPE)
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None and not (out / "01-answer.wav").exists():
        time.sleep(0.05)
    time.sleep(0.2)
    process.kill()
    printed = process.communicate()[0].decode()
    [turn] = json.loads((out / "conversation.json").read_text())["turns"]
    assert turn["state"] == "answering" and len(printed) - 20 < len(turn["text"]) and turn["text"]
    assert printed.startswith(turn["text"]) or turn["text"].startswith(printed)
    wave, rate = soundfile.read(out / "01-answer.wav")
    assert rate == 24000 and len(wave) / rate >= turn["seconds"] - 0.01
    record = chat.Record(out, {})
    assert record.turns[0]["state"] == "broken off" and len(record.messages()) == 2
    record.close()
