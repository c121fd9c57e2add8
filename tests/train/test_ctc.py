"""CTC between positions of speech and words."""

import pytest
import torch

from omnilib.brain.layout import IGNORE, SPEECH
from omnilib.train.ctc import alignment_loss

SPECIAL = torch.tensor([0, 2])


def rows(words: list[list[int]], positions: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """input_ids and labels of rows: speech, then words and the id that ends an answer."""
    length = max(n + len(w) + 1 for n, w in zip(positions, words, strict=True))
    ids, labels = torch.full((len(words), length), 1), torch.full((len(words), length), IGNORE)
    for i, (n, w) in enumerate(zip(positions, words, strict=True)):
        ids[i, :n] = SPEECH
        labels[i, n : n + len(w) + 1] = torch.tensor([*w, 2])
    return ids, labels


def test_positions_learn_to_stand_for_the_words_in_their_order():
    torch.manual_seed(0)
    table = torch.randn(12, 16)
    ids, labels = rows([[5, 5, 7], [9]], [8, 4])
    embeds = torch.zeros(*ids.shape, 16, requires_grad=True)
    optimizer = torch.optim.Adam([embeds], lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        loss = alignment_loss(embeds, ids, labels, SPEECH, table, SPECIAL)
        loss.backward()
        optimizer.step()
    read = [(embeds[i][ids[i] == SPEECH] @ table.T).argmax(-1) for i in range(2)]
    read = [[int(k) for k in torch.unique_consecutive(row) if k] for row in read]
    assert loss < 0.1 and read == [[5, 5, 7], [9]]


def test_rows_without_speech_or_words_and_too_long_texts_count_nothing():
    table = torch.randn(12, 16)
    ids, labels = rows([[5, 7], [5] * 6], [4, 3])
    embeds = torch.randn(*ids.shape, 16, requires_grad=True)
    both = alignment_loss(embeds, ids, labels, SPEECH, table, SPECIAL)
    one = alignment_loss(embeds[:1], ids[:1], labels[:1], SPEECH, table, SPECIAL)
    assert both.item() == pytest.approx(one.item() / 2)  # a mean over rows
    silent = torch.ones_like(ids)
    nothing = alignment_loss(embeds, silent, labels, SPEECH, table, SPECIAL)
    nothing.backward()
    assert nothing == 0 and embeds.grad.abs().sum() == 0
