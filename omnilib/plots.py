"""Every figure: small functions that take numbers and return a matplotlib Figure (nothing is measured here).

Colours mean the same everywhere: recordings grey, codec blue, text to speech orange.
"""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("agg", force=False)
import numpy as np
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

COLOURS = {"recording": "#8a94a3", "codec": "#2f7fb8", "speech": "#e07b39"}
LINE = "#0b6e6e"  # marks and levels to compare with

sns.set_theme(
    style="whitegrid",
    context="notebook",
    font_scale=1.0,
    rc={"axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 100},
)


def new(
    width: float = 8.0, height: float = 3.2, rows: int = 1, columns: int = 1, **more
) -> tuple[Figure, np.ndarray]:
    """A figure and its axes, always as a flat array."""
    figure, axes = plt.subplots(
        rows, columns, figsize=(width, height), squeeze=False, layout="constrained", **more
    )
    return figure, axes.reshape(-1)


def read_log(path: Path) -> list[dict]:
    """The rows of a training run's log.jsonl."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def logged(log: list[dict], key: str) -> list[float]:
    """Values of one key in a training log, in order; rows without it are left out."""
    return [row[key] for row in log if row.get(key) is not None]


def phase_ends(log: list[dict]) -> list[int]:
    """Steps at which a training goes over to another phase."""
    rows = [row for row in log if "phase" in row]
    return [a["step"] for a, b in itertools.pairwise(rows) if a["phase"] != b["phase"]]


def loss_curves(
    runs: dict[str, Path | list[dict]],
    keys: Sequence[str] = ("loss",),
    smooth: int = 5,
    log: bool = False,
    lines: dict[str, float] | None = None,
) -> Figure:
    """One panel a key, two beside each other; one line a run: pale what was logged, strong its running mean.

    Dotted upright lines are the borders between the phases of a run, where one alone is drawn.

    Args:
        lines: key -> level of a dashed line, for example what a guess would reach.
    """
    columns = min(2, len(keys))
    rows = -(-len(keys) // columns)
    figure, axes = new(8.4 if columns == 2 else 6.0, 3.1 * rows, rows=rows, columns=columns)
    for axis in axes[len(keys) :]:
        axis.remove()
    for axis, key in zip(axes, keys, strict=False):
        for number, (name, run) in enumerate(runs.items()):
            logged = [r for r in (run if isinstance(run, list) else read_log(run)) if r.get(key) is not None]
            if not logged:
                continue
            steps, values = (
                np.array([r["step"] for r in logged]),
                np.array([r[key] for r in logged], dtype=float),
            )
            colour = sns.color_palette()[number]
            width = min(smooth, max(1, len(values) // 4))  # few points are shown as they are
            axis.plot(
                steps, values, color=colour, alpha=0.25, lw=1, marker="o" if len(values) <= 12 else None, ms=4
            )
            axis.plot(
                steps[width - 1 :],
                np.convolve(values, np.ones(width) / width, "valid"),
                color=colour,
                label=name,
            )
        if key in (lines or {}):
            axis.axhline(lines[key], color="#333", ls="--", lw=1)
        for run in runs.values() if len(runs) == 1 else ():
            for step in phase_ends(run if isinstance(run, list) else read_log(run)):
                axis.axvline(step, color=COLOURS["recording"], ls=":", lw=1)
        axis.set(xlabel="step", title=key.replace("_", " "), yscale="log" if log else "linear")
    axes[0].legend(frameon=False)
    return figure


def waveform(wave: np.ndarray, rate: int, marks: Sequence[float] = (), title: str = "") -> Figure:
    """Samples (T,) over time, with vertical marks in seconds."""
    figure, (axis,) = new(8, 1.8)
    axis.plot(np.arange(len(wave)) / rate, wave, lw=0.4, color=COLOURS["speech"])
    for second in marks:
        axis.axvline(second, color=LINE, lw=1)
    axis.set(xlabel="seconds", xlim=(0, len(wave) / rate), yticks=[], title=title)
    return figure


def spectrograms(
    mels: dict[str, np.ndarray], frames_per_second: float | Sequence[float], shared: bool = False
) -> Figure:
    """Spectra (bins, frames) under one another on one time axis; `shared` uses one colour range for all."""
    rates = frames_per_second if isinstance(frames_per_second, Sequence) else [frames_per_second] * len(mels)
    figure, axes = new(8, 1.9 * len(mels) + 0.4, rows=len(mels), sharex=True)
    arrays = [np.asarray(m, dtype=float) for m in mels.values()]
    low, high = (min(a.min() for a in arrays), max(a.max() for a in arrays)) if shared else (None, None)
    for axis, name, array, rate in zip(axes, mels, arrays, rates, strict=True):
        axis.imshow(
            array,
            origin="lower",
            aspect="auto",
            cmap="magma",
            vmin=low,
            vmax=high,
            extent=(0, array.shape[1] / rate, 0, array.shape[0]),
        )
        axis.set(title=name, ylabel="bin")
        axis.grid(False)
    axes[-1].set_xlabel("seconds")
    return figure


def bars(
    values: dict[str, tuple[float, float, float]],
    ylabel: str,
    percent: bool = True,
    line: float | None = None,
    line_label: str = "",
) -> Figure:
    """Bars with 95 % intervals: name -> (value, low, high); `line` is a level to compare with."""
    figure, (axis,) = new(1.4 * len(values) + 2, 3.2)
    factor = 100 if percent else 1
    palette = {"gt": "recording", "recording": "recording", "codec": "codec"}
    for place, (name, (value, low, high)) in enumerate(values.items()):
        colour = COLOURS[next((c for word, c in palette.items() if word in name.lower()), "speech")]
        axis.bar(place, value * factor, color=colour, width=0.62)
        axis.errorbar(
            place,
            value * factor,
            [[(value - low) * factor], [(high - value) * factor]],
            color="#333",
            capsize=4,
        )
        axis.text(place, high * factor, f" {value * factor:.3g}", ha="center", va="bottom", fontsize=10)
    if line is not None:
        axis.axhline(line * factor, color=LINE, ls="--", lw=1, label=line_label)
        axis.legend(frameon=False)
    axis.set(xticks=range(len(values)), xticklabels=list(values), ylabel=ylabel + (" (%)" if percent else ""))
    axis.grid(axis="x", visible=False)
    return figure


def shares(seconds: dict[str, float], total: float, title: str = "") -> Figure:
    """How one second of speech is paid for: real-time factor by module, stacked."""
    figure, (axis,) = new(8, 1.6)
    left = 0.0
    for colour, (name, value) in zip(sns.color_palette("crest", len(seconds)), seconds.items(), strict=True):
        axis.barh(0, value / total, left=left, color=colour, label=f"{name} {value / total:.3f}")
        left += value / total
    axis.set(yticks=[], xlabel="seconds of work per second of speech", title=title)
    axis.legend(frameon=False, ncol=len(seconds), loc="upper left", bbox_to_anchor=(0, -0.6))
    return figure


def histogram(
    groups: dict[str, Sequence[float]], xlabel: str, line: float | None = None, line_label: str = ""
) -> Figure:
    """Overlaid distributions, for example similarity of same and different speakers, with a threshold."""
    figure, (axis,) = new(7, 3)
    bins = np.histogram_bin_edges(np.concatenate([np.asarray(v, dtype=float) for v in groups.values()]), 30)
    for name, values in groups.items():
        axis.hist(values, bins=bins, alpha=0.55, density=True, label=f"{name} (n = {len(values)})")
    if line is not None:
        axis.axvline(line, color="#333", ls="--", lw=1, label=line_label)
    axis.set(xlabel=xlabel, yticks=[])
    axis.legend(frameon=False)
    return figure


def series(
    lines: dict[str, tuple[Sequence[float], Sequence[float]]], xlabel: str, ylabel: str, **style
) -> Figure:
    """Plain lines with markers: name -> (x, y)."""
    figure, (axis,) = new(7, 3)
    for name, (x, y) in lines.items():
        axis.plot(x, y, label=name, **{"marker": "o", "ms": 4, **style})
    axis.set(xlabel=xlabel, ylabel=ylabel)
    if len(lines) > 1:
        axis.legend(frameon=False)
    return figure


def funnel(steps: Sequence[tuple[str, float]], unit: str = "hours") -> Figure:
    """What is left after each filter: (name, amount), widest first."""
    figure, (axis,) = new(7, 0.42 * len(steps) + 0.8)
    first = steps[0][1]
    for place, (_, amount) in enumerate(steps):
        axis.barh(place, amount, color=sns.color_palette("crest", len(steps))[place])
        axis.text(
            amount, place, f" {amount:,.4g} {unit} ({100 * amount / first:.0f} %)", va="center", fontsize=10
        )
    axis.set(
        yticks=range(len(steps)), yticklabels=[name for name, _ in steps], xlim=(0, first * 1.35), xticks=[]
    )
    axis.invert_yaxis()
    axis.grid(False)
    return figure


def paths(points: np.ndarray) -> Figure:
    """Walks in the plane (steps + 1, walkers, 2): start grey, end orange."""
    figure, (axis,) = new(4.6, 4.4)
    axis.plot(points[:, :, 0], points[:, :, 1], color="#c9ced6", lw=0.7, zorder=1)
    axis.scatter(*points[0].T, s=12, color=COLOURS["recording"], label="start", zorder=2)
    axis.scatter(*points[-1].T, s=16, color=COLOURS["speech"], label="end", zorder=3)
    axis.set(aspect="equal")
    axis.legend(frameon=False)
    return figure


def along(shares: np.ndarray, words: np.ndarray, xlabel: str, ylabel: str) -> Figure:
    """Shares (bins,) by place with the binomial 95 % range that `words` (bins,) trials allow."""
    figure, (axis,) = new(7, 3)
    middles = (np.arange(len(shares)) + 0.5) / len(shares)
    spread = 1.96 * np.sqrt(np.clip(shares * (1 - shares), 0, None) / np.maximum(words, 1))
    axis.bar(
        middles,
        100 * shares,
        width=0.8 / len(shares),
        color=COLOURS["speech"],
        yerr=100 * spread,
        ecolor="#333",
        capsize=3,
    )
    axis.set(xlabel=xlabel, ylabel=ylabel, xlim=(0, 1))
    axis.grid(axis="x", visible=False)
    return figure


def attention_maps(maps: dict[str, np.ndarray], xlabel: str, ylabel: str) -> Figure:
    """Attention weights (queries, keys) beside each other, each with its own range; grey cells are not attended to."""
    figure, axes = new(8.4, 3.4, columns=len(maps))
    palette = plt.get_cmap("magma").with_extremes(bad="#d9dde3")
    for axis, (name, weights) in zip(axes, maps.items(), strict=True):
        image = axis.imshow(np.ma.masked_invalid(weights), cmap=palette, vmin=0, aspect="auto")
        axis.set(title=name, xlabel=xlabel, ylabel=ylabel)
        axis.grid(False)
        figure.colorbar(image, ax=axis, label="weight")
    return figure


def position_grid(positions: np.ndarray, kinds: Sequence[str], show: Sequence[str] = ()) -> Figure:
    """Time, height and width of every place in a sequence (3, L), read from left to right.

    Args:
        kinds: of each place, for example text, picture or sound: its colour.
        show: what stands under each place.
    """
    names = list(dict.fromkeys(kinds))
    palette = sns.color_palette("pastel", len(names))
    figure, (axis,) = new(max(7.0, 0.3 * len(kinds) + 1.2), 2.5)
    for place, kind in enumerate(kinds):
        for row in range(3):
            axis.add_patch(plt.Rectangle((place, row), 1, 1, color=palette[names.index(kind)], ec="white"))
            axis.text(
                place + 0.5, row + 0.5, int(positions[row][place]), ha="center", va="center", fontsize=8.5
            )
    axis.set(
        xlim=(0, len(kinds)), ylim=(3, 0), yticks=(0.5, 1.5, 2.5), yticklabels=("time", "height", "width")
    )
    axis.set_xticks(np.arange(len(show)) + 0.5, show, rotation=90, fontsize=8.5)
    axis.grid(False)
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in palette]
    axis.legend(handles, names, ncol=len(names), frameon=False, loc="lower left", bbox_to_anchor=(0, 1))
    return figure


def heat_map(
    shares: np.ndarray, columns: Sequence[str], rows: Sequence[str], xlabel: str, ylabel: str
) -> Figure:
    """Shares (rows, columns) between 0 and 1 as colours and percent; NaN was not tried."""
    figure, (axis,) = new(max(5.0, 0.8 * len(columns) + 2.4), 0.36 * len(rows) + 1.2)
    palette = plt.get_cmap("viridis").with_extremes(bad="#d9dde3")
    image = axis.imshow(np.ma.masked_invalid(shares), cmap=palette, vmin=0, vmax=1, aspect="auto")
    for row, column in np.argwhere(~np.isnan(shares)):
        value = shares[row, column]
        axis.text(
            column,
            row,
            f"{100 * value:.0f}",
            ha="center",
            va="center",
            color="#fff" if value < 0.6 else "#111",
        )
    axis.set_xticks(range(len(columns)), columns)
    axis.set_yticks(range(len(rows)), rows)
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.grid(False)
    figure.colorbar(image, label="share found")
    return figure


def power_law(x: Sequence[float], y: Sequence[float], least: float = 0.0) -> tuple[float, float]:
    """(exponent, factor) of y = factor * x ** exponent, least squares of the logarithms over x >= least.

    Raises:
        ValueError: fewer than two points, or a value that is not above 0.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    chosen = x >= least
    if chosen.sum() < 2 or min(x[chosen].min(), y[chosen].min()) <= 0:
        raise ValueError("a law needs two points above 0")
    exponent, logarithm = np.polyfit(np.log(x[chosen]), np.log(y[chosen]), 1)
    return float(exponent), float(np.exp(logarithm))


def laws(
    lines: dict[str, tuple[Sequence[float], Sequence[float]]], xlabel: str, ylabel: str, least: float = 0.0
) -> Figure:
    """Points on two logarithmic axes and the power law through each line; the legend tells its exponent."""
    figure, (axis,) = new(7, 3.6)
    for colour, (name, (x, y)) in zip(sns.color_palette(), lines.items(), strict=False):
        exponent, factor = power_law(x, y, least)
        ends = np.array([max(min(x), least or min(x)), max(x)], dtype=float)
        axis.plot(ends, factor * ends**exponent, color=colour, lw=1)
        axis.plot(x, y, "o", ms=4, color=colour, label=f"{name}: length to the power {exponent:.2f}")
    axis.set(xscale="log", yscale="log", xlabel=xlabel, ylabel=ylabel)
    axis.legend(frameon=False)
    return figure


def pictures(stills: Sequence, most: int = 8) -> Figure:
    """Pictures, or frames of a video, beside each other; of many frames some, evenly chosen."""
    chosen = [stills[round(i)] for i in np.linspace(0, len(stills) - 1, min(most, len(stills)))]
    figure, axes = new(min(8.4, 2.2 * len(chosen)), 2.2, columns=len(chosen))
    for axis, still in zip(axes, chosen, strict=True):
        axis.imshow(np.asarray(still))
        axis.axis("off")
    return figure
