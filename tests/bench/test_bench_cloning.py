"""Preparing a voice is timed with and without calibration, from one speaker that no model has met."""

import pytest

from omnilib import checkpoints, frozen
from omnilib.audio import TOKENIZER_RATE
from omnilib.bench import cloning
from omnilib.errors import DataError
from omnilib.voice.codec import Codec


def test_both_ways_of_each_length_are_timed_in_turns(monkeypatch):
    codec, made = Codec.load(checkpoints.folder("nano", "tokenizer", "speaker", "flow", "hift")), []
    prepare, settings = codec.voice, codec.settings
    monkeypatch.setattr(
        codec, "voice", lambda wave, rate: made.append((len(wave), prepare(wave, rate).correction))
    )
    found = cloning.measure(codec, rounds=2, lengths=(2, 3))
    assert codec.settings == settings, "what the headline stands for is told from them"
    assert set(found) == {"2s_plain", "2s_calibrated", "3s_plain", "3s_calibrated"}
    for entry in found.values():
        low, high = entry["ci95"]
        assert 0 < low <= entry["value"] <= high and entry["n"] == 2
    turn = [(seconds * TOKENIZER_RATE, fitted) for seconds in (2, 3) for fitted in (False, True)]
    assert [(length, correction is not None) for length, correction in made] == 3 * turn  # the first warms up


def test_reference_is_speech_of_a_held_out_speaker():
    wave = cloning.reference(10)
    assert len(wave) == 10 * TOKENIZER_RATE and wave.abs().max() > 0.05
    held_out = {r["speaker"] for r in frozen.recordings("eval")}
    assert not held_out & {r["speaker"] for r in frozen.recordings("train")}


def test_more_speech_than_there_is_gets_one_line():
    with pytest.raises(DataError, match=r"no speaker of .* has 10000 s.*git checkout"):
        cloning.reference(10_000)
