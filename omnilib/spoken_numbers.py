"""Numbers as words, the base of both languages' spoken forms.

Chinese clauses and English units and fractions are read by wetext (WeTextProcessing's grammars, Apache-2.0); English integers,
ordinals and years by num2words, because wetext reads 1000 as "ten hundred" and 1,234 as "thousand two hundred ...".
`python -m omnilib.bench.spoken` measures the choice. wetext is loaded when the first number is met.
"""

import re
from functools import lru_cache

from num2words import num2words

from omnilib.errors import UserError

DIGITS_ZH = "零一二三四五六七八九"
DIGITS_EN = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LONGEST_NUMBER = 15  # digits; longer ones are read digit by digit


@lru_cache(maxsize=2)
def grammar(language: str):
    """wetext's normaliser of a language.

    Raises:
        UserError: wetext is not installed or has no build for this platform.
    """
    try:
        from wetext import Normalizer
    except ImportError as error:
        raise UserError(
            f"numbers and units cannot be read without wetext ({error}): pip install wetext, or write them as words"
        ) from None
    return Normalizer(lang=language, operator="tn")


@lru_cache(maxsize=8192)
def read(text: str, language: str) -> str | None:
    """`text` (at most a clause) as wetext reads it; None where its grammar has no reading."""
    normaliser = grammar(language)
    try:
        spoken = normaliser.normalize(text)
    except Exception:  # wetext asserts on characters that its grammar does not know
        return None
    return (
        spoken.replace("幺", "一") or None
    )  # the telephone's "yao" is rare in recordings; 一 is understood as well


# ---- English ---------------------------------------------------------------------------------------------------------


def spell(digits: str) -> str:
    """ "007" -> "zero zero seven"."""
    return " ".join(DIGITS_EN[int(d)] for d in digits if d.isdecimal())


@lru_cache(maxsize=8192)
def words(number: str, kind: str = "cardinal") -> str:
    """ "105" -> "one hundred and five"; too long or zero-led ones digit by digit.

    Args:
        kind: cardinal, ordinal or year.
    """
    if len(number) > LONGEST_NUMBER or (number[0] == "0" and len(number) > 1):
        return spell(number)
    return re.sub("[ -]+", " ", num2words(int(number), to=kind).replace(",", ""))


def decimal(number: str) -> str:
    """ "3.14" -> "three point one four"."""
    whole, _, part = number.partition(".")
    return words(whole) + (" point " + spell(part) if part else "")


@lru_cache(maxsize=512)
def unit_name(symbol: str, one: bool) -> str | None:
    """ "km" -> "kilometers", or "kilometer" for one; None if wetext does not know it."""
    said = read(f"{'1' if one else '5'} {symbol}", "en") or ""
    name = said.removeprefix("one " if one else "five ")
    return None if name in (said, symbol) or not name.replace(" ", "").isalpha() else name


def fraction(over: str, under: str) -> str | None:
    """ "3", "4" -> "three quarters"; None where it is not read as one (24/7)."""
    if not (0 < int(over) < int(under) <= 100 and len(over) + len(under) <= 5):
        return None
    return read(f"{int(over)}/{int(under)}", "en")


# ---- Chinese ---------------------------------------------------------------------------------------------------------


def digits_zh(number: str) -> str:
    return "".join(DIGITS_ZH[int(d)] for d in number if d.isdecimal())


def section_zh(value: int) -> str:
    """1..9999 -> its reading: 105 -> 一百零五."""
    text, zero = "", False
    for place, unit in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit = value // place % 10
        if digit:
            text += ("零" if zero and text else "") + DIGITS_ZH[digit] + unit
        zero = digit == 0
    return text


@lru_cache(maxsize=4096)
def integer_zh(number: str) -> str:
    """ "10500" -> 一万零五百; too long or zero-led ones digit by digit."""
    if len(number) > LONGEST_NUMBER or (number[0] == "0" and len(number) > 1):
        return digits_zh(number)
    value, text = int(number), ""
    if value == 0:
        return "零"
    gap = False
    for place, unit in ((10**12, "万亿"), (10**8, "亿"), (10**4, "万"), (1, "")):
        section = value // place % 10000
        if section:
            text += ("零" if text and (gap or section < 1000) else "") + section_zh(section) + unit
            gap = False
        else:
            gap = bool(text)
    return text.removeprefix("一") if text.startswith("一十") else text


def number_zh(number: str) -> str:
    """ "3.14" -> 三点一四."""
    whole, _, part = number.partition(".")
    return integer_zh(whole) + ("点" + digits_zh(part) if part else "")
