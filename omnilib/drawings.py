"""Pictures of tensors that a chapter has just computed, as SVG: rounded digits, a flow's path, masks, the token grid.

    run.drawing(drawings.flow_path(points, times), "path", "From noise to mel in ten Euler steps.")

Numbers come in, a `Drawing` comes out (canvas, colours and light or dark as in `diagrams.py`); nothing is measured here.
"""

from collections.abc import Sequence
from unicodedata import east_asian_width

import numpy as np

from omnilib.diagrams import STYLE, Drawing

MORE = """
.small{font-size:12px}.code{fill:#f3d9c4;stroke:#fff}.pad{fill:#eef1f4;stroke:#fff}.silence{fill:#cfd6de;stroke:#fff}
.eos{fill:#e7a49b;stroke:#fff}.separator{fill:#8cc9c4;stroke:#fff}.grid{stroke:#c9ced6;fill:none}.dot{fill:#c25a17}
.target{fill:#0b6e6e}.walk{fill:none;stroke:#c25a17;stroke-width:1.6}.straight{stroke:#5b6675;stroke-dasharray:5 4;fill:none}
@media(prefers-color-scheme:dark){.code{fill:#5b3a22;stroke:#1b2129}.pad{fill:#262e39;stroke:#1b2129}
.silence{fill:#3a4554;stroke:#1b2129}.eos{fill:#7c2f27;stroke:#1b2129}.separator{fill:#1d5f5b;stroke:#1b2129}
.grid{stroke:#3a4554}.dot{fill:#e07b39}.target{fill:#5cc8c0}.walk{stroke:#e07b39}.straight{stroke:#9aa6b5}}"""
ROW_COLUMNS = 8  # rows of the mouth in one line of the token grid


class Picture(Drawing):
    """A drawing with cells, dots and lines besides boxes and arrows."""

    style = STYLE + MORE

    def cell(self, x: float, y: float, width: float, height: float, kind: str, words: str = "") -> None:
        """A filled rectangle with small words in its middle."""
        self.parts.append(
            f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="2"/>'
        )
        if words:
            self.text(x + width / 2, y + height / 2 - 1, words, "small")

    def dot(self, x: float, y: float, kind: str = "dot", radius: float = 3.5) -> None:
        self.parts.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"/>')

    def line(self, points: Sequence[tuple[float, float]], kind: str = "line") -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polyline class="{kind}" points="{path}"/>')

    def image(self, x: float, y: float, width: float, height: float, levels: np.ndarray) -> None:
        """An image (R, C) of levels 0 to 1, row 0 at the bottom: from the background to dark orange in eight shades."""
        rows, columns = levels.shape
        wide, high = width / columns, height / rows
        shades = np.clip(np.round(np.nan_to_num(levels) * 8), 0, 8).astype(int)
        for shade in range(1, 9):
            squares = "".join(
                f"M{x + column * wide:.1f} {y + height - (row + 1) * high:.1f}h{wide:.1f}v{high:.1f}h-{wide:.1f}z"
                for row, column in np.argwhere(shades == shade)
            )
            if squares:
                self.parts.append(f'<path fill="#c25a17" fill-opacity="{shade / 8:g}" d="{squares}"/>')


def fsq_grid(smooth: np.ndarray, digits: np.ndarray, codes: Sequence[int]) -> Picture:
    """Finite scalar quantisation: where two of the numbers fall among the 3 x 3 grid points, and all digits as a code.

    Args:
        smooth: squashed numbers in (-1, 1), (T, D) with D >= 2; the first two are drawn in the plane.
        digits: the same, rounded to -1, 0 or 1: (T, D).
        codes: the base-3 number of each row of digits: (T,).
    """
    smooth, digits = np.asarray(smooth, dtype=float), np.asarray(digits).astype(int)
    count, size = digits.shape
    picture = Picture("Rounding to a grid: numbers, grid points, digits and codes", max(262, 66 + 30 * count))
    side, left, top = 162, 26, 44
    picture.text(left + side / 2, 22, "first two numbers", "soft")

    def place(point: Sequence[float]) -> tuple[float, float]:
        return left + side * (point[0] + 1.5) / 3, top + side * (1.5 - point[1]) / 3

    for edge in (-1.5, -0.5, 0.5, 1.5):  # cells whose points are rounded to the same place
        picture.line([place((edge, -1.5)), place((edge, 1.5))], "grid")
        picture.line([place((-1.5, edge)), place((1.5, edge))], "grid")
    for x in (-1, 0, 1):
        for y in (-1, 0, 1):
            picture.dot(*place((x, y)), "target", 4)
    for number, (point, point_of_grid) in enumerate(zip(smooth[:, :2], digits[:, :2], strict=True)):
        picture.line([place(point), place(point_of_grid)], "straight")
        picture.dot(*place(point))
        x, y = place(point)
        picture.text(x - 9, y - 9, str(number + 1), "small")
    picture.text(left + side / 2, top + side + 18, "orange: before rounding", "soft")
    picture.text(left + side / 2, top + side + 36, "teal: after rounding", "soft")
    start, width = 222, min(26.0, 120 / size)
    picture.text(start + width * size / 2, 22, "digits", "soft")
    picture.text(380, 22, "code", "soft")
    for number, (row, code) in enumerate(zip(digits, codes, strict=True)):
        y = top + 30 * number
        picture.text(start - 12, y + 12, str(number + 1), "small")
        for place_of_digit, digit in enumerate(row):
            kind = {-1: "silence", 0: "pad", 1: "code"}[int(digit)]
            picture.cell(start + width * place_of_digit, y, width, 24, kind, f"{digit:+d}" if digit else "0")
        picture.text(380, y + 12, str(int(code)))
    return picture


def plane_of(points: np.ndarray) -> np.ndarray:
    """A path (S, n) seen from the side: along its first-to-last line, and across it where it bends most: (S, 2).

    Both are in units of the distance from the first point to the last, so a straight path has zeros in the second column.
    """
    points = np.asarray(points, dtype=float).reshape(len(points), -1)
    chord = points[-1] - points[0]
    length = max(float(np.linalg.norm(chord)), 1e-12)
    along = (points - points[0]) @ chord / length**2
    rest = points - points[0] - along[:, None] * chord  # what is not on the line
    direction = np.linalg.svd(rest, full_matrices=False)[2][0]
    return np.stack([along, rest @ direction / length], axis=1)


def flow_path(points: np.ndarray, times: Sequence[float], stills: int = 4) -> Picture:
    """An ODE's path from noise to a spectrum: the spectrum at some steps, and every Euler step seen in a plane.

    Args:
        points: (S + 1, F, M) what each step left, noise first.
        times: (S + 1,) from 0 to 1.
        stills: how many spectra are shown, coarsely.
    """
    points = np.asarray(points, dtype=float)
    picture = Picture("The path of the flow from noise to a spectrum, in Euler steps", 346)
    low, high = np.quantile(points[-1], [0.05, 0.98])
    width, height, columns, bands = 90, 96, 24, 20
    for number, step in enumerate(np.linspace(0, len(points) - 1, stills).round().astype(int)):
        left = 12 + (width + 12) * number
        coarse = sampled(points[step].T, bands, columns)  # (bands, columns), low bands first
        picture.image(left, 20, width, height, (coarse - low) / max(high - low, 1e-9))
        picture.cell(left, 20, width, height, "grid")
        picture.text(left + width / 2, 20 + height + 14, f"t = {times[step]:.2f}", "soft")
    flat = plane_of(points)
    left, right, middle = 40.0, 380.0, 222.0
    largest = float(np.abs(flat[:, 1]).max())
    scale = min(right - left, 56.0 / max(largest, 1e-9))  # the same as along, unless it would not fit
    places = [(left + (right - left) * x, middle - scale * y) for x, y in flat]
    picture.line([places[0], places[-1]], "straight")
    picture.line(places, "walk")
    for x, y in places[1:-1]:
        picture.dot(x, y)
    picture.dot(*places[0], "target", 5)
    picture.dot(*places[-1], "target", 5)
    picture.text(left, middle + 22, "noise", "soft")
    picture.text(right, middle + 22, "mel", "soft")
    picture.text(210, 304, "solid: the path; a dot is an Euler step", "soft")
    picture.text(210, 324, "dashed: a straight path, one step would do", "soft")
    return picture


def sampled(image: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Evenly chosen values of an image (R, C), at most (rows, columns); means would turn noise into grey."""
    places = [np.linspace(0, n - 1, min(n, most)).round().astype(int) for n, most in zip(image.shape, (rows, columns), strict=True)]  # fmt: skip
    return image[np.ix_(*places)]


def mask(seen: np.ndarray, chunk: int = 0) -> Picture:
    """An attention mask (queries, keys): what each query, a row, may look at; thick lines between chunks."""
    seen = np.asarray(seen, dtype=bool)
    queries, keys = seen.shape
    size = min(26.0, 290 / max(queries, keys))
    left, top = 96.0, 40.0
    picture = Picture("Which keys a query sees", int(top + size * queries + 48))
    picture.text(left + size * keys / 2, 20, "key", "soft")
    picture.text(44, top + size * queries / 2, "query", "soft")
    for query in range(queries):
        picture.text(left - 14, top + size * (query + 0.5), str(query), "small")
        for key in range(keys):
            picture.cell(
                left + size * key,
                top + size * query,
                size,
                size,
                "separator" if seen[query, key] else "pad",
            )
    for edge in range(chunk, keys, chunk) if chunk else ():
        x = left + size * edge
        picture.line([(x, top), (x, top + size * queries)])
    for edge in range(chunk, queries, chunk) if chunk else ():
        y = top + size * edge
        picture.line([(left, y), (left + size * keys, y)])
    picture.text(210, top + size * queries + 26, "teal: seen; grey: hidden", "soft")
    return picture


def token_rows(
    text: Sequence[str],
    speech: np.ndarray,
    eos: int,
    pad: int,
    separators: Sequence[int] = (),
    blanks: Sequence[int] = (),
    columns: int = ROW_COLUMNS,
) -> Picture:
    """The rows that the mouth writes, read like lines of a page: text on top, k speech streams below it.

    Args:
        text: what each row's text id reads as ("" for padding).
        speech: ids (rows, k) of the streams.
        separators: rows that hold audio_sep or audio_end.
        blanks: codes that mean silence.
    """
    speech = np.asarray(speech)
    count, streams = speech.shape
    lines = -(-count // columns)
    line_height = 22 * (streams + 1) + 22
    picture = Picture("The token grid: a text row and k rows of speech codes", 62 + line_height * lines)
    for number, kind in enumerate(("code", "silence", "pad", "eos", "separator")):
        picture.cell(14 + 78 * number, 14, 16, 16, kind)
        picture.text(34 + 78 * number, 21, kind, "small", "start")
    width = 352 / columns
    for row in range(count):
        x, y = 56 + width * (row % columns), 46 + line_height * (row // columns)
        if row % columns == 0:
            picture.text(12, y + 11, "text", "small", "start")
            for stream in range(streams):
                picture.text(12, y + 11 + 22 * (stream + 1), f"s{stream + 1}", "small", "start")
        picture.cell(x, y, width, 22, "separator" if row in separators else "card", shorten(text[row]))
        for stream in range(streams):
            code = int(speech[row, stream])
            kind = "eos" if code == eos else "pad" if code == pad else "silence" if code in blanks else "code"
            if row in separators:
                kind = "separator"
            words = str(code) if kind in ("code", "silence") else ""
            picture.cell(x, y + 22 * (stream + 1), width, 22, kind, words)
    return picture


def shorten(words: str, most: int = 6) -> str:
    """A text piece that fits a cell; a Chinese character is as wide as two letters."""
    words, kept = words.strip(), ""
    for letter in words:
        if sum(2 if east_asian_width(c) in "WF" else 1 for c in kept + letter) > most:
            return kept[:-1] + "…"
        kept += letter
    return kept
