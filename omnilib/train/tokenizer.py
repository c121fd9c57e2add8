"""Train the FSQ speech tokenizer inside a small phoneme recogniser (paper section 3.2 takes CosyVoice2's, learnt the same way).

    python -m omnilib.train.tokenizer --config tokenizer_nano --out checkpoints/nano/tokenizer          # one core, 25 minutes
    accelerate launch -m omnilib.train.tokenizer --config tokenizer_paper --out runs/tokenizer_paper    # published size

wave -> log-mel -> tokenizer -> rounded values -> phoneme head -> three losses: CTC on the phoneme sequence, cross-entropy on
50 Hz frames where the corpus knows when each phoneme ends, and a coarse mel with the utterance mean taken out (so that codes
keep pitch and loudness movement but not the voice). Nothing reaches a loss except through the codes.

Shapes: B batch, F mel frames (100 Hz), T codes (25 Hz), P phonemes.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy, ctc_loss, mse_loss, pad

from omnilib import config as configs
from omnilib.audio import TOKENIZER_RATE, log_mel_128, resample
from omnilib.data import Segments, load_segment, read_manifest, sha256, step_rng
from omnilib.errors import DataError
from omnilib.paths import DATA
from omnilib.train.common import (
    JsonlLog,
    autocast,
    check_finite,
    count_parameters,
    export_model,
    load_state,
    lr_at,
    parse_args,
    run_meta,
    save_state,
    seed_everything,
)
from omnilib.train.prefetch import prefetch
from omnilib.voice.phonemes import FRAME_SECONDS, FRAMES, PAUSES, PhonemeHead, PhonemeHeadConfig, edit_distance, phoneme_set
from omnilib.voice.tokenizer import FRAMES_PER_CODE, SpeechTokenizer, SpeechTokenizerConfig, code_count, valid_mask


@dataclass
class TokenizerTraining:
    """One experiment; `tokenizer` and `head` are the sizes, the rest is how long and how hard."""

    manifest: str = "nano/manifest.jsonl"  # below the data folder, or a path
    seed: int = 0
    steps: int = 6000
    batch_seconds: float = 120.0
    max_seconds: float = 16.0  # longer recordings are left out
    lr: float = 1.5e-3
    warmup: int = 200
    weight_decay: float = 0.01
    clip: float = 1.0
    speeds: list[float] = field(default_factory=lambda: [1.0])  # playing faster or slower makes new voices
    join: float = 0.0  # chance that a batch's utterances are joined in pairs, so that long recordings are known too
    band_mask: int = 0  # mel bands hidden at random
    ctc_weight: float = 1.0
    frame_weight: float = 1.0
    mel_weight: float = 0.3
    tokenizer: SpeechTokenizerConfig = field(default_factory=SpeechTokenizerConfig)
    head: PhonemeHeadConfig = field(default_factory=PhonemeHeadConfig)
    dev_items: int = 200
    log_every: int = 20
    eval_every: int = 500
    save_every: int = 500
    bf16: bool = True


@dataclass
class Batch:
    """mel (B, 128, F), frames (B,), phonemes (sum,), phoneme_counts (B,), labels (B, 2T) with -100 where unknown."""

    mel: Tensor
    frames: Tensor
    phonemes: Tensor
    phoneme_counts: Tensor
    labels: Tensor
    seconds: float

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(v.to(device) if isinstance(v, Tensor) else v for v in vars(self).values()))


class Batches:
    """Features and targets of a step, a function of (seed, step) alone."""

    def __init__(self, config: TokenizerTraining, records: list[dict], root: Path, head: PhonemeHead):
        self.config, self.head = config, head
        self.segments = Segments(records, root, config.batch_seconds, seed=config.seed)

    def make(self, step: int) -> Batch:
        config, rng = self.config, step_rng(self.config.seed + 2, step)
        waves, lengths, records = self.segments.batch(step)
        items = [(w[:n], r["phonemes"], r.get("phoneme_ends"), r["duration"]) for w, n, r in zip(waves, lengths, records, strict=True)]
        if rng.random() < config.join and len(items) > 1:
            items = [join(a, b) for a, b in zip(items[::2], items[1::2], strict=False)]
        speed = float(rng.choice(config.speeds))
        bands = int(rng.integers(0, config.band_mask + 1))
        first = int(rng.integers(0, self.head_bands - bands + 1))
        batch = collate(items, records[0]["rate"], self.head, speed)
        batch.mel[:, first : first + bands] = 0.0
        return batch

    @property
    def head_bands(self) -> int:
        return self.config.tokenizer.bands


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
            middle = (torch.arange(FRAMES * count) + 0.5) * FRAME_SECONDS * TOKENIZER_RATE / target_rate  # noqa: F841
            played = torch.tensor(ends) * target_rate / TOKENIZER_RATE
            index = torch.tensor([head.index.get(p, 0) for p in [*phonemes, "pau"]])
            row[: FRAMES * count] = index[torch.searchsorted(played, (torch.arange(FRAMES * count) + 0.5) * FRAME_SECONDS)]
    targets = [head.targets(phonemes) for _, phonemes, *_ in items]
    counts = torch.tensor([len(t) for t in targets])
    return Batch(mel, frames, torch.tensor([p for t in targets for p in t]), counts, labels, float(lengths.sum()) / TOKENIZER_RATE)
