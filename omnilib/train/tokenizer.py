"""Train the FSQ speech tokenizer inside a small phoneme recogniser (paper section 3.2 takes CosyVoice2's, learnt the same way).

    python -m omnilib.train.tokenizer --config nano/tokenizer --out checkpoints/nano/tokenizer          # one core, 25 minutes
    accelerate launch -m omnilib.train.tokenizer --config paper/tokenizer --out runs/tokenizer_paper    # published size

wave -> log-mel -> tokenizer -> rounded values -> phoneme head -> losses: CTC on the phoneme sequence, cross-entropy on
50 Hz frames where the corpus knows when each phoneme ends (elsewhere the model aligns them itself, after a while), and a
coarse mel with the utterance mean taken out (so that codes keep pitch and loudness movement but not the voice). A small term
keeps all codes in use, and a second, discarded reader before the quantiser teaches the encoder early. The head sees nothing but the codes.

Shapes: B batch, F mel frames (100 Hz), T codes (25 Hz), P phonemes.
"""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, ctc_loss, mse_loss, pad

from omnilib.audio import TOKENIZER_RATE, log_mel_128, resample
from omnilib.data import Segments, load_segment, read_manifest, sha256, step_rng
from omnilib.errors import DataError, in_one_line
from omnilib.paths import DATA
from omnilib.train.common import (
    OPTIMIZERS,
    Run,
    Schedule,
    autocast,
    check_finite,
    check_optimizer,
    claim,
    count_parameters,
    export_model,
    load_state,
    optimizers_by_name,
    run_meta,
    run_script,
    seed_everything,
    weighted,
)
from omnilib.train.prefetch import prefetch, threads_for
from omnilib.voice.phonemes import (
    FRAME_SECONDS,
    FRAMES,
    PhonemeHead,
    PhonemeHeadConfig,
    align,
    edit_distance,
    phoneme_set,
)
from omnilib.voice.tokenizer import (
    FRAMES_PER_CODE,
    SpeechTokenizer,
    SpeechTokenizerConfig,
    code_count,
    valid_mask,
)


@dataclass
class Config:
    """One experiment; `tokenizer` and `head` are the sizes, the rest is how long and how hard.

    Source: CosyVoice 2, arXiv 2412.10117, section 2.2.
    """

    manifest: str = "nano/manifest.jsonl"  # below the data folder, or a path
    seed: int = 0
    steps: int = 0  # in all; 0: as many as the phases have
    phases: list[dict[str, Any]] = field(
        default_factory=list
    )  # stretches of the run with settings of their own, see `common.Schedule`
    batch_seconds: float = 120.0
    max_seconds: float = 16.0  # longer recordings are left out
    lr: float = 1.5e-3
    optimizer: str = "adamw"  # adamw | muon (matrices by Muon, the rest by AdamW)
    warmup: int = 200
    weight_decay: float = 0.01
    clip: float = 1.0
    speeds: list[float] = field(default_factory=lambda: [1.0])  # playing faster or slower makes new voices
    weights: dict[str, float] = field(
        default_factory=dict
    )  # part or language -> how often its recordings count
    join: float = (
        0.0  # chance that a batch's utterances are joined in pairs, so that long recordings are known too
    )
    band_mask: int = 0  # mel bands hidden at random
    augment: float = (
        0.0  # share of recordings heard through noise, another microphone or a coder, see `augment`
    )
    direct_weight: float = (
        0.5  # same losses before the quantiser: teaches the encoder while the codes still mean nothing
    )
    align: bool = False  # recordings without phoneme times are aligned by the model itself
    ctc_weight: float = 0.5
    frame_weight: float = 1.0
    mel_weight: float = 0.3
    spread_weight: float = 0.1  # without it the first hundred steps fall into one code and stay there
    tokenizer: SpeechTokenizerConfig = field(default_factory=SpeechTokenizerConfig)
    head: PhonemeHeadConfig = field(default_factory=PhonemeHeadConfig)
    dev_items: int = 200
    log_every: int = 20
    eval_every: int = 500
    save_every: int = 500
    storage: str = "bfloat16"  # form of the exported weights, see omnilib/storage.py
    bf16: bool = True


@dataclass
class Batch:
    """mel (B, 128, F) as heard and as it was, frames (B,), phonemes (sum,), phoneme_counts (B,), labels (B, 2T) with -100 where
    unknown, and the phonemes with their pauses of each row that has no times."""

    mel: Tensor
    clean: Tensor
    frames: Tensor
    phonemes: Tensor
    phoneme_counts: Tensor
    labels: Tensor
    untimed: dict[int, list[int]]
    seconds: float

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(v.to(device) if isinstance(v, Tensor) else v for v in vars(self).values()))


class Batches:
    """Features and targets of a step, a function of (seed, step) alone."""

    def __init__(self, config: Config, records: list[dict], root: Path, head: PhonemeHead):
        self.config, self.head = config, head
        self.segments = Segments(records, root, config.batch_seconds, seed=config.seed)

    def make(self, step: int) -> Batch:
        config, rng = self.config, step_rng(self.config.seed + 2, step)
        waves, lengths, records = self.segments.batch(step)
        items = [
            (w[:n], r["phonemes"], r.get("phoneme_ends"), r["duration"])
            for w, n, r in zip(waves, lengths, records, strict=True)
        ]
        if rng.random() < config.join and len(items) > 1:
            items = [join(a, b) for a, b in zip(items[::2], items[1::2], strict=False)]
        speed = float(rng.choice(config.speeds))
        bands = int(rng.integers(0, config.band_mask + 1))
        first = int(rng.integers(0, config.tokenizer.bands - bands + 1))
        batch = collate(items, records[0]["rate"], self.head, speed)
        heard = augment(batch.clean, config.augment, torch.Generator().manual_seed(int(rng.integers(2**62))))
        heard[:, first : first + bands] = 0.0
        return replace(batch, mel=heard)


def augment(mel: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """A copy of Whisper log-mels (B, bands, F), `share` of its rows each with another microphone (a smooth curve of +-6 dB over the
    bands), steady coloured noise 30 to 70 dB below the loudest cell, and quiet cells lost below 50 to 80 dB as in coded sound."""
    rows, bands, _ = mel.shape
    uniform = lambda low, high, *size: low + (high - low) * torch.rand(*size, generator=generator)  # noqa: E731
    row = lambda low, high: uniform(low, high, rows, 1, 1)  # noqa: E731
    curve = nn.functional.interpolate(
        uniform(-0.6, 0.6, rows, 1, 5), bands, mode="linear", align_corners=True
    )[:, 0, :, None]
    decades = 4 * mel + curve  # log10 power, up to a constant
    top = decades.amax(dim=(1, 2), keepdim=True)
    tilt = row(-1, 1) * torch.linspace(-1, 1, bands)[None, :, None]
    grain = -torch.log(uniform(1e-3, 1, *mel.shape))  # power of noise in a cell is exponentially distributed
    noise = 10 ** (top - row(3.0, 7.0) + tilt) * grain
    heard = torch.maximum((10**decades + noise).log10(), top - row(5.0, 8.0))
    return torch.where(uniform(0, 1, rows, 1, 1) < share, heard / 4, mel)


def join(a: tuple, b: tuple) -> tuple:
    """Two utterances (wave, phonemes, ends, seconds) one after the other."""
    ends = None if a[2] is None or b[2] is None else [*a[2], *(a[3] + e for e in b[2])]
    return torch.cat((a[0], b[0])), [*a[1], *b[1]], ends, a[3] + b[3]


def collate(items: list[tuple], rate: int, head: PhonemeHead, speed: float = 1.0) -> Batch:
    """Utterances (wave, phonemes, ends, seconds) -> padded batch, played `speed` times as fast."""
    target_rate = round(TOKENIZER_RATE / speed / 200) * 200  # a round rate keeps the resampling filter short
    lengths = torch.tensor([math.ceil(len(w) * target_rate / rate) for w, *_ in items])
    waves = resample(nn.utils.rnn.pad_sequence([w for w, *_ in items], batch_first=True), rate, target_rate)
    mel = log_mel_128(waves, lengths)  # (B, 128, F)
    frames = lengths // 160
    labels = torch.full((len(items), FRAMES * int(code_count(frames).max())), -100)  # (B, 2T)
    for row, (_, phonemes, ends, _), count in zip(labels, items, code_count(frames).tolist(), strict=True):
        if ends is not None:
            played = torch.tensor(ends) * target_rate / TOKENIZER_RATE  # end times as heard
            index = torch.tensor([head.index.get(p, 0) for p in [*phonemes, "pau"]])
            row[: FRAMES * count] = index[
                torch.searchsorted(played, (torch.arange(FRAMES * count) + 0.5) * FRAME_SECONDS)
            ]
    targets = [head.targets(phonemes) for _, phonemes, *_ in items]
    counts = torch.tensor([len(t) for t in targets])
    untimed = {
        i: [head.index.get(p, 0) for p in phonemes]
        for i, (_, phonemes, ends, _) in enumerate(items)
        if ends is None
    }
    phonemes = torch.tensor([p for t in targets for p in t])
    return Batch(mel, mel, frames, phonemes, counts, labels, untimed, float(lengths.sum()) / TOKENIZER_RATE)


class Recogniser(nn.Module):
    """Tokenizer and phoneme head, trained together; `direct` reads the encoder before the codes and is thrown away after.

    Source: CosyVoice 2, arXiv 2412.10117, section 2.2.
    """

    def __init__(self, tokenizer: SpeechTokenizer, head: PhonemeHead):
        super().__init__()
        self.tokenizer, self.head = tokenizer, head
        self.direct = nn.Sequential(
            nn.LayerNorm(tokenizer.config.width), nn.Linear(tokenizer.config.width, head.phoneme.out_features)
        )

    def forward(self, mel: Tensor, frames: Tensor):
        coded = self.tokenizer(mel, frames)
        return (
            coded,
            *self.head(coded.values, coded.lengths),
            self.direct(coded.hidden).unflatten(-1, (FRAMES, -1)).flatten(1, 2),
        )


def coarse_mel(mel: Tensor, frames: Tensor, values: int) -> Tensor:
    """Log-mel (B, 128, F) -> `values` numbers a code (B, T, values): 4 frames x pooled bands, utterance mean removed."""
    mel = pad(mel, (0, -mel.shape[-1] % FRAMES_PER_CODE))  # (B, 128, 4T)
    bands = values // FRAMES_PER_CODE
    pooled = nn.functional.adaptive_avg_pool1d(mel.transpose(1, 2), bands)  # (B, 4T, bands)
    valid = valid_mask(frames, pooled.shape[1])[..., None]
    mean = (pooled * valid).sum(1, keepdim=True) / valid.sum(1, keepdim=True)
    return ((pooled - mean) * valid).unflatten(1, (-1, FRAMES_PER_CODE)).flatten(2)  # (B, T, values)


def spread(latent: Tensor) -> Tensor:
    """How far the latents (N, D) are from zero mean, unit variance and no correlation: then all 3^D codes are in use."""
    mean = latent.mean(0)
    centred = latent - mean
    covariance = centred.T @ centred / len(latent)  # (D, D)
    return (
        (covariance - torch.eye(len(mean), device=latent.device)).square().sum() + mean.square().sum()
    ) / len(mean)


def phoneme_losses(scores: Tensor, lengths: Tensor, batch: Batch) -> dict[str, Tensor]:
    """CTC per phoneme, and cross-entropy on the frames with a known label, of scores (B, 2T, P+1) in code counts (B,)."""
    scores = scores.float()
    log_probs = scores.log_softmax(-1).transpose(0, 1)  # (2T, B, P+1)
    ctc = ctc_loss(
        log_probs, batch.phonemes, FRAMES * lengths, batch.phoneme_counts, reduction="sum", zero_infinity=True
    )
    parts = {"ctc": ctc / batch.phoneme_counts.sum()}
    known = batch.labels >= 0
    if known.any():
        parts["frame"] = cross_entropy(scores[known], batch.labels[known])
    return parts


def align_untimed(scores: Tensor, lengths: Tensor, batch: Batch) -> Tensor:
    """Labels (B, 2T), those of rows without times filled by forced alignment of the present scores (hard EM)."""
    labels = batch.labels.clone()
    log_probs = scores.detach().float().log_softmax(-1).cpu().numpy()  # (B, 2T, P+1)
    for row, states in batch.untimed.items():
        count = FRAMES * int(lengths[row])
        path = align(log_probs[row, :count], states)
        if path is not None:
            labels[row, :count] = torch.from_numpy(path)
    return labels


def losses(
    model: nn.Module, batch: Batch, config: Config
) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor]:
    """Total loss, its parts, CTC scores (B, 2T, P+1) and codes with their lengths."""
    with autocast(batch.mel.device, config.bf16):
        coded, scores, mel, direct = model(batch.mel, batch.frames)
    valid = valid_mask(coded.lengths, mel.shape[1])
    if config.align and batch.untimed:
        batch = replace(batch, labels=align_untimed(scores, coded.lengths, batch))
    parts = phoneme_losses(scores, coded.lengths, batch)
    parts |= {f"direct_{k}": v for k, v in phoneme_losses(direct, coded.lengths, batch).items()}
    parts["spread"] = spread(coded.latent[valid])
    parts["mel"] = mse_loss(mel.float()[valid], coarse_mel(batch.clean, batch.frames, mel.shape[-1])[valid])
    weights = {
        "ctc": config.ctc_weight,
        "frame": config.frame_weight,
        "mel": config.mel_weight,
        "spread": config.spread_weight,
    }
    weights |= {f"direct_{k}": config.direct_weight * weights[k] for k in ("ctc", "frame")}
    return sum(weights[k] * v for k, v in parts.items()), parts, scores, coded.codes[valid]


@torch.no_grad()
def evaluate(
    model: Recogniser, records: list[dict], root: Path, config: Config, device: torch.device
) -> dict[str, float]:
    """Held-out phoneme error of the greedy CTC reading, per language, and how many codes are in use (perplexity)."""
    model.eval()
    edits: dict[str, int] = {}
    totals: dict[str, int] = {}
    usage = torch.zeros(config.tokenizer.codes)
    for first in range(0, len(records), 8):
        some = records[first : first + 8]
        items = [(load_segment(r, root), r["phonemes"], r.get("phoneme_ends"), r["duration"]) for r in some]
        batch = collate(items, some[0]["rate"], model.head).to(device)
        _, _, scores, codes = losses(model, batch, config)
        usage += torch.bincount(codes.cpu(), minlength=len(usage))
        for record, row, count in zip(
            some, scores.argmax(-1).cpu(), code_count(batch.frames).tolist(), strict=True
        ):
            got = [p for p in row[: FRAMES * count].unique_consecutive().tolist() if p]
            want = model.head.targets(record["phonemes"])
            language = record["language"]
            edits[language] = edits.get(language, 0) + edit_distance(got, want)
            totals[language] = totals.get(language, 0) + len(want)
    model.train()
    share = usage / usage.sum()
    result = {f"dev_error_{k}": edits[k] / max(1, totals[k]) for k in sorted(edits)}
    result["dev_error"] = sum(edits.values()) / max(1, sum(totals.values()))
    result["code_perplexity"] = float((-(share * share.clamp(min=1e-9).log()).sum()).exp())
    return result


def parameter_groups(model: nn.Module, optimizer: str, weight_decay: float) -> dict[str, list[dict]]:
    """Matrices to the chosen optimizer, convolutions and the rest to AdamW; no decay on biases, norms and other vectors.

    Raises:
        ConfigError: no such optimizer.
    """
    check_optimizer(optimizer)
    groups: dict[str, list[dict]] = {name: [] for name in OPTIMIZERS}
    for dims, name in ((1, "adamw"), (2, optimizer), (3, "adamw")):
        own = [p for p in model.parameters() if min(p.dim(), 3) == dims]
        groups[name].append({"params": own, "weight_decay": weight_decay if dims > 1 else 0.0})
    return groups


def prepare(config: Config) -> tuple[Recogniser, list[dict], list[dict]]:
    """Tokenizer and phoneme head, records to learn from, and those of development by length.

    Raises:
        DataError: a split without records.
    """
    manifest = DATA / config.manifest
    records = [r for r in read_manifest(manifest) if r["duration"] <= config.max_seconds]
    learnt = [r for r in records if r["split"] == "train"]
    dev = sorted((r for r in records if r["split"] == "dev"), key=lambda r: r["id"])
    dev = sorted(dev[:: max(1, len(dev) // config.dev_items)], key=lambda r: r["duration"])
    if not learnt or not dev:
        raise DataError(
            f"{manifest} has {len(learnt)} training and {len(dev)} dev records: build the corpus again"
        )
    config.head.phonemes, config.head.fsq_dims = phoneme_set(records), config.tokenizer.fsq_dims
    return Recogniser(SpeechTokenizer(config.tokenizer), PhonemeHead(config.head)), learnt, dev


def train(config: Config, out: Path) -> dict[str, float]:
    """Run or continue a run in `out`; returns the last development metrics."""
    accelerator = Accelerator()
    seed_everything(config.seed)
    claim(out, config)
    device, world, rank = accelerator.device, accelerator.num_processes, accelerator.process_index
    model, records, dev = prepare(config)
    manifest, model = DATA / config.manifest, model.to(device)
    schedule = Schedule(
        config,
        lambda settings: Batches(settings, weighted(records, settings.weights), manifest.parent, model.head),
    )
    optimizers = optimizers_by_name(parameter_groups(model, config.optimizer, config.weight_decay), config.lr)
    run = Run(out, load_state(out, model, optimizers), accelerator.is_main_process)
    wrapped, *prepared = accelerator.prepare(model, *optimizers.values())
    sizes = [f"{count_parameters(part)['total']:,}" for part in (model.tokenizer, model.head)]
    hours = sum(r["duration"] for r in records) / 3600
    run.say(
        f"tokenizer {sizes[0]} + head {sizes[1]} parameters, {len(config.head.phonemes)} phonemes, "
        f"{hours:.2f} h, from step {run.start}"
    )

    heard, metrics = 0.0, {}
    make = lambda step: schedule.data(step).make(step * world + rank)  # noqa: E731  each process its own batch
    for step, batch in prefetch(make, run.start, schedule.steps, threads=threads_for(device)):
        phase = schedule.at(step)
        for optimizer in prepared:
            for group in optimizer.param_groups:
                group["lr"] = phase.lr(step)
        loss, parts, _, codes = losses(wrapped, batch.to(device), phase.config)
        check_finite(loss, step)
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(wrapped.parameters(), config.clip)
        for optimizer in prepared:
            optimizer.step()
            optimizer.zero_grad()
        heard += batch.seconds * world

        done = step + 1
        if run.due(done, config.log_every, phase.end):
            values = {"loss": loss.item()} | {k: v.item() for k, v in parts.items()}
            values |= {"norm": float(norm), "codes": len(codes.unique()), "x_real_time": heard / run.here}
            run.write(done, phase=phase.name, **values)
        if run.writes and run.due(done, config.eval_every, phase.end):
            metrics = evaluate(model, dev, manifest.parent, config, device)
            run.write(done, **metrics)
        if run.due(done, config.save_every, phase.end):
            run.save(model, optimizers, done)

    if run.writes:
        metrics = metrics or evaluate(model, dev, manifest.parent, config, device)
        meta = run_meta(
            config, schedule.steps, run.seconds, metrics=metrics, manifest_sha256=sha256(manifest)
        )
        reader = {"read_with": "omnilib.voice.phonemes.PhonemeHead.load", "metrics": metrics}
        export_model(out / "phonemes", model.head, config.head, reader, config.storage)
        # codes are made with the exported weights
        export_model(out, model.tokenizer, config.tokenizer, meta, config.storage)
    return metrics


def main(argv: list[str] | None = None) -> dict[str, float]:
    return run_script(__doc__, Config, train, argv)


if __name__ == "__main__":
    with in_one_line():
        main()
