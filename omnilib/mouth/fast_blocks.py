"""Qwen3 blocks, the same arithmetic with fewer passes over memory: what makes training on one CPU core quick.

A small model spends as long on norms, rotations and casts as on matrix products. `block` runs a `Qwen3DecoderLayer` of
transformers on its own parameters, with q, k, v and the two halves of the gated MLP each as one product, norms and
rotation with a written-out backward pass, and, below `SHORT` rows, attention as two batched products (the fused CPU
kernel's backward is three times slower there). Tests hold it to the layer's own forward and gradients.
Used when every row is live or padding is on the right; left padding, GPUs and recomputation take the layer's own path.

Shapes: B batch, L rows, D width, A query heads, K key heads, M = A + K, G = A / K, H head width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SHORT = 640  # rows


class Normed(torch.autograd.Function):
    """RMS norm: x (..., D) in float32 -> (..., D) in `dtype`."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)  # (..., 1)
        scale = (size.square() / x.shape[-1] + eps).rsqrt()
        ctx.save_for_backward(x, weight, scale)
        return torch.mul(x * scale, weight, out=torch.empty_like(x, dtype=dtype))

    @staticmethod
    def backward(ctx, gradient: Tensor):
        x, weight, scale = ctx.saved_tensors
        gx, gweight = norm_backward(gradient.float(), x * scale, scale, weight)
        return gx, gweight.flatten(0, -2).sum(0), None, None


def norm_backward(gradient: Tensor, unit: Tensor, scale: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of y = unit * weight, unit = x * scale, with respect to x and (not yet summed) weight."""
    gweight = gradient * unit
    mean = (gweight * weight).mean(-1, keepdim=True)
    return (gradient * weight).addcmul_(unit, mean, value=-1).mul_(scale), gweight


def rotate(x: Tensor, cos: Tensor, sin: Tensor, sign: float, dtype: torch.dtype) -> Tensor:
    """Rotary position of (B, M, L, H) by sign * angle; cos, sin (L, H / 2)."""
    first, second = x.chunk(2, dim=-1)
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    torch.addcmul(first * cos, second, sin, value=-sign, out=out[..., : x.shape[-1] // 2])
    torch.addcmul(second * cos, first, sin, value=sign, out=out[..., x.shape[-1] // 2 :])
    return out


class NormedRotated(torch.autograd.Function):
    """Norm of every head, then rotation: x (B, L, M, H), weight (M, H) -> (B, M, L, H)."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
        heads = x.transpose(1, 2).float().contiguous()  # (B, M, L, H)
        size = torch.linalg.vector_norm(heads, dim=-1, keepdim=True)
        scale = (size.square() / x.shape[-1] + eps).rsqrt()
        unit = heads.mul_(scale) if heads.data_ptr() != x.data_ptr() else heads * scale
        ctx.save_for_backward(unit, weight, scale, cos, sin)
        ctx.dtype = x.dtype
        return rotate(unit * weight[:, None], cos, sin, 1.0, x.dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        unit, weight, scale, cos, sin = ctx.saved_tensors
        gradient = rotate(gradient.float(), cos, sin, -1.0, torch.float32)
        gx, gweight = norm_backward(gradient, unit, scale, weight[:, None])
        return gx.transpose(1, 2).to(ctx.dtype), gweight.sum((0, 2)), None, None, None


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention: q (B, A, L, H), k and v (B, K, L, H) -> (B, A, L, H)."""
    batch, heads, length, width = q.shape
    if length > SHORT:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    groups = k.shape[1]
    future = (
        torch.full((length, length), -torch.inf, dtype=q.dtype).triu(1).repeat(heads // groups, 1)
    )  # (G L, L)
    q = (q * width**-0.5).reshape(batch * groups, -1, width)  # (B K, G L, H)
    scores = torch.baddbmm(future[None], q, k.reshape(-1, length, width).transpose(1, 2))  # (B K, G L, L)
    return torch.bmm(scores.softmax(-1), v.reshape(-1, length, width)).view(batch, heads, length, width)


def block(layer: nn.Module, x: Tensor, cos: Tensor, sin: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """One Qwen3 decoder layer over whole sequences: (B, L, D) -> (B, L, D), products in `dtype`."""
    batch, length, _ = x.shape
    attention, mlp = layer.self_attn, layer.mlp
    width = attention.head_dim
    h = Normed.apply(x, layer.input_layernorm.weight, eps, dtype)
    qkv = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
    qkv = F.linear(h, qkv.to(dtype)).view(batch, length, -1, width)  # (B, L, A + 2 K, H)
    groups = attention.k_proj.out_features // width
    heads = attention.q_proj.out_features // width
    weight = torch.cat(
        [attention.q_norm.weight.expand(heads, -1), attention.k_norm.weight.expand(groups, -1)]
    )  # (M, H)
    qk, v = qkv.split([heads + groups, groups], dim=2)
    q, k = NormedRotated.apply(qk, weight, cos, sin, eps).split([heads, groups], dim=1)
    y = attend(q, k, v.transpose(1, 2))  # (B, A, L, H)
    x = x + F.linear(y.transpose(1, 2).reshape(batch, length, -1), attention.o_proj.weight.to(dtype))
    h = Normed.apply(x, layer.post_attention_layernorm.weight, eps, dtype)
    gate, up = F.linear(h, torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]).to(dtype)).chunk(2, dim=-1)
    return x + F.linear(F.silu(gate) * up, mlp.down_proj.weight.to(dtype))
