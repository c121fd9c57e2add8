"""Error rates: words (en), CJK characters and toneless pinyin (zh), of one line and of a corpus. PAPER section 5.

    error of a line    = (substitutions + deletions + insertions) / reference words
    error of a sample  = min(error against the raw text, error against its spoken form)      [min rule]
    error of a corpus  = mean over samples weighted by reference words
    ci95               = percentile bootstrap over samples, seeded

Toneless pinyin forgives homophones: at nano scale the judge often writes another character with the right sound.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from omnilib.errors import MissingTool
from omnilib.eval.normalize import CJK, normalize
from omnilib.intervals import bootstrap
from omnilib.spoken import integer_zh


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


def simplified(text: str) -> str:
    """Traditional characters folded to simplified ones: the judge mixes scripts, which is no error of the speaker.

    Raises:
        MissingTool: zhconv is not installed.
    """
    try:
        import zhconv
    except ImportError:
        raise MissingTool("zhconv is not installed: pip install -e '.[judge]'") from None
    return zhconv.convert(text, "zh-cn")


def toneless_pinyin(text: str) -> str:
    """Normalised text, digits read out, each CJK character replaced by its syllable without tone.

    Raises:
        MissingTool: pypinyin is not installed.
    """
    try:
        from pypinyin import Style, lazy_pinyin
    except ImportError:
        raise MissingTool("pypinyin is not installed: pip install -e '.[judge]'") from None
    read_out = re.sub(r"\d+", lambda run: integer_zh(run.group()), simplified(text))
    tokens = normalize(read_out, "zh").split()
    # Syllables depend on neighbours (polyphones), so whole stretches of characters are converted together.
    stretches = [(han, list(group)) for han, group in groupby(tokens, key=lambda t: bool(CJK.fullmatch(t)))]
    return " ".join(
        syllable
        for han, group in stretches
        for syllable in (lazy_pinyin("".join(group), style=Style.NORMAL) if han else group)
    )


def line_rates(truth: str, hypothesis: str, language: str) -> dict[str, Rates]:
    """The measures of one line: {"wer"} for en; {"pinyin", "cer"} for zh."""
    if language == "zh":
        return {
            "pinyin": rates(toneless_pinyin(truth), toneless_pinyin(hypothesis)),
            "cer": rates(normalize(simplified(truth), "zh"), normalize(simplified(hypothesis), "zh")),
        }
    return {"wer": rates(normalize(truth, language), normalize(hypothesis, language))}


def beyond(truth: str, hypothesis: str, language: str) -> float:
    """Share of the hypothesis that comes after the last word of the truth, or before the first, where that word is recognised.

    High when the truth is the beginning or the end of what was said only. The words of zh are toneless syllables.
    """
    import jiwer

    clean = toneless_pinyin if language == "zh" else lambda text: normalize(text, language)
    truth, hypothesis = clean(truth), clean(hypothesis)
    if not truth.strip() or not hypothesis.strip():
        return 0.0
    chunks = jiwer.process_words(truth, hypothesis).alignments[0]
    ends = (
        [(a, b) for a, b in (chunks[:2], chunks[:-3:-1]) if a.type == "insert" and b.type == "equal"]
        if len(chunks) > 1
        else []
    )
    return sum(a.hyp_end_idx - a.hyp_start_idx for a, _ in ends) / len(hypothesis.split(" "))


def min_rule(text: str, text_norm: str, hypothesis: str, language: str) -> Rates:
    """Error against the text or against its spoken form, whichever is smaller; a tie takes the spoken form."""
    raw = rates(normalize(text, language), normalize(hypothesis, language))
    spoken = rates(normalize(text_norm, language), normalize(hypothesis, language))
    return raw if raw.error < spoken.error else spoken


def corpus(lines: Sequence[Rates], seed: int = 0) -> dict:
    """Corpus error weighted by reference words, its three parts, n and ci95.

    Raises:
        ValueError: no lines.
    """
    weights = [line.words for line in lines]
    value, interval = bootstrap([line.error for line in lines], weights, seed)
    parts = {
        name: float(np.average([getattr(line, name) for line in lines], weights=weights))
        for name in ("substitutions", "deletions", "insertions")
    }
    return {"value": value, "n": len(lines), "ci95": interval, "words": sum(weights), **parts}
