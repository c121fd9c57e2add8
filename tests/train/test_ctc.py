"""CTC between positions of speech and words."""

import math

import pytest
import torch

from omnilib.brain.layout import IGNORE
from omnilib.train.ctc import SHARP, alignment_loss, likeness_loss, naming_loss, scores_of

PIECES = torch.tensor([0, 4, 5, 7, 9, 11])


def rows(words: list[list[int]], positions: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Places and labels of rows: speech, then words and the id that ends an answer."""
    length = max(n + len(w) + 1 for n, w in zip(positions, words, strict=True))
    places, labels = torch.zeros(len(words), length).bool(), torch.full((len(words), length), IGNORE)
    for i, (n, w) in enumerate(zip(positions, words, strict=True)):
        places[i, :n] = True
        labels[i, n : n + len(w) + 1] = torch.tensor([*w, 2])
    return places, labels


def test_positions_learn_to_stand_for_the_words_in_their_order():
    torch.manual_seed(0)
    table = torch.randn(12, 16)
    places, labels = rows([[5, 5, 7], [9]], [8, 4])
    features = torch.zeros(12, 16, requires_grad=True)
    optimizer = torch.optim.Adam([features], lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        loss = alignment_loss(scores_of(features, table[PIECES]), places, labels, PIECES)
        loss.backward()
        optimizer.step()
    read = [PIECES[(row @ table[PIECES].T).argmax(-1)] for row in features.split([8, 4])]
    read = [[int(k) for k in torch.unique_consecutive(row) if k] for row in read]
    assert loss < 0.1 and read == [[5, 5, 7], [9]]


def test_rows_without_speech_or_words_and_too_long_texts_count_nothing():
    table = torch.randn(12, 16)
    places, labels = rows([[5, 7], [5] * 6], [4, 3])
    features = torch.randn(7, 16, requires_grad=True)
    both = alignment_loss(scores_of(features, table[PIECES]), places, labels, PIECES)
    one = alignment_loss(scores_of(features[:4], table[PIECES]), places[:1], labels[:1], PIECES)
    assert both.item() == pytest.approx(one.item() / 2)  # a mean over rows
    nothing = alignment_loss(scores_of(features, table[PIECES]), torch.zeros_like(places), labels, PIECES)
    nothing.backward()
    assert nothing == 0 and features.grad.abs().sum() == 0


def test_a_picture_is_named_by_its_best_places_in_any_order():
    torch.manual_seed(0)
    table = torch.randn(12, 16)
    places, labels = rows([[5, 7], [9]], [4, 4])
    features = torch.zeros(8, 16, requires_grad=True)
    optimizer = torch.optim.Adam([features], lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        loss = naming_loss(scores_of(features, table[PIECES]), places, labels, PIECES)
        loss.backward()
        optimizer.step()
    features = features.detach()
    shown = [(SHARP * row @ table[PIECES[1:]].T).logsumexp(0).topk(2).indices for row in features.split(4)]
    assert {int(PIECES[1:][i]) for i in shown[0]} == {5, 7} and int(PIECES[1:][shown[1][0]]) == 9
    assert loss.item() == pytest.approx(
        math.log(2) / 2, abs=0.02
    )  # two pieces, each half of the first picture
    other = labels.clone()
    other[0, 4:6] = labels[0, [5, 4]]
    swapped = naming_loss(scores_of(features, table[PIECES]), places, other, PIECES)
    assert swapped.item() == pytest.approx(naming_loss(scores_of(features, table[PIECES]), places, labels, PIECES).item())
    nothing = naming_loss(scores_of(features, table[PIECES]), torch.zeros_like(places), labels, PIECES)
    assert nothing == 0


def test_positions_become_the_embeddings_that_they_are_taken_for():
    torch.manual_seed(0)
    table = torch.randn(6, 16)
    features = (5 * table[[2, 4]] + torch.randn(2, 16)).requires_grad_()
    assert likeness_loss(table, scores_of(table, table), table) < 1e-3
    optimizer = torch.optim.Adam([features], lr=0.1)
    for _ in range(350):
        optimizer.zero_grad()
        likeness_loss(features, scores_of(features, table), table).backward()
        optimizer.step()
    assert torch.allclose(features, table[[2, 4]], atol=0.05)
