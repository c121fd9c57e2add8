"""Everything the SpeechLM script reads, tiny: tone recordings with codes, a text tokenizer, a text backbone.

The codes of a recording spell its phonemes (one code each, held for the phoneme's 25 Hz frames), so text predicts speech
and a model that reads can learn.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import Qwen3Config, Qwen3ForCausalLM

from omnilib.data import read_manifest
from omnilib.text import text_size, train_tokenizer
from tests import tones

CODES = 27  # 3 ** 3
SPEECH = CODES + 2


@dataclass
class Corpus:
    """Paths; `overrides()` points a training config at them."""

    manifest: Path
    tokens: Path
    text: Path
    backbone: Path

    def overrides(self, init: Path | None = None) -> list[str]:
        paths = {
            "manifest": self.manifest,
            "tokens": self.tokens,
            "text": self.text,
            "init": init or self.backbone,
        }
        return [f"{key}={path}" for key, path in paths.items()]


def codes_of(record: dict) -> torch.Tensor:
    """(T,) int16: phoneme i sounds as code 2 i (a pause as 0), until the frame where it ends."""
    names = ["pau", *tones.PHONEMES]
    ends = [round(end * 25) for end in record["phoneme_ends"]]
    codes = torch.zeros(ends[-1], dtype=torch.int16)
    for start, end, name in zip([0, *ends], ends, record["phonemes"]):
        codes[start:end] = 2 * names.index(name)
    return codes


def build(folder: Path) -> Corpus:
    """Write the corpus below `folder`."""
    manifest = tones.build(folder / "corpus", {"low": 0.8, "high": 1.3}, {"train": 8, "dev": 3, "test": 1})
    records = read_manifest(manifest)
    tokens = folder / "corpus" / "tokens.safetensors"
    save_file({r["id"]: codes_of(r) for r in records}, tokens)
    tokenizer = train_tokenizer((r["text"] for r in records), size=300)
    tokenizer.save_pretrained(folder / "text")
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    config = Qwen3Config(
        vocab_size=text_size(tokenizer),
        head_dim=16,
        tie_word_embeddings=True,
        max_position_embeddings=512,
        **sizes,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder / "backbone")
    return Corpus(manifest, tokens, folder / "text", folder / "backbone")
