"""One row at a time: the SpeechLM's blocks run against a preallocated key/value cache.

The arithmetic is that of `SpeechLM.hidden` (a test holds the two together), on weights laid out for it
(`fast_weights.py`) and with as few calls as it takes: one row is 0.16 s of speech, and a small model spends
longer on calling than on computing.

Cache layout, one pair for each block, backbone first, then adapter: keys, values (B, K, M, H), two views of
one tensor. M grows by doubling, block by block. Prompts of a batch are padded on the *left*, so every
sequence writes at the same place `length`; `start` (B,) tells where each one begins. A finished sequence can
be dropped from the batch with `keep`.

Shapes: B batch, L rows, N = B L, D width, A query heads, K key heads, G = A / K, H head width, k streams, S
ids a stream.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from omnilib.device import GIB, free_memory
from omnilib.errors import LimitError
from omnilib.mouth.fast_weights import BlockWeights, StepWeights, weights_of
from omnilib.mouth.speechlm import SpeechLM

LIGHT = 32_000_000  # multiplications: a step of fewer is quicker on one thread than on two


@contextmanager
def one_thread() -> Iterator[None]:
    """Run on one thread: waking the others costs more than a small product."""
    threads = torch.get_num_threads()
    if threads > 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if threads > 1:
            torch.set_num_threads(threads)


class Stepper:
    """A batch of sequences being decoded (paper eqs. 3, 4).

    Args:
        model: in eval mode.
        prompts: rows (R, 1 + k) of each sequence.
        capacity: rows to reserve beyond the longest prompt.
        weights: in place of those that the model was prepared with.

    Raises:
        LimitError: the cache does not fit into the memory that is free.
    """

    def __init__(
        self,
        model: SpeechLM,
        prompts: list[Tensor],
        capacity: int = 512,
        weights: StepWeights | None = None,
    ):
        self.model, self.weights = model, weights or weights_of(model)
        self.blocks: list[BlockWeights] = self.weights.backbone + self.weights.adapter
        self.device, self.dtype = model.lm_head.weight.device, self.weights.dtype
        self.size = sum(p.numel() for layer in model.model.layers for p in layer.parameters())
        self.eps = torch.tensor(model.config.rms_norm_eps, device=self.device)
        longest = max(map(len, prompts))
        self.start = torch.tensor([longest - len(p) for p in prompts], device=self.device)  # (B,)
        self.uneven = bool(self.start.any())
        self.length, self.capacity = 0, 0
        self.cache: list[tuple[Tensor, Tensor]] = []
        self.both: list[Tensor] = []
        self.reserve(longest + capacity)
        # each prompt by itself: padding would cost time, and could move a rounding
        logits = torch.cat([self.read(i, prompt) for i, prompt in enumerate(prompts)])
        self.length, self.logits = longest, logits  # (B, k, S): of the first row to decode

    # ---- the cache --------------------------------------------------------------------------------

    def reserve(self, capacity: int) -> None:
        """Make room for `capacity` rows in all.

        Raises:
            LimitError: they do not fit into the memory that is free; the cache is as it was.
        """
        batch, size = len(self.start), torch.empty(0, dtype=self.dtype).element_size()
        rows = [2 * batch * block.groups * block.width * size for block in self.blocks]  # bytes of one row
        need = sum(rows) * (capacity - self.capacity) + max(rows) * self.capacity
        free = free_memory(self.device)
        if free is not None and need > free:
            raise LimitError(
                f"{capacity} rows of {batch} texts need {need / GIB:.1f} GiB more memory, "
                f"{free / GIB:.1f} GiB are free: speak fewer texts at a time, or shorter ones (max_rows, pass_rows)"
            )
        old, self.both = self.cache, []
        self.cache = []
        for i, block in enumerate(self.blocks):
            # zeros: a row that is masked still counts 0 times its value, which must not be NaN
            shape = batch, 2 * block.groups, capacity, block.width
            self.hold(torch.zeros(shape, dtype=self.dtype, device=self.device))
            if old:
                for new, known in zip(self.cache[i], old[i], strict=True):
                    new[:, :, : self.length] = known[:, :, : self.length]
                old[i] = None  # old and new are there together for one block only
        self.capacity = capacity
        positions = torch.arange(capacity, device=self.device)[None]
        cos, sin = self.model.model.rotary_emb(
            torch.empty(0, dtype=torch.float32, device=self.device), positions
        )
        half = sin.shape[-1] // 2
        sin = torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)  # carries the sign of the first half
        self.rope = torch.stack((cos[0], sin[0]), 1)[:, :, None]  # (M, 2, 1, H)
        self.note()

    def keep(self, indices: list[int]) -> None:
        """Go on with these sequences of the batch only."""
        chosen = torch.tensor(indices, device=self.device)
        self.start, self.logits = self.start[chosen], self.logits[chosen]
        old, self.both, self.cache = self.both, [], []
        for both in old:
            self.hold(both[chosen])
        self.note()

    def hold(self, both: Tensor) -> None:
        """Add a block's keys and values, one tensor (B, 2 K, M, H), to the cache."""
        self.both.append(both)
        self.cache.append(both.chunk(2, 1))

    def note(self) -> None:
        """What all steps share until the batch or its cache changes."""
        self.mask = None
        if self.uneven:
            there = torch.arange(self.capacity, device=self.device)
            self.mask = torch.zeros(
                len(self.start), 1, 1, self.capacity, dtype=self.dtype, device=self.device
            )
            self.mask.masked_fill_((there < self.start[:, None])[:, None, None], -torch.inf)

    # ---- one step ---------------------------------------------------------------------------------

    def unit(self, x: Tensor) -> Tensor:
        """RMS norm without its weight, in float32 (F.rms_norm takes twice as many kernels)."""
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        return x * torch.addcmul(self.eps, size, size, value=1 / x.shape[-1]).rsqrt_()

    def attend(self, block: BlockWeights, both: Tensor, qkv: Tensor, mask: Tensor | None) -> Tensor:
        """Store new keys and values, attend from the new rows: qkv (B, L, A + 2 K, H) -> (N, A H)."""
        batch, size = qkv.shape[:2]
        end = self.length + size
        known = both[:, :, :end]
        keys, values = known[:, : block.groups], known[:, block.groups :]  # (B, K, M, H)
        if size == 1:  # the query heads of a group are its rows
            both.select(2, self.length).copy_(qkv[:, 0, block.heads :])
            q = qkv[:, 0, : block.heads].view(batch, block.groups, -1, block.width)  # (B, K, G, H)
            return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask).view(batch, -1)
        both[:, :, self.length : end] = qkv[:, :, block.heads :].transpose(1, 2)
        q = qkv[:, :, : block.heads].transpose(1, 2)  # (B, A, L, H)
        y = F.scaled_dot_product_attention(
            q, keys, values, attn_mask=mask, is_causal=mask is None, enable_gqa=True
        )
        return y.transpose(1, 2).reshape(batch * size, -1)

    def block(
        self, block: BlockWeights, x: Tensor, both: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None
    ) -> Tensor:
        """One Qwen3 block over new rows, whose keys and values are stored: (N, D) -> (N, D).

        Args:
            cos, sin: (N or 1, 1, H).

        Source: RoPE, arXiv 2104.09864, eq. 34.
        """
        qkv = block.qkv(self.unit(x) * block.norm).view(len(x), -1, block.width)  # (N, A + 2 K, H)
        qk = qkv[:, : block.heads + block.groups]
        turned = self.unit(qk) * block.head_norm
        first, second = turned.chunk(2, -1)
        torch.addcmul(turned * cos, torch.cat((second, first), -1), sin, out=qk)
        y = self.attend(block, both, qkv.view(len(both), -1, *qkv.shape[1:]).to(self.dtype), mask)
        x = block.out.plus(x, y)
        gate, up = block.gate_up(self.unit(x) * block.mlp_norm).chunk(2, -1)
        return block.down.plus(x, F.silu(gate).mul_(up))

    @torch.inference_mode()
    def advance(self, rows: Tensor) -> Tensor:
        """Feed rows (B, L, 1 + k); returns the speech logits after the last of them: (B, k, S).

        Raises:
            LimitError: the cache is full and there is no memory for a larger one; a later try may succeed.
        """
        size, end = rows.shape[1], self.length + rows.shape[1]
        if end > self.capacity:
            known = self.model.config.max_position_embeddings
            room = min(2 * self.capacity, max(known, self.capacity + 512))
            self.reserve(max(end, room))
        if size == 1 and self.size * len(rows) < LIGHT:
            with one_thread():
                return self.run(rows, end)
        return self.run(rows, end)

    def run(self, rows: Tensor, end: int) -> Tensor:
        batch, size = rows.shape[:2]
        mask = None
        if self.uneven:
            local = torch.arange(self.length, end, device=self.device) - self.start[:, None]  # (B, L)
            rope = self.rope.index_select(0, local.flatten())  # (N, 2, 1, H)
        else:
            rope = self.rope[self.length : end]  # (L, 2, 1, H)
            if batch > 1 and size > 1:
                rope = rope.repeat(batch, 1, 1, 1)
        if size == 1:
            mask = self.mask if self.mask is None else self.mask[..., :end]
        elif self.uneven or self.length:
            there = torch.arange(end, device=self.device)
            past = there <= there[self.length :, None]  # (L, M)
            mask = (past & (there >= self.start[:, None, None]))[:, None]  # (B, 1, L, M)
        self.logits = self.through(rows, self.both, rope, mask)
        self.length = end
        return self.logits

    @torch.inference_mode()
    def read(self, i: int, prompt: Tensor) -> Tensor:
        """The prompt (R, 1 + k) of sequence `i`, into the empty cache: logits (1, k, S)."""
        begin = int(self.start[i])
        both = [cache[i : i + 1, :, begin:] for cache in self.both]
        return self.through(prompt[None].to(self.device), both, self.rope[: len(prompt)], None)

    def through(self, rows: Tensor, cache: list[Tensor], rope: Tensor, mask: Tensor | None) -> Tensor:
        """All blocks and the head: rows (B, L, 1 + k), rope (N or L or 1, 2, 1, H) -> logits (B, k, S)."""
        batch, size = rows.shape[:2]
        cos, sin = rope.unbind(1)
        ids = (rows + self.model.offsets).view(batch * size, -1)  # (N, 1 + k)
        # the mean of eq. 3, for which there is no quick kernel
        x = F.embedding_bag(ids, self.model.model.embed_tokens.weight, mode="sum")
        x = x.float() / ids.shape[-1]  # (N, D)
        for i, (block, both) in enumerate(zip(self.blocks, cache, strict=True)):
            if i == len(self.weights.backbone):
                x = self.unit(x) * self.weights.norm
            x = self.block(block, x, both, cos, sin, mask)
        if size > 1:
            x = x.view(batch, size, -1)[:, -1]
        logits = self.weights.head(x).float()  # (B, k S)
        return logits.view(batch, self.model.config.speech_token_count, -1)
