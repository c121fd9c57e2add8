"""Train the auxiliary audio encoder further: Whisper's encoder with a CTC head over letters and pinyin.

    python -m omnilib.train.encoders --config smoke/encoders --out runs/encoders_smoke
    python -m omnilib.train.encoders --config nano/encoders --out checkpoints/nano/encoders

Notable choices
- CTC (Graves et al. 2006) rather than Whisper's decoder: the brain uses the encoder alone, whose frames the
  projector mines one by one, and CTC asks every frame for its own sound. Half of the weights and all steps
  of a decoder are saved.
- Letters and digits: English as written, Mandarin as numbered pinyin ("ni3 hao3"), so one small head serves
  both, and tones, which an English-heavy encoder drops, are asked for. 50 frames a second are more than the
  25 letters a second of fast Mandarin.
- Only the upper `top_layers` learn: lower ones hear sound in general, and what is exported stays small.
  Exported are these, the last norm and the head; `Base.aux` of the brain puts them on top of Whisper base.
- Whole utterances of similar length make a batch (`data.Segments`), a function of (seed, step).

Shapes: B batch, T samples, F frames (50 a second), D width, V letters.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from omnilib.brain.encoders import SpeechTower, mel_windows
from omnilib.brain.media import to_16k
from omnilib.brain.parts import whisper_base
from omnilib.data import Segments, read_manifest, sha256
from omnilib.errors import ConfigError, DataError, in_one_line
from omnilib.paths import DATA
from omnilib.train import zero
from omnilib.train.common import (
    Run,
    autocast,
    check_finite,
    claim,
    export_model,
    load_state,
    lr_at,
    run_meta,
    run_script,
    seed_everything,
)
from omnilib.train.prefetch import prefetch

LETTERS = " abcdefghijklmnopqrstuvwxyz0123456789'"  # ids from 1 on; 0 is CTC's blank
MAIN_SAMPLES = 640  # of a main frame, 40 ms at 16 kHz


@dataclass
class Config:
    """One experiment."""

    base: str = "nano"  # nano: Whisper base of its packages; smoke: random, small
    manifest: str = "nano/manifest.jsonl"  # below the data folder, or a path
    languages: list[str] = field(default_factory=lambda: ["zh", "en"])
    parts: list[str] = field(default_factory=list)  # of the corpus, for example synthetic; empty: all
    top_layers: int = 2  # that learn
    seed: int = 0
    batch_seconds: float = 60.0  # of sound
    steps: int = 2000
    lr: float = 1e-4
    head_lr: float = 10.0  # multiple of lr: the head is fresh
    warmup: int = 100
    weight_decay: float = 0.01
    clip: float = 1.0
    bf16: bool = True
    log_every: int = 20
    eval_every: int = 250
    eval_batches: int = 8
    save_every: int = 250
    storage: str = "bfloat16"  # form of the exported weights, see omnilib/storage.py


def spelt(text: str, language: str) -> str:
    """What is said, in LETTERS: English in lower case, Mandarin as numbered pinyin, one space apart."""
    if language == "zh":
        from pypinyin import Style, lazy_pinyin

        syllables = lazy_pinyin(
            text,
            style=Style.TONE3,
            neutral_tone_with_five=True,
            errors=lambda rest: [f" {rest} "],
        )
        text = " ".join(syllables).replace("ü", "v")
    return " ".join(re.sub(rf"[^{LETTERS}]", " ", text.lower()).split())


def ids_of(letters: str) -> list[int]:
    """Letters -> ids."""
    return [LETTERS.index(letter) + 1 for letter in letters]


def greedy(logits: Tensor, length: int) -> str:
    """The likeliest letter of each frame (F, V), repeats and blanks dropped."""
    best = torch.unique_consecutive(logits[:length].argmax(-1)).tolist()
    return "".join(LETTERS[i - 1] for i in best if i)


class Transcriber(nn.Module):
    """Whisper's encoder and a CTC head. Names: `encoder.*` as in transformers, `head.*`.

    Source: Whisper, arXiv 2212.04356.
    """

    def __init__(self, config: WhisperConfig):
        super().__init__()
        self.encoder = WhisperEncoder(config)
        self.head = nn.Linear(config.d_model, len(LETTERS) + 1)

    @property
    def window(self) -> int:
        """Samples of a window."""
        return 2 * 160 * self.encoder.config.max_source_positions

    def forward(
        self,
        mel: Tensor,
        frames: Tensor,
        targets: Tensor,
        target_lengths: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """CTC loss and logits.

        Args:
            mel: (B, bins, 2 F) windows.
            frames: (B,) frames of 40 ms that are heard.
            targets, target_lengths: (B, S) ids and (B,) how many.
        """
        _, hidden = self.tower()(mel, frames)  # (B, F, D)
        logits = self.head(hidden).float()  # (B, F, V)
        scores = logits.log_softmax(-1).transpose(0, 1)
        return F.ctc_loss(scores, targets, frames * 2, target_lengths, zero_infinity=True), logits

    def tower(self) -> SpeechTower:
        """The encoder in the place that it takes in the brain."""
        tower = SpeechTower(None, None)
        tower.speech_tower_aux = self.encoder
        return tower

    def freeze(self, top_layers: int) -> None:
        """Let the upper layers, the last norm and the head learn.

        Raises:
            ConfigError: the encoder has fewer layers.
        """
        count = len(self.encoder.layers)
        if not 1 <= top_layers <= count:
            raise ConfigError(f"top_layers is {top_layers}: the encoder has {count}, give 1 to {count}")
        self.requires_grad_(False)
        for part in (*self.encoder.layers[count - top_layers :], self.encoder.layer_norm, self.head):
            part.requires_grad_(True)


def build(config: Config) -> Transcriber:
    """The encoder of `base` with a fresh head.

    Raises:
        ConfigError: no such base. MissingTool: Whisper base is not installed.
    """
    if config.base not in ("nano", "smoke"):
        raise ConfigError(f"base '{config.base}' is unknown: use nano or smoke")
    if config.base == "smoke":
        sizes = dict(
            d_model=16,
            encoder_ffn_dim=24,
            num_mel_bins=16,
            max_source_positions=150,
            encoder_layers=2,
        )
        model = Transcriber(WhisperConfig(**sizes, encoder_attention_heads=2))
    else:
        sizes, weights = whisper_base()
        model = Transcriber(WhisperConfig(**sizes))
        model.encoder.load_state_dict(weights)
    model.freeze(config.top_layers)
    return model


class Utterances:
    """Batches of a split: log-mel windows, frames, spelling. Utterances beyond a window, or without letters,
    are left out."""

    def __init__(self, config: Config, model: Transcriber, split: str):
        path = DATA / config.manifest
        self.window, self.bins, self.languages = (
            model.window,
            model.encoder.config.num_mel_bins,
            config.languages,
        )
        self.letters, records = {}, []
        for record in read_manifest(path):
            fits = 0 < record["duration"] * 16000 <= self.window and record["split"] == split
            fits = fits and record["language"] in config.languages
            fits = fits and (not config.parts or record.get("part") in config.parts)
            if fits and (letters := spelt(record["text"], record["language"])):
                self.letters[record["id"]] = letters
                records.append(record)
        if not records:
            raise DataError(
                f"{path} has no {split} speech in {', '.join(config.languages)} within a window: build it",
            )
        self.segments, self.count = (
            Segments(records, path.parent, config.batch_seconds, seed=config.seed),
            len(records),
        )

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor, list[str]]:
        """What `Transcriber.forward` takes, and the letters."""
        waves, lengths, records = self.segments.batch(step)
        pieces = zip(waves, lengths.tolist(), records, strict=True)
        clips = [to_16k(wave[:n], r["rate"])[: self.window] for wave, n, r in pieces]
        mel = torch.cat([mel_windows(clip, self.window, self.bins) for clip in clips])
        frames = torch.tensor([-(-len(clip) // MAIN_SAMPLES) for clip in clips])
        letters = [self.letters[r["id"]] for r in records]
        targets = [torch.tensor(ids_of(text)) for text in letters]
        sizes = torch.tensor([len(t) for t in targets])
        return mel, frames, nn.utils.rnn.pad_sequence(targets, batch_first=True), sizes, letters


def edit_distance(said: str, heard: str) -> int:
    """Letters to insert, delete or replace (Levenshtein)."""
    row = np.arange(len(heard) + 1)
    for i, letter in enumerate(said, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(heard, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (letter != other))
    return int(row[-1])


@torch.no_grad()
def evaluate(
    model: Transcriber,
    dev: Utterances,
    device: torch.device,
    config: Config,
) -> dict[str, float]:
    """CTC loss and letter error rate on unseen utterances, the same ones at every call."""
    model.eval()
    loss, wrong, total = 0.0, 0, 0
    for step in range(config.eval_batches):
        *tensors, letters = dev.batch(step)
        with autocast(device, config.bf16):
            value, logits = model(*(t.to(device) for t in tensors))
        loss += value.item()
        for row, frames, said in zip(logits, tensors[1].tolist(), letters, strict=True):
            wrong, total = wrong + edit_distance(said, greedy(row, 2 * frames)), total + len(said)
    model.train()
    return {"dev_loss": loss / config.eval_batches, "dev_letter_error": wrong / max(total, 1)}


class Learned(nn.Module):
    """A view of what learns, for export: its state dict holds those tensors alone, under their own names."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.tensors = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}

    def state_dict(self, *args, **kwargs) -> dict[str, Tensor]:
        return self.tensors


def prepare(config: Config) -> tuple[Transcriber, Utterances, Utterances, torch.optim.Optimizer]:
    """The tower with its head, utterances for training and development, and the optimiser of what learns."""
    model = build(config)
    learnt, dev = Utterances(config, model, "train"), Utterances(config, model, "dev")
    head = {id(p) for p in model.head.parameters()}
    groups = [
        {
            "params": [p for p in model.parameters() if p.requires_grad and (id(p) in head) == fresh],
            "scale": scale,
        }
        for fresh, scale in ((False, 1.0), (True, config.head_lr))
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98), weight_decay=config.weight_decay)
    return model, learnt, dev, optimizer


def train(config: Config, out: Path) -> dict[str, float]:
    """Run or continue a run in `out`; returns the last development metrics."""
    accelerator = zero.make_accelerator()
    if zero.is_zero(accelerator):
        raise ConfigError("the encoder fits one card: launch this without a DeepSpeed config")
    seed_everything(config.seed)
    claim(out, config)
    device, world, rank = accelerator.device, accelerator.num_processes, accelerator.process_index
    model, utterances, dev, optimizer = prepare(config)
    learning = nn.ParameterList(p for p in model.parameters() if p.requires_grad)  # a state holds these alone
    run = Run(out, load_state(out, learning, optimizer), accelerator.is_main_process)
    wrapped, prepared = accelerator.prepare(model.train(), optimizer)
    total, learns = (sum(p.numel() for p in ps) for ps in (model.parameters(), learning))
    run.say(f"{utterances.count} utterances, {learns:,} of {total:,} parameters learn, from step {run.start}")

    metrics = {}
    make = lambda step: utterances.batch(step * world + rank)  # noqa: E731  each process its own batch
    for step, (*tensors, _) in prefetch(make, run.start, config.steps):
        for group in prepared.param_groups:
            group["lr"] = lr_at(step, config.steps, config.lr, config.warmup) * group["scale"]
        with autocast(device, config.bf16):
            loss, _ = wrapped(*(t.to(device) for t in tensors))
        check_finite(loss, step)
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(wrapped.parameters(), config.clip)
        prepared.step()
        prepared.zero_grad()

        done = step + 1
        if run.due(done, config.log_every, config.steps):
            run.write(done, loss=loss.item(), norm=float(norm or 0))
        if run.writes and run.due(done, config.eval_every, config.steps):
            metrics = evaluate(model, dev, device, config)
            run.write(done, **metrics)
        if run.due(done, config.save_every, config.steps):
            run.save(learning, optimizer, done)

    metrics = metrics or evaluate(model, dev, device, config)  # an earlier process ended the last step
    if run.writes:
        manifest = DATA / config.manifest
        meta = run_meta(config, config.steps, run.seconds, metrics=metrics, manifest_sha256=sha256(manifest))
        export_model(out, Learned(model), config, meta, config.storage)
    accelerator.wait_for_everyone()
    if world > 1:
        accelerator.end_training()  # else a process may be aborted while its last messages are under way
    return metrics


def main(argv: list[str] | None = None) -> dict[str, float]:
    return run_script(__doc__, Config, train, argv)


if __name__ == "__main__":
    with in_one_line():
        main()
