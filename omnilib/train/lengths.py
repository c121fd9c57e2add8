"""The unified length pipeline (paper section 3.3): samples of similar length share a batch; batches shrink as
length grows.

A batch of B samples whose longest has L positions costs B x L cells; the budget bounds the cells, so memory
is the same for a hundred short questions and for one long recording. Padding is bounded too: a batch ends
before the share of cells without a sample would exceed `padding`. Lengths are positions of the language
model, behind the growth of placeholders (text ids, and what each picture, video and recording takes).

An epoch is a function of (seed, number of the epoch), a step belongs to one epoch, so a run goes on from
its step alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from omnilib.data import padding_waste, step_rng
from omnilib.errors import DataError


class LengthBatches:
    """Indices of the samples of each step (paper section 3.1).

    Args:
        lengths: positions of each sample.
        budget: cells a batch may hold, rows x longest.
        seed: of the order.
        padding: largest share of a batch's cells that hold no sample.
        most: samples a batch may hold, however short they are.

    Raises:
        DataError: no samples, or one that exceeds the budget.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        budget: int,
        seed: int = 0,
        padding: float = 0.05,
        most: int = 256,
    ):
        self.lengths = np.asarray(lengths, dtype=np.int64)
        if not len(self.lengths):
            raise DataError("no samples to make batches of: check the manifest, its splits and `tasks`")
        if self.lengths.min() < 1:
            raise DataError(
                f"sample {int(self.lengths.argmin())} has no positions: every sample needs text or media",
            )
        if self.lengths.max() > budget:
            where, longest = int(self.lengths.argmax()), int(self.lengths.max())
            raise DataError(
                f"sample {where} has {longest} positions, a batch holds {budget}: raise `positions`",
            )
        self.budget, self.seed, self.padding, self.most = budget, seed, padding, most
        self.starts = [0]  # first step of each epoch known so far
        self.made: tuple[int, list[list[int]]] = (-1, [])

    def epoch(self, number: int) -> list[list[int]]:
        """Batches of one pass over all samples, each sample once, in the order of training."""
        rng = step_rng(self.seed, number)
        shuffled = rng.permutation(len(self.lengths))  # equal lengths meet others in every epoch
        order = shuffled[np.argsort(self.lengths[shuffled], kind="stable")]
        share = float(
            rng.uniform(),
        )  # of a full batch that the first one takes: every later cut moves with it
        batches: list[list[int]] = []
        current: list[int] = []
        total = 0
        for index in order:
            longest, size = int(self.lengths[index]), len(current) + 1
            cells = size * longest
            part = 1.0 if batches else share
            full = size > part * self.most or cells > part * self.budget
            if current and (full or 1 - (total + longest) / cells > self.padding):
                batches.append(current)
                current, total = [], 0
            current.append(int(index))
            total += longest
        batches.append(current)
        return [batches[i] for i in rng.permutation(len(batches))]

    def at(self, step: int) -> list[int]:
        """Samples of a step; one epoch follows the other."""
        while self.starts[-1] <= step:
            self.made = (len(self.starts) - 1, self.epoch(len(self.starts) - 1))
            self.starts.append(self.starts[-1] + len(self.made[1]))
        number = int(np.searchsorted(self.starts, step, side="right")) - 1
        if self.made[0] != number:
            self.made = (number, self.epoch(number))
        return self.made[1][step - self.starts[number]]


@dataclass
class Padding:
    """Share of a batch's cells that hold no sample, over an epoch."""

    unified: float
    naive: float
    batches: int
    batch_size: int  # of the naive batches


def measure_padding(lengths: Sequence[int], budget: int, seed: int = 0, padding: float = 0.05) -> Padding:
    """Padding of the pipeline beside that of shuffled batches of one size, as many samples a batch as ours
    hold on average."""
    batches = LengthBatches(lengths, budget, seed, padding).epoch(0)
    size = max(1, round(len(lengths) / len(batches)))
    order = [int(i) for i in step_rng(seed, 0).permutation(len(lengths))]
    naive = [order[i : i + size] for i in range(0, len(order), size)]
    values = [int(n) for n in lengths]
    return Padding(padding_waste(batches, values), padding_waste(naive, values), len(batches), size)
