"""Attention that is quick in bfloat16 on a processor too.

Torch's fused kernel multiplies bfloat16 there as slowly as float32. Two matrix products take its place: two to three times as
fast, forward and backward, for sequences of a few hundred; longer ones would fill the memory with scores.

Shapes: B batch, H heads, T queries, S keys, D width of a head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_SCORES = 1 << 24  # B x H x T x S


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """q (B, H, T, D), k and v (B, H, S, D) -> (B, H, T, D).

    Args:
        mask: booleans (True: may be seen) or numbers added to the scores, broadcast against (B, H, T, S).
    """
    if not in_half(q) or q.shape[:3].numel() * k.shape[2] > MOST_SCORES:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    q, k, v = (x.to(torch.bfloat16) for x in (q, k, v))
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if mask is not None:
        scores = (
            scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.to(scores)
        )
    return scores.softmax(-1).to(torch.bfloat16) @ v


def in_half(x: Tensor) -> bool:
    """Whether products of x are bfloat16 on a processor."""
    if x.device.type != "cpu":
        return False
    return x.dtype == torch.bfloat16 or (
        torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    )
