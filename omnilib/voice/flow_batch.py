"""Chunks of several streams as one batch of the flow.

Streams are of different ages: their keys and values are padded on the left, where attention does not look. The last
chunk of a stream may be short and is padded on the right. Each stream has the mel that it has alone, up to the rounding
of sums.

Shapes: B streams, C copies of each (2 with guidance), F frames of a chunk, M mels, S keys, H heads, D width.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from omnilib.voice.causal import Cache, bias_of, length_mask
from omnilib.voice.flow_encoder import RATIO

if TYPE_CHECKING:
    from omnilib.voice.flow import FlowStream


class JointCache(Cache):
    """One cache for a batch: copy c of stream b is row c B + b, and all keys end together. `grown`: a new one for each stream."""

    def __init__(self, caches: list[Cache]):
        super().__init__()
        self.caches, self.slots = caches, caches[0].slots
        self.grown = [Cache() for _ in caches]

    def extend(self, new: Tensor, dim: int, keep: int | None = None) -> Tensor:
        """As `Cache.extend`; padding on the left of the keys is zero."""
        olds, streams = [cache.slots[self.next] for cache in self.caches], len(self.caches)
        self.next += 1
        if keep is not None:  # inputs of a convolution: (C, k - 1, D)
            joined = torch.cat([torch.stack(olds, 1).flatten(0, 1), new], dim)
            kept = joined.narrow(dim, joined.shape[dim] - keep, keep)
            for i, cache in enumerate(self.grown):
                cache.slots.append(kept[i::streams])
            return joined
        pairs, copies, heads, _, width = olds[0].shape  # keys and values: (2, C, H, S, D / H)
        longest = max(old.shape[3] for old in olds)
        joined = new.new_empty(pairs, copies, streams, heads, longest + new.shape[3], width)
        for i, old in enumerate(olds):
            start = longest - old.shape[3]
            joined[:, :, i, :, :start] = 0
            joined[:, :, i, :, start:longest] = old
            self.grown[i].slots.append(joined[:, :, i, :, start:])
        joined = joined.flatten(1, 2)
        joined[:, :, :, longest:] = new
        return joined


@torch.inference_mode()
def chunks(streams: list["FlowStream"]) -> list[Tensor]:
    """The next chunk of every stream: mel (1, M, F) each. A stream that ends may have a shorter one."""
    flow, c = streams[0].flow, streams[0].flow.config
    count, ahead = c.encoder.chunk, c.encoder.look_ahead
    for stream in streams:
        stream.loosen(stream.past * RATIO)  # a recorded stream goes back to plain caches
    oldest = max(stream.past for stream in streams)
    speaker = torch.cat([stream.speaker for stream in streams])
    real = [
        min(stream.pending.shape[1], count + ahead) for stream in streams
    ]  # tokens, look-ahead among them
    skip = torch.tensor([oldest - stream.past for stream in streams], device=speaker.device)
    ends = torch.tensor([oldest + min(n, count) for n in real], device=speaker.device)
    even = all(stream.past == oldest for stream in streams) and min(real) == count + ahead

    tokens = [
        F.pad(stream.pending[:, : count + ahead], (0, count + ahead - n))
        for stream, n in zip(streams, real, strict=True)
    ]
    level = None if flow.pitch is None else torch.cat([stream.level for stream in streams])
    x = flow.embed(torch.cat(tokens), torch.cat([stream.vector for stream in streams]), level)
    heard = JointCache([stream.encoder_cache for stream in streams])
    lengths = None if min(real) == count + ahead else torch.tensor(real, device=speaker.device)
    seen = None if even else length_mask(ends, oldest + count) & ~length_mask(skip, oldest + count)
    encoded = flow.encoder(x, lengths, True, ahead, heard, oldest, seen=seen)
    mu = flow.first_mel(encoded, level)  # (B, F, M)

    frames = mu.shape[1]
    pairs = [stream.given_at(stream.past * RATIO, frames) for stream in streams]
    x0, prompt = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    bias = None
    if seen is not None:  # (C B, 1, 1, S)
        mask = seen.repeat_interleave(RATIO, 1).repeat(flow.decoder.copies, 1)[:, None, None]
        bias = bias_of(mask, flow.decoder.estimator.final_proj.weight.dtype)
    caches = [JointCache(list(own)) for own in zip(*(s.caches for s in streams), strict=True)]
    given = speaker, prompt, streams[0].steps, None, True, caches, oldest * RATIO, bias
    mel = flow.decoder.solve(x0, mu, *given)
    for i, stream in enumerate(streams):
        stream.encoder_cache = heard.grown[i]
        stream.caches = [cache.grown[i] for cache in caches]
    made = [min(n, count) for n in real]
    return [
        stream.done(mel[i : i + 1, : n * RATIO], n)
        for i, (stream, n) in enumerate(zip(streams, made, strict=True))
    ]
