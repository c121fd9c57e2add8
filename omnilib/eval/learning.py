"""Is a training stage learning, and may two stages be compared? What chapters 02 to 06 hold the committed logs against.

A pass line is worth something when it is what a guess would reach: the entropy of the text pieces for the backbone, the
entropy of the codes for the mouth, one standard deviation for the flow. Values come from log.jsonl and meta.json alone.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import PurePath

import numpy as np

from omnilib.errors import DataError
from omnilib.text import encode

GRID_SEEDS = 3  # a ranking of variants needs at least so many


def entropy(counts: Sequence[int] | np.ndarray) -> float:
    """Nats that are needed to tell an item when only these frequencies are known."""
    share = np.asarray(counts, dtype=float)
    share = share[share > 0] / share.sum()
    return float(-(share * np.log(share)).sum())


def piece_entropy(tokenizer, texts: Iterable[str]) -> float:
    """Loss in nats of a language model that knows how often each text piece occurs and nothing else.

    Raises:
        DataError: no piece in the texts.
    """
    counts = Counter(piece for text in texts for piece in encode(tokenizer, text))
    if not counts:
        raise DataError("no text to count pieces in: give at least one sentence")
    return entropy(list(counts.values()))


def stage_differences(stage1: dict, stage2: dict) -> list[str]:
    """What besides the stage differs between two mouths, in words; [] when they may be compared.

    Args:
        stage1, stage2: their meta.json. Stage 2 has to go on from that stage 1, on codes of the same tokenizer.
    """
    found = []
    if PurePath(stage2["config"]["init"]).name != "speechlm_stage1":
        found.append(f"stage 2 goes on from {PurePath(stage2['config']['init']).name}")
    if stage1.get("tokens_sha256") != stage2.get("tokens_sha256"):
        found.append("the codes are of two files")
    if stage1.get("chunk_rules") != stage2.get("chunk_rules"):
        found.append("the chunk rules differ")
    return found
