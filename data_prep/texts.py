"""Sentences of the nano corpus, from text that ships in packages.

| language | source | package | licence |
|---|---|---|---|
| en | World English Bible | apt sword-text-web, read with pysword | public domain |
| en | WordNet 3.0: glosses, examples | apt wordnet-base | WordNet licence |
| en | fortune cookies: quotations, dialogue | apt fortunes | BSD-like |
| en, zh | everyday Mandarin sentences and their English glosses | pip hsk-sentences-audio | CC-BY-SA-4.0 |
| en, zh | small talk | pip chatterbot-corpus | BSD-3-Clause |
| en, zh | templates: numbers, times, names, questions, dialogue | `templates.py` | Apache-2.0 |
| zh | fortune cookies and poems | apt fortunes-zh | GPL-2+ |

`open_lines` gives them all in spoken form, no word filtered. `sentences` gives what the
first plan of the corpus (`lexicon`) reads: short clauses of the Bible, WordNet's examples and the
fortunes, 3-16 English words or 4-20 characters."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from data_prep import everyday, templates
from omnilib.errors import MissingTool, UserError
from omnilib.spoken import clean_text

SWORD = Path("/usr/share/sword")
WORDNET = Path("/usr/share/wordnet")
FORTUNES = Path("/usr/share/games/fortunes")

EN_WORDS = (3, 16)
ZH_CHARS = (4, 20)
LEXICON_COUNT = {
    "en": 50,
    "zh": 30,
}  # a word is in the lexicon when the whole text holds it at least so often


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
    """Cut at sentence ends, then long sentences at commas; keep clauses of plain words, end them with a full
    stop."""
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
    return [
        run + "。" for run in runs if re.fullmatch(rf"[\u4e00-\u9fff]{{{ZH_CHARS[0]},{ZH_CHARS[1]}}}", run)
    ]


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


# ---- open vocabulary: everything the packages hold, in spoken form, no word list decides what is kept ----------------

FORTUNE_FILES = (
    "fortunes", "people", "wisdom", "work", "food", "literature", "kids", "love", "education", "pets", "science",
    "sports", "law", "news", "platitudes", "politics", "men-women", "miscellaneous", "definitions", "humorists",
    "magic", "medicine", "riddles", "ethnic", "art",
)  # fmt: skip
KEPT_BOOK = "mark"  # heard in the test split only: long texts are read from it
MOST_EN, MOST_ZH = 40, 60  # words, characters of a line
EVERYDAY_KINDS = ("everyday", "number", "question", "exclamation", "dialogue", "smalltalk")


@dataclass(frozen=True)
class Line:
    """A sentence in spoken form, where it comes from and what it is like."""

    source: str
    kind: str
    text: str


def hsk() -> list[dict]:
    """Everyday Mandarin sentences, each with an English gloss.

    Raises:
        MissingTool: the package is not installed.
    """
    try:
        from hsk_sentences_audio import load_sentences
    except ImportError:
        raise MissingTool("the everyday sentences are missing: pip install hsk-sentences-audio") from None
    return load_sentences()


def small_talk(language: str) -> Iterator[str]:
    """Turns of chatterbot-corpus, code and lists left out.

    Raises:
        MissingTool: the package is not installed.
    """
    try:
        import chatterbot_corpus
    except ImportError:
        raise MissingTool("the small talk is missing: pip install chatterbot-corpus") from None
    import yaml

    folder = Path(chatterbot_corpus.__file__).parent / "data" / {"en": "english", "zh": "chinese"}[language]
    for path in sorted(folder.glob("*.yml")):
        if path.stem in ("coding", "tech_support"):
            continue
        for talk in yaml.safe_load(path.read_text(encoding="utf-8"))["conversations"]:
            turns = [talk] if isinstance(talk, str) else talk
            yield from (str(turn) for turn in turns if "```" not in str(turn))


def fortunes(names: Iterable[str], package: str) -> Iterator[str]:
    """Cookies of /usr/share/games/fortunes, without their authors.

    Raises:
        MissingTool: the package is not installed.
    """
    for name in names:
        if not (FORTUNES / name).is_file():
            raise MissingTool(f"the quotations are missing: apt-get install {package}")
        text = (FORTUNES / name).read_text(encoding="utf-8", errors="replace")
        for cookie in re.sub(r"\x1b\[[0-9;]*m|.\x08", "", text).split("\n%"):
            yield re.sub(r"\n\s+--.*", "", cookie, flags=re.S).lstrip("%").strip()


def glosses() -> Iterator[tuple[str, str]]:
    """(kind, sentence) of WordNet: "word, or synonym: gloss", and its examples.

    Raises:
        MissingTool: WordNet is not installed.
    """
    if not (WORDNET / "data.verb").is_file():
        raise MissingTool("WordNet is missing: apt-get install wordnet-base")
    for part in ("noun", "verb", "adj", "adv"):
        for line in (WORDNET / f"data.{part}").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("  "):
                continue
            head, _, gloss = line.partition("|")
            fields = head.split()
            names = [
                re.sub(r"\(\w+\)$", "", w).replace("_", " ")
                for w in fields[4 : 4 + 2 * int(fields[3], 16) : 2]
            ]
            yield "gloss", f"{', '.join(names[:3])}: {gloss.split(chr(34))[0].strip(' ;')}"
            for example in re.findall(r'"([^"]+)"', gloss):
                yield "example", example


def bible() -> Iterator[tuple[bool, str]]:
    """Verses of the World English Bible: those of KEPT_BOOK, then all (a sentence that stands twice counts as
    the first).

    Raises:
        MissingTool: it is not installed.
    """
    try:
        from pysword.modules import SwordModules
    except ImportError:
        raise MissingTool("pysword is missing: pip install -r requirements.lock") from None
    if not (SWORD / "mods.d").is_dir():
        raise MissingTool("the World English Bible is missing: apt-get install sword-text-web")
    modules = SwordModules(str(SWORD))
    book = modules.get_bible_from_module(next(iter(modules.parse_modules())))
    yield from ((True, verse) for verse in book.get_iter(books=[KEPT_BOOK]))
    yield from ((False, verse) for verse in book.get_iter())


def sentences_of(text: str, language: str, most: int) -> list[str]:
    """Pieces of at most about `most` words or characters: sentences, long ones cut at commas."""
    text = " ".join(text.replace("’", "'").split())
    ends = r"(?<=[.!?])[\"'”]?\s+(?=[\"'“A-Z0-9])" if language == "en" else r"(?<=[。！？])"
    pieces = []
    for sentence in filter(None, re.split(ends, text)):
        if len(words(sentence, language)) <= most:
            pieces.append(sentence)
            continue
        part = ""
        for clause in re.split(r"(?<=[,;:，；：])\s*", sentence):
            if part and len(words(part + clause, language)) > most:
                pieces.append(part)
                part = ""
            part = f"{part} {clause}".strip() if language == "en" else part + clause
        pieces.append(part)
    return pieces


def raw_lines(language: str, drawn: int) -> Iterator[tuple[str, str, str]]:
    """(source, kind, written text) of every source, the everyday ones first; `drawn` sentences come from
    templates."""
    for text in everyday.LINES[language]:
        yield "omnilib", "newcomer", text
    if language == "en":
        for item in hsk():
            yield "hsk", "everyday", item["translation"]["en"]
        for turn in small_talk("en"):
            yield "chatterbot", "smalltalk", turn
    else:
        for item in hsk():
            yield "hsk", "everyday", item["chinese"]
        for turn in small_talk("zh"):
            yield "chatterbot", "smalltalk", turn
    for kind, text in islice(templates.sentences(language), drawn):
        yield "templates", kind, text
    if language == "en":
        for cookie in fortunes(FORTUNE_FILES, "fortunes"):
            for piece in sentences_of(cookie, "en", MOST_EN):
                yield "fortunes", "quote", piece
        for kept, verse in bible():
            for piece in sentences_of(verse, "en", MOST_EN):
                yield "web", "chapter" if kept else "bible", piece
        for kind, text in glosses():
            for piece in sentences_of(text, "en", MOST_EN):
                yield "wordnet", kind, piece
    else:
        for name in ("chinese", "tang300", "song100"):
            for cookie in fortunes([name], "fortunes-zh"):
                body = re.sub(r"(?s)^.*?作者：[^\n]*\n", "", cookie) if name != "chinese" else cookie
                body = re.sub(r"(?<=[\u4e00-\u9fff，。])\s+(?=[\u4e00-\u9fff])", "", body)
                for piece in sentences_of(body, "zh", MOST_ZH):
                    yield f"fortunes-{name}", "quote" if name == "chinese" else "poem", piece


def open_lines(language: str, drawn: int) -> list[Line]:
    """All distinct sentences of a language in spoken form. No word is too rare; only what cannot be spoken is
    left out: nothing but marks, over-long runs without punctuation, or another script than the
    language's.

    Raises:
        MissingTool: a text package is not installed.
    """
    seen: set[str] = set()
    found = []
    most, script = (MOST_EN, r"[A-Za-zÀ-ɏ]") if language == "en" else (MOST_ZH, r"[\u4e00-\u9fff]")
    foreign = r"[^\W\d_A-Za-zÀ-ɏ]" if language == "en" else r"[A-Za-z\u3040-\u30ff\u0370-\u04ff]"
    for source, kind, written in raw_lines(language, drawn):
        try:
            text = clean_text(written, language)
        except UserError:
            continue
        units = words(text, language)
        if not 1 <= len(units) <= most + 10 or not re.search(script, text) or re.search(foreign, text):
            continue
        text = text[0].upper() + text[1:]
        key = " ".join(units)
        if key not in seen:
            seen.add(key)
            found.append(Line(source, kind, text))
    return found
