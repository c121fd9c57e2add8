"""Calibration: the map is found, shrinks to nothing, and both ways of speaking apply it."""

import math

import pytest
import torch

from omnilib.errors import UserError
from omnilib.voice.calibration import LEAST, fit
from omnilib.voice.codec import Codec, Voice
from tests.voice.test_codec import random_tokens, speechlike, tiny_codec


def mels(frames: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    """What a flow made, and a recording that is louder, duller and has its bands mixed: (F, 80) each."""
    draw = torch.Generator().manual_seed(0)
    made = torch.randn(frames, 80, generator=draw).cumsum(1) * 0.2 - 4
    mix = torch.eye(80) + 0.05 * torch.randn(80, 80, generator=draw)
    return made, made @ mix + torch.linspace(0.5, -0.5, 80)


def test_a_straight_map_is_found():
    made, real = mels()
    correction = fit(made, real, 1e-6)
    torch.testing.assert_close(correction(made.T).T, real, atol=1e-2, rtol=0)


def test_a_strong_ridge_moves_the_mean_alone():
    made, real = mels()
    correction = fit(made, real, 1e9)
    moved = (correction(made.T) - made.T).T
    torch.testing.assert_close(moved, moved[:1].expand_as(moved), atol=1e-3, rtol=0)
    assert moved.abs().max() > 0.1


def test_a_perfect_flow_is_left_alone():
    made, _ = mels()
    torch.testing.assert_close(fit(made, made, 10.0)(made.T), made.T, atol=1e-4, rtol=0)


def test_too_little_speech_corrects_nothing():
    made, real = mels(LEAST - 1)
    assert fit(made, real, 10.0) is None
    quiet = torch.full((200, 80), -11.5)
    assert fit(torch.cat([made, quiet]), torch.cat([real, quiet]), 10.0) is None


def said(codec: Codec, tokens: torch.Tensor, voice: Voice, streaming: bool) -> torch.Tensor:
    """The mel that reaches the vocoder (80, F)."""
    if streaming:
        return codec.warm(voice).push(tokens, last=True)[0]
    return torch.cat([mel for mel, _ in codec.mel_blocks(tokens, voice)], -1)[0]


@pytest.mark.parametrize("streaming", [False, True])
def test_speech_in_a_voice_has_the_colour_of_the_recording(streaming):
    plain, calibrated = tiny_codec(), tiny_codec(calibrate=10.0)
    recording, tokens = speechlike(2.0, 16_000), random_tokens(60)
    before, after = (codec.voice(recording, 16_000) for codec in (plain, calibrated))
    assert before.correction is None and torch.equal(before.mel, after.mel)
    one, two = said(plain, tokens, before, streaming), said(calibrated, tokens, after, streaming)
    colour = before.mel.mean(0)
    assert one.shape == two.shape == (80, 120)
    assert (two.mean(1) - colour).abs().mean() < 0.5 * (one.mean(1) - colour).abs().mean()


def test_a_calibrated_stream_equals_the_offline_wave():
    codec = tiny_codec(calibrate=10.0)
    voice, tokens = codec.voice(speechlike(2.0, 16_000), 16_000), random_tokens(140)
    pieces = list(codec.stream(tokens.split(7), voice))
    torch.testing.assert_close(torch.cat(pieces), codec.decode(tokens, voice, True), atol=1e-3, rtol=0)


@pytest.mark.parametrize("strength", [-1.0, math.inf, math.nan])
def test_a_strength_below_nothing_is_refused(strength):
    with pytest.raises(UserError, match="calibrate is .* give 0"):
        tiny_codec(calibrate=strength)
