"""Train the brain (paper section 3.3): stage 1 teaches the projector to hear, stage 2 all tasks together.

    python -m omnilib.train.brain --config smoke/brain_stage1 --out runs/brain_stage1
    python -m omnilib.train.brain --config nano/brain --out checkpoints/nano/brain
    accelerate launch --config_file omnilib/configs/deepspeed/zero3.yaml \\
        -m omnilib.train.brain --config paper/brain --out runs/brain

| | towers of sound | language model | projector | vision tower |
|---|---|---|---|---|
| stage 1, transcription | frozen | frozen | learns | frozen |
| stage 1 with `learn_vision` | frozen | frozen | frozen | learns, by `ctc.naming_loss` |
| stage 2, all tasks | frozen | LoRA (`lora_rank`) or whole (0) | learns | learns if `learn_vision` |

Stage 1 may begin with the projector alone, without the language model, see `ctc`. Samples come from a manifest
(`brain_samples`), in batches of similar length under a budget of positions (`lengths`). Features of frozen towers may
be kept on disk (`cache`). A run folder holds a state to go on from and, at the end, only what was trained, see
`omnilib.brain.trained`. The paper gives no optimiser, rates or steps: ours are in the configs.

Shapes: B batch, L positions, W windows of sound, N frames.
"""

import hashlib
import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from omnilib import config as configs
from omnilib import storage
from omnilib.brain.config import MEL_HOP
from omnilib.brain.fast_blocks import FastLanguage
from omnilib.brain.fusion import positions_rate
from omnilib.brain.inputs import BrainProcessor
from omnilib.brain.layout import IMAGE, SPEECH
from omnilib.brain.mllm import Brain
from omnilib.brain.trained import (
    LORA,
    Base,
    Lora,
    add_lora,
    aux_hash,
    base_of,
    build_base,
    learned_before,
    load_trained,
    read_meta,
    trained_tensors,
)
from omnilib.data import sha256
from omnilib.errors import ConfigError, DataError, in_one_line
from omnilib.paths import DATA, ROOT
from omnilib.train import fsdp, zero
from omnilib.train.brain_samples import FeatureCache, Samples, prompt_of, read_samples
from omnilib.train.common import (
    Run,
    atomic_folder,
    autocast,
    check_finite,
    claim,
    load_state,
    lr_at,
    run_meta,
    run_script,
    seed_everything,
)
from omnilib.train.ctc import alignment_loss, likeness_loss, naming_loss, pieces_of, scores_of
from omnilib.train.prefetch import prefetch

PARTS = {  # beginnings of parameter names
    "vision tower": "model.vision_tower.",
    "audio encoders": "model.speech_tower.",
    "projector": "model.mm_speech_projector.",
    "language model": "",
}


@dataclass
class Config(Base):
    """One experiment; the fields of `Base` say what lies below it (paper section 3.1)."""

    stage: int = 1
    init: str = ""  # the result of an earlier stage on the same base
    manifest: str = "brain.jsonl"  # below the data folder, or a path
    tasks: list[str] = field(default_factory=list)  # of the samples; empty: all
    weights: dict[str, float] = field(
        default_factory=dict
    )  # task, or task/language, -> how often in an epoch; 1
    cache: str = ""  # below the data folder, for features of frozen towers; empty: encoded at every step
    # what learns in stage 2
    lora_rank: int = 16  # 0: the whole language model
    lora_alpha: float = 32.0
    lora_dropout: float = 0.0
    lora_targets: list[str] = field(default_factory=lambda: Lora().targets)
    merge: bool = False  # export whole matrices instead of the LoRA
    learn_vision: bool = False
    # stage 1: positions of speech (with learn_vision, of pictures) are pulled to the words they stand for, see `ctc`
    ctc: float = 0.0  # weight of this loss beside the language model's; 0: without
    ctc_steps: int = 0  # first steps, which have this loss alone: the language model is not run
    likeness: float = 0.0  # within it, weight of the distance to the embeddings of these words
    likeness_from: int = 0  # the step with which this begins
    # optimiser
    positions: int = 4096  # of a batch, rows x longest
    steps: int = 2000
    lr: float = 1e-3
    projector_lr: float = 1.0  # multiples of lr
    vision_lr: float = 1.0
    warmup: int = 50
    weight_decay: float = 0.01
    clip: float = 1.0
    bf16: bool = True
    fast: bool = True  # on CPU: the layers of brain.fast_blocks, twice as quick
    checkpointing: bool = False  # recompute activations: less memory, more time
    log_every: int = 20
    eval_every: int = 250
    eval_batches: int = 8
    save_every: int = 250
    storage: str = "bfloat16"  # form of the exported weights, see omnilib/storage.py


class Learner(nn.Module):
    """The brain with its loss, as one module that `accelerate` can wrap: frames from the cache are fused
    inside, where parameters are gathered.

    Several processes must gather the same parts in the same order, though one may have a batch without
    sound while another has one with it: then silence, or a black picture, goes through what has nothing to
    do, at no weight.

    Args:
        together: several processes train.
        heard, seen: features of sound, of pictures come from the cache.
        fast: how the language model is computed, if not by its own layers (`brain.fast_blocks`).
        ctc: weight of the CTC loss of `marker`'s positions while it trains; pieces: of all answers.

    Attributes:
        ctc_alone: the language model is not run; likeness: weight within `ctc`. The training loop sets both.
    """

    def __init__(
        self,
        brain: Brain,
        together: bool = False,
        heard: bool = False,
        seen: bool = False,
        fast: FastLanguage | None = None,
        ctc: float = 0.0,
        pieces: Tensor | None = None,
        marker: int = SPEECH,
    ):
        super().__init__()
        self.ctc, self.pieces, self.marker, self.ctc_alone, self.likeness = ctc, pieces, marker, False, 0.0
        self.fast = fast
        self.brain, self.together, self.heard, self.seen = brain, together, heard, seen
        self._no_split_modules = brain._no_split_modules  # what FSDP shares out as one

    def forward(self, input_ids: Tensor, main_frames: Tensor | None = None, **batch: Tensor) -> Tensor:
        """Mean loss over the labels, with that of `ctc` while it trains; frames (W, N, D1), (W, 2 N, D2) take the
        place of `input_features`."""
        model = self.brain.model
        pictures, speech, idle = batch.get("picture_features"), None, 0.0
        if "pixel_values" in batch:
            pictures = model.see(batch["pixel_values"], batch["image_grid_thw"])
        elif self.together and not self.seen and len(model.vision_tower):
            idle = 0.0 * model.see(*self.black(input_ids.device)).sum()
        aux_frames, positions = batch.get("aux_frames"), batch.get("feature_positions")
        if positions is None and self.together:
            idle = idle + 0.0 * self.hear(*self.silence(input_ids.device)).sum()
        elif main_frames is not None or aux_frames is not None:
            speech = model.fuse(main_frames, aux_frames, positions)
        elif positions is not None:
            speech = self.hear(batch["input_features"], positions)
        aligned, features = 0.0, pictures if self.marker == IMAGE else speech
        if self.training and self.ctc and features is not None:
            pieces = self.pieces.to(input_ids.device)
            table = model.embed_tokens.weight[pieces]
            scores = scores_of(features, table)
            measure = naming_loss if self.marker == IMAGE else alignment_loss
            aligned = measure(scores, input_ids == self.marker, batch["labels"], pieces)
            if self.likeness:
                aligned = aligned + self.likeness * likeness_loss(features, scores, table)
            if self.ctc_alone:
                return aligned
        embeds = model.embed(input_ids, pictures, speech) + idle  # (B, L, D)
        if self.fast is not None:
            own = self.brain.loss(self.fast(embeds, batch["position_ids"]), batch["labels"])
        else:
            places = {name: batch[name] for name in ("attention_mask", "position_ids", "labels")}
            own = self.brain(inputs_embeds=embeds, **places).loss
        return own + self.ctc * aligned

    def hear(self, windows: Tensor, positions: Tensor) -> Tensor:
        """As `BrainModel.hear`; all windows at once where processes must make the same number of calls."""
        model = self.brain.model
        if not self.together:
            return model.hear(windows, positions)
        frames = (None, None) if self.heard else model.encode_speech(windows, positions)
        if self.heard:  # nothing is in the cache for silence
            config, count = model.config, positions_rate(model.config)
            sizes = (count, config.main_width), (2 * count, config.aux_width)
            main, aux = (windows.new_zeros(1, *size) for size in sizes)
            frames = (
                main if config.speech_tower_config else None,
                aux if config.speech_tower_aux_config else None,
            )
        return model.fuse(*frames, positions)

    def silence(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """A window (1, bins, F) of which one position is heard."""
        config = self.brain.config
        window = torch.zeros(1, config.mel_bins, config.window_samples // MEL_HOP, device=device)
        return window, torch.ones(1, dtype=torch.long, device=device)

    def black(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Patches and grid of a small picture."""
        vision, side = self.brain.config.vision_tower_config, 2 * self.brain.config.merge
        patches = torch.zeros(
            side * side,
            3 * vision.temporal_patch_size * vision.patch_size**2,
            device=device,
        )
        return patches, torch.tensor([[1, side, side]], device=device)


def build(config: Config) -> tuple[Brain, BrainProcessor, set[str]]:
    """The brain with what learns marked, its processor, and the names of tensors that earlier stages changed.

    Raises:
        ConfigError: settings that contradict each other, or `init` on another base.
    """
    if config.stage not in (1, 2):
        raise ConfigError(f"stage is {config.stage}: it must be 1 or 2")
    base, before = base_of(config), set()
    if config.ctc and config.stage != 1 or (config.ctc_steps or config.likeness) and not config.ctc:
        raise ConfigError("ctc is of stage 1, and ctc_steps and likeness need ctc above 0: set ctc, or neither")
    blind = not config.vision and config.base in ("nano", "smoke")
    eyes_alone = config.stage == 1 and config.learn_vision
    if config.learn_vision and blind or eyes_alone and not config.ctc:
        raise ConfigError(
            "learn_vision needs a vision tower, and in stage 1 ctc: set vision=[depth,width,heads,feed-forward] ctc=1",
        )
    if config.init:
        other = read_meta(ROOT / config.init)["base"]
        if differ := [k for k in base if other[k] != base[k]]:
            raise ConfigError(
                f"{config.init} stands on another {', '.join(differ)}: set the same, or train it again",
            )
        brain, processor = load_trained(ROOT / config.init)
        before = learned_before(ROOT / config.init)
    else:
        brain, processor = build_base(Base(**base))
    brain.requires_grad_(False)
    if config.stage == 2 and config.lora_rank:
        add_lora(brain, lora_of(config))
    for name, parameter in brain.named_parameters():
        part = part_of(name)
        whole = config.stage == 2 and not config.lora_rank
        learns = (
            part == "projector" and not eyes_alone or LORA in name or (part == "language model" and whole)
        )
        parameter.requires_grad_(learns or (part == "vision tower" and config.learn_vision))
    brain.config.unfreeze_mm_vision_tower = config.learn_vision  # else it stays in eval mode
    brain.config.unfreeze_mm_speech_tower = False
    if config.checkpointing:
        brain.enable_input_require_grads()
        brain.gradient_checkpointing_enable()
    return brain, processor, before


def lora_of(config: Config) -> Lora:
    """The LoRA that a config asks for (LoRA, arXiv 2106.09685)."""
    return Lora(config.lora_rank, config.lora_alpha, config.lora_dropout, config.lora_targets)


def part_of(name: str) -> str:
    """The part of the brain a parameter belongs to."""
    return next(part for part, start in PARTS.items() if name.startswith(start))


def report(brain: Brain) -> list[str]:
    """A line for each part: how many of its parameters learn."""
    lines = []
    for part in PARTS:
        own = [p for n, p in brain.named_parameters() if part_of(n) == part]
        total, learning = sum(p.numel() for p in own), sum(p.numel() for p in own if p.requires_grad)
        state = "frozen" if not learning else f"{learning:,} learn"
        lines += [f"  {part}: {total:,} parameters, {state}"] if own else []
    return lines


def optimizer_of(brain: Brain, config: Config) -> torch.optim.Optimizer:
    """AdamW; groups carry `scale`, their rate as a multiple of the schedule's. Vectors, tables and LoRA do
    not decay."""
    scales = {"projector": config.projector_lr, "vision tower": config.vision_lr}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in brain.named_parameters():
        if parameter.requires_grad:
            kept = any(part in name for part in (LORA, "embed_tokens", "lm_head"))
            decays = parameter.dim() > 1 and not kept
            key = (scales.get(part_of(name), 1.0), config.weight_decay if decays else 0.0)
            groups.setdefault(key, []).append(parameter)
    settings = [{"params": p, "scale": scale, "weight_decay": decay} for (scale, decay), p in groups.items()]
    return torch.optim.AdamW(settings, lr=config.lr, betas=(0.9, 0.98))


def samples_of(
    config: Config,
    processor: BrainProcessor,
    cache: FeatureCache | None,
) -> dict[str, Samples]:
    """Samples for training, and for looking at it (`dev`) if there are any.

    Raises:
        DataError: no samples of these tasks, or a fault of one.
    """
    path = DATA / config.manifest
    records = [s for s in read_samples(path) if not config.tasks or s["task"] in config.tasks]
    if not any(s["split"] == "train" for s in records):
        raise DataError(
            f"{path} has no train samples of {', '.join(config.tasks) or 'any task'}: correct `tasks`",
        )
    result = {}
    for split in ("train", "dev"):
        chosen = [s for s in records if s["split"] == split]
        if split == "train":
            chosen = weighted(chosen, config.weights)
        if chosen:
            pictures = not config.learn_vision
            result[split] = Samples(
                chosen,
                path.parent,
                processor,
                config.positions,
                config.seed,
                cache,
                pictures,
            )
    return result


def weighted(samples: list[dict], weights: dict[str, float]) -> list[dict]:
    """Each sample as often as the weight of its task says (that of "task/language" before that of "task"); of a
    fraction, a hash of the id decides.

    Raises:
        ConfigError: a weight below 0, or of a task that no sample has.
    """
    kinds = [f"{s['task']}/{s.get('language', '')}" for s in samples]
    unknown = set(weights) - set(kinds) - {s["task"] for s in samples}
    if unknown or any(weight < 0 for weight in weights.values()):
        raise ConfigError(
            f"weights {weights} must be 0 or more, and of tasks that have samples{': ' if unknown else ''}"
            f"{', '.join(sorted(unknown))}"
        )
    result = []
    for sample, kind in zip(samples, kinds, strict=True):
        weight = weights.get(kind, weights.get(sample["task"], 1.0))
        share = int.from_bytes(hashlib.sha256(sample["id"].encode()).digest()[:4], "big") / 2**32
        result += [sample] * (int(weight) + (share < weight % 1))
    return result


def fast_language(brain: Brain, config: Config, device: torch.device, sharded: bool) -> FastLanguage | None:
    """The quick path of the language model, where it applies: one CPU process that keeps its activations."""
    dropout = config.lora_dropout and config.lora_rank and config.stage == 2
    if device.type != "cpu" or sharded or config.checkpointing or dropout or not config.fast:
        return None
    return FastLanguage(brain.model, torch.bfloat16 if config.bf16 else torch.float32)


def to(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """A batch on a device."""
    return {k: v.to(device) for k, v in batch.items()}


@torch.no_grad()
def evaluate(
    model: nn.Module,
    dev: Samples | None,
    device: torch.device,
    config: Config,
) -> dict[str, float]:
    """Mean teacher-forced loss of unseen samples, the same ones at every call."""
    if dev is None:
        return {}
    model.eval()
    total = 0.0
    for step in range(config.eval_batches):
        with autocast(device, config.bf16):
            total += model(**to(dev.batch(step), device)).item()
    model.train()
    return {"dev_loss": total / config.eval_batches}


def export(
    folder: Path,
    brain: Brain,
    config: Config,
    weights: dict[str, Tensor],
    before: set[str],
    meta: dict,
) -> None:
    """Write what was trained, here and in earlier stages: model.safetensors, config.yaml, meta.json."""
    names = {n for n, p in brain.named_parameters() if p.requires_grad} | before
    merged = config.merge or config.stage == 1 or not config.lora_rank
    lora = None if merged else asdict(lora_of(config))
    tensors = trained_tensors(brain, weights, names, merged)
    meta |= {"base": base_of(config), "aux_sha256": aux_hash(config), "lora": lora}

    def write(temporary: Path) -> None:
        save_file(
            storage.pack({k: v.cpu() for k, v in tensors.items()}, config.storage),
            temporary / "model.safetensors",
        )
        configs.save(config, temporary / "config.yaml")
        (temporary / "meta.json").write_text(json.dumps(meta, indent=1, sort_keys=True) + "\n")

    atomic_folder(folder / "export", write)
    for item in sorted((folder / "export").iterdir()):
        os.replace(item, folder / item.name)
    (folder / "export").rmdir()


def prepare(config: Config, accelerator) -> tuple[Learner, dict[str, Samples], set[str]]:
    """The brain with what learns marked, samples by split (`dev` where there are any), and the names of tensors that earlier stages
    changed.

    Raises:
        ConfigError, DataError: see `build` and `samples_of`.
    """
    device = accelerator.device
    brain, processor, before = build(config)
    cache = FeatureCache(DATA / config.cache, brain.to(device), processor) if config.cache else None
    with accelerator.main_process_first():  # the first fills the cache, the others read it
        samples = samples_of(config, processor, cache)
        if cache and accelerator.is_main_process:
            fill(cache, samples)
    seen_before = bool(cache) and not config.learn_vision
    fast = fast_language(brain, config, device, sharding_of(accelerator) is not None)
    if config.ctc and sharding_of(accelerator):
        raise ConfigError(
            "ctc reads the whole table of words, which is shared out here: set ctc=0 ctc_steps=0"
        )
    answers = [t["text"] for s in samples["train"].samples for t in s["turns"] if t["role"] == "assistant"]
    pieces = pieces_of(answers, processor.tokenizer) if config.ctc else None
    several = accelerator.num_processes > 1
    marker = IMAGE if config.learn_vision else SPEECH
    learner = Learner(brain, several, bool(cache), seen_before, fast, config.ctc, pieces, marker)
    return learner, samples, before


def sharding_of(accelerator):
    """The module that saves and loads a model spread over processes: `zero`, `fsdp` or None."""
    return zero if zero.is_zero(accelerator) else fsdp if fsdp.is_fsdp(accelerator) else None


def train(config: Config, out: Path) -> dict[str, float]:
    """Run or continue a run in `out`; returns the last development metrics."""
    accelerator = zero.make_accelerator()
    sharded = sharding_of(accelerator)
    seed_everything(config.seed)
    claim(out, config)
    device, world, rank = accelerator.device, accelerator.num_processes, accelerator.process_index
    model, samples, before = prepare(config, accelerator)
    brain, learnt, dev = model.brain, samples["train"], samples.get("dev")
    optimizer = optimizer_of(brain, config)
    if sharded is zero:
        zero.set_up(accelerator, 1, config.clip)
    if not sharded:  # a state holds what learns alone
        learning = nn.ParameterList(p for p in brain.parameters() if p.requires_grad)
        state = load_state(out, learning, optimizer)
    lines = report(brain)
    wrapped, prepared = accelerator.prepare(model.train(), optimizer)
    if sharded:
        state = sharded.load_state(accelerator, wrapped, out)
    run = Run(out, state, accelerator.is_main_process)
    run.say(f"stage {config.stage}: {len(learnt.samples)} samples, from step {run.start}", *lines)

    seen, cells, metrics = 0, 0, {}
    make = lambda step: learnt.batch(step * world + rank)  # noqa: E731  each process its own batch
    for step, batch in prefetch(make, run.start, config.steps):
        for group in prepared.param_groups:
            group["lr"] = lr_at(step, config.steps, config.lr, config.warmup) * group["scale"]
        model.ctc_alone = step < config.ctc_steps
        model.likeness = config.likeness if step >= config.likeness_from else 0.0
        with autocast(device, config.bf16):
            loss = wrapped(**to(batch, device))
        check_finite(loss, step)
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(wrapped.parameters(), config.clip)
        prepared.step()
        prepared.zero_grad()
        seen += int(batch["attention_mask"].sum())
        cells += batch["attention_mask"].numel()

        done = step + 1
        if run.due(done, config.log_every, config.steps):
            values = {
                "ctc" if model.ctc_alone else "loss": loss.item(),
                "norm": float(norm or 0),
                "padding": 1 - seen / cells,
            }
            run.write(done, **values, positions_per_second=seen * world / run.here)
        if run.due(
            done, config.eval_every, config.steps
        ):  # by all: under ZeRO-3 nobody holds the model alone
            metrics = evaluate(wrapped, dev, device, config)
            if metrics:
                run.write(done, **metrics)
        if run.due(done, config.save_every, config.steps):
            if sharded:
                sharded.save_state(accelerator, wrapped, out, done, {"seconds": run.seconds})
            else:
                run.save(learning, optimizer, done)

    metrics = metrics or evaluate(wrapped, dev, device, config)  # an earlier process ended the last step
    weights = accelerator.get_state_dict(wrapped)  # by all: under ZeRO-3 every process holds a part
    if run.writes:
        weights = {k.removeprefix("brain."): v for k, v in weights.items()}
        meta = run_meta(
            config,
            config.steps,
            run.seconds,
            metrics=metrics,
            manifest_sha256=sha256(DATA / config.manifest),
            parts=lines,
        )
        export(out, brain, config, weights, before, meta)
    accelerator.wait_for_everyone()
    if world > 1:
        accelerator.end_training()  # else a process may be aborted while its last messages are under way
    return metrics


def fill(cache: FeatureCache, samples: dict[str, Samples]) -> None:
    """Encode every recording once, before the first step."""
    clips = {}
    for part in samples.values():
        for sample in part.samples:
            for clip in prompt_of(sample, part.root).audio:
                path = cache.path("audio", clip)
                if not path.is_file():
                    clips[path] = clip
    began = time.time()
    for number, clip in enumerate(clips.values(), 1):
        cache.get("audio", clip)
        if number % 1000 == 0 or number == len(clips):
            print(f"{number} of {len(clips)} recordings encoded, {time.time() - began:.0f} s", flush=True)


def main(argv: list[str] | None = None) -> dict[str, float]:
    return run_script(__doc__, Config, train, argv)


if __name__ == "__main__":
    with in_one_line():
        main()
