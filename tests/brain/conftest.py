"""Brains of the reference fixtures, a tiny brain of our own, and a tokenizer that matches the longest known
word."""

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from omnilib.brain.config import smoke_config
from omnilib.brain.inputs import BrainProcessor
from omnilib.brain.mllm import Brain
from tests.brain.reference import WORDS, longest_match


@pytest.fixture(scope="session")
def words() -> PreTrainedTokenizerFast:
    return longest_match(WORDS, eos="<|im_end|>", pad="<|endoftext|>")


@pytest.fixture(scope="session")
def tiny(words):
    """`tiny(**fields) -> Brain` with random weights in eval mode, the same at every call."""

    def build(**fields) -> Brain:
        config = smoke_config(len(WORDS), **(dict(pad_token_id=0, eos_token_id=2) | fields))
        torch.manual_seed(1)
        model = Brain(config).eval()
        with torch.no_grad():  # louder: sharper choices, no near-ties between batch sizes
            for name, weight in model.named_parameters():
                if weight.dim() > 1 and "positions" not in name:
                    weight.mul_(4)
        return model

    return build


@pytest.fixture
def ready(tiny, words):
    """`ready(**fields) -> (brain, processor)`."""

    def build(**fields) -> tuple[Brain, BrainProcessor]:
        model = tiny(**fields)
        return model, BrainProcessor(words, model.config)

    return build


@pytest.fixture
def sound():
    """`sound(seconds, seed) -> (T,)` noise with a tone, 16 kHz."""

    def make(seconds: float, seed: int = 0) -> torch.Tensor:
        count = round(seconds * 16000)
        noise = np.random.default_rng(seed).standard_normal(count) * 0.05
        return torch.from_numpy(
            (noise + 0.3 * np.sin(np.arange(count) * 0.1 * (1 + seed))).astype(np.float32),
        )

    return make


@pytest.fixture
def picture():
    """`picture(height, width, seed) -> (H, W, 3) uint8` noise."""

    def make(height: int = 56, width: int = 84, seed: int = 0) -> np.ndarray:
        return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)

    return make
