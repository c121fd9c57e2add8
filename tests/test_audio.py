"""Files, resampling and spectra: parity with the reference, batches, and every bad recording a user may bring."""

import numpy as np
import pytest
import soundfile
import torch

from omnilib import audio
from omnilib.errors import AudioError


def close(got: torch.Tensor, want: torch.Tensor, tolerance: float) -> None:
    assert got.shape == want.shape
    torch.testing.assert_close(got, want, atol=tolerance, rtol=0)


def test_spectra_and_resampling_match_the_reference(golden):
    config, t = golden("mel_24k")
    tolerance = config["tolerance"]
    bank = audio.fbank_80(t["in.wave_16k"][0])
    resampled = audio.resample(t["in.wave_16k"], 16_000, 24_000)
    ours = {
        "mel_24k": (audio.mel_80(t["in.wave_24k"]), "mel_24k abs"),
        "whisper_logmel_128": (audio.log_mel_128(t["in.wave_16k"]), "whisper abs"),
        "kaldi_fbank_80": (bank, "kaldi abs"),
        "kaldi_fbank_80_mean_subtracted": (bank - bank.mean(0, keepdim=True), "kaldi abs"),
        "resampled_16k_to_24k": (resampled, "resample abs"),
        "mel_24k_of_resampled": (audio.mel_80(resampled), "mel_24k abs"),
    }
    for name, (spectrum, limit) in ours.items():
        if t.has(f"out.{name}"):
            close(spectrum, t[f"out.{name}"], tolerance[limit])


def test_filter_banks_match_the_reference_in_any_order_of_use(golden):
    config, t = golden("mel_24k")
    for rate, n_fft, bands, key in (
        (16_000, 400, 128, "out.whisper_mel_filters_128"),
        (24_000, 1920, 80, "out.mel_basis_24k"),
    ) * 2:
        if t.has(key):
            close(
                audio.slaney_filters(rate, n_fft, bands, 0.0, 8000.0),
                t[key],
                config["tolerance"]["filters abs"],
            )


@pytest.mark.parametrize("spectrum,rate", [(audio.log_mel_128, 16_000), (audio.mel_80, 24_000)])
def test_padded_batch_equals_one_by_one(spectrum, rate):
    waves = [
        torch.randn(n, generator=torch.Generator().manual_seed(n)) * 0.1
        for n in (rate, rate // 2 + 77, rate // 3)
    ]
    lengths = torch.tensor([len(w) for w in waves])
    batch = spectrum(torch.nn.utils.rnn.pad_sequence(waves, batch_first=True), lengths)
    for row, wave in zip(batch, waves, strict=True):
        alone = spectrum(wave)
        torch.testing.assert_close(row[:, : alone.shape[1]], alone, atol=1e-4, rtol=0)


def test_a_shorter_window_is_sharper_in_time_and_hardly_changes_levels():
    tone = torch.sin(2 * torch.pi * 1000 * torch.arange(24_000) / 24_000)
    long, short = audio.mel_80(tone), audio.mel_80(tone, window=1024)
    assert (short.amax(0) - long.amax(0))[3:-3].abs().max() < 0.5  # its peak is as high, but wider
    click = torch.zeros(24_000)
    click[12_000] = 1.0
    heard = [
        int((audio.mel_80(click, window=window).amax(0) > -9).sum()) for window in (audio.MEL_WINDOW, 1024)
    ]
    assert heard == [4, 2]  # frames


def test_filter_bank_of_a_batch_equals_one_by_one():
    waves = torch.randn(2, 8000, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(audio.fbank_80(waves)[1], audio.fbank_80(waves[1]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_resampled_tone_keeps_its_pitch_and_length(rate):
    tone = torch.sin(2 * torch.pi * 440 * torch.arange(rate) / rate)
    got = audio.resample(tone, rate, 16_000)
    want = torch.sin(2 * torch.pi * 440 * torch.arange(16_000) / 16_000)
    assert got.shape == want.shape
    assert (got - want)[200:-200].abs().max() < 0.02


@pytest.mark.parametrize("rate,channels", [(8_000, 1), (48_000, 1), (44_100, 2)])
def test_any_rate_and_stereo_come_back_as_mono_16k(tmp_path, rate, channels):
    tone = 0.5 * np.sin(2 * np.pi * 300 * np.arange(rate) / rate)
    soundfile.write(tmp_path / "a.wav", np.stack([tone] * channels, 1), rate)
    wave = audio.load_wave(tmp_path / "a.wav", 16_000)
    assert wave.shape == (16_000,) and wave.dtype == torch.float32
    assert abs(wave.square().mean().sqrt().item() - 0.5 / 2**0.5) < 0.01


def test_save_and_load_round_trip_leaves_no_temporary_file(tmp_path):
    wave = torch.linspace(-0.9, 0.9, 2400)
    audio.save_wave(tmp_path / "sub" / "a.wav", wave, 24_000)
    torch.testing.assert_close(audio.load_wave(tmp_path / "sub" / "a.wav", 24_000), wave, atol=1e-4, rtol=0)
    assert [p.name for p in (tmp_path / "sub").iterdir()] == ["a.wav"]


def make_bad(kind: str, path) -> None:
    if kind == "empty file":
        path.write_bytes(b"")
    elif kind == "no samples":
        soundfile.write(path, np.zeros(0, np.float32), 16_000)
    elif kind == "NaN":
        soundfile.write(path, np.array([0.1, np.nan, 0.2], np.float32), 16_000, subtype="FLOAT")
    elif kind == "not audio":
        path.write_text("this is a shopping list, not a recording\n" * 20)


@pytest.mark.parametrize(
    "kind,says",
    [
        ("missing", "no audio file"),
        ("empty file", "not readable"),
        ("no samples", "no sound"),
        ("NaN", "NaN"),
        ("not audio", "not readable"),
    ],
)
def test_bad_recording_gives_one_clear_line(tmp_path, kind, says):
    path = tmp_path / "bad.wav"
    make_bad(kind, path)
    with pytest.raises(AudioError, match=says) as error:
        audio.load_wave(path, 16_000)
    assert "\n" not in str(error.value)


def test_unwritable_place_and_bad_waves_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(AudioError, match="cannot write"):
        audio.save_wave(tmp_path / "file" / "a.wav", torch.zeros(10), 24_000)
    with pytest.raises(AudioError, match="empty"):
        audio.save_wave(tmp_path / "a.wav", torch.zeros(0), 24_000)
    with pytest.raises(AudioError, match="NaN"):
        audio.save_wave(tmp_path / "a.wav", torch.full((10,), float("nan")), 24_000)


def test_windows_that_leave_gaps_or_exceed_a_frame_are_refused():
    for window in (0, 480, 959, 1921):
        with pytest.raises(AudioError, match="960 to 1920"):
            audio.mel_80(torch.zeros(4000), window=window)


def test_too_short_audio_is_an_error_not_a_crash():
    for spectrum in (audio.log_mel_128, audio.mel_80, audio.fbank_80):
        with pytest.raises(AudioError, match="too short"):
            spectrum(torch.zeros(100))


def test_spectra_first_used_in_inference_mode_still_carry_gradients_later():
    for cache in (audio.slaney_filters, audio.hann, audio.povey, audio.kaldi_filters, audio.sinc_filters):
        cache.cache_clear()
    wave = torch.randn(4000)
    for function in (
        audio.log_mel_128,
        audio.mel_80,
        audio.fbank_80,
        lambda w: audio.resample(w, 24_000, 16_000),
    ):
        with torch.inference_mode():
            function(wave)
        leaf = wave.clone().requires_grad_()
        function(leaf).sum().backward()
        assert leaf.grad.abs().sum() > 0


def test_the_filter_bank_is_the_same_where_gradients_pass():
    wave = torch.randn(2, 4000, generator=torch.Generator().manual_seed(0)) * 0.1
    bank = audio.fbank_80(wave.clone().requires_grad_())
    torch.testing.assert_close(audio.fbank_80(wave), bank, atol=1e-4, rtol=1e-4)
    bank.sum().backward()
