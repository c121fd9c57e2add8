"""Filters: pure functions `record -> reason | None`, one a rule, listed by name with their limits in a recipe's `filter` step.

    - name: filter
      rules:
        quality: {least: 3.0}
        language: {wanted: [en, zh]}

Each reads fields that an earlier step wrote; a field that is absent is a mistake in the recipe, not a reason to drop. Limits may
differ by source: `quality: {least: 3.0, sources: {asterisk: 2.5}}`.
"""

import inspect
from collections.abc import Callable

from omnilib.errors import ConfigError

Filter = Callable[..., str | None]
FILTERS: dict[str, Filter] = {}


def known(function: Filter) -> Filter:
    """Let recipes name the function."""
    FILTERS[function.__name__] = function
    return function


def field(record: dict, name: str, step: str) -> object:
    """A field the filter reads.

    Raises:
        ConfigError: the step that writes it has not run.
    """
    if name not in record:
        raise ConfigError(f"a filter needs '{name}': put the step '{step}' before it in the recipe")
    return record[name]


def check_rules(rules: dict[str, dict | None]) -> None:
    """Raises ConfigError on an unknown filter or parameter."""
    for name, limits in rules.items():
        if name not in FILTERS:
            raise ConfigError(f"unknown filter '{name}'; known: {', '.join(sorted(FILTERS))}")
        parameters = list(inspect.signature(FILTERS[name]).parameters)[1:]
        if unknown := set(limits or {}) - set(parameters):
            raise ConfigError(
                f"filter '{name}' has no parameter '{sorted(unknown)[0]}'; known: {', '.join(parameters) or 'none'}"
            )


def reason(record: dict, rules: dict[str, dict | None]) -> str | None:
    """The first rule's reason to drop the record, or None."""
    return next(
        (why for name, limits in rules.items() if (why := FILTERS[name](record, **(limits or {})))), None
    )


@known
def duration(record: dict, least: float = 1.0, most: float = 30.0) -> str | None:
    """Length in seconds."""
    length = record["duration"]
    return "too_short" if length < least else "too_long" if length > most else None


@known
def quality(
    record: dict, least: float = 3.0, score: str = "dnsmos", sources: dict[str, float] | None = None
) -> str | None:
    """Opinion score: `dnsmos` (P.808) or `dnsmos_ovrl` (P.835)."""
    limit = (sources or {}).get(record["source"], least)
    return "low_quality" if field(record, score, "quality") < limit else None


@known
def noise(record: dict, least: float = 15.0, anywhere: float = 10.0) -> str | None:
    """Signal to noise in dB: of the whole, and of its worst 4 seconds."""
    low = field(record, "snr_db", "quality") < least or field(record, "snr_lowest_db", "quality") < anywhere
    return "noisy" if low else None


@known
def clipping(record: dict, least: float = 3.1) -> str | None:
    """Height of the peaks above the louder samples in dB."""
    return "clipped" if field(record, "crest_db", "quality") < least else None


@known
def speech_share(record: dict, least: float = 0.5) -> str | None:
    """Part of the recording in which somebody speaks."""
    spoken = sum(end - start for start, end in field(record, "speech", "vad"))
    return "little_speech" if spoken < least * record["duration"] else None


@known
def language(
    record: dict, wanted: list[str] | None = None, least: float = 0.5, foreign: float = 0.9
) -> str | None:
    """Language heard: the one the record says and one that is wanted.

    On short sentences a recogniser guesses among a hundred languages, so what the record says stands against a doubtful guess.

    Args:
        least: probability that decides between wanted languages, and that a recording without a language needs.
        foreign: probability from which a language that is not wanted is believed against the record.
    """
    heard, sure = (
        field(record, "heard_language", "language"),
        field(record, "language_probability", "language"),
    )
    said, known = record.get("language"), wanted is None or heard in wanted
    if wanted is not None and said not in (None, *wanted):
        return "language_not_wanted"
    if said is not None:
        return "wrong_language" if heard != said and sure >= (least if known else foreign) else None
    return "language_not_wanted" if not known else "language_unsure" if sure < least else None


@known
def transcript(
    record: dict,
    most: float = 0.25,
    languages: dict[str, float] | None = None,
    doubt: float = 2.5,
    tail: float = 0.3,
) -> str | None:
    """Given text against what was heard: the error is large, and either the given text is much less likely or it ends too early.

    Args:
        most: share of words (zh: syllables) that may differ; `languages` has limits of single languages.
        doubt: how much less likely a token of the given text may be on average, in nats.
        tail: share of what was heard that may go on after the given text ends, or come before it begins.
    """
    error = field(record, "error", "transcribe")
    if error is None or error <= (languages or {}).get(record["language"], most):
        return None
    return "wrong_transcript" if record["surprise"] > doubt or record["beyond"] > tail else None


@known
def heard_something(record: dict) -> str | None:
    """The recogniser heard words."""
    return None if field(record, "heard", "transcribe").strip() else "no_words"
