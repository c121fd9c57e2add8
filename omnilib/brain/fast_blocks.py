"""The language model's layers with fewer passes over memory: what makes training the brain on CPU quick.

In a small model matrix products take a third of a step of transformers' layers; the rest goes into casts of
frozen weights, norms, rotations, and the fused attention kernel, whose backward pass is slow on short rows.
`language` computes the same with q, k, v as one product, the halves of the gated MLP as another, frozen
weights cast once, and short attention as two batched products (`omnilib.mouth.fast_blocks`). LoRA (peft) is
followed where a layer carries it. A test holds it to the layers' own outputs and gradients.

For whole sequences whose padding is on the right: a live position never looks at what is behind it, so no
mask is needed. GPUs, recomputation and sharded parameters take the layers' own path.

Shapes: B batch, L positions, D width, A query heads, K key heads, H head width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnilib.mouth.fast_blocks import Normed, attend, rotate


class Rotated(torch.autograd.Function):
    """Rotary position: x (B, M, L, H), cos and sin (B, 1, L, H / 2)."""

    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return rotate(x.float(), cos, sin, 1.0, x.dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return rotate(gradient.float(), *ctx.saved_tensors, -1.0, gradient.dtype), None, None


def parts(layer: nn.Module) -> tuple[Tensor, Tensor | None, nn.Module | None]:
    """Weight and bias of a linear layer, and the layer itself if it carries a LoRA."""
    lora = layer if hasattr(layer, "lora_A") else None
    base = layer.base_layer if lora is not None else layer
    return base.weight, base.bias, lora


class Joined:
    """Linear layers that take the same input, as one product; frozen ones are cast and joined once."""

    def __init__(self, layers: list[nn.Module], dtype: torch.dtype):
        self.layers, self.dtype = [parts(layer) for layer in layers], dtype
        self.sizes = [len(weight) for weight, _, _ in self.layers]
        learns = any(p is not None and p.requires_grad for w, b, _ in self.layers for p in (w, b))
        self.kept = None if learns else self.join()

    def join(self) -> tuple[Tensor, Tensor | None]:
        """Weights (sum of outputs, inputs) and biases, a layer without one as zeros."""
        weight = torch.cat([w for w, _, _ in self.layers]).to(self.dtype)
        if all(b is None or not bool(b.any()) and not b.requires_grad for _, b, _ in self.layers):
            return weight, None  # SmolLM2's biases are zero
        biases = [w.new_zeros(len(w)) if b is None else b for w, b, _ in self.layers]
        return weight, torch.cat(biases).to(self.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """(B, L, inputs) -> (B, L, sum of outputs)."""
        weight, bias = self.kept or self.join()
        y = F.linear(x, weight, bias)
        loras = [lora for _, _, lora in self.layers]
        if not any(loras):
            return y
        down = [lora.lora_A["default"].weight for lora in loras if lora is not None]
        inner = iter(F.linear(x, torch.cat(down).to(self.dtype)).split([len(w) for w in down], dim=-1))
        added = []
        for lora, size in zip(loras, self.sizes, strict=True):
            if lora is None:
                added.append(y.new_zeros(()).expand(*y.shape[:-1], size))
                continue
            up = lora.lora_B["default"].weight * lora.scaling["default"]
            added.append(F.linear(next(inner), up.to(self.dtype)))
        return y + (torch.cat(added, -1) if len(added) > 1 else added[0])


class FastLanguage:
    """A brain's language model for training: embeddings (B, L, D) and positions (3, B, L) -> hidden (B, L, D).

    Args:
        model: `BrainModel`, LoRA in place, `requires_grad` set: frozen weights are copied here.
        dtype: of the products.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype = torch.bfloat16):
        self.model, self.dtype, self.eps = model, dtype, model.config.rms_norm_eps
        self.layers = []
        for layer in model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            names = ("q_proj", "k_proj", "v_proj"), ("o_proj",)
            made = [Joined([getattr(attention, n) for n in group], dtype) for group in names]
            made += [Joined([mlp.gate_proj, mlp.up_proj], dtype), Joined([mlp.down_proj], dtype)]
            self.layers.append((layer, *made))

    def __call__(self, embeds: Tensor, positions: Tensor) -> Tensor:
        """As `BrainModel` with right padding."""
        with torch.autocast(embeds.device.type, enabled=False):
            x = embeds.float()
            cos, sin = self.model.rotary_emb(x, positions)  # (B, L, H)
            half = cos.shape[-1] // 2
            cos, sin = (angle[:, None, :, :half] for angle in (cos, sin))
            for layer, qkv, out, gates, down in self.layers:
                x = self.layer(layer, x, cos, sin, qkv, out, gates, down)
            return Normed.apply(x, self.model.norm.weight, self.eps, torch.float32)

    def layer(
        self,
        layer: nn.Module,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        qkv: Joined,
        out: Joined,
        gates: Joined,
        down: Joined,
    ) -> Tensor:
        """One decoder layer: (B, L, D) -> (B, L, D)."""
        batch, length, _ = x.shape
        width = layer.self_attn.head_dim
        heads, groups = (size // width for size in qkv.sizes[:2])
        h = Normed.apply(x, layer.input_layernorm.weight, self.eps, self.dtype)
        made = qkv(h).view(batch, length, -1, width).transpose(1, 2)  # (B, A + 2 K, L, H)
        qk, v = made.split([heads + groups, groups], dim=1)
        q, k = Rotated.apply(qk, cos, sin).split([heads, groups], dim=1)
        y = attend(q, k, v).transpose(1, 2).reshape(batch, length, -1)
        x = x + out(y)
        h = Normed.apply(x, layer.post_attention_layernorm.weight, self.eps, self.dtype)
        gate, up = gates(h).chunk(2, dim=-1)
        return x + down(F.silu(gate) * up)
