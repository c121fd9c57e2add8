"""Whatever file a user brings: it is read right, or refused in one line, and never with more memory than its sound needs."""

import io
import struct
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch

from omnilib import audio
from omnilib.errors import AudioError
from omnilib.paths import ROOT
from omnilib.recording import BadRecording, blocks, read, to_mono

RATE = 24_000
FORMATS = {
    "wav": {},
    "flac": {},
    "aiff": {},
    "au": {"format": "AU"},
    "w64": {"format": "W64"},
    "ogg": {"format": "OGG", "subtype": "VORBIS"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
    "mp3": {"format": "MP3"},
}


@pytest.fixture(scope="module")
def voice() -> np.ndarray:
    """Six seconds of speech at 24 kHz."""
    wave, rate = soundfile.read(ROOT / "tests/voices/woman.ogg", dtype="float32")
    assert rate == RATE
    return np.tile(wave, 2)[: 6 * RATE]


def wave_file(
    samples: np.ndarray,
    rate: int = RATE,
    size: int | None = None,
    riff: int | None = None,
    subtype: str = "PCM_16",
) -> bytes:
    """Bytes of a WAV whose header claims a data chunk of `size` bytes."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV", subtype=subtype)
    data = bytearray(buffer.getvalue())
    place = data.index(b"data") + 4
    data[place : place + 4] = data[place : place + 4] if size is None else struct.pack("<I", size)
    data[4:8] = data[4:8] if riff is None else struct.pack("<I", riff)
    return bytes(data)


# ---- length -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [1, 7, 1_000_000])
def test_a_rate_that_no_recording_has_is_refused(tmp_path, voice, rate):
    (tmp_path / "a.wav").write_bytes(wave_file(voice, rate))
    with pytest.raises(AudioError, match=f"says it has {rate:,} samples a second") as error:
        audio.load_wave(tmp_path / "a.wav", 16_000)
    assert "\n" not in str(error.value)


def test_a_file_longer_than_allowed_is_refused_by_its_header(tmp_path, voice, monkeypatch):
    (tmp_path / "a.wav").write_bytes(wave_file(voice))
    monkeypatch.setattr(
        soundfile.SoundFile, "read", lambda *_, **__: pytest.fail("decoded before it was measured")
    )
    with pytest.raises(BadRecording, match="lasts 6 s: cut out at most 5 s"):
        read(tmp_path / "a.wav", longest=5.0)


def test_a_flac_that_does_not_say_its_length_is_refused_in_one_line(tmp_path, voice):
    data = bytearray(encoded(voice, "flac"))
    data[21] &= 0xF0  # STREAMINFO, total samples: unknown
    data[22:26] = bytes(4)
    (tmp_path / "a.flac").write_bytes(data)
    with pytest.raises(BadRecording, match="does not say how long it is: convert it"):
        read(tmp_path / "a.flac", longest=5.0)


def encoded(samples: np.ndarray, kind: str, rate: int = RATE) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, **({"format": kind.upper()} | FORMATS[kind]))
    return buffer.getvalue()


def test_hostile_headers_need_little_memory(tmp_path):
    samples = np.random.default_rng(0).normal(0, 0.1, 90_000)
    data = bytearray(encoded(samples, "flac"))
    data[22:26] = struct.pack(">I", 8 * 3600 * RATE)  # STREAMINFO, total samples: 8 hours
    (tmp_path / "long.flac").write_bytes(data)
    (tmp_path / "large.wav").write_bytes(wave_file(samples, size=4_000_000_000))
    (tmp_path / "odd.wav").write_bytes(wave_file(samples, 44_101))
    code = (
        "import resource, sys; from omnilib.audio import load_wave; from omnilib.errors import AudioError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for path in sys.argv[1:]:\n"
        "    try: print(len(load_wave(path, 16000)))\n"
        "    except AudioError as error: print(error)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)"
    )
    files = [tmp_path / name for name in ("long.flac", "large.wav", "odd.wav")]
    run = subprocess.run([sys.executable, "-c", code, *files], capture_output=True, text=True, check=True)
    long, large, odd, grown = run.stdout.splitlines()
    assert "lasts 28800 s: cut out" in long and (large, odd) == ("60000", "32653")
    assert int(grown) < 100, "MB"


def test_rates_with_hardly_a_common_divisor_resample_right():
    for rate in (44_101, 22_051):
        tone = torch.sin(2 * torch.pi * 440 * torch.arange(rate) / rate)
        got = audio.resample(tone, rate, 16_000)
        want = torch.sin(2 * torch.pi * 440 * torch.arange(16_000) / 16_000)
        assert got.shape == want.shape and (got - want)[200:-200].abs().max() < 0.02
    batch = audio.resample(torch.stack([tone, -tone]), rate, 16_000)
    torch.testing.assert_close(batch[1], -batch[0])


# ---- the end of the file ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.5, 0.9])
@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_cut_short_is_reported_and_a_whole_one_is_not(tmp_path, voice, kind, share):
    data = encoded(voice, kind)
    path = tmp_path / f"a.{kind}"
    path.write_bytes(data)
    assert abs(len(audio.load_wave(path, RATE)) - len(voice)) < 0.1 * RATE
    path.write_bytes(data[: round(len(data) * share)])
    with pytest.raises(AudioError, match="cut short") as error:
        audio.load_wave(path, RATE)
    assert error.value.reason in ("truncated", "damaged") and "\n" not in str(error.value)


def test_a_part_of_a_file_cut_short_that_is_still_there_can_be_read(tmp_path, voice):
    data = wave_file(voice)
    (tmp_path / "a.wav").write_bytes(data[: len(data) // 2])
    got = np.concatenate([block for block, _ in blocks(tmp_path / "a.wav", start=1.0, duration=1.5)])
    np.testing.assert_allclose(got, voice[RATE : RATE * 5 // 2], atol=1e-4)
    with pytest.raises(BadRecording, match="cut short"):
        list(blocks(tmp_path / "a.wav", start=2.0, duration=2.0))


@pytest.mark.parametrize("size", [0, 0x7FFFFFFF, 0x7FFFF000, 0xFFFFFFFF, 0xFFFFFFFF - 36, 4_000_000_000])
@pytest.mark.parametrize("riff", [None, 0, 0xFFFFFFFF])
def test_a_wave_that_was_piped_is_read_to_its_end(tmp_path, voice, size, riff):
    (tmp_path / "a.wav").write_bytes(wave_file(voice, size=size, riff=riff))
    got = audio.load_wave(tmp_path / "a.wav", RATE).numpy()
    np.testing.assert_allclose(got, voice, atol=1e-4)


def test_no_samples_are_no_sound_also_with_a_chunk_behind_them(tmp_path):
    for tail in (b"", b"LIST" + struct.pack("<I", 4) + b"INFO"):
        (tmp_path / "a.wav").write_bytes(wave_file(np.zeros(0)) + tail)
        with pytest.raises(AudioError, match="no sound"):
            audio.load_wave(tmp_path / "a.wav", RATE)


# ---- samples ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pair", "unequal pair", "5.1"])
def test_channels_that_cancel_each_other_give_one_of_them(tmp_path, voice, kind):
    silent = np.zeros_like(voice)
    channels = {
        "pair": [voice, -voice],
        "unequal pair": [voice, -0.8 * voice],
        "5.1": [voice, -voice, silent, silent, silent, silent],
    }[kind]
    soundfile.write(tmp_path / "a.wav", np.stack(channels, 1), RATE)
    np.testing.assert_allclose(audio.load_wave(tmp_path / "a.wav", RATE).numpy(), voice, atol=1e-4)


def test_all_other_channels_are_averaged(voice):
    other = np.random.default_rng(0).normal(0, 0.05, len(voice)).astype(np.float32)
    for channels in (
        [voice, voice],
        [voice, other],
        [voice, 0 * voice],
        [voice, *[0 * voice] * 5],
        [0 * voice, 0 * voice],
    ):
        block = np.stack(channels, 1)
        np.testing.assert_array_equal(to_mono(block), block.mean(axis=1))


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
@pytest.mark.parametrize("full", [2**15, 2**23, 2**31])
def test_float_files_in_integer_units_come_back_at_their_level(tmp_path, voice, subtype, full):
    soundfile.write(tmp_path / "a.wav", voice.astype(np.float64) * full, RATE, subtype=subtype)
    np.testing.assert_allclose(audio.load_wave(tmp_path / "a.wav", RATE).numpy(), voice, atol=1e-4)


def test_float_files_above_full_scale_are_left_and_impossible_ones_refused(tmp_path, voice):
    loud = voice / np.abs(voice).max() * 3.0
    soundfile.write(tmp_path / "a.wav", loud, RATE, subtype="FLOAT")
    np.testing.assert_allclose(audio.load_wave(tmp_path / "a.wav", RATE).numpy(), loud, atol=1e-6)
    soundfile.write(tmp_path / "a.wav", voice * 1e20, RATE, subtype="FLOAT")
    with pytest.raises(AudioError, match="export it again"):
        audio.load_wave(tmp_path / "a.wav", RATE)


@pytest.mark.parametrize("place", [0, 100_000])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_wherever_they_stand(tmp_path, voice, value, place):
    soundfile.write(
        tmp_path / "a.wav", np.where(np.arange(len(voice)) == place, value, voice), RATE, subtype="FLOAT"
    )
    with pytest.raises(AudioError, match="NaN or infinite"):
        audio.load_wave(tmp_path / "a.wav", RATE)


@pytest.mark.parametrize(
    "subtype", ["PCM_U8", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW", "MS_ADPCM"]
)
@pytest.mark.parametrize("form", ["WAV", "WAVEX"])
def test_sample_formats_give_the_same_sound(tmp_path, voice, subtype, form):
    if not soundfile.check_format(form, subtype):
        pytest.skip(f"{form} does not hold {subtype}")
    soundfile.write(tmp_path / "a.wav", voice, RATE, subtype=subtype, format=form)
    got = audio.load_wave(tmp_path / "a.wav", RATE).numpy()[: len(voice)]
    assert np.corrcoef(got, voice)[0, 1] > 0.98


def test_what_needs_another_reader_is_one_line(tmp_path):
    (tmp_path / "a.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(2000))
    with pytest.raises(AudioError, match="not readable as audio .*give a wav, flac, ogg or mp3 file"):
        audio.load_wave(tmp_path / "a.m4a", RATE)
    with pytest.raises(AudioError, match="no audio file"):
        audio.load_wave(tmp_path, RATE)
