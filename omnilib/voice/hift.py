"""HiFT vocoder: mel spectrogram -> waveform (paper section 3.2, last arrow; CosyVoice2's 24 kHz vocoder).

HiFi-GAN blocks driven by a harmonic source (neural source-filter) and closed by an inverse STFT:

    mel -> f0 -> sines of f0, 2 f0, ... 9 f0 + noise -> source s
    mel -> conv -> [up-sample, add convolved STFT(s), residual blocks] x N -> magnitude, phase -> iSTFT -> wave

Notable choices
- Module names follow the published checkpoint, so `hift.pt` loads without renaming (see `published_keys`).
- The phase is accumulated in float64 at the frame rate and wrapped before it becomes float32: the reference adds up
  thousands of radians in float32, which drifts on long speech (up to 1e-3 on the fixtures, audible after minutes).
- The reference draws a random start phase per harmonic, adds it to sample 0 only, then reads each frame at its middle
  sample: the start phase never reaches the sum. We leave it out.
- Nothing here draws from the global random state unless asked to: noise is an argument.

Shapes: B batch, M mel bins, F mel frames (50 a second), L = F * hop samples, H harmonics + 1, C channels,
N = STFT frames of the head (L / hop_len + 1).
"""

import math
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

from omnilib import config as configs
from omnilib.audio import MEL_WINDOW
from omnilib.storage import load_weights
from omnilib.voice.company import Company

F0_REACH = 5  # frames to either side that a predicted f0 depends on: five convolutions of width 3
NOISE_SAMPLES = 1 << 17
CPU = torch.device("cpu")


@dataclass
class HiFTConfig:
    """Sizes of the generator; the defaults are CosyVoice2's (20.8 M parameters)."""

    in_channels: int = 80  # mel bins
    mel_window: int = MEL_WINDOW  # samples; the flow's must be the same
    base_channels: int = 512  # width after the first convolution, halved at every up-sampling
    nb_harmonics: int = 8  # overtones beside the fundamental
    sampling_rate: int = 24000
    nsf_alpha: float = 0.1  # amplitude of the sines
    nsf_sigma: float = 0.003  # noise added where voiced; alpha / 3 where not
    nsf_voiced_threshold: float = 10.0  # Hz
    upsample_rates: list[int] = field(default_factory=lambda: [8, 5, 3])
    upsample_kernel_sizes: list[int] = field(default_factory=lambda: [16, 11, 7])
    istft_n_fft: int = 16
    istft_hop_len: int = 4
    resblock_kernel_sizes: list[int] = field(default_factory=lambda: [3, 7, 11])
    resblock_dilation_sizes: list[list[int]] = field(default_factory=lambda: [[1, 3, 5]] * 3)
    source_resblock_kernel_sizes: list[int] = field(default_factory=lambda: [7, 7, 11])  # one per up-sampling
    source_resblock_dilation_sizes: list[list[int]] = field(default_factory=lambda: [[1, 3, 5]] * 3)
    lrelu_slope: float = 0.1
    audio_limit: float = 0.99
    f0_cond_channels: int = 512

    @property
    def hop(self) -> int:
        """Samples per mel frame."""
        return math.prod(self.upsample_rates) * self.istft_hop_len

    @property
    def reach(self) -> int:
        """Frames to either side that a sample depends on (the receptive field, rounded up)."""

        def block(kernel: int, dilations: list[int]) -> int:
            return sum((kernel - 1) // 2 * (d + 1) for d in dilations)

        frames, rate = float(F0_REACH), 1  # through the source; the first convolution reaches less far
        for i, (up, kernel) in enumerate(zip(self.upsample_rates, self.upsample_kernel_sizes, strict=True)):
            rate *= up
            source = block(self.source_resblock_kernel_sizes[i], self.source_resblock_dilation_sizes[i])
            body = max(map(block, self.resblock_kernel_sizes, self.resblock_dilation_sizes))
            frames += (kernel / 2 + 1 + source + body) / rate
        head = 4 + self.istft_n_fft // self.istft_hop_len  # last convolution and the overlap of both STFTs
        return math.ceil(frames + head / rate)


def published_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Keys of a released `hift.pt` as this module names them (training wrote a `generator.` prefix)."""
    return {key.removeprefix("generator."): value for key, value in state.items()}


def same_padding(kernel: int, dilation: int = 1) -> int:
    """Padding that keeps the length."""
    return (kernel - 1) * dilation // 2


class Snake(nn.Module):
    """x + sin(a x)^2 / a: a periodic activation whose frequency `a` is learnt per channel (BigVGAN).

    Source: BigVGAN, arXiv 2206.04658.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:  # (B, C, N)
        alpha = self.alpha[:, None].to(x.dtype)
        sine = torch.sin(alpha * x)
        return torch.addcmul(x, sine, sine * (alpha + 1e-9).reciprocal())


class ResBlock(nn.Module):
    """Residual pairs of convolutions: dilated, then plain (HiFi-GAN, arXiv 2010.05646, section 2.2)."""

    def __init__(self, channels: int, kernel: int, dilations: list[int]):
        super().__init__()

        def conv(dilation: int) -> nn.Module:
            return weight_norm(
                nn.Conv1d(
                    channels, channels, kernel, dilation=dilation, padding=same_padding(kernel, dilation)
                )
            )

        self.convs1 = nn.ModuleList([conv(d) for d in dilations])
        self.convs2 = nn.ModuleList([conv(1) for _ in dilations])
        self.activations1 = nn.ModuleList([Snake(channels) for _ in dilations])
        self.activations2 = nn.ModuleList([Snake(channels) for _ in dilations])

    def forward(self, x: Tensor) -> Tensor:  # (B, C, N)
        for act1, conv1, act2, conv2 in zip(
            self.activations1, self.convs1, self.activations2, self.convs2, strict=True
        ):
            x = x + conv2(act2(conv1(act1(x))))
        return x


class F0Predictor(nn.Module):
    """Five convolutions from mel to the fundamental frequency in Hz, one value a frame (near 0 = unvoiced).

    Source: HiFTNet, arXiv 2309.09493.
    """

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        widths = [in_channels] + [channels] * 5
        layers: list[nn.Module] = []
        for i in range(5):
            layers += [weight_norm(nn.Conv1d(widths[i], widths[i + 1], 3, padding=1)), nn.ELU()]
        self.condnet = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, 1)

    def forward(self, mel: Tensor) -> Tensor:  # (B, M, F)
        hidden = self.condnet(mel).transpose(1, 2)  # (B, F, C)
        return self.classifier(hidden).squeeze(-1).abs()  # (B, F)


def cycles_per_frame(f0: Tensor, harmonics: int, rate: int, hop: int) -> Tensor:
    """Cycles each overtone turns in a frame, whole turns per sample dropped: (B, F) Hz -> (B, H, F) float64."""
    order = torch.arange(1, harmonics + 1, device=f0.device, dtype=torch.float64)
    return (f0.double()[:, None] * order[:, None] / rate).remainder(1.0) * hop


def harmonic_phase(f0: Tensor, harmonics: int, rate: int, hop: int, start: Tensor | None = None) -> Tensor:
    """Phase, in cycles modulo 1, of f0 and its overtones at every sample (source filter: arXiv 1810.11946).

    The sum runs over frames (one frame adds `hop` samples) and is spread linearly between frame middles, so the first
    and last half frame hold their phase, as in the reference.

    Args:
        f0: (B, F) in Hz.
        start: (B, H) cycles turned before the first frame.
    Returns:
        (B, H, F * hop) float32.
    """
    phase = cycles_per_frame(f0, harmonics, rate, hop).cumsum(-1)  # (B, H, F)
    if start is not None:
        phase = phase + start[..., None]
    phase = F.interpolate(phase, scale_factor=float(hop), mode="linear")  # (B, H, L)
    return phase.remainder(1.0).float()


class HarmonicSource(nn.Module):
    """Sines where voiced plus noise everywhere, mixed into one excitation by a learnt linear layer.

    Source: source filter: arXiv 1810.11946.
    """

    def __init__(self, config: HiFTConfig):
        super().__init__()
        self.config = config
        self.l_linear = nn.Linear(config.nb_harmonics + 1, 1)

    def forward(
        self,
        f0: Tensor,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        start: Tensor | None = None,
    ) -> Tensor:
        """f0 (B, F) and unit noise (B, L, H), drawn from `generator` if absent -> excitation (B, 1, L).

        `start` (B, H): cycles turned before the first frame, when this is the continuation of a stream.
        """
        c = self.config
        with torch.no_grad():
            phase = harmonic_phase(f0, c.nb_harmonics + 1, c.sampling_rate, c.hop, start)
            sines = c.nsf_alpha * torch.sin(2 * math.pi * phase).transpose(1, 2)  # (B, L, H)
            voiced = (
                (f0 > c.nsf_voiced_threshold).float().repeat_interleave(c.hop, dim=1)[..., None]
            )  # (B, L, 1)
            if noise is None:
                noise = torch.randn(sines.shape, generator=generator, device=f0.device)
            amplitude = voiced * c.nsf_sigma + (1 - voiced) * c.nsf_alpha / 3
            mixed = sines * voiced + amplitude * noise
        return torch.tanh(self.l_linear(mixed)).transpose(1, 2)


class HiFT(nn.Module):
    """The generator (paper section 3.2; HiFTNet, arXiv 2309.09493).

    Example: `wave, source = HiFT(HiFTConfig()).inference(mel)` with mel (B, 80, F) gives wave (B, 480 F).
    """

    def __init__(self, config: HiFTConfig):
        super().__init__()
        self.config = c = config
        bins = c.istft_n_fft + 2  # real and imaginary part of every frequency
        widths = [c.base_channels // 2 ** (i + 1) for i in range(len(c.upsample_rates))]
        self.m_source = HarmonicSource(c)
        self.conv_pre = weight_norm(nn.Conv1d(c.in_channels, c.base_channels, 7, padding=3))
        self.ups, self.source_downs = nn.ModuleList(), nn.ModuleList()
        self.source_resblocks, self.resblocks = nn.ModuleList(), nn.ModuleList()
        for i, (rate, kernel, width) in enumerate(
            zip(c.upsample_rates, c.upsample_kernel_sizes, widths, strict=True)
        ):
            up = nn.ConvTranspose1d(width * 2, width, kernel, rate, padding=(kernel - rate) // 2)
            self.ups.append(weight_norm(up))
            down = math.prod(c.upsample_rates[i + 1 :])  # head frames per frame of this stage
            if down == 1:
                self.source_downs.append(nn.Conv1d(bins, width, 1))
            else:
                self.source_downs.append(nn.Conv1d(bins, width, 2 * down, down, padding=down // 2))
            self.source_resblocks.append(
                ResBlock(width, c.source_resblock_kernel_sizes[i], c.source_resblock_dilation_sizes[i])
            )
            blocks = zip(c.resblock_kernel_sizes, c.resblock_dilation_sizes, strict=True)
            self.resblocks.extend(ResBlock(width, k, d) for k, d in blocks)
        self.conv_post = weight_norm(nn.Conv1d(widths[-1], bins, 7, padding=3))
        self.f0_predictor = F0Predictor(c.in_channels, c.f0_cond_channels)
        self.company: Company | None = None  # see `Codec.meet`
        self.register_buffer("window", torch.hann_window(c.istft_n_fft), persistent=False)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """HiFi-GAN's rules: residual, up-sampling and last convolutions ~ N(0, 0.01); the rest as PyTorch leaves it.

        The f0 read-out starts 30 times larger: its target is in Hz (hundreds), the rest of the network in units.
        """
        blocks = [conv for b in [*self.resblocks, *self.source_resblocks] for conv in [*b.convs1, *b.convs2]]
        for conv in [*blocks, *self.ups, self.conv_post]:
            conv.weight = torch.randn_like(conv.weight) * 0.01
        self.f0_predictor.classifier.weight.mul_(30.0)

    def decode(self, mel: Tensor, source: Tensor) -> Tensor:
        """mel (B, M, F) and excitation (B, 1, L) -> wave (B, L) (iSTFTNet, arXiv 2203.02395)."""
        c = self.config
        s = torch.stft(
            source.squeeze(1).float(), c.istft_n_fft, c.istft_hop_len, window=self.window, return_complex=True
        )
        s = torch.cat([s.real, s.imag], dim=1)  # (B, n_fft + 2, N)
        x = self.conv_pre(mel)  # (B, C, F)
        kernels = len(c.resblock_kernel_sizes)
        for i, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, c.lrelu_slope))  # (B, C / 2, F * rate)
            if i == len(self.ups) - 1:
                x = F.pad(x, (1, 0), mode="reflect")  # a centred STFT has one frame more
            x = x + self.source_resblocks[i](self.source_downs[i](s))
            x = sum(block(x) for block in self.resblocks[i * kernels : (i + 1) * kernels]) / kernels
        x = self.conv_post(
            F.leaky_relu(x)
        ).float()  # (B, n_fft + 2, N); the slope here is 0.01 in the reference too
        half = c.istft_n_fft // 2 + 1
        magnitude = x[:, :half].exp().clamp(max=1e2)
        phase = torch.sin(x[:, half:])
        wave = torch.istft(torch.polar(magnitude, phase), c.istft_n_fft, c.istft_hop_len, window=self.window)
        return wave.clamp(-c.audio_limit, c.audio_limit)

    def forward(
        self, mel: Tensor, f0: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Training pass: wave (B, L) and predicted f0 (B, F). A given f0 (teacher forcing) drives the source instead."""
        predicted = self.f0_predictor(mel).float()
        source = self.m_source((predicted if f0 is None else f0).detach(), generator=generator)
        return self.decode(mel, source), predicted

    @torch.inference_mode()
    def inference(
        self,
        mel: Tensor,
        cache_source: Tensor | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """mel (B, M, F) -> wave (B, L), excitation (B, 1, L).

        Args:
            cache_source: (B, 1, n) excitation of the samples already spoken; replaces the first n of the new one, so a
                piece that repeats the end of the one before it repeats its phase as well.
            noise: (B, L, H) unit noise; drawn from `generator` (default: global) when absent.
        """
        source = self.m_source(self.f0_predictor(mel), noise, generator)
        if cache_source is not None and cache_source.shape[-1]:
            source = torch.cat([cache_source, source[..., cache_source.shape[-1] :]], dim=-1)
        return self.decode(mel, source), source

    def stream(self, context: int | None = None) -> "HiFTStream":
        """Start a stream of mel pieces (see `HiFTStream`)."""
        return HiFTStream(self, self.config.reach if context is None else context)

    @classmethod
    def load(cls, folder: str | Path) -> "HiFT":
        """Read a checkpoint folder (model.safetensors + config.yaml), ready for inference.

        Raises:
            CheckpointError, ConfigError: the folder is missing, truncated, or of another model.
        """
        model = cls(configs.load(HiFTConfig, Path(folder) / "config.yaml"))
        load_weights(model, Path(folder) / "model.safetensors")
        return model.eval()

    def fold_weight_norm(self) -> "HiFT":
        """Replace gain and direction by the weight itself: faster for short pieces; the result cannot be saved."""
        for module in self.modules():
            if parametrize.is_parametrized(module, "weight"):
                parametrize.remove_parametrizations(module, "weight")
        return self


@lru_cache(maxsize=4)
def fixed_noise(harmonics: int) -> Tensor:
    """Unit noise for speech of any length: (2^17 samples, H), about 5.5 s, used round and round."""
    return torch.randn(NOISE_SAMPLES, harmonics, generator=torch.Generator().manual_seed(0))


@lru_cache(maxsize=4)
def noise_on(harmonics: int, device: torch.device) -> Tensor:
    """`fixed_noise` copied to a device once."""
    return fixed_noise(harmonics).to(device)


def noise_at(start: int, count: int, harmonics: int, device: torch.device = CPU) -> Tensor:
    """Noise of samples start .. start + count, a function of the position alone: (1, count, H)."""
    samples = torch.arange(start, start + count, device=device) % NOISE_SAMPLES
    return noise_on(harmonics, device)[samples][None]


class HiFTStream:
    """Mel pieces in, wave pieces out, memory bounded: the same wave as one pass over the whole mel.

    Each call recomputes `context` frames to the left, holds back `context` frames at the right until the mel after them
    is known, and carries the phase of every harmonic. With context = `config.reach` no sample differs from the offline
    wave (beyond rounding); a shorter one costs less delay and errs at the seams.

    Example: `stream = model.stream(); wave = torch.cat([stream.push(a), stream.push(b, last=True)], 1)`
    """

    def __init__(self, model: HiFT, context: int):
        c, device = model.config, next(model.parameters()).device
        self.model, self.context = model, max(context, F0_REACH)
        self.mel = torch.zeros(1, c.in_channels, 0, device=device)  # frames first .. now
        self.f0 = torch.zeros(1, 0, device=device)  # of the same frames, up to where it is final
        self.turned = torch.zeros(
            1, c.nb_harmonics + 1, dtype=torch.float64, device=device
        )  # cycles before `first`
        self.size = 0, 0, 0  # frames that are known; those of the next piece: begin, end
        self.first = 0
        self.spoken = 0  # frames whose samples are out

    @torch.inference_mode()
    def push(self, mel: Tensor, last: bool = False) -> Tensor:
        """mel (1, M, F) -> the samples that are now certain (1, n); with `last` all the rest."""
        self.mel = torch.cat([self.mel, mel], dim=-1)
        frames = self.mel.shape[-1]
        begin, end = self.spoken - self.first, frames if last else frames - self.context
        if end <= begin:
            return self.mel.new_zeros(1, 0)
        self.size = frames, begin, end
        if self.model.company is not None:
            return self.model.company.piece(self, (*self.size, self.f0.shape[1]))
        return sounds([self])[0]

    def noise(self) -> Tensor:
        """Unit noise of the frames that are known: (1, L, H)."""
        c, frames = self.model.config, self.mel.shape[-1]
        return noise_at(self.first * c.hop, frames * c.hop, c.nb_harmonics + 1, self.mel.device)

    def move(self, f0: Tensor, end: int) -> None:
        """Samples of the frames before `end` are out; f0 (1, F)."""
        c, frames = self.model.config, f0.shape[1]
        drop = max(0, end - self.context)
        turned = cycles_per_frame(f0[:, :drop], c.nb_harmonics + 1, c.sampling_rate, c.hop).sum(-1)
        self.turned = (self.turned + turned).remainder(1.0)
        self.f0 = f0[:, drop : frames - F0_REACH]  # later values will still change with the frames to come
        self.mel = self.mel[..., drop:]
        self.first, self.spoken = self.first + drop, self.first + end


@torch.inference_mode()
def sounds(streams: list[HiFTStream]) -> list[Tensor]:
    """The next piece of every stream, all of one `size`, in one batch: samples (1, n) each."""
    model, (_, begin, end), known = streams[0].model, streams[0].size, streams[0].f0.shape[1]
    mel = torch.cat([stream.mel for stream in streams])  # (B, M, F)
    f0 = torch.cat([stream.f0 for stream in streams])
    f0 = torch.cat([f0, model.f0_predictor(mel)[:, known:]], dim=1)  # (B, F)
    noise, turned = (
        torch.cat(parts) for parts in zip(*((s.noise(), s.turned) for s in streams), strict=True)
    )
    hop = model.config.hop
    waves = model.decode(mel, model.m_source(f0, noise, start=turned))[:, begin * hop : end * hop]
    for i, stream in enumerate(streams):
        stream.move(f0[i : i + 1], end)
    return list(waves.split(1))
