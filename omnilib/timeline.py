"""Pictures of chapter 12: both tracks of an answer to scale, what its listener has still to hear, where the time went.

Times are seconds after the question's last sample; `spans` are those of `omnilib.omni.Answer`.
"""

from collections.abc import Sequence

import numpy as np
import seaborn as sns
from matplotlib.figure import Figure

from omnilib.pacing import Listener, Span
from omnilib.plots import COLOURS, new

TRACKS = {  # kind of span -> (track, colour)
    "read": ("brain", "#8a94a3"),
    "first": ("brain", "#0b6e6e"),
    "brain": ("brain", "#2f7fb8"),
    "row": ("mouth", "#e07b39"),
    "hop": ("codec", "#7a5195"),
}
NAMES = ("brain", "mouth", "codec", "listener")


def tracks(
    spans: Sequence[Span], pieces: Sequence[tuple[float, float]], start: float, until: float | None = None
) -> Figure:
    """Every step as a bar as long as it took, and below what the listener hears meanwhile, at 1x.

    Args:
        pieces: (when, seconds of sound), as `Plan.times`.
        start: when the question ended.
        until: seconds that are drawn; None: to the end of the sound.
    """
    figure, (axis,) = new(8.4, 2.9)
    for kind, (track, colour) in TRACKS.items():
        own = [(s.start - start, s.seconds) for s in spans if s.kind == kind]
        axis.broken_barh(
            own, (NAMES.index(track) - 0.35, 0.7), facecolors=colour, edgecolors=colour, lw=0.4, label=kind
        )
    ends = heard(pieces)
    sound = [(at - start, seconds) for at, seconds in ends]
    axis.broken_barh(sound, (2.65, 0.7), facecolors=COLOURS["speech"], edgecolors="white", label="sound")
    last = max([at + seconds for at, seconds in sound] or [s.end - start for s in spans] or [1.0])
    axis.set(
        yticks=range(len(NAMES)),
        yticklabels=NAMES,
        xlabel="seconds after the question",
        xlim=(0, until or last),
    )
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.legend(frameon=False, ncol=len(TRACKS) + 1, loc="lower left", bbox_to_anchor=(0, 1), fontsize=10)
    return figure


def heard(pieces: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """(when it begins to sound, seconds) of every piece at a listener who hears at 1x."""
    listener, found = Listener(), []
    for now, seconds in pieces:
        listener.give(now, seconds)
        found.append((listener.ends - seconds, seconds))
    return found


def lead(pieces: dict[str, Sequence[tuple[float, float]]]) -> Figure:
    """Seconds that are still to be heard over time; where a line touches 0 the listener waits."""
    figure, (axis,) = new(8.4, 2.6)
    for colour, (name, own) in zip(sns.color_palette(), pieces.items(), strict=False):
        if not own:
            continue
        first, listener, x, y = own[0][0], Listener(), [], []
        for now, seconds in own:
            x += [now - first]
            y += [listener.lead(now)]
            waits = listener.ends is not None and now > listener.ends
            if waits:  # the line reaches 0 before
                x, y = [*x[:-1], listener.ends - first, x[-1]], [*y[:-1], 0.0, 0.0]
            listener.give(now, seconds)
            x, y = [*x, now - first], [*y, listener.lead(now)]
        x, y = [*x, listener.ends - first], [*y, 0.0]
        axis.plot(x, y, color=colour, label=name, lw=1.4)
    axis.axhline(0, color="#333", lw=0.8)
    axis.set(xlabel="seconds after the first sound", ylabel="seconds still to hear")
    axis.legend(frameon=False)
    return figure


def budget(parts: dict[str, float], words: dict[str, str], goal: float = 1.0) -> Figure:
    """Where the time to the first sound goes: parts behind one another, in seconds.

    Args:
        words: what each part is.
    """
    figure, (axis,) = new(8.4, 0.34 * len(parts) + 1.0)
    left = 0.0
    for place, (colour, seconds) in enumerate(
        zip(sns.color_palette("crest", len(parts)), parts.values(), strict=True)
    ):
        axis.barh(place, seconds, left=left, color=colour)
        left += seconds
        axis.text(left, place, f" {seconds:.3f} s", va="center", fontsize=9.5)
    axis.axvline(goal, color="#333", ls="--", lw=1)
    axis.set(
        yticks=np.arange(len(parts)),
        yticklabels=[words[name] for name in parts],
        xlabel="seconds after the question",
    )
    axis.set_xlim(0, 1.2 * max(left, goal))
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    return figure
