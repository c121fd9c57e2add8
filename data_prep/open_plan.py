"""The plan of the natural corpus: who says what, in which split. No sound yet.

    raw en         flite and piper, resampled: many hours, any words, plain sound
    synthetic en   Kokoro: some 250 speakers, everyday sentences first
    synthetic zh   Kokoro: some 60 speakers

A sentence belongs to one split, decided by a hash of its words, in every part and language. Whole base
voices (kokoro.HELD_OUT) are heard in the test split only, also as parts of mixtures. The order of the
plan is the order of the building: test and development sentences first, then a mixture in which every
beginning is a small corpus."""

import hashlib
import itertools
import random
import re
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass

from data_prep import kokoro, texts
from data_prep.speakers import SPEAKERS
from data_prep.texts import Line

HOURS = {"raw": 72.0, "en": 10.4, "zh": 5.0}  # of training speech
DRAWN = {"en": 3200, "zh": 1900}  # template sentences
TEST_PERCENT = {
    "everyday": 8,
    "smalltalk": 8,
    "number": 8,
    "question": 8,
    "exclamation": 8,
    "dialogue": 8,
    "newcomer": 100,
    "chapter": 100,
}
TEST_REST, DEV = 3, 2  # percent
# Share of a language's synthetic training speech, by kind of text.
MIX = {
    "en": {
        "everyday": 24, "number": 7, "question": 6, "exclamation": 4, "dialogue": 7, "smalltalk": 8,
        "quote": 18, "example": 10, "gloss": 11, "bible": 5,
    },
    "zh": {
        "everyday": 46, "number": 9, "question": 6, "exclamation": 3, "dialogue": 5, "smalltalk": 9,
        "quote": 14, "poem": 8,
    },
}  # fmt: skip
WIDE_SPEAKERS = {"en": 225, "zh": 55}
LONG_SPEAKERS = {"en": 22, "zh": 9}  # speak LONG_SECONDS each, so that ten-minute joins of one speaker exist
LONG_SECONDS = 750.0
FACTORS = {"en": (0.88, 1.12), "zh": (0.92, 1.08)}  # resampling of wide speakers
TEST_EVERYDAY = {"en": 300, "zh": 160}
TEST_MIXTURES = {"en": 6, "zh": 4}
RAW_VOICES = {"rms": 0.27, "slt": 0.27, "awb": 0.2, "kal16": 0.21, "joe": 0.05}  # share of the raw hours
RAW_FACTORS = (0.82, 0.88, 0.94, 1.0, 1.06, 1.12, 1.18, 1.24, 1.3)
SHARD = {"synthetic": 32, "raw": 100}  # lines
KNOWN = 5  # a word is in the lexicon when the training text holds it at least so often
LICENCES = {
    "omnilib": "Apache-2.0",
    "hsk": "CC-BY-SA-4.0",
    "chatterbot": "BSD-3-Clause",
    "templates": "Apache-2.0",
    "fortunes": "BSD-like (fortune-mod)",
    "web": "public domain",
    "wordnet": "WordNet 3.0",
    "fortunes-chinese": "GPL-2.0-or-later",
    "fortunes-tang300": "GPL-2.0-or-later",
    "fortunes-song100": "GPL-2.0-or-later",
}


@dataclass(frozen=True)
class Speaker:
    """An engine's voice resampled by a factor. `seen`: heard in training."""

    name: str
    engine: str
    voice: str
    factor: float = 1.0
    seen: bool = True


def key_of(text: str) -> int:
    """A stable random number of a text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def split_of(line: Line, language: str) -> str:
    """Decided by the words of the sentence alone."""
    bucket = key_of(" ".join(texts.words(line.text, language)) + "split") % 100
    test = TEST_PERCENT.get(line.kind, TEST_REST)
    return "test" if bucket < test else "dev" if bucket < test + DEV else "train"


def seconds_of(text: str, language: str, factor: float = 1.0) -> float:
    """About how long a sentence lasts (Kokoro, English: 15 characters a second)."""
    return (0.3 + len(text) * (0.066 if language == "en" else 0.19)) / factor


# ---- speakers --------------------------------------------------------------------------------------------------------


def mixture(rng: random.Random, timbres: list[str], prosodies: list[str]) -> str:
    """A wide speaker: two timbres, one prosody."""
    first, second = rng.sample(timbres, 2)
    weight = rng.randint(30, 70)
    return f"{first}:{weight / 100:.2f}+{second}:{1 - weight / 100:.2f}>{rng.choice(prosodies)}"


def plain_speakers(language: str, seen: bool) -> list[Speaker]:
    """The speakers of the lexicon plan: what speaks when Kokoro is not there."""
    chosen = [s for s in SPEAKERS if s.language == language and bool(s.lines) == seen]
    return [Speaker(s.name, s.engine, s.voice, s.factor, seen) for s in chosen]


def training_speakers(language: str, voices: list[str] | None) -> list[Speaker]:
    """Base voices and wide speakers of a language, mixed; the first ones speak longest."""
    if not voices:
        return plain_speakers(language, seen=True)
    rng = random.Random(f"speakers {language}")
    timbres = [v for v in voices if v not in kokoro.HELD_OUT and v not in kokoro.ODD]
    own = [v for v in timbres if v[0] in ("ab" if language == "en" else "z")]
    speakers = [Speaker(v, "kokoro", v) for v in own]
    for number in range(WIDE_SPEAKERS[language]):
        factor = round(rng.uniform(*FACTORS[language]), 2)
        speakers.append(Speaker(f"{language}-{number:03d}", "kokoro", mixture(rng, timbres, own), factor))
    rng.shuffle(speakers)
    return speakers


def test_speakers(language: str, voices: list[str] | None) -> list[Speaker]:
    """The held-out base voices, then mixtures of held-out voices alone."""
    if not voices:
        return plain_speakers(language, seen=False)
    rng = random.Random(f"test speakers {language}")
    own = [v for v in kokoro.HELD_OUT if v[0] in ("ab" if language == "en" else "z")]
    pairs = (
        list(itertools.combinations(own, 2))
        if language == "en"
        else [(own[0], own[1])] * 2 + [("af_kore", own[0]), ("bm_george", own[1])]
    )
    speakers = [Speaker(v, "kokoro", v, seen=False) for v in own]
    for number, pair in enumerate(pairs[: TEST_MIXTURES[language]]):
        prosody = own[number % len(own)] if language == "zh" else pair[number % 2]
        voice = f"{pair[0]}:0.50+{pair[1]}:0.50>{prosody}"
        speakers.append(
            Speaker(
                f"{language}-unseen-{number}", "kokoro", voice, round(rng.uniform(0.92, 1.08), 2), seen=False
            )
        )
    return speakers


def raw_speakers(voice: str) -> list[Speaker]:
    """An engine voice at every factor: one speaker each."""
    factors = RAW_FACTORS if voice != "joe" else (0.88, 1.0, 1.12)
    return [
        Speaker(f"{voice}_{round(f * 100):03d}", "piper" if voice == "joe" else "flite", voice, f)
        for f in factors
    ]


# ---- lines -----------------------------------------------------------------------------------------------------------


def mixed(lines: list[Line], shares: dict[str, int]) -> Iterator[Line]:
    """Lines in an order in which every beginning has about these shares of length; a kind that is used up is
    left out."""
    queues = {kind: deque(line for line in lines if line.kind == kind) for kind in shares}
    spent = dict.fromkeys(shares, 0.0)
    while left := [kind for kind, queue in queues.items() if queue]:
        kind = min(left, key=lambda k: (spent[k] / shares[k], k))
        line = queues[kind].popleft()
        spent[kind] += len(line.text)
        yield line


def paragraphs(lines: Iterator[Line], language: str) -> Iterator[Line]:
    """Every fourth short sentence is spoken in one breath with the next one or two."""
    for line in lines:
        text, key = line.text, key_of(line.text + "paragraph")
        if key % 4 == 0 and len(text) < (60 if language == "en" else 15):
            together = [line, *itertools.islice(lines, 1 + key // 4 % 2)]
            text = (" " if language == "en" else "").join(each.text for each in together)
            source = " + ".join(sorted({each.source for each in together}))
            if len(texts.words(text, language)) <= (60 if language == "en" else 70):
                yield Line(source, line.kind, text)
                continue
        yield line


def record(
    number: int,
    split: str,
    part: str,
    language: str,
    line: Line,
    speaker: Speaker,
    known: set[str],
    chosen: str = "",
) -> dict:
    """One line of the plan."""
    return {
        "id": f"{speaker.name}-{split}-{number:05d}",
        "text": line.text,
        "language": language,
        "speaker": speaker.name,
        "source": line.source,
        "licence": " + ".join(sorted({LICENCES[source] for source in line.source.split(" + ")})),
        "split": split,
        "part": part,
        "kind": line.kind,
        "set": chosen,
        "in_lexicon": all(word in known for word in texts.words(line.text, language)),
        "seen_speaker": speaker.seen,
        "engine": speaker.engine,
        "voice": speaker.voice,
        "factor": speaker.factor,
    }


def tests(language: str, lines: list[Line], voices: list[str] | None, known: set[str]) -> list[dict]:
    """Test and development records: `everyday` by unseen speakers, other text by them, everyday text by seen
    speakers, dev."""
    unseen, seen = test_speakers(language, voices), training_speakers(language, voices)
    pools = defaultdict(list)
    for line in lines:
        split = split_of(line, language)
        plain = line.kind in texts.EVERYDAY_KINDS or line.kind == "newcomer"
        if line.kind != "chapter":
            pools[split, "everyday" if plain else "open"].append(line)
    everyday = sorted(
        pools["test", "everyday"], key=lambda line: (line.kind != "newcomer", key_of(line.text))
    )
    newcomer = [line for line in everyday if line.kind == "newcomer"]
    rest = list(
        mixed(
            [line for line in everyday if line.kind != "newcomer"],
            {k: v for k, v in MIX[language].items() if k in texts.EVERYDAY_KINDS},
        )
    )
    chosen = newcomer + rest[: TEST_EVERYDAY[language] - len(newcomer)]
    chosen.sort(key=lambda line: key_of(line.text + "order"))
    base, mixtures = [s for s in unseen if ">" not in s.voice], [s for s in unseen if ">" in s.voice]
    plan: list[dict] = []
    counters: Counter[tuple[str, str]] = Counter()

    def add(split: str, line: Line, speaker: Speaker, name: str) -> None:
        plan.append(
            record(counters[speaker.name, split], split, "synthetic", language, line, speaker, known, name)
        )
        counters[speaker.name, split] += 1

    for index, line in enumerate(chosen):  # three of five in base voices
        group = base if index % 5 < 3 or not mixtures else mixtures
        add("test", line, group[index % len(group)], "everyday")
    after = iter(rest[TEST_EVERYDAY[language] - len(newcomer) :])
    other = iter(sorted(pools["test", "open"], key=lambda line: key_of(line.text + "open")))
    for speaker in unseen:
        for line in itertools.islice(other, 10):
            add("test", line, speaker, "open")
    for speaker in seen[-20:]:
        for line in itertools.islice(after, 4):
            add("test", line, speaker, "seen")
    dev = iter(
        sorted(
            pools["dev", "everyday"] + pools["dev", "open"][:200], key=lambda line: key_of(line.text + "dev")
        )
    )
    for speaker in seen[:: max(1, len(seen) // 40)][:40]:
        for line in itertools.islice(dev, 4):
            add("dev", line, speaker, "dev")
    return plan


def synthetic(
    language: str, lines: list[Line], voices: list[str] | None, known: set[str], hours: float
) -> list[dict]:
    """Training records of Kokoro, or of the plain engines in its place."""
    speakers = training_speakers(language, voices)
    pool = sorted(
        (line for line in lines if split_of(line, language) == "train"), key=lambda line: key_of(line.text)
    )
    stream, plan = paragraphs(mixed(pool, MIX[language]), language), []
    long = LONG_SPEAKERS[language] if voices else 0
    share = min(1.0, hours / HOURS[language])
    rest = max(60.0, (HOURS[language] * 3600 - long * LONG_SECONDS) / (len(speakers) - long))
    for index, speaker in enumerate(speakers):
        wanted, number = (LONG_SECONDS if index < long else rest) * share, 0
        while wanted > 0 and (line := next(stream, None)):
            wanted -= seconds_of(line.text, language, speaker.factor)
            plan.append(record(number, "train", "synthetic", language, line, speaker, known))
            number += 1
    return plan


def raw(lines: list[Line], known: set[str], hours: float) -> list[dict]:
    """Training records of flite and piper: half of the time lines that bring a new word, half any line."""
    pool = sorted(
        (line for line in lines if split_of(line, "en") == "train"),
        key=lambda line: key_of(line.text + "raw"),
    )
    heard: set[str] = set()
    new, old = [], []
    for line in pool:
        words = set(texts.words(line.text, "en"))
        (new if words - heard else old).append(line)
        heard |= words
    both = itertools.chain.from_iterable(itertools.zip_longest(new, old))
    stream, plan = (line for line in both if line), []
    for voice, share in RAW_VOICES.items():
        speakers, wanted, count = raw_speakers(voice), hours * 3600 * share, 0
        while wanted > 0 and (line := next(stream, None)):
            speaker = speakers[count % len(speakers)]
            wanted -= seconds_of(line.text, "en", speaker.factor)
            plan.append(record(count // len(speakers), "train", "raw", "en", line, speaker, known))
            count += 1
    return plan


def plan(hours: dict[str, float] | None = None, voices: list[str] | None = None) -> list[dict]:
    """All records. Without `voices` (no Kokoro packages) flite, piper and gcin speak the synthetic part too.

    Args:
        hours: training hours of "raw", "en", "zh"; HOURS when None.
        voices: names of Kokoro's voices.
    """
    hours, records = hours or HOURS, []
    for language in ("en", "zh"):
        lines = texts.open_lines(language, DRAWN[language])
        counts = Counter(
            w
            for line in lines
            if split_of(line, language) == "train"
            for w in texts.words(line.text, language)
        )
        known = {word for word, count in counts.items() if count >= KNOWN}
        records += tests(language, lines, voices, known)
        records += synthetic(language, lines, voices, known, hours[language])
        if language == "en":
            records += raw(lines, known, hours["raw"])
    return records


def long_texts(voices: list[str] | None) -> list[dict]:
    """Texts to be spoken in one go: ten of 300-500 words, two of about ten minutes, one of an hour, each with
    the speaker to clone.

    Half are read from the kept book, in its order; half are test sentences of all kinds, numbers and
    dialogue among them."""
    lines = texts.open_lines("en", DRAWN["en"])
    book = [line.text for line in lines if line.kind == "chapter"]
    kinds = (*texts.EVERYDAY_KINDS, "quote", "example")
    loose = [
        line.text
        for line in lines
        if line.kind in kinds and split_of(line, "en") == "test" and len(line.text) > 20
    ]
    loose.sort(key=lambda text: key_of(text + "long"))
    rng, sources = random.Random("long texts"), {"book": iter(book), "mixed": iter(loose)}
    speakers = [s.name for s in test_speakers("en", voices)]
    wanted = [(f"long-en-{n:02d}", ("book", "mixed")[n % 2], rng.randint(300, 460)) for n in range(10)]
    wanted += [
        ("minutes10-en-00", "book", 1600),
        ("minutes10-en-01", "mixed", 1600),
        ("minutes60-en-00", "book", 9600),
    ]
    result = []
    for index, (name, source, count) in enumerate(wanted):
        parts, words = [], 0
        while words < count and (text := next(sources[source], None)):
            parts.append(text if re.search(r"[.!?]$", text) else text.rstrip(",;:") + ".")
            words += len(texts.words(text, "en"))
        result.append(
            {
                "id": name,
                "language": "en",
                "text": " ".join(parts),
                "words": words,
                "kind": source,
                "speaker": speakers[index % len(speakers)],
            }
        )
    return result


def shards_of(records: list[dict]) -> list[tuple[str, list[dict]]]:
    """(name, records) in building order; a name holds a hash of what is spoken, so another plan never takes
    up its shards."""
    groups: dict[tuple[str, str, str], list[dict]] = defaultdict(list)
    for item in records:
        groups[item["part"], item["speaker"], item["split"]].append(item)
    shards = []
    for (part, speaker, split), items in groups.items():
        for index in range(0, len(items), SHARD[part]):
            some = items[index : index + SHARD[part]]
            said = hashlib.sha256(
                "\n".join(
                    f"{r['id']} {r['engine']} {r['voice']} {r['factor']} {r['text']}" for r in some
                ).encode()
            ).hexdigest()
            name = f"{part}-{speaker}-{split}-{index // SHARD[part]:03d}-{said[:8]}"
            place = key_of(name) / 2**64
            place = (
                0.1 + 0.3 * place if part == "raw" else place
            )  # the raw part is cheap and needed first: done by 40 %
            shards.append(
                (
                    (
                        split == "train",
                        {"everyday": 0, "open": 1}.get(some[0]["set"], 2) if split != "train" else 0,
                        place,
                    ),
                    name,
                    some,
                )
            )
    return [(name, items) for _, name, items in sorted(shards, key=lambda s: s[0])]
