"""The plain loop computes what the codec computes, and the bench reports every figure."""

import math

import pytest
import torch

from omnilib.bench import plain_codec
from omnilib.bench.speed_codec import TINY_FLOW, TINY_HIFT, Chains, exponent, measure


def test_plain_loop_and_codec_give_the_same_mel_and_wave():
    chains = Chains(TINY_FLOW, TINY_HIFT, steps=3, prompt=40)
    tokens, voice = chains.tokens(30), chains.voice
    given = (tokens[None], voice.tokens[None], voice.mel[None], voice.speaker[None])
    for streaming, final in ((False, True), (True, False), (True, True)):
        ours = chains.flow.inference(*given, streaming, final, 3)
        plain = plain_codec.mel_of(chains.flow, tokens, voice, 3, streaming, final)
        torch.testing.assert_close(plain, ours, atol=1e-4, rtol=0)
    plain, ours = (work() for work in chains.offline(tokens))
    torch.testing.assert_close(plain, ours, atol=1e-4, rtol=0)


def test_hops_of_the_plain_stream_are_those_of_the_released_demo():
    assert plain_codec.hop_ends(1000, prompt=150) == [250, 650, 1000]
    assert plain_codec.hop_ends(100, prompt=200) == [100]


def test_plain_stream_speaks_every_token():
    chains = Chains(TINY_FLOW, TINY_HIFT, steps=1, prompt=150)
    pieces = list(plain_codec.stream(chains.flow, chains.plain, chains.tokens(300), chains.voice, 1))
    assert len(pieces) == 2 and sum(map(len, pieces)) == 300 * 960


def test_exponent_is_the_slope_in_logarithms():
    assert exponent([10, 20, 40], [3.0 * n**1.5 for n in (10, 20, 40)]) == pytest.approx(1.5)


def test_the_bench_reports_every_figure_at_tiny_size():
    found = measure(tiny=True)
    assert found["speed_first_tokens"] <= 16
    assert {"speed_codec_full", "speed_codec_full_fp32", "speed_stream_1s", "speed_stream_exponent"} <= set(
        found
    )
    assert (
        found["speed_codec_full_fp32"]["precision"] == "fp32"
        and found["speed_codec_full"]["wave_error"] < 0.1
    )
    assert found["speed_codec_full"]["ratio"] > 0 and math.isfinite(found["speed_stream_exponent"])
