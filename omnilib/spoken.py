"""Spoken form: what a reader would say for a written text, so that the synthesiser meets words only.

`clean_text` runs, in this order: tags and Markdown away (what they frame stays), HTML entities and compatibility characters
decoded, addresses dictated, numbers and symbols as words (`spoken_en.py`, `spoken_zh.py`, on the base of `spoken_numbers.py`),
punctuation reduced to , . ? ! ; : and their Chinese forms, an end mark. Applying it twice changes nothing, and text of
plain words comes through as it is. Time grows with length only: all patterns are bounded or cannot overlap.

Dropped on purpose, and nothing else: HTML tags of known names and comments, the address of a Markdown link and the scheme of a
web address (https://), emoji, smileys and other pictures, invisible characters, quotation marks, runs of three or more of the same
sign (====), and marks of decoration or of code (* _ ` ~ | \\ { } [ ] ^ /) where they are no operator. Letters and digits always
leave a trace, control tokens of the prompt (<|im_end|>) included: they are words like any others.
"""

import html
import re
import unicodedata

from omnilib.errors import UserError
from omnilib.spoken_en import numbers_en
from omnilib.spoken_numbers import integer_zh
from omnilib.spoken_zh import numbers_zh

__all__ = ["HAN", "LANGUAGES", "clean_text", "detect_language", "integer_zh"]

LANGUAGES = ("en", "zh")
HAN = "\u4e00-\u9fff"
SYMBOLS = {
    "en": {
        "&": "and",
        "@": "at",
        "%": "percent",
        "‰": "per thousand",
        "+": "plus",
        "=": "equals",
        "°": "degrees",
        "×": "times",
    }
    | {
        "÷": "divided by",
        "¢": "cents",
        "$": "dollars",
        "£": "pounds",
        "€": "euros",
        "¥": "yuan",
        "₹": "rupees",
    },
    "zh": {
        "&": "和",
        "@": "艾特",
        "%": "百分号",
        "‰": "千分号",
        "+": "加",
        "=": "等于",
        "°": "度",
        "×": "乘",
        "÷": "除以",
    }
    | {"¢": "美分", "$": "美元", "£": "英镑", "€": "欧元", "¥": "元", "₹": "卢比"},
}
ADDRESS = {  # how the signs of an address are dictated
    "en": {
        ".": "dot",
        "@": "at",
        "/": "slash",
        "-": "dash",
        "_": "underscore",
        ":": "colon",
        "?": "question mark",
        "#": "hash",
    }
    | {"=": "equals", "&": "and", "%": "percent", "+": "plus", "~": "tilde"},
    "zh": {
        ".": "点",
        "@": "艾特",
        "/": "斜杠",
        "-": "杠",
        "_": "下划线",
        ":": "冒号",
        "?": "问号",
        "#": "井号",
        "=": "等于",
        "&": "和",
    }
    | {"%": "百分号", "+": "加", "~": "波浪号"},
}
MARKS = ",.?!;:，。！？；：、"
WIDE = str.maketrans(",?!;:.", "，？！；：。")
TAGS = [
    "a",
    "abbr",
    "address",
    "article",
    "aside",
    "audio",
    "b",
    "big",
    "blockquote",
    "body",
    "br",
    "button",
    "caption",
    "center",
    "cite",
    "code",
    "col",
    "dd",
    "del",
    "details",
    "div",
    "dl",
    "dt",
    "em",
    "figcaption",
    "figure",
    "font",
    "footer",
    "form",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "head",
    "header",
    "hr",
    "html",
    "i",
    "iframe",
    "img",
    "input",
    "ins",
    "kbd",
    "label",
    "li",
    "link",
    "main",
    "mark",
    "meta",
    "nav",
    "ol",
    "option",
    "p",
    "pre",
    "q",
    "s",
    "samp",
    "script",
    "section",
    "select",
    "small",
    "source",
    "span",
    "strike",
    "strong",
    "style",
    "sub",
    "summary",
    "sup",
    "svg",
    "table",
    "tbody",
    "td",
    "textarea",
    "tfoot",
    "th",
    "thead",
    "title",
    "tr",
    "tt",
    "u",
    "ul",
    "var",
    "video",
]
ATTRIBUTE = r"\s{1,9}[A-Za-z:-]{1,40}(?:\s?=\s?(?:\"[^\"<>]{0,2000}\"|'[^'<>]{0,2000}'|[^\s<>\"'=]{1,400}))"
TAG = re.compile(
    rf"</?(?:{'|'.join(TAGS)})(?:{ATTRIBUTE}){{0,20}}\s{{0,9}}/?>|<!doctype [^<>]{{0,80}}>", re.I
)
EMOTICON = re.compile(  # a smiley between blanks; "a <3" compares
    r"(?<!\S)(?:[:;]['’]?[-^]?[)(\]\[DPpoO|*]{1,4}|=[)(\]\[]{1,4}|(?<!\b\w )<3(?=\s*(?:$|[.!?]))"
    r"|\^_\^|[xX]D|T_T|-_-|¯\\_\(ツ\)_/¯)(?=\s|$|[.,!?])"
)
INVISIBLE_LETTERS = (
    "\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0"  # fillers and joiners that Unicode does not class as format
)


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
    text = characters(EMOTICON.sub(" ", entities(strip_tags(text))))
    lines = (" ".join(line.split()) for line in text.splitlines())
    text = strip_markdown("\n".join(filter(None, lines)))  # no runs of blanks from here on
    language = language or detect_language(text)
    text = spell_web(text, language)
    for _ in range(
        3
    ):  # once as a rule; again where the words of the first pass make a form of their own ("SR\n0")
        before, text = text, tidy(numbers_zh(text) if language == "zh" else numbers_en(text), language)
        if text == before:
            break
    if not any(map(str.isalnum, text)):
        raise UserError("there is nothing to speak in this text: give some words in English or Chinese")
    return text


# ---- characters and markup -------------------------------------------------------------------------------------------


def strip_tags(text: str) -> str:
    """HTML comments and tags of known names; other text in angle brackets stays."""
    first, *others = text.split("<!--")
    for other in others:
        comment, end, rest = other.partition("-->")
        first += rest if end else f"<!--{comment}"
    return TAG.sub(" ", first) if "<" in first else first


def entities(text: str) -> str:
    """&amp; &eacute; &#39; as the characters they stand for; an unknown name stays."""
    return re.sub(
        r"&(?:#\d{1,7}|#[xX][\da-fA-F]{1,6}|[A-Za-z][A-Za-z\d]{1,30});", lambda m: html.unescape(m[0]), text
    )


def characters(text: str) -> str:
    """One character for what looks the same: compatibility forms folded, Chinese punctuation left as it is, accents composed,
    exotic spaces, dashes and digits made plain, invisible characters taken out so that words join again."""
    text = "".join(map(visible, text)) if not text.isascii() or not text.isprintable() else text
    if text.isascii():
        return text
    text = re.sub(r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3}(?!\d))", ",", text)  # thousands
    raised = "[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]{1,15}"
    text = re.sub(raised, lambda m: "^" + unicodedata.normalize("NFKC", m[0]), text)
    text = re.sub(r"(?<=\d)(?=[½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞⅐⅑⅒])", " ", text)
    text = re.sub("[㎡㎥㎢㎤]", lambda m: {"㎡": "m^2", "㎥": "m^3", "㎢": "km^2", "㎤": "cm^3"}[m[0]], text)
    text = re.sub("[^，。！？；：（）、…]+", lambda m: unicodedata.normalize("NFKC", m[0]), text)
    text = text.translate(PLAIN)
    return "".join(c if c.isascii() or unicodedata.category(c)[0] != "N" else plain_digit(c) for c in text)


PLAIN = str.maketrans(
    dict.fromkeys("’‘ʼ`´′", "'")
    | dict.fromkeys("−‐‑﹣", "-")
    | {"⁄": "/", "∕": "/", "∶": ":", "∗": "*", "‒": "–", "″": '"'}
)
PLAIN |= {ord("`"): "`", ord("〜"): "~", ord("µ"): "μ"}


def visible(char: str) -> str:
    """Nothing for an invisible character (soft hyphen, zero-width, direction and variation marks), a space for a control."""
    category = unicodedata.category(char)
    if (
        category == "Cf"
        or char in INVISIBLE_LETTERS
        or "\ufe00" <= char <= "\ufe0f"
        or "\U000e0100" <= char <= "\U000e01ef"
    ):
        return ""
    if category[0] == "C" and not char.isspace():
        return " "
    return "\n" if category in ("Zl", "Zp") else char


def plain_digit(char: str) -> str:
    """Digits of other scripts as ASCII; other number characters as their value."""
    value = unicodedata.numeric(char, None)
    if char == "〇" or value is None:
        return char
    return str(int(value)) if char.isdecimal() else f" {int(value) if value == int(value) else value} "


def strip_markdown(text: str) -> str:
    """Links keep their text, lines become sentences, signs of emphasis go."""
    address = r"(?:[a-z]{2,10}:|www\.|[./#])[^()\s]*"
    text = re.sub(rf"!?\[([^\[\]]*)\]\({address}\)", r"\1", text)  # [text](address)
    text = re.sub(
        r"(?m)^[ \t]{0,8}(?:#{1,6}|[-*+]|>(?! ?\d))[ \t]+", "", text
    )  # headings, bullets, quotations
    text = re.sub(
        rf"<([^<>\s{HAN}]{{1,60}})>|(?<!\w)<([^<>\s]{{1,60}})>", lambda m: f" {m[1] or m[2]} ", text
    )  # <name>, List<int>
    text = re.sub(r"\.{2,}", "…", text)
    text = re.sub(r"([=*_~#+|`-])\1{2,}", " ", text)  # rules, fences
    text = re.sub(
        r"[_`|\\{}]|(?<!\d)\*+|\*+(?![\s*]*\d)", " ", text
    )  # emphasis, code, columns; 2*3 is a product
    return re.sub(rf"([^\s{MARKS}]) {{0,9}}\n", r"\1.\n", text)  # a line is a sentence


def spell_web(text: str, language: str) -> str:
    """Addresses: "a.b@c.org/x" as it is dictated."""

    def spell(match: re.Match) -> str:
        address = match[0].rstrip(".,!?;:'\"")
        rest = match[0][len(address) :]
        address = re.sub(r"^[a-z]{2,6}://", "", address.rstrip("/"), flags=re.I)
        address = re.sub(r"^www\.", "w w w.", address, flags=re.I)
        return "".join(f" {ADDRESS[language][c]} " if c in ADDRESS[language] else c for c in address) + rest

    ends = r"(?:com|org|net|edu|gov|io|cn|uk|de|co|info|ai|eu|fr|jp|ca|au|me|tv|dev|app)(?![A-Za-z\d])"
    path = r"(?:[/?#][\w./?#=&%+~:@-]*)?"
    host = rf"(?:[A-Za-z\d][A-Za-z\d-]{{0,62}}\.){{1,6}}{ends}"
    mail = r"[A-Za-z\d][\w.+-]{0,63}@[A-Za-z\d][A-Za-z\d-]{0,62}(?:\.[A-Za-z\d-]{1,63}){1,6}"
    before = r"(?<![A-Za-z\d.@_+-])"
    return re.sub(
        rf"{before}(?:(?:https?|ftp)://[\w./?#=&%+~:@-]+|{mail}|{host}{path})", spell, text, flags=re.A | re.I
    )


# ---- punctuation -----------------------------------------------------------------------------------------------------


def tidy(text: str, language: str) -> str:
    """Only letters and plain punctuation stay; one end mark at the end."""
    for symbol, word in SYMBOLS[language].items():
        text = text.replace(symbol, f" {word} ")
    text = re.sub(r"(?<![\u0370-\u03ff])[Α-Ωα-ω](?![\u0370-\u03ff])", lambda m: f" {greek(m[0])} ", text)
    text = re.sub(
        r"[\u20a0-\u20cf]", lambda m: f" {unicodedata.name(m[0], '').removesuffix(' SIGN').lower()} ", text
    )  # other currencies
    text = re.sub(r"…|\.{2,}", ". ", text)
    text = re.sub(r"\s?[()（）\[\]{}—–]+\s?|\s-+\s|--+", ", ", text)  # brackets and dashes are pauses
    text = keep(text)
    text = re.sub(r"(?<![^\W\d_])'|'(?![^\W\d_])", " ", text)  # quotation marks, not apostrophes
    text = re.sub(r"(?<![^\W_])-|-(?![^\W_])", " ", text)
    text = re.sub(r"\s+", " ", text)
    text = re.sub(rf" ?([{MARKS}]) ?", r"\1 ", text)
    text = re.sub(rf"(?:[,;:，；：、] )+(?=[{MARKS}])", "", text)  # the last of a run of marks stands
    text = re.sub(rf"([.?!。！？] )(?:[{MARKS}] )+", r"\1", text)
    text = re.sub(rf"^[\s{MARKS}]+", "", text)
    text = re.sub(rf"([{HAN}，。！？；：、])([,?!;:.])(?= |$)", lambda m: m[1] + m[2].translate(WIDE), text)
    text = re.sub(rf"([，。！？；：、]) |(?<=[{HAN}]) (?=[{HAN}])", r"\1", text)  # Han script has no spaces
    text = text.rstrip(" ,;:，；：、")
    if text and text[-1] not in ".?!。！？":
        text += "。" if language == "zh" else "."
    return text


def greek(letter: str) -> str:
    """ "π" alone, as in a formula -> "pi"."""
    return unicodedata.name(letter, letter).split()[-1].lower()


def keep(text: str) -> str:
    """Spaces for all that the synthesiser may not see; a combining mark stays with its letter."""
    if text.isascii():
        return re.sub(r"[^A-Za-z\d ,.?!;:'-]", " ", text)
    kept, letter = [], False
    for char in text:
        kind = unicodedata.category(char)[0]
        letter = kind == "L" or (kind == "M" and letter)
        kept.append(char if letter or char in " '-" or char in MARKS or char.isdecimal() else " ")
    return "".join(kept)
