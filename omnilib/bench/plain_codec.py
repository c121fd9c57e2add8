"""The plain loop that `speed_codec` measures against: flow and vocoder run the way the released code runs them.

Same weights, same mel and wave as `omnilib.voice` (a test compares them), another way of computing:

- the encoder builds its positional table and both score matrices and takes an explicit softmax, in every layer;
- the U-Net is channels first, multiplies every convolution's input and output by a mask of ones, turns a boolean mask into a
  bias for every block, computes keys, queries and values apart, and always runs both halves of the guidance;
- weight norm is a parametrization: every convolution of the vocoder computes its weight again;
- streaming runs flow on the whole prefix, voice prompt included, at every hop. Hops are those of the released demo: 200 tokens,
  plus what fills the prompt to whole 200s, then 400, 800 and 1,600; the vocoder cross-fades pieces (`CrossFadeStream`).

Shapes: B batch, N tokens, F mel frames, M mels, D width, H heads.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnilib.voice.codec import Voice
from omnilib.voice.flow import RATIO, Flow, cosine_times, fixed_noise
from omnilib.voice.hift import HiFT, ResBlock
from omnilib.voice.hift import noise_at as source_noise

HOPS = [200, 400, 800, 1600]


def chunk_mask(size: int, chunk: int) -> Tensor:
    """Row by row, as the released code does it: (1, size, size)."""
    mask = torch.zeros(size, size, dtype=torch.bool)
    for row in range(size):
        mask[row, : min((row // chunk + 1) * chunk, size)] = True
    return mask[None]


def heads_of(linear: nn.Linear, x: Tensor, heads: int) -> Tensor:
    return linear(x).view(x.shape[0], -1, heads, linear.out_features // heads).transpose(1, 2)


# ------------------------------------------------------------------------------------------------------ encoder


def relative_attention(attention: nn.Module, x: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
    heads = attention.heads
    q, k, v = (
        heads_of(linear, x, heads) for linear in (attention.linear_q, attention.linear_k, attention.linear_v)
    )
    p = heads_of(attention.linear_pos, positions, heads)
    content = (q.transpose(1, 2) + attention.pos_bias_u).transpose(1, 2) @ k.transpose(-2, -1)
    place = (q.transpose(1, 2) + attention.pos_bias_v).transpose(1, 2) @ p.transpose(-2, -1)
    b, _, t, distances = place.shape
    padded = torch.cat([place.new_zeros(b, heads, t, 1), place], -1).view(b, heads, distances + 1, t)
    place = padded[:, :, 1:].view(b, heads, t, distances)[..., : distances // 2 + 1]
    scores = (content + place) / math.sqrt(q.shape[-1])
    blocked = mask[:, None] == 0
    weights = scores.masked_fill(blocked, -math.inf).softmax(-1).masked_fill(blocked, 0.0)
    return attention.linear_out((weights @ v).transpose(1, 2).contiguous().view(b, t, -1))


def encoder_stack(layers: nn.ModuleList, x: Tensor, chunk: int | None) -> Tensor:
    size, width = x.shape[1:]
    distance = torch.arange(size - 1, -size, -1.0)[:, None]
    angle = distance * torch.exp(torch.arange(0, width, 2.0) * -(math.log(10000.0) / width))
    positions = torch.stack([angle.sin(), angle.cos()], -1).flatten(1)[None]
    mask = torch.ones(1, size, size, dtype=torch.bool) if chunk is None else chunk_mask(size, chunk)
    for layer in layers:
        x = x + relative_attention(layer.self_attn, layer.norm_mha(x), positions, mask)
        x = x + layer.feed_forward["w_2"](F.silu(layer.feed_forward["w_1"](layer.norm_ff(x))))
    return x


def conv(layer: nn.Conv1d, x: Tensor, left: int = 0, right: int = 0) -> Tensor:
    """x (B, D, T)."""
    return F.conv1d(F.pad(x, (left, right)), layer.weight, layer.bias)


def encode(flow: Flow, tokens: Tensor, speaker: Tensor, streaming: bool, final: bool) -> Tensor:
    """Tokens (1, N) -> mu (1, F, M)."""
    encoder, c = flow.encoder, flow.config.encoder
    level = flow.level(None, speaker)
    x = encoder.embed(flow.embed(tokens, speaker, level))
    ahead = encoder.pre_lookahead_layer
    keep = x.shape[1] - (0 if final else c.look_ahead)
    h = F.leaky_relu(conv(ahead.conv1, x.transpose(1, 2), right=c.look_ahead)[..., :keep])
    x = conv(ahead.conv2, h, left=2).transpose(1, 2) + x[:, :keep]
    x = encoder_stack(encoder.encoders, x, c.chunk if streaming else None)
    doubled = F.interpolate(x.transpose(1, 2), scale_factor=float(RATIO), mode="nearest")
    x = encoder.up_embed(conv(encoder.up_layer["conv"], doubled, left=2 * RATIO).transpose(1, 2))
    x = encoder_stack(encoder.up_encoders, x, c.chunk * RATIO if streaming else None)
    return flow.first_mel(encoder.after_norm(x), level)


# -------------------------------------------------------------------------------------------------------- U-Net


def causal_block(block: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
    convolution, _, norm, _, _ = block.block
    h = norm(conv(convolution, x * mask, left=2).transpose(1, 2)).transpose(1, 2)
    return F.mish(h) * mask


def residual_block(block: nn.Module, x: Tensor, time: Tensor, mask: Tensor) -> Tensor:
    h = causal_block(block.block1, x, mask) + block.mlp[1](F.mish(time))[..., None]
    return causal_block(block.block2, h, mask) + conv(block.res_conv, x * mask)


def transformer_block(block: nn.Module, x: Tensor, bias: Tensor) -> Tensor:
    attention, h = block.attn1, block.norm1(x)
    q, k, v = (heads_of(attention[name], h, block.heads) for name in ("to_q", "to_k", "to_v"))
    h = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[:, None].repeat(1, block.heads, 1, 1))
    x = x + attention["to_out"][0](h.transpose(1, 2).reshape(x.shape[0], x.shape[1], -1))
    up, _, down = block.ff["net"]
    return x + down(F.gelu(up["proj"](block.norm3(x))))


def velocity(
    estimator: nn.Module,
    x: Tensor,
    mask: Tensor,
    mu: Tensor,
    t: Tensor,
    speaker: Tensor,
    prompt: Tensor,
    streaming,
) -> Tensor:
    """x, mu, prompt (B, M, F), mask (B, 1, F), speaker (B, M) -> (B, M, F); one U-Net level."""
    time = estimator.embed_time(t)
    x = torch.cat([x, mu, speaker[..., None].repeat(1, 1, x.shape[-1]), prompt], 1)

    def run(residual: nn.Module, blocks: nn.ModuleList, x: Tensor) -> Tensor:
        x = residual_block(residual, x, time, mask).transpose(1, 2).contiguous()
        seen = mask.bool().repeat(1, x.shape[1], 1)
        if streaming:
            seen = seen & chunk_mask(x.shape[1], estimator.config.chunk)
        bias = (1.0 - seen.to(x.dtype)) * -1.0e10
        for block in blocks:
            x = transformer_block(block, x, bias)
        return x.transpose(1, 2).contiguous()

    [(residual, blocks, step)] = estimator.down_blocks
    skip = run(residual, blocks, x)
    x = conv(step, skip * mask, left=2)
    for residual, blocks in estimator.mid_blocks:
        x = run(residual, blocks, x)
    [(residual, blocks, step)] = estimator.up_blocks
    x = conv(step, run(residual, blocks, torch.cat([x, skip], 1)) * mask, left=2)
    return conv(estimator.final_proj, causal_block(estimator.final_block, x, mask) * mask) * mask


@torch.inference_mode()
def mel_of(
    flow: Flow, tokens: Tensor, voice: Voice, steps: int, streaming: bool = False, final: bool = True
) -> Tensor:
    """Tokens (N,) in a voice -> mel (1, M, 2 N) after the prompt."""
    c = flow.config
    given = torch.cat([voice.tokens, tokens])[None]
    mu = encode(flow, given, voice.speaker[None], streaming, final).transpose(1, 2)
    speaker = flow.project_speaker(voice.speaker[None])
    prompt = torch.zeros_like(mu)
    prompt[..., : len(voice.mel)] = flow.normalize(voice.mel).T
    x = c.temperature * fixed_noise(c.mels)[..., : mu.shape[-1]]
    mask = torch.ones(2, 1, mu.shape[-1])
    mu, prompt, speaker = (torch.cat([a, torch.zeros_like(a)]) for a in (mu, prompt, speaker))
    times = cosine_times(steps)
    for t, dt in zip(times[:-1], times.diff(), strict=True):
        v = velocity(
            flow.decoder.estimator, x.repeat(2, 1, 1), mask, mu, t.repeat(2), speaker, prompt, streaming
        )
        if c.prior_variance:
            v = v + prior_velocity(x, mu, t, c.prior_variance)
        x = x + dt * ((1 + c.guidance) * v[:1] - c.guidance * v[1:])
    return (x * c.mel_std + c.mel_mean)[..., len(voice.mel) :]


def prior_velocity(x: Tensor, mu: Tensor, t: Tensor, variance: float) -> Tensor:
    """What a flow with a prior adds to both halves (not in the released code, which has no prior)."""
    variance, rest = torch.tensor([variance, 1.0])[:, None, None], 1 - t
    return (rest * mu + (t * variance - rest) * x) / (rest.square() + t.square() * variance)


# ------------------------------------------------------------------------------------------------------ vocoder


class PlainHiFT(nn.Module):
    """A vocoder with its weight norm: weights are computed again by every convolution. Stands in for `HiFT.inference`."""

    def __init__(self, hift: HiFT):
        super().__init__()
        self.model, self.config = hift, hift.config

    @torch.inference_mode()
    def inference(self, mel: Tensor, source: Tensor | None = None, noise: Tensor | None = None):
        """As `HiFT.inference`."""
        new = self.model.m_source(self.model.f0_predictor(mel), noise)
        if source is not None:
            new[..., : source.shape[-1]] = source
        return self.decode(mel, new), new

    def decode(self, mel: Tensor, source: Tensor) -> Tensor:
        model, c = self.model, self.config
        s = torch.stft(
            source.squeeze(1), c.istft_n_fft, c.istft_hop_len, window=model.window, return_complex=True
        )
        s = torch.cat([s.real, s.imag], 1)
        x, kernels = model.conv_pre(mel), len(c.resblock_kernel_sizes)
        for i, up in enumerate(model.ups):
            x = up(F.leaky_relu(x, c.lrelu_slope))
            if i == len(model.ups) - 1:
                x = F.pad(x, (1, 0), mode="reflect")
            x = x + residual(model.source_resblocks[i], model.source_downs[i](s))
            x = (
                sum(residual(block, x) for block in model.resblocks[i * kernels : (i + 1) * kernels])
                / kernels
            )
        x = model.conv_post(F.leaky_relu(x))
        half = c.istft_n_fft // 2 + 1
        magnitude, phase = x[:, :half].exp().clip(max=1e2), torch.sin(x[:, half:])
        spectrum = torch.complex(magnitude * phase.cos(), magnitude * phase.sin())
        wave = torch.istft(spectrum, c.istft_n_fft, c.istft_hop_len, window=model.window)
        return wave.clamp(-c.audio_limit, c.audio_limit)


def snake(x: Tensor, alpha: Tensor) -> Tensor:
    alpha = alpha[None, :, None]
    return x + (1.0 / (alpha + 1e-9)) * torch.pow(torch.sin(x * alpha), 2)


def residual(block: ResBlock, x: Tensor) -> Tensor:
    for a, b, first, second in zip(
        block.activations1, block.activations2, block.convs1, block.convs2, strict=True
    ):
        x = second(snake(first(snake(x, a.alpha)), b.alpha)) + x
    return x


# ------------------------------------------------------------------------------------------------------- chains


def decode(flow: Flow, hift: PlainHiFT, tokens: Tensor, voice: Voice, steps: int) -> Tensor:
    """Tokens (N,) -> wave (960 N,), in one block."""
    mel = mel_of(flow, tokens, voice, steps)
    noise = source_noise(0, mel.shape[-1] * hift.config.hop, hift.config.nb_harmonics + 1)
    return hift.inference(mel, None, noise)[0][0]


def hop_ends(count: int, prompt: int, ahead: int = 3) -> list[int]:
    """Tokens known at each hop of a speech of `count` tokens; the last is `count`."""
    ends, at = [], -prompt % HOPS[0]
    for hop in [*HOPS, *[HOPS[-1]] * (count // HOPS[-1])]:
        at += hop
        if at + ahead > count:
            break
        ends.append(at)
    return [*ends, count]


class CrossFadeStream:
    """The reference's vocoder stream: 8 cached mel frames, cached excitation, Hamming cross-fade.

    Each piece but the last holds back `frames` frames of samples; the next piece speaks them again, with the same
    excitation, and fades over.
    """

    def __init__(self, hift: HiFT, frames: int = 8, window: Tensor | None = None):
        self.hift, self.frames, self.samples = hift, frames, frames * hift.config.hop
        self.window = (
            torch.hamming_window(2 * self.samples, periodic=False, dtype=torch.float64)
            if window is None
            else window
        )
        self.mel = self.source = self.wave = None

    def push(self, mel: Tensor, last: bool = False, noise: Tensor | None = None) -> Tensor:
        """mel (1, M, F) of new frames -> samples (1, n); noise (1, L, H) covers cached and new frames."""
        if self.mel is not None:
            mel = torch.cat([self.mel, mel], dim=-1)
        wave, source = self.hift.inference(mel, self.source, noise)
        if self.wave is not None:
            n, wave = self.samples, wave.clone()
            wave[:, :n] = wave[:, :n] * self.window[:n] + self.wave * self.window[n:]
        if last:
            return wave
        self.mel, self.source, self.wave = (
            mel[..., -self.frames :],
            source[..., -self.samples :],
            wave[:, -self.samples :],
        )
        return wave[:, : -self.samples]


def stream(flow: Flow, hift: PlainHiFT, tokens: Tensor, voice: Voice, steps: int) -> Iterator[Tensor]:
    """Tokens (N,) -> wave pieces (n,)."""
    vocoder, done = CrossFadeStream(hift), 0
    for end in hop_ends(len(tokens), len(voice.tokens)):
        last = end == len(tokens)
        known = tokens[: end + flow.config.encoder.look_ahead]
        mel = mel_of(flow, known, voice, steps, not last, last)
        yield vocoder.push(mel[..., done * RATIO :], last)[0]
        done = end
