"""What the models train on: speech tokens and the speaker vector of every record (see omnilib/train/encode.py).

Adds `tokens` (25 a second, a list of integers) and `speaker_vector` (192 numbers). `tokenizer` and `speaker` are checkpoint folders.

Shapes: B batch, T samples at 16 kHz.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch.nn.utils.rnn import pad_sequence

from data_prep.pipeline import Audio, Step, register
from omnilib.audio import TOKENIZER_RATE, fbank_80, log_mel_128
from omnilib.train.encode import SPEAKER_SECONDS, blocks_of, similar
from omnilib.voice.speaker import SpeakerEncoder
from omnilib.voice.tokenizer import SpeechTokenizer


def load_batch(pieces: list[tuple[dict, float, float]], audio: Audio) -> tuple[torch.Tensor, torch.Tensor]:
    """Pieces (record, start, seconds) -> waves (B, T), lengths (B,)."""
    waves = []
    for record, start, seconds in pieces:
        wave = audio.wave(record, TOKENIZER_RATE)
        waves.append(
            torch.from_numpy(
                wave[round(start * TOKENIZER_RATE) : round((start + seconds) * TOKENIZER_RATE)].copy()
            )
        )
    return pad_sequence(waves, batch_first=True), torch.tensor([len(w) for w in waves])


@register
@dataclass
class Tokens(Step):
    """Speech tokens and speaker vectors."""

    name: ClassVar[str] = "tokens"
    modules: ClassVar[tuple[str, ...]] = ("omnilib.train.encode",)
    tokenizer: str = "checkpoints/nano/tokenizer"
    speaker: str = "checkpoints/nano/speaker"

    def open(self) -> None:
        self.codes_of = SpeechTokenizer.load(Path(self.tokenizer))
        self.vector_of = SpeakerEncoder.load(Path(self.speaker))

    @torch.inference_mode()
    def run(self, records: list[dict], audio: Audio) -> list[dict]:
        codes: dict[tuple[str, int], list[int]] = {}
        for batch in similar(
            [(r, i, *block) for r in records for i, block in enumerate(blocks_of(r))], lambda p: p[3]
        ):
            waves, lengths = load_batch([(r, start, seconds) for r, _, start, seconds in batch], audio)
            rows, counts = self.codes_of.encode(log_mel_128(waves, lengths), lengths // 160)
            for (record, i, *_), row, count in zip(batch, rows, counts.tolist(), strict=True):
                codes[record["id"], i] = row[:count].tolist()
        vectors: dict[str, list[float]] = {}
        for batch in similar(
            [(r, 0.0, min(SPEAKER_SECONDS, r["duration"])) for r in records], lambda p: p[2]
        ):
            waves, lengths = load_batch(batch, audio)
            for (record, *_), vector in zip(
                batch, self.vector_of(fbank_80(waves), 1 + (lengths - 400) // 160), strict=True
            ):
                vectors[record["id"]] = [round(x, 5) for x in vector.tolist()]
        return [
            r
            | {
                "tokens": [c for i in range(len(blocks_of(r))) for c in codes[r["id"], i]],
                "speaker_vector": vectors[r["id"]],
            }
            for r in records
        ]
