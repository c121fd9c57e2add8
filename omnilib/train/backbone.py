"""Pre-train the nano text backbone: a small Qwen3 language model (the paper starts from Qwen3, trained on 36T tokens).

    python -m omnilib.train.backbone --config nano/backbone --out checkpoints/nano/backbone      # one core, 5 minutes

Stage 1 of the mouth freezes this model, so it must know the words before it hears any speech.
"""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from transformers import Qwen3Config, Qwen3ForCausalLM

from omnilib.data import read_manifest, sha256, step_rng
from omnilib.errors import DataError, in_one_line
from omnilib.paths import DATA, ROOT
from omnilib.text import IM_END, TEXT_PAD, encode, join_sentences, load_tokenizer, text_size
from omnilib.train.common import (
    Run,
    autocast,
    check_finite,
    claim,
    count_parameters,
    export_pretrained,
    load_state,
    lr_at,
    run_meta,
    run_script,
    seed_everything,
)
from omnilib.train.spelling import Splitter, pronunciations


@dataclass
class Config:
    """Sizes of the language model, and how long it reads (stands for Qwen3, paper section 3.2)."""

    manifest: str = "nano/manifest.jsonl"
    text: str = "checkpoints/nano/text"
    pronunciations: bool = False  # read "word = phonemes" lines too, see `train.spelling`
    bpe_dropout: float = 0.0  # chance that a piece is taken apart
    width: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 4
    head_dim: int = 64
    mlp: int = 768
    rope_theta: float = 10000.0
    positions: int = 8192
    seed: int = 0
    steps: int = 1000
    batch: int = 16
    context: int = 128
    lr: float = 1e-3
    warmup: int = 50
    weight_decay: float = 0.1
    clip: float = 1.0
    bf16: bool = True
    storage: str = "bfloat16"  # form of the exported weights, see omnilib/storage.py
    log_every: int = 20
    eval_every: int = 150
    save_every: int = 150


def read_text(manifest, tokenizer, split: str, config: Config) -> torch.Tensor:
    """All sentences of a split, shuffled, a few at a time joined to a passage, as one stream of ids (N,)."""
    groups = defaultdict(list)
    for record in read_manifest(manifest):
        if record["split"] == split:
            groups[record["language"]].append(record["text"])
    if not groups:
        raise DataError(f"{manifest} has no {split} text: build the corpus again")
    rng = np.random.default_rng(config.seed)
    passages = []
    for texts in groups.values():
        order = rng.permutation(len(texts))
        for first in range(0, len(order), 8):
            passages.append(join_sentences([texts[i] for i in order[first : first + 8]])[0])
    if config.pronunciations and split == "train":
        lines = pronunciations(text for texts in groups.values() for text in texts)
        order = rng.permutation(len(lines))
        passages += [
            "\n".join(lines[i] for i in order[first : first + 8]) for first in range(0, len(order), 8)
        ]
    end = tokenizer.convert_tokens_to_ids(IM_END)
    splitter = Splitter(tokenizer, config.bpe_dropout if split == "train" else 0.0, rng)
    ids = []
    for p in rng.permutation(len(passages)):
        ids += [part for i in encode(tokenizer, passages[p]) for part in splitter(i)] + [end]
    return torch.tensor(ids)


def windows(stream: torch.Tensor, config: Config, step: int) -> torch.Tensor:
    """(batch, context + 1) random windows, a function of (seed, step) alone."""
    starts = step_rng(config.seed, step).integers(len(stream) - config.context - 1, size=config.batch)
    return torch.stack([stream[s : s + config.context + 1] for s in starts])


def prepare(config: Config):
    """The language model, its text tokenizer, and two streams of ids, for training and development.

    Raises:
        DataError: less text than one context.
    """
    tokenizer = load_tokenizer(ROOT / config.text)
    manifest = DATA / config.manifest
    train, dev = (read_text(manifest, tokenizer, split, config) for split in ("train", "dev"))
    if min(len(train), len(dev)) < config.context + 2:
        raise DataError(
            f"{manifest} has too little text for a context of {config.context}: build more of the corpus"
        )
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=text_size(tokenizer),
            hidden_size=config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            head_dim=config.head_dim,
            intermediate_size=config.mlp,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            max_position_embeddings=config.positions,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.convert_tokens_to_ids(TEXT_PAD),
            eos_token_id=tokenizer.convert_tokens_to_ids(IM_END),
            bos_token_id=None,
        )
    )
    return model, tokenizer, train, dev


def train(config: Config, out: Path) -> dict[str, float]:
    """Run or continue a run in `out`; returns the last development metrics."""
    accelerator = Accelerator()
    seed_everything(config.seed)
    claim(out, config)
    model, tokenizer, text, dev = prepare(config)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.lr, betas=(0.9, 0.98), weight_decay=config.weight_decay
    )
    run = Run(out, load_state(out, model, optimizer))
    model, optimizer = accelerator.prepare(model, optimizer)
    run.say(
        f"backbone {count_parameters(model)['total']:,} parameters, {len(text):,} text ids, from step {run.start}"
    )

    def loss_of(ids: torch.Tensor) -> torch.Tensor:
        ids = ids.to(accelerator.device)
        with autocast(accelerator.device, config.bf16):
            logits = model(ids[:, :-1]).logits
        return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())

    @torch.no_grad()
    def judge() -> dict[str, float]:
        losses = [loss_of(windows(dev, config, s)).item() for s in range(8)]
        return {"dev_text_loss": float(np.mean(losses))}

    metrics: dict[str, float] = {}
    for step in range(run.start, config.steps):
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, config.steps, config.lr, config.warmup)
        loss = loss_of(windows(text, config, step))
        check_finite(loss, step)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        optimizer.zero_grad()

        done = step + 1
        if run.due(done, config.log_every, config.steps):
            run.write(done, loss=loss.item())
        if run.due(done, config.eval_every, config.steps):
            metrics = judge()
            run.write(done, **metrics)
        if run.due(done, config.save_every, config.steps):
            run.save(model, optimizer, done)
    metrics, manifest = metrics or judge(), DATA / config.manifest
    meta = run_meta(config, config.steps, run.seconds, metrics=metrics, manifest_sha256=sha256(manifest))
    export_pretrained(out, accelerator.unwrap_model(model), tokenizer, config, meta, form=config.storage)
    return metrics


def main(argv: list[str] | None = None) -> dict[str, float]:
    return run_script(__doc__, Config, train, argv)


if __name__ == "__main__":
    with in_one_line():
        main()
