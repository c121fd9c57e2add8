"""Discriminators and losses that train the vocoder (paper section 3.2; HiFi-GAN and CosyVoice2's recipe).

Two families judge a wave: one folds it at prime periods (HiFi-GAN), one looks at complex spectra split into bands
(Descript's, as CosyVoice uses it). A discriminator returns its score map and the inner maps that feature matching compares.

Shapes: B batch, T samples, C channels, P period, W frames, Q frequency bins.
"""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from omnilib.audio import slaney_filters, table

Judged = tuple[Tensor, list[Tensor]]  # score map, inner maps


@dataclass
class DiscriminatorConfig:
    """Defaults are the published recipe's; `nano` shrinks the channels only."""

    periods: list[int] = field(default_factory=lambda: [2, 3, 5, 7, 11])
    period_channels: list[int] = field(default_factory=lambda: [32, 128, 512, 1024, 1024])
    fft_sizes: list[int] = field(default_factory=lambda: [2048, 1024, 512])
    band_edges: list[float] = field(default_factory=lambda: [0.0, 0.1, 0.25, 0.5, 0.75, 1.0])
    band_channels: int = 32


class PeriodDiscriminator(nn.Module):
    """Folds the wave into rows of one period and convolves along the columns.

    Source: HiFi-GAN, arXiv 2010.05646, section 2.3.
    """

    def __init__(self, period: int, channels: list[int]):
        super().__init__()
        self.period = period
        widths = [1, *channels]
        strides = [3] * (len(channels) - 1) + [1]
        self.convs = nn.ModuleList(
            weight_norm(nn.Conv2d(widths[i], widths[i + 1], (5, 1), (stride, 1), padding=(2, 0)))
            for i, stride in enumerate(strides)
        )
        self.conv_post = weight_norm(nn.Conv2d(channels[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, wave: Tensor) -> Judged:
        x = F.pad(wave[:, None], (0, -wave.shape[-1] % self.period), mode="reflect")  # (B, 1, T')
        x = x.unflatten(-1, (-1, self.period))  # (B, 1, T'/P, P)
        inner = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.1)
            inner.append(x)
        score = self.conv_post(x)
        return score.flatten(1), [*inner, score]


class ResolutionDiscriminator(nn.Module):
    """Convolves the complex spectrum at one FFT size, each frequency band with its own filters.

    Source: Descript Audio Codec, arXiv 2306.06546.
    """

    def __init__(self, n_fft: int, edges: list[float], channels: int):
        super().__init__()
        self.n_fft = n_fft
        cuts = [int(edge * (n_fft // 2 + 1)) for edge in edges]
        self.bands = list(zip(cuts[:-1], cuts[1:], strict=True))
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)

        def stack() -> nn.ModuleList:
            layers = [nn.Conv2d(2, channels, (3, 9), padding=(1, 4))]
            layers += [nn.Conv2d(channels, channels, (3, 9), (1, 2), padding=(1, 4)) for _ in range(3)]
            layers += [nn.Conv2d(channels, channels, (3, 3), padding=(1, 1))]
            return nn.ModuleList(weight_norm(layer) for layer in layers)

        self.band_convs = nn.ModuleList(stack() for _ in self.bands)
        self.conv_post = weight_norm(nn.Conv2d(channels, 1, (3, 3), padding=(1, 1)))

    def forward(self, wave: Tensor) -> Judged:
        wave = wave - wave.mean(-1, keepdim=True)
        wave = 0.8 * wave / (wave.abs().amax(-1, keepdim=True) + 1e-9)  # loudness must not give a fake away
        spectrum = torch.stft(
            wave.float(), self.n_fft, self.n_fft // 4, window=self.window, return_complex=True
        )  # (B, Q, W)
        spectrum = torch.view_as_real(spectrum).permute(0, 3, 2, 1)  # (B, 2, W, Q)
        inner, bands = [], []
        for (low, high), stack in zip(self.bands, self.band_convs, strict=True):
            x = spectrum[..., low:high]
            for i, conv in enumerate(stack):
                x = F.leaky_relu(conv(x), 0.1)
                if i > 0:
                    inner.append(x)
            bands.append(x)
        score = self.conv_post(torch.cat(bands, dim=-1))
        return score.flatten(1), [*inner, score]


class Discriminators(nn.Module):
    """Every period and every resolution: wave (B, T) -> list of judgements."""

    def __init__(self, config: DiscriminatorConfig):
        super().__init__()
        self.mpd = nn.ModuleList(PeriodDiscriminator(p, config.period_channels) for p in config.periods)
        self.mrd = nn.ModuleList(
            ResolutionDiscriminator(n, config.band_edges, config.band_channels) for n in config.fft_sizes
        )

    def forward(self, wave: Tensor) -> list[Judged]:
        return [judge(wave) for judge in [*self.mpd, *self.mrd]]


# ------------------------------------------------------------------------------------------------------- losses


def discriminator_loss(real: list[Judged], fake: list[Judged]) -> Tensor:
    """Least squares: real scores towards 1, fake ones towards 0, summed over the discriminators.

    Source: HiFi-GAN, arXiv 2010.05646, eq. 1.
    """
    pairs = zip(real, fake, strict=True)
    return sum((1 - r.float()).square().mean() + f.float().square().mean() for (r, _), (f, _) in pairs)


def adversarial_loss(fake: list[Judged]) -> Tensor:
    """Least squares seen by the generator: fake scores towards 1 (HiFi-GAN, arXiv 2010.05646, eq. 2)."""
    return sum((1 - f.float()).square().mean() for f, _ in fake)


def feature_loss(real: list[Judged], fake: list[Judged]) -> Tensor:
    """Feature matching: L1 between the inner maps of both waves, times 2 as in HiFi-GAN.

    Source: HiFi-GAN, arXiv 2010.05646, eq. 4.
    """
    pairs = zip(real, fake, strict=True)
    return 2 * sum(
        F.l1_loss(g.float(), r.detach().float())
        for (_, rs), (_, gs) in pairs
        for r, g in zip(rs, gs, strict=True)
    )


def relativistic_loss(real: list[Judged], fake: list[Judged], tau: float = 0.04) -> Tensor:
    """Truncated point-wise relativistic term: where a fake beats its real partner by more than the median, up to tau.

    Source: HiFTNet, arXiv 2309.09493.
    """
    total = torch.zeros((), device=real[0][0].device)
    for (r, _), (f, _) in zip(real, fake, strict=True):
        gap = r.float() - f.float()
        excess = (gap - gap.median()).square()[gap < gap.median()]
        total = total + tau - F.relu(tau - excess.mean())
    return total


def spectral_loss(real: Tensor, fake: Tensor, fft_sizes: tuple[int, ...] = (512, 1024, 2048)) -> Tensor:
    """Multi-resolution STFT loss: relative error of the magnitudes plus L1 of their logarithms, mean over sizes.

    Source: Parallel WaveGAN, arXiv 1910.11480.
    """
    total = torch.zeros((), device=real.device)
    for n_fft in fft_sizes:
        window = torch.hann_window(n_fft, device=real.device)
        spectra = torch.stft(torch.cat([real, fake]), n_fft, n_fft // 4, window=window, return_complex=True)
        magnitude = (
            spectra.real.square() + spectra.imag.square() + 1e-7
        ).sqrt()  # 1e-7: a finite slope at silence
        y, y_hat = magnitude.chunk(2)
        convergence = torch.linalg.vector_norm(y - y_hat) / torch.linalg.vector_norm(y)
        total = total + convergence + (y.log() - y_hat.log()).abs().mean()
    return total / len(fft_sizes)


def fine_mel_loss(real: Tensor, fake: Tensor, rate: int, bands: tuple[int, ...] = (20, 40, 80)) -> Tensor:
    """L1 of log-mels in windows of about 5, 10 and 20 ms, mean over them: bursts and consonants, which one long window smears
    and linear spectra outweigh with their many high bins (Descript's codec, arXiv 2306.06546, section 3.4)."""
    total = torch.zeros((), device=real.device)
    for count in bands:
        n_fft = 1 << round(math.log2(rate * count / 4000))
        window = torch.hann_window(n_fft, device=real.device)
        filters = table(real, slaney_filters, rate, n_fft, count, 0.0, rate / 2)
        spectra = torch.stft(torch.cat([real, fake]), n_fft, n_fft // 4, window=window, return_complex=True)
        y, y_hat = (filters @ (spectra.real.square() + spectra.imag.square()) + 1e-8).log().chunk(2)
        total = total + 0.5 * (y - y_hat).abs().mean()
    return total / len(bands)
