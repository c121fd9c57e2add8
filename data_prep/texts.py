"""Sentences of the nano corpus, from text that ships in Debian packages.

| language | source | package | licence |
|---|---|---|---|
| en | World English Bible, cut into clauses | sword-text-web, read with pysword | public domain |
| en | WordNet 3.0 example sentences | wordnet-base | WordNet licence |
| zh | fortune cookies and poems | fortunes-zh | GPL-2+ |

A sentence is one short clause: 3-16 English words or 4-20 Chinese characters, plain words only.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from omnilib.errors import MissingTool

SWORD = Path("/usr/share/sword")
WORDNET = Path("/usr/share/wordnet")
FORTUNES = Path("/usr/share/games/fortunes")

EN_WORDS = (3, 16)
ZH_CHARS = (4, 20)
LEXICON_COUNT = {"en": 50, "zh": 30}  # a word is in the lexicon when the whole text holds it at least so often


def english() -> Iterator[tuple[str, str]]:
    """(source, clause) of the Bible, then of WordNet.

    Raises:
        MissingTool: a text package is not installed.
    """
    try:
        from pysword.modules import SwordModules
    except ImportError:
        raise MissingTool("pysword is missing: pip install -r requirements.lock") from None
    if not (SWORD / "mods.d").is_dir():
        raise MissingTool("the World English Bible is missing: apt-get install sword-text-web")
    if not (WORDNET / "data.verb").is_file():
        raise MissingTool("WordNet is missing: apt-get install wordnet-base")
    modules = SwordModules(str(SWORD))
    bible = modules.get_bible_from_module(next(iter(modules.parse_modules())))
    for verse in bible.get_iter():
        for clause in english_clauses(verse):
            yield "web", clause
    for part in ("noun", "verb", "adj", "adv"):
        text = (WORDNET / f"data.{part}").read_text(encoding="utf-8", errors="replace")
        for example in re.findall(r'"([^"]+)"', text):
            for clause in english_clauses(example):
                yield "wordnet", clause


def english_clauses(text: str) -> list[str]:
    """Cut at sentence ends, then long sentences at commas; keep clauses of plain words, end them with a full stop."""
    text = text.replace("’", "'").replace("‘", "'").replace("—", ", ").replace("--", ", ")
    text = re.sub(r"[“”\"()\[\]]", "", text)
    text = re.sub(r"\s+", " ", text)
    clauses = []
    for sentence in re.split(r"[.!?;:]", text):
        words = sentence.split()
        pieces = [sentence] if len(words) <= EN_WORDS[1] else sentence.split(",")
        for piece in pieces:
            piece = re.sub(r"\s*,\s*", ", ", piece).strip(" ,'")
            words = re.findall(r"[A-Za-z']+", piece)
            plain = re.fullmatch(r"[A-Za-z', ]+", piece) and not re.search(r"[a-z][A-Z]|(^| )'|' |'$", piece)
            if plain and EN_WORDS[0] <= len(words) <= EN_WORDS[1]:
                clauses.append(piece[0].upper() + piece[1:] + ".")
    return clauses


def chinese() -> Iterator[tuple[str, str]]:
    """(source, clause) of the fortunes.

    Raises:
        MissingTool: the package is not installed.
    """
    files = [FORTUNES / name for name in ("chinese", "tang300", "song100")]
    if not files[0].is_file():
        raise MissingTool("the Chinese text is missing: apt-get install fortunes-zh")
    for file in files:
        text = file.read_text(encoding="utf-8", errors="replace")
        text = re.sub(r"\x1b\[[0-9;]*m", "", text)
        for cookie in text.split("\n%"):
            for clause in chinese_clauses(cookie):
                yield f"fortunes-{file.name}", clause


def chinese_clauses(text: str) -> list[str]:
    """Cut at every punctuation mark; keep runs of Chinese characters alone, end them with a full stop."""
    text = re.sub(r"(?<=[\u4e00-\u9fff])\n\s*(?=[\u4e00-\u9fff])", "", text)
    runs = re.split(r"[^\u4e00-\u9fffA-Za-z0-9]+", text)
    return [run + "。" for run in runs if re.fullmatch(rf"[\u4e00-\u9fff]{{{ZH_CHARS[0]},{ZH_CHARS[1]}}}", run)]


def words(text: str, language: str) -> list[str]:
    """Units of the lexicon: lower-case English words, Chinese characters."""
    return re.findall(r"[a-z']+", text.lower()) if language == "en" else re.findall(r"[\u4e00-\u9fff]", text)


def sentences(language: str) -> list[tuple[str, str]]:
    """All distinct (source, sentence) of a language, in text order."""
    seen: set[str] = set()
    result = []
    for source, text in {"en": english, "zh": chinese}[language]():
        key = " ".join(words(text, language))
        if key not in seen:
            seen.add(key)
            result.append((source, text))
    return result


def lexicon(lines: list[tuple[str, str]], language: str) -> set[str]:
    """Words frequent enough to be learnt."""
    counts = Counter(w for _, text in lines for w in words(text, language))
    return {w for w, n in counts.items() if n >= LEXICON_COUNT[language]}
