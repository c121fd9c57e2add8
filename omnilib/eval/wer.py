"""Error rates: words (en), CJK characters and toneless pinyin (zh), of one line and of a corpus. PAPER section 5.

    error of a line    = (substitutions + deletions + insertions) / reference words
    error of a sample  = min(error against the raw text, error against its spoken form)      [min rule]
    error of a corpus  = mean over samples weighted by reference words
    ci95               = percentile bootstrap over samples, seeded

Toneless pinyin forgives homophones: at nano scale the judge often writes another character with the right sound.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from omnilib.errors import MissingTool
from omnilib.eval.normalize import CJK, normalize

BOOTSTRAP = 2000


@dataclass(frozen=True)
class Rates:
    """Error of one line; the three parts add up to `error`."""

    error: float
    substitutions: float
    deletions: float
    insertions: float
    words: int  # reference words, the line's weight in a corpus


def rates(truth: str, hypothesis: str) -> Rates:
    """Compare two strings of words separated by single spaces.

    Raises:
        ValueError: the truth is empty, so no rate exists.
    """
    try:
        import jiwer
    except ImportError:
        raise MissingTool("jiwer is not installed: pip install -e '.[judge]'") from None
    if not truth.strip():
        raise ValueError("the reference text is empty after normalisation: no error rate exists")
    count = len(truth.split(" "))
    if not hypothesis.strip():  # jiwer's own treatment of an empty hypothesis has changed between versions
        return Rates(1.0, 0.0, 1.0, 0.0, count)
    result = jiwer.process_words(truth, hypothesis)
    return Rates(
        result.wer,
        result.substitutions / count,
        result.deletions / count,
        result.insertions / count,
        count,
    )


def words(text: str, language: str) -> str:
    """Unit of `wer_*` and of zh CER: normalised words, or characters."""
    return normalize(text, language)


def toneless_pinyin(text: str) -> str:
    """Normalised text with each CJK character replaced by its syllable without tone."""
    try:
        from pypinyin import Style, lazy_pinyin
    except ImportError:
        raise MissingTool("pypinyin is not installed: pip install -e .") from None
    tokens = normalize(text, "zh").split()
    # Syllables depend on neighbours (polyphones), so whole stretches of characters are converted together.
    syllables: list[str] = []
    run: list[str] = []
    for token in [*tokens, ""]:
        if CJK.fullmatch(token):
            run.append(token)
            continue
        if run:
            syllables += lazy_pinyin("".join(run), style=Style.NORMAL)
            run = []
        if token:
            syllables.append(token)
    return " ".join(syllables)


def line_rates(truth: str, hypothesis: str, language: str) -> dict[str, Rates]:
    """The measures of one line: {"wer"} for en; {"pinyin", "cer"} for zh."""
    if language == "zh":
        return {
            "pinyin": rates(toneless_pinyin(truth), toneless_pinyin(hypothesis)),
            "cer": rates(words(truth, "zh"), words(hypothesis, "zh")),
        }
    return {"wer": rates(words(truth, language), words(hypothesis, language))}


def min_rule(text: str, text_norm: str, hypothesis: str, language: str) -> Rates:
    """Error against the text or against its spoken form, whichever is smaller; a tie takes the spoken form."""
    raw = rates(words(text, language), words(hypothesis, language))
    spoken = rates(words(text_norm, language), words(hypothesis, language))
    return raw if raw.error < spoken.error else spoken


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> float:
    """Mean of `values` (N,) weighted by `weights` (N,)."""
    return float((values * weights).sum() / weights.sum())


def bootstrap(values: Sequence[float], weights: Sequence[float] | None = None, seed: int = 0) -> tuple[float, list[float]]:
    """Weighted mean and its 95 % interval over resampled samples."""
    x = np.asarray(values, dtype=float)
    w = np.ones_like(x) if weights is None else np.asarray(weights, dtype=float)
    if not len(x):
        raise ValueError("no samples: nothing to average")
    draws = np.random.default_rng(seed).integers(len(x), size=(BOOTSTRAP, len(x)))
    means = (x[draws] * w[draws]).sum(1) / w[draws].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return weighted_mean(x, w), [float(low), float(high)]


def corpus(lines: Sequence[Rates], seed: int = 0) -> dict:
    """Corpus error with its parts, n and ci95."""
    value, interval = bootstrap([r.error for r in lines], [r.words for r in lines], seed)
    weights = np.array([r.words for r in lines], dtype=float)
    parts = {
        name: weighted_mean(np.array([asdict(r)[name] for r in lines]), weights)
        for name in ("substitutions", "deletions", "insertions")
    }
    return {"value": value, "n": len(lines), "ci95": interval, "words": int(weights.sum()), **parts}
