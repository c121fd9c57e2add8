"""Pitch in the flow: measured, drawn into the first mel, learnt from a recording, streamed."""

import math

import pytest
import torch

from omnilib.audio import mel_80
from omnilib.voice import pitch as pitches
from omnilib.voice.codec import Voice
from omnilib.voice.flow import EncoderConfig, EstimatorConfig, Flow, FlowConfig
from omnilib.voice.flow_batch import chunks

WINDOW = 1024


def overtones(f0: float, seconds: float = 0.5) -> torch.Tensor:
    """Equal overtones up to 8 kHz in sines of random phase: (T,)."""
    t = torch.arange(int(seconds * 24_000)) / 24_000
    order = torch.arange(1, int(8000 / f0) + 1)[:, None]
    phase = torch.rand(len(order), 1, generator=torch.Generator().manual_seed(0))
    return 0.02 * torch.sin(2 * math.pi * (f0 * order * t + phase)).sum(0)


def a_flow() -> Flow:
    torch.manual_seed(0)
    config = FlowConfig(
        vocab=40,
        pitch=True,
        speaker_prior=True,
        prior_weight=1.0,
        mel_window=WINDOW,
        encoder=EncoderConfig(width=16, heads=2, linear_units=32, blocks=1, up_blocks=1, chunk=5, dropout=0),
        estimator=EstimatorConfig(channels=[16], heads=2, head_dim=8, blocks=1, mid_blocks=1, chunk=10),
    )
    flow = Flow(config).eval()
    torch.nn.init.normal_(flow.decoder.estimator.final_proj.weight, std=0.1)
    return flow


def a_voice(number: int, prompt: int, level: float = 0.0) -> Voice:
    draw = torch.Generator().manual_seed(number)
    tokens = torch.randint(40, (prompt,), generator=draw)
    return Voice(tokens, torch.randn(2 * prompt, 80, generator=draw), torch.randn(192, generator=draw), level)


@pytest.mark.parametrize("f0", [80.0, 123.0, 210.0, 350.0])
def test_the_ripple_is_that_of_overtones_of_this_pitch(f0):
    mel = mel_80(overtones(f0), window=WINDOW)[:, 5:-5].mean(1)  # (80,)
    slow = torch.nn.functional.avg_pool1d(torch.nn.functional.pad(mel[None], (2, 2), mode="replicate"), 5, 1)
    found = (mel - slow[0])[:30]
    likeness = {
        other: torch.corrcoef(torch.stack([found, pitches.ripple(torch.tensor([[other]]), WINDOW)[0, 0, :30]]))[0, 1]
        for other in (f0, 1.1 * f0, f0 / 1.1)
    }  # fmt: skip
    assert likeness[f0] > 0.85
    assert likeness[f0] > max(likeness[1.1 * f0], likeness[f0 / 1.1]) + 0.2


def test_unvoiced_frames_have_no_ripple():
    ripple = pitches.ripple(torch.tensor([[0.0, 200.0]]), WINDOW)
    assert not ripple[0, 0].any() and ripple[0, 1].abs().max() > 0.5


def test_a_level_is_the_median_of_the_voiced_frames():
    pitch = torch.zeros(3, 40)
    pitch[0, :21] = torch.linspace(100, 120, 21)
    pitch[1, :5] = 200.0  # too few to tell
    assert pitches.level_of(pitch).tolist() == [110.0, 0.0, 0.0]


def test_an_unknown_level_is_guessed_from_the_speaker():
    flow, speaker = a_flow(), torch.randn(2, 192, generator=torch.Generator().manual_seed(0))
    guess = flow.level(None, speaker)
    assert ((guess >= pitches.LOW) & (guess <= pitches.HIGH)).all()
    assert flow.level(torch.tensor([0.0, 140.0]), speaker).tolist() == [guess[0].item(), 140.0]


def test_a_published_flow_has_no_pitch():
    flow = Flow(
        FlowConfig(
            vocab=40, encoder=EncoderConfig(width=16, heads=2), estimator=EstimatorConfig(channels=[16])
        )
    )
    assert not any("pitch" in name for name in flow.state_dict())


def test_the_first_mel_has_the_overtones_of_the_level():
    flow = a_flow()
    torch.nn.init.zeros_(flow.pitch.contour.weight)
    flow.pitch.contour.bias.data = torch.tensor([0.0, 1.0])  # always voiced, at the level
    tokens, speaker = torch.randint(40, (1, 12)), torch.randn(1, 192)
    with torch.inference_mode():
        level = torch.tensor([130.0])
        hidden = flow.hidden(tokens, speaker, level=level)
        added = flow.encode(tokens, speaker, level=level) - flow.encoder_proj(hidden)
    torch.testing.assert_close(added, 0.3 * pitches.ripple(level[:, None], WINDOW).expand_as(added))


@pytest.mark.parametrize("prompt", [0, 3, 10])
def test_a_stream_equals_one_streaming_pass(prompt):
    flow, voice = a_flow(), a_voice(prompt, prompt, 150.0)
    given = voice.tokens[None], voice.mel[None], voice.speaker[None]
    tokens = torch.randint(40, (1, 33), generator=torch.Generator().manual_seed(9))
    whole = flow.inference(tokens, *given, streaming=True, n_timesteps=3, level=voice.levels)
    stream = flow.stream(*given, n_timesteps=3, level=voice.levels)
    pieces = [stream.push(piece) for piece in tokens.split(4, 1)] + [stream.push(tokens[:, :0], last=True)]
    torch.testing.assert_close(torch.cat(pieces, 2), whole, atol=1e-5, rtol=0)
    other = flow.inference(tokens, *given, streaming=True, n_timesteps=3, level=2 * voice.levels)
    assert (other - whole).abs().max() > 0.01, "the level does not matter"


def test_streams_of_different_ages_and_levels_have_their_own_mel():
    flow, alone, many = a_flow(), [], []
    for number, level in enumerate((0.0, 120.0, 240.0)):
        voice = a_voice(number, 13 + 6 * number, level)
        given = voice.tokens[None], voice.mel[None], voice.speaker[None], 3, voice.levels
        alone.append(flow.stream(*given))
        many.append(flow.stream(*given))
    tokens = torch.randint(40, (3, 20), generator=torch.Generator().manual_seed(1))
    for stream, row in zip(many, tokens, strict=True):
        stream.pending = torch.cat([stream.pending, row[None]], 1)
    together = chunks(many)
    for stream, row, mel in zip(alone, tokens, together, strict=True):
        torch.testing.assert_close(mel, stream.push(row[None])[..., : mel.shape[-1]], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("prior_only", [True, False])
def test_a_flow_learns_to_read_the_pitch(prior_only):
    flow = a_flow().train()
    tokens = torch.arange(40)[None].repeat(2, 1) % 8
    heard = torch.tensor([[110.0], [220.0]]) * 2 ** (tokens.repeat_interleave(2, 1) / 16)
    heard[:, -16:] = 0.0  # silence
    mel = 2.0 * pitches.ripple(heard, WINDOW).transpose(1, 2) - 4
    speaker = torch.randn(2, 192, generator=torch.Generator().manual_seed(0))
    optimizer, sizes = torch.optim.AdamW(flow.parameters(), lr=5e-3), torch.tensor([40, 40])
    losses = []
    for _ in range(80):
        draws = torch.Generator().manual_seed(0)
        loss = flow.loss(
            tokens, sizes, mel, speaker, None, generator=draws, prior_only=prior_only, pitch=heard
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    flow.eval()
    with torch.inference_mode():
        level = pitches.level_of(heard)
        read = flow.pitch.pitch(flow.hidden(tokens, speaker, level=level), level)
    both = (read > 0) & (heard > 0)
    assert both.sum() > 0.8 * (heard > 0).sum()
    assert (read[both] / heard[both]).log2().abs().mean() < 0.12
    assert flow.pitch.guess(speaker).tolist()[1] > flow.pitch.guess(speaker).tolist()[0]
