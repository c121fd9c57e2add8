"""What a user should know about a text and its speech, one sentence each; or one UserError, when nothing good can come of it.

Each function takes plain values and returns sentences, which `TextToSpeech` hands on as `messages`.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence

from omnilib.errors import UserError
from omnilib.mouth.chunking import Chunk
from omnilib.mouth.passes import duration
from omnilib.mouth.readable import HAN, SPOKEN_SCRIPTS, Reading, script
from omnilib.text import clean_text

NAMES = {"en": "English", "zh": "Chinese"}
TEXT = "this text"
SMALL_SHARE = 0.2  # of another language in a text: names and loan words
LONG_WORD = 100  # characters without a space
WORD_SECONDS = 60.0  # that one "word" may take
SHOWN = 3  # chunks that are named; the others are counted
GUARDS = {"blank": "fell silent", "long": "ran on far beyond its text"}


def listing(items: Iterable[str]) -> str:
    """ "a, b and c"."""
    *most, last = items
    return f"{', '.join(most)} and {last}" if most else last


def brief(text: str, words: int = 3, letters: int = 8) -> str:
    """The first and last words of a text in quotation marks, or all of a short one."""
    parts, gap = (text.split(), " ") if " " in text.strip() else (list(text.strip()), "")
    size = words if gap else letters
    short = len(parts) <= 2 * size + 1
    return f'"{text.strip()}"' if short else f'"{gap.join(parts[:size])} … {gap.join(parts[-size:])}"'


# ---- the text --------------------------------------------------------------------------------------------------------


def unreadable(reading: Reading, what: str = TEXT) -> list[str]:
    """Letters that the model has never seen.

    Raises:
        UserError: they are half of the text or more.
    """
    if not reading.left_out:
        return []
    lost = "".join(reading.left_out)
    scripts = listing(dict.fromkeys(map(script, lost)))
    runs = list(dict.fromkeys(reading.left_out))
    shown = ", ".join(runs[:5]) + (", …" if len(runs) > 5 else "")
    if 2 * len(lost) >= reading.letters:
        raise UserError(
            f"this model cannot read {what}: it has never seen {scripts} letters like {shown[:60]}; it speaks English and Chinese"
        )
    if what != TEXT:
        return [f"{what} holds {scripts} letters that this model has never seen: {shown[:200]}"]
    return [f"not spoken, because this model has never seen them: the {scripts} letters {shown[:200]}"]


def doubtful(text: str) -> list[str]:
    """Letters that the tokenizer knows although the model learnt to speak English and Chinese only."""
    letters = dict.fromkeys(c for c in text if c.isalpha() and script(c) not in SPOKEN_SCRIPTS)
    if not letters:
        return []
    scripts = listing(dict.fromkeys(map(script, letters)))
    return [
        f"this model learnt to speak English and Chinese: the {scripts} letters {''.join(list(letters)[:20])} may sound wrong"
    ]


def silent_symbols(text: str, language: str) -> list[str]:
    """Symbols and emoji that the spoken form has no word for."""
    symbols = dict.fromkeys(c for c in text if unicodedata.category(c) in ("So", "Sm") and c not in "<>|~")
    if not symbols:
        return []
    frames = ("一{}二", "5{}5") if language == "zh" else ("one {} two", "5{}5")
    plain = [clean_text(frame.format(" "), language) for frame in frames]
    lost = [c for c in symbols if [clean_text(frame.format(f" {c} "), language) for frame in frames] == plain]
    return (
        [f"not spoken, because nobody says them: {' '.join(lost[:10])}{' …' if len(lost) > 10 else ''}"]
        if lost
        else []
    )


def long_words(text: str, seconds: Callable[[str], float]) -> list[str]:
    """Runs of letters and digits without a space: encoded data, a held-down key.

    Args:
        seconds: how long a text takes to speak.

    Raises:
        UserError: one of them takes more than a minute.
    """
    told = []
    for run in re.findall(rf"[^\s\u2e80-\uffff]{{{LONG_WORD},}}", text):
        if sum(map(str.isalnum, run)) < LONG_WORD:  # a ruler
            continue
        takes = seconds(run)
        says = f'"{run[:20]}…" has {len(run):,} characters without a space and takes about {duration(takes)} to speak'
        if takes > WORD_SECONDS:
            raise UserError(f"{says}: put spaces into it or leave it out")
        told.append(says)
    return told


def chinese_share(text: str) -> float:
    """Share of Chinese characters among the characters and Latin words of a text."""
    han, words = len(re.findall(f"[{HAN}]", text)), len(re.findall(r"[A-Za-z][A-Za-z'-]*", text))
    return han / max(1, han + words)


def wrong_voice(text: str, name: str, language: str, voices: dict[str, dict]) -> list[str]:
    """A voice of one language that is asked for more than a little of the other.

    Args:
        language: of the voice.
        voices: those one could choose, as in voices.json.
    """
    chinese = chinese_share(text)
    other, share = ("zh", chinese) if language == "en" else ("en", 1 - chinese)
    if share <= SMALL_SHARE:
        return []
    fitting = [voice for voice, entry in voices.items() if entry["language"] == other]
    advice = f"use --voice {fitting[0]}" if fitting else f"use a recording in {NAMES[other]}"
    return [
        f"{share:.0%} of this text is {NAMES[other]}, but the voice {name} speaks {NAMES[language]} "
        f"and will not be understood there: {advice} for it"
    ]


# ---- the speech ------------------------------------------------------------------------------------------------------


def about_chunks(chunks: Sequence[Chunk], greedy: bool) -> list[str]:
    """What went wrong in speaking, worst first.

    Args:
        greedy: whether another seed would change nothing.
    """
    advice = (
        "rephrase it, or give a --temperature above 0"
        if greedy
        else "try another --seed or a lower --temperature"
    )
    told = []
    for chunk in (c for c in chunks if c.error == "truncated"):
        at = chunks.index(chunk)
        before = f"spoken to the end of {brief(chunks[at - 1].text)}; " if at else ""
        told.append(f"the row limit was reached: {before}not spoken, or not to its end: {brief(chunk.text)}")
    for error, happened in GUARDS.items():
        found = [brief(c.text) for c in chunks if c.error == error]
        told += [
            f"{x} {happened} and was stopped: words of it may be missing or wrong; {advice}"
            for x in found[:SHOWN]
        ]
        told += [f"{len(found) - SHOWN} more parts {happened} and were stopped"] if len(found) > SHOWN else []
    found = [brief(c.text) for c in chunks if c.error == "end"]
    told += [
        f"{x} does not end in silence, so a sound may be cut off or added there; {advice}"
        for x in found[:SHOWN]
    ]
    return told + ([f"{len(found) - SHOWN} more parts do not end in silence"] if len(found) > SHOWN else [])
