"""Text normalisation of Long-TTS-Eval (en, zh): both sides of a comparison pass through it before words are counted.

The rules are those of the published script, oddities included, so that rates can stand beside published ones:
digit runs become words (en), every ASCII or CJK punctuation character becomes a space, lower case, one space between
words; in zh each CJK character is a word of its own. num2words has no Chinese converter, so Chinese digits stay digits.
"""

import re
import string

from omnilib.errors import MissingTool, UserError

LANGUAGES = ("en", "zh")

CJK_PUNCTUATION = (
    "＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､　、〃〈〉《》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿"
    "–—‘’‛“”„‟…‧﹏﹑﹔·．！？｡。"
)
"""The same characters as zhon.hanzi.punctuation 2.1.1, which the published script imports."""

PUNCTUATION = re.compile(f"[{re.escape(string.punctuation + CJK_PUNCTUATION)}]")
CJK = re.compile("([\u4e00-\u9fff])")


def check_language(language: str) -> None:
    """Raises UserError for a language that no judge here supports."""
    if language not in LANGUAGES:
        raise UserError(f"unknown language '{language}': choose one of {', '.join(LANGUAGES)}")


def digits_to_words(text: str, language: str) -> str:
    """Each run of digits in words, spaces around; if one run cannot be converted, all of `text` stays as it is."""
    try:
        from num2words import num2words
    except ImportError:
        raise MissingTool("num2words is not installed: pip install -e .") from None
    try:
        return re.sub(r"\d+", lambda run: f" {num2words(int(run.group()), lang=language)} ", text)
    except (NotImplementedError, OverflowError, ValueError):
        return text


def normalize(text: str, language: str) -> str:
    """Words in lower case with single spaces, no punctuation.

    Raises:
        UserError: unknown language.
    """
    check_language(language)
    text = PUNCTUATION.sub(" ", digits_to_words(text, language))
    if language == "zh":
        text = CJK.sub(r" \1 ", text)
    return " ".join(text.lower().split())


def plain(text: str) -> str:
    """Lower case, words and figures alone, without articles."""
    words = re.sub(r"[^\w\s]", " ", text.lower()).split()
    return " ".join(w for w in words if w not in ("a", "an", "the")) or " ".join(words)
