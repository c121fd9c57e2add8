"""The flow's velocity field v(x_t, t | mu, speaker, prompt) (CosyVoice2's CausalConditionalDecoder).

A U-Net over mel frames; the published one has a single level, so nothing is down-sampled and everything is causal but
attention, which sees either all frames or whole chunks to the left. Parameter names are those of the published `flow.pt`;
tensors are (B, T, D) inside, so that a causal convolution is one matrix product and no layer transposes.

Shapes: B batch, F mel frames, T frames of a level, M mels, D width, H heads.
"""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnilib.attention import attend
from omnilib.voice.causal import Cache, CausalConv, attention_mask, bias_of


@dataclass
class EstimatorConfig:
    """Sizes of the U-Net; the defaults are CosyVoice 2's (arXiv 2412.10117, section 2.4)."""

    channels: list[int] = field(default_factory=lambda: [256])  # one entry a U-Net level
    heads: int = 8
    head_dim: int = 64
    blocks: int = 4  # transformer blocks after each residual block
    mid_blocks: int = 12
    chunk: int = 50  # frames


class Mish(nn.Module):
    """x tanh(log(1 + e^x)) written as x w / (w + 2), w = e^x (e^x + 2): half the time of `nn.Mish` on a CPU.

    Source: arXiv 1908.08681.
    """

    def forward(self, x: Tensor) -> Tensor:
        e = x.clamp(max=20).exp()  # beyond 20 the factor is 1, and e^x must not overflow
        w = e * (e + 2)
        return x * (w / (w + 2))


class CausalBlock(nn.Module):
    """Causal convolution, LayerNorm, Mish: (B, T, D) -> (B, T, D) (Matcha-TTS, arXiv 2309.03199)."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        # The reference transposes at places 1 and 3; the numbering of the weights remembers it.
        self.block = nn.Sequential(
            CausalConv(inputs, outputs, 3), nn.Identity(), nn.LayerNorm(outputs), nn.Identity(), Mish()
        )

    def forward(self, x: Tensor, cache: Cache | None) -> Tensor:
        conv, _, norm, _, activation = self.block
        return activation(norm(conv(x, cache)))


class ResidualBlock(nn.Module):
    """Two causal convolutions with the time added between (Matcha-TTS, arXiv 2309.03199)."""

    def __init__(self, inputs: int, outputs: int, time_width: int):
        super().__init__()
        self.mlp = nn.Sequential(Mish(), nn.Linear(time_width, outputs))
        self.block1, self.block2 = CausalBlock(inputs, outputs), CausalBlock(outputs, outputs)
        self.res_conv = CausalConv(inputs, outputs, 1)

    def forward(self, x: Tensor, time: Tensor, cache: Cache | None) -> Tensor:
        h = self.block1(x, cache) + self.mlp(time)[:, None]
        return self.block2(h, cache) + F.linear(x, self.res_conv.weight[..., 0], self.res_conv.bias)


class TransformerBlock(nn.Module):
    """Pre-norm attention and feed-forward, both residual: (B, T, D) (Matcha-TTS, arXiv 2309.03199)."""

    def __init__(self, width: int, heads: int, head_dim: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width)
        attention = {
            name: nn.Linear(width, heads * head_dim, bias=False) for name in ("to_q", "to_k", "to_v")
        }
        self.attn1 = nn.ModuleDict(
            attention | {"to_out": nn.ModuleList([nn.Linear(heads * head_dim, width)])}
        )
        up, down = nn.ModuleDict({"proj": nn.Linear(width, 4 * width)}), nn.Linear(4 * width, width)
        self.ff = nn.ModuleDict({"net": nn.ModuleList([up, nn.Identity(), down])})

    def forward(self, x: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        h = self.norm1(x)
        q, k, v = (
            self.attn1[n](h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for n in ("to_q", "to_k", "to_v")
        )
        if cache is not None:
            k, v = cache.extend(torch.stack([k, v]), 3)
        h = attend(q, k, v, mask)  # (B, H, T, head_dim)
        x = x + self.attn1["to_out"][0](h.transpose(1, 2).flatten(2))
        up, _, down = self.ff["net"]
        return x + down(F.gelu(up["proj"](self.norm3(x))))


class Resample(nn.Module):
    """Between U-Net levels: halves or doubles the frame rate (the published model has one level and needs none)."""

    def __init__(self, width: int, up: bool):
        super().__init__()
        self.conv = nn.ConvTranspose1d(width, width, 4, 2, 1) if up else nn.Conv1d(width, width, 3, 2, 1)

    def forward(self, x: Tensor, cache: Cache | None) -> Tensor:
        assert cache is None, "a U-Net of several levels is not causal: FlowStream needs one level"
        return self.conv(x.transpose(1, 2)).transpose(1, 2)


class Estimator(nn.Module):
    """v(x_t, t | mu, speaker, prompt): a causal U-Net of residual and transformer blocks.

    Padding stands at the right and convolutions look left, so only attention and `Resample` need to know of it.

    Source: CosyVoice 2, arXiv 2412.10117, section 2.4.
    """

    def __init__(self, mels: int, c: EstimatorConfig):
        super().__init__()
        self.config, self.inputs = c, 4 * mels
        time_width, widths = 4 * c.channels[0], [4 * mels, *c.channels]

        def blocks(width: int) -> nn.ModuleList:
            return nn.ModuleList(TransformerBlock(width, c.heads, c.head_dim) for _ in range(c.blocks))

        self.time_mlp = nn.ModuleDict(
            {"linear_1": nn.Linear(self.inputs, time_width), "linear_2": nn.Linear(time_width, time_width)}
        )
        self.down_blocks, self.mid_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for inputs, outputs in zip(widths[:-1], widths[1:], strict=True):
            last = len(self.down_blocks) == len(c.channels) - 1
            step = CausalConv(outputs, outputs, 3) if last else Resample(outputs, up=False)
            self.down_blocks.append(
                nn.ModuleList([ResidualBlock(inputs, outputs, time_width), blocks(outputs), step])
            )
        for _ in range(c.mid_blocks):
            width = c.channels[-1]
            self.mid_blocks.append(nn.ModuleList([ResidualBlock(width, width, time_width), blocks(width)]))
        back = [*reversed(c.channels), c.channels[0]]
        for inputs, outputs in zip(back[:-1], back[1:], strict=True):
            last = len(self.up_blocks) == len(c.channels) - 1
            step = CausalConv(outputs, outputs, 3) if last else Resample(outputs, up=True)
            self.up_blocks.append(
                nn.ModuleList([ResidualBlock(2 * inputs, outputs, time_width), blocks(outputs), step])
            )
        self.final_block = CausalBlock(back[-1], back[-1])
        self.final_proj = CausalConv(back[-1], mels, 1)

    def forward(
        self,
        x: Tensor,
        mu: Tensor,
        t: Tensor,
        speaker: Tensor,
        prompt: Tensor,
        valid: Tensor | None = None,
        streaming: bool = False,
        cache: Cache | None = None,
        past: int = 0,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Velocity of x (B, F, M) at t (B,) given mu, prompt (B, F, M) and speaker (B, M); valid (B, F) marks real frames.

        `bias` stands in place of the mask that follows from valid, streaming and past (one level only).
        """
        time = self.embed_time(t)  # (B, 4 * D)
        x = torch.cat([x, mu, speaker[:, None].expand_as(x), prompt], -1)  # (B, F, 4 M)
        chunk = self.config.chunk if streaming else None
        biases = {} if bias is None else {x.shape[1]: bias}  # frames of a level -> what its attention may see

        def run(residual: ResidualBlock, blocks: nn.ModuleList, x: Tensor, valid: Tensor | None) -> Tensor:
            x = residual(x, time, cache)
            size = x.shape[1]
            if size not in biases:
                biases[size] = bias_of(attention_mask(size, past + size, valid, chunk, x.device), x.dtype)
            for block in blocks:
                x = block(x, biases[size], cache)
            return x

        levels = []  # (skip connection, valid frames) of each level on the way down
        for residual, blocks, step in self.down_blocks:
            x = run(residual, blocks, x, valid)
            levels.append((x, valid))
            if isinstance(step, Resample) and valid is not None:
                x, valid = x * valid[..., None], valid[:, ::2]
            x = step(x, cache)
        for residual, blocks in self.mid_blocks:
            x = run(residual, blocks, x, valid)
        for residual, blocks, step in self.up_blocks:
            skip, valid = levels.pop()
            x = run(residual, blocks, torch.cat([x[:, : skip.shape[1]], skip], -1), valid)
            if isinstance(step, Resample) and valid is not None:
                x = x * valid[..., None]
            x = step(x, cache)
        x = self.final_block(x, cache)
        v = F.linear(x, self.final_proj.weight[..., 0], self.final_proj.bias)  # (B, F, M)
        return v if valid is None else v * valid[..., None]

    def embed_time(self, t: Tensor) -> Tensor:
        """Sinusoids of 1000 t through a small network: (B,) -> (B, 4 * D)."""
        half = self.inputs // 2
        rates = torch.exp(torch.arange(half, device=t.device) * -(math.log(10000) / (half - 1)))
        angle = 1000 * t[:, None] * rates
        waves = torch.cat([angle.sin(), angle.cos()], -1).to(self.time_mlp["linear_1"].weight.dtype)
        hidden = F.silu(self.time_mlp["linear_1"](waves))
        return self.time_mlp["linear_2"](hidden)
