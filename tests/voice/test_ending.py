"""The end of speech: silence is told from a cut word, whatever the loudness or the noise behind it."""

import pytest
import torch

from omnilib.voice.ending import FRAME, Levels, ends_loud


def speech(seconds: float, gain: float = 0.1) -> torch.Tensor:
    """Syllables: a tone that swells four times a second."""
    t = torch.arange(round(24_000 * seconds)) / 24_000
    return gain * torch.sin(2 * torch.pi * 200 * t) * torch.sin(2 * torch.pi * 2 * t).abs()


def loud(wave: torch.Tensor, piece: int | None = None) -> bool:
    levels = Levels()
    for part in wave.split(piece or len(wave)):
        levels.push(part)
    return ends_loud(levels.decibels)


@pytest.mark.parametrize("gain", [0.003, 0.1, 0.9])
@pytest.mark.parametrize("noise", [0.0, 0.002])
def test_an_end_in_silence_is_good_and_a_cut_word_is_not(gain, noise):
    torch.manual_seed(0)
    whole = torch.cat([speech(2.0, gain), torch.zeros(4800)])
    cut = speech(2.125, gain)  # ends at the top of a syllable
    assert not loud(whole + gain * 10 * noise * torch.randn(len(whole)))
    assert loud(cut + gain * 10 * noise * torch.randn(len(cut)))


def test_babble_after_a_pause_is_loud():
    assert loud(torch.cat([speech(2.0), torch.zeros(9600), speech(0.125)]))


def test_a_recording_with_steady_noise_is_not_blamed_for_it():
    torch.manual_seed(0)
    wave = torch.cat([speech(2.0), torch.zeros(4800)])
    assert not loud(wave + 0.02 * torch.randn(len(wave)))


@pytest.mark.parametrize("piece", [1, 333, FRAME, 5000])
def test_pieces_of_any_size_give_the_same_levels(piece):
    wave = speech(0.5)
    whole, parts = Levels(), Levels()
    whole.push(wave)
    for part in wave.split(piece):
        parts.push(part)
    assert parts.decibels == pytest.approx(whole.decibels) and len(whole.decibels) == len(wave) // FRAME


def test_nothing_is_said_about_a_moment_of_sound():
    assert not loud(speech(0.125))
    assert not ends_loud([])
