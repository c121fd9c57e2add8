"""Placeholders grow, positions are numbered as in Qwen2.5-VL, batches are padded on either side."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omnilib.brain.layout import IGNORE, IMAGE, SPEECH, collate, grow
from omnilib.errors import MediaError


def test_the_example_of_the_module_is_what_comes_out():
    row = grow([5, 6, IMAGE, 7, 8, 9, SPEECH, 10], [(1, 4, 6)], [3])
    assert row.ids.tolist() == [5, 6] + [IMAGE] * 6 + [7, 8, 9] + [SPEECH] * 3 + [10]
    assert row.positions.tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6, 7, 8, 9, 10, 11],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6, 7, 8, 9, 10, 11],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11],
    ]
    assert row.rope_delta == 12 - 15


piece = st.one_of(
    st.integers(0, 9),
    # transformers goes on behind max(height, width) even where time is longer: see the next test
    st.tuples(st.integers(1, 3), st.sampled_from([2, 4, 6]), st.sampled_from([2, 4, 6])).filter(
        lambda g: g[0] <= max(g[1:]) // 2,
    ),
    st.integers(1, 5).map(lambda n: ("speech", n)),
)


@given(st.lists(piece, min_size=1, max_size=8))
@settings(max_examples=100, deadline=None)
def test_positions_agree_with_transformers(pieces):
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

    ids = [p if isinstance(p, int) else SPEECH if p[0] == "speech" else IMAGE for p in pieces]
    grids = [p for p in pieces if isinstance(p, tuple) and p[0] != "speech"]
    row = grow(ids, grids, [p[1] for p in pieces if isinstance(p, tuple) and p[0] == "speech"])

    class Shell:
        """Only what `get_rope_index` reads."""

        class config:  # noqa: N801
            class vision_config:  # noqa: N801
                spatial_merge_size, tokens_per_second = 2, 1

        get_vision_position_ids = Qwen2_5_VLModel.get_vision_position_ids

    kinds = torch.where(row.ids == IMAGE, 1, 0)
    # two pictures in a row would be read as one by transformers' grouping
    seen = [isinstance(p, tuple) and p[0] != "speech" for p in pieces]
    if any(a and b for a, b in zip(seen, seen[1:])):
        return
    positions, deltas = Qwen2_5_VLModel.get_rope_index(
        Shell(),
        row.ids[None],
        mm_token_type_ids=kinds[None],
        image_grid_thw=torch.tensor(grids) if grids else None,
    )
    assert torch.equal(positions[:, 0].long(), row.positions)
    assert int(deltas[0]) == row.rope_delta


@pytest.mark.parametrize(
    ("ids", "grids", "speech"),
    [([IMAGE], [], []), ([1], [(1, 2, 2)], []), ([SPEECH, SPEECH], [], [2]), ([1], [], [2])],
)
def test_placeholders_and_media_must_be_as_many(ids, grids, speech):
    with pytest.raises(MediaError, match=r"the text has \d <(image|speech)> but \d .* given: put one"):
        grow(ids, grids, speech)


def test_labels_at_media_are_ignored():
    row = grow([1, SPEECH, 2], [], [2], labels=[4, 5, 6])
    assert row.labels.tolist() == [4, IGNORE, IGNORE, 6]


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_of_a_batch_keep_their_own_positions_and_delta(side):
    rows = [
        grow([1, IMAGE, 2], [(1, 4, 4)], [], [1, 1, 2]),
        grow([3, 4], [], [], [3, 4]),
        grow([1, SPEECH], [], [2], [0, 0]),
    ]
    batch = collate(rows, pad_id=9, side=side)
    assert batch["rope_deltas"].tolist() == [-2, 0, 0]  # also of the row of text only
    for b, row in enumerate(rows):
        live = batch["attention_mask"][b].bool()
        assert live[-1 if side == "left" else 0] and int(live.sum()) == len(row.ids)
        assert torch.equal(batch["input_ids"][b][live], row.ids) and (batch["input_ids"][b][~live] == 9).all()
        positions, labels = batch["position_ids"][:, b], batch["labels"][b]
        assert torch.equal(positions[:, live], row.positions) and not positions[:, ~live].any()
        assert torch.equal(labels[live], row.labels) and (labels[~live] == IGNORE).all()
