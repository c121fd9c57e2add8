"""Phoneme head: what the 25 Hz codes say, read back as phonemes. It teaches the tokenizer and then meters intelligibility.

CosyVoice2 learns its codes inside a speech recogniser, so that they keep what is said and leave the voice to the flow
model. Our nano tokenizer does the same with this small head *behind* the quantiser: everything it learns passed through the
codes. Once trained it reads any code sequence, also one that a SpeechLM made up, before a single sample of sound exists.
Notable choices: two output frames a code (50 Hz), because fast speech has more than 25 phonemes a second; blank and pause
share index 0; one set of scores serves both CTC and the frame labels, because a frame-true reading is also a CTC reading,
and CTC alone starts slowly.

Shapes: B batch, T codes (25 Hz), D FSQ digits, W width, P phoneme set, M mel values a code.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from omnilib import config as configs
from omnilib.errors import DataError
from omnilib.storage import load_weights
from omnilib.voice.tokenizer import Block, codes_to_values, valid_mask

PAUSES = ("pau", "sil", "")
FRAMES = 2  # output frames a code
FRAME_SECONDS = 0.04 / FRAMES


@dataclass
class PhonemeHeadConfig:
    """`phonemes` comes from the corpus; the blank, index 0, is not in it."""

    fsq_dims: int = 8
    width: int = 192
    heads: int = 3
    layers: int = 2
    kernel: int = 11
    mel_values: int = 80
    phonemes: list[str] = field(default_factory=list)


def phoneme_set(records: list[dict]) -> list[str]:
    """Sorted phonemes of a corpus, without pauses.

    Raises:
        DataError: a record has none.
    """
    for record in records:
        if not record.get("phonemes"):
            raise DataError(
                f"record '{record['id']}' has no phonemes: build the corpus with `omni data build-nano`"
            )
    return sorted({p for r in records for p in r["phonemes"]} - set(PAUSES))


def edit_distance(got: list, want: list) -> int:
    """Insertions + deletions + substitutions between two sequences."""
    row = list(range(len(want) + 1))
    for i, g in enumerate(got, 1):
        previous, row[0] = row[0], i
        for j, w in enumerate(want, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (g != w))
    return row[-1]


def align(log_probs: np.ndarray, states: list[int]) -> np.ndarray | None:
    """Forced alignment: the best frame labels (N,) of (N, P+1) log-probabilities that say `states` in order.

    Every phoneme lasts at least a frame; a pause (0) may be skipped. None when there are too few frames.
    """
    count, states = len(log_probs), np.array(states)
    emit = log_probs[:, states]  # (N, S)
    skippable = np.concatenate(
        ([False], states[:-1] == 0)
    )  # the state before is a pause, so it may be left out
    score = np.full(len(states), -np.inf, emit.dtype)
    score[0] = emit[0, 0]
    if states[0] == 0 and len(states) > 1:
        score[1] = emit[0, 1]
    moves = np.zeros((count, len(states)), np.int8)
    for t in range(1, count):
        step = np.concatenate(([-np.inf], score[:-1]))
        skip = np.where(skippable, np.concatenate(([-np.inf] * 2, score[:-2]))[: len(score)], -np.inf)
        choices = np.stack((score, step, skip))  # (3, S)
        moves[t] = choices.argmax(0)
        score = choices.max(0) + emit[t]
    last = len(states) - 1
    if last > 0 and states[last] == 0 and score[last - 1] > score[last]:
        last -= 1
    if not np.isfinite(score[last]):
        return None
    path = np.empty(count, np.int64)
    for t in range(count - 1, -1, -1):
        path[t] = states[last]
        last -= moves[t, last]
    return path


class PhonemeHead(nn.Module):
    """FSQ values -> phoneme scores at 50 Hz and a coarse mel.

    Source: after the recogniser of CosyVoice 2, arXiv 2412.10117, section 2.2.
    """

    def __init__(self, config: PhonemeHeadConfig):
        super().__init__()
        self.config = config
        self.index = {p: i + 1 for i, p in enumerate(config.phonemes)}
        self.embed = nn.Conv1d(config.fsq_dims, config.width, 3, padding=1)
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, config.kernel) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.width)
        self.phoneme = nn.Linear(config.width, FRAMES * (len(config.phonemes) + 1))
        self.mel = nn.Linear(config.width, config.mel_values)

    def forward(self, values: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, D), code counts (B,) -> scores (B, 2T, P+1), mel (B, T, M)."""
        valid = valid_mask(lengths, values.shape[1])
        x = self.embed((values * valid[..., None]).transpose(1, 2)).transpose(1, 2)  # (B, T, W)
        for block in self.blocks:
            x = block(x, valid)
        x = self.norm(x)
        return self.phoneme(x).unflatten(-1, (FRAMES, -1)).flatten(1, 2), self.mel(x)

    def targets(self, phonemes: list[str]) -> list[int]:
        """Phonemes -> indices, pauses dropped; an unknown phoneme gets -1 and never matches."""
        return [self.index.get(p, -1) for p in phonemes if p not in PAUSES]

    @torch.no_grad()
    def read(self, codes: list[Tensor]) -> list[list[int]]:
        """Greedy CTC reading of code sequences (T,) each -> phoneme indices."""
        lengths = torch.tensor([len(c) for c in codes])
        padded = nn.utils.rnn.pad_sequence([c.long() for c in codes], batch_first=True)  # (B, T)
        best = self(codes_to_values(padded, self.config.fsq_dims), lengths)[0].argmax(-1)  # (B, 2T)
        runs = [
            row[: FRAMES * n].unique_consecutive().tolist()
            for row, n in zip(best, lengths.tolist(), strict=True)
        ]
        return [[p for p in run if p != 0] for run in runs]

    @classmethod
    def load(cls, folder: str | Path) -> "PhonemeHead":
        """Read `phonemes/` of a tokenizer checkpoint folder.

        Raises:
            CheckpointError, ConfigError: the folder is missing, truncated, or of another model.
        """
        folder = Path(folder) / "phonemes"
        model = cls(configs.load(PhonemeHeadConfig, folder / "config.yaml"))
        load_weights(model, folder / "model.safetensors")
        return model.eval()


def intelligibility(
    head: PhonemeHead, codes: list[Tensor], phonemes: list[list[str]], batch: int = 32
) -> float:
    """Phoneme error (edits / reference phonemes) of code sequences against what they should say; 0 is perfect."""
    order = sorted(range(len(codes)), key=lambda i: len(codes[i]))
    edits = total = 0
    for first in range(0, len(order), batch):
        some = [i for i in order[first : first + batch] if len(codes[i])]
        for i, got in zip(some, head.read([codes[i] for i in some]) if some else [], strict=True):
            edits += edit_distance(got, head.targets(phonemes[i]))
    for item, codes_of_item in zip(phonemes, codes, strict=True):
        total += len(head.targets(item))
        edits += 0 if len(codes_of_item) else len(head.targets(item))  # silence misses everything
    return edits / max(1, total)
