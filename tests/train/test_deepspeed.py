"""`accelerate launch` with the DeepSpeed configs on two CPU processes: training, kill -9 and exact resume, export."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from omnilib.errors import CheckpointError
from omnilib.mouth.speechlm import SpeechLM
from omnilib.paths import CONFIGS, ROOT
from omnilib.train import speechlm as training
from tests.train import corpus as tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> tiny.Corpus:
    return tiny.build(tmp_path_factory.mktemp("tiny"))


def launch(config: str, program: list[str], corpus: tiny.Corpus, out: Path) -> subprocess.CompletedProcess:
    """Two processes; only their number and port differ from the committed config."""
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        CONFIGS / "deepspeed" / config,
    ]
    command += ["--num_processes", "2", "--main_process_port", "0", *program]
    command += ["--config", "smoke/speechlm_stage1", "--out", out, "--set", *corpus.overrides()]
    return subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=1200)


def log_rows(out: Path) -> dict[int, dict]:
    """Step -> losses as logged while training."""
    rows = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    return {
        row["step"]: {k: row[k] for k in ("loss", "text", "speech", "norm")} for row in rows if "loss" in row
    }


def test_zero2_trains_is_killed_resumes_and_exports(corpus, tmp_path):
    killed = launch("zero2.yaml", [Path(__file__).parent / "killed.py", "5"], corpus, tmp_path)
    assert killed.returncode != 0 and "SIGKILL" in killed.stderr, killed.stderr
    before = log_rows(tmp_path)
    assert sorted(before) == [1, 2, 3, 4, 5]
    state = json.loads((tmp_path / "state" / "meta.json").read_text())
    assert (state["step"], state["processes"]) == (3, 2)
    resumed = launch("zero2.yaml", ["-m", "omnilib.train.speechlm"], corpus, tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    after = log_rows(tmp_path)
    assert sorted(after) == [1, 2, 3, 4, 5, 6]
    assert [after[i] for i in range(1, 6)] == [before[i] for i in range(1, 6)]
    assert after[6]["speech"] < 0.8 * after[1]["speech"]
    check_export(corpus, tmp_path)
    with pytest.raises(
        CheckpointError, match="cannot read"
    ):  # one process cannot go on from the parts of two
        training.main(
            ["--config", "smoke/speechlm_stage1", "--out", str(tmp_path), "--set", *corpus.overrides()]
        )


def test_zero3_trains_and_exports(corpus, tmp_path):
    done = launch("zero3.yaml", ["-m", "omnilib.train.speechlm"], corpus, tmp_path)
    assert done.returncode == 0, done.stderr
    rows = log_rows(tmp_path)
    assert rows[6]["speech"] < 0.8 * rows[1]["speech"]
    check_export(corpus, tmp_path)


def check_export(corpus: tiny.Corpus, out: Path) -> None:
    """The exported model is whole, and stage 1 left the backbone as it was (up to the rounding of bfloat16)."""
    model, backbone = SpeechLM.load(out), training.Qwen3ForCausalLM.from_pretrained(corpus.backbone)
    learnt = model.model.state_dict()
    for name, weight in backbone.model.state_dict().items():
        if name != "embed_tokens.weight":
            assert torch.equal(learnt[name], weight.bfloat16().float()), name
    old = model.config.tokenizer_text_size - 3
    assert torch.equal(
        learnt["embed_tokens.weight"][:old], backbone.model.embed_tokens.weight[:old].bfloat16().float()
    )


def test_configs_leave_batch_and_clipping_to_the_experiment():
    for stage in (2, 3):
        config = yaml.safe_load((CONFIGS / "deepspeed" / f"zero{stage}.yaml").read_text())
        settings = config["deepspeed_config"]
        assert config["distributed_type"] == "DEEPSPEED" and config["mixed_precision"] == "bf16"
        assert settings["zero_stage"] == stage and settings["gradient_clipping"] == "auto"
        assert settings["gradient_accumulation_steps"] == 1
