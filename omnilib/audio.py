"""Sound in and out: files, resampling, and the three spectra of the paper's modules.

    log_mel_128   16 kHz, 100 frames/s   speech tokenizer and audio encoders (Whisper's log-mel)
    mel_80        24 kHz,  50 frames/s   flow matching and vocoder (CosyVoice2's mel)
    fbank_80      16 kHz, 100 frames/s   speaker encoder (Kaldi's filter bank)

Notable choices: filters and windows are computed once per setting and kept (the key holds *every* parameter: the reference
keys its cache on fmax and device only, so two settings in one process share one wrong bank), as ordinary tensors even when
first asked for inside `inference_mode`, so that a later training step may use them. All functions take one wave
or a batch, and a padded batch with `lengths` gives the same frames as each wave alone.

Shapes: B batch, T samples, F frames.
"""

import math
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import scipy.fft
import soundfile
import soxr
import torch
from torch import Tensor
from torch.nn.functional import conv1d, pad

from omnilib.errors import AudioError
from omnilib.recording import read

TOKENIZER_RATE = 16_000  # log_mel_128, fbank_80
VOICE_RATE = 24_000  # mel_80, everything the model speaks
LONGEST = 5400.0  # seconds of a file read at once: longer than anything the model speaks
FILTER_VALUES = 1 << 24  # filters of a rate ratio such as 16,000 : 44,101 would be larger than this
MEL_HOP, MEL_WINDOW = 480, 1920  # samples of mel_80


def load_wave(path: str | Path, rate: int) -> Tensor:
    """Read an audio file of at most LONGEST seconds as mono float32 at `rate`: (T,); see `omnilib.recording`.

    Raises:
        AudioError: the file is missing, not audio, empty, too long, cut short, damaged, or holds NaN or infinity.
    """
    samples, own_rate = read(path, LONGEST)
    return resample(torch.from_numpy(samples), own_rate, rate)  # (T,)


def save_wave(path: str | Path, wave: Tensor, rate: int) -> None:
    """Write 16-bit WAV under a temporary name, then rename, so a full disk never leaves half a file.

    Raises:
        AudioError: nothing to write, NaN samples, or the place is not writable.
    """
    path = Path(path)
    samples = wave.detach().float().cpu().reshape(-1).numpy()
    if samples.size == 0:
        raise AudioError(f"nothing to write to {path}: the wave is empty")
    if not np.isfinite(samples).all():
        raise AudioError(f"not writing {path}: the wave holds NaN or infinite samples")
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(str(temporary), samples.clip(-1.0, 1.0), rate, subtype="PCM_16", format="WAV")
        os.replace(temporary, path)
    except (OSError, soundfile.SoundFileError) as error:
        reason = str(error).splitlines()[0]
        raise AudioError(f"cannot write {path} ({reason}): choose a writable place with free space") from None
    finally:
        if path.parent.is_dir():
            temporary.unlink(missing_ok=True)


# --------------------------------------------------------------------------------------------------- resampling


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def sinc_filters(up: int, down: int, zeros: int = 6, rolloff: float = 0.99) -> tuple[Tensor, int]:
    """`up` phase filters of a Hann-windowed sinc for the rate ratio up/down: (up, 1, K), and their half width."""
    cutoff = min(up, down) * rolloff
    width = math.ceil(zeros * down / cutoff)
    offset = torch.arange(-width, width + down, dtype=torch.float64) / down  # (K,)
    phase = (
        -torch.arange(up, dtype=torch.float32).div(up).double()[:, None]
    )  # float32 phases, as the reference's are
    t = ((phase + offset) * cutoff).clamp(-zeros, zeros)  # (up, K)
    window = torch.cos(t * math.pi / zeros / 2) ** 2
    return (torch.sinc(t) * window * cutoff / down).float()[:, None], width


def resample(wave: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """Windowed-sinc resampling: (..., T) -> (..., ceil(T * to / from)); by soxr where the rates have hardly a common divisor."""
    if from_rate == to_rate:
        return wave
    common = math.gcd(from_rate, to_rate)
    up, down = to_rate // common, from_rate // common
    if up * down > FILTER_VALUES:
        rows = wave.detach().cpu().reshape(-1, wave.shape[-1])
        count = math.ceil(wave.shape[-1] * up / down)
        moved = [torch.from_numpy(soxr.resample(row.numpy(), from_rate, to_rate)) for row in rows]
        return (
            torch.stack([pad(row[:count], (0, max(0, count - len(row)))) for row in moved])
            .to(wave)
            .reshape(*wave.shape[:-1], count)
        )
    filters, width = sinc_filters(up, down)
    flat = wave.reshape(-1, 1, wave.shape[-1])  # (N, 1, T)
    phases = conv1d(pad(flat, (width, width + down)), filters.to(wave), stride=down)  # (N, up, T/down)
    count = math.ceil(wave.shape[-1] * up / down)
    return phases.transpose(1, 2).reshape(*wave.shape[:-1], -1)[..., :count]


# ------------------------------------------------------------------------------------------------- filter banks


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def slaney_filters(rate: int, n_fft: int, bands: int, low: float, high: float) -> Tensor:
    """Triangles of equal area on Slaney's mel scale (linear below 1 kHz, logarithmic above): (bands, n_fft/2 + 1)."""
    step, corner = 200.0 / 3, 1000.0
    log_step = math.log(6.4) / 27

    def to_mel(hertz: float) -> float:
        return hertz / step if hertz < corner else corner / step + math.log(hertz / corner) / log_step

    mels = np.linspace(to_mel(low), to_mel(high), bands + 2)
    edges = np.where(mels < corner / step, mels * step, corner * np.exp(log_step * (mels - corner / step)))
    bins = np.fft.rfftfreq(n_fft, 1.0 / rate)  # (n_fft/2 + 1,)
    rising = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    triangles = np.maximum(0, np.minimum(rising, falling)) * (2.0 / (edges[2:] - edges[:-2]))[:, None]
    return torch.from_numpy(triangles.astype(np.float32))


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def kaldi_filters(rate: int, n_fft: int, bands: int, low: float, high: float) -> Tensor:
    """Triangles of equal height on the HTK mel scale, straight in mel: (bands, n_fft/2 + 1), last column zero."""
    to_mel = lambda hertz: 1127.0 * np.log1p(np.asarray(hertz) / 700.0)  # noqa: E731
    edges = np.linspace(to_mel(low), to_mel(high), bands + 2)
    bins = to_mel(np.arange(n_fft // 2) * rate / n_fft)  # (n_fft/2,)
    rising = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    triangles = np.maximum(0, np.minimum(rising, falling)).astype(np.float32)
    return torch.from_numpy(np.pad(triangles, ((0, 0), (0, 1))))


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def hann(size: int) -> Tensor:
    """Periodic Hann window: (size,)."""
    return torch.hann_window(size)


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def povey(size: int) -> Tensor:
    """Kaldi's own window, between Hann and Hamming: (size,)."""
    return torch.hann_window(size, periodic=False).pow(0.85)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def placed(make: Callable[..., Tensor], arguments: tuple, device: torch.device, dtype: torch.dtype) -> Tensor:
    """`make(*arguments)`, copied to a device once."""
    return make(*arguments).to(device, dtype)


def table(like: Tensor, make: Callable[..., Tensor], *arguments: float) -> Tensor:
    """A window or filter bank on the device and in the type of `like`: a copy at each call would stall an accelerator."""
    return placed(make, arguments, like.device, like.dtype)


# ------------------------------------------------------------------------------------------------------ spectra


def reflect(wave: Tensor, side: int, lengths: Tensor | None) -> Tensor:
    """Mirror `side` samples at both ends of each wave; what lies beyond a padded row's mirror is zero: (B, T + 2 side)."""
    padded = pad(wave[:, None], (side, side), mode="reflect")[:, 0]  # (B, T + 2 side)
    for row, length in zip(padded, [] if lengths is None else lengths.tolist(), strict=lengths is not None):
        end = side + length
        row[end : end + side] = row[length - 1 : end - 1].flip(0)[: len(row) - end]
        row[end + side :] = 0.0
    return padded


def square(spectrum: Tensor) -> Tensor:
    """|z|^2 of a complex tensor."""
    return spectrum.real.square() + spectrum.imag.square()


def as_batch(wave: Tensor, least: int, what: str) -> Tensor:
    """(T,) or (B, T) -> (B, T), long enough for one window."""
    batch = wave[None] if wave.dim() == 1 else wave
    if batch.shape[-1] < least:
        raise AudioError(
            f"audio of {batch.shape[-1]} samples is too short for {what}: give at least {least} samples"
        )
    return batch


def log_mel(wave: Tensor, bands: int, lengths: Tensor | None = None) -> Tensor:
    """Whisper's log-mel of 16 kHz audio: (T,) or (B, T) -> (bands, F) or (B, bands, F), F = T // 160.

    Floored 8 decades below each wave's own maximum, so loudness hardly matters and no item of a batch disturbs another.
    """
    batch = as_batch(wave, 201, "a log-mel")
    padded = reflect(batch, 200, lengths)
    spectrum = torch.stft(padded, 400, 160, window=table(wave, hann, 400), center=False, return_complex=True)
    power = square(spectrum[..., :-1])  # (B, 201, F)
    mel = table(wave, slaney_filters, 16_000, 400, bands, 0.0, 8000.0) @ power  # (B, bands, F)
    log = mel.clamp(min=1e-10).log10()
    log = torch.maximum(log, log.amax(dim=(1, 2), keepdim=True) - 8.0)
    return ((log + 4.0) / 4.0).reshape(*wave.shape[:-1], bands, -1)


def log_mel_128(wave: Tensor, lengths: Tensor | None = None) -> Tensor:
    """`log_mel` of 128 bands: what the speech tokenizer and the large audio encoders take."""
    return log_mel(wave, 128, lengths)


def mel_80(wave: Tensor, lengths: Tensor | None = None, window: int = MEL_WINDOW) -> Tensor:
    """Natural-log magnitude mel of 24 kHz audio: (T,) or (B, T) -> (80, F) or (B, 80, F), F = T // 480.

    A shorter `window` (samples, 960 to 1920) blurs less in time; the peak of a tone keeps its height.

    Raises:
        AudioError: too short a wave, or another window.
    """
    if not 2 * MEL_HOP <= window <= MEL_WINDOW:
        raise AudioError(f"a mel window of {window} samples: give {2 * MEL_HOP} to {MEL_WINDOW}")
    batch = as_batch(wave, 721, "a mel spectrum")
    padded = reflect(batch, 720, lengths)
    spectrum = torch.stft(
        padded, 1920, MEL_HOP, window, window=table(wave, hann, window), center=False, return_complex=True
    )
    magnitude = (square(spectrum) + 1e-9).sqrt() * (1920 / window)  # (B, 961, F)
    mel = table(wave, slaney_filters, 24_000, 1920, 80, 0.0, 8000.0) @ magnitude  # (B, 80, F)
    return mel.clamp(min=1e-5).log().reshape(*wave.shape[:-1], 80, -1)


def spectra(frames: Tensor, size: int) -> Tensor:
    """Fourier transform of each frame, filled with zeros up to `size`: (..., N) -> (..., size // 2 + 1) complex."""
    if (
        frames.device.type == "cpu" and not frames.requires_grad
    ):  # SciPy's, five times as fast as torch's in float32
        return torch.from_numpy(scipy.fft.rfft(frames.numpy(), size))
    return torch.fft.rfft(frames, size)


def fbank_80(wave: Tensor) -> Tensor:
    """Kaldi's log filter bank of 16 kHz audio in [-1, 1]: (T,) or (B, T) -> (F, 80) or (B, F, 80), F = 1 + (T - 400) // 160."""
    batch = as_batch(wave, 400, "a filter bank")
    frames = batch.unfold(-1, 400, 160)  # (B, F, 400)
    frames = frames - frames.mean(-1, keepdim=True)
    frames = frames - 0.97 * torch.cat(
        (frames[..., :1], frames[..., :-1]), -1
    )  # pre-emphasis within the frame
    power = square(spectra(frames * povey(400).to(wave), 512))  # (B, F, 257)
    bank = power @ kaldi_filters(16_000, 512, 80, 20.0, 8000.0).to(wave).T  # (B, F, 80)
    return bank.clamp(min=torch.finfo(torch.float32).eps).log().reshape(*wave.shape[:-1], -1, 80)
