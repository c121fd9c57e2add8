"""One row at a time: the SpeechLM's blocks run against a preallocated key/value cache.

The arithmetic is that of `SpeechLM.hidden` (a test holds the two together); only the bookkeeping around it is left out,
which is most of the time of a small model: one row is 0.16 s of speech, so a step has to be short.

Cache layout, one pair for each block, backbone first, then adapter: keys, values (B, K, M, H). M grows by doubling.
Prompts of a batch are padded on the *left*, so every sequence writes at the same place `length`; `start` (B,) tells where
each one begins. A finished sequence can be dropped from the batch with `keep`.

Shapes: B batch, L rows, D width, A attention heads, K key heads, H head width, k streams, S ids a stream.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnilib.mouth.speechlm import SpeechLM


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position of (B, heads, L, H); `sin` carries the sign of the first half.

    Source: RoPE, arXiv 2104.09864, eq. 34.
    """
    half = x.shape[-1] // 2
    return x * cos + torch.cat((x[..., half:], x[..., :half]), dim=-1) * sin


class Stepper:
    """A batch of sequences being decoded (paper eqs. 3, 4).

    Args:
        model: in eval mode.
        prompts: rows (R, 1 + k) of each sequence.
        capacity: rows to reserve beyond the longest prompt.
    """

    def __init__(self, model: SpeechLM, prompts: list[Tensor], capacity: int = 512):
        self.model = model
        self.backbone, self.adapter = list(model.model.layers), list(model.tts_adapter.layers)
        weight = model.lm_head.weight
        self.device, self.dtype = weight.device, weight.dtype
        longest = max(map(len, prompts))
        self.start = torch.tensor([longest - len(p) for p in prompts], device=self.device)  # (B,)
        self.uneven = bool(self.start.any())
        self.length, self.capacity = 0, 0
        self.cache: list[tuple[Tensor, Tensor]] = []
        self.reserve(longest + capacity)
        rows = torch.zeros(len(prompts), longest, prompts[0].shape[1], dtype=torch.long)
        for row, prompt in zip(rows, prompts, strict=True):
            row[longest - len(prompt) :] = prompt
        self.logits = self.advance(rows.to(self.device))  # (B, k, S): of the first row to decode

    def reserve(self, capacity: int) -> None:
        """Make room for `capacity` rows in all."""
        config, batch = self.model.config, len(self.start)
        grown = []
        for i, layer in enumerate(self.backbone + self.adapter):
            heads = layer.self_attn.k_proj.out_features // layer.self_attn.head_dim
            pair = torch.empty(
                2, batch, heads, capacity, layer.self_attn.head_dim, dtype=self.dtype, device=self.device
            )
            if self.cache:
                pair[0, :, :, : self.length] = self.cache[i][0][:, :, : self.length]
                pair[1, :, :, : self.length] = self.cache[i][1][:, :, : self.length]
            grown.append((pair[0], pair[1]))
        self.cache, self.capacity = grown, capacity
        positions = torch.arange(capacity, device=self.device)[None]
        cos, sin = self.model.model.rotary_emb(
            torch.empty(0, dtype=torch.float32, device=self.device), positions
        )
        half = sin.shape[-1] // 2
        sin = torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)
        self.cos, self.sin = cos[0].to(self.dtype), sin[0].to(self.dtype)  # (M, H)
        self.eps = config.rms_norm_eps

    def keep(self, indices: list[int]) -> None:
        """Go on with these sequences of the batch only."""
        chosen = torch.tensor(indices, device=self.device)
        self.start, self.logits = self.start[chosen], self.logits[chosen]
        self.cache = [(k[chosen], v[chosen]) for k, v in self.cache]

    def norm(self, x: Tensor, layer: nn.Module) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), layer.weight, self.eps)

    def block(
        self,
        layer: nn.Module,
        x: Tensor,
        cache: tuple[Tensor, Tensor],
        rope: tuple[Tensor, Tensor],
        mask: Tensor | None,
    ) -> Tensor:
        """One Qwen3 block over new rows: (B, L, D) -> (B, L, D), their keys and values stored."""
        at, (batch, size, _) = self.length, x.shape
        attention, mlp = layer.self_attn, layer.mlp
        h = self.norm(x, layer.input_layernorm)
        shape = (batch, size, -1, attention.head_dim)
        q = rotate(
            self.norm(attention.q_proj(h).view(shape), attention.q_norm).transpose(1, 2), *rope
        )  # (B, A, L, H)
        k = rotate(
            self.norm(attention.k_proj(h).view(shape), attention.k_norm).transpose(1, 2), *rope
        )  # (B, K, L, H)
        keys, values = cache
        keys[:, :, at : at + size] = k
        values[:, :, at : at + size] = attention.v_proj(h).view(shape).transpose(1, 2)
        y = F.scaled_dot_product_attention(
            q,
            keys[:, :, : at + size],
            values[:, :, : at + size],
            attn_mask=mask,
            is_causal=mask is None and size > 1,
            enable_gqa=True,
        )
        x = x + attention.o_proj(y.transpose(1, 2).reshape(batch, size, -1))
        h = self.norm(x, layer.post_attention_layernorm)
        return x + mlp.down_proj(F.silu(mlp.gate_proj(h)) * mlp.up_proj(h))

    @torch.inference_mode()
    def advance(self, rows: Tensor) -> Tensor:
        """Feed rows (B, L, 1 + k); returns the speech logits after the last of them: (B, k, S)."""
        size, end = rows.shape[1], self.length + rows.shape[1]
        if end > self.capacity:
            self.reserve(max(end, 2 * self.capacity))
        positions = torch.arange(self.length, end, device=self.device)  # (L,)
        mask = None
        if self.uneven:
            there = torch.arange(end, device=self.device)  # (M,)
            past = there <= positions[:, None]  # (L, M)
            mask = (past & (there >= self.start[:, None, None]))[:, None]  # (B, 1, L, M)
            if size > 1:  # a padded prompt row sees only itself, so that its softmax is not empty
                mask = mask | (there == positions[:, None])
            local = (positions - self.start[:, None]).clamp(min=0)  # (B, L)
            rope = self.cos[local][:, None], self.sin[local][:, None]  # (B, 1, L, H)
        else:
            rope = self.cos[self.length : end], self.sin[self.length : end]  # (L, H)
        x = self.model.embed(rows)  # (B, L, D)
        for layer, cache in zip(self.backbone, self.cache, strict=False):
            x = self.block(layer, x, cache, rope, mask)
        x = self.norm(x, self.model.model.norm)
        for layer, cache in zip(self.adapter, self.cache[len(self.backbone) :], strict=True):
            x = self.block(layer, x, cache, rope, mask)
        self.length = end
        self.logits = self.model.speech_head(x[:, -1]).float()
        return self.logits
