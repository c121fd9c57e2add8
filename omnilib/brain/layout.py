"""Where media stand in a sequence: placeholders grow to as many positions as they need, and every position
gets its place in text order, height and width (the three rows of Qwen2.5-VL's rotary embedding, "mRoPE").

In ids, -200 stands for a picture or video and -500 for a recording. A grown sequence repeats them, one for
each position:

    ids          system  user  -200 -200 -200 -200 -200 -200  what  is  it  -500 -500 -500  assistant
    time             0     1     2    2    2    2    2    2     5    6   7    8    9   10      11
    height           0     1     2    2    2    3    3    3     5    6   7    8    9   10      11
    width            0     1     2    3    4    2    3    4     5    6   7    8    9   10      11

What follows a picture goes on one beyond its largest number, so positions may be fewer than ids: `rope_delta`
is the difference and belongs to each row of a batch, also to one of text only (zero).

Shapes: B batch, L positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from omnilib.errors import MediaError

IMAGE, SPEECH, IGNORE = -200, -500, -100
Grid = tuple[int, int, int]  # patches of a picture: frame pairs, height, width


def grid_size(grid: Grid, merge: int) -> Grid:
    """Positions along time, height and width."""
    t, h, w = (int(n) for n in grid)
    return t, h // merge, w // merge


@dataclass
class Row:
    """One sequence with its placeholders grown."""

    ids: Tensor  # (L,)
    positions: Tensor  # (3, L)
    labels: Tensor | None = None  # (L,) with IGNORE at media

    @property
    def rope_delta(self) -> int:
        """What to add to the count of ids to get the next position."""
        return int(self.positions.max()) + 1 - len(self.ids) if len(self.ids) else 0


def check_counts(wanted: int, given: int, marker: str, noun: str) -> None:
    """Raise unless there is one medium for each placeholder.

    Raises:
        MediaError: one line.
    """
    if wanted != given:
        raise MediaError(
            f"the text has {wanted} {marker} but {given} {noun} given: put one {marker} in the text for each",
        )


def grow(
    ids: Sequence[int],
    grids: Sequence[Grid] = (),
    speech: Sequence[int] = (),
    labels: Sequence[int] | None = None,
    merge: int = 2,
) -> Row:
    """Grow placeholders and number the positions (Qwen2-VL, arXiv 2409.12191, section 2.1).

    Args:
        ids: text ids, IMAGE and SPEECH.
        grids: of each picture or video, in the order of the text.
        speech: positions of each recording, in the order of the text.
        labels: one for each id.

    Raises:
        MediaError: more placeholders than media, or fewer.
    """
    ids = [int(i) for i in ids]
    check_counts(ids.count(IMAGE), len(grids), "<image>", "pictures or videos are")
    check_counts(ids.count(SPEECH), len(speech), "<speech>", "recordings are")
    pictures, recordings = iter(grids), iter(speech)
    labels = [IGNORE] * len(ids) if (unlabelled := labels is None) else [int(label) for label in labels]
    out_ids, out_labels, positions, start = [], [], [], 0
    for token, label in zip(ids, labels, strict=True):
        if token == IMAGE:
            place = torch.cartesian_prod(
                *(torch.arange(n) for n in grid_size(next(pictures), merge)),
            ).T  # (3, t h w)
        else:
            place = torch.arange(next(recordings) if token == SPEECH else 1).expand(3, -1)
        count = place.shape[1]
        out_ids += [token] * count
        out_labels += [IGNORE if token in (IMAGE, SPEECH) else label] * count
        positions.append(place + start)
        start += int(place.max()) + 1 if count else 0
    places = torch.cat(positions, 1) if positions else torch.zeros(3, 0, dtype=torch.long)
    return Row(
        torch.tensor(out_ids, dtype=torch.long),
        places,
        None if unlabelled else torch.tensor(out_labels),
    )


def collate(rows: Sequence[Row], pad_id: int = 0, side: str = "right") -> dict[str, Tensor]:
    """A batch: ids (B, L), mask (B, L), positions (3, B, L), rope_deltas (B,) and labels (B, L) if every row
    has them."""

    def padded(sequences: list[Tensor], value: int) -> Tensor:
        return pad_sequence(sequences, batch_first=True, padding_value=value, padding_side=side)

    batch = {
        "input_ids": padded([row.ids for row in rows], pad_id),
        "attention_mask": padded([torch.ones_like(row.ids) for row in rows], 0),
        "position_ids": padded([row.positions.T for row in rows], 0).permute(2, 0, 1).contiguous(),
        "rope_deltas": torch.tensor([row.rope_delta for row in rows]),
    }
    if all(row.labels is not None for row in rows):
        batch["labels"] = padded([row.labels for row in rows], IGNORE)
    return batch
