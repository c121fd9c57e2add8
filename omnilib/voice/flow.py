"""Speech tokens -> mel spectrogram by conditional flow matching (paper section 3.2: the CosyVoice2 flow, re-written).

An encoder looks 3 tokens ahead, doubles the frame rate and projects to a first mel, mu. From Gaussian noise x0 a U-Net
then follows the velocity v(x_t, t | mu, speaker, prompt) from t = 0 to t = 1, where the mel x1 lies:

    training     x_t = (1 - (1 - sigma) t) x0 + t x1          target velocity  u = x1 - (1 - sigma) x0
    inference    x  <- x + dt v,   v = (1 + w) v(.. | mu, speaker, prompt) - w v(.. | nothing)

Notable choices
- Parameter names are those of the published `flow.pt`; tensors are (B, T, D) inside, so that a causal convolution is one
  matrix product and no layer transposes.
- With `streaming`, attention sees whole chunks to the left only. Together with causal convolutions this makes a chunk
  independent of later ones, so `FlowStream` computes each chunk once, with caches, instead of the whole prefix again.
- The noise x0 is fixed (a function of the frame alone), from a generator of its own: building a Flow leaves global RNGs alone.

Shapes: B batch, N tokens (25 Hz), F = 2N mel frames (50 Hz), T frames of either, S keys, M = 80 mels, D width, H heads.
"""

import math
from dataclasses import dataclass, field
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence


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


@dataclass
class EstimatorConfig:
    channels: list[int] = field(default_factory=lambda: [256])  # one entry a U-Net level
    heads: int = 8
    head_dim: int = 64
    blocks: int = 4  # transformer blocks after each residual block
    mid_blocks: int = 12
    chunk: int = 50  # frames


@dataclass
class FlowConfig:
    vocab: int = 6561
    mels: int = 80
    speaker_dim: int = 192
    sigma_min: float = 1e-6
    guidance: float = 0.7  # w above
    guidance_drop: float = 0.2  # share of training items that see no condition
    prompt_share: float = 0.3  # a training prompt is at most this part of an item
    prompt_probability: float = 0.5
    streaming_probability: float = 0.5
    prior_weight: float = 0.0  # weight of a plain regression loss on mu (not in the published recipe)
    mel_mean: float = 0.0  # the flow works on (mel - mean) / std; the published weights expect it as it is
    mel_std: float = 1.0
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    estimator: EstimatorConfig = field(default_factory=EstimatorConfig)


NOISE_FRAMES = 30000
RATIO = 2  # mel frames per token


@lru_cache(maxsize=2)
def fixed_noise(mels: int = 80) -> Tensor:
    """The start of every ODE: (1, M, 30000), drawn in one call from seed 0 as in the reference."""
    return torch.randn(1, mels, NOISE_FRAMES, generator=torch.Generator().manual_seed(0))


def noise_at(start: int, count: int, mels: int) -> Tensor:
    """Noise of frames start .. start + count: (1, count, M); repeats after 10 minutes."""
    return fixed_noise(mels)[:, :, torch.arange(start, start + count) % NOISE_FRAMES].transpose(1, 2)


def cosine_times(steps: int) -> Tensor:
    """Times 0 .. 1, dense near 0 where the velocity turns fastest: (steps + 1,)."""
    return 1 - torch.cos(torch.linspace(0, 1, steps + 1) * 0.5 * math.pi)


def length_mask(lengths: Tensor, size: int) -> Tensor:
    """True inside each item: (B, size)."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def chunk_mask(queries: int, keys: int, chunk: int, device: torch.device) -> Tensor:
    """True where a key lies in the query's chunk or left of it; queries are the last of the keys: (queries, keys)."""
    position = torch.arange(keys - queries, keys, device=device)
    return torch.arange(keys, device=device) < ((position // chunk + 1) * chunk)[:, None]


def attention_mask(queries: int, keys: int, valid: Tensor | None, chunk: int | None, device: torch.device) -> Tensor | None:
    """Which keys each query may see, (B or 1, 1, queries or 1, keys); None when it may see all (the fast kernel)."""
    chunked = None if chunk is None or chunk >= keys else chunk_mask(queries, keys, chunk, device)[None, None]
    if valid is None:
        return chunked
    return valid[:, None, None] if chunked is None else valid[:, None, None] & chunked


class Cache:
    """What causal layers remember from chunk to chunk: one tensor a layer, kept in call order.

    A convolution keeps its last kernel - 1 inputs (B, k - 1, D); an attention its keys and values (2, B, H, S, D / H).
    """

    def __init__(self) -> None:
        self.slots: list[Tensor] = []
        self.next = 0

    def rewind(self) -> "Cache":
        self.next = 0
        return self

    def extend(self, new: Tensor, dim: int, keep: int | None = None) -> Tensor | None:
        """What was kept, joined with `new` along `dim`; keeps the last `keep` entries (all when None)."""
        old = self.slots[self.next] if self.next < len(self.slots) else None
        joined = new if old is None else torch.cat([old, new], dim)
        kept = joined if keep is None else joined.narrow(dim, joined.shape[dim] - keep, keep)
        self.slots[self.next : self.next + 1] = [kept]
        self.next += 1
        return joined


class CausalConv(nn.Conv1d):
    """Convolution over (B, T, D) that sees only the past."""

    def __init__(self, inputs: int, outputs: int, kernel: int):
        super().__init__(inputs, outputs, kernel)

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        k, time = self.kernel_size[0], x.shape[1]
        if cache is None or cache.next >= len(cache.slots):
            x = F.pad(x, (0, 0, k - 1, 0))
        if cache is not None:
            x = cache.extend(x, 1, k - 1)
        windows = torch.cat([x[:, i : i + time] for i in range(k)], -1)  # (B, T, k * D)
        return F.linear(windows, self.weight.transpose(1, 2).flatten(1), self.bias)


# ---------------------------------------------------------------- encoder: tokens (25 Hz) -> mu (50 Hz)


def relative_positions(queries: int, keys: int, width: int, device: torch.device) -> Tensor:
    """Sinusoids of query - key distances, largest first: (S + T - 1, D)."""
    distance = torch.arange(keys - 1, -queries, -1.0, device=device)[:, None]
    angle = distance * torch.exp(torch.arange(0, width, 2.0, device=device) * -(math.log(10000.0) / width))
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)


def relative_shift(scores: Tensor, keys: int) -> Tensor:
    """Scores by distance (B, H, T, S + T - 1) -> scores by key (B, H, T, S): row i starts T - 1 - i columns later.

    Reading the flat memory with rows one shorter does exactly that, without a copy.
    """
    queries, distances = scores.shape[-2:]
    if queries == 1:
        return scores
    flat = scores.flatten(-2)[..., queries - 1 : queries - 1 + queries * (distances - 1)]
    return flat.unflatten(-1, (queries, distances - 1))[..., :keys]


class RelativeAttention(nn.Module):
    """Self-attention with Transformer-XL relative positions."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.linear_q, self.linear_k = nn.Linear(width, width), nn.Linear(width, width)
        self.linear_v, self.linear_out = nn.Linear(width, width), nn.Linear(width, width)
        self.linear_pos = nn.Linear(width, width, bias=False)
        self.pos_bias_u = nn.Parameter(torch.empty(heads, width // heads))
        self.pos_bias_v = nn.Parameter(torch.empty(heads, width // heads))

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        q = self.linear_q(x).unflatten(-1, (self.heads, -1))  # (B, T, H, D / H)
        k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.linear_k, self.linear_v))
        if cache is not None:
            k, v = cache.extend(torch.stack([k, v]), 3)
        p = self.linear_pos(positions).unflatten(-1, (self.heads, -1)).transpose(0, 1)  # (H, S + T - 1, D / H)
        content, place = ((q + bias).to(q.dtype).transpose(1, 2) for bias in (self.pos_bias_u, self.pos_bias_v))
        bias = relative_shift(place @ p.transpose(1, 2), k.shape[2]) / math.sqrt(q.shape[-1])  # (B, H, T, S)
        if mask is not None:
            bias = bias.masked_fill(~mask, -math.inf)
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(content, k, v, attn_mask=bias, dropout_p=dropout)
        return self.linear_out(out.transpose(1, 2).flatten(2))


class EncoderLayer(nn.Module):
    def __init__(self, c: EncoderConfig):
        super().__init__()
        self.self_attn = RelativeAttention(c.width, c.heads, c.dropout)
        self.feed_forward = nn.ModuleDict({"w_1": nn.Linear(c.width, c.linear_units), "w_2": nn.Linear(c.linear_units, c.width)})
        self.norm_ff = nn.LayerNorm(c.width, eps=1e-12)
        self.norm_mha = nn.LayerNorm(c.width, eps=1e-12)
        self.dropout = nn.Dropout(c.dropout)

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
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
    """Each token sees the next `look_ahead` ones; beyond the end they are zero."""

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
    """Look-ahead, transformer at 25 Hz, doubling, transformer at 50 Hz."""

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
    ) -> Tensor:
        """Encode embedded tokens.

        Args:
            x: (B, N, D).
            lengths: (B,), or None when no item is padded.
            drop_tail: tokens at the end that serve as look-ahead only (all items full length, or lengths count them).
            cache, past: streaming state and the tokens already in it.
            zero_padding: the look-ahead sees zeros after an item's end, as it would alone. The reference lets it see the
                embedding of padding there, so an item's last 3 tokens depend on the batch.

        Returns:
            (B, F, D), F = 2 (N - drop_tail).
        """
        x = self.embed(x)
        if lengths is not None:
            if zero_padding:
                x = x * length_mask(lengths, x.shape[1])[..., None]
            lengths = lengths - drop_tail
        x = self.pre_lookahead_layer(x, drop_tail, cache)
        x = self.stack(self.encoders, x, lengths, self.config.chunk if streaming else None, cache, past)
        x = self.up_layer["conv"](x.repeat_interleave(RATIO, 1), cache)  # (B, F, D)
        x = self.up_embed(x)
        lengths = None if lengths is None else lengths * RATIO
        chunk = self.config.chunk * RATIO if streaming else None
        return self.after_norm(self.stack(self.up_encoders, x, lengths, chunk, cache, past * RATIO))

    def stack(self, layers, x: Tensor, lengths: Tensor | None, chunk: int | None, cache: Cache | None, past: int) -> Tensor:
        queries, keys = x.shape[1], past + x.shape[1]
        positions = F.dropout(relative_positions(queries, keys, x.shape[2], x.device), self.config.dropout, self.training)
        mask = attention_mask(queries, keys, None if lengths is None else length_mask(lengths, keys), chunk, x.device)
        for layer in layers:
            x = layer(x, positions, mask, cache)
        return x


# ---------------------------------------------------------------- estimator: the velocity field


class CausalBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        # The reference transposes at places 1 and 3; the numbering of the weights remembers it.
        self.block = nn.Sequential(CausalConv(inputs, outputs, 3), nn.Identity(), nn.LayerNorm(outputs), nn.Identity(), nn.Mish())

    def forward(self, x: Tensor, cache: Cache | None) -> Tensor:
        return self.block[1:](self.block[0](x, cache))


class ResidualBlock(nn.Module):
    """Two causal convolutions with the time added between."""

    def __init__(self, inputs: int, outputs: int, time_width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Mish(), nn.Linear(time_width, outputs))
        self.block1, self.block2 = CausalBlock(inputs, outputs), CausalBlock(outputs, outputs)
        self.res_conv = CausalConv(inputs, outputs, 1)

    def forward(self, x: Tensor, time: Tensor, cache: Cache | None) -> Tensor:
        h = self.block1(x, cache) + self.mlp(time)[:, None]
        return self.block2(h, cache) + F.linear(x, self.res_conv.weight[..., 0], self.res_conv.bias)


class TransformerBlock(nn.Module):
    def __init__(self, width: int, heads: int, head_dim: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width)
        attention = {name: nn.Linear(width, heads * head_dim, bias=False) for name in ("to_q", "to_k", "to_v")}
        self.attn1 = nn.ModuleDict(attention | {"to_out": nn.ModuleList([nn.Linear(heads * head_dim, width)])})
        up, down = nn.ModuleDict({"proj": nn.Linear(width, 4 * width)}), nn.Linear(4 * width, width)
        self.ff = nn.ModuleDict({"net": nn.ModuleList([up, nn.Identity(), down])})

    def forward(self, x: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        h = self.norm1(x)
        q, k, v = (self.attn1[n](h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for n in ("to_q", "to_k", "to_v"))
        if cache is not None:
            k, v = cache.extend(torch.stack([k, v]), 3)
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # (B, H, T, head_dim)
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
    """

    def __init__(self, mels: int, c: EstimatorConfig):
        super().__init__()
        self.config, self.inputs = c, 4 * mels
        time_width, widths = 4 * c.channels[0], [4 * mels, *c.channels]

        def blocks(width: int) -> nn.ModuleList:
            return nn.ModuleList(TransformerBlock(width, c.heads, c.head_dim) for _ in range(c.blocks))

        self.time_mlp = nn.ModuleDict({"linear_1": nn.Linear(self.inputs, time_width), "linear_2": nn.Linear(time_width, time_width)})
        self.down_blocks, self.mid_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for inputs, outputs in zip(widths[:-1], widths[1:], strict=True):
            last = len(self.down_blocks) == len(c.channels) - 1
            step = CausalConv(outputs, outputs, 3) if last else Resample(outputs, up=False)
            self.down_blocks.append(nn.ModuleList([ResidualBlock(inputs, outputs, time_width), blocks(outputs), step]))
        for _ in range(c.mid_blocks):
            width = c.channels[-1]
            self.mid_blocks.append(nn.ModuleList([ResidualBlock(width, width, time_width), blocks(width)]))
        back = [*reversed(c.channels), c.channels[0]]
        for inputs, outputs in zip(back[:-1], back[1:], strict=True):
            last = len(self.up_blocks) == len(c.channels) - 1
            step = CausalConv(outputs, outputs, 3) if last else Resample(outputs, up=True)
            self.up_blocks.append(nn.ModuleList([ResidualBlock(2 * inputs, outputs, time_width), blocks(outputs), step]))
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
    ) -> Tensor:
        """Velocity of x (B, F, M) at t (B,) given mu, prompt (B, F, M) and speaker (B, M); valid (B, F) marks real frames."""
        time = self.embed_time(t)  # (B, 4 * D)
        x = torch.cat([x, mu, speaker[:, None].expand_as(x), prompt], -1)  # (B, F, 4 M)
        chunk = self.config.chunk if streaming else None

        def run(residual: ResidualBlock, blocks: nn.ModuleList, x: Tensor, valid: Tensor | None) -> Tensor:
            x = residual(x, time, cache)
            mask = attention_mask(x.shape[1], past + x.shape[1], valid, chunk, x.device)
            for block in blocks:
                x = block(x, mask, cache)
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
        hidden = F.silu(self.time_mlp["linear_1"](torch.cat([angle.sin(), angle.cos()], -1)))
        return self.time_mlp["linear_2"](hidden)


# ---------------------------------------------------------------- the flow


@dataclass
class Draws:
    """Everything random in one training step, so that a step can be repeated."""

    t: Tensor  # (B, 1, 1) in [0, 1)
    x0: Tensor  # (B, F, M) noise
    keep: Tensor  # (B,) False: the item sees no condition (for guidance)


def draw(mel: Tensor, drop: float, generator: torch.Generator | None = None) -> Draws:
    """Draws for a batch of mels (B, F, M)."""
    batch = mel.shape[0]
    t = torch.rand(batch, 1, 1, generator=generator)
    x0 = torch.randn(mel.shape, generator=generator)
    keep = torch.rand(batch, generator=generator) > drop
    return Draws(t.to(mel.device), x0.to(mel.device), keep.to(mel.device))


def draw_prompts(lengths: Tensor, share: float, probability: float, generator: torch.Generator | None = None) -> Tensor:
    """Frames of each item shown as its voice prompt: with `probability` a uniform part up to `share`, else none: (B,)."""
    part = torch.rand(len(lengths), generator=generator) * share
    shown = torch.rand(len(lengths), generator=generator) < probability
    return (part * lengths.cpu() * shown).long().to(lengths.device)


class FlowMatching(nn.Module):
    """The two equations of the module docstring around the estimator."""

    def __init__(self, c: FlowConfig):
        super().__init__()
        self.sigma, self.guidance = c.sigma_min, c.guidance
        self.estimator = Estimator(c.mels, c.estimator)

    def loss(
        self, x1: Tensor, valid: Tensor, mu: Tensor, speaker: Tensor, prompt: Tensor, draws: Draws, streaming: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Mean squared velocity error over real frames, and the predicted velocity (B, F, M)."""
        t, x0, keep = draws.t, draws.x0, draws.keep.to(mu.dtype)
        x_t = (1 - (1 - self.sigma) * t) * x0 + t * x1
        u = x1 - (1 - self.sigma) * x0
        mu, prompt, speaker = mu * keep[:, None, None], prompt * keep[:, None, None], speaker * keep[:, None]
        v = self.estimator(x_t, mu, t.flatten(), speaker, prompt, valid, streaming)
        error = (v.float() - u).square() * valid[..., None]
        return error.sum() / (valid.sum() * u.shape[-1]), v

    def solve(
        self,
        x: Tensor,
        mu: Tensor,
        speaker: Tensor,
        prompt: Tensor,
        steps: int,
        valid: Tensor | None = None,
        streaming: bool = False,
        caches: list[Cache] | None = None,
        past: int = 0,
    ) -> Tensor:
        """Euler steps from noise x (B, F, M) to the mel; `caches` holds one a step when chunks follow each other."""
        batch, times = x.shape[0], cosine_times(steps).to(x)
        # Second half of the batch: no condition at all, for guidance.
        mu, prompt, speaker = (torch.cat([c, torch.zeros_like(c)]) for c in (mu, prompt, speaker))
        valid = None if valid is None else torch.cat([valid, valid])
        for i in range(steps):
            t, dt = times[i], times[i + 1] - times[i]
            cache = None if caches is None else caches[i].rewind()
            v = self.estimator(torch.cat([x, x]), mu, t.expand(2 * batch), speaker, prompt, valid, streaming, cache, past)
            conditional, free = v.float().split(batch)
            x = x + dt * ((1 + self.guidance) * conditional - self.guidance * free)
        return x


class Flow(nn.Module):
    """Tokens, a voice prompt and a speaker vector -> mel."""

    def __init__(self, config: FlowConfig):
        super().__init__()
        self.config = config
        self.input_embedding = nn.Embedding(config.vocab, config.encoder.width)
        self.spk_embed_affine_layer = nn.Linear(config.speaker_dim, config.mels)
        self.encoder = UpsampleEncoder(config.encoder)
        self.encoder_proj = nn.Linear(config.encoder.width, config.mels)
        self.decoder = FlowMatching(config)
        self.init_weights()

    def init_weights(self) -> None:
        """Convolutions and linears of the estimator: Kaiming normal, zero bias, as published; but the last layer of each
        residual branch at a tenth and the output at zero, so that a small model starts as a plain sum and learns at a high rate.
        Position biases of the encoder: Xavier uniform. Everything else: PyTorch's defaults."""
        for name, module in self.decoder.estimator.named_modules():
            if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
                if name.endswith(("to_out.0", "ff.net.2")):
                    module.weight.data *= 0.1
                if name.endswith("final_proj"):
                    nn.init.zeros_(module.weight)
        for module in self.encoder.modules():
            if isinstance(module, RelativeAttention):
                nn.init.xavier_uniform_(module.pos_bias_u)
                nn.init.xavier_uniform_(module.pos_bias_v)

    def normalize(self, mel: Tensor) -> Tensor:
        return (mel - self.config.mel_mean) / self.config.mel_std

    def project_speaker(self, speaker: Tensor) -> Tensor:
        """Direction of the speaker vector (B, 192) -> (B, M)."""
        return self.spk_embed_affine_layer(F.normalize(speaker, dim=1))

    def encode(
        self, tokens: Tensor, lengths: Tensor | None = None, streaming: bool = False, finalize: bool = True, zero_padding: bool = True
    ) -> Tensor:
        """First mel mu (B, F, M) of tokens (B, N); without `finalize` the last 3 tokens are look-ahead only."""
        x = self.input_embedding(tokens.clamp(min=0))
        if lengths is not None:
            x = x * length_mask(lengths, tokens.shape[1])[..., None]
        drop_tail = 0 if finalize else self.config.encoder.look_ahead
        return self.encoder_proj(self.encoder(x, lengths, streaming, drop_tail, zero_padding=zero_padding))

    def loss(
        self,
        tokens: Tensor,
        token_lengths: Tensor,
        mel: Tensor,
        speaker: Tensor,
        prompt_frames: Tensor | None = None,
        streaming: bool | None = None,
        draws: Draws | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Flow-matching loss of a padded batch.

        Args:
            tokens: (B, N); token_lengths: (B,).
            mel: (B, M, 2 N), log-mel of `omnilib.audio.mel_80`.
            speaker: (B, 192).
            prompt_frames: (B,) frames shown as voice prompt; drawn when None.
            streaming: chunk masks or full context; drawn when None.
            draws, generator: recorded or seeded randomness.
        """
        c = self.config
        x1 = self.normalize(mel.transpose(1, 2))  # (B, F, M)
        frames = token_lengths * RATIO
        if streaming is None:
            streaming = bool(torch.rand((), generator=generator) < c.streaming_probability)
        if prompt_frames is None:
            prompt_frames = draw_prompts(frames, c.prompt_share, c.prompt_probability, generator)
        draws = draws or draw(x1, c.guidance_drop, generator)
        prompt = x1 * length_mask(prompt_frames, x1.shape[1])[..., None]
        mu = self.encode(tokens, token_lengths, streaming)
        valid = length_mask(frames, x1.shape[1])
        loss, _ = self.decoder.loss(x1, valid, mu, self.project_speaker(speaker), prompt, draws, streaming)
        if c.prior_weight:
            loss = loss + c.prior_weight * (mu.float() - x1)[valid].square().mean()
        return loss

    def forward(self, *args, **kwargs) -> Tensor:
        """The training loss, so that data-parallel wrappers see it."""
        return self.loss(*args, **kwargs)

    @torch.inference_mode()
    def inference(
        self,
        tokens: Tensor,
        prompt_tokens: Tensor,
        prompt_mel: Tensor,
        speaker: Tensor,
        streaming: bool = False,
        finalize: bool = True,
        n_timesteps: int = 10,
        token_lengths: Tensor | None = None,
        prompt_lengths: Tensor | None = None,
    ) -> Tensor:
        """Mel of `tokens` in the voice of the prompt.

        Args:
            tokens: (B, N); prompt_tokens: (B, P); prompt_mel: (B, 2 P, M); speaker: (B, 192).
            streaming: chunk masks, so that what is already out does not change when tokens follow.
            finalize: False when tokens will follow: the last 3 are look-ahead only and give no mel.
            token_lengths, prompt_lengths: (B,) real tokens of each row; all when None.

        Returns:
            (B, M, 2 N), or (B, M, 2 (N - 3)) when not final; zero after the end of shorter rows.
        """
        batch, size = tokens.shape
        counts = [size] * batch if token_lengths is None else token_lengths.tolist()
        prompts = [prompt_tokens.shape[1]] * batch if prompt_lengths is None else prompt_lengths.tolist()
        rows = [torch.cat([prompt_tokens[i, :p], tokens[i, :n]]) for i, (p, n) in enumerate(zip(prompts, counts, strict=True))]
        lengths = torch.tensor([len(r) for r in rows], device=tokens.device)
        padded = None if lengths.min() == lengths.max() else lengths
        mu = self.encode(pad_sequence(rows, True), padded, streaming, finalize)  # (B, F, M)
        drop_tail = 0 if finalize else self.config.encoder.look_ahead
        frames = (lengths - drop_tail) * RATIO

        prompt = torch.zeros_like(mu)
        for i, p in enumerate(prompts):
            prompt[i, : p * RATIO] = self.normalize(prompt_mel[i, : p * RATIO])[: mu.shape[1]]
        valid = None if padded is None else length_mask(frames, mu.shape[1])
        x0 = noise_at(0, mu.shape[1], self.config.mels).to(mu.device).expand(batch, -1, -1)
        x1 = self.decoder.solve(x0, mu, self.project_speaker(speaker), prompt, n_timesteps, valid, streaming)
        x1 = x1 * self.config.mel_std + self.config.mel_mean
        mel = pad_sequence([x1[i, p * RATIO : f] for i, (p, f) in enumerate(zip(prompts, frames.tolist(), strict=True))], True)
        return mel.transpose(1, 2)

    def stream(self, prompt_tokens: Tensor, prompt_mel: Tensor, speaker: Tensor, n_timesteps: int = 10) -> "FlowStream":
        """Start streaming in a voice: prompt_tokens (1, P), prompt_mel (1, 2 P, M), speaker (1, 192)."""
        return FlowStream(self, prompt_tokens, prompt_mel, speaker, n_timesteps)


class FlowStream:
    """Tokens in, mel out, each chunk computed once.

    Gives the mel that `inference(streaming=True)` would on all tokens. A chunk is computed when its tokens and
    the look-ahead are there; the chunks of the prompt are computed at the start, before any token is known.
    """

    def __init__(self, flow: Flow, prompt_tokens: Tensor, prompt_mel: Tensor, speaker: Tensor, n_timesteps: int = 10):
        self.flow, self.steps = flow, n_timesteps
        self.pending = prompt_tokens.new_zeros(1, 0)  # tokens not yet computed
        self.past = 0  # tokens computed
        self.skip = prompt_tokens.shape[1] * RATIO  # prompt frames not yet passed
        self.encoder_cache, self.caches = Cache(), [Cache() for _ in range(n_timesteps)]
        with torch.inference_mode():
            self.speaker = flow.project_speaker(speaker)
        self.prompt = flow.normalize(prompt_mel)
        self.push(prompt_tokens)

    @torch.inference_mode()
    def push(self, tokens: Tensor, last: bool = False) -> Tensor:
        """Mel (1, M, F) of every chunk that `tokens` (1, N) completes (F may be 0); with `last` also of the rest."""
        self.pending = torch.cat([self.pending, tokens], 1)
        c = self.flow.config
        ahead = 0 if last else c.encoder.look_ahead
        ready = self.pending.shape[1] - ahead
        count = ready if last else ready // c.encoder.chunk * c.encoder.chunk
        if count <= 0:
            return self.speaker.new_zeros(1, c.mels, 0)
        x = self.flow.input_embedding(self.pending[:, : count + ahead].clamp(min=0))
        encoded = self.flow.encoder(x, None, True, ahead, self.encoder_cache.rewind(), self.past)
        mu = self.flow.encoder_proj(encoded)  # (1, F, M)
        start, frames = self.past * RATIO, count * RATIO
        prompt = self.prompt[:, start : start + frames]
        prompt = F.pad(prompt, (0, 0, 0, frames - prompt.shape[1]))
        x0 = noise_at(start, frames, c.mels).to(mu.device)
        x1 = self.flow.decoder.solve(x0, mu, self.speaker, prompt, self.steps, None, True, self.caches, start)
        self.pending, self.past = self.pending[:, count:], self.past + count
        passed = min(self.skip, frames)
        self.skip -= passed
        return (x1[:, passed:] * c.mel_std + c.mel_mean).transpose(1, 2)
