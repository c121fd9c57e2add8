"""Train the mouth (paper section 3.2): stage 1 teaches adapter and speech rows beside a frozen LLM, stage 2 teaches all.

    python -m omnilib.train.speechlm --config nano/speechlm_stage1 --out checkpoints/nano/speechlm_stage1
    python -m omnilib.train.speechlm --config nano/speechlm --out checkpoints/nano/speechlm
    accelerate launch --config_file omnilib/configs/deepspeed/zero2.yaml -m omnilib.train.speechlm --config paper/speechlm_stage1 --out runs/stage1

A sample is a conversation, see `conversations.py`. The paper gives no optimiser, rates or steps: ours are in the configs.
"""

import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from omnilib import config as configs
from omnilib import storage
from omnilib.data import sha256, step_rng
from omnilib.errors import CheckpointError, ConfigError, DataError, in_one_line
from omnilib.mouth.decode import DecodeSettings, Request, generate
from omnilib.mouth.rows import layout_of
from omnilib.mouth.speechlm import CONTROL_ROWS, IGNORE, SpeechLM, SpeechLMConfig
from omnilib.paths import DATA, ROOT
from omnilib.text import load_tokenizer, text_size
from omnilib.train import zero
from omnilib.train.common import (
    Run,
    Schedule,
    autocast,
    check_finite,
    check_optimizer,
    claim,
    count_parameters,
    export_pretrained,
    load_state,
    made_by,
    optimizers_by_name,
    run_meta,
    run_script,
    seed_everything,
)
from omnilib.train.conversations import Conversations, ShardWindows, read_pairs
from omnilib.train.prefetch import prefetch
from omnilib.voice.phonemes import PhonemeHead, intelligibility


@dataclass
class Config:
    """One experiment. Sizes of the backbone come from `init`; the adapter's are here (paper section 3.3)."""

    stage: int = 1
    init: str = "checkpoints/nano/backbone"  # stage 1: a text backbone; stage 2: the result of stage 1
    text: str = "checkpoints/nano/text"  # the text tokenizer
    manifest: str = "nano/manifest.jsonl"  # below the data folder, or a path
    tokens: str = "nano/tokens.safetensors"  # record id -> 25 Hz codes
    tokenizer: str = ""  # folder of the tokenizer whose codes these are; others are refused
    shards: str = ""  # a folder of data_prep.shards to stream instead of `manifest` and `tokens`; its records carry their tokens
    window: int = 32  # shards in memory at a time, 15 minutes of speech each
    window_steps: int = 100  # steps between two windows
    seed: int = 0
    # mouth
    adapter: str = "[2,256,4_2,768]"  # [layers, width, heads_gqa, mlp]
    streams: int = 4  # k
    codes: int = 729  # 3 ** FSQ dimensions
    pre_pad: int = 4  # rows of delay between text and speech
    chunk_min: int = 20  # a sentence end closes a chunk beyond so many text ids (paper: 50)
    chunk_max: int = 60  # any id closes it beyond so many (paper: 100)
    # samples
    rows: int = 2400  # rows a batch holds
    seconds: list[float] = field(
        default_factory=lambda: [2.0, 6.0, 20.0, 60.0]
    )  # edges of the length classes of a sample
    shares: list[float] = field(default_factory=lambda: [0.25, 0.55, 0.2])  # share of batches in each class
    reference_seconds: list[float] = field(default_factory=lambda: [1.8, 6.0])
    languages: list[str] = field(default_factory=lambda: ["en", "zh"])
    language_shares: list[float] = field(default_factory=lambda: [0.8, 0.2])
    weights: dict[str, float] = field(
        default_factory=dict
    )  # part of the corpus -> how often its speakers are drawn
    corrupt: float = (
        0.1  # share of speech cells replaced by random codes in the input: the model must listen to the text
    )
    bpe_dropout: float = 0.0  # chance that a piece of the text to speak is taken apart, see `train.spelling`
    # optimiser
    steps: int = 0  # in all; 0: as many as the phases have
    phases: list[dict[str, Any]] = field(
        default_factory=list
    )  # stretches of the run with settings of their own, see `common.Schedule`
    lr: float = 1e-3
    adapter_lr_scale: float = 1.0  # the adapter's rate as a multiple of lr (paper: 5 in stage 2)
    optimizer: str = "adamw"  # adamw | muon (matrices by Muon, the rest by AdamW)
    warmup: int = 100
    weight_decay: float = 0.01
    clip: float = 1.0
    text_weight: float = 1.0  # paper: 1:1
    speech_weight: float = 1.0
    bf16: bool = True
    checkpointing: bool = False  # recompute activations: less memory, more time
    phoneme_reader: str = (
        ""  # a tokenizer folder whose phoneme head reads what the mouth says at each evaluation
    )
    phoneme_reader_lines: int = 24  # of each language
    phoneme_reader_temperature: float = 0.3  # of those readings
    log_every: int = 20
    eval_every: int = 500
    save_every: int = 250
    storage: str = "bfloat16"  # form of the exported weights, see omnilib/storage.py


def silence_codes(pairs: list[tuple[dict, Tensor]], size: int) -> list[int]:
    """Codes that mostly (80 %) stand in pauses, the most frequent first: the decoder's guard counts them.

    Known from records that tell when each phoneme ends (field `phoneme_ends`, pauses are called "pau").
    """
    heard, silent = np.zeros(size), np.zeros(size)
    for record, codes in pairs:
        if not record.get("phoneme_ends"):
            continue
        row = codes.numpy()
        spoken = np.searchsorted(record["phoneme_ends"], (np.arange(len(row)) + 0.5) / 25)
        pause = np.array([p == "pau" for p in [*record["phonemes"], "pau"]])[spoken]
        heard += np.bincount(row, minlength=size)
        silent += np.bincount(row[pause], minlength=size)
    found = np.flatnonzero(silent > 0.8 * np.maximum(heard, 1))
    return [int(c) for c in found[np.argsort(-silent[found])] if silent[c] > 1e-4 * heard.sum()]


def build(config: Config, tokenizer) -> SpeechLM:
    """Stage 1: a text backbone plus fresh adapter and speech rows. Stage 2: the result of stage 1, or of another stage 2.

    The codes that mean silence are counted anew: an earlier run may have learnt the codes of another tokenizer.

    Source: paper section 3.3.
    """
    folder = ROOT / config.init
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"no model in {config.init}: train the stage before (see `make retrain`) or correct `init`"
        )
    if config.stage not in (1, 2):
        raise ConfigError(f"stage is {config.stage}: it must be 1 or 2")
    pairs = ShardWindows(config, "train").pairs(0) if config.shards else read_pairs(config, "train")
    silence = silence_codes(pairs, config.codes)
    if config.stage == 2:
        check_init(config, folder)
        model = SpeechLM.load(folder)
        model.config.speech_blank, model.config.speech_blank_codes = silence[0] if silence else None, silence
        return model
    backbone = storage.from_pretrained(
        Qwen3ForCausalLM.from_pretrained, Qwen3Config, folder, dtype=torch.float32, local_files_only=True
    )
    base = {
        k: v
        for k, v in Qwen3Config.from_pretrained(folder).to_dict().items()
        if k not in ("vocab_size", "architectures", "model_type")
    }
    text = text_size(tokenizer)
    speech = config.codes + 2
    lm = SpeechLMConfig(
        **base,
        vocab_size=text + config.streams * speech,
        tokenizer_text_size=text,
        tokenizer_speech_size=speech,
        speech_token_count=config.streams,
        speech_token_pre_pad=config.pre_pad,
        tts_adapter_config=config.adapter,
        speech_blank=silence[0] if silence else None,
        speech_blank_codes=silence,
    )
    return SpeechLM.from_backbone(backbone, lm)


def optimizers_of(model: SpeechLM, config: Config) -> dict[str, torch.optim.Optimizer]:
    """Groups carry `scale`, their rate as a multiple of the schedule's: the adapter has its own (paper: 5x in stage 2)."""
    check_optimizer(config.optimizer)
    groups: dict[str, list[dict]] = {"adamw": [], "muon": []}
    for adapter in (False, True):
        named = [
            (n, p)
            for n, p in model.named_parameters()
            if p.requires_grad and n.startswith("tts_adapter.") == adapter
        ]
        tables = [
            p for n, p in named if "embed_tokens" in n or "lm_head" in n or p.dim() < 2
        ]  # no decay: see freeze_backbone
        matrices = [p for n, p in named if not ("embed_tokens" in n or "lm_head" in n or p.dim() < 2)]
        scale = config.adapter_lr_scale if adapter else 1.0
        groups["adamw"].append({"params": tables, "weight_decay": 0.0, "scale": scale})
        groups[config.optimizer].append(
            {"params": matrices, "weight_decay": config.weight_decay, "scale": scale}
        )
    return optimizers_by_name(groups, config.lr)


def group_of(name: str) -> str:
    """The part of the mouth a parameter belongs to."""
    if name.startswith("tts_adapter."):
        return "adapter"
    return "table" if "embed_tokens" in name or "lm_head" in name else "backbone"


@torch.no_grad()
def weight_change(before: dict[str, Tensor], after: dict[str, Tensor], text_rows: int) -> dict[str, float]:
    """Relative change |after - before| / |before| of backbone, adapter, and the text and speech rows of the table.

    Args:
        before, after: weights by name; those that only one has are left out.
        text_rows: rows of the table that belong to old text ids.
    """
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])  # squared change, squared size
    for name in sorted(set(before) & set(after)):
        a, b = before[name].double().cpu(), after[name].double().cpu()
        pieces = {group_of(name): (a, b)}
        if "table" in pieces:
            pieces = {
                "text rows": (a[:text_rows], b[:text_rows]),
                "speech rows": (a[text_rows:], b[text_rows:]),
            }
        for key, (x, y) in pieces.items():
            sums[key][0] += float((y - x).square().sum())
            sums[key][1] += float(x.square().sum())
    return {key: (change / max(size, 1e-30)) ** 0.5 for key, (change, size) in sums.items()}


@torch.no_grad()
def evaluate(
    model: torch.nn.Module, conversations: Conversations, device, bf16: bool, batches: int = 6
) -> dict[str, float]:
    """Teacher-forced losses and speech token error on unseen sentences of training speakers."""
    model.eval()
    sums = defaultdict(float)
    for step in range(batches):
        rows, labels, mask = (x.to(device) for x in conversations.batch(step))
        with autocast(device, bf16):
            output = model(rows, mask, labels, return_logits=True)
        target = labels[:, 1:, 1:]
        known = target != IGNORE
        wrong = (output.speech_logits[:, :-1].argmax(-1) != target) & known
        sums["dev_speech_loss"] += output.speech_loss.item()
        sums["dev_text_loss"] += output.text_loss.item()
        sums["dev_token_error"] += (wrong.sum() / known.sum()).item()
    model.train()
    return {k: v / batches for k, v in sums.items()}


@torch.inference_mode()
def read_aloud(model: SpeechLM, tokenizer, conversations: Conversations) -> dict[str, float]:
    """Phoneme error of unseen sentences as the model speaks them, read from its tokens before any wave is made."""
    config, head = conversations.config, PhonemeHead.load(ROOT / conversations.config.phoneme_reader)
    settings = DecodeSettings(
        temperature=config.phoneme_reader_temperature,
        chunk_min_tokens=config.chunk_min,
        chunk_max_tokens=config.chunk_max,
    )
    rng, result = step_rng(config.seed, 0), {}
    model.eval()
    for language in config.languages:
        requests, said = [], []
        for speaker in rng.choice(sorted(conversations.speakers[language]), config.phoneme_reader_lines):
            voice, line = (
                rng.choice(conversations.references[speaker]),
                rng.choice(conversations.speakers[language][speaker]),
            )
            requests.append(Request(line["text"], voice["text"], voice["codes"]))
            said.append(line["phonemes"])
        spoken = generate(model, tokenizer, requests, settings, batch=config.phoneme_reader_lines)
        result[f"dev_phoneme_error_{language}"] = intelligibility(head, [s.tokens for s in spoken], said)
    model.train()
    return result


def data_hashes(config: Config) -> dict[str, str]:
    """What the run was trained on."""
    if config.shards:
        return {"shards_sha256": sha256(DATA / config.shards / "index.json")}
    tokens = DATA / config.tokens
    return {
        "manifest_sha256": sha256(DATA / config.manifest),
        "tokens_sha256": sha256(tokens),
        "tokenizer_sha256": made_by(tokens),
    }


def check_init(config: Config, folder: Path) -> None:
    """Refuse a stage 1 that has learnt the codes of another tokenizer.

    Raises:
        DataError: it has.
    """
    try:
        known = json.loads((folder / "meta.json").read_text(encoding="utf-8")).get("tokenizer_sha256", "")
    except (OSError, ValueError):
        return  # a published model does not say
    if not config.shards and known and (own := made_by(DATA / config.tokens)) and own != known:
        raise DataError(
            f"{config.init} has learnt the codes of another tokenizer than {config.tokens} holds: train it again, or encode with its tokenizer"
        )


def prepare(config: Config):
    """The mouth with what learns marked, its text tokenizer, conversations to learn from, and those of development.

    Conversations of development are the same lines for all runs, whatever the seed.
    """
    tokenizer = load_tokenizer(ROOT / config.text)
    model = build(config, tokenizer)
    layout = layout_of(model.config, tokenizer)
    learnt = Conversations(config, tokenizer, layout)
    dev = Conversations(configs.override(config, {"corrupt": 0.0, "seed": 0}), tokenizer, layout, "dev")
    if config.stage == 1:
        model.freeze_backbone()
    if config.checkpointing:
        model.gradient_checkpointing_enable()
    return model.train(), tokenizer, learnt, dev


def train(config: Config, out: Path) -> dict[str, float]:
    """Run or continue a run in `out`; returns the last development metrics."""
    accelerator = zero.make_accelerator()
    seed_everything(config.seed)
    claim(out, config)
    device, world, rank = accelerator.device, accelerator.num_processes, accelerator.process_index
    model, tokenizer, conversations, dev = prepare(config)
    before = {k: v.clone() for k, v in model.state_dict().items() if k not in model.all_tied_weights_keys}
    schedule = Schedule(config, conversations.with_settings)
    optimizers = optimizers_of(model, config)
    sharded = zero.is_zero(accelerator)
    if sharded:
        zero.set_up(accelerator, len(optimizers), config.clip)
    else:
        state = load_state(out, model, optimizers)
    count = count_parameters(model)
    wrapped, *prepared = accelerator.prepare(model, *optimizers.values())
    if sharded:
        state = zero.load_state(accelerator, wrapped, out)
    run = Run(out, state, accelerator.is_main_process)
    run.say(
        f"stage {config.stage}: {count['trainable']:,} of {count['total']:,} parameters learn, "
        f"{conversations.hours:.1f} h, from step {run.start}"
    )

    rows_seen, metrics = 0, {}
    make = lambda step: schedule.data(step).batch(step * world + rank)  # noqa: E731  each process its own batch
    for step, batch in prefetch(make, run.start, schedule.steps, depth=6):
        rows, labels, mask = (x.to(device) for x in batch)
        phase = schedule.at(step)
        for optimizer in prepared:
            for group in optimizer.param_groups:
                group["lr"] = phase.lr(step) * group["scale"]
        weights = {"text_weight": phase.config.text_weight, "speech_weight": phase.config.speech_weight}
        with autocast(device, config.bf16):
            output = wrapped(rows, mask, labels, **weights)
        check_finite(output.loss, step)
        accelerator.backward(output.loss)
        norm = accelerator.clip_grad_norm_(wrapped.parameters(), config.clip)
        for optimizer in prepared:
            optimizer.step()
            optimizer.zero_grad()
        rows_seen += int(mask.sum()) * world

        done = step + 1
        if run.due(done, config.log_every, phase.end):
            losses = {"loss": output.loss, "text": output.text_loss, "speech": output.speech_loss}
            values = {name: value.item() for name, value in losses.items()}
            values |= {"norm": float(norm or 0), "rows_per_second": rows_seen / run.here}
            run.write(done, phase=phase.name, **values)
        if run.due(done, config.eval_every, phase.end):  # by all: under ZeRO-3 nobody holds the model alone
            metrics = evaluate(wrapped, dev, device, config.bf16)
            if config.phoneme_reader and not sharded:
                metrics |= read_aloud(model, tokenizer, dev)
            run.write(done, **metrics)
        if run.due(done, config.save_every, phase.end):
            if sharded:
                zero.save_state(accelerator, wrapped, out, done, {"seconds": run.seconds})
            else:
                run.save(model, optimizers, done)

    weights = accelerator.get_state_dict(wrapped)  # by all: under ZeRO-3 every process holds a part
    if run.writes:
        text_rows = model.config.tokenizer_text_size - CONTROL_ROWS
        meta = run_meta(
            config,
            schedule.steps,
            run.seconds,
            metrics=metrics,
            **data_hashes(config),
            chunk_rules={"min_tokens": config.chunk_min, "max_tokens": config.chunk_max},
            weight_change=weight_change(before, weights, text_rows),
        )
        export_pretrained(out, model, tokenizer, config, meta, weights, config.storage)
    accelerator.wait_for_everyone()
    return metrics


def main(argv: list[str] | None = None) -> dict[str, float]:
    return run_script(__doc__, Config, train, argv)


if __name__ == "__main__":
    with in_one_line():
        main()
