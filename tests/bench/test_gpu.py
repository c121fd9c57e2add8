"""The GPU bench runs at tiny size on a CPU, its plain loop computes what the mouth computes, and rooflines count what is there."""

import json

import pytest
import torch
import torch.nn.functional as F

from omnilib.bench import gpu, roofline
from omnilib.bench.roofline import DEVICES, GOOD, Device, Reach, count
from omnilib.mouth.step import Stepper

CPU = torch.device("cpu")
ROUND = Device("round numbers", bandwidth=1e9, bf16=4e9, tf32=2e9, fp32=1e9)


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def test_a_product_counts_its_bytes_and_multiplications():
    (kernel,) = count(lambda: meta(8, 16) @ meta(16, 32)).kernels
    assert kernel.bytes == 4 * (8 * 16 + 16 * 32 + 8 * 32) and kernel.operations == 2 * 8 * 16 * 32
    x = meta(8, 32)
    (kernel,) = count(lambda: x.addmm_(meta(8, 16), meta(16, 32))).kernels
    assert kernel.operations == 2 * 8 * 16 * 32 and kernel.bytes == 4 * (8 * 16 + 16 * 32 + 8 * 32)


def test_convolutions_count_their_multiplications():
    (kernel,) = count(lambda: F.conv1d(meta(2, 6, 50), meta(4, 6, 3), padding=1)).kernels
    assert kernel.operations == 2 * (2 * 4 * 50) * 6 * 3
    (kernel,) = count(lambda: F.conv_transpose1d(meta(2, 6, 50), meta(6, 4, 8), stride=4)).kernels
    assert kernel.operations == 2 * (2 * 6 * 50) * 4 * 8


def test_views_are_free_parts_are_parts_and_fused_kernels_are_one():
    table, keys = meta(1000, 8), meta(1, 2, 512, 8)
    assert not count(lambda: meta(4, 6).view(24).unflatten(0, (2, 12)).t()).kernels
    (part,) = count(lambda: table.index_select(0, torch.empty(3, dtype=torch.long, device="meta"))).kernels
    assert part.bytes == 2 * 3 * 8 * 4, "not the whole table"
    (one,) = count(lambda: F.scaled_dot_product_attention(meta(1, 2, 1, 8), keys, keys)).kernels
    assert one.operations == 4 * 2 * 8 * 512 and one.bytes >= 2 * 512 * 8 * 4
    assert [k.name for k in count(lambda: F.silu(F.rms_norm(meta(4, 8), (8,), meta(8)))).kernels] == [
        "rms_norm",
        "silu",
    ]


def test_the_bounds_are_in_order():
    work = count(lambda: F.silu(meta(8, 1024) @ meta(1024, 1024)) + 1)
    assert work.roofline(ROUND) == pytest.approx(2 * 8 * 1024**2 / 1e9), "bound by multiplications"
    assert count(lambda: meta(1, 1024) @ meta(1024, 1024)).roofline(ROUND) == pytest.approx(
        4 * (1024**2 + 2048) / 1e9
    )
    assert work.roofline(ROUND) < work.expected(ROUND, reach=GOOD) < work.expected(ROUND)
    assert work.fused().expected(ROUND) < work.expected(ROUND)
    slow = Reach(kernel=1.0)
    assert (
        work.expected(ROUND, reach=slow) == pytest.approx(3.0)
        and work.fused().expected(ROUND, reach=slow) == 1.0
    )


def test_a_row_of_the_mouth_reads_every_weight_of_its_blocks_and_speech_head_once():
    config = gpu.mouth_config("0.6B")
    with torch.device("meta"):
        model = gpu.SpeechLM(config)
    blocks = sum(p.numel() for name, p in model.named_parameters() if "layers" in name)
    head = config.speech_token_count * config.tokenizer_speech_size * config.hidden_size
    work = gpu.mouth_work("0.6B", 1, 200, torch.bfloat16)
    assert 1.0 < work.bytes / (2 * (blocks + head)) < 1.1
    assert 0.95 < work.operations / (2 * (blocks + head)) < 1.1


def test_the_estimate_for_the_2b_on_an_h200_has_its_floor_at_0_006():
    found = gpu.estimate("2B", DEVICES["h200"])
    assert 0.005 < found["floor"]["rtf"] < 0.0065
    order = [found[name]["rtf"] for name in ("floor", "best", "compiled", "graph")]
    assert order == sorted(order) and order[-1] < 0.02


def test_the_plain_loop_computes_what_the_mouth_computes():
    bench = gpu.Bench("tiny", CPU)
    prompts = bench.prompt().expand(2, -1, -1)
    plain, ours = gpu.PlainMouth(bench.model, prompts), Stepper(bench.model, list(prompts))
    for _ in range(4):
        torch.testing.assert_close(plain.logits, ours.logits, atol=1e-4, rtol=1e-4)
        ids = torch.tensor(plain.step())
        ours.advance(torch.cat([torch.zeros(2, 1, dtype=torch.long), ids], 1)[:, None])


def test_the_bench_reports_every_figure_at_tiny_size(tmp_path, capsys):
    assert gpu.main(["--size", "tiny", "--device", "cpu", "--out", str(tmp_path / "gpu.json")]) == 0
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert json.loads(capsys.readouterr().out) == found
    assert {"speed_mouth_tiny", "speed_codec_full", "speed_stream_1s", "speed_stream_exponent"} <= set(found)
    assert found["speed_first_tokens"] <= 16 and found["first_sound_seconds"] > 0
    for entry in (*found["speed_mouth_batches"].values(), found["speed_codec_full"], found["training"]):
        assert entry["seconds"] > 0 and entry["roofline_seconds"] > 0 and entry["share_of_roofline"] > 0
    assert found["rtf"] > 0 and 0 < found["training"]["train_mfu"] < 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_without_a_gpu_the_bench_says_so_in_one_line(capsys):
    assert gpu.main([]) == 2
    error = capsys.readouterr().err
    assert error.startswith("no CUDA device is available here") and error.count("\n") == 1


def test_a_device_without_a_data_sheet_is_measured():
    sheet = roofline.device_of(CPU)
    assert sheet.name == "cpu, measured" and sheet.bandwidth > 1e8 and sheet.fp32 > 1e8
