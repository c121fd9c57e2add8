"""Train a listener: a small recogniser that reads phonemes from the mel spectrogram the flow makes (not in the paper).

    python -m omnilib.train.listener --config listener_nano --out runs/listener

The flow's regression loss asks for the mean of all mels that the tokens allow, and means blur what tells phonemes apart. So
`omnilib.train.flow` can ask besides that a listener hears in mu what it hears in the recording (`heard_loss`): the same phonemes and
the same hidden values. It learns from recordings alone, some of their bands hidden and all of them through noise, and sees a fifth of
a second to each side only: with more context it would guess what it did not hear.

Shapes: B batch, F mel frames (50 Hz), M = 80 mels, P phonemes, W width.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, smooth_l1_loss
from torch.nn.utils.rnn import pad_sequence

from omnilib import config as configs
from omnilib.audio import mel_80
from omnilib.data import Segments, load_segment, read_manifest, sha256, step_rng
from omnilib.errors import CheckpointError, DataError
from omnilib.paths import DATA
from omnilib.storage import load_weights
from omnilib.train import common
from omnilib.train.prefetch import prefetch
from omnilib.voice.phonemes import phoneme_set

FRAMES = 50  # mel frames a second
HISS = 0.1  # noise that `heard_loss` adds, in normalized mel


@dataclass
class ListenerConfig:
    """`phonemes` comes from the corpus; pauses, index 0, are not in it."""

    mels: int = 80
    width: int = 256
    layers: int = 4
    kernel: int = 5
    mel_mean: float = -5.0
    mel_std: float = 2.4
    phonemes: list[str] = field(default_factory=list)

    def normalize(self, mel: Tensor) -> Tensor:
        return (mel - self.mel_mean) / self.mel_std


@dataclass
class Config:
    """One run."""

    manifest: str = "nano/speeds.jsonl"  # below the data folder, or a path
    steps: int = 3000
    batch_seconds: float = 32.0
    max_seconds: float = 12.0  # longer recordings are left out
    repeat: dict[str, int] = field(default_factory=dict)  # speaker or language -> times its recordings count
    band_mask: int = 8  # mel bands hidden at random
    noise: float = 0.3  # largest standard deviation of noise on the normalized mel
    lr: float = 1.5e-3
    warmup: int = 100
    weight_decay: float = 0.01
    clip: float = 1.0
    bf16: bool = True
    eval_every: int = 1000
    save_every: int = 500
    log_every: int = 50
    seed: int = 0
    model: ListenerConfig = field(default_factory=ListenerConfig)


class Listener(nn.Module):
    """Residual convolutions over frames; scores of a frame see `layers * (kernel // 2) + 1` frames to each side."""

    def __init__(self, config: ListenerConfig):
        super().__init__()
        self.config = config
        self.embed = nn.Conv1d(config.mels, config.width, 3, padding=1)
        self.norms = nn.ModuleList(nn.LayerNorm(config.width) for _ in range(config.layers + 1))
        self.convs = nn.ModuleList(
            nn.Conv1d(config.width, config.width, config.kernel, padding=config.kernel // 2) for _ in range(config.layers)
        )
        self.phoneme = nn.Linear(config.width, len(config.phonemes) + 1)

    def forward(self, mel: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Normalized mel (B, F, M) -> phoneme scores (B, F, P + 1) and the hidden values (B, F, W) after each layer, normalized."""
        x, hidden = self.embed(mel.transpose(1, 2)).transpose(1, 2), []
        for norm, conv in zip(self.norms, self.convs, strict=False):
            hidden.append(norm(x))
            x = x + nn.functional.gelu(conv(hidden[-1].transpose(1, 2)).transpose(1, 2))
        hidden.append(self.norms[-1](x))
        return self.phoneme(hidden[-1]), hidden[1:]

    @classmethod
    def load(cls, folder: str | Path) -> "Listener":
        """Read an exported run; it learns no more.

        Raises:
            CheckpointError, ConfigError: the folder is missing, truncated, or of another model.
        """
        if not (Path(folder) / "config.yaml").is_file():
            raise CheckpointError(f"no listener in {folder}: train it first (see `make retrain`) or leave `listener` empty")
        model = cls(configs.load(ListenerConfig, Path(folder) / "config.yaml"))
        load_weights(model, Path(folder) / "model.safetensors")
        return model.eval().requires_grad_(False)


def heard_loss(listener: Listener, made: Tensor, real: Tensor, valid: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """How differently `made` sounds to the listener: divergence of the phonemes it hears plus distance of its hidden values.

    made, real: normalized mels (B, F, M); valid (B, F). Both are heard through the same faint noise.
    """
    hiss = HISS * torch.randn(real.shape, device=real.device, generator=generator)
    with torch.no_grad():
        wanted, targets = listener(real + hiss)
    scores, hidden = listener(made + hiss)
    wanted, scores = wanted[valid].float().log_softmax(-1), scores[valid].float().log_softmax(-1)
    distance = sum(smooth_l1_loss(h[valid].float(), t[valid].float()) for h, t in zip(hidden, targets, strict=True))
    return kl_div(scores, wanted, reduction="batchmean", log_target=True) + distance / len(hidden)


# ---------------------------------------------------------------- data


def frame_labels(record: dict, frames: int, index: dict[str, int]) -> Tensor:
    """Phoneme of each mel frame, 0 in pauses: (F,). Frame i is centred at (i + 0.5) / 50 s."""
    of = torch.tensor([index.get(p, 0) for p in [*record["phonemes"], "pau"]])
    return of[torch.searchsorted(torch.tensor(record["phoneme_ends"]), (torch.arange(frames) + 0.5) / FRAMES)]


class Batches:
    """Mels and labels of a step, a function of (seed, step) alone."""

    def __init__(self, cfg: Config, records: list[dict], root: Path, index: dict[str, int]):
        self.cfg, self.root, self.index = cfg, root, index
        self.segments = Segments(records, root, cfg.batch_seconds, seed=cfg.seed)

    def make(self, records: list[dict]) -> tuple[Tensor, Tensor]:
        """Normalized mels (B, F, M) and labels (B, F), -100 in padding."""
        waves = [load_segment(r, self.root) for r in records]
        mel = mel_80(pad_sequence(waves, True), torch.tensor([len(w) for w in waves])).transpose(1, 2)
        counts = torch.tensor([len(w) * FRAMES // 24_000 for w in waves]).clamp(max=mel.shape[1])
        labels = torch.full(mel.shape[:2], -100)
        for row, record, count in zip(labels, records, counts.tolist(), strict=True):
            row[:count] = frame_labels(record, count, self.index)
        return self.cfg.model.normalize(mel), labels

    def disturbed(self, step: int) -> tuple[Tensor, Tensor]:
        mel, labels = self.make(self.segments.records_at(step))
        rng = step_rng(self.cfg.seed + 2, step)
        level = rng.uniform(0, self.cfg.noise, (len(mel), 1, 1))
        mel = mel + torch.from_numpy((level * rng.standard_normal(mel.shape, dtype="float32")).astype("float32"))
        bands = int(rng.integers(0, self.cfg.band_mask + 1))
        first = int(rng.integers(0, mel.shape[2] - bands + 1))
        mel[:, :, first : first + bands] = 0.0
        return mel, labels


@torch.no_grad()
def evaluate(model: Listener, batches: list[tuple[Tensor, Tensor]], cfg: Config) -> dict[str, float]:
    """Loss and share of frames misheard on development recordings, undisturbed."""
    losses, wrong, count = [], 0, 0
    for mel, labels in batches:
        with common.autocast(mel.device, cfg.bf16):
            scores = model(mel)[0][labels >= 0].float()
        want = labels[labels >= 0]
        losses.append(cross_entropy(scores, want).item())
        wrong, count = wrong + (scores.argmax(-1) != want).sum().item(), count + len(want)
    return {"dev_loss": sum(losses) / len(losses), "dev_frame_error": wrong / count}


# ---------------------------------------------------------------- loop


def train(cfg: Config, out: Path) -> dict[str, float]:
    """Run or continue a run in `out`; returns the final development metrics."""
    common.seed_everything(cfg.seed)
    manifest = DATA / cfg.manifest
    records = [r for r in read_manifest(manifest) if r["duration"] <= cfg.max_seconds and r.get("phoneme_ends")]
    split = {s: [r for r in records if r["split"] == s] for s in ("train", "dev")}
    if not split["train"] or not split["dev"]:
        raise DataError(f"{manifest.name} has no recordings whose phonemes have times: build the corpus again")
    cfg.model.phonemes = phoneme_set(records)
    index = {p: i + 1 for i, p in enumerate(cfg.model.phonemes)}
    data = Batches(cfg, common.repeated(split["train"], cfg.repeat), manifest.parent, index)
    in_order = sorted(split["dev"], key=lambda r: r["duration"])
    dev = [data.make(in_order[i : i + 16]) for i in range(0, len(in_order), 16)]

    model = Listener(cfg.model)
    optimizer = torch.optim.AdamW(model.parameters(), cfg.lr, betas=(0.9, 0.98), weight_decay=cfg.weight_decay)
    state = common.load_state(out, model, optimizer)
    first, spent = (state["step"], state["seconds"]) if state else (0, 0.0)
    log = common.JsonlLog(out / "log.jsonl", first if state else None)
    print(f"listener {common.count_parameters(model)}, {len(index)} phonemes")
    metrics: dict[str, float] = {}
    for step, (mel, labels) in prefetch(data.disturbed, first, cfg.steps):
        for group in optimizer.param_groups:
            group["lr"] = common.lr_at(step, cfg.steps, cfg.lr, cfg.warmup)
        with common.autocast(mel.device, cfg.bf16):
            scores = model(mel)[0]
        loss = cross_entropy(scores.float().flatten(0, 1), labels.flatten())
        common.check_finite(loss, step)
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), cfg.clip)
        optimizer.step()

        done, last = step + 1, step + 1 == cfg.steps
        if done % cfg.log_every == 0 or last:
            log.write(done, loss=loss.item(), norm=norm.item())
        if done % cfg.eval_every == 0 or last:
            metrics = evaluate(model, dev, cfg)
            log.write(done, **metrics)
        if done % cfg.save_every == 0 or last:
            common.save_state(out, model, optimizer, done, {"seconds": spent + time.time() - log.started})
    meta = common.run_meta(cfg, cfg.steps, spent + time.time() - log.started, metrics=metrics, manifest_sha256=sha256(manifest))
    common.export_model(out, model, cfg.model, meta)
    return metrics


def main(argv: list[str] | None = None) -> None:
    args = common.parse_args(__doc__, argv)
    train(configs.load(Config, args.config, args.overrides), args.out)


if __name__ == "__main__":
    main()
