"""Train the flow: speech tokens, a voice prompt and a speaker vector -> mel spectrogram.

    python -m omnilib.train.flow --config nano/flow --out runs/flow             # 1 CPU core
    accelerate launch -m omnilib.train.flow --config paper/flow --out runs/flow

One stage, nothing frozen. The recipe is CosyVoice2's (uniform time, 20 % of items without condition, part of the item itself
as prompt, half of the steps with streaming masks) with two additions that a small model needs: some batches put a piece of
*another* utterance of the same voice before each item and show it as the prompt, which is exactly what voice cloning does;
and a plain regression loss on mu (Matcha-TTS's prior loss), so that the encoder learns from the first step - with
`encoder_only` from that loss alone, because what a small flow gets wrong it mostly gets wrong in mu.
Exported are the running averages of the weights.

Shapes: B batch, N tokens (25 Hz), F = 2N mel frames (50 Hz).
"""

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from omnilib.audio import mel_80
from omnilib.data import Segments, load_segment, read_manifest, sha256, step_rng
from omnilib.errors import DataError, in_one_line
from omnilib.paths import DATA, ROOT
from omnilib.train import common
from omnilib.train.prefetch import prefetch, threads_for
from omnilib.voice.flow import RATIO, Flow, FlowConfig
from omnilib.voice.pitch import level_of, measure_pitch

SAMPLES = 960  # of 24 kHz audio in a token


@dataclass
class Config:
    """One run. Files are paths, or names below the data folder.

    Source: CosyVoice 2, arXiv 2412.10117, section 2.4.
    """

    manifest: str = "nano/manifest.jsonl"
    tokens: str = "nano/tokens.safetensors"  # record id -> int16 (N,) speech tokens at 25 Hz
    speakers: str = "nano/speakers.safetensors"  # record id -> float (192,) speaker vector
    tokenizer: str = ""  # folder of the tokenizer whose codes these are; others are refused
    steps: int = 0  # in all; 0: as many as the phases have
    phases: list[dict[str, Any]] = field(
        default_factory=list
    )  # stretches of the run with settings of their own, see `common.Schedule`
    encoder_only: bool = False  # the encoder learns alone, by the regression loss: about half the time a step
    batch_seconds: float = 60.0
    max_seconds: float = 16.0  # longer recordings are left out
    weights: dict[str, float] = field(
        default_factory=dict
    )  # part or language -> how often its recordings count
    other_prompt: float = 0.3  # share of batches whose prompt is another utterance of the voice
    prompt_seconds: list[float] = field(default_factory=lambda: [1.0, 4.0])  # its length
    lr: float = 1e-3
    warmup: int = 200
    weight_decay: float = 0.01
    clip: float = 1.0  # largest gradient norm
    average: float = 0.999  # decay of the weight average
    bf16: bool = True
    storage: str = "bfloat16"  # form of the exported weights, see omnilib/storage.py
    eval_every: int = 500
    eval_items: int = 16
    save_every: int = 250
    log_every: int = 25
    seed: int = 0
    model: FlowConfig = field(default_factory=FlowConfig)


# ---------------------------------------------------------------- data


@dataclass
class Item:
    """One recording."""

    tokens: Tensor  # (N,)
    mel: Tensor  # (F, 80)
    pitch: Tensor  # (F,) Hz, 0 where unvoiced

    def part(self, first: int, count: int) -> "Item":
        """`count` tokens from the first one on."""
        frames = slice(first * RATIO, (first + count) * RATIO)
        return Item(self.tokens[first : first + count], self.mel[frames], self.pitch[frames])

    def __add__(self, other: "Item") -> "Item":
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Item(*(torch.cat(pair) for pair in pairs))


@dataclass
class Batch:
    tokens: Tensor  # (B, N)
    lengths: Tensor  # (B,) tokens
    mel: Tensor  # (B, 80, F)
    speakers: Tensor  # (B, 192)
    prompt_frames: Tensor | None  # (B,), or None: drawn inside the loss
    pitch: Tensor  # (B, F) Hz, 0 where unvoiced

    def to(self, device: torch.device) -> "Batch":
        return Batch(**{k: v if v is None else v.to(device) for k, v in vars(self).items()})


def find_data(name: str) -> Path:
    """A path as it is, or below the data folder."""
    return Path(name) if Path(name).exists() else DATA / name


def load_vectors(path: Path, made_by: str) -> dict[str, Tensor]:
    """A safetensors file of record id -> tensor.

    Raises:
        DataError: missing or unreadable.
    """
    try:
        return load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"cannot read {path} ({error}): it holds one tensor per record id; make it with {made_by}"
        ) from None


class Utterances:
    """Tokens, mels and speaker vectors of the records that have them; a batch depends on (seed, step) alone."""

    def __init__(
        self,
        records: list[dict],
        root: Path,
        tokens: dict[str, Tensor],
        speakers: dict[str, Tensor],
        cfg: Config,
    ):
        keep = [
            r
            for r in records
            if r["id"] in tokens and r["id"] in speakers and r["duration"] <= cfg.max_seconds
        ]
        if not keep:
            raise DataError(
                f"none of {len(records)} records has tokens and a speaker vector: encode this manifest's records first"
            )
        if bad := sorted({r["rate"] for r in keep} - {24_000}):
            raise DataError(
                f"recordings at {bad} Hz: the flow learns from 24 kHz only, resample them in data preparation"
            )
        self.segments = Segments(keep, root, cfg.batch_seconds, seed=cfg.seed)
        self.root, self.tokens, self.speakers, self.cfg = root, tokens, speakers, cfg
        self.voices: dict[str, list[dict]] = {}
        for record in self.segments.records:
            self.voices.setdefault(record["speaker"], []).append(record)

    def load(self, records: list[dict]) -> list[Item]:
        """Each record, cut to the shorter of its tokens and its sound."""
        waves = [load_segment(r, self.root) for r in records]
        padded, sizes = pad_sequence(waves, True), torch.tensor([len(w) for w in waves])
        mels = mel_80(padded, sizes, self.cfg.model.mel_window)  # (B, 80, F)
        pitches = measure_pitch(padded)  # (B, F)
        items = []
        for record, wave, mel, pitch in zip(records, waves, mels, pitches, strict=True):
            tokens = self.tokens[record["id"]].long()
            count = min(len(tokens), len(wave) // SAMPLES)
            items.append(Item(tokens, mel.T, pitch).part(0, count))
        return items

    def collate(self, items: list[Item], owners: list[dict], prompt_frames: Tensor | None) -> Batch:
        return Batch(
            tokens=pad_sequence([i.tokens for i in items], True),
            lengths=torch.tensor([len(i.tokens) for i in items]),
            mel=pad_sequence([i.mel for i in items], True).transpose(1, 2),
            speakers=torch.stack([self.speakers[r["id"]].float() for r in owners]),
            prompt_frames=prompt_frames,
            pitch=pad_sequence([i.pitch for i in items], True),
        )

    def batch(self, step: int) -> Batch:
        """Utterances of similar length; in some steps each after a piece of another one of its voice."""
        records, rng = self.segments.records_at(step), step_rng(self.cfg.seed + 7, step)
        if rng.random() >= self.cfg.other_prompt:
            return self.collate(self.load(records), records, None)
        size = round(rng.uniform(*self.cfg.prompt_seconds) * 25)  # tokens, one size a batch: no extra padding
        others = [self.voices[r["speaker"]][rng.integers(len(self.voices[r["speaker"]]))] for r in records]
        items, prompt_frames = [], []
        loaded = self.load(others + records)
        for other, item in zip(loaded[: len(others)], loaded[len(others) :], strict=True):
            prompt = other.part(int(rng.integers(max(0, len(other.tokens) - size) + 1)), size)
            items.append(prompt + item)
            prompt_frames.append(len(prompt.mel))
        return self.collate(items, others, torch.tensor(prompt_frames))


# ---------------------------------------------------------------- evaluation


@torch.no_grad()
def evaluate(model: Flow, dev: Utterances, cfg: Config, device: torch.device, out: Path) -> dict[str, float]:
    """Flow loss at fixed draws, squared error of mu, and the distance of sampled mels to the truth with the first third of the item as prompt.

    Keeps one sampled mel and its target in `out`, for ears (any HiFT makes it a wave) and eyes.

    Source: flow matching, arXiv 2210.02747, eq. 23.
    """
    records = dev.segments.records[:: max(1, len(dev.segments.records) // cfg.eval_items)][: cfg.eval_items]
    losses, distances, priors, pitches, example = [], [], [], [], {}
    for number, record in enumerate(records):
        batch = dev.collate(dev.load([record]), [record], None).to(device)
        with common.autocast(device, cfg.bf16):
            fixed = torch.Generator().manual_seed(number)
            losses.append(
                model(
                    batch.tokens, batch.lengths, batch.mel, batch.speakers, generator=fixed, pitch=batch.pitch
                ).item()
            )
            cut = max(1, int(batch.lengths[0]) // 3)
            prompt = (batch.tokens[:, :cut], batch.mel[:, :, : cut * RATIO].transpose(1, 2))
            level = level_of(batch.pitch[:, : cut * RATIO])
            mel = model.inference(batch.tokens[:, cut:], *prompt, batch.speakers, level=level)  # (1, 80, F)
            mu = model.encode(batch.tokens, batch.speakers, level=level)
            if model.pitch is not None:
                pitches.append(pitch_error(model, batch, level))
            priors.append((mu - model.normalize(batch.mel.transpose(1, 2))).square().mean().item())
        target = batch.mel[:, :, cut * RATIO :]
        distances.append((mel - target).abs().mean().item())
        example = {"mel": mel[0].cpu().contiguous(), "target": target[0].cpu().contiguous()}
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(example, out)
    return {
        "dev_loss": sum(losses) / len(losses),
        "dev_prior_loss": sum(priors) / len(priors),
        "dev_mel_l1": sum(distances) / len(distances),
    } | ({"dev_pitch_octaves": sum(pitches) / len(pitches)} if pitches else {})


def pitch_error(model: Flow, batch: Batch, level: Tensor) -> float:
    """Mean absolute error in octaves of the pitch that is read, where both it and the recording are voiced."""
    level = model.level(level, batch.speakers)
    read = model.pitch.pitch(model.hidden(batch.tokens, batch.speakers, level=level), level)  # (1, F)
    both = (read > 0) & (batch.pitch > 0)
    return (read[both] / batch.pitch[both]).log2().abs().mean().item() if both.any() else 0.0


# ---------------------------------------------------------------- loop


def prepare(config: Config):
    """The flow, utterances to learn from by the settings of a phase, and those of development.

    Raises:
        DataError: tokens of another tokenizer, a file that is missing or damaged.
    """
    manifest = find_data(config.manifest)
    records = read_manifest(manifest)
    if config.tokenizer:
        common.check_tokenizer(find_data(config.tokens), ROOT / config.tokenizer)
    tokens = load_vectors(find_data(config.tokens), "`python -m omnilib.train.encode --tokenizer ...`")
    speakers = load_vectors(find_data(config.speakers), "`python -m omnilib.train.encode --speaker ...`")
    learnt, dev = ([r for r in records if r["split"] == split] for split in ("train", "dev"))

    def utterances(lines: list[dict], settings: Config) -> Utterances:
        return Utterances(lines, manifest.parent, tokens, speakers, settings)

    schedule = common.Schedule(
        config, lambda settings: utterances(common.weighted(learnt, settings.weights), settings)
    )
    return Flow(config.model), schedule, utterances(dev, config)


def train(config: Config, out: Path) -> dict[str, float]:
    """Run or continue a run in `out`; returns the last development metrics."""
    accelerator = Accelerator(kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])
    common.seed_everything(config.seed)
    common.claim(out, config)
    device, world, rank = accelerator.device, accelerator.num_processes, accelerator.process_index
    model, schedule, dev = prepare(config)
    model = model.to(device)
    average = copy.deepcopy(model).eval()
    both = nn.ModuleDict({"model": model, "average": average})
    optimizer = torch.optim.AdamW(
        model.parameters(), config.lr, betas=(0.9, 0.99), weight_decay=config.weight_decay
    )
    run = common.Run(out, common.load_state(out, both, optimizer), accelerator.is_main_process)
    wrapped = accelerator.prepare(model) if world > 1 else model
    names = ", ".join(f"{phase.name} to step {phase.end}" for phase in schedule.phases)
    run.say(f"flow {common.count_parameters(model)}; phases: {names}; from step {run.start}")

    def judge(done: int) -> dict[str, float]:
        return evaluate(average, dev, config, device, out / "samples" / f"{done:06d}.safetensors")

    model.train()
    heard, metrics = 0.0, {}
    make = lambda step: schedule.data(step).batch(step * world + rank)  # noqa: E731  each process its own batch
    for step, batch in prefetch(make, run.start, schedule.steps, threads=threads_for(device)):
        # time, noise, dropout: a function of the step
        torch.manual_seed((config.seed << 32) + step * world + rank)
        phase = schedule.at(step)
        for group in optimizer.param_groups:
            group["lr"] = phase.lr(step)
        batch = batch.to(device)
        inputs = (batch.tokens, batch.lengths, batch.mel, batch.speakers, batch.prompt_frames)
        with common.autocast(device, config.bf16):
            loss = wrapped(*inputs, prior_only=phase.config.encoder_only, pitch=batch.pitch)
        common.check_finite(loss, step)
        optimizer.zero_grad()
        accelerator.backward(loss)
        norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        common.update_average(average, model, min(config.average, (1 + step) / (10 + step)))
        heard += batch.lengths.sum().item() / 25 * world

        done = step + 1
        if run.due(done, config.log_every, phase.end):
            values = {"loss": loss.item(), "norm": norm.item(), "lr": phase.lr(step)}
            values |= {"audio_per_second": heard / run.here}
            values |= {"filled": (batch.lengths.float().mean() / batch.tokens.shape[1]).item()}
            run.write(done, phase=phase.name, **values)
        if run.writes and run.due(done, config.eval_every, phase.end):
            metrics = judge(done)
            run.write(done, **metrics)
        if run.due(done, config.save_every, phase.end):
            run.save(both, optimizer, done)

    if run.writes:
        metrics = metrics or judge(schedule.steps)
        meta = common.run_meta(
            config,
            schedule.steps,
            run.seconds,
            metrics=metrics,
            manifest_sha256=sha256(find_data(config.manifest)),
            tokenizer_sha256=common.made_by(find_data(config.tokens)),
        )
        common.export_model(out, average, config.model, meta, form=config.storage)
    return metrics


def main(argv: list[str] | None = None) -> dict[str, float]:
    return common.run_script(__doc__, Config, train, argv)


if __name__ == "__main__":
    with in_one_line():
        main()
