"""The server's bench runs from end to end on tiny weights."""

import json

import pytest

from omnilib.bench.serve import main
from tests.tiny import write_brain, write_checkpoints


def test_the_bench_writes_throughput_first_sound_and_memory(tmp_path):
    folder, output = write_checkpoints(tmp_path / "tiny"), tmp_path / "serve.json"
    (folder / "decode.yaml").write_text("rows_per_token: 1.0\n")  # a random model runs up to this guard
    arguments = ["--scale", str(folder), "--clients", "1", "2", "--requests", "1", "--memory", "10"]
    assert main([*arguments, "--output", str(output)]) == 0
    found = json.loads(output.read_text())
    assert found["serve_audio_s_per_s_1"] > 0 and found["serve_audio_s_per_s_2"] > 0
    assert 0 < found["serve_2"]["first_sound_p50_s"] <= found["serve_2"]["first_sound_p95_s"]
    assert len(found["memory_mb_every_10_requests"]) == 1 and found["stamp"] and "chat_1" not in found


@pytest.mark.slow
def test_memory_stays_flat_over_requests_of_every_kind(tmp_path):
    folder, output = write_checkpoints(tmp_path / "tiny"), tmp_path / "serve.json"
    (folder / "decode.yaml").write_text("rows_per_token: 0.5\n")
    write_brain(folder / "brain")
    arguments = ["--scale", str(folder), "--clients", "1", "--requests", "1", "--memory", "40"]
    assert main([*arguments, "--output", str(output)]) == 0
    found = json.loads(output.read_text())
    assert found["chat_1"]["audio_s"] >= 0 and len(found["memory_mb_every_10_requests"]) == 4
    assert found["serve_memory_growth_mb"] < 40


def test_a_scale_that_is_not_there_is_one_line(capsys):
    assert main(["--scale", "nowhere", "--output", "-"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
