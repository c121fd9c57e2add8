"""Probes of chapter 12: a brain that writes a given text, rows of the released joint loop, a slower machine."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate

import torch

from omnilib.mouth.chunking import Row
from omnilib.omni import Omni
from omnilib.pacing import Span
from omnilib.tracks import Mouth

RELEASED_HOP = 200  # tokens before the released code lets sound out (8 s of speech)
MOST_ROWS = 400  # of a probe


@contextmanager
def writes(omni: Omni, text: str) -> Iterator[Omni]:
    """Meanwhile the brain writes this text: its steps are computed as always, their ids replaced."""
    brain = omni.brain
    steps, ids = brain.steps, brain.processor.tokenizer.encode(text, add_special_tokens=False)

    def given(batch, settings):
        end = settings.eos or brain.model.generation_config.eos_token_id or brain.model.config.eos_token_id
        last = end[0] if isinstance(end, list | tuple) else end
        real = steps(batch, settings)
        for new in [*ids, last]:
            next(real, None)
            yield torch.full((len(batch["input_ids"]),), new)

    brain.steps = given
    try:
        yield omni
    finally:
        del brain.steps


def rows_of(omni: Omni, text: str, released: bool, voice: str | None = None) -> tuple[list[Row], Mouth]:
    """Rows of a text that goes to the mouth unchanged, by the rules of the released joint loop or by ours."""
    talk, front = omni.conversation(voice), omni.speech.front
    mouth = Mouth(omni.speech.model, front, talk.reference.prompt, talk.settings, released)
    mouth.push(front.tokenizer.encode(text, add_special_tokens=False), last=True)
    while not mouth.over and len(mouth.rows) < MOST_ROWS:
        mouth.step()
    return mouth.rows, mouth


def wait_needed(pieces: Sequence[tuple[float, float]], slower: float = 1.0) -> float:
    """Seconds that a listener must wait with the first piece in hand, were all times `slower` times as long, so that
    nothing starves afterwards."""
    if not pieces:
        return 0.0
    first = pieces[0][0] * slower
    before = [0.0, *accumulate(seconds for _, seconds in pieces)]  # sound that came before each piece
    return max(0.0, *(slower * now - first - have for (now, _), have in zip(pieces, before, strict=False)))


def first_sound_released(spans: Sequence[Span], streams: int, pre_pad: int) -> float:
    """Seconds to the first sound with the released first hop, from the mean times of these steps: `RELEASED_HOP`
    tokens, their rows, an id of the brain for each, and one pass of the codec over all of them."""
    mean = {
        kind: [s.seconds for s in spans if s.kind == kind]
        for kind in ("read", "first", "brain", "row", "hop")
    }
    cost = {kind: sum(own) / len(own) if own else 0.0 for kind, own in mean.items()}
    rows = RELEASED_HOP // streams + pre_pad
    return (
        cost["read"] + cost["first"] + rows * (cost["row"] + cost["brain"]) + RELEASED_HOP / 25 * cost["hop"]
    )
