"""What makes a layer streamable: masks that look left, convolutions that look left, and a cache of what they looked at.

Shapes: B batch, T time, S keys, D width, H heads.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def length_mask(lengths: Tensor, size: int) -> Tensor:
    """True inside each item: (B, size)."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def chunk_mask(queries: int, keys: int, chunk: int, device: torch.device) -> Tensor:
    """True where a key lies in the query's chunk or left of it; queries are the last of the keys: (queries, keys).

    Source: CosyVoice 2, arXiv 2412.10117, section 2.4.
    """
    position = torch.arange(keys - queries, keys, device=device)
    return torch.arange(keys, device=device) < ((position // chunk + 1) * chunk)[:, None]


def attention_mask(
    queries: int, keys: int, valid: Tensor | None, chunk: int | None, device: torch.device
) -> Tensor | None:
    """Which keys each query may see, (B or 1, 1, queries or 1, keys); None when it may see all (the fast kernel).

    Source: CosyVoice 2, arXiv 2412.10117, section 2.4.
    """
    inside = (
        chunk is None or (keys - queries) // chunk == (keys - 1) // chunk
    )  # queries of the last chunk see all
    chunked = None if inside else chunk_mask(queries, keys, chunk, device)[None, None]
    if valid is None:
        return chunked
    return valid[:, None, None] if chunked is None else valid[:, None, None] & chunked


def bias_of(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A mask as numbers added to the scores, 0 or -inf: made once, where booleans would be turned into it in every layer."""
    if mask is None:
        return None
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -torch.inf)


class Cache:
    """What causal layers remember from chunk to chunk: one tensor a layer, kept in call order.

    A convolution keeps its last kernel - 1 inputs (B, k - 1, D); an attention its keys and values (2, B, H, S, D / H).
    """

    def __init__(self) -> None:
        self.slots: list[Tensor] = []
        self.next = 0

    def rewind(self) -> "Cache":
        self.next = 0
        return self

    def fork(self) -> "Cache":
        """The same tensors under a list of its own."""
        twin = Cache()
        twin.slots = list(self.slots)
        return twin

    def extend(self, new: Tensor, dim: int, keep: int | None = None) -> Tensor | None:
        """What was kept, joined with `new` along `dim`; keeps the last `keep` entries (all when None)."""
        old = self.slots[self.next] if self.next < len(self.slots) else None
        joined = new if old is None else torch.cat([old, new], dim)
        kept = joined if keep is None else joined.narrow(dim, joined.shape[dim] - keep, keep)
        self.slots[self.next : self.next + 1] = [kept]
        self.next += 1
        return joined


class CausalConv(nn.Conv1d):
    """Convolution over (B, T, D) that sees only the past (CosyVoice 2, arXiv 2412.10117, section 2.4)."""

    def __init__(self, inputs: int, outputs: int, kernel: int):
        super().__init__(inputs, outputs, kernel)

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        k, time = self.kernel_size[0], x.shape[1]
        if cache is None or cache.next >= len(cache.slots):
            x = F.pad(x, (0, 0, k - 1, 0))
        if cache is not None:
            x = cache.extend(x, 1, k - 1)
        windows = torch.cat([x[:, i : i + time] for i in range(k)], -1)  # (B, T, k * D)
        return F.linear(windows, self.weight.transpose(1, 2).flatten(1), self.bias)
