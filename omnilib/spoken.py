"""Spoken form: what a reader would say for a written text, so that the synthesiser meets words only.

Numbers become words (num2words for English, our own reading for Chinese), Markdown, emoji and quotes go, symbols that are
spoken are spelt out, punctuation is reduced to , . ? ! ; : and their Chinese forms, and the text ends with an end mark.
Every pass is one regular expression without nested repetition, so time grows with length only. Applying it twice
changes nothing.
"""

import re
import unicodedata
from functools import lru_cache

from num2words import num2words

from omnilib.errors import UserError

LANGUAGES = ("en", "zh")
HAN = "\u4e00-\u9fff"
DIGITS_ZH = "零一二三四五六七八九"
DIGITS_EN = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LONGEST_NUMBER = 15  # digits; longer ones are read digit by digit

ABBREVIATIONS = {
    "mr": "mister", "mrs": "missus", "ms": "miz", "dr": "doctor", "prof": "professor", "st": "saint", "vs": "versus",
    "e.g": "for example", "i.e": "that is", "etc": "et cetera", "jr": "junior", "sr": "senior", "no": "number",
}  # fmt: skip
MAY_END = ("etc", "jr", "sr")  # before a capital the dot of these also ends the sentence
FRACTIONS = {"1/2": "one half", "1/3": "one third", "2/3": "two thirds", "1/4": "one quarter", "3/4": "three quarters"}
CURRENCIES = {"$": ("dollar", "美元"), "£": ("pound", "英镑"), "€": ("euro", "欧元"), "¥": ("yuan", "元")}
SYMBOLS = {
    "en": {"&": "and", "@": "at", "%": "percent", "+": "plus", "=": "equals", "°": "degrees", "×": "times", "÷": "divided by"},
    "zh": {"&": "和", "@": "艾特", "%": "百分号", "+": "加", "=": "等于", "°": "度", "×": "乘", "÷": "除以"},
}
WIDE = str.maketrans(",?!;:.", "，？！；：。")


def detect_language(text: str) -> str:
    """ "zh" when any Han character stands in it, else "en" (the reference's rule for choosing the pre-prompt)."""
    return "zh" if re.search(f"[{HAN}]", text) else "en"


def clean_text(text: str, language: str | None = None) -> str:
    """Spoken form of `text`.

    Args:
        language: "en" or "zh"; None looks at the script.

    Raises:
        UserError: unknown language, or nothing in it can be spoken.
    """
    if language is not None and language not in LANGUAGES:
        raise UserError(f"language '{language}' is unknown: use one of {', '.join(LANGUAGES)}")
    lines = (" ".join(line.split()) for line in unicode_basics(text).splitlines())
    text = strip_markup("\n".join(filter(None, lines)))  # no runs of blanks from here on
    language = language or detect_language(text)
    text = spell_web(text, language)
    text = numbers_zh(text) if language == "zh" else numbers_en(text)
    text = tidy(text, language)
    if language == "en":
        text = abbreviations(text)  # those whose dot is the end of a line, or was something else before
    if not any(map(str.isalnum, text)):
        raise UserError("there is nothing to speak in this text: give some words in English or Chinese")
    return text


# ---- characters and markup -------------------------------------------------------------------------------------------


def unicode_basics(text: str) -> str:
    """Compatibility forms (full-width letters, ligatures) folded, Chinese punctuation left as it is."""
    text = re.sub("[^，。！？；：（）、…]+", lambda m: unicodedata.normalize("NFKC", m[0]), text)
    return text.replace("’", "'").replace("‘", "'").replace("⁄", "/")


def strip_markup(text: str) -> str:
    """Markdown, HTML tags and control tokens away; what they frame stays."""
    text = re.sub(r"<\|[^<>|]{0,40}\|>", " ", text)
    text = re.sub(r"<[^<>]{0,200}>", " ", text)
    text = re.sub(r"!?\[([^\[\]]*)\]\([^()\s]*\)", r"\1", text)  # [text](address)
    text = re.sub(r"(?m)^[ \t]{0,8}(?:#{1,6}|[-*+>])[ \t]+", "", text)  # headings, bullets, quotations
    text = re.sub(r"([^\s.?!;:,，。！？；：、])\n", r"\1.\n", text)  # a line is a sentence
    return re.sub(r"[*_`~#|\\]+", " ", text)


def spell_web(text: str, language: str) -> str:
    """Addresses: "a.b@c.org/x" as it is dictated."""
    dot, at, slash = (" dot ", " at ", " slash ") if language == "en" else (" 点 ", " 艾特 ", " 斜杠 ")

    def spell(match: re.Match) -> str:
        address = re.sub(r"^[a-z]{2,6}://", "", match[0].rstrip("/"), flags=re.I)
        return address.replace(".", dot).replace("@", at).replace("/", slash).replace("-", " ")

    ends = r"(?:com|org|net|edu|gov|io|cn|uk|de|co|info|ai)(?![A-Za-z])"
    address = rf"(?:https?://[A-Za-z0-9./@-]+[A-Za-z0-9/])|(?:(?<![A-Za-z0-9.@-])[A-Za-z0-9][A-Za-z0-9@-]*(?:\.[A-Za-z0-9@-]+)*\.{ends}(?:/[A-Za-z0-9/-]*)?)"
    return re.sub(address, spell, text)


def tidy(text: str, language: str) -> str:
    """Only letters, spoken symbols and plain punctuation stay; one end mark at the end."""
    for symbol, word in SYMBOLS[language].items():
        text = text.replace(symbol, f" {word} ")
    text = re.sub(r"…|\.{2,}", ". ", text)
    text = re.sub(r"\s*[()（）\[\]{}—–]+\s*|\s+-+\s+|--+", ", ", text)  # brackets and dashes are pauses
    text = "".join(c if keep(c) else " " for c in text)
    text = re.sub(r"(?<![^\W\d_])'|'(?![^\W\d_])", " ", text)  # quotation marks, not apostrophes
    text = re.sub(r"(?<![^\W_])-|-(?![^\W_])", " ", text)
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r" ?([,.?!;:，。！？；：、]) ?", r"\1 ", text)
    text = re.sub(r"(?:[,;:，；：、] )+(?=[,.?!;:，。！？；：、])", "", text)  # the last of a run of marks stands
    text = re.sub(r"([.?!。！？] )(?:[,.?!;:，。！？；：、] )+", r"\1", text)
    text = re.sub(r"^[\s,.?!;:，。！？；：、]+", "", text)
    text = re.sub(rf"([{HAN}，。！？；：、])([,?!;:.])(?= |$)", lambda m: m[1] + m[2].translate(WIDE), text)
    text = re.sub(rf"([，。！？；：、]) |(?<=[{HAN}]) (?=[{HAN}])", r"\1", text)  # Han script has no spaces
    text = text.rstrip(" ,;:，；：、")
    if text and text[-1] not in ".?!。！？":
        text += "。" if language == "zh" else "."
    return text


def keep(char: str) -> bool:
    """Characters the synthesiser may see."""
    return char in " ,.?!;:'-，。！？；：、" or unicodedata.category(char)[0] == "L" or char.isdecimal()


# ---- English numbers -------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def words(number: str, kind: str = "cardinal") -> str:
    """ "105" -> "one hundred and five"; too long or zero-led ones digit by digit."""
    number = number.replace(",", "")
    if len(number) > LONGEST_NUMBER or (number[0] == "0" and len(number) > 1):
        return " ".join(DIGITS_EN[int(d)] for d in number)
    return num2words(int(number), to=kind).replace(",", "").replace("-", " ")


def decimal(number: str) -> str:
    """ "3.14" -> "three point one four"."""
    whole, _, part = number.partition(".")
    return words(whole) + (" point " + " ".join(DIGITS_EN[int(d)] for d in part) if part else "")


def money(match: re.Match) -> str:
    unit, (whole, _, cents), scale = CURRENCIES[match[1]][0], match[2].partition("."), match[3]
    if scale:
        return f"{decimal(match[2])} {scale} {unit}s"
    amount = f"{words(whole)} {unit}" + ("s" if whole != "1" and unit != "yuan" else "")
    return amount + (f" and {words(cents.lstrip('0') or '0')} cents" if len(cents) == 2 and cents != "00" else "")


def clock(match: re.Match) -> str:
    hour, minute = match[1], match[2]
    if minute == "00":
        return words(hour.lstrip("0") or "0") + ("" if match[3] else " o'clock")
    return f"{words(hour.lstrip('0') or '0')} {'oh ' + words(minute[1]) if minute[0] == '0' else words(minute)}"


def abbreviation(match: re.Match) -> str:
    name, following = match[1].lower(), match[2]
    if name == "no" and not following.isdigit():  # the answer
        return match[0]
    dot = "." if name in MAY_END and following.isupper() else ""
    return f"{ABBREVIATIONS[name]}{dot} "


def abbreviations(text: str) -> str:
    names = "|".join(map(re.escape, ABBREVIATIONS))
    return re.sub(rf"\b({names})\. ?(?=(\w))", abbreviation, text, flags=re.I)


def numbers_en(text: str) -> str:
    """Digits, abbreviations and units as English words."""
    text = abbreviations(text)
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"([$£€¥]) ?(\d+(?:\.\d+)?)(?: (thousand|million|billion|trillion)\b)?", money, text)
    text = re.sub(r"(?<!\d)(\d{1,2}):([0-5]\d)(?!\d)(?=( ?[ap]\.?m\b)?)", clock, text, flags=re.I)
    text = re.sub(r"\b(?:\d{3}-)?\d{3}-\d{4}\b", lambda m: " ".join(DIGITS_EN[int(d)] for d in m[0] if d != "-"), text)
    text = re.sub(r"(?<=\d) ?[-–] ?(?=\d)", " to ", text)
    text = re.sub(r"(?<![\w.])[-−](?=\d)", "minus ", text)
    text = re.sub(r"(?<![\d/])\d{1,15}/\d{1,15}(?![\d/])", lambda m: f" {FRACTIONS.get(m[0], m[0].replace('/', ' over '))} ", text)
    text = re.sub(r"(?<![\d.])(1[1-9]\d|20\d)0s\b", lambda m: f" {words(m[1] + '0', 'year')}s ".replace("ys ", "ies "), text)
    text = re.sub(r"(?<![\d.])\d{1,15}(?:\.\d{1,15}){2,9}(?![\d.])", lambda m: " point ".join(m[0].split(".")), text)  # versions
    text = re.sub(r"\b(\d{1,15})(?:st|nd|rd|th)\b", lambda m: f" {words(m[1].lstrip('0') or '0', 'ordinal')} ", text, flags=re.I)
    text = re.sub(r"(?<![\d.])(1[1-9]\d\d|20\d\d)(?![\d.%])", lambda m: f" {words(m[1], 'year')} ", text)
    text = re.sub(r"(?<!\d)(\d{1,15}\.\d{1,15})(?!\d)", lambda m: f" {decimal(m[1])} ", text)
    return re.sub(r"\d+", lambda m: f" {words(m[0])} ", text)


# ---- Chinese numbers -------------------------------------------------------------------------------------------------


def digits_zh(number: str) -> str:
    return "".join(DIGITS_ZH[int(d)] for d in number)


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


def numbers_zh(text: str) -> str:
    """Digits and units as Chinese words."""
    number = r"\d{1,15}(?:\.\d{1,15})?"
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    text = re.sub(
        r"(?<!\d)(\d{4})[-/](\d{1,2})[-/](\d{1,2})(?!\d)",
        lambda m: f"{digits_zh(m[1])}年{integer_zh(m[2].lstrip('0') or '0')}月{integer_zh(m[3].lstrip('0') or '0')}日",
        text,
    )
    text = re.sub(r"(?<!\d)(\d{4}|\d{2})(?=年)", lambda m: digits_zh(m[1]), text)
    text = re.sub(rf"([$£€¥]) ?({number})([万亿]{{0,2}})", lambda m: number_zh(m[2]) + m[3] + CURRENCIES[m[1]][1], text)
    text = re.sub(rf"(?<!\d)({number}) ?%", lambda m: "百分之" + number_zh(m[1]), text)
    text = re.sub(
        r"(?<!\d)(\d{1,2}):([0-5]\d)(?!\d)",
        lambda m: integer_zh(m[1].lstrip("0") or "0") + "点" + (integer_zh(m[2].lstrip("0")) + "分" if m[2] != "00" else "整"),
        text,
    )
    text = re.sub(r"(?<=\d) ?[-–~] ?(?=\d)", "到", text)
    text = re.sub(r"(?<![A-Za-z0-9.])[-−](?=\d)", "负", text)
    text = re.sub(r"(?<![\d/])(\d{1,15})/(\d{1,15})(?![\d/])", lambda m: f"{integer_zh(m[2])}分之{integer_zh(m[1])}", text)
    text = re.sub(r"(?<!\d)(1\d{10}|0\d{9,11})(?!\d)", lambda m: digits_zh(m[1]), text)  # telephone numbers
    text = re.sub(r"(?<![\d.第])2(?=[个只条张位本次种天件名座间辆台部])", "两", text)
    text = re.sub(rf"(?<!\d){number}(?!\d)", lambda m: number_zh(m[0]), text)
    return re.sub(r"\d+", lambda m: integer_zh(m[0]), text)
