"""Sound longer than the context: how positions beyond the trained length are told from each other.

A language model trained on `max_position_embeddings` positions has never met the angles of later ones. When,
and only when, a prompt and its answer need more, the rotary frequencies are scaled for this one request by

    factor = ceil(needed / max_position_embeddings)

| `config.long_positions` | frequencies | source |
|---|---|---|
| none | as trained: longer requests are refused | |
| linear | all divided by the factor | Chen et al. 2023, arXiv 2306.15595 |
| ntk | a larger base: slow ones are stretched, fast ones stay | transformers' "dynamic" |
| yarn | slow ones divided, fast ones stay, a ramp between; attention is sharpened | Peng et al. 2023, arXiv 2309.00071 |

A factor belongs to a request, not to a position: all its keys and queries are rotated alike. (transformers'
own "dynamic" type changes the frequencies while a cache grows, so early and late keys no longer fit.) A
request within the trained length gets factor 1 and the very frequencies of training, so its answer is the
same to the bit.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from omnilib.brain.config import BrainConfig
from omnilib.errors import ConfigError


def rope_factor(config: BrainConfig, needed: int) -> int:
    """How many trained lengths a request of `needed` positions spans; 1 where nothing is scaled."""
    if config.long_positions == "none":
        return 1
    return max(1, math.ceil(needed / config.max_position_embeddings))


def frequencies(config: BrainConfig, factor: int) -> tuple[Tensor, float]:
    """Rotary frequencies (half a head,) and what cosines and sines are multiplied by.

    Raises:
        ConfigError: no such method.
    """
    trained, theta = config.max_position_embeddings, config.rope_parameters["rope_theta"]
    head = config.hidden_size // config.num_attention_heads
    kind = {"linear": "linear", "ntk": "dynamic", "yarn": "yarn"}.get(config.long_positions)
    if factor == 1 or kind is None:
        if factor != 1 and config.long_positions != "none":
            raise ConfigError(
                f"long_positions '{config.long_positions}' is unknown: use none, linear, ntk or yarn"
            )
        return theta ** -(torch.arange(0, head, 2).float() / head), 1.0
    rope = {"rope_type": kind, "rope_theta": theta, "factor": float(factor)}
    if kind == "yarn":
        rope["original_max_position_embeddings"] = trained
    if kind == "dynamic":
        rope["factor"] = 1.0  # theirs grows with the length: at factor * trained it is what NTK asks for
    sizes = dict(hidden_size=head, num_attention_heads=1, head_dim=head, max_position_embeddings=trained)
    made = LlamaConfig(**sizes, rope_parameters=rope)
    options = {"seq_len": factor * trained} if kind == "dynamic" else {}
    inverse, scaling = ROPE_INIT_FUNCTIONS[kind](made, torch.device("cpu"), **options)
    return inverse.float(), float(scaling)


@contextmanager
def scaled(model: nn.Module, made: tuple[Tensor, float] | None) -> Iterator[None]:
    """Let a brain's language model use these frequencies inside the block; None: its own."""
    rotary = model.model.rotary_emb
    before = rotary.inv_freq, rotary.attention_scaling
    if made is not None:
        rotary.inv_freq, rotary.attention_scaling = made[0].to(before[0].device), made[1]
    try:
        yield
    finally:
        rotary.inv_freq, rotary.attention_scaling = before
