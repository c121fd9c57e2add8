"""Samples for the brain whose answer is known: questions, pictures and videos, asked by voice.

    python -m data_prep.brain --out data/brain --count 500 --speak flite --voice rms
    python -m data_prep.brain --out data/brain --count 2000 --speak kokoro --hours 0.4 --workers 2 \\
        --corpus data/ears/manifest.jsonl --transcribe 14000 --long 60

| task | asks | truth |
|---|---|---|
| arithmetic, spelling, capital, opposite, order, gloss | words alone | rules, `brain_facts`, HSK glosses |
| emoji, emoji_zh | a Noto emoji | its name in English or Chinese, from the package emoji |
| read, chart | a drawn word or number, bars | what was drawn |
| shapes | a picture of easy-vqa | its answer |
| video_count, video_last, video_move | emoji that appear or move | how they were placed |
| transcribe | a spoken question | its words |
| needle | a spoken secret in long speech (`brain_long`) | the secret |

Writes `<out>.jsonl`, the manifest of `omnilib.train.brain_samples`, with media below `<out>/`, and
`<out>_needles.jsonl`. A row also holds its `question` in words, so the same sample can be asked typed, or
without its media. What is missing (an engine, a font, a package) is said in one line, and the rest is
written.

The split is decided by a hash of what is asked, so no question stands in two. Names of emoji are all in
training: held out are drawings, with another size, place and ground. Everything is a function of the
arguments: two runs give equal bytes.
"""

import hashlib
import random
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from data_prep.brain_facts import CAPITALS, COLOURS, OPPOSITES, WORDS
from data_prep.brain_long import long_plan, places, secret, write_long
from data_prep.brain_voices import Voices, admit, pick, speak_all
from data_prep.texts import hsk
from omnilib import options
from omnilib.data import read_manifest, write_manifest
from omnilib.errors import DataError, MissingTool, UserError

EMOJI_FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
EMOJI_SIZE = 109  # the only size in the font
SIDE = 168  # pixels of a picture: 36 positions
FRAME_MS = 500
DRAWINGS = 10  # of an emoji, at least
TYPED_EVERY = 4  # every fourth spoken question is also written typed
LONGEST = 20.0  # seconds of a recording to transcribe
TRANSCRIBE = "Write down what is said."


@dataclass
class Item:
    """A question with its answer. `draw` gives the frames of its picture (one) or video (several)."""

    task: str
    key: str  # what is asked: decides the split
    question: str
    answer: str
    language: str = "en"
    draw: Callable[[], list] | None = None
    copy: str = ""  # a picture that is there already
    split: str = ""

    name: str = field(init=False)  # of its files

    def __post_init__(self) -> None:
        self.split = self.split or split_of(f"{self.task} {self.key}")
        digest = hashlib.sha256(f"{self.task} {self.key} {self.question}".encode()).hexdigest()
        self.name = f"{self.task}-{digest[:12]}"


def split_of(key: str) -> str:
    """train (80 %), dev or test (10 % each), decided by the key alone."""
    place = hashlib.sha256(key.encode()).digest()[0]
    return "train" if place < 205 else "dev" if place < 230 else "test"


# ---- words alone -------------------------------------------------------------------------------------------


def arithmetic() -> Iterator[Item]:
    signs = {"plus": lambda a, b: a + b, "minus": lambda a, b: a - b, "times": lambda a, b: a * b}
    for sign, result in signs.items():
        for a in range(1, 21):
            for b in range(1, 21):
                if sign == "plus" or (sign == "minus" and a >= b) or (sign == "times" and max(a, b) <= 12):
                    yield Item("arithmetic", f"{a} {sign} {b}", f"What is {a} {sign} {b}?", str(result(a, b)))


def spelling() -> Iterator[Item]:
    for word in WORDS:
        yield Item("spelling", word, f"How do you spell {word}?", " ".join(word.upper()))


def capitals() -> Iterator[Item]:
    for country, city in CAPITALS.items():
        yield Item("capital", country, f"What is the capital of {country}?", city)


def opposites() -> Iterator[Item]:
    meanings = [word for pair in OPPOSITES for word in pair]
    for pair in OPPOSITES:
        for word, other in (pair, pair[::-1]):
            if meanings.count(word) == 1:  # "light" has two
                yield Item("opposite", "-".join(sorted(pair)), f"What is the opposite of {word}?", other)


def order(rng: random.Random) -> Iterator[Item]:
    while True:
        words, place = rng.sample(WORDS, rng.choice((3, 4))), rng.choice(("first", "last"))
        question = f"Listen to these words: {', '.join(words)}. Which word came {place}?"
        yield Item("order", " ".join(words), question, words[0 if place == "first" else -1])


def glosses() -> Iterator[Item]:
    seen: dict[str, str] = {}
    for sentence in hsk():
        for token in sentence["tokens"]:
            gloss = re.sub(r"\(.*?\)|\[.*?\]", "", token.get("gloss_en") or "")
            gloss = re.split("[;,]", gloss)[0].strip()
            if re.fullmatch(r"[a-z][a-z ]{1,18}", gloss):
                seen.setdefault(token["word"], gloss)
    for word, gloss in seen.items():
        yield Item("gloss", word, f"“{word}”用英语怎么说？", gloss, "zh")


# ---- pictures ----------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def emoji_names() -> list[tuple[str, str, str]]:
    """(character, English name, Chinese name) of simple emoji.

    Raises:
        MissingTool: font or package is not installed.
    """
    try:
        from emoji import EMOJI_DATA, config
    except ImportError:
        raise MissingTool("names of emoji are missing: pip install --no-deps emoji") from None
    if not EMOJI_FONT.is_file():
        raise MissingTool("the emoji font is missing: apt-get install fonts-noto-color-emoji")
    config.load_language("zh")
    found = []
    for character, about in sorted(EMOJI_DATA.items()):
        name, chinese = about["en"].strip(":").replace("_", " "), about.get("zh", "").strip(":")
        simple = len(character) == 1 and about["E"] <= 12 and about["status"] == 2
        short = re.fullmatch(r"[a-z]{3,10}( [a-z]{3,10})?", name) and re.fullmatch(
            r"[\u4e00-\u9fff]{1,5}",
            chinese,
        )
        if simple and short:
            found.append((character, name, chinese))
    return found


@lru_cache(maxsize=512)
def emoji_image(character: str):
    """An emoji in its font's own size, RGBA."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(str(EMOJI_FONT), EMOJI_SIZE)
    image = Image.new("RGBA", (136, 128), (0, 0, 0, 0))
    ImageDraw.Draw(image).text((0, 0), character, font=font, embedded_color=True)
    return image


def ground(rng: random.Random):
    """An empty picture of a light colour."""
    from PIL import Image

    return Image.new("RGB", (SIDE, SIDE), tuple(rng.randint(215, 255) for _ in range(3)))


def paste(image, character: str, x: int, y: int, size: int) -> None:
    """Put an emoji on a picture, its upper left corner at (x, y)."""
    small = emoji_image(character).resize((size, size))
    image.paste(small, (x, y), small)


def emoji_picture(character: str, seed: str) -> list:
    rng = random.Random(seed)
    image, size = ground(rng), rng.randint(90, 150)
    paste(image, character, rng.randint(0, SIDE - size), rng.randint(0, SIDE - size), size)
    return [image]


def emoji(rng: random.Random, count: int) -> Iterator[Item]:
    """Each name drawn at least DRAWINGS times, so that some drawings are held out."""
    names = rng.sample(emoji_names(), min(len(emoji_names()), max(1, count // DRAWINGS)))
    for variant in range(1_000_000):
        for character, name, chinese in rng.sample(names, len(names)):
            key = f"{character} {variant}"
            draw = lambda c=character, k=key: emoji_picture(c, k)  # noqa: E731
            split = "train" if variant == 0 else ""  # every name is heard of in training
            yield Item("emoji", key, "What is in the picture?", name, draw=draw, split=split)
            yield Item("emoji_zh", key, "图片里是什么？", chinese, "zh", draw=draw, split=split)


def read_picture(text: str) -> list:
    from PIL import ImageDraw, ImageFont

    rng = random.Random(text)
    image = ground(rng)
    font = ImageFont.load_default(rng.randint(26, 34))
    place = (rng.randint(4, 24), rng.randint(10, SIDE - 50))
    dark = sorted(set(COLOURS) - {"yellow"})  # all can be read on a light ground
    ImageDraw.Draw(image).text(place, text, fill=COLOURS[rng.choice(dark)], font=font)
    return [image]


def reading(rng: random.Random) -> Iterator[Item]:
    for word in WORDS:
        yield Item("read", word, "Which word is written here?", word, draw=lambda w=word: read_picture(w))
    while True:
        number = str(rng.randint(10, 99_999))
        yield Item(
            "read",
            number,
            "Which number is written here?",
            number,
            draw=lambda n=number: read_picture(n),
        )


def chart_picture(bars: dict[str, int]) -> list:
    from PIL import ImageDraw

    rng = random.Random(str(bars))
    image = ground(rng)
    pen, width = ImageDraw.Draw(image), (SIDE - 16) // len(bars)
    for i, (colour, height) in enumerate(bars.items()):
        left = 8 + i * width
        pen.rectangle((left + 4, SIDE - 8 - height, left + width - 4, SIDE - 8), fill=COLOURS[colour])
    pen.line((4, SIDE - 8, SIDE - 4, SIDE - 8), fill=(0, 0, 0), width=2)
    return [image]


def charts(rng: random.Random) -> Iterator[Item]:
    while True:
        count = rng.randint(2, 5)
        heights = rng.sample(range(20, 150, 18), count)  # far enough apart to be seen
        bars = dict(zip(rng.sample(sorted(COLOURS), count), heights, strict=True))
        by_height = sorted(bars, key=bars.get)
        asks = {
            "Which bar is the tallest?": by_height[-1],
            "Which bar is the shortest?": by_height[0],
            "How many bars are there?": str(count),
        }
        question = rng.choice(sorted(asks))
        yield Item("chart", str(bars), question, asks[question], draw=lambda b=bars: chart_picture(b))


def shapes(rng: random.Random) -> Iterator[Item]:
    """Pictures and questions of easy-vqa; its own test pictures are ours too.

    Raises:
        MissingTool: not installed.
    """
    try:
        import easy_vqa
    except ImportError:
        raise MissingTool("easy-vqa is missing: pip install --no-deps easy-vqa") from None
    rows = []
    for split in ("train", "test"):
        paths = getattr(easy_vqa, f"get_{split}_image_paths")()
        questions = getattr(easy_vqa, f"get_{split}_questions")()
        for question, answer, image in zip(*questions, strict=True):
            own = "test" if split == "test" else "dev" if image % 10 == 0 else "train"
            rows.append(
                (
                    f"{split} {image} {question}",
                    f"{question[0].upper()}{question[1:]}",
                    answer,
                    paths[image],
                    own,
                )
            )
    rng.shuffle(rows)
    for key, question, answer, path, split in rows:
        yield Item("shapes", key, question, answer, copy=path, split=split)


# ---- videos ------------------------------------------------------------------------------------------------


def placed_frames(stages: list[list[tuple[str, int, int]]], seed: str) -> list:
    """A frame for each list of (emoji, x, y)."""
    frames = []
    for stage in stages:
        frame = ground(random.Random(seed))
        for character, x, y in stage:
            paste(frame, character, x, y, 52)
        frames.append(frame)
    return frames


def videos(rng: random.Random) -> Iterator[Item]:
    places = [(x, y) for y in (2, 58, 114) for x in (2, 58, 114)]
    names = emoji_names()
    while True:
        count = rng.randint(2, 4)
        chosen, where = rng.sample(names, count), rng.sample(places, count)
        shown = [(c[0], *p) for c, p in zip(chosen, where, strict=True)]
        growing = [shown[: i + 1] for i in range(count)]
        key = "".join(c[0] for c in chosen) + str(where)
        draw = lambda s=growing, k=key: placed_frames(s, k)  # noqa: E731
        yield Item("video_count", key, "How many things are there at the end?", str(count), draw=draw)
        yield Item("video_last", key, "What appears last?", chosen[-1][1], draw=draw)
        way, line = rng.choice(("left", "right")), rng.choice((2, 58, 114))
        steps = [2, 40, 77, 114] if way == "right" else [114, 77, 40, 2]
        moving = [[(chosen[0][0], x, line)] for x in steps]
        key = f"{chosen[0][0]} {way} {line}"
        draw = lambda s=moving, k=key: placed_frames(s, k)  # noqa: E731
        yield Item("video_move", key, "Does it move left or right?", way, draw=draw)


# ---- together ----------------------------------------------------------------------------------------------


def families(count: int, seed: int) -> list[tuple[str, Iterator[Item]]]:
    """All tasks by name, each with its own generator of random numbers."""
    rng = lambda name: random.Random(f"{seed} {name}")  # noqa: E731
    whole = dict(
        arithmetic=arithmetic,
        spelling=spelling,
        capitals=capitals,
        opposites=opposites,
        glosses=glosses,
    )
    drawn = dict(
        order=order,
        emoji=lambda r: emoji(r, count),
        reading=reading,
        charts=charts,
        shapes=shapes,
        videos=videos,
    )
    shuffled = [(name, mixed(make, rng(name))) for name, make in whole.items()]
    return shuffled + [(name, make(rng(name))) for name, make in drawn.items()]


def mixed(make: Callable[[], Iterator[Item]], rng: random.Random) -> Iterator[Item]:
    """A finite source, shuffled by its own seed."""
    every = list(make())
    yield from rng.sample(every, len(every))


def items(count: int, seed: int) -> tuple[list[Item], list[str]]:
    """About `count` items of each task, no question twice, and what could not be made."""
    result, missing = [], []
    for name, source in families(count, seed):
        found: dict[str, Item] = {}
        tasks: dict[str, int] = {}
        try:
            for tried, item in enumerate(source, 1):
                if item.name not in found and tasks.get(item.task, 0) < count:
                    found[item.name] = item
                    tasks[item.task] = tasks.get(item.task, 0) + 1
                if tried > 20 * count + 20 or (min(tasks.values()) >= count and tried > 3):
                    break
        except MissingTool as error:
            missing.append(f"{name} left out: {error}")
        result += found.values()
    return result, missing


def media_of(item: Item, out: Path) -> dict:
    """Write the picture or video of an item; its fields of the manifest."""
    folder = out.name
    if item.copy:
        shutil.copyfile(item.copy, out / f"{item.name}.png")
        return {"images": [f"{folder}/{item.name}.png"]}
    if not item.draw:
        return {}
    first, *others = item.draw()
    if not others:
        first.save(out / f"{item.name}.png")
        return {"images": [f"{folder}/{item.name}.png"]}
    moving = dict(save_all=True, append_images=others, duration=FRAME_MS, loop=0)
    first.save(out / f"{item.name}.gif", **moving)
    return {"video": [f"{folder}/{item.name}.gif"]}


def rows_of(item: Item, wave: str, out: Path) -> list[dict]:
    """Rows of an item, its media written.

    Args:
        wave: the recording of its question, relative to the folder of the manifest; "": it is asked typed.
    """
    media = media_of(item, out)
    row = {
        "split": item.split,
        "task": item.task,
        "language": item.language,
        "question": item.question,
        "answer": item.answer,
    }
    seen = "<image>" if "images" in media else "<video>" if "video" in media else ""
    typed = row | media | {"id": f"{item.name}-typed", "turns": turns(seen + item.question, item.answer)}
    if not wave:
        return [typed]
    spoken = row | media | {"id": item.name, "audio": [wave], "turns": turns(f"{seen}<speech>", item.answer)}
    said = row | {
        "id": f"{item.name}-said",
        "task": "transcribe",
        "question": TRANSCRIBE,
        "answer": item.question,
        "audio": [wave],
    }
    said["turns"] = turns(f"<speech>{TRANSCRIBE}", item.question)
    also = pick(item.name, TYPED_EVERY) == 0
    return [spoken, *([] if seen else [said]), *([typed] if also else [])]


def turns(question: str, answer: str) -> list[dict]:
    """A question and its answer."""
    return [{"role": "user", "text": question}, {"role": "assistant", "text": answer}]


def corpus_rows(manifest: Path, root: Path, count: int) -> list[dict]:
    """Transcription of a speech corpus: pieces of its files, its own splits; natural speech before raw, then
    by a hash of the id, so that a part holds all speakers.

    Raises:
        DataError: it does not lie below the folder of our manifest.
    """
    rows, taken = [], {}
    place = manifest.resolve().parent
    if not place.is_relative_to(root.resolve()):
        raise DataError(f"{manifest} does not lie below {root}: put --out beside the corpus")
    folder = place.relative_to(root.resolve())
    usable = [r for r in read_manifest(manifest) if r.get("speed", 1.0) == 1.0 and r["duration"] <= LONGEST]
    plain = lambda r: (r.get("part") == "raw", hashlib.sha256(r["id"].encode()).digest())  # noqa: E731
    for record in sorted(usable, key=plain):
        key = record["split"], record["language"]
        taken[key] = taken.get(key, 0) + 1
        if taken[key] > count:
            continue
        piece = {k: record[k] for k in ("start", "duration", "rate")} | {"path": str(folder / record["path"])}
        row = {"id": f"corpus-{record['id']}", "split": record["split"], "task": "transcribe"}
        row |= {"language": record["language"], "question": TRANSCRIBE, "answer": record["text"]}
        row["audio"] = [piece]
        rows.append(row | {"turns": turns(f"<speech>{TRANSCRIBE}", record["text"])})
    return rows


def in_order(made: list[Item]) -> list[Item]:
    """One of each task in turn: any budget of speech serves all tasks."""
    place: dict[str, int] = {}
    ranked = []
    for item in made:
        place[item.task] = place.get(item.task, 0) + 1
        ranked.append((place[item.task], item.task, item.name, item))
    return [entry[-1] for entry in sorted(ranked, key=lambda e: e[:-1])]


def build(
    out: Path,
    count: int,
    seed: int = 0,
    engine: str = "",
    voice: str = "rms",
    corpus: Path | None = None,
    hours: float = 1.5,
    long: int = 0,
    transcribe: int | None = None,
    workers: int = 1,
    held_out: float = 0.05,
) -> tuple[list[dict], list[str]]:
    """Write everything; the rows, and lines about what was spoken and what was missing.

    Args:
        count: items of each task.
        hours, held_out: of questions that are spoken, expected: to train on; development and test.
        long: training samples of long speech with a secret (need an engine and a corpus).
        transcribe: recordings of the corpus, of each language and split; None: `count`.
    """
    out, notes, voices = Path(out), [], None
    out.mkdir(parents=True, exist_ok=True)
    if engine:
        try:
            voices = Voices(engine, voice)
        except MissingTool as error:
            notes.append(f"questions stay typed: {error}")
    made, missing = items(count, seed)
    heard = corpus_rows(corpus, out.parent, count if transcribe is None else transcribe) if corpus else []
    clips, secrets, spoken, plan = {}, {}, {}, long_plan(long if corpus else 0, seed)
    if voices:
        for item in plan:
            if item["answer"]:
                said = secret(item["answer"])
                secrets[item["answer"]] = voices.clip(said, "en", "train", item["answer"], out.name)
        for item in in_order(made):
            clips[item.name] = voices.clip(item.question, item.language, item.split, item.name, out.name)
        train = {item.name for item in made if item.split == "train"}
        learnt = [*secrets.values(), *(clip for name, clip in clips.items() if name in train)]
        kept = [clip for name, clip in clips.items() if name not in train]
        (chosen, some), (more, rest) = (
            admit(filter(None, some), budget) for some, budget in ((learnt, hours), (kept, held_out))
        )
        chosen, expected = chosen + more, some + rest
        spoken = speak_all(chosen, engine, out.parent, workers)
        told = f"{len(spoken)} recordings, {sum(spoken.values()) / 3600:.2f} hours ({expected:.2f} expected)"
        notes.append(f"spoken by {engine}: {told}")
        if other := sum(not voices.speaks(item.language) for item in made):
            notes.append(f"{other} questions stay typed: {engine} does not speak their language")
    rows = []
    for item in made:
        clip = clips.get(item.name)
        rows += rows_of(item, clip.path if clip and clip.path in spoken else "", out)
    if plan:
        ready = {a: out.parent / c.path for a, c in secrets.items() if c and c.path in spoken}
        english = [row for row in heard if row["split"] == "train" and row["language"] == "en"]
        pieces = [row["audio"][0] | {"id": row["id"]} for row in english]
        rows += write_long(plan, ready, pieces, out.parent, out)
    rows += heard
    write_manifest(out.with_name(f"{out.name}.jsonl"), sorted(rows, key=lambda r: r["id"]))
    write_manifest(out.with_name(f"{out.name}_needles.jsonl"), places(seed))
    return rows, notes + missing


def main(argv: list[str] | None = None) -> None:
    parser = options.Parser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for media, beside the manifest")
    parser.add_argument("--count", type=options.count, default=200, help="items of each task")
    parser.add_argument("--seed", type=options.seed, default=0)
    parser.add_argument(
        "--speak",
        default="flite",
        metavar="ENGINE",
        help="who asks: kokoro, flite, piper or gcin; '' for typed questions",
    )
    parser.add_argument("--voice", default="rms", help="of an engine with one voice")
    parser.add_argument("--hours", type=float, default=1.5, help="of spoken questions to train on")
    parser.add_argument("--held-out", type=float, default=0.05, help="hours of spoken questions to test with")
    parser.add_argument(
        "--corpus",
        type=Path,
        help="manifest of a speech corpus below the folder of --out, to transcribe",
    )
    parser.add_argument(
        "--transcribe", type=options.count, help="recordings of the corpus (default: --count)"
    )
    parser.add_argument(
        "--long", type=options.count_or_none, default=0, help="samples of long speech with a secret"
    )
    parser.add_argument("--workers", type=options.count, default=1, help="processes that speak")
    args = parser.parse_args(argv)
    if not min(args.hours, args.held_out) >= 0:
        parser.error("--hours and --held-out must be 0 or more")
    try:
        rows, notes = build(
            args.out,
            args.count,
            args.seed,
            args.speak,
            args.voice,
            args.corpus,
            args.hours,
            args.long,
            args.transcribe,
            args.workers,
            args.held_out,
        )
    except UserError as error:
        parser.error(str(error))
    print(*notes, f"{len(rows)} samples in {args.out.with_name(args.out.name + '.jsonl')}", sep="\n")


if __name__ == "__main__":
    main()
