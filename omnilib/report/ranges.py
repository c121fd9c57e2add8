"""Numbers for readers: each with the range in which the same measurement on other sentences would fall."""

from collections.abc import Sequence

from omnilib.intervals import bootstrap
from omnilib.report.index import number


def told(entry: dict, unit: str = "") -> str:
    """A recorded number as a sentence's part: `13.2 % (yours may be 11.9 to 14.8)`.

    Args:
        entry: of `run.metrics`: value, and ci95 where one was recorded.
        unit: "%" shows a share in percent; "" takes the recorded unit.
    """
    text = number(entry, unit or entry.get("unit", ""))
    head, bracket, rest = text.partition(" (")
    return f"{head} (yours may be {rest}" if bracket else text


def range_of_items(
    values: Sequence[float], weights: Sequence[float] | None = None
) -> tuple[float, float] | None:
    """95 % interval of a mean over items (sentences, texts), drawn again with replacement; one item has none.

    Args:
        weights: of each item, for example its number of phonemes.
    """
    if len(values) < 2:
        return None
    return tuple(bootstrap(values, weights)[1])


def range_of_share(share: float, n: int) -> tuple[float, float]:
    """95 % interval (Wilson) of a share found in n independent trials."""
    from scipy.stats import binomtest

    found = binomtest(round(share * n), n).proportion_ci(method="wilson")
    return float(found.low), float(found.high)
