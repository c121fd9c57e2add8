"""CTC between positions of speech (or of a picture) and its words, in the language model's own vocabulary.

A frozen language model teaches a new projector little: its loss stays that of a model that hears nothing until, by
chance, positions begin to look like text. CTC (Graves et al. 2006) asks for it directly: a position is to be nearest to
the embedding of the next piece of the transcript, or to that of a blank. At nano it costs a quarter of a step through
the model. The paper does not speak of it; chapter 09 draws its curve. A vision tower that begins from nothing learns to
read words, and to name things, in the same way (`nano/brain_eyes`).

Positions must be at least as many as pieces of text. SmolLM2 spells most Chinese characters with two or three pieces, so
Mandarin fits at ds_rate 2 (12.5 positions a second), and English up to 3 or 4. Rows that do not fit count nothing.
"""

import torch
from torch import Tensor
from torch.nn.functional import ctc_loss, linear
from torch.nn.utils.rnn import pad_sequence

from omnilib.brain.layout import IGNORE


def alignment_loss(
    embeds: Tensor, input_ids: Tensor, labels: Tensor, marker: int, table: Tensor, special: Tensor
) -> Tensor:
    """Mean CTC loss a piece of text, over the rows that hold the medium.

    Args:
        embeds: (B, L, D), what the language model is given.
        input_ids, labels: (B, L).
        marker: SPEECH or IMAGE, the id at positions of the medium.
        table: (V, D) embeddings of text.
        special: (n,) ids that are not text: an answer ends with them. The smallest stands for "no text here".

    Returns:
        (), 0 where no row holds it.
    """
    places, text = input_ids == marker, (labels != IGNORE) & ~torch.isin(labels, special)
    rows = [i for i in range(len(embeds)) if places[i].any() and text[i].any()]
    if not rows:
        return embeds.sum() * 0.0
    given = pad_sequence([embeds[i][places[i]] for i in rows])  # (T, rows, D)
    scores = linear(given, table).float().log_softmax(-1)  # (T, rows, V)
    targets = torch.cat([labels[i][text[i]] for i in rows])
    lengths = places[rows].sum(1), text[rows].sum(1)
    return ctc_loss(scores, targets, *lengths, blank=int(special.min()), zero_infinity=True)
