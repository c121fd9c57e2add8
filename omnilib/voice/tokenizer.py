"""Speech tokenizer: 16 kHz log-mel -> 25 discrete codes a second (paper section 3.2: "CosyVoice2 FSQ, 25 Hz, 6,561 codes").

Architecture and checkpoint names are those of CosyVoice2's v2 tokenizer (S3 tokenizer v2):
  - two stride-2 convolutions take 100 mel frames/s to 25
  - pre-norm Transformer blocks; rotary positions; a depth-wise convolution over the values ("FSMN" memory) beside attention
  - finite scalar quantisation (FSQ): D numbers, each squashed by tanh and rounded to {-1, 0, 1}, make one of 3^D codes
Notable choices: sizes are free (`fsq_dims` D), attention is SDPA, and `forward` returns the rounded values with a
straight-through gradient so that the same class trains. Padded frames never reach a valid one.

Shapes: B batch, F mel frames (100 Hz), T codes (25 Hz) = ceil(F / 4), W width, H heads, D FSQ digits.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from omnilib import config as configs
from omnilib.attention import attend
from omnilib.storage import load_weights

FRAMES_PER_CODE = 4
TANH_SCALE = 0.9990000128746033  # keeps |value| < 1, as in the published weights


@dataclass
class SpeechTokenizerConfig:
    """Defaults are the published tokenizer's."""

    bands: int = 128  # mel bands in
    width: int = 1280
    heads: int = 20
    layers: int = 6
    kernel: int = 31  # FSMN memory, in codes
    fsq_dims: int = 8  # 3^8 = 6,561 codes

    @property
    def codes(self) -> int:
        return 3**self.fsq_dims


class Quantised(NamedTuple):
    """What one pass gives: hidden (B, T, W), latent before tanh (B, T, D), values in {-1, 0, 1} (B, T, D) with
    straight-through gradient, codes (B, T), lengths (B,)."""

    hidden: Tensor
    latent: Tensor
    values: Tensor
    codes: Tensor
    lengths: Tensor


def code_count(frames):
    """Codes for a number (or tensor) of mel frames: each stride-2 convolution halves, rounding up."""
    return (frames + FRAMES_PER_CODE - 1) // FRAMES_PER_CODE


def valid_mask(lengths: Tensor, size: int) -> Tensor:
    """True where a frame is real: (B, size)."""
    return torch.arange(size, device=lengths.device)[None] < lengths[:, None]


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # an ordinary tensor, usable in training too
def rotary_table(size: int, head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine of position x frequency, halves repeated: two of (size, head_dim)."""
    frequency = 1.0 / 10_000 ** (torch.arange(0, head_dim, 2, device=device).float() / head_dim)
    angle = torch.outer(torch.arange(size, device=device).float(), frequency).repeat(1, 2)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on (B, H, T, head_dim) (RoPE, arXiv 2104.09864, eq. 34)."""
    left, right = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-right, left), -1) * sin).to(x.dtype)


def values_to_codes(values: Tensor) -> Tensor:
    """Digits in {-1, 0, 1} (..., D) -> code = sum_i (digit_i + 1) 3^i (...).

    Source: FSQ, arXiv 2309.15505; CosyVoice 2, arXiv 2412.10117, section 2.2.
    """
    powers = 3 ** torch.arange(values.shape[-1], device=values.device)
    return ((values.detach().round().long() + 1) * powers).sum(-1)


def codes_to_values(codes: Tensor, dims: int) -> Tensor:
    """The inverse: (...) -> (..., D) float (FSQ, arXiv 2309.15505)."""
    powers = 3 ** torch.arange(dims, device=codes.device)
    return (codes.long()[..., None] // powers % 3 - 1).float()


class FSMNAttention(nn.Module):
    """Self-attention plus a depth-wise convolution over the values, which gives cheap local memory.

    Source: SAN-M, arXiv 2006.01713.
    """

    def __init__(self, width: int, heads: int, kernel: int):
        super().__init__()
        assert width % heads == 0, f"width {width} must divide into {heads} heads"
        self.heads = heads
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.fsmn_block = nn.Conv1d(width, width, kernel, groups=width, bias=False)
        self.sides = ((kernel - 1) // 2, kernel - 1 - (kernel - 1) // 2)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        split = lambda y: y.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # noqa: E731  (B, T, W) -> (B, H, T, head_dim)
        q, k, v = split(self.query(x)), split(self.key(x)), self.value(x)
        cos, sin = rotary_table(x.shape[1], q.shape[-1], x.device)
        mixed = attend(rotate(q, cos, sin), rotate(k, cos, sin), split(v), valid[:, None, None])
        v = v * valid[..., None]
        memory = (
            self.fsmn_block(nn.functional.pad(v.transpose(1, 2), self.sides)).transpose(1, 2) + v
        )  # (B, T, W)
        return self.out(mixed.transpose(1, 2).flatten(2)) + memory * valid[..., None]


class Block(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, width: int, heads: int, kernel: int):
        super().__init__()
        self.attn = FSMNAttention(width, heads, kernel)
        self.attn_ln = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.mlp_ln = nn.LayerNorm(width)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        x = x + self.attn(self.attn_ln(x), valid)
        return x + self.mlp(self.mlp_ln(x))


class Encoder(nn.Module):
    """Log-mel -> hidden states at 25 Hz."""

    def __init__(self, config: SpeechTokenizerConfig):
        super().__init__()
        self.conv1 = nn.Conv1d(config.bands, config.width, 3, stride=2, padding=1)
        self.conv2 = nn.Conv1d(config.width, config.width, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, config.kernel) for _ in range(config.layers)
        )

    def forward(self, mel: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        x = mel
        for conv in (
            self.conv1,
            self.conv2,
        ):  # padding is cut before each, so that it looks like the edge of a short file
            x = gelu(conv(x * valid_mask(lengths, x.shape[-1])[:, None]))  # (B, W, F/2), then (B, W, T)
            lengths = (lengths + 1) // 2
        x = x.transpose(1, 2)  # (B, T, W)
        valid = valid_mask(lengths, x.shape[1])
        for block in self.blocks:
            x = block(x, valid)
        return x, lengths


class Codebook(nn.Module):
    """FSQ: no table to learn, only the projection to D numbers.

    Source: FSQ, arXiv 2309.15505; CosyVoice 2, section 2.2.
    """

    def __init__(self, width: int, dims: int):
        super().__init__()
        self.project_down = nn.Linear(width, dims)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        latent = self.project_down(hidden).float()  # (B, T, D)
        squashed = latent.tanh() * TANH_SCALE
        return latent, squashed + (squashed.round() - squashed).detach()  # rounded forward, smooth backward


class Quantizer(nn.Module):
    """Holds the codebook under its published name."""

    def __init__(self, width: int, dims: int):
        super().__init__()
        self._codebook = Codebook(width, dims)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return self._codebook(hidden)


class SpeechTokenizer(nn.Module):
    """Log-mel spectrum -> FSQ codes at 25 Hz.

    Source: paper section 3.2; CosyVoice 2, arXiv 2412.10117, section 2.2.
    """

    def __init__(self, config: SpeechTokenizerConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quantizer = Quantizer(config.width, config.fsq_dims)
        self.init_weights()

    def init_weights(self) -> None:
        """PyTorch's defaults, but an identity-free FSMN memory near zero and an FSQ projection wide enough that all three
        digits occur from the first step (near zero everything would round to the same code)."""
        for block in self.encoder.blocks:
            nn.init.normal_(block.attn.fsmn_block.weight, std=0.02)
        projection = self.quantizer._codebook.project_down
        nn.init.normal_(projection.weight, std=1.0 / projection.in_features**0.5)
        nn.init.zeros_(projection.bias)

    def forward(self, mel: Tensor, lengths: Tensor) -> Quantised:
        """Log-mel (B, bands, F) with `lengths` (B,) in frames -> everything a loss needs."""
        assert mel.dim() == 3 and mel.shape[1] == self.config.bands, (
            f"expected (B, {self.config.bands}, F), got {tuple(mel.shape)}"
        )
        hidden, code_lengths = self.encoder(mel, lengths)  # (B, T, W)
        latent, values = self.quantizer(hidden)  # (B, T, D)
        return Quantised(hidden, latent, values, values_to_codes(values), code_lengths)

    @torch.inference_mode()
    def encode(self, mel: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Log-mel (B, bands, F) -> codes (B, T) and their lengths (B,); codes past a length are meaningless."""
        if lengths is None:
            lengths = torch.full((len(mel),), mel.shape[-1], device=mel.device)
        result = self(mel, lengths)
        return result.codes, result.lengths

    @classmethod
    def load(cls, folder: str | Path) -> "SpeechTokenizer":
        """Read a checkpoint folder (model.safetensors + config.yaml), ready for inference.

        Raises:
            CheckpointError, ConfigError: the folder is missing, truncated, or of another model.
        """
        model = cls(configs.load(SpeechTokenizerConfig, Path(folder) / "config.yaml"))
        load_weights(model, Path(folder) / "model.safetensors")
        return model.eval()
