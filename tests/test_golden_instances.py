"""Other instances of the reference fixtures: tied embeddings, other sizes, parts left out, whole files left out."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from omnilib.mouth.speechlm import SpeechLM, SpeechLMConfig
from omnilib.paths import ROOT
from tests.conftest import COMMITTED

PARITY = [
    "tests/mouth/test_speechlm.py::test_training_forward_matches_the_reference",
    "tests/mouth/test_speechlm.py::test_offsets_match_the_reference",
    "tests/mouth/test_speechlm.py::test_saved_folder_loads_through_every_door_with_published_names",
    "tests/eval/test_normalize.py::test_rates_equal_the_published_ones",
]


def tied_instance(folder, spoil: float = 0.0) -> None:
    """The speech model's fixture with tied embeddings, three layers and an adapter of one; no optional tensors."""
    meta = json.loads((COMMITTED / "tts_lm_forward.json").read_text())
    given = load_file(COMMITTED / "tts_lm_forward.safetensors")
    heads = meta["config"]["tts_adapter_config"].strip("[]").split(",")
    adapter = "[" + ",".join(["1", *heads[1:]]) + "]"
    meta["config"] |= {
        "tie_word_embeddings": True,
        "num_hidden_layers": 3,
        "tts_adapter_config": adapter,
        "layer_types": None,
    }
    torch.manual_seed(0)
    model = SpeechLM(SpeechLMConfig(**meta["config"])).train()
    tensors = {k: v for k, v in given.items() if k.startswith("in.")}
    tensors |= {f"w.{k}": v.detach().clone() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    out = model(given["in.input_ids"].clone(), given["in.attention_mask"], given["in.labels"])
    out.loss.backward()
    tensors |= {"out.loss": out.loss.detach() + spoil, "out.loss_text": out.text_loss.detach()}
    tensors |= {f"out.gradnorm.{k}": p.grad.double().norm() for k, p in model.named_parameters()}
    save_file(tensors, folder / "tts_lm_forward.safetensors")
    (folder / "tts_lm_forward.json").write_text(json.dumps(meta))


def run_parity(folder) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-p", "no:cacheprovider", "-rs", *PARITY]
    environment = os.environ | {"OMNILIB_GOLDEN": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_a_tied_instance_without_optional_parts_is_compared_and_what_it_lacks_is_named(tmp_path):
    tied_instance(tmp_path)
    run = run_parity(tmp_path)
    assert run.returncode == 0, run.stdout[-2000:]
    assert "this instance of the fixtures has no longtts_text_norm.json" in run.stdout
    assert "this instance has no out.speech_logits; not compared" in run.stdout
    assert "2 passed, 2 skipped" in run.stdout


@pytest.mark.slow
def test_an_instance_with_another_loss_is_not_ours(tmp_path):
    tied_instance(tmp_path, spoil=1e-3)
    run = run_parity(tmp_path)
    assert run.returncode == 1 and "test_training_forward_matches_the_reference" in run.stdout
