"""The plain mouth computes what ours computes, and one command writes every figure."""

import json
import math
import sys

import pytest
import torch

from omnilib.bench import speed
from omnilib.bench.plain_mouth import PlainMouth
from omnilib.bench.speed import Mouths, available, measure, mouth_of, seconds_of, summary
from omnilib.mouth.step import Stepper

KEYS = {
    *("machine", "mouth", "memory", "speed_mouth_nano", "speed_mouth_06b", "speed_batch16"),
    *(
        "speed_codec_full",
        "speed_flow_full",
        "speed_vocoder_full",
        "speed_stream_exponent",
        "speed_first_tokens",
    ),
}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("batch", [1, 3])
def test_plain_loop_and_steps_give_the_same_logits(batch):
    model, draw = mouth_of("tiny"), torch.Generator().manual_seed(0)
    prompts = torch.randint(28, (batch, 9, 5), generator=draw)
    plain, ours = PlainMouth(model, prompts), Stepper(model, list(prompts))
    torch.testing.assert_close(ours.logits, plain.logits, atol=1e-5, rtol=1e-4)
    for row in torch.randint(28, (6, batch, 1, 5), generator=draw):
        torch.testing.assert_close(ours.advance(row), plain.advance(row), atol=1e-5, rtol=1e-4)
    again = torch.randint(28, (batch, 9, 5), generator=torch.Generator().manual_seed(0))
    assert torch.equal(prompts, again), "the plain loop leaves the caller's rows alone"


def test_both_loops_speak_the_same_rows():
    model = mouth_of("tiny")
    mouths = Mouths(model, {"fp32": None}, 2, 5, 20)
    mouths.round()
    plain, ours = mouths.loops["plain"], mouths.loops["fp32"]
    assert plain.length == ours.length == 20 + 6
    torch.testing.assert_close(ours.logits, plain.logits, atol=1e-5, rtol=1e-4)


def test_the_figure_is_the_median_of_ratios_and_not_the_ratio_of_medians():
    assert summary([2.0, 30.0, 8.0], [1.0, 10.0, 1.0]) == {"ratio": 3.0, "spread": [2.0, 8.0], "rounds": 3}


def test_time_is_that_of_the_processor_on_one_thread(monkeypatch):
    monkeypatch.setattr(speed.time, "process_time", iter([1.0, 3.0]).__next__)
    assert seconds_of(lambda: None) == 2.0


def test_precisions_that_the_processor_lacks_are_left_out(monkeypatch):
    from omnilib.mouth import fast_weights

    monkeypatch.setattr(fast_weights, "fast_bfloat16", lambda device: False)
    assert available(("fp32", "bf16", "int8")) == ["fp32", "int8"]


def test_one_command_writes_every_figure(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["speed", "--tiny", "--out", str(tmp_path / "speed.json")])
    speed.main()
    found = json.loads((tmp_path / "speed.json").read_text())
    assert json.loads(capsys.readouterr().out) == found
    assert set(found) >= KEYS and {"device", "threads", "load", "torch"} <= set(found["machine"])
    assert {"speed_stream_1s", "speed_first_sound_1s"} <= set(found)
    assert found["speed_mouth_nano"]["precision"] == "fp32" and found["speed_batch16"]["ratio"] > 0
    nano = found["mouth"]["nano"]
    assert set(nano) >= {"1", "4", "16", "weights"} and nano["cache_bytes_a_row"]["fp32"] == 3 * 2 * 2 * 8 * 4
    low, high = found["speed_mouth_nano"]["spread"]
    assert 0 < low <= found["speed_mouth_nano"]["ratio"] <= high and math.isfinite(high)


def test_one_part_alone_has_no_figures_of_the_other():
    found = measure(tiny=True, parts=("mouth",))
    assert "speed_mouth_nano" in found and "speed_codec_full" not in found
    assert {"peak_mib_nano", "peak_mib_06b"} == set(found["memory"])
