"""`omni ask` and `omnilib.brain.ask`: answers from any files, several turns, one line for what cannot be used."""

import json
import struct
import zlib
from dataclasses import asdict

import av
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from safetensors.torch import save_file

from omnilib import cli
from omnilib.brain import limits, parts
from omnilib.brain.ask import Brain, turn
from omnilib.brain.decode import AnswerSettings
from omnilib.brain.trained import Base, build_base
from omnilib.errors import CheckpointError, LimitError, MediaError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A trained folder of random weights, with ears and eyes."""
    place = tmp_path_factory.mktemp("brain")
    spec = Base(base="smoke", vision=[2, 16, 2, 24])
    brain, _ = build_base(spec)
    projector = {k: v for k, v in brain.state_dict().items() if "mm_speech_projector" in k}
    save_file(projector, place / "model.safetensors")
    meta = {"base": asdict(spec), "aux_sha256": "", "lora": None}
    (place / "meta.json").write_text(json.dumps(meta))
    return place


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """Files that can be used."""
    place = tmp_path_factory.mktemp("media")
    soundfile.write(place / "a.wav", np.sin(np.arange(24000) * 0.1) * 0.3, 16000)
    Image.new("RGB", (60, 60), "red").save(place / "p.png")
    frames = [Image.new("RGB", (56, 56), c) for c in ("red", "green", "blue", "white")]
    frames[0].save(place / "v.gif", save_all=True, append_images=frames[1:], duration=500)
    return place


def omni(folder, *arguments) -> int:
    try:
        return cli.main(["ask", "--scale", str(folder), "--max-new-tokens", "4", *map(str, arguments)])
    except SystemExit as stop:
        return stop.code


def test_words_sound_pictures_and_video_are_answered_together(folder, media, capsys):
    files = "--audio", media / "a.wav", "--image", media / "p.png", "--video", media / "v.gif"
    assert omni(folder, "What is it?", *files) in (0, 1)
    assert omni(folder, "Is <image> in <video>, and what does <speech> ask?", *files) in (0, 1)
    assert omni(folder, *files) in (0, 1)  # asked by voice alone
    assert capsys.readouterr().err == ""


def wav_header(place, seconds: int, rate: int):
    """A wave of eight bits whose sound is a hole in the file."""
    size = seconds * rate
    head = (
        b"RIFF"
        + struct.pack("<I", 36 + size)
        + b"WAVEfmt "
        + struct.pack("<IHHIIHH", 16, 1, 1, rate, rate, 1, 8)
    )
    with place.open("wb") as file:
        file.write(head + b"data" + struct.pack("<I", size))
        file.truncate(44 + size)
    return place


def empty_video(place):
    with av.open(str(place), "w") as container:
        container.add_stream("mpeg4", rate=25)
    return place


def huge_png(place, width: int, height: int):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    place.write_bytes(
        b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    )
    return place


def spoilt(kind: str, place):
    """(option, file) of a fault."""
    if kind == "sound of 0 s":
        soundfile.write(place / "x.wav", np.zeros(0), 16000)
        return "--audio", place / "x.wav"
    if kind == "sound with NaN":
        soundfile.write(place / "x.wav", np.full(1600, np.nan, np.float32), 16000, subtype="FLOAT")
        return "--audio", place / "x.wav"
    if kind == "sound of 8 hours":
        return "--audio", wav_header(place / "x.wav", 8 * 3600, 1000)
    if kind == "sound at 5 Hz":
        return "--audio", wav_header(place / "x.wav", 8, 5)
    if kind == "no sound at all":
        (place / "x.wav").write_bytes(b"words")
        return "--audio", place / "x.wav"
    if kind == "picture of 20000 x 20000":
        return "--image", huge_png(place / "x.png", 20_000, 20_000)
    if kind == "truncated picture":
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90, 3), np.uint8)).save(
            place / "x.png"
        )
        data = (place / "x.png").read_bytes()
        (place / "x.png").write_bytes(data[: len(data) // 2])
        return "--image", place / "x.png"
    if kind == "no such picture":
        return "--image", place / "x.png"
    if kind == "video without frames":
        return "--video", empty_video(place / "x.avi")
    soundfile.write(place / "x.wav", np.zeros(800), 16000)
    return "--video", place / "x.wav"  # a video that is sound


SPOILT = {
    "sound of 0 s": "holds no sound",
    "sound with NaN": "NaN",
    "sound of 8 hours": "positions",
    "sound at 5 Hz": "5 is no sampling rate",
    "no sound at all": "not readable as audio",
    "picture of 20000 x 20000": "make it smaller",
    "truncated picture": "not readable as a picture",
    "no such picture": "no picture file",
    "video without frames": "x.avi",
    "video that is sound": "holds no pictures",
}


@pytest.mark.parametrize(("kind", "message"), SPOILT.items())
def test_a_file_that_cannot_be_used_is_one_line_and_exit_code_2(folder, tmp_path, capsys, kind, message):
    assert omni(folder, "What?", *spoilt(kind, tmp_path)) == 2
    told = capsys.readouterr()
    assert message in told.err and told.err.count("\n") == 1 and told.out == ""


def test_odd_pictures_and_short_videos_are_answered(folder, tmp_path, capsys):
    for mode in ("L", "CMYK", "1", "RGBA"):
        Image.new(mode, (40, 40)).save(tmp_path / f"{mode}.tif")
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    one = [Image.new("RGB", (40, 40), c) for c in ("red", "blue")]
    one[0].save(tmp_path / "moving.gif", save_all=True, append_images=one[1:], duration=100)
    one[0].save(tmp_path / "still.gif")
    for name in ("L.tif", "CMYK.tif", "1.tif", "RGBA.tif", "dot.png", "moving.gif"):
        assert omni(folder, "What?", "--image", tmp_path / name) in (0, 1), name
    assert omni(folder, "What?", "--video", tmp_path / "still.gif") in (0, 1)  # of one frame
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("text", "files", "message"),
    [
        ("<image> and <image>?", ["--image"], "2 <image> but 1 images are given"),
        ("<image>?", ["--image", "--image"], "1 <image> but 2 images are given"),
        ("what is <speech>?", [], "1 <speech> but 0 recordings are given"),
        ("<image>?", ["--image", "--video"], "0 <video> but 1 videos are given"),
        ("", [], "nothing to answer"),
        ("   ", [], "nothing to answer"),
    ],
)
def test_markers_and_files_must_match(folder, media, capsys, text, files, message):
    names = {"--image": "p.png", "--video": "v.gif"}
    given = [part for option in files for part in (option, media / names[option])]
    assert omni(folder, text, *given) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1


def test_a_question_longer_than_the_context_is_one_line(folder, capsys):
    assert omni(folder, "why " * 2000) == 2
    assert "the model has 2048" in capsys.readouterr().err
    assert omni(folder, "why?", "--max-new-tokens", 4000) == 2
    assert "the model has 2048" in capsys.readouterr().err


def test_memory_that_will_not_suffice_is_told_before_anything_is_computed(folder, media, capsys, monkeypatch):
    monkeypatch.setattr(limits, "free_memory", lambda device: 1000)
    assert omni(folder, "What?", "--image", media / "p.png") == 2
    told = capsys.readouterr().err
    assert "GiB are free" in told and told.count("\n") == 1


def test_a_folder_without_a_brain_or_with_other_weights_is_one_line(folder, tmp_path, capsys):
    assert omni(tmp_path, "hi") == 2
    assert "no trained brain" in capsys.readouterr().err
    for name in ("meta.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes()[: 40 if name != "meta.json" else None])
    assert omni(tmp_path, "hi") == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_part_from_a_package_that_is_another_file_is_one_line(folder, tmp_path, capsys, monkeypatch):
    (tmp_path / parts.SMOLLM2_FILE).write_bytes(b"other")
    monkeypatch.setattr(parts, "package_folder", lambda name: tmp_path)
    meta = json.loads((folder / "meta.json").read_text())
    meta["base"]["base"] = "nano"
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    assert omni(tmp_path, "hi") == 2
    told = capsys.readouterr().err
    assert "is not the known file; reinstall it" in told and told.count("\n") == 1


def test_a_missing_brain_tells_how_to_make_one():
    with pytest.raises(CheckpointError, match="train it with"):
        Brain.load("no-such-scale")


# ---- in Python ---------------------------------------------------------------------------------------------


def test_streamed_words_are_the_answer_and_every_run_gives_the_same(folder, media):
    brain = Brain.load(folder)
    asked = dict(text="What?", audio=[media / "a.wav"], images=[media / "p.png"], max_new_tokens=12)
    pieces, reply = list(brain.stream(**asked)), brain.ask(**asked)
    assert "".join(pieces).strip() == reply.text == str(reply)
    assert reply.tokens <= 12 and reply.rope_factor == 1 and set(reply.seconds) == {"read", "first", "answer"}


def test_a_conversation_keeps_the_media_of_all_turns(folder, media):
    talk = Brain.load(folder).conversation()
    first = talk.ask("What?", images=[media / "p.png"], max_new_tokens=3)
    second = talk.ask("And this?", audio=[media / "a.wav"], max_new_tokens=3)
    third = talk.ask("Which came first?", max_new_tokens=3)
    assert first.positions < second.positions < third.positions
    assert [m["role"] for m in talk.messages] == ["user", "assistant"] * 3


def test_a_turn_that_fails_is_not_kept(folder, media):
    talk = Brain.load(folder).conversation()
    talk.ask("What?", images=[media / "p.png"], max_new_tokens=2)
    with pytest.raises(LimitError):
        talk.ask("why " * 3000)
    assert len(talk.messages) == 2


def test_arrays_serve_as_well_as_files(folder, media):
    brain = Brain.load(folder)
    wave, rate = soundfile.read(media / "a.wav", dtype="float32")
    by_file = brain.ask(audio=[media / "a.wav"], max_new_tokens=6)
    by_array = brain.ask(audio=[(torch.from_numpy(wave), rate)], max_new_tokens=6)
    assert by_file.text == by_array.text


def test_one_file_instead_of_a_list_is_told():
    with pytest.raises(MediaError, match="images must be a list"):
        turn("What?", images="cat.png")


def test_a_cut_answer_is_not_complete(folder):
    brain = Brain.load(folder)
    brain.model.generation_config.eos_token_id = -1
    assert not brain.ask("hi", max_new_tokens=2).complete


def test_many_asked_together_get_the_answers_they_get_alone(folder, media):
    brain = Brain.load(folder, weights="")
    turns = [turn("What?", audio=[media / "a.wav"]), turn("hi"), turn("Which?", images=[media / "p.png"])]
    together = brain.ask_many(turns, max_new_tokens=8)
    alone = [brain.conversation()._stream(asked, AnswerSettings(max_new_tokens=8)) for asked in turns]
    assert together == ["".join(words).strip() for words in alone]
