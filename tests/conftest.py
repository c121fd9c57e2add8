"""Shared test helpers: the golden fixtures of the reference implementation."""

import json
import os
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

COMMITTED = Path(__file__).parent / "golden"
GOLDEN = Path(os.environ.get("OMNILIB_GOLDEN", COMMITTED))
SAME_WEIGHTS = {"flow_training": "flow_inference"}  # committed once


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without a CUDA device the tests marked `gpu` are not collected."""
    if not torch.cuda.is_available():
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("gpu")])
        items[:] = [item for item in items if not item.get_closest_marker("gpu")]


class Tensors(dict):
    """Tensors of one fixture. Another instance (OMNILIB_GOLDEN) may leave some out; the committed one may not."""

    def __init__(self, name: str, tensors: dict):
        super().__init__(tensors)
        self.name = name

    def has(self, *keys: str) -> bool:
        """Whether all are there. A part that cannot be compared is named in the test run's warnings."""
        absent = [key for key in keys if key not in self]
        if absent and GOLDEN == COMMITTED:
            pytest.fail(
                f"tests/golden/{self.name}.safetensors has no {', '.join(absent)}: restore it with `git checkout`"
            )
        if absent:
            warnings.warn(
                f"{self.name}: this instance has no {', '.join(absent)}; not compared", stacklevel=2
            )
        return not absent

    def load_into(self, model: torch.nn.Module) -> torch.nn.Module:
        """Load `w.*` strictly; a head tied to the embedding is stored once and so may be absent."""
        state = {key[2:]: value for key, value in self.items() if key.startswith("w.")}
        absent, unexpected = model.load_state_dict(state, strict=False)
        tied = getattr(getattr(model, "config", None), "tie_word_embeddings", False)
        assert not unexpected and set(absent) <= ({"lm_head.weight"} if tied else set()), (
            self.name,
            absent,
            unexpected,
        )
        return model


def load_golden(name: str) -> tuple[dict, Tensors]:
    """Config and tensors of one fixture (tensors are empty for JSON-only fixtures)."""
    path = GOLDEN / f"{name}.json"
    if not path.exists() and GOLDEN != COMMITTED:
        pytest.skip(f"this instance of the fixtures has no {path.name}")
    config = json.loads(path.read_text(encoding="utf-8"))
    path = path.with_suffix(".safetensors")
    tensors = load_file(str(path)) if path.exists() else {}
    if name in SAME_WEIGHTS and not any(key.startswith("w.") for key in tensors):
        others = load_file(str(path.with_stem(SAME_WEIGHTS[name])))
        tensors |= {key: value for key, value in others.items() if key.startswith("w.")}
    return config, Tensors(name, tensors)


@pytest.fixture
def golden():
    """`golden(name) -> (json, tensors)`."""
    return load_golden
