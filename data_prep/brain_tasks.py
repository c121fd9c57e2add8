"""The questions of `data_prep.brain`, with their pictures, videos and answers; nothing is written or spoken here.

Each task is a generator of `Item`s, a function of its own random numbers, so that what one task asks does not depend on
the others. `items` gathers them.
"""

import hashlib
import itertools
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from data_prep.brain_facts import CAPITALS, COLOURS, OPPOSITES, WORDS
from data_prep.texts import hsk
from omnilib.errors import MissingTool

EMOJI_FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
EMOJI_SIZE = 109  # the only size in the font
SIDE = 168  # pixels of a picture: 36 positions
DRAWINGS = 10  # of an emoji, at least
SEVERAL = {"describe": 4}  # times as many items as of other tasks


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


def scene_picture(shown: list[tuple[str, int, int, int]], seed: str) -> list:
    """Emoji (character, x, y, size) on one ground."""
    image = ground(random.Random(seed))
    for character, x, y, size in shown:
        paste(image, character, x, y, size)
    return [image]


def shape_words() -> list[tuple[int, str, str]]:
    """(number, path, "blue circle") of the training pictures of easy-vqa whose questions tell both, development ones left out."""
    import easy_vqa

    known: dict[int, set[str]] = {}
    for question, answer, image in zip(*easy_vqa.get_train_questions(), strict=True):
        if answer not in ("yes", "no"):
            known.setdefault(image, set()).add(answer)
            known[image] |= {"circle", "rectangle", "triangle"} & set(question.strip("?").split())
    paths, found = easy_vqa.get_train_image_paths(), []
    for image, words in sorted(known.items()):
        shape = words & {"circle", "rectangle", "triangle"}
        if len(words) == 2 and len(shape) == 1 and image % 10:
            found.append((image, paths[image], " ".join([*(words - shape), *shape])))
    return found


def describe(rng: random.Random) -> Iterator[Item]:
    """All that is in a picture, as captions tell it. Not measured.

    Raises:
        MissingTool: font or package is not installed.
    """
    names = emoji_names()
    try:
        plain = shape_words()
    except ImportError:
        raise MissingTool("easy-vqa is missing: pip install --no-deps easy-vqa") from None
    rng.shuffle(plain)
    for turn in itertools.count():
        count = rng.choice((1, 2, 2, 3, 3))
        chosen, columns = rng.sample(names, count), sorted(rng.sample((2, 58, 114), count))
        if count == 1:
            side = rng.randint(44, 150)
            shown = [(chosen[0][0], rng.randint(0, SIDE - side), rng.randint(0, SIDE - side), side)]
        else:
            sides = [rng.randint(44, 54) for _ in chosen]
            tall = [rng.randint(0, SIDE - side) for side in sides]
            shown = [(c[0], x, y, side) for c, x, y, side in zip(chosen, columns, tall, sides, strict=True)]
        asks = "What is in the picture?" if count == 1 else "Name the things from left to right."
        key = str(shown)
        draw = lambda s=shown, k=key: scene_picture(s, k)  # noqa: E731
        yield Item("describe", key, asks, ", ".join(c[1] for c in chosen), draw=draw)
        if turn % 3 == 0:
            bars = dict(zip(rng.sample(sorted(COLOURS), 4), rng.sample(range(20, 150, 18), 4), strict=True))
            bars = dict(list(bars.items())[: rng.randint(2, 4)])
            answer = ", ".join(sorted(bars, key=bars.get, reverse=True))
            draw = lambda b=bars: chart_picture(b)  # noqa: E731
            yield Item(
                "describe", str(bars), "Name the bars from the tallest to the shortest.", answer, draw=draw
            )
        if turn % 3 == 1 and plain:
            image, path, words = plain.pop()
            yield Item("describe", f"shape {image}", "Describe the shape.", words, copy=path, split="train")


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
        describe=describe,
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
    """About `count` items of each task (SEVERAL times as many of some), no question twice, and what could not be made.

    A picture that one task holds out is in no other task's training.
    """
    result, missing = [], []
    for name, source in families(count, seed):
        most = count * SEVERAL.get(name, 1)
        found: dict[str, Item] = {}
        tasks: dict[str, int] = {}
        try:
            for tried, item in enumerate(source, 1):
                if item.name not in found and tasks.get(item.task, 0) < most:
                    found[item.name] = item
                    tasks[item.task] = tasks.get(item.task, 0) + 1
                if tried > 20 * most + 20 or (min(tasks.values()) >= most and tried > 3):
                    break
        except MissingTool as error:
            missing.append(f"{name} left out: {error}")
        result += found.values()
    held = {item.key for item in result if item.draw and item.split != "train"}
    return [i for i in result if not (i.draw and i.split == "train" and i.key in held)], missing
