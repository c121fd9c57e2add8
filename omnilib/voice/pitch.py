"""Pitch for the flow: measured in a recording, read from the encoder, drawn into the first mel.

Codes hold little of the pitch of a voice, so an encoder that regresses mels from them averages the harmonics away, and with them
much of what tells one voice from another (see reports/LOG.md, "Flow"). But the harmonics of a log-mel are known as soon as the
pitch is: a voice is a source with overtones at f0, 2 f0, ... through a filter, and log |source x filter| is a sum. So

    mu = smooth(h) + gain(h) * ripple(f0)      f0 = level * 2 ** octaves(h)      where voiced(h), else no ripple

with h the encoder's output, `ripple` what a row of equal overtones looks like in this mel without its slow part (a table), and
`level` the median pitch of the reference recording: one number that a recording tells and codes do not. In training the measured
pitch stands in place of the read one, so that `gain` learns from the right harmonics.

This is ours: the published flow has no such part, and a config without `pitch` builds the published one.

Shapes: B batch, T samples, F frames (50 Hz), D width, M mels.
"""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnilib.audio import MEL_HOP, VOICE_RATE, slaney_filters

LOW, HIGH = 60.0, 420.0  # Hz, of a speaking voice
ROWS = 256  # of the table, 1 % apart
MIDDLE = 160.0  # Hz: a level is given to the encoder in octaves from here
SMOOTH = 5  # mel bands that make up the slow part
LEAST_VOICED = 10  # frames, for a level
LEVEL_NOISE = 0.05  # octaves


@torch.no_grad()
def measure_pitch(
    wave: Tensor, rate: int = VOICE_RATE, hop: int = MEL_HOP, low: float = LOW, high: float = HIGH
) -> Tensor:
    """Fundamental frequency of each mel frame in Hz, 0 where unvoiced: (B, T) -> (B, T // hop).

    Boersma's autocorrelation at a third of the rate: the windowed frame's autocorrelation over the window's own, the best
    lag with a small preference for short ones (against octave drops), refined by a parabola, then a median over 5 frames.
    """
    frames = wave.shape[-1] // hop
    third = F.avg_pool1d(wave[:, None], 3)[:, 0]  # (B, T/3): speech pitch needs no more
    rate, hop, size = (
        rate // 3,
        hop // 3,
        320,
    )  # 320 samples: 40 ms, more than two periods at the lowest pitch
    third = F.pad(third, (size // 2 - hop // 2, size))
    x = third.unfold(-1, size, hop)[:, :frames]  # (B, F, size)
    energy = x.square().mean(-1).sqrt()
    x = x - x.mean(-1, keepdim=True)
    window = torch.hann_window(size, device=wave.device)

    def autocorrelate(y: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(y, 2 * size).abs().square())[..., :size]

    r, rw = autocorrelate(x * window), autocorrelate(window)
    r = r / (r[..., :1] + 1e-9) / (rw / rw[0]).clamp(min=0.05)
    first, last = int(rate / high), int(rate / low)
    lags = torch.arange(first, last + 1, device=wave.device)
    scored = r[..., first : last + 1] - 0.02 * torch.log2(lags / first)
    best = scored.argmax(-1, keepdim=True) + first  # (B, F, 1)
    left, middle, right = (r.gather(-1, best + d)[..., 0] for d in (-1, 0, 1))
    shift = 0.5 * (left - right) / (left - 2 * middle + right).clamp(max=-1e-6)
    f0 = rate / (best[..., 0] + shift.clamp(-0.5, 0.5))
    loud = energy > 0.03 * energy.amax(-1, keepdim=True).clamp(min=0.01)
    f0 = torch.where((middle > 0.5) & loud, f0, torch.zeros_like(f0))
    return F.pad(f0, (2, 2), mode="replicate").unfold(-1, 5, 1).median(-1).values


def level_of(pitch: Tensor) -> Tensor:
    """Median pitch of the voiced frames: (B, F) Hz -> (B,) Hz; 0 where fewer than `LEAST_VOICED` are voiced."""
    voiced = pitch > 0
    middle = pitch.masked_fill(~voiced, math.nan).nanmedian(-1).values
    return torch.where(voiced.sum(-1) >= LEAST_VOICED, middle, 0.0)


@lru_cache(maxsize=4)
@torch.inference_mode(False)
def ripples(window: int, mels: int = 80) -> Tensor:
    """Log-mel of equal overtones in sines of random phase, less its mean over `SMOOTH` bands: (ROWS, M), by rising pitch."""
    f0 = torch.logspace(math.log2(LOW), math.log2(HIGH), ROWS, base=2.0, dtype=torch.float64)[:, None, None]
    bins = torch.arange(961, dtype=torch.float64)[None, :, None] * (
        VOICE_RATE / 1920
    )  # Hz, those of `mel_80`
    order = (bins / f0).round() + torch.arange(-3, 4)  # the overtones nearest to a bin: (ROWS, 961, 7)
    distance = (bins - order * f0) * window / VOICE_RATE  # in bins of a transform as long as the window
    hann = torch.sinc(distance) / (1 - distance.square()).where(distance.abs() != 1, torch.inf)
    hann = hann.where(distance.abs() != 1, 0.5)  # the transform of a Hann window, at its peak 1
    power = (hann.square() * (order > 0)).sum(-1)  # (ROWS, 961)
    mel = power.sqrt() @ slaney_filters(VOICE_RATE, 1920, mels, 0.0, 8000.0).double().T  # (ROWS, M)
    log = (mel + 0.05 * mel.mean(1, keepdim=True)).log()  # between overtones a voice is breathy, not silent
    padded = F.pad(log[:, None], (SMOOTH // 2, SMOOTH // 2), mode="replicate")
    return (log - F.avg_pool1d(padded, SMOOTH, 1)[:, 0]).float()


def ripple(pitch: Tensor, window: int, mels: int = 80) -> Tensor:
    """The row of `ripples` for each pitch in Hz, between two rows by a line; zero where the pitch is: (B, F) -> (B, F, M)."""
    rows = ripples(window, mels).to(pitch.device)
    place = (pitch.clamp(LOW, HIGH) / LOW).log2() * ((ROWS - 1) / math.log2(HIGH / LOW))
    below = place.long().clamp(max=ROWS - 2)
    part = (place - below)[..., None]
    return torch.lerp(rows[below], rows[below + 1], part) * (pitch > 0)[..., None]


class PitchPrior(nn.Module):
    """The pitch of speech from the encoder's output and the voice's level, and its ripple in the first mel.

    Source: the source-filter idea in the log spectrum; ours, see the module docstring.
    """

    def __init__(self, width: int, mels: int, speaker_dim: int, window: int):
        super().__init__()
        self.mels, self.window = mels, window
        self.level_in = nn.Linear(1, width)
        self.level_of_speaker = nn.Linear(speaker_dim, 1)  # for a voice without a recording
        self.contour = nn.Linear(width, 2)  # octaves from the level, voiced or not
        self.gain = nn.Linear(width, mels)
        nn.init.zeros_(self.gain.weight)
        nn.init.constant_(
            self.gain.bias, 0.3
        )  # a voice has less ripple than its model, and a flow counts in deviations

    def octaves(self, level: Tensor) -> Tensor:
        """Level in Hz (B,) -> octaves from `MIDDLE` (B,)."""
        return (level.clamp(LOW, HIGH) / MIDDLE).log2()

    def guess(self, speaker: Tensor) -> Tensor:
        """Octaves from `MIDDLE` that a speaker vector (B, 192) makes likely: (B,)."""
        return self.level_of_speaker(F.normalize(speaker, dim=1))[:, 0]

    def level(self, level: Tensor | None, speaker: Tensor) -> Tensor:
        """The level (B,) in Hz, guessed from the speaker vector where it is unknown (None or 0)."""
        guess = (MIDDLE * 2.0 ** self.guess(speaker).float().detach()).clamp(LOW, HIGH)
        return guess if level is None else torch.where(level > 0, level, guess)

    def learnt_level(
        self, pitch: Tensor, prompt_frames: Tensor | None, speaker: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """Levels (B,) in Hz for training: of the prompt, or of the whole item, where the prompt is no other recording; a few
        percent off, as two recordings of one voice are."""
        shown = pitch
        if prompt_frames is not None:
            shown = pitch * (torch.arange(pitch.shape[1], device=pitch.device) < prompt_frames[:, None])
        noise = torch.randn(len(pitch), generator=generator).to(pitch.device)
        return self.level(level_of(shown), speaker) * 2.0 ** (LEVEL_NOISE * noise)

    def embed(self, level: Tensor) -> Tensor:
        """Levels (B,) in Hz -> (B, D)."""
        return self.level_in(self.octaves(level)[:, None])

    def read(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """hidden (B, F, D) -> octaves from the level, and the logit of being voiced: (B, F) each."""
        octaves, voiced = self.contour(hidden).float().unbind(-1)
        return octaves, voiced

    def pitch(self, hidden: Tensor, level: Tensor) -> Tensor:
        """Hz of each frame, 0 where unvoiced: (B, F)."""
        octaves, voiced = self.read(hidden)
        return (level[:, None] * 2.0**octaves).clamp(LOW, HIGH) * (voiced > 0)

    def forward(self, hidden: Tensor, pitch: Tensor) -> Tensor:
        """What the harmonics of `pitch` (B, F) Hz add to the first mel of hidden (B, F, D): (B, F, M)."""
        return self.gain(hidden) * ripple(pitch, self.window, self.mels)

    def loss(self, hidden: Tensor, level: Tensor, speaker: Tensor, pitch: Tensor, valid: Tensor) -> Tensor:
        """Absolute error in octaves of voiced frames, of the level guessed, and cross-entropy of voicing.

        Args:
            hidden: (B, F, D). level: (B,) Hz. speaker: (B, 192).
            pitch: (B, F) Hz as measured, 0 where unvoiced. valid: (B, F), False in padding.
        """
        octaves, logit = self.read(hidden)
        voiced = (pitch > 0) & valid
        target = (pitch.clamp(min=LOW) / level[:, None]).log2()
        contour = ((octaves - target).abs() * voiced).sum() / voiced.sum().clamp(min=1)
        voicing = F.binary_cross_entropy_with_logits(logit[valid], voiced[valid].float())
        return contour + voicing + (self.guess(speaker).float() - self.octaves(level)).abs().mean()
