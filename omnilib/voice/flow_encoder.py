"""The flow's encoder: token embeddings at 25 Hz -> hidden states at 50 Hz (CosyVoice2's UpsampleConformerEncoder).

Each token sees 3 tokens ahead through a convolution, then a transformer with relative positions runs at 25 Hz, frames are
doubled, and a second transformer runs at 50 Hz. Parameter names are those of the published `flow.pt`.

Shapes: B batch, N tokens, F = 2N frames, T either, S keys, D width, H heads.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnilib.attention import attend
from omnilib.voice.causal import Cache, CausalConv, attention_mask, length_mask

RATIO = 2  # mel frames per token
TABLE = 256  # keys: a table of positions is made for a multiple of so many
LONGEST_TABLE = 4096  # keys; beyond, positions are made anew each time: a table would hold memory for good


@dataclass
class EncoderConfig:
    """Defaults are the published sizes."""

    width: int = 512
    heads: int = 8
    linear_units: int = 2048
    blocks: int = 6
    up_blocks: int = 4
    look_ahead: int = 3  # tokens
    chunk: int = 25  # tokens one attention chunk holds when streaming
    dropout: float = 0.1


def relative_positions(queries: int, keys: int, width: int, device: torch.device) -> Tensor:
    """Sinusoids of query - key distances, largest first: (S + T - 1, D)."""
    distance = torch.arange(keys - 1, -queries, -1.0, device=device)[:, None]
    angle = distance * torch.exp(torch.arange(0, width, 2.0, device=device) * -(math.log(10000.0) / width))
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)


def relative_shift(scores: Tensor, keys: int) -> Tensor:
    """Scores by distance (B, H, T, S + T - 1) -> scores by key (B, H, T, S): row i starts T - 1 - i columns later.

    Reading the flat memory with rows one shorter does exactly that, without a copy.

    Source: arXiv 1901.02860, appendix B.
    """
    queries, distances = scores.shape[-2:]
    if queries == 1:
        return scores
    flat = scores.flatten(-2)[..., queries - 1 : queries - 1 + queries * (distances - 1)]
    return flat.unflatten(-1, (queries, distances - 1))[..., :keys]


class RelativeAttention(nn.Module):
    """Self-attention with Transformer-XL relative positions (arXiv 1901.02860, section 3.3)."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.linear_q, self.linear_k = nn.Linear(width, width), nn.Linear(width, width)
        self.linear_v, self.linear_out = nn.Linear(width, width), nn.Linear(width, width)
        self.linear_pos = nn.Linear(width, width, bias=False)
        self.pos_bias_u = nn.Parameter(torch.empty(heads, width // heads))
        self.pos_bias_v = nn.Parameter(torch.empty(heads, width // heads))
        self.table: tuple[tuple, int, Tensor] | None = None  # see `places`

    def places(self, queries: int, keys: int) -> Tensor:
        """Positions of `relative_positions` through `linear_pos`, from a table made once: (H, S + T - 1, D / H)."""
        weight, size = self.linear_pos.weight, -(-keys // TABLE) * TABLE
        if keys > LONGEST_TABLE:
            return self.project(relative_positions(queries, keys, weight.shape[1], weight.device))
        key = weight.data_ptr(), weight._version, weight.device
        table = self.table
        if table is None or table[0] != key or table[1] < keys:
            made = self.project(relative_positions(size, size, weight.shape[1], weight.device))
            self.table = table = key, size, made  # distances size - 1 .. 1 - size
        start = table[1] - keys
        return table[2][:, start : start + keys + queries - 1]

    def project(self, positions: Tensor) -> Tensor:
        return self.linear_pos(positions).unflatten(-1, (self.heads, -1)).transpose(0, 1)

    def forward(
        self, x: Tensor, positions: Tensor | None, mask: Tensor | None, cache: Cache | None
    ) -> Tensor:
        """Args: positions: those of `relative_positions`; None in inference, where `places` has them."""
        q = self.linear_q(x).unflatten(-1, (self.heads, -1))  # (B, T, H, D / H)
        k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.linear_k, self.linear_v))
        if cache is not None:
            k, v = cache.extend(torch.stack([k, v]), 3)
        p = self.places(x.shape[1], k.shape[2]) if positions is None else self.project(positions)
        content, place = (
            (q + bias).to(q.dtype).transpose(1, 2) for bias in (self.pos_bias_u, self.pos_bias_v)
        )
        bias = relative_shift(place @ p.transpose(1, 2), k.shape[2]) / math.sqrt(q.shape[-1])  # (B, H, T, S)
        if mask is not None:
            bias = bias.masked_fill(~mask, -math.inf)
        if self.training and self.dropout:
            out = F.scaled_dot_product_attention(content, k, v, attn_mask=bias, dropout_p=self.dropout)
        else:
            out = attend(content, k, v, bias)
        return self.linear_out(out.transpose(1, 2).flatten(2))


class EncoderLayer(nn.Module):
    """Pre-norm attention and feed-forward, both residual (Conformer, arXiv 2005.08100)."""

    def __init__(self, c: EncoderConfig):
        super().__init__()
        self.self_attn = RelativeAttention(c.width, c.heads, c.dropout)
        self.feed_forward = nn.ModuleDict(
            {"w_1": nn.Linear(c.width, c.linear_units), "w_2": nn.Linear(c.linear_units, c.width)}
        )
        self.norm_ff = nn.LayerNorm(c.width, eps=1e-12)
        self.norm_mha = nn.LayerNorm(c.width, eps=1e-12)
        self.dropout = nn.Dropout(c.dropout)

    def forward(
        self, x: Tensor, positions: Tensor | None, mask: Tensor | None, cache: Cache | None
    ) -> Tensor:
        x = x + self.dropout(self.self_attn(self.norm_mha(x), positions, mask, cache))
        inner = self.dropout(F.silu(self.feed_forward["w_1"](self.norm_ff(x))))
        return x + self.dropout(self.feed_forward["w_2"](inner))


class InputLayer(nn.Module):
    """Linear, LayerNorm, times sqrt(D)."""

    def __init__(self, c: EncoderConfig):
        super().__init__()
        self.out = nn.Sequential(nn.Linear(c.width, c.width), nn.LayerNorm(c.width), nn.Dropout(c.dropout))
        self.dropout = nn.Dropout(c.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.out(x) * math.sqrt(x.shape[-1]))


class LookAhead(nn.Module):
    """Each token sees the next `look_ahead` ones; beyond the end they are zero.

    Source: CosyVoice 2, arXiv 2412.10117, section 2.4.
    """

    def __init__(self, width: int, look_ahead: int):
        super().__init__()
        self.conv1 = nn.Conv1d(width, width, look_ahead + 1)
        self.conv2 = CausalConv(width, width, 3)

    def forward(self, x: Tensor, drop_tail: int, cache: Cache | None) -> Tensor:
        """Args: x (B, N, D), whose last `drop_tail` tokens are context only. Returns (B, N - drop_tail, D)."""
        ahead = F.pad(x, (0, 0, 0, self.conv1.kernel_size[0] - 1)).transpose(1, 2)
        keep = x.shape[1] - drop_tail
        ahead = F.leaky_relu(self.conv1(ahead).transpose(1, 2)[:, :keep])
        return x[:, :keep] + self.conv2(ahead, cache)


class UpsampleEncoder(nn.Module):
    """Look-ahead, transformer at 25 Hz, doubling, transformer at 50 Hz.

    Source: CosyVoice 2, arXiv 2412.10117, section 2.4.
    """

    def __init__(self, c: EncoderConfig):
        super().__init__()
        self.config = c
        self.embed = InputLayer(c)
        self.after_norm = nn.LayerNorm(c.width)
        self.pre_lookahead_layer = LookAhead(c.width, c.look_ahead)
        self.encoders = nn.ModuleList(EncoderLayer(c) for _ in range(c.blocks))
        self.up_layer = nn.ModuleDict({"conv": CausalConv(c.width, c.width, 2 * RATIO + 1)})
        self.up_embed = InputLayer(c)
        self.up_encoders = nn.ModuleList(EncoderLayer(c) for _ in range(c.up_blocks))

    def forward(
        self,
        x: Tensor,
        lengths: Tensor | None,
        streaming: bool,
        drop_tail: int = 0,
        cache: Cache | None = None,
        past: int = 0,
        zero_padding: bool = True,
        seen: Tensor | None = None,
    ) -> Tensor:
        """Encode embedded tokens.

        Args:
            x: (B, N, D).
            lengths: (B,), or None when no item is padded.
            drop_tail: tokens at the end that serve as look-ahead only (all items full length, or lengths count them).
            cache, past: streaming state and the tokens already in it.
            zero_padding: the look-ahead sees zeros after an item's end, as it would alone. The reference lets it see the
                embedding of padding there, so an item's last 3 tokens depend on the batch.
            seen: (B, past + N - drop_tail) tokens that are not padding, in a batch of streams of different ages: `lengths` are
                then those of x, and rows with `drop_tail` tokens less are at their end.

        Returns:
            (B, F, D), F = 2 (N - drop_tail).
        """
        x = self.embed(x)
        if lengths is not None:
            if zero_padding:
                x = x * length_mask(lengths, x.shape[1])[..., None]
            lengths = lengths - drop_tail
        x = self.pre_lookahead_layer(x, drop_tail, cache)
        x = self.stack(self.encoders, x, lengths, self.config.chunk if streaming else None, cache, past, seen)
        x = self.up_layer["conv"](x.repeat_interleave(RATIO, 1), cache)  # (B, F, D)
        x = self.up_embed(x)
        lengths = None if lengths is None else lengths * RATIO
        chunk = self.config.chunk * RATIO if streaming else None
        seen = None if seen is None else seen.repeat_interleave(RATIO, 1)
        return self.after_norm(self.stack(self.up_encoders, x, lengths, chunk, cache, past * RATIO, seen))

    def stack(
        self,
        layers: nn.ModuleList,
        x: Tensor,
        lengths: Tensor | None,
        chunk: int | None,
        cache: Cache | None,
        past: int,
        seen: Tensor | None,
    ) -> Tensor:
        queries, keys, positions = x.shape[1], past + x.shape[1], None
        if self.training or torch.is_grad_enabled():
            positions = relative_positions(queries, keys, x.shape[2], x.device)
            positions = F.dropout(positions, self.config.dropout, self.training)
        if seen is None and lengths is not None:
            seen = length_mask(lengths, keys)
        mask = attention_mask(queries, keys, seen, chunk, x.device)
        for layer in layers:
            x = layer(x, positions, mask, cache)
        return x
