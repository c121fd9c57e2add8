"""Train the nano speaker encoder as a classifier of the training speakers (paper scale uses the published CAM++ instead).

    python -m omnilib.train.speaker --config nano/speaker --out checkpoints/nano/speaker      # one core, 8 minutes

Random crops of several lengths, played at several speeds (each speed of a voice is a speaker of its own), with noise; loss is
softmax with an additive angular margin (ArcFace, arXiv 1801.07698). Judged by the equal error rate between recordings of
speakers never trained on.

Shapes: B batch, T samples, F filter-bank frames, E vector size, S speakers.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, normalize

from omnilib.audio import TOKENIZER_RATE, fbank_80, resample
from omnilib.data import Segments, read_manifest, sha256, step_rng
from omnilib.errors import DataError, in_one_line
from omnilib.paths import DATA
from omnilib.train.common import (
    Run,
    autocast,
    check_finite,
    claim,
    count_parameters,
    export_model,
    load_state,
    lr_at,
    run_meta,
    run_script,
    seed_everything,
    weighted,
)
from omnilib.train.encode import encode_speakers
from omnilib.train.prefetch import prefetch, threads_for
from omnilib.voice.speaker import SpeakerConfig, SpeakerEncoder


@dataclass
class Config:
    """One experiment."""

    manifest: str = "nano/manifest.jsonl"  # below the data folder, or a path
    seed: int = 0
    steps: int = 500
    batch_seconds: float = 160.0
    weights: dict[str, float] = field(
        default_factory=dict
    )  # part or language -> how often its recordings count
    crops: list[float] = field(default_factory=lambda: [1.5, 2.5, 4.0])
    speeds: list[float] = field(
        default_factory=lambda: [1.0, 1.08]
    )  # chosen so that no two copies of a voice coincide
    noise_db: list[float] = field(default_factory=lambda: [15.0, 50.0])  # signal-to-noise range
    margin: float = 0.2
    scale: float = 30.0
    lr: float = 2.0e-3
    warmup: int = 40
    weight_decay: float = 0.02
    clip: float = 5.0
    encoder: SpeakerConfig = field(default_factory=SpeakerConfig)
    eval_items: int = 25  # recordings a speaker
    log_every: int = 20
    eval_every: int = 250
    save_every: int = 100
    storage: str = "bfloat16"  # form of the exported weights, see omnilib/storage.py
    bf16: bool = True


class Classifier(nn.Module):
    """Encoder and one direction a speaker (ArcFace, arXiv 1801.07698)."""

    def __init__(self, encoder: SpeakerEncoder, speakers: int):
        super().__init__()
        self.encoder = encoder
        self.directions = nn.Parameter(torch.randn(speakers, encoder.config.dim) * 0.1)

    def forward(self, fbank: Tensor) -> Tensor:
        """(B, F, 80) -> cosine to each speaker (B, S)."""
        return linear(normalize(self.encoder(fbank).float()), normalize(self.directions))


def margin_loss(cosine: Tensor, speaker: Tensor, margin: float, scale: float) -> Tensor:
    """Cross-entropy of scaled cosines (B, S), the true angle made larger by `margin`.

    Source: ArcFace, arXiv 1801.07698, eq. 3.
    """
    angle = cosine.clamp(-1 + 1e-6, 1 - 1e-6).acos()
    harder = torch.where(
        nn.functional.one_hot(speaker, cosine.shape[1]).bool(), (angle + margin).cos(), cosine
    )
    return cross_entropy(scale * harder, speaker)


class Batches:
    """Filter banks and speaker numbers of a step, a function of (seed, step) alone."""

    def __init__(self, config: Config, records: list[dict], root: Path, speakers: list[str]):
        self.config, self.number = config, {name: i for i, name in enumerate(speakers)}
        self.segments = [
            Segments(records, root, config.batch_seconds, crop, config.seed) for crop in config.crops
        ]

    def make(self, step: int) -> tuple[Tensor, Tensor]:
        config, rng = self.config, step_rng(self.config.seed + 2, step)
        waves, _, records = self.segments[int(rng.integers(len(config.crops)))].batch(step)  # (B, T)
        choice = int(rng.integers(len(config.speeds)))
        rate = (
            round(TOKENIZER_RATE / config.speeds[choice] / 200) * 200
        )  # a round rate keeps the resampling filter short
        waves = resample(waves, records[0]["rate"], rate)
        level = waves.square().mean(1, keepdim=True).sqrt()
        decibel = torch.from_numpy(rng.uniform(*config.noise_db, size=(len(waves), 1)).astype(np.float32))
        noise = torch.from_numpy(rng.standard_normal(waves.shape, dtype=np.float32))
        waves = waves + noise * level * 10 ** (-decibel / 20)
        speaker = torch.tensor([self.number[r["speaker"]] + choice * len(self.number) for r in records])
        return fbank_80(waves), speaker


def equal_error_rate(same: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Rate at which same-speaker pairs fall below, and other pairs rise above, one threshold; and that threshold."""
    scores = np.concatenate((same, other))
    order = np.argsort(scores, kind="stable")
    is_same = np.concatenate((np.ones(len(same)), np.zeros(len(other))))[order]
    missed = np.cumsum(is_same) / len(same)  # same pairs at or below each score
    accepted = 1 - np.cumsum(1 - is_same) / len(other)  # other pairs above it
    best = int(np.argmin(np.abs(missed - accepted)))
    return float((missed[best] + accepted[best]) / 2), float(scores[order][best])


def evaluate(encoder: SpeakerEncoder, records: list[dict], root: Path) -> dict[str, float]:
    """Equal error rate over all pairs of `records`."""
    encoder.eval()
    vectors = encode_speakers(encoder, records, root)
    encoder.train()
    matrix = normalize(torch.stack([vectors[r["id"]] for r in records]).float())
    cosine = (matrix @ matrix.T).numpy()
    names = np.array([r["speaker"] for r in records])
    same, upper = names[:, None] == names[None], np.triu(np.ones_like(cosine, dtype=bool), 1)
    error, threshold = equal_error_rate(cosine[same & upper], cosine[~same & upper])
    return {
        "eer": error,
        "threshold": threshold,
        "same_mean": float(cosine[same & upper].mean()),
        "other_mean": float(cosine[~same & upper].mean()),
    }


def pick(records: list[dict], count: int) -> list[dict]:
    """The first `count` recordings, by id, of each speaker."""
    kept: dict[str, list[dict]] = {}
    for record in sorted(records, key=lambda r: r["id"]):
        kept.setdefault(record["speaker"], []).append(record)
    return [r for group in kept.values() for r in group[:count]]


def prepare(config: Config) -> tuple[Classifier, list[str], list[dict], dict[str, list[dict]]]:
    """Encoder with its classes, names of the speakers to learn, their records, and the test records: `unseen` speakers, and `all`.

    Raises:
        DataError: fewer than two speakers to learn, or to test.
    """
    manifest = DATA / config.manifest
    records = read_manifest(manifest)
    learnt = [r for r in records if r["split"] == "train"]
    speakers = sorted({r["speaker"] for r in learnt})
    test = pick([r for r in records if r["split"] == "test" and r["duration"] >= 1.5], config.eval_items)
    unseen = [r for r in test if r["speaker"] not in speakers]
    if len(speakers) < 2 or len({r["speaker"] for r in unseen}) < 2:
        raise DataError(
            f"{manifest}: training needs 2 speakers and 2 others in the test split only; build the corpus again"
        )
    model = Classifier(SpeakerEncoder(config.encoder), len(speakers) * len(config.speeds))
    return model, speakers, learnt, {"unseen": unseen, "all": test}


def train(config: Config, out: Path) -> dict[str, float]:
    """Run or continue a run in `out`; returns the last metrics of the test speakers."""
    accelerator = Accelerator()
    seed_everything(config.seed)
    claim(out, config)
    device, world, rank = accelerator.device, accelerator.num_processes, accelerator.process_index
    model, speakers, records, test = prepare(config)
    manifest, model = DATA / config.manifest, model.to(device)
    batches = Batches(config, weighted(records, config.weights), manifest.parent, speakers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    run = Run(out, load_state(out, model, optimizer), accelerator.is_main_process)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    size = count_parameters(model.encoder)["total"]
    run.say(
        f"encoder {size:,} parameters, {len(speakers)} speakers x {len(config.speeds)} speeds, from step {run.start}"
    )

    def judge() -> dict[str, float]:
        results = {name: evaluate(model.encoder, lines, manifest.parent) for name, lines in test.items()}
        return {f"{name}_{key}": value for name, found in results.items() for key, value in found.items()}

    metrics = {}
    make = lambda step: batches.make(step * world + rank)  # noqa: E731  each process its own batch
    for step, (fbank, speaker) in prefetch(make, run.start, config.steps, threads=threads_for(device)):
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, config.steps, config.lr, config.warmup)
        fbank, speaker = fbank.to(device), speaker.to(device)
        with autocast(device, config.bf16):
            cosine = wrapped(fbank)
        loss = margin_loss(cosine.float(), speaker, config.margin, config.scale)
        check_finite(loss, step)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(wrapped.parameters(), config.clip)
        optimizer.step()
        optimizer.zero_grad()

        done = step + 1
        if run.due(done, config.log_every, config.steps):
            right = (cosine.argmax(1) == speaker).float().mean()
            run.write(done, loss=loss.item(), accuracy=right.item())
        if run.writes and run.due(done, config.eval_every, config.steps):
            metrics = judge()
            run.write(done, **metrics)
        if run.due(done, config.save_every, config.steps):
            run.save(model, optimizer, done)

    if run.writes:
        metrics = metrics or judge()
        meta = run_meta(config, config.steps, run.seconds, metrics=metrics, manifest_sha256=sha256(manifest))
        export_model(out, model.encoder, config.encoder, meta, form=config.storage)
    return metrics


def main(argv: list[str] | None = None) -> dict[str, float]:
    return run_script(__doc__, Config, train, argv)


if __name__ == "__main__":
    with in_one_line():
        main()
