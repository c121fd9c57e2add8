"""Train the vocoder: mel spectrogram -> waveform.

    python -m omnilib.train.hift --config nano/hift --out runs/hift            # 1 CPU core, under an hour
    accelerate launch -m omnilib.train.hift --config paper/hift --out runs/hift

Phases in one loop: first the generator learns from spectra alone (mel L1 + multi-resolution STFT), which is cheap and already
intelligible; with `adversarial` discriminators join, for phase and texture that spectra do not see.
With `mels` a share of the crops is made from what the flow says instead of what was recorded, against the recording all the
same (HiFi-GAN section 4.4: fine-tuning on predicted mels): the vocoder learns to undo the flow's smoothing.
The f0 predictor learns all along from pitch measured on the crop itself (autocorrelation, batched, about 1 % of a step).
With `teacher_f0` the measured pitch drives the harmonic source, so the generator need not wait for the predictor.
Exported are the running averages of the weights.
"""

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from omnilib.audio import MEL_WINDOW, mel_80, save_wave
from omnilib.data import Segments, load_segment, read_manifest, sha256, step_rng
from omnilib.errors import DataError, in_one_line
from omnilib.paths import DATA, ROOT
from omnilib.train import common
from omnilib.train.prefetch import prefetch, threads_for
from omnilib.voice.discriminators import (
    DiscriminatorConfig,
    Discriminators,
    adversarial_loss,
    discriminator_loss,
    feature_loss,
    fine_mel_loss,
    relativistic_loss,
    spectral_loss,
)
from omnilib.voice.hift import HiFT, HiFTConfig
from omnilib.voice.pitch import measure_pitch

FRAMES = 50  # mel frames a second


@dataclass
class Config:
    """One vocoder run (HiFi-GAN, arXiv 2010.05646, section 2.4)."""

    manifest: str = "nano/manifest.jsonl"  # below the data folder, or a path
    mels: str = (
        ""  # below the data folder: mels a flow gave for the same recordings (`omnilib.train.encode --codec`)
    )
    mels_share: float = 0.5  # of the crops that are heard from them instead of the recording's own mel
    tokenizer: str = ""  # folder of the tokenizer whose codes the mels were made from; others are refused
    weights: dict[str, float] = field(
        default_factory=dict
    )  # part or language -> how often its recordings count
    crop_seconds: float = 0.64
    batch_seconds: float = 5.12
    steps: int = 0  # in all; 0: as many as the phases have
    phases: list[dict[str, Any]] = field(
        default_factory=list
    )  # stretches of the run with settings of their own, see `common.Schedule`
    adversarial: bool = False  # discriminators learn too and judge
    teacher_f0: bool = False  # the source hears the measured pitch instead of the predicted one
    lr: float = 1e-3
    discriminator_lr: float = 5e-4
    warmup: int = 200
    clip: float = 10.0  # largest gradient norm
    average: float = 0.999  # decay of the weight average
    mel_weight: float = 15.0
    stft_weight: float = 5.0
    fine_mel_weight: float = 0.0
    f0_weight: float = 0.02  # its loss is in Hz
    adversarial_weight: float = 1.0
    feature_weight: float = 1.0
    relativistic_weight: float = 1.0
    bf16: bool = True  # convolutions only; spectra, phase and losses stay in float32
    eval_every: int = 1_000
    eval_crops: int = 32
    save_every: int = 500
    storage: str = "bfloat16"  # form of the exported weights, see omnilib/storage.py
    log_every: int = 50
    seed: int = 0
    model: HiFTConfig = field(default_factory=HiFTConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)


# --------------------------------------------------------------------------------------------------------- loop


def spectrum(config: HiFTConfig, waves: Tensor) -> Tensor:
    """The mel that a generator of this config reads: (B, T) -> (B, M, F)."""
    return mel_80(waves, window=config.mel_window)


@torch.no_grad()
def evaluate(model: HiFT, waves: Tensor) -> dict[str, float]:
    """Mel distance and pitch error of copy synthesis on fixed development crops, with predicted pitch."""
    mel = spectrum(model.config, waves)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(waves.shape[0], waves.shape[1], model.config.nb_harmonics + 1, generator=generator)
    fake, _ = model.inference(mel, noise=noise.to(waves.device))
    f0, target = model.f0_predictor(mel), measure_pitch(waves)
    voiced = (target > 0) & (f0 > model.config.nsf_voiced_threshold)
    return {
        "dev_mel": F.l1_loss(spectrum(model.config, fake), mel).item(),
        "dev_stft": spectral_loss(waves, fake).item(),
        "dev_f0_hz": (f0 - target)[voiced].abs().median().item() if voiced.any() else 0.0,
        "dev_voicing_error": ((target > 0) != (f0 > model.config.nsf_voiced_threshold)).float().mean().item(),
    }


class Crops:
    """Training crops: waves (B, T) and, for the last of them, the flow's mels (D, M, F), D <= B, to make them from instead of their own."""

    def __init__(self, cfg: Config, records: list[dict], root: Path):
        self.root, self.seed, self.seconds = root, cfg.seed, cfg.crop_seconds
        share = cfg.mels_share if cfg.mels else 0.0
        self.own = Segments(records, root, (1 - share) * cfg.batch_seconds, cfg.crop_seconds, seed=cfg.seed)
        self.made, self.mels = None, {}
        if share:
            if cfg.tokenizer:
                common.check_tokenizer(DATA / cfg.mels, ROOT / cfg.tokenizer)
            self.mels = load_mels(DATA / cfg.mels, cfg.model.mel_window)
            known = [r for r in records if r["id"] in self.mels]
            self.made = Segments(known, root, share * cfg.batch_seconds, cfg.crop_seconds, seed=cfg.seed + 1)

    def batch(self, step: int) -> tuple[Tensor, Tensor | None]:
        own = self.own.batch(step)[0]
        if self.made is None:
            return own, None
        rng, frames = step_rng(self.seed + 2, step), round(self.seconds * FRAMES)
        waves, mels = [], []
        for record in self.made.records_at(step):
            mel = self.mels[record["id"]]  # (M, F)
            last = min(mel.shape[1], int(record["duration"] * FRAMES)) - frames
            first = int(rng.integers(0, max(0, last) + 1))
            waves.append(load_segment(record, self.root, first / FRAMES, self.seconds))
            mels.append(mel[:, first : first + frames].float())
        return torch.cat([own, torch.stack(waves)]), torch.stack(mels)


def heard(own: Tensor, given: Tensor | None) -> Tensor:
    """Mels (B, M, F) the generator hears: the crops' own, but for the last ones those the flow gave (D, M, F)."""
    return own if given is None else torch.cat([own[: -len(given)], given.to(own.device)])


def load_mels(path: Path, window: int) -> dict[str, Tensor]:
    """Record id -> mel (M, F) that a flow gave, of windows of so many samples.

    Raises:
        DataError: there is no such file, it is broken, or its windows are others.
    """
    if not path.is_file():
        raise DataError(
            f"no mels {path.name}: write them with `python -m omnilib.train.encode --codec`, or leave `mels` empty"
        )
    try:
        mels = load_file(path)
        with safe_open(str(path), "pt") as file:
            made = int((file.metadata() or {}).get("mel_window", MEL_WINDOW))  # older files do not say
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"cannot read mels {path.name} ({error}): write them again with `python -m omnilib.train.encode --codec`"
        ) from None
    if made != window:
        raise DataError(
            f"mels {path.name} are of windows of {made} samples, the vocoder reads {window}: write them with a flow of that window"
        )
    return mels


def development_crops(records: list[dict], root: Path, cfg: Config) -> Tensor:
    """The same crops at every evaluation, whatever the run's seed, so that runs compare: (eval_crops, T)."""
    crops = Segments(records, root, cfg.eval_crops * cfg.crop_seconds, cfg.crop_seconds, seed=10_000)
    return crops.batch(0)[0]


def prepare(config: Config):
    """Generator and discriminators, crops to learn from by the settings of a phase, crops of development (N, T), and a sentence to be
    heard now and then."""
    manifest = DATA / config.manifest
    records = [r for r in read_manifest(manifest) if r["rate"] == config.model.sampling_rate]
    learnt, dev = ([r for r in records if r["split"] == split] for split in ("train", "dev"))
    schedule = common.Schedule(
        config,
        lambda settings: Crops(settings, common.weighted(learnt, settings.weights), manifest.parent),
    )
    crops = development_crops(dev, manifest.parent, config)
    example = max(dev, key=lambda r: (r["duration"] < 8, r["duration"]))
    nets = nn.ModuleDict({"generator": HiFT(config.model), "judges": Discriminators(config.discriminator)})
    return nets, schedule, crops, example


def judges_loss(real: list, fake: list, settings: Config) -> Tensor:
    """What the discriminators learn (HiFi-GAN eq. 1, and the relativistic term of arXiv 1807.00734).

    Args:
        real, fake: what they say of the true wave and of the made one.
    """
    loss = discriminator_loss(real, fake)
    if settings.relativistic_weight:
        loss = loss + settings.relativistic_weight * relativistic_loss(real, fake)
    return loss


def generator_losses(
    fake: Tensor, real: Tensor, truth: Tensor, f0_hat: Tensor, f0: Tensor, settings: Config
) -> dict[str, Tensor]:
    """What the generator learns without discriminators (HiFi-GAN eq. 3), each loss by name.

    Args:
        fake, real: waves (B, T). truth: mel of `real` (B, M, F). f0_hat, f0: pitch in Hz (B, F).
    """
    losses = {
        "mel": F.l1_loss(spectrum(settings.model, fake), truth),
        "stft": spectral_loss(real, fake),
        "f0": F.l1_loss(f0_hat, f0),
    }
    if settings.fine_mel_weight:
        losses["fine_mel"] = fine_mel_loss(real, fake, settings.model.sampling_rate)
    return losses


def total(losses: dict[str, Tensor], settings: Config) -> Tensor:
    """The generator's weighted sum (HiFi-GAN eqs. 4 to 6)."""
    names = ("mel", "stft", "f0", "fine_mel", "adversarial", "feature")
    return sum(getattr(settings, f"{name}_weight") * losses[name] for name in names if name in losses)


def train(config: Config, out: Path) -> dict[str, float]:
    """Run or continue a run in `out`; returns the last development metrics.

    Source: HiFi-GAN, arXiv 2010.05646, eqs. 1 to 6.
    """
    accelerator = Accelerator()
    common.seed_everything(config.seed)
    common.claim(out, config)
    device, world, rank = accelerator.device, accelerator.num_processes, accelerator.process_index
    nets, schedule, dev, example = prepare(config)
    nets, dev, root = nets.to(device), dev.to(device), (DATA / config.manifest).parent
    model, judges = nets["generator"], nets["judges"]
    average = nets["average"] = copy.deepcopy(model).eval()
    # the pitch loss is in Hz and reaches the predictor only: its large gradient must not shrink the others' when clipping
    sounding = [p for name, p in model.named_parameters() if not name.startswith("f0_predictor")]
    settings = {"betas": (0.8, 0.99), "weight_decay": 0.0}
    optimizers = {
        "generator": torch.optim.AdamW(model.parameters(), config.lr, **settings),
        "judges": torch.optim.AdamW(judges.parameters(), config.discriminator_lr, **settings),
    }
    run = common.Run(out, common.load_state(out, nets, optimizers), accelerator.is_main_process)
    g, d = accelerator.prepare(model, judges) if world > 1 else (model, judges)
    run.say(
        f"generator {common.count_parameters(model)}  discriminators {common.count_parameters(judges)}, "
        f"from step {run.start}"
    )

    metrics = {}
    make = lambda step: schedule.data(step).batch(step * world + rank)  # noqa: E731  each process its own batch
    for step, (real, given) in prefetch(make, run.start, schedule.steps, threads=threads_for(device)):
        phase = schedule.at(step)
        now = phase.config
        for group in optimizers["generator"].param_groups:
            group["lr"] = phase.lr(step)  # the discriminators start late and keep their rate
        real = real.to(device)  # (B, T)
        truth = spectrum(config.model, real)  # (B, M, F)
        mel = heard(truth, given)
        f0 = measure_pitch(real)
        noise = torch.Generator(device).manual_seed((config.seed << 32) + step * world + rank)
        with common.autocast(device, config.bf16):
            fake, f0_hat = g(mel, f0 if now.teacher_f0 else None, noise)  # (B, T), (B, F)

        losses = {}
        if now.adversarial:
            with common.autocast(device, config.bf16):
                judged_real, judged_fake = d(real), d(fake.detach())
            losses["judges"] = judges_loss(judged_real, judged_fake, now)
            optimizers["judges"].zero_grad()
            accelerator.backward(losses["judges"])
            optimizers["judges"].step()

        losses |= generator_losses(fake, real, truth, f0_hat, f0, now)
        if now.adversarial:
            judges.requires_grad_(False)
            with common.autocast(device, config.bf16):
                judged_fake = d(fake)
            judges.requires_grad_(True)
            losses["adversarial"] = adversarial_loss(judged_fake)
            # inner maps of the real wave are those from before the step above: one pass less, the difference is one update
            losses["feature"] = feature_loss(judged_real, judged_fake)
        loss = total(losses, now)
        common.check_finite(loss, step)
        optimizers["generator"].zero_grad()
        accelerator.backward(loss)
        norm = nn.utils.clip_grad_norm_(sounding, config.clip)
        optimizers["generator"].step()
        common.update_average(average, model, min(config.average, (1 + step) / (10 + step)))

        done = step + 1
        if run.due(done, config.log_every, phase.end):
            values = {"loss": loss.item()} | {name: value.item() for name, value in losses.items()}
            speed = (done - run.start) * config.batch_seconds * world / run.here
            values |= {"norm": norm.item(), "lr": phase.lr(step), "audio_per_second": speed}
            run.write(done, phase=phase.name, **values)
        if run.writes and run.due(done, config.eval_every, phase.end):
            metrics = evaluate(average, dev)
            speak_example(average, example, root, out / "samples" / f"{done:06d}.wav")
            run.write(done, **metrics)
        if run.due(done, config.save_every, phase.end):
            run.save(nets, optimizers, done)

    if run.writes:
        metrics = metrics or evaluate(average, dev)
        manifest_sha256 = sha256(DATA / config.manifest)
        meta = common.run_meta(
            config, schedule.steps, run.seconds, metrics=metrics, manifest_sha256=manifest_sha256
        )
        common.export_model(out, average, config.model, meta, form=config.storage)
    return metrics


@torch.no_grad()
def speak_example(model: HiFT, record: dict, root: Path, path: Path) -> None:
    """Copy-synthesise one development sentence, to be heard."""
    mel = spectrum(model.config, load_segment(record, root)[None].to(next(model.parameters()).device))
    wave, _ = model.inference(mel, generator=torch.Generator(mel.device).manual_seed(0))
    save_wave(path, wave[0].cpu(), model.config.sampling_rate)


def main(argv: list[str] | None = None) -> dict[str, float]:
    return common.run_script(__doc__, Config, train, argv)


if __name__ == "__main__":
    with in_one_line():
        main()
