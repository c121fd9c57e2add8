"""A tiny mouth: a nano tokenizer trained on a few lines and a random model that fits it."""

import pytest
import torch

from omnilib.mouth.speechlm import SpeechLM, SpeechLMConfig
from omnilib.text import text_size, train_tokenizer

LINES = [
    "The lord is my shepherd; I shall not want.",
    "He maketh me to lie down in green pastures: he leadeth me beside the still waters.",
    "今天天气很好，我们去公园散步吧。",
    "Don't you know what this is about? Yes, I do!",
]


@pytest.fixture(scope="session")
def tokenizer():
    """Nano BPE of about 400 ids."""
    return train_tokenizer(LINES * 4, size=420)


@pytest.fixture(scope="session")
def tiny(tokenizer):
    """`tiny(streams) -> SpeechLM` with random weights in eval mode, the same at every call."""

    def build(streams: int = 4, codes: int = 11, **fields) -> SpeechLM:
        text, speech = text_size(tokenizer), codes + 2
        config = SpeechLMConfig(
            vocab_size=text + streams * speech,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=4096,
            tokenizer_speech_size=speech,
            speech_token_count=streams,
            tts_adapter_config="[1,32,4_2,48]",
            **fields,
        )
        torch.manual_seed(streams)
        model = SpeechLM(config).eval()
        with torch.no_grad():  # louder rows: sharper choices, no near-ties between batch sizes
            model.lm_head.weight.mul_(20)
            model.model.embed_tokens.weight.mul_(20)
        return model

    return build
