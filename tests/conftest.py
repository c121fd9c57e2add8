"""Shared test helpers: the golden fixtures of the reference implementation."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

GOLDEN = Path(os.environ.get("OMNILIB_GOLDEN", Path(__file__).parent / "golden"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without a CUDA device the tests marked `gpu` are not collected."""
    if not torch.cuda.is_available():
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("gpu")])
        items[:] = [item for item in items if not item.get_closest_marker("gpu")]


def load_golden(name: str) -> tuple[dict, dict]:
    """Config and tensors of one fixture (tensors are empty for JSON-only fixtures)."""
    config = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    path = GOLDEN / f"{name}.safetensors"
    return config, load_file(str(path)) if path.exists() else {}


@pytest.fixture
def golden():
    """`golden(name) -> (json, tensors)`."""
    return load_golden
