"""Speaker encoder: Kaldi filter bank -> one vector a voice, which conditions the flow (paper section 3.2, code: CAM++ 192).

At paper scale the vector comes from the published CAM++ network through onnxruntime (`weights.py`). This small network of
the same interface is trained from nothing on the nano speakers: dilated convolutions with channel gates and attentive
pooling over time (ECAPA-TDNN, arXiv 2005.07143, much reduced). It is never used as a judge of similarity.

Shapes: B batch, F filter-bank frames (100 Hz), N network frames (50 Hz) = ceil(F / 2), W width, E vector size.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from omnilib import config as configs
from omnilib.storage import load_weights
from omnilib.voice.tokenizer import valid_mask


@dataclass
class SpeakerConfig:
    """Sizes of the encoder; the vector size is what the flow expects."""

    bands: int = 80
    width: int = 192
    dilations: list[int] = field(default_factory=lambda: [1, 2, 3])
    dim: int = 192


def masked_mean(x: Tensor, valid: Tensor) -> Tensor:
    """Mean over real frames: (B, C, N), (B, 1, N) -> (B, C, 1)."""
    return (x * valid).sum(-1, keepdim=True) / valid.sum(-1, keepdim=True)


class Layer(nn.Module):
    """Dilated convolution, 1x1 convolution, channel gate, residual.

    Source: ECAPA-TDNN, arXiv 2005.07143, section 3.
    """

    def __init__(self, width: int, dilation: int):
        super().__init__()
        self.conv = nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation)
        self.norm = nn.BatchNorm1d(width)
        self.mix = nn.Conv1d(width, width, 1)
        self.mix_norm = nn.BatchNorm1d(width)
        self.gate = nn.Sequential(
            nn.Conv1d(width, width // 4, 1), nn.ReLU(), nn.Conv1d(width // 4, width, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        y = self.norm(relu(self.conv(x)))
        y = self.mix_norm(relu(self.mix(y)))
        return (x + y * self.gate(masked_mean(y, valid))) * valid


class SpeakerEncoder(nn.Module):
    """Filter bank of any length -> vector (not normalised: the flow does that).

    Source: ECAPA-TDNN, arXiv 2005.07143; published: CAM++, arXiv 2303.00332.
    """

    def __init__(self, config: SpeakerConfig):
        super().__init__()
        self.config = config
        wide = config.width * len(config.dilations)
        self.start = nn.Conv1d(config.bands, config.width, 5, stride=2, padding=2)
        self.start_norm = nn.BatchNorm1d(config.width)
        self.layers = nn.ModuleList(Layer(config.width, d) for d in config.dilations)
        self.join = nn.Conv1d(wide, wide, 1)
        self.attention = nn.Sequential(
            nn.Conv1d(wide, config.width // 2, 1), nn.Tanh(), nn.Conv1d(config.width // 2, wide, 1)
        )
        self.pool_norm = nn.BatchNorm1d(2 * wide)
        self.out = nn.Linear(2 * wide, config.dim)

    def forward(self, fbank: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, F, bands), lengths (B,) in frames -> (B, E)."""
        if lengths is None:
            lengths = torch.full((len(fbank),), fbank.shape[1], device=fbank.device)
        valid = valid_mask(lengths, fbank.shape[1])[:, None].float()  # (B, 1, F)
        x = fbank.transpose(1, 2)  # (B, bands, F)
        x = (x - masked_mean(x, valid)) * valid  # loudness and microphone go, the voice stays
        valid = valid[..., ::2]  # (B, 1, N)
        x = self.start_norm(relu(self.start(x))) * valid  # (B, W, N)
        outputs = []
        for layer in self.layers:
            x = layer(x, valid)
            outputs.append(x)
        x = relu(self.join(torch.cat(outputs, 1))).float()  # (B, 3W, N)
        weight = self.attention(x).float().masked_fill(valid == 0, -1e4).softmax(-1)
        mean = (weight * x).sum(-1)  # (B, 3W)
        spread = ((weight * x.square()).sum(-1) - mean.square()).clamp(min=1e-4).sqrt()
        return self.out(self.pool_norm(torch.cat((mean, spread), 1)))  # (B, E)

    @classmethod
    def load(cls, folder: str | Path) -> "SpeakerEncoder":
        """Read a checkpoint folder (model.safetensors + config.yaml), ready for inference.

        Raises:
            CheckpointError, ConfigError: the folder is missing, truncated, or of another model.
        """
        model = cls(configs.load(SpeakerConfig, Path(folder) / "config.yaml"))
        load_weights(model, Path(folder) / "model.safetensors")
        return model.eval()
