"""A recording to speak with holds one person's speech, without an offset; everything else is refused in one line."""

import numpy as np
import pytest
import soundfile
import torch

from omnilib.audio import load_wave
from omnilib.errors import AudioError
from omnilib.paths import ROOT
from omnilib.reference import load_reference, speech_seconds

RATE = 16_000
VOICES = ROOT / "checkpoints/nano/voices"
WOMAN = ROOT / "tests/voices/woman.ogg"
FROZEN = ROOT / "data_prep/frozen/audio"


def time(seconds: float = 4.0) -> np.ndarray:
    return np.arange(round(seconds * RATE)) / RATE


def tone(frequency: float) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * frequency * time())


def noise(level: float = 0.1) -> np.ndarray:
    return np.random.default_rng(0).normal(0, level, len(time()))


NOT_SPEECH = {
    "white noise": noise(),
    "faint noise": noise(1e-3),
    "brown noise": np.cumsum(noise(1e-3)) * 0.5,
    "noise in bursts": noise() * (np.sin(2 * np.pi * 4 * time()) > 0),
    "tone": tone(440),
    "low tone": tone(100),
    "tone in bursts": tone(300) * (np.sin(2 * np.pi * 4 * time()) > 0),
    "dialling tone": tone(697) + tone(1209),
    "chord": (tone(262) + tone(330) + tone(392)) / 2,
    "buzz of a voice's pitch": 0.3 * ((120 * time()) % 1 - 0.5),
    "mains hum": tone(50) + tone(100),
    "melody": np.concatenate([tone(f)[: RATE // 2] for f in (262, 294, 330, 349, 392, 440, 494, 523)]),
    "clicks": (np.arange(len(time())) % 4000 < 20) * 0.5,
}


@pytest.mark.parametrize("name", NOT_SPEECH)
def test_a_recording_without_speech_is_refused(tmp_path, name):
    soundfile.write(tmp_path / "a.wav", NOT_SPEECH[name], RATE)
    with pytest.raises(
        AudioError, match="nobody speaks in .*: give 3 to 30 s of one person's speech"
    ) as error:
        load_reference(tmp_path / "a.wav", RATE, 30.0)
    assert "\n" not in str(error.value)


def test_no_voice_is_refused_however_it_was_made():
    """Every committed voice and every 15th of the frozen recordings."""
    files = sorted(p for p in VOICES.iterdir() if p.suffix != ".json") + sorted(FROZEN.iterdir())[::15]
    heard = {path.name: speech_seconds(load_reference(path, RATE, 30.0)) for path in files}
    assert len(heard) > 40 and min(heard.values()) > 0.5


@pytest.mark.parametrize("gain", [0.01, 0.1, 1.5])
def test_quiet_and_loud_voices_pass(tmp_path, gain):
    wave = load_wave(WOMAN, RATE).numpy()
    soundfile.write(tmp_path / "a.wav", wave * gain, RATE)
    assert len(load_reference(tmp_path / "a.wav", RATE, 30.0)) == len(wave)


def test_an_offset_is_removed_and_nothing_else(tmp_path):
    wave = load_wave(WOMAN, RATE)
    assert torch.equal(load_reference(WOMAN, RATE, 30.0), wave), "an inaudible one stays"
    wave = wave - wave.mean()
    soundfile.write(tmp_path / "a.wav", wave.numpy() - 0.035, RATE, subtype="FLOAT")
    torch.testing.assert_close(load_reference(tmp_path / "a.wav", RATE, 30.0), wave, atol=1e-5, rtol=0)
    assert abs(load_wave(tmp_path / "a.wav", RATE).mean().item() + 0.035) < 1e-4, (
        "judges hear a file as it is"
    )


def test_a_clipped_recording_is_refused(tmp_path):
    wave = load_wave(WOMAN, RATE).numpy()
    soundfile.write(tmp_path / "a.wav", (wave * 1e4).clip(-1, 1), RATE)
    with pytest.raises(AudioError, match="is clipped, .*at full scale: record it again"):
        load_reference(tmp_path / "a.wav", RATE, 30.0)


def test_an_hour_is_refused_before_it_is_decoded(tmp_path):
    with soundfile.SoundFile(tmp_path / "a.flac", "w", 8_000, 1) as file:
        file.write(np.zeros(8_000 * 3600, np.int16))
    with pytest.raises(AudioError, match="lasts 3600 s: cut out at most 30 s"):
        load_reference(tmp_path / "a.flac", RATE, 30.0)


def test_the_check_leaves_the_number_of_threads_alone():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        speech_seconds(torch.zeros(RATE) + 0.1 * torch.randn(RATE))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
