"""Samples the mouth learns from: conversations drawn anew at every step (paper section 3.2).

    Conversations(config, tokenizer, layout).batch(step)      rows, labels (B, L, 1 + k) and mask (B, L)

A sample is a reference recording of some speaker, then one to many sentences in that speaker's voice, laid out as the decoding loop
would have produced them (`rows.training_rows`). Sentences are drawn and joined anew, so no two batches are alike although the corpus is
small; samples of a batch are of similar length and the batch shrinks as they grow.

Shapes: B batch, L rows, k streams.
"""

import copy
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from omnilib.data import read_manifest, step_rng
from omnilib.errors import DataError
from omnilib.mouth.chunking import ChunkRules
from omnilib.mouth.rows import training_rows
from omnilib.mouth.speechlm import IGNORE
from omnilib.paths import DATA, ROOT
from omnilib.train.common import check_tokenizer, load_tensors
from omnilib.train.spelling import Splitter

if TYPE_CHECKING:
    from omnilib.train.speechlm import Config

DRAWS = 200  # of a sample, before the corpus is blamed
SHORTER = 0.99  # each draw is to be that much shorter than the one before: few long samples end their chunks between recordings


def check_codes(highest: int, config: "Config", place: Path) -> None:
    """Raises DataError on codes of another tokenizer."""
    if highest >= config.codes:
        raise DataError(
            f"{place} holds code {highest}, beyond codes={config.codes}: give the number of codes of its tokenizer"
        )


def read_pairs(config: "Config", split: str) -> list[tuple[dict, Tensor]]:
    """Records of a split that have 25 Hz codes, and these (T,).

    Raises:
        DataError: no such file, or codes of another tokenizer.
    """
    path = DATA / config.tokens
    if not path.is_file():
        raise DataError(f"no speech tokens {path}: make them with `python -m omnilib.train.encode`")
    if config.tokenizer:
        check_tokenizer(path, ROOT / config.tokenizer)
    codes = load_tensors(path)
    check_codes(max((int(c.max()) for c in codes.values() if len(c)), default=0), config, path)
    return [
        (r, codes[r["id"]].long())
        for r in read_manifest(DATA / config.manifest)
        if r["split"] == split and r["id"] in codes
    ]


class ShardWindows:
    """A few shards at a time, in an order drawn anew for every pass: what does not fit in memory.

    Raises:
        DataError: no shards of that split, no tokens in them, or codes of another tokenizer.
    """

    def __init__(self, config: "Config", split: str):
        from omnilib.shards import Shards

        self.config, self.shards = config, Shards(DATA / config.shards, split, seed=config.seed)
        self.per_pass = -(-len(self.shards.shards) // config.window)
        self.hours = sum(s["seconds"] for s in self.shards.shards) / 3600

    def pairs(self, number: int) -> list[tuple[dict, Tensor]]:
        """Records and codes of the window of that number; one after the other they pass over all shards."""
        epoch, place = divmod(number, self.per_pass)
        order = np.random.default_rng([self.config.seed, epoch]).permutation(len(self.shards.shards))
        records = self.shards.records(order[place :: self.per_pass])
        pairs = [(r, torch.tensor(r["tokens"], dtype=torch.long)) for r in records if r.get("tokens")]
        if not pairs:
            raise DataError(
                f"the records of {self.config.shards} have no tokens: end their recipe with the step `tokens`"
            )
        check_codes(max(int(c.max()) for _, c in pairs), self.config, Path(self.config.shards))
        return pairs


class Conversations:
    """Training samples; a batch is a function of (seed, step) alone (paper section 3.2)."""

    def __init__(self, config: "Config", tokenizer, layout, split: str = "train"):
        self.config, self.tokenizer, self.layout = config, tokenizer, layout
        self.rules = ChunkRules(config.chunk_min, config.chunk_max)
        self.windows, self.window = (ShardWindows(config, split), 0) if config.shards else (None, 0)
        self.index(self.windows.pairs(0) if self.windows else read_pairs(config, split))
        missing = [lang for lang in config.languages if not self.speakers[lang]]
        if missing:
            place = config.shards or config.manifest
            raise DataError(
                f"{place} holds no {split} speech in {', '.join(missing)} with tokens: build the corpus and its tokens"
            )

    def index(self, pairs: list[tuple[dict, Tensor]]) -> None:
        """Sort records by language and speaker."""
        self.speakers: dict[str, dict[str, list[dict]]] = defaultdict(lambda: defaultdict(list))
        for record, codes in pairs:
            if record["language"] in self.config.languages:
                item = {
                    "text": record["text"],
                    "seconds": record["duration"],
                    "codes": codes,
                    "phonemes": record.get("phonemes"),
                    "part": record.get("part", ""),
                }
                self.speakers[record["language"]][record["speaker"]].append(item)
        low, high = self.config.reference_seconds
        self.seconds = {
            speaker: sum(r["seconds"] for r in records)
            for speakers in self.speakers.values()
            for speaker, records in speakers.items()
        }
        self.references = {
            speaker: [r for r in records if low <= r["seconds"] <= high] or records
            for speakers in self.speakers.values()
            for speaker, records in speakers.items()
        }

    def with_settings(self, config: "Config") -> "Conversations":
        """The same recordings, drawn by the settings of a phase."""
        other = copy.copy(self)
        other.config = config
        return other

    @property
    def hours(self) -> float:
        return (
            self.windows.hours
            if self.windows
            else sum(r["seconds"] for s in self.speakers.values() for records in s.values() for r in records)
            / 3600
        )

    def sample(self, rng: np.random.Generator, language: str, seconds: float) -> tuple[Tensor, Tensor]:
        """Rows and labels (L, 1 + k) of one conversation of about `seconds` of speech, less where none was found of this length."""
        share = self.config.bpe_dropout
        splitter = Splitter(self.tokenizer, share, rng) if share else None
        speakers = sorted(self.speakers[language])
        speakers = [s for s in speakers if self.seconds[s] >= seconds] or speakers  # with enough to say
        parts = [self.speakers[language][s][0]["part"] for s in speakers]
        weights = np.sqrt([len(self.speakers[language][s]) for s in speakers])
        weights = weights * [self.config.weights.get(part, 1.0) for part in parts]
        for draw in range(DRAWS):
            speaker = speakers[int(rng.choice(len(speakers), p=weights / weights.sum()))]
            references, records = self.references[speaker], self.speakers[language][speaker]
            reference = references[int(rng.integers(len(references)))]
            chosen, total = [], 0.0
            for index in rng.permutation(len(records)):  # none twice: the model is to read, not to copy
                if total >= seconds * SHORTER**draw:
                    break
                if records[index] is not reference or len(records) == 1:
                    chosen.append(records[index])
                    total += chosen[-1]["seconds"]
            sentences = [(r["text"], r["codes"]) for r in chosen]
            try:
                return training_rows(
                    self.tokenizer,
                    self.layout,
                    reference["text"],
                    reference["codes"],
                    sentences,
                    self.rules,
                    splitter,
                )
            except DataError:  # a chunk would end within a recording: draw again
                continue
        raise DataError(
            f"{DRAWS} draws of {language} speech all held a sentence longer than a chunk: raise chunk_max or cut the recordings"
        )

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, labels (B, L, 1 + k) and mask (B, L), padded on the right."""
        config = self.config
        if self.windows and step // config.window_steps != self.window:
            self.window = step // config.window_steps
            self.index(self.windows.pairs(self.window))
        languages = {
            lang: share
            for lang, share in zip(config.languages, config.language_shares, strict=True)
            if self.speakers[lang]
        }
        shares = np.array(list(languages.values())) / sum(languages.values())
        rng = step_rng(config.seed, step)
        kind = int(rng.choice(len(config.shares), p=np.array(config.shares) / sum(config.shares)))
        seconds = float(rng.uniform(config.seconds[kind], config.seconds[kind + 1]))
        samples, longest = [], 0
        while not samples or (len(samples) + 1) * longest <= config.rows:
            language = str(rng.choice(list(languages), p=shares))
            samples.append(self.sample(rng, language, seconds))
            longest = max(longest, len(samples[-1][0]))
        rows = torch.nn.utils.rnn.pad_sequence([r for r, _ in samples], batch_first=True)
        labels = torch.nn.utils.rnn.pad_sequence(
            [y for _, y in samples], batch_first=True, padding_value=IGNORE
        )
        lengths = torch.tensor([len(r) for r, _ in samples])
        mask = torch.arange(rows.shape[1]) < lengths[:, None]
        return self.corrupt(rows, rng), labels, mask

    def corrupt(self, rows: Tensor, rng: np.random.Generator) -> Tensor:
        """Replace a share of the real codes of the input by random ones (labels stay): half of the samples are left clean."""
        if not self.config.corrupt:
            return rows
        share = rng.uniform(0, 2 * self.config.corrupt, size=len(rows)) * (rng.random(len(rows)) < 0.5)
        hit = torch.from_numpy(rng.random(rows.shape) < share[:, None, None]) & (
            rows < self.layout.speech_eos
        )
        hit[..., 0] = False  # text is never changed
        noise = torch.from_numpy(rng.integers(self.layout.speech_eos, size=rows.shape))
        return torch.where(hit, noise, rows)
