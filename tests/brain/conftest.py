"""Brains of the reference fixtures, a tiny brain of our own, and a tokenizer that matches the longest known word."""

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast, WhisperConfig
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_audio.configuration_qwen2_audio import Qwen2AudioEncoderConfig

from omnilib.brain.config import BrainConfig
from omnilib.brain.inputs import BrainProcessor
from omnilib.brain.mllm import Brain
from tests.brain.reference import WORDS, longest_match


def llm(vocab: int) -> dict:
    return dict(
        vocab_size=vocab,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
        max_position_embeddings=2048,
        pad_token_id=0,
        eos_token_id=2,
        bos_token_id=None,
    )


def towers(seconds: float = 2.0) -> dict:
    """Tower configs; windows of `seconds`, so that tests of long audio are short."""
    audio = dict(num_mel_bins=16, max_source_positions=int(seconds * 50), encoder_layers=1, encoder_attention_heads=2)
    return dict(
        vision_tower_config=Qwen2_5_VLVisionConfig(
            depth=2, hidden_size=16, num_heads=2, intermediate_size=24, fullatt_block_indexes=[1], out_hidden_size=32
        ),
        speech_tower_config=Qwen2AudioEncoderConfig(d_model=16, encoder_ffn_dim=24, **audio),
        speech_tower_aux_config=WhisperConfig(d_model=12, encoder_ffn_dim=20, **audio),
    )


@pytest.fixture(scope="session")
def words() -> PreTrainedTokenizerFast:
    return longest_match(WORDS, eos="<|im_end|>", pad="<|endoftext|>")


@pytest.fixture(scope="session")
def tiny(words):
    """`tiny(**fields) -> Brain` with random weights in eval mode, the same at every call."""

    def build(seconds: float = 2.0, **fields) -> Brain:
        settings = llm(len(WORDS)) | towers(seconds) | dict(speech_projector_width=24, speech_encoder_ds_rate=5) | fields
        torch.manual_seed(1)
        model = Brain(BrainConfig(**settings)).eval()
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
        return torch.from_numpy((noise + 0.3 * np.sin(np.arange(count) * 0.1 * (1 + seed))).astype(np.float32))

    return make


@pytest.fixture
def picture():
    """`picture(height, width, seed) -> (H, W, 3) uint8` noise."""

    def make(height: int = 56, width: int = 84, seed: int = 0) -> np.ndarray:
        return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)

    return make
