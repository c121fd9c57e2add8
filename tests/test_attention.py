"""Attention by two products is the fused kernel's, forward and backward, up to bfloat16's rounding."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from omnilib import attention
from omnilib.attention import attend


def inputs(dtype=torch.float32):
    draw = torch.Generator().manual_seed(0)
    shapes = (2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 8)
    return [torch.randn(s, generator=draw).to(dtype).requires_grad_() for s in shapes]


MASKS = {
    "none": None,
    "hidden": torch.tensor([[True] * 7, [True] * 4 + [False] * 3])[:, None, None],
    "bias": torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(1)),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_ways_agree(mask, dtype):
    ours, theirs = inputs(dtype), inputs()
    made = attend(*ours, MASKS[mask])
    wanted = scaled_dot_product_attention(*theirs, attn_mask=MASKS[mask])
    exact = dtype == torch.float32
    assert made.dtype == dtype
    torch.testing.assert_close(made.float(), wanted, atol=1e-6 if exact else 0.03, rtol=0)
    made.float().square().sum().backward()
    wanted.square().sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad.float(), other.grad, atol=1e-5 if exact else 0.1, rtol=0)


def test_products_are_taken_under_autocast_and_in_bfloat16_alone(monkeypatch):
    fused = []
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda q, k, v, attn_mask: fused.append(q.dtype) or q,
    )
    attend(*inputs())
    attend(*inputs(torch.bfloat16))
    with torch.autocast("cpu", torch.bfloat16):
        attend(*inputs())
    assert fused == [torch.float32]
    monkeypatch.setattr(attention, "MOST_SCORES", 10)  # scores that would fill the memory
    attend(*inputs(torch.bfloat16))
    assert fused == [torch.float32, torch.bfloat16]
