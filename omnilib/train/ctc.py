"""CTC between positions of speech (or of a picture) and its words, in the language model's own vocabulary.

A frozen language model teaches a new projector little: its loss stays that of a model that hears nothing until, by
chance, positions begin to look like text. CTC (Graves et al. 2006) asks for it directly: a position is to be nearest to
the embedding of the next piece of the transcript, or to that of a blank. Whether this pays at
equal cost has not been measured. The paper does not speak of it; chapter 09 draws its curve.

A vision tower that begins from nothing learns likewise, on words to read and things to name (`nano/brain_eyes`), but what
a picture shows has no order in time: each piece of the answer is to stand out somewhere (`naming_loss`).

To be nearest to a word is not yet to be one: the language model reads a position soon if it is the word's embedding, which
`likeness_loss` asks for.

Positions must be at least as many as pieces of text. SmolLM2 spells most Chinese characters with two or three pieces, so
it needs a smaller ds_rate than English does. Rows that do not fit count nothing.

Shapes: N positions of the medium in all rows, B rows, L positions of a row, V pieces, D width of the language model.
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.functional import ctc_loss, linear
from torch.nn.utils.rnn import pad_sequence

SHARP = 4.0


def pieces_of(texts: Iterable[str], tokenizer) -> Tensor:
    """Ids of all pieces of some answers behind that of "no text here", the smallest special one: (V,), sorted.

    Only these are told apart, not the whole vocabulary: less to compute.
    """
    found = {i for text in texts for i in tokenizer(text, add_special_tokens=False)["input_ids"]}
    blank = min(tokenizer.all_special_ids)
    return torch.tensor([blank, *sorted(found - set(tokenizer.all_special_ids))])


def scores_of(features: Tensor, table: Tensor) -> Tensor:
    """How much positions (N, D) look like pieces of text, given the embeddings (V, D) of these: (N, V), logits.

    Sharp enough that a position that is a piece's embedding is sure of it: those of SmolLM2 are about 3 long.
    """
    return SHARP * linear(features, table)


def likeness_loss(features: Tensor, scores: Tensor, table: Tensor) -> Tensor:
    """Mean squared distance of positions (N, D) to the mean of the embeddings (V, D) that `scores` (N, V) take them for, in
    units of an embedding's mean square: (). The goal is not differentiated."""
    with torch.no_grad():
        goal = scores.float().softmax(-1).to(table.dtype) @ table
    distance = (features.float() - goal.float()).square().sum(-1)
    return distance.mean() / table.float().square().sum(-1).mean()


def alignment_loss(scores: Tensor, places: Tensor, labels: Tensor, pieces: Tensor) -> Tensor:
    """Mean CTC loss a piece of text, over the rows that hold the medium.

    Args:
        scores: (N, V) of `scores_of`, of what the language model is given at places of the medium, row by row.
        places: (B, L) bool, N of them true. labels: (B, L); ids that are no piece, as the one that ends an answer, are
            left out.
        pieces: (V,) of `pieces_of`.

    Returns:
        (), 0 where no row holds it.
    """
    order, counts = pieces[1:].contiguous(), places.sum(1)
    text = torch.isin(labels, order)  # (B, L)
    rows = ((counts > 0) & text.any(1)).nonzero()[:, 0].tolist()
    if not rows:
        return scores.sum() * 0.0
    given = scores.split(counts.tolist())
    given = pad_sequence([given[i] for i in rows])  # (T, rows, V)
    targets = 1 + torch.searchsorted(order, torch.cat([labels[i][text[i]] for i in rows]))
    return ctc_loss(
        given.float().log_softmax(-1), targets, counts[rows], text[rows].sum(1), zero_infinity=True
    )


def naming_loss(scores: Tensor, places: Tensor, labels: Tensor, pieces: Tensor) -> Tensor:
    """Mean surprise at the pieces of an answer, where a picture's best places speak for it; order does not matter.

    A piece's score is the logarithm of its summed exponentials over all places, softmax goes over pieces without the blank.
    Arguments and return value as of `alignment_loss`; an answer of several equally likely pieces cannot reach 0.
    """
    order, counts = pieces[1:].contiguous(), places.sum(1)
    named = torch.isin(labels, order)  # (B, L)
    rows = (counts > 0) & named.any(1)
    if not rows.any():
        return scores.sum() * 0.0
    given = scores[:, 1:].float().split(counts.tolist())
    shown = [own for own, kept in zip(given, rows.tolist(), strict=True) if kept]
    surprise = -pad_sequence(shown, padding_value=float("-inf")).logsumexp(0).log_softmax(-1)  # (rows, V)
    named, labels = named[rows], labels[rows]
    row = named.nonzero()[:, 0]
    each = surprise[row, torch.searchsorted(order, labels[named])]
    return (each / named.sum(1)[row]).sum() / len(surprise)
