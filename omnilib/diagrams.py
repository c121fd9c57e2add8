"""The chapters' diagrams: notebooks/diagrams/<name>.svg, shown by a notebook, put inside a report's page.

    python -m omnilib.diagrams        # write them again after a change here

A drawing is 420 units wide, so that its text can be read on a phone (390 px). It brings its own background
and two sets of colours; the reader's light or dark setting (`prefers-color-scheme`) chooses one. Pictures of numbers
that a chapter has just computed are drawn by `drawings.py` in the same way.
"""

import html
from collections.abc import Callable, Sequence
from pathlib import Path

from omnilib.paths import NOTEBOOKS

FOLDER = NOTEBOOKS / "diagrams"
WIDTH = 420
STYLE = """
text{font:14px system-ui,sans-serif;fill:#1c2430}.soft{fill:#5b6675;font-size:13px}.card{fill:#f6f8fa;stroke:#e3e7ec}
.box{fill:#fff;stroke:#5b6675}.learns{fill:#fbe9dd;stroke:#c25a17}.frozen{fill:#e4f1f1;stroke:#0b6e6e}.line{fill:none;stroke:#5b6675}
.head{fill:#5b6675}@media(prefers-color-scheme:dark){text{fill:#e6eaf0}.soft{fill:#9aa6b5}.card{fill:#1b2129;stroke:#2c3440}
.box{fill:#14181e;stroke:#9aa6b5}.learns{fill:#4a2c17;stroke:#e07b39}.frozen{fill:#12393a;stroke:#5cc8c0}.line{stroke:#9aa6b5}
.head{fill:#9aa6b5}}"""


class Drawing:
    """Boxes, arrows and words on a canvas of 420 units; y grows downwards."""

    style = STYLE

    def __init__(self, title: str, height: int):
        self.title, self.height = title, height
        self.parts: list[str] = []

    def text(self, x: float, y: float, words: str, kind: str = "", anchor: str = "middle") -> None:
        """Words around the point (x, y)."""
        style = f' class="{kind}"' if kind else ""
        self.parts.append(
            f'<text x="{x:g}" y="{y + 5:g}" text-anchor="{anchor}"{style}>{html.escape(words)}</text>'
        )

    def box(
        self, x: float, y: float, width: float, words: str, kind: str = "box", height: float = 0
    ) -> float:
        """A box with one line of text per line of `words`; returns the y of its lower edge."""
        lines = words.split("\n")
        height = height or 18 * len(lines) + 14
        shape = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6"'
        self.parts.append(f'<rect class="{kind}" {shape}/>')
        for number, line in enumerate(lines):
            middle = y + height / 2 + 18 * (number - (len(lines) - 1) / 2)
            if line:
                self.text(x + width / 2, middle, line, "soft" if number else "")
        return y + height

    def arrow(self, *points: tuple[float, float]) -> None:
        """A line through the points, with a head at the last."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        self.parts.append(f'<polyline class="line" points="{path}" marker-end="url(#head)"/>')

    def chain(
        self, x: float, y: float, width: float, steps: Sequence[tuple[str, str]], kind: str = "box"
    ) -> float:
        """Boxes under one another, each with what leaves it written beside its arrow; returns the y of the end."""
        for words, leaves in steps:
            y = self.box(x, y, width, words, kind)
            if leaves:
                self.arrow((x + width / 2, y), (x + width / 2, y + 26))
                self.text(x + width / 2 + 10, y + 12, leaves, "soft", "start")
                y += 28
        return y

    def svg(self) -> str:
        """The file's text."""
        head = (
            '<marker id="head" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">'
            '<path class="head" d="M0,0 L8,4 L0,8 Z"/></marker>'
        )
        size = f'viewBox="0 0 {WIDTH} {self.height}" width="{WIDTH * 1.2:g}" height="{self.height * 1.2:g}"'
        card = f'<rect class="card" x="0.5" y="0.5" width="{WIDTH - 1}" height="{self.height - 1}" rx="10"/>'
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
                f"<title>{html.escape(self.title)}</title><style>{self.style}</style><defs>{head}</defs>",
                card,
                *self.parts,
                "</svg>\n",
            ]
        )


def chain() -> Drawing:
    """Chapter 00: the five networks between text and sound."""
    d = Drawing(
        "Text and a reference voice become speech: tokenizer, mouth, speaker encoder, flow, HiFT", 470
    )
    d.box(20, 20, 190, "text")
    d.arrow((115, 52), (115, 158))
    steps = [
        ("mouth\nQwen3 + TTS-Adapter\nchapters 04 to 07", "tokens, 25 a second"),
        ("flow\nchapter 03", "mel, 50 frames a second"),
        ("HiFT\nchapter 03", "samples, 24,000 a second"),
    ]
    d.chain(20, 160, 190, steps)
    d.text(115, 442, "speech")
    d.box(240, 20, 160, "reference voice")
    d.arrow((290, 52), (290, 88))
    d.box(230, 90, 120, "speech\ntokenizer\nchapter 02", height=64)
    d.arrow((290, 154), (290, 194), (212, 194))
    d.arrow((375, 52), (375, 254))
    d.box(300, 256, 100, "speaker\nencoder", height=50)
    d.arrow((300, 281), (212, 281))
    return d


def curation() -> Drawing:
    """Chapter 01: the steps of a recipe, and where dropped records go."""
    d = Drawing("The steps of curation; each writes what it drops, with the reason, to dropped.jsonl", 402)
    left = ["files", "decode", "voice activity", "segments, 3 to 30 s", "quality", "language, transcript"]
    right = ["speed", "speakers", "duplicates", "split", "long-form", "tokens, shards"]
    for x, names in ((20, left), (235, right)):
        for number, name in enumerate(names):
            y = 20 + 52 * number
            d.box(x, y, 165, name)
            if number < len(names) - 1:
                d.arrow((x + 82, y + 32), (x + 82, y + 50))
    d.arrow((185, 296), (210, 296), (210, 36), (233, 36))
    d.box(60, 352, 300, "dropped.jsonl: record, step, reason", "frozen")
    d.arrow((102, 312), (102, 350))
    d.arrow((317, 312), (317, 350))
    return d


def tokenizer() -> Drawing:
    """Chapter 02: from a wave to codes."""
    d = Drawing("The speech tokenizer: wave, log-mel, convolutions, Transformer blocks, rounding, code", 424)
    d.box(60, 20, 250, "wave\n16,000 samples a second")
    d.arrow((185, 70), (185, 96))
    d.chain(60, 98, 250, [("log-mel, 128 bands", "100 frames a second")])
    steps = [
        ("two convolutions, stride 2", "50, then 25 a second"),
        ("Transformer blocks", "25 vectors a second"),
    ]
    d.chain(60, 158, 250, [*steps, ("D numbers, rounded", "25 times D digits: -1, 0 or 1")], "learns")
    d.box(60, 338, 250, "code\na number in base 3, 25 a second")
    return d


def flow() -> Drawing:
    """Chapter 03: from tokens to a wave."""
    d = Drawing(
        "From tokens to sound: encoder, flow matching with speaker vector and voice prompt, HiFT", 494
    )
    d.chain(
        20,
        20,
        180,
        [("tokens\n25 a second", "embedding"), ("encoder\nsees 3 tokens ahead", "mu, 50 frames a second")],
    )
    d.box(235, 20, 165, "speaker vector\n192 numbers")
    d.box(235, 98, 165, "voice prompt\nmel of the reference")
    d.arrow((400, 45), (411, 45), (411, 210), (392, 210))
    d.arrow((317, 148), (317, 176))
    d.box(20, 176, 370, "flow\nvelocity v(x, t | mu, speaker, prompt), in Euler steps", "learns")
    d.arrow((145, 226), (145, 252))
    d.text(155, 238, "mel: 80 bands, 50 frames a second", "soft", "start")
    steps = [
        ("pitch of each frame", "sines of the pitch and its multiples"),
        ("HiFT blocks\ncolour the sines with the mel", "480 samples a frame"),
        ("inverse Fourier transform", "wave, 24,000 samples a second"),
    ]
    d.chain(20, 254, 250, steps)
    d.text(145, 472, "sound")
    return d


def mouth() -> Drawing:
    """Chapter 04: one row through the mouth."""
    d = Drawing(
        "One row: five embeddings, their mean, Qwen3, then the TTS-Adapter and four slices of one head", 420
    )
    for number, name in enumerate(["text", "s1", "s2", "s3", "s4"]):
        d.box(40 + 70 * number, 40, 60, name)
        d.arrow((70 + 70 * number, 72), (210 + (number - 2) * 12, 100))
    d.text(30, 24, "row t", "soft", "start")
    d.box(110, 102, 200, "mean of 5 embeddings")
    d.arrow((210, 134), (210, 158))
    d.box(110, 160, 200, "Qwen3", "frozen")
    d.arrow((210, 192), (210, 238))
    d.text(220, 214, "hidden state", "soft", "start")
    d.arrow((150, 192), (150, 256), (132, 256))
    d.box(14, 232, 116, "text head\nnext text token\n(in training)")
    d.box(170, 240, 210, "TTS-Adapter", "learns")
    for number in range(4):
        d.arrow((275 + (number - 1.5) * 40, 272), (185 + 60 * number, 334))
        d.box(160 + 60 * number, 336, 50, f"s{number + 1}")
    d.text(275, 386, "row t + 1: 0.16 s at once,", "soft")
    d.text(275, 404, "each stream a slice of one head", "soft")
    return d


def stage1() -> Drawing:
    """Chapter 05: what is frozen and what learns."""
    d = Drawing("Stage 1: Qwen3 and its text rows are frozen; speech rows and the TTS-Adapter learn", 344)
    d.box(20, 20, 180, "text rows\nof the embedding", "frozen")
    d.box(220, 20, 180, "speech rows\nof the embedding", "learns")
    d.arrow((110, 70), (180, 98))
    d.arrow((310, 70), (240, 98))
    d.chain(110, 100, 200, [("Qwen3 blocks", "hidden state")], "frozen")
    d.chain(110, 160, 200, [("TTS-Adapter", "")], "learns")
    d.arrow((210, 192), (210, 218))
    d.box(110, 220, 200, "speech rows of the head", "learns")
    d.arrow((210, 252), (210, 276))
    d.text(220, 266, "next row of codes", "soft", "start")
    legend(d, 300)
    return d


def stage2() -> Drawing:
    """Chapter 06: the two stages side by side."""
    d = Drawing(
        "Stage 1: Qwen3 frozen, adapter learns. Stage 2: both learn, the adapter at five times the rate", 214
    )
    for number, (words, kind) in enumerate(
        [("Qwen3\nfrozen", "frozen"), ("Qwen3\nlearns, rate r", "learns")]
    ):
        y = 20 + 72 * number
        d.text(20, y + 25, f"stage {number + 1}", "", "start")
        d.box(84, y, 130, words, kind)
        d.arrow((214, y + 25), (238, y + 25))
        d.box(240, y, 160, f"TTS-Adapter\nlearns{', rate 5 r' if number else ''}", "learns")
    legend(d, 168)
    return d


def chunks() -> Drawing:
    """Chapter 07: the rows of two chunks."""
    d = Drawing("Rows of two chunks: text, then padding until the voice has caught up, then a separator", 330)
    first = (
        ["Hel", "lo", "wor", "ld", ".", "", "", "", "", "sep"],
        ["", "", "ab", "cd", "ef", "gh", "ij", "kl", "eos", ""],
    )
    second = (
        ["Se", "con", "d", ".", "", "...", "", "", "", ""],
        ["", "", "mn", "op", "qr", "...", "", "", "", ""],
    )
    for number, (text, speech) in enumerate((first, second)):
        y = 24 + 132 * number
        d.text(20, y, f"chunk {number + 1}", "soft", "start")
        d.text(20, y + 32, "text", "", "start")
        d.text(20, y + 66, "speech", "", "start")
        for column, (above, below) in enumerate(zip(text, speech, strict=True)):
            x = 72 + 34 * column
            if number and column > 5:
                continue
            d.box(x, y + 16, 32, above, "frozen" if above else "card", 30)
            d.box(x, y + 50, 32, below, "learns" if below else "card", 30)
        d.text(106, y + 94, "delay", "soft")
        if not number:
            d.text(293, y + 94, "text waits, voice goes on", "soft")
    d.text(20, 290, "Time runs to the right, a column is a row (0.16 s).", "soft", "start")
    d.text(20, 310, "Empty cells hold padding; eos ends the voice of a chunk.", "soft", "start")
    return d


def brain() -> Drawing:
    """Chapter 08: three kinds of input become positions of one sequence."""
    d = Drawing(
        "The brain: pictures through a vision tower, sound through two encoders and information mining, "
        "words through the embedding; all become positions of one language model",
        436,
    )
    d.box(14, 20, 110, "picture, video")
    d.arrow((69, 52), (69, 78))
    d.box(14, 80, 110, "vision tower\n28 x 28 pixels\na position", height=72)
    d.arrow((69, 152), (69, 318))
    d.box(150, 20, 190, "sound\nwindows of 30 s, log-mel")
    d.arrow((190, 70), (190, 98))
    d.arrow((300, 70), (300, 98))
    d.box(140, 100, 100, "main\n25 Hz")
    d.box(250, 100, 100, "auxiliary\n50 Hz")
    d.arrow((190, 150), (190, 178))
    d.arrow((300, 150), (300, 178))
    d.text(182, 163, "Q", "soft", "end")
    d.text(308, 163, "K, V", "soft", "start")
    d.box(140, 180, 210, "information mining\nequation 1", "learns")
    d.arrow((245, 230), (245, 256))
    d.box(140, 258, 210, "MLP, ds_rate frames at once", "learns")
    d.arrow((245, 290), (245, 318))
    d.box(362, 20, 48, "text")
    d.arrow((386, 52), (386, 318))
    d.box(14, 320, 396, "language model: Qwen2.5-VL's text classes", "frozen")
    d.arrow((212, 352), (212, 378))
    d.text(212, 394, "text, word by word: to the screen, or to the mouth")
    d.text(212, 416, "teal: pretrained. orange: new here.", "soft")
    return d


def brain_stages() -> Drawing:
    """Chapter 09: what learns in each stage."""
    d = Drawing("Stage 1 trains the projector, then the eyes learn alone, then all but the encoders", 330)
    columns = (("stage 1", "transcription"), ("eyes", "naming"), ("stage 2", "all tasks"))
    for number, (stage, tasks) in enumerate(columns):
        d.text(178 + 92 * number, 24, stage)
        d.text(178 + 92 * number, 242, tasks, "soft")
    rows = [
        ("audio encoders", "frozen", "frozen", "frozen"),
        ("projector", "learns", "frozen", "learns"),
        ("language model", "frozen", "frozen", "learns"),
        ("vision tower", "frozen", "learns", "learns"),
    ]
    inside = {("language model", "learns"): "LoRA"}
    for number, (name, *kinds) in enumerate(rows):
        y = 42 + 46 * number
        d.text(8, y + 18, name, "", "start")
        for column, kind in enumerate(kinds):
            d.box(135 + 92 * column, y, 86, inside.get((name, kind), kind), kind, 36)
    legend(d, 272)
    return d


def long_audio() -> Drawing:
    """Chapter 10: what grows with length."""
    d = Drawing("An hour of sound: windows one batch at a time, then one long prompt in the cache", 360)
    d.text(20, 26, "an hour of sound", "", "start")
    for number in range(8):
        d.box(20 + 47 * number, 40, 43, "" if number == 6 else "30 s", height=30)
    d.text(323, 55, "...")
    d.arrow((210, 70), (210, 96))
    d.box(70, 98, 280, "encoders, a few windows at a time\nwork grows, memory does not", "frozen")
    d.arrow((210, 148), (210, 174))
    d.text(220, 162, "12.5 positions a second", "soft", "start")
    d.box(
        20,
        176,
        380,
        "prompt: 45,000 positions an hour\ncache grows; each position reads all before it",
        "learns",
    )
    d.arrow((210, 226), (210, 252))
    d.box(70, 254, 280, "answer\neach word reads the whole cache")
    d.text(210, 330, "orange: what grows with length", "soft")
    return d


def senses() -> Drawing:
    """Chapter 11: one question, three ways to ask."""
    d = Drawing("The same question spoken, typed and without its picture: three conditions of one test", 318)
    d.box(130, 20, 160, "one question\nwith a known answer")
    for x, words, kind in (
        (14, "spoken\npicture + voice", "learns"),
        (150, "typed\npicture + words", "frozen"),
        (286, "blind\nvoice or words", "box"),
    ):
        d.arrow((210, 70), (x + 60, 108))
        d.box(x, 110, 120, words, kind)
        d.arrow((x + 60, 160), (x + 60, 196))
        d.box(x, 198, 120, "brain")
    d.text(210, 256, "spoken minus typed: what hearing costs")
    d.text(210, 282, "spoken minus blind: what the picture is worth")
    return d


def both_tracks() -> Drawing:
    """Chapter 12: one turn of the loop, and the cut between two stages."""
    d = Drawing(
        "The brain writes an id, the mouth speaks a row, the codec makes sound: in turns, by a plan", 452
    )
    d.box(20, 20, 150, "question\nvoice, picture, text")
    d.arrow((95, 70), (95, 100))
    d.box(20, 102, 150, "brain\none id at a time", "learns")
    d.arrow((170, 127), (248, 127))
    d.text(208, 112, "text", "soft")
    d.box(250, 102, 150, "mouth\none row: 4 tokens", "learns")
    d.arrow((325, 152), (325, 244))
    d.text(315, 178, "tokens, 25 a second", "soft", "end")
    d.text(20, 212, "cut between the stages", "soft", "start")
    d.parts.append('<line class="line" x1="20" y1="226" x2="400" y2="226" stroke-dasharray="5 5"/>')
    d.box(250, 246, 150, "codec\n1 s of sound a hop", "frozen")
    d.arrow((250, 271), (172, 271))
    d.text(210, 256, "sound", "soft")
    d.box(20, 246, 150, "listener\nhears at 1x")
    d.arrow((95, 296), (95, 340))
    d.text(105, 318, "seconds still to hear", "soft", "start")
    d.box(
        20,
        342,
        380,
        "plan: which of the three is next, when sound may begin\nso that the listener never waits",
    )
    d.text(210, 424, "one worker takes the steps in turns")
    return d


def legend(d: Drawing, y: float) -> None:
    """What the two colours of the training diagrams mean."""
    for x, kind in ((20, "frozen"), (160, "learns")):
        d.box(x, y, 24, "", kind, 24)
        d.text(x + 34, y + 12, kind, "soft", "start")


DRAWINGS: dict[str, Callable[[], Drawing]] = {
    "00_chain": chain,
    "01_curation": curation,
    "02_tokenizer": tokenizer,
    "03_flow": flow,
    "04_mouth": mouth,
    "05_stage1": stage1,
    "06_stage2": stage2,
    "07_chunks": chunks,
    "08_brain": brain,
    "09_stages": brain_stages,
    "10_long_audio": long_audio,
    "11_senses": senses,
    "12_tracks": both_tracks,
}


def write(folder: Path = FOLDER) -> list[Path]:
    """Write every drawing as an SVG file; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in DRAWINGS.items():
        (folder / f"{name}.svg").write_text(draw().svg(), encoding="utf-8")
    return [folder / f"{name}.svg" for name in DRAWINGS]


if __name__ == "__main__":
    write()
