"""CTC between positions of speech (or of a picture) and its words, in the language model's own vocabulary.

A frozen language model teaches a new projector little: its loss stays that of a model that hears nothing until, by
chance, positions begin to look like text. CTC (Graves et al. 2006) asks for it directly: a position is to be nearest to
the embedding of the next piece of the transcript, or to that of a blank. Whether this pays at
equal cost has not been measured. The paper does not speak of it; chapter 09 draws its curve.

A vision tower that begins from nothing learns likewise, on words to read and things to name (`nano/brain_eyes`), but what
a picture shows has no order in time: each piece of the answer is to stand out somewhere (`naming_loss`).

Positions must be at least as many as pieces of text. SmolLM2 spells most Chinese characters with two or three pieces, so
it needs a smaller ds_rate than English does. Rows that do not fit count nothing.
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.functional import ctc_loss, linear
from torch.nn.utils.rnn import pad_sequence


def pieces_of(texts: Iterable[str], tokenizer) -> Tensor:
    """Ids of all pieces of some answers behind that of "no text here", the smallest special one: (V,), sorted.

    Only these are told apart, not the whole vocabulary: less to compute.
    """
    found = {i for text in texts for i in tokenizer(text, add_special_tokens=False)["input_ids"]}
    blank = min(tokenizer.all_special_ids)
    return torch.tensor([blank, *sorted(found - set(tokenizer.all_special_ids))])


def alignment_loss(features: Tensor, places: Tensor, labels: Tensor, pieces: Tensor, table: Tensor) -> Tensor:
    """Mean CTC loss a piece of text, over the rows that hold the medium.

    Args:
        features: (N, D) of the medium, what the language model is given at its places, row by row.
        places: (B, L) bool, N of them true. labels: (B, L); ids that are no piece, as the one that ends an answer, are
            left out.
        pieces: of `pieces_of`.
        table: (vocabulary, D) embeddings of text.

    Returns:
        (), 0 where no row holds it.
    """
    order, counts = pieces[1:].contiguous(), places.sum(1)
    text = torch.isin(labels, order)  # (B, L)
    rows = ((counts > 0) & text.any(1)).nonzero()[:, 0].tolist()
    if not rows:
        return features.sum() * 0.0
    given = features.split(counts.tolist())
    scores = linear(pad_sequence([given[i] for i in rows]), table[pieces])  # (T, rows, V)
    targets = 1 + torch.searchsorted(order, torch.cat([labels[i][text[i]] for i in rows]))
    return ctc_loss(
        scores.float().log_softmax(-1), targets, counts[rows], text[rows].sum(1), zero_infinity=True
    )


def naming_loss(features: Tensor, places: Tensor, labels: Tensor, pieces: Tensor, table: Tensor) -> Tensor:
    """Mean surprise at the pieces of an answer, where a picture's best places speak for it; order does not matter.

    A piece's score is the logarithm of its summed exponentials over all places, softmax goes over pieces. Arguments and
    return value as of `alignment_loss`; an answer of several equally likely pieces cannot reach 0.
    """
    order, counts = pieces[1:].contiguous(), places.sum(1)
    named = torch.isin(labels, order)  # (B, L)
    rows = (counts > 0) & named.any(1)
    if not rows.any():
        return features.sum() * 0.0
    scores = linear(features, table[order]).float().split(counts.tolist())
    shown = [own for own, kept in zip(scores, rows.tolist(), strict=True) if kept]
    surprise = -pad_sequence(shown, padding_value=float("-inf")).logsumexp(0).log_softmax(-1)  # (rows, V)
    named, labels = named[rows], labels[rows]
    row = named.nonzero()[:, 0]
    each = surprise[row, torch.searchsorted(order, labels[named])]
    return (each / named.sum(1)[row]).sum() / len(surprise)
