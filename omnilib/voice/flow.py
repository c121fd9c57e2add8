"""Speech tokens -> mel spectrogram by conditional flow matching (paper section 3.2: the CosyVoice2 flow, re-written).

An encoder looks 3 tokens ahead, doubles the frame rate and projects to a first mel, mu. From Gaussian noise x0 a U-Net
then follows the velocity v(x_t, t | mu, speaker, prompt) from t = 0 to t = 1, where the mel x1 lies:

    training     x_t = (1 - (1 - sigma) t) x0 + t x1          target velocity  u = x1 - (1 - sigma) x0
    inference    x  <- x + dt v,   v = (1 + w) v(.. | mu, speaker, prompt) - w v(.. | nothing)

Notable choices
- Published, v is the U-Net. A narrow U-Net cannot carry x_t and mu side by side to its output, so at small t it forgets mu. With
  `prior_variance` s2 it only learns what the Gaussian guess x1 ~ N(mu, s2) leaves open: v = `gaussian_velocity` + U-Net.
  `speaker_prior` lets the encoder know the voice, so that mu is a mel of this speaker instead of the mean over all.
- Published, pitch is up to the codes. Codes of a small tokenizer hardly hold it; with `pitch` the encoder says how high the voice
  is at each frame, from the median pitch of the reference (`level`), and its harmonics are drawn into mu (`pitch.py`).
- The encoder is in `flow_encoder.py`, the U-Net in `flow_estimator.py`; parameter names are those of the published `flow.pt`.
- With `streaming`, attention sees whole chunks to the left only. Together with causal convolutions this makes a chunk
  independent of later ones, so `FlowStream` computes each chunk once, with caches, instead of the whole prefix again.
- The noise x0 is fixed (a function of the frame alone), from a generator of its own: building a Flow leaves global RNGs alone.

Shapes: B batch, N tokens (25 Hz), F = 2N mel frames (50 Hz), M = 80 mels, D width.
"""

import copy
import math
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from omnilib import config as configs
from omnilib.audio import MEL_WINDOW
from omnilib.captured import Record, recorder
from omnilib.device import fast_bfloat16
from omnilib.errors import UserError
from omnilib.storage import load_weights
from omnilib.voice.captured_flow import STEPS, Recordings
from omnilib.voice.captured_stream import CAPACITY, ChunkSteps, Streams
from omnilib.voice.causal import Cache, length_mask
from omnilib.voice.company import Company
from omnilib.voice.flow_encoder import RATIO, EncoderConfig, RelativeAttention, UpsampleEncoder
from omnilib.voice.flow_estimator import Estimator, EstimatorConfig
from omnilib.voice.pitch import PitchPrior


@dataclass
class FlowConfig:
    """Sizes and rules of the flow; the defaults are CosyVoice 2's (arXiv 2412.10117, section 2.4)."""

    vocab: int = 6561
    mels: int = 80
    speaker_dim: int = 192
    sigma_min: float = 1e-6
    guidance: float = 0.7  # w above
    guidance_drop: float = 0.2  # share of training items that see no condition
    prompt_share: float = 0.3  # a training prompt is at most this part of an item
    prompt_probability: float = 0.5
    streaming_probability: float = 0.5
    temperature: float = 1.0  # scale of the noise that inference starts from
    prior_weight: float = 0.0  # weight of a plain regression loss on mu (not in the published recipe)
    prior_variance: float = 0.0  # of x1 around mu; 0: the U-Net predicts the whole velocity, as published
    speaker_prior: bool = False  # the encoder sees the speaker vector too; published: tokens alone
    pitch: bool = False  # harmonics are drawn into mu, see `pitch.py`; published: no
    pitch_weight: float = 0.3  # weight of the loss of the pitch that is read
    mel_window: int = MEL_WINDOW  # samples; the vocoder's must be the same
    mel_mean: float = 0.0  # the flow works on (mel - mean) / std; the published weights expect it as it is
    mel_std: float = 1.0
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    estimator: EstimatorConfig = field(default_factory=EstimatorConfig)


NOISE_FRAMES = 30000
PRECISIONS = ("auto", "fp32", "bf16", "tf32")


@contextmanager
def tensor_float32(wanted: bool) -> Iterator[None]:
    """Let a GPU round the factors of float32 products to 10 bits meanwhile."""
    flags = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [flag.allow_tf32 for flag in flags]
    for flag, old in zip(flags, before, strict=True):
        flag.allow_tf32 = old or wanted
    try:
        yield
    finally:
        for flag, old in zip(flags, before, strict=True):
            flag.allow_tf32 = old


@lru_cache(maxsize=2)
def fixed_noise(mels: int = 80) -> Tensor:
    """The start of every ODE: (1, M, 30000), drawn in one call from seed 0 as in the reference."""
    return torch.randn(1, mels, NOISE_FRAMES, generator=torch.Generator().manual_seed(0))


@lru_cache(maxsize=2)
def noise_on(mels: int, device: torch.device) -> Tensor:
    """`fixed_noise` copied to a device once."""
    return fixed_noise(mels).to(device)


def noise_at(start: int, count: int, mels: int, device: torch.device) -> Tensor:
    """Noise of frames start .. start + count: (1, count, M); repeats after 10 minutes."""
    frames = torch.arange(start, start + count, device=device) % NOISE_FRAMES
    return noise_on(mels, device)[:, :, frames].transpose(1, 2)


def cosine_times(steps: int) -> Tensor:
    """Times 0 .. 1, dense near 0 where the velocity turns fastest: (steps + 1,).

    Source: CosyVoice 2, arXiv 2412.10117, section 2.4.
    """
    return 1 - torch.cos(torch.linspace(0, 1, steps + 1) * 0.5 * math.pi)


def gaussian_velocity(x: Tensor, mu: Tensor, t: Tensor, variance: Tensor | float) -> Tensor:
    """E[x1 - x0 | x_t] if x0 ~ N(0, 1) and x1 ~ N(mu, variance): the best velocity that knows nothing else.

    x, mu: (B, F, M); t and variance broadcast against them.
    """
    rest = 1 - t
    return (rest * mu + (t * variance - rest) * x) / (rest.square() + t.square() * variance)


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


def draw_prompts(
    lengths: Tensor, share: float, probability: float, generator: torch.Generator | None = None
) -> Tensor:
    """Frames of each item shown as its voice prompt: with `probability` a uniform part up to `share`, else none: (B,)."""
    part = torch.rand(len(lengths), generator=generator) * share
    shown = torch.rand(len(lengths), generator=generator) < probability
    return (part * lengths.cpu() * shown).long().to(lengths.device)


class FlowMatching(nn.Module):
    """The two equations of the module docstring around the estimator.

    Source: flow matching, arXiv 2210.02747, eqs. 22, 23.
    """

    def __init__(self, c: FlowConfig):
        super().__init__()
        self.sigma, self.guidance, self.variance = c.sigma_min, c.guidance, c.prior_variance
        self.estimator = Estimator(c.mels, c.estimator)
        self.precision = "fp32"  # of the U-Net, see `Flow.set_precision`
        self.static = (
            "auto"  # steps of fixed shape: auto (on CUDA), on, off, compiled (see `captured.recorder`)
        )
        self.recordings, self.streams = Recordings(), Streams()

    def record(self, device: torch.device) -> tuple[bool, Record | None]:
        """Whether steps have fixed shapes on a device, and how they are recorded."""
        wanted = self.static in ("on", "compiled") or (self.static == "auto" and device.type == "cuda")
        return wanted, recorder(device, fuse=self.static == "compiled") if wanted else None

    @property
    def half(self) -> bool:
        return self.precision == "bf16"

    @property
    def copies(self) -> int:
        """With guidance each item runs twice; the second half of the batch sees no condition."""
        return 2 if self.guidance else 1

    def velocity(
        self, x: Tensor, mu: Tensor, t: Tensor, speaker: Tensor, prompt: Tensor, keep: Tensor, *rest
    ) -> Tensor:
        """v (B, F, M) float32 at times t (B,); items whose `keep` (B,) is 0 see no condition. `rest` goes to the U-Net."""
        column = keep[:, None, None]
        mu, prompt, speaker = mu * column, prompt * column, speaker * keep[:, None]
        parts = (x, mu, speaker, prompt)
        if self.half:
            parts = tuple(part.to(torch.bfloat16) for part in parts)
        x_in, mu_in, speaker, prompt = parts
        v = self.estimator(x_in, mu_in, t, speaker, prompt, *rest).float()
        if self.variance:
            variance = torch.where(column > 0, self.variance, 1.0)  # without mu the guess is N(0, 1)
            v = v + gaussian_velocity(x.float(), mu.float(), t[:, None, None].float(), variance)
        return v

    def loss(
        self,
        x1: Tensor,
        valid: Tensor,
        mu: Tensor,
        speaker: Tensor,
        prompt: Tensor,
        draws: Draws,
        streaming: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Mean squared velocity error over real frames, and the predicted velocity (B, F, M).

        Source: flow matching, arXiv 2210.02747, eq. 23.
        """
        t, x0, keep = draws.t, draws.x0, draws.keep.to(mu.dtype)
        x_t = (1 - (1 - self.sigma) * t) * x0 + t * x1
        u = x1 - (1 - self.sigma) * x0
        v = self.velocity(x_t, mu, t.flatten(), speaker, prompt, keep, valid, streaming)
        error = (v - u).square() * valid[..., None]
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
        bias: Tensor | None = None,
    ) -> Tensor:
        """Euler steps from noise x (B, F, M) to the mel; `caches` holds one a step when chunks follow each other.

        `bias` is that of `Estimator.forward`, for every copy.
        """
        batch, times = x.shape[0], cosine_times(steps).to(x)
        mu, prompt, speaker = (torch.cat([c] * self.copies) for c in (mu, prompt, speaker))
        valid = None if valid is None else torch.cat([valid] * self.copies)
        with tensor_float32(self.precision == "tf32"):
            wanted, record = self.record(x.device)
            if wanted and caches is None and steps <= STEPS:
                return self.recordings.solve(self, x, mu, speaker, prompt, times, valid, streaming, record)
            keep = (torch.arange(len(mu), device=x.device) < batch).to(mu.dtype)
            for i in range(steps):
                cache = None if caches is None else caches[i].rewind()
                t, dt = times[i : i + 1], times[i + 1] - times[i]
                x = self.euler(x, mu, t, dt, speaker, prompt, keep, valid, streaming, cache, past, bias)
        return x

    def euler(
        self,
        x: Tensor,
        mu: Tensor,
        t: Tensor,
        dt: Tensor,
        speaker: Tensor,
        prompt: Tensor,
        keep: Tensor,
        *rest,
    ) -> Tensor:
        """x (B, F, M) at t (1,) -> x at t + dt; the others hold every copy (`copies`).

        Source: guidance: arXiv 2207.12598, eq. 6.
        """
        v = self.velocity(torch.cat([x] * self.copies), mu, t.expand(len(mu)), speaker, prompt, keep, *rest)
        if self.guidance:
            v, free = v.chunk(2)
            v = (1 + self.guidance) * v - self.guidance * free
        return x + dt * v


class Flow(nn.Module):
    """Tokens, a voice prompt and a speaker vector -> mel.

    Source: paper section 3.2; CosyVoice 2, arXiv 2412.10117, section 2.4.
    """

    def __init__(self, config: FlowConfig):
        super().__init__()
        self.config = config
        self.input_embedding = nn.Embedding(config.vocab, config.encoder.width)
        self.spk_embed_affine_layer = nn.Linear(config.speaker_dim, config.mels)
        self.encoder = UpsampleEncoder(config.encoder)
        self.encoder_proj = nn.Linear(config.encoder.width, config.mels)
        self.speaker_in = (
            nn.Linear(config.speaker_dim, config.encoder.width) if config.speaker_prior else None
        )
        self.pitch = (
            PitchPrior(config.encoder.width, config.mels, config.speaker_dim, config.mel_window)
            if config.pitch
            else None
        )
        self.decoder = FlowMatching(config)
        self.company: Company | None = None  # see `Codec.meet`
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

    def set_precision(self, precision: str) -> "Flow":
        """Run the U-Net, where nearly all the time goes, in float32 ("fp32"; "tf32": with factors rounded to 10 bits, on a
        GPU) or bfloat16 ("bf16"; "auto": where this device multiplies it fast). For bfloat16 its weights are converted:
        for inference only. Encoder and Euler sums stay float32.

        Raises:
            UserError: another precision, or one that this device has not got.
        """
        if precision not in PRECISIONS:
            raise UserError(
                f"the codec has no precision '{precision}': choose one of {', '.join(PRECISIONS)}"
            )
        device = self.input_embedding.weight.device
        if precision == "tf32" and not (
            device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8
        ):
            raise UserError(
                f"this device ({device.type}) has no tf32: choose fp32 or bf16, or a GPU from Ampere on"
            )
        if precision == "auto":
            precision = "bf16" if fast_bfloat16(device) else "fp32"
        self.decoder.precision = precision
        self.decoder.estimator.to(torch.bfloat16 if self.decoder.half else torch.float32)
        return self

    def normalize(self, mel: Tensor) -> Tensor:
        return (mel - self.config.mel_mean) / self.config.mel_std

    def project_speaker(self, speaker: Tensor) -> Tensor:
        """Direction of the speaker vector (B, 192) -> (B, M)."""
        return self.spk_embed_affine_layer(F.normalize(speaker, dim=1))

    def level(self, level: Tensor | None, speaker: Tensor) -> Tensor | None:
        """Median pitch of each voice in Hz (B,); with `pitch` guessed from the speaker vector where it is unknown (None, 0)."""
        return level if self.pitch is None else self.pitch.level(level, speaker)

    def embed(self, tokens: Tensor, speaker: Tensor, level: Tensor | None = None) -> Tensor:
        """Tokens (B, N), speaker vectors (B, 192) and, with `pitch`, levels (B,) in Hz -> (B, N, D)."""
        x = self.input_embedding(tokens.clamp(min=0))
        if self.speaker_in is not None:
            x = x + self.speaker_in(F.normalize(speaker, dim=1))[:, None]
        return x if self.pitch is None else x + self.pitch.embed(level)[:, None]

    def first_mel(self, hidden: Tensor, level: Tensor | None = None, pitch: Tensor | None = None) -> Tensor:
        """The encoder's output (B, F, D) -> mu (B, F, M); with `pitch` at the pitch given (B, F) Hz, or the one that is read."""
        mu = self.encoder_proj(hidden)
        if self.pitch is None:
            return mu
        return mu + self.pitch(hidden, self.pitch.pitch(hidden, level) if pitch is None else pitch)

    def hidden(
        self,
        tokens: Tensor,
        speaker: Tensor,
        lengths: Tensor | None = None,
        streaming: bool = False,
        finalize: bool = True,
        zero_padding: bool = True,
        level: Tensor | None = None,
    ) -> Tensor:
        """The encoder's output (B, F, D) of tokens (B, N); without `finalize` the last 3 tokens are look-ahead only."""
        x = self.embed(tokens, speaker, level)
        if lengths is not None:
            x = x * length_mask(lengths, tokens.shape[1])[..., None]
        drop_tail = 0 if finalize else self.config.encoder.look_ahead
        return self.encoder(x, lengths, streaming, drop_tail, zero_padding=zero_padding)

    def encode(
        self, tokens: Tensor, speaker: Tensor, *rest, level: Tensor | None = None, **settings
    ) -> Tensor:
        """First mel mu (B, F, M) of tokens (B, N); arguments as those of `hidden`."""
        level = self.level(level, speaker)
        return self.first_mel(self.hidden(tokens, speaker, *rest, level=level, **settings), level)

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
        prior_only: bool = False,
        pitch: Tensor | None = None,
    ) -> Tensor:
        """Flow-matching loss of a padded batch.

        Args:
            tokens: (B, N); token_lengths: (B,).
            mel: (B, M, 2 N), log-mel of `omnilib.audio.mel_80`.
            speaker: (B, 192).
            prompt_frames: (B,) frames shown as voice prompt; drawn when None.
            streaming: chunk masks or full context; drawn when None.
            draws, generator: recorded or seeded randomness.
            prior_only: the regression loss on mu alone, and that of the pitch; the U-Net is not run.
            pitch: (B, 2 N) Hz as measured, 0 where unvoiced; needed with `pitch` in the config.
        """
        c = self.config
        x1 = self.normalize(mel.transpose(1, 2))  # (B, F, M)
        frames = token_lengths * RATIO
        if streaming is None:
            streaming = bool(torch.rand((), generator=generator) < c.streaming_probability)
        valid = length_mask(frames, x1.shape[1])
        level, heard = None, 0.0
        if self.pitch is not None:
            level = self.pitch.learnt_level(pitch, prompt_frames, speaker, generator)
        hidden = self.hidden(tokens, speaker, token_lengths, streaming, level=level)
        if self.pitch is not None:
            heard = c.pitch_weight * self.pitch.loss(hidden, level, speaker, pitch, valid)
        mu = self.first_mel(hidden, level, pitch)
        prior = (mu.float() - x1)[valid].square().mean()
        if prior_only:
            return prior + heard
        if prompt_frames is None:
            prompt_frames = draw_prompts(frames, c.prompt_share, c.prompt_probability, generator)
        draws = draws or draw(x1, c.guidance_drop, generator)
        shown = length_mask(prompt_frames, x1.shape[1])
        if self.pitch is not None:  # when speaking, the pitch of the prompt is read from its codes too
            read = self.pitch.pitch(hidden, level).detach()
            mu = self.first_mel(hidden, level, torch.where(shown, read, pitch))
        prompt = x1 * shown[..., None]
        loss, _ = self.decoder.loss(x1, valid, mu, self.project_speaker(speaker), prompt, draws, streaming)
        return loss + heard + (c.prior_weight * prior if c.prior_weight else 0.0)

    def forward(self, *args, **kwargs) -> Tensor:
        """The training loss, so that data-parallel wrappers see it."""
        return self.loss(*args, **kwargs)

    @classmethod
    def load(cls, folder: str | Path) -> "Flow":
        """Read a checkpoint folder (model.safetensors + config.yaml), ready for inference.

        Raises:
            CheckpointError, ConfigError: the folder is missing, truncated, or of another model.
        """
        model = cls(configs.load(FlowConfig, Path(folder) / "config.yaml"))
        load_weights(model, Path(folder) / "model.safetensors")
        return model.eval()

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
        level: Tensor | None = None,
    ) -> Tensor:
        """Mel of `tokens` in the voice of the prompt.

        Args:
            tokens: (B, N); prompt_tokens: (B, P); prompt_mel: (B, 2 P, M); speaker: (B, 192).
            streaming: chunk masks, so that what is already out does not change when tokens follow.
            finalize: False when tokens will follow: the last 3 are look-ahead only and give no mel.
            token_lengths, prompt_lengths: (B,) real tokens of each row; all when None.
            level: (B,) median pitch of each voice in Hz, 0 or None where unknown; counts with `pitch` only.

        Returns:
            (B, M, 2 N), or (B, M, 2 (N - 3)) when not final; zero after the end of shorter rows.
        """
        batch, size = tokens.shape
        counts = [size] * batch if token_lengths is None else token_lengths.tolist()
        prompts = [prompt_tokens.shape[1]] * batch if prompt_lengths is None else prompt_lengths.tolist()
        rows = [
            torch.cat([prompt_tokens[i, :p], tokens[i, :n]])
            for i, (p, n) in enumerate(zip(prompts, counts, strict=True))
        ]
        sizes = [len(r) for r in rows]  # on the host: asking the device for them would wait for it
        lengths = torch.tensor(sizes, device=tokens.device)
        padded = None if min(sizes) == max(sizes) else lengths
        mu = self.encode(
            pad_sequence(rows, True), speaker, padded, streaming, finalize, level=level
        )  # (B, F, M)
        drop_tail = 0 if finalize else self.config.encoder.look_ahead
        frames = (lengths - drop_tail) * RATIO

        prompt = torch.zeros_like(mu)
        for i, p in enumerate(prompts):
            prompt[i, : p * RATIO] = self.normalize(prompt_mel[i, : p * RATIO])[: mu.shape[1]]
        valid = None if padded is None else length_mask(frames, mu.shape[1])
        noise = noise_at(0, mu.shape[1], self.config.mels, mu.device)
        x0 = self.config.temperature * noise.expand(batch, -1, -1)
        x1 = self.decoder.solve(x0, mu, self.project_speaker(speaker), prompt, n_timesteps, valid, streaming)
        x1 = x1 * self.config.mel_std + self.config.mel_mean
        mel = pad_sequence(
            [
                x1[i, p * RATIO : (n - drop_tail) * RATIO]
                for i, (p, n) in enumerate(zip(prompts, sizes, strict=True))
            ],
            True,
        )
        return mel.transpose(1, 2)

    def stream(
        self,
        prompt_tokens: Tensor,
        prompt_mel: Tensor,
        speaker: Tensor,
        n_timesteps: int = 10,
        level: Tensor | None = None,
    ) -> "FlowStream":
        """Start streaming in a voice: prompt_tokens (1, P), prompt_mel (1, 2 P, M), speaker (1, 192), level (1,) Hz."""
        return FlowStream(self, prompt_tokens, prompt_mel, speaker, n_timesteps, level)


class FlowStream:
    """Tokens in, mel out, each chunk computed once (CosyVoice 2, arXiv 2412.10117, section 2.4).

    Gives the mel that `inference(streaming=True)` would on all tokens. A chunk is computed when its tokens and
    the look-ahead are there; the chunks of the prompt are computed at the start, before any token is known.
    """

    def __init__(
        self,
        flow: Flow,
        prompt_tokens: Tensor,
        prompt_mel: Tensor,
        speaker: Tensor,
        n_timesteps: int = 10,
        level: Tensor | None = None,
    ):
        self.flow, self.steps = flow, n_timesteps
        self.pending = prompt_tokens.new_zeros(1, 0)  # tokens not yet computed
        self.past = 0  # tokens computed
        self.skip = prompt_tokens.shape[1] * RATIO  # prompt frames not yet passed
        self.encoder_cache, self.caches = Cache(), [Cache() for _ in range(n_timesteps)]
        self.fixed: ChunkSteps | None = None  # in place of `caches`, where steps are recorded
        with torch.inference_mode():
            self.vector, self.speaker = speaker, flow.project_speaker(speaker)
            self.level = flow.level(level, speaker)
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
        one = count <= c.encoder.chunk if last else count == c.encoder.chunk
        if self.flow.company is not None and self.past and one:
            return self.flow.company.piece(self)
        x = self.flow.embed(self.pending[:, : count + ahead], self.vector, self.level)
        encoded = self.flow.encoder(x, None, True, ahead, self.encoder_cache.rewind(), self.past)
        mu = self.flow.first_mel(encoded, self.level)  # (1, F, M)
        start, frames = self.past * RATIO, count * RATIO
        x0, prompt = self.given_at(start, frames)
        return self.done(self.solve(x0, mu, prompt, start), count)

    def done(self, x1: Tensor, count: int) -> Tensor:
        """x1 (1, F, M) of `count` tokens is there: its mel (1, M, F) behind the prompt."""
        c = self.flow.config
        self.pending, self.past = self.pending[:, count:], self.past + count
        passed = min(self.skip, x1.shape[1])
        self.skip -= passed
        return (x1[:, passed:] * c.mel_std + c.mel_mean).transpose(1, 2)

    def given_at(self, start: int, frames: int) -> tuple[Tensor, Tensor]:
        """Noise of these frames, and what is known of their mel, zero behind the prompt: (1, F, M) each."""
        c, prompt = self.flow.config, self.prompt[:, start : start + frames]
        x0 = c.temperature * noise_at(start, frames, c.mels, prompt.device)
        return x0, F.pad(prompt, (0, 0, 0, frames - prompt.shape[1]))

    def solve(self, x: Tensor, mu: Tensor, prompt: Tensor, start: int) -> Tensor:
        """x, mu, prompt (1, F, M) of the frames from `start` on -> mel (1, F, M); a single chunk by recorded steps."""
        decoder = self.flow.decoder
        if not self.fix(x, start):
            self.loosen(start)
            return decoder.solve(x, mu, self.speaker, prompt, self.steps, None, True, self.caches, start)
        mu, prompt, speaker = (torch.cat([c] * decoder.copies) for c in (mu, prompt, self.speaker))
        with tensor_float32(decoder.precision == "tf32"):
            return self.fixed.solve(x, mu, speaker, prompt, cosine_times(self.steps).to(x), start)

    def fix(self, x: Tensor, start: int) -> bool:
        """Whether the steps over x are recorded ones; takes up their tensors at the first time."""
        decoder, size = self.flow.decoder, self.flow.config.encoder.chunk * RATIO
        wanted, record = decoder.record(x.device)
        if not wanted or x.shape[1] != size or decoder.estimator.config.chunk != size:
            return False
        if start % size or start + size > CAPACITY:
            return False
        if self.fixed is None and self.caches[0].slots:
            entry = decoder.streams.take(decoder, self.caches[0], x, self.steps, record)
            if entry is not None:
                self.fixed = entry[1]
                self.release = weakref.finalize(self, decoder.streams.put, entry)
                self.release.atexit = False
                self.fixed.load(self.caches, start)
                self.caches = []
        return self.fixed is not None

    def loosen(self, past: int) -> None:
        """Go back to plain caches."""
        if self.fixed is not None:
            self.caches, self.fixed = self.fixed.plain(past), None
            self.release()

    def fork(self) -> "FlowStream":
        """A twin that goes on from here by itself; tensors are shared, as no plain step changes one in place."""
        twin = copy.copy(self)
        twin.encoder_cache = self.encoder_cache.fork()
        twin.caches = [cache.fork() for cache in self.caches]
        if self.fixed is not None:
            twin.caches, twin.fixed = self.fixed.plain(self.past * RATIO), None
        return twin
