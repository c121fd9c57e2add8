"""Naturalness: DNSMOS through the package's own network."""

import pytest
import torch

from omnilib.eval import frozen, naturalness

pytest.importorskip("speechmos")


@pytest.fixture(scope="module")
def ears():
    return naturalness.Naturalness()


def test_noise_lowers_the_score_of_a_recording_and_silence_has_none(ears):
    line = frozen.Frozen().of("human")[0]
    wave = line.wave(16_000)
    clean = ears.score(wave, 16_000)
    noisy = ears.score(
        wave + 0.05 * torch.randn(wave.shape, generator=torch.Generator().manual_seed(0)), 16_000
    )
    assert 1 < noisy < clean - 0.3 < 5
    assert ears.score(torch.zeros(16_000), 16_000) == 0.0 == ears.score(torch.zeros(0), 16_000)


def test_a_long_wave_is_heard_in_windows(ears):
    wave = 0.1 * torch.sin(torch.arange(16_000 * 14) * 0.05)
    first, second = (ears.score(wave[a : a + naturalness.WINDOW], 16_000) for a in (0, naturalness.HOP))
    assert ears.score(wave, 16_000) == pytest.approx((first + second) / 2, abs=1e-4)


def test_figures_are_means_by_language_and_system_over_test_sentences():
    row = {"language": "en", "system": "tts", "role": "eval"}
    rows = [row | {"dnsmos": 3.0}, row | {"dnsmos": 4.0}, row | {"role": "open", "dnsmos": 1.0}, row]
    assert naturalness.figures(rows)["dnsmos_en_tts"]["value"] == 3.5
    assert naturalness.figures([row]) == {}
