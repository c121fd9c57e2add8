"""A row of the mouth as work of fixed shape: sample, decide the next row, run the blocks. On CUDA it becomes a graph.

    logits --choose--> k ids --StaticRows--> row --embed--> blocks against a window of the cache --> logits

Everything that changes from row to row is a tensor on the model's device (logits, positions, chunk machines, noise), so one
recording serves every row (`omnilib/captured.py`). What a recording fixes is its shape, and shapes come in few sizes: `slots`
sequences (1, 2, 4, ...) and a `window` of cache rows (128, 192, 256, 384, ...), both views of one cache. A longer
window is another recording on the same rows: nothing is copied.

Differences from `step.py`, which needs fewer operations on a CPU
- Each sequence has its own `position`, and prompts are padded on the *right*. So the prompt needs no mask, whatever the
  lengths: a live row never looks at the padding behind it, and what is written there is overwritten later.
- In the step every cache row beyond a sequence's position is masked, by numbers that are added to the scores (0 or -inf),
  made once a row for all blocks. A boolean mask would be turned into the same in every block; and key heads
  that are shared are not repeated but see their queries as one group, since with a mask torch would copy the cache.
- The cache starts as zeros: a masked row still counts 0 times its value, and uninitialised memory may hold NaN.

Shapes: B sequences, n slots in use, L rows, M cache rows, W window, D width, A query heads, K key heads, G = A / K,
H head width, k streams, S ids a stream.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnilib.captured import Captured, Record, room, to_device
from omnilib.device import GIB
from omnilib.errors import LimitError
from omnilib.mouth.chunking import ChunkMachine, Layout
from omnilib.mouth.speechlm import SpeechLM
from omnilib.mouth.static_rows import StaticRows

SMALLEST_WINDOW = 128
NOISE_ROWS = 128  # uniform numbers drawn at a time

Choose = Callable[
    [Tensor, Tensor | None], Tensor
]  # logits (n, k, S) over temperature, noise (n, k) -> ids (n, k)


def slots_for(sequences: int) -> int:
    """The batch size that a recording is made for: the next power of two."""
    return 1 << max(0, sequences - 1).bit_length()


def window_for(rows: int, least: int = SMALLEST_WINDOW) -> int:
    """The window that holds so many rows: a power of two, or one and a half of one."""
    power = 1 << max(0, max(rows, least) - 1).bit_length()
    return power * 3 // 4 if power * 3 // 4 >= max(rows, least) else power


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position of (B, heads, L, H); `sin` carries the sign of the first half.

    Source: RoPE, arXiv 2104.09864, eq. 34.
    """
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def side_by_side(linears: list[nn.Linear]) -> Tensor | None:
    """The weights of several layers as one matrix, where they lie in memory one after the other (see `join_weights`)."""
    first = linears[0].weight
    rows, offset, width = 0, first.storage_offset(), first.shape[1]
    for linear in linears:
        w = linear.weight
        same = w.untyped_storage().data_ptr() == first.untyped_storage().data_ptr() and w.is_contiguous()
        if not same or w.storage_offset() != offset + rows * width or linear.bias is not None:
            return None
        rows += w.shape[0]
    return first.detach().as_strided((rows, width), (width, 1), offset)


def layers_of(model: SpeechLM) -> list[nn.Module]:
    """Backbone, then adapter."""
    return [*model.model.layers, *model.tts_adapter.layers]


def groups_of(layer: nn.Module) -> list[list[nn.Linear]]:
    """Linear layers of a block that read the same input."""
    a, mlp = layer.self_attn, layer.mlp
    return [[a.q_proj, a.k_proj, a.v_proj], [mlp.gate_proj, mlp.up_proj]]


@torch.no_grad()
def join_weights(model: SpeechLM) -> SpeechLM:
    """Lay the weights of layers with the same input side by side, so that one product does for all; values stay.

    For decoding: parameters become views of a larger tensor, which trainers that flatten parameters do not expect.
    """
    for layer in layers_of(model):
        for linears in groups_of(layer):
            if side_by_side(linears) is None and all(linear.bias is None for linear in linears):
                parts = torch.cat([linear.weight for linear in linears])
                for linear, part in zip(linears, parts.split([x.out_features for x in linears]), strict=True):
                    linear.weight.data = part
    return model


class Block:
    """One Qwen3 block on its own parameters."""

    def __init__(self, layer: nn.Module, eps: float):
        self.layer, self.eps, self.head_dim = layer, eps, layer.self_attn.head_dim
        self.key_heads = layer.self_attn.k_proj.out_features // self.head_dim  # K
        self.heads = layer.self_attn.q_proj.out_features // self.head_dim  # A
        self.qkv, self.gate_up = (side_by_side(linears) for linears in groups_of(layer))

    def norm(self, x: Tensor, layer: nn.Module) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), layer.weight, self.eps)

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Callable) -> Tensor:
        """(B, L, D) -> (B, L, D), in place; `attend` takes q (B, A, L, H), k and v (B, K, L, H) and returns (B, A, L, H)."""
        attention, mlp, width = self.layer.self_attn, self.layer.mlp, self.head_dim
        h = self.norm(x, self.layer.input_layernorm)
        if self.qkv is None:
            qkv = torch.cat([p(h) for p in (attention.q_proj, attention.k_proj, attention.v_proj)], -1)
        else:
            qkv = F.linear(h, self.qkv)
        heads = qkv.unflatten(-1, (-1, width)).transpose(1, 2)  # (B, A + 2 K, L, H)
        q, k, v = heads.split([self.heads, self.key_heads, self.key_heads], 1)
        q, k = self.norm(q, attention.q_norm), self.norm(k, attention.k_norm)
        q, k = rotate(torch.cat([q, k], 1), cos, sin).split([self.heads, self.key_heads], 1)
        add(x, attend(q, k, v).transpose(1, 2).flatten(2), attention.o_proj)
        h = self.norm(x, self.layer.post_attention_layernorm)
        if self.gate_up is None:
            gate, up = mlp.gate_proj(h), mlp.up_proj(h)
        else:
            gate, up = F.linear(h, self.gate_up).chunk(2, -1)
        return add(x, F.silu(gate) * up, mlp.down_proj)


def add(x: Tensor, h: Tensor, linear: nn.Linear) -> Tensor:
    """x + linear(h) in place, as one product: (B, L, D)."""
    if linear.bias is not None:
        return x.add_(linear(h))
    x.flatten(0, 1).addmm_(h.flatten(0, 1), linear.weight.t())
    return x


def addresses(model: SpeechLM) -> tuple[int, ...]:
    """Where its weights lie."""
    return tuple(p.data_ptr() for p in model.parameters())


@dataclass(frozen=True)
class Sampling:
    """What of the settings a recording fixes."""

    greedy: bool
    choose: Choose  # equal settings, equal function: `functools.lru_cache` it


def cache_bytes(model: SpeechLM, batch: int, capacity: int) -> int:
    """Memory of the key/value cache."""
    size = model.lm_head.weight.element_size()
    features = sum(layer.self_attn.k_proj.out_features for layer in layers_of(model))
    return 2 * features * batch * capacity * size


class StaticStep:
    """Fixed tensors for a batch of sequences, and the step that moves each by one row (paper eqs. 3, 4).

    Args:
        model: in eval mode.
        layout: its row layout.
        batch: sequences at most.
        capacity: cache rows of each, to begin with.
        text: text ids of each, at most.
        record: how steps are recorded (see `captured.recorder`); None: they are simply called.

    Raises:
        LimitError: the cache does not fit into the memory that is free.
    """

    def __init__(
        self,
        model: SpeechLM,
        layout: Layout,
        batch: int,
        capacity: int,
        text: int,
        record: Record | None = None,
    ):
        weight = model.lm_head.weight
        self.model, self.layout, self.device, self.dtype = model, layout, weight.device, weight.dtype
        self.batch, self.capacity, self.text = slots_for(batch), 0, window_for(text)
        self.record = record
        eps, count = model.config.rms_norm_eps, len(model.model.layers)
        blocks = [Block(layer, eps) for layer in layers_of(model)]
        self.backbone, self.adapter = blocks[:count], blocks[count:]
        self.cache = [self.zeros(2, self.batch, b.key_heads, 0, b.head_dim) for b in blocks]
        self.logits = self.zeros(self.batch, layout.streams, layout.speech_size, dtype=torch.float32)
        self.sampled = self.zeros(self.batch, layout.streams, dtype=torch.long)  # the newest row's ids
        self.position = self.zeros(self.batch, dtype=torch.long)  # where the next row goes
        self.noise = self.zeros(self.batch, NOISE_ROWS, layout.streams, dtype=torch.float32)
        self.noise_at = self.zeros(1, dtype=torch.long)
        self.temperature = torch.ones(self.batch, 1, 1, device=self.device)
        self.rows = StaticRows(layout, self.batch, self.text, self.device)
        self.recorded: dict[tuple, Captured] = {}
        self.grow(capacity)
        self.addresses = addresses(model)

    def serves(self, model: SpeechLM, layout: Layout, record: Record | None) -> bool:
        """Whether it can be used for these: a recording reads weights where they lay when it was made."""
        same = self.layout == layout and self.record is record
        return same and self.addresses == addresses(model)

    def zeros(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.zeros(*shape, dtype=dtype or self.dtype, device=self.device)

    @torch.no_grad()
    def grow(self, capacity: int) -> None:
        """Make room for so many rows in all. Recordings read the old cache, so they go.

        Raises:
            LimitError: they do not fit into the memory that is free; the cache is as it was.
        """
        capacity = window_for(capacity)
        need = cache_bytes(self.model, self.batch, capacity - self.capacity)
        need += max(
            cache.numel() * cache.element_size() for cache in self.cache
        )  # of one block, while it is copied
        free = room(self.device)
        if free is not None and need > free:
            raise LimitError(
                f"{self.batch} texts of {capacity} rows need {need / GIB:.1f} GiB more for the cache, {free / GIB:.1f} "
                "GiB are free: speak fewer texts at a time, or shorter ones (max_rows, pass_rows)"
            )
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # a row may be on its way in a graph that is about to go
        self.recorded.clear()
        for i, old in enumerate(self.cache):  # old and new together for one block only
            self.cache[i] = self.zeros(*old.shape[:3], capacity, old.shape[4])
            self.cache[i][:, :, :, : self.capacity] = old
        self.capacity = capacity
        self.places = torch.arange(capacity, device=self.device)  # (M,)
        cos, sin = self.model.model.rotary_emb(
            torch.empty(0, dtype=torch.float32, device=self.device), self.places[None]
        )
        half = sin.shape[-1] // 2
        sin = torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)
        self.cos, self.sin = cos[0].to(self.dtype), sin[0].to(self.dtype)  # (M, H)

    # ---- prompts -------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def begin(self, prompts: list[Tensor], machines: list[ChunkMachine], temperature: float) -> None:
        """Take up new sequences: prompt rows (R, 1 + k) and fresh machines of each; `logits` are those of their first rows."""
        count, longest = len(prompts), max(map(len, prompts))
        assert count <= self.batch and longest <= self.capacity, "the step is too small for these sequences"
        host = torch.zeros(count, longest, prompts[0].shape[1], dtype=torch.long)
        for row, prompt in zip(host, prompts, strict=True):
            row[: len(prompt)] = prompt
        lengths = torch.ones(self.batch, dtype=torch.long)
        lengths[:count] = torch.tensor([len(prompt) for prompt in prompts])
        for cache in self.cache:
            cache.zero_()
        self.rows.fill(machines)
        self.position.copy_(to_device(lengths, self.device))
        self.temperature.fill_(temperature or 1.0)
        self.noise_at.zero_()

        def attend(cache: Tensor) -> Callable:
            def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                cache[0, :count, :, :longest], cache[1, :count, :, :longest] = k, v
                return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

            return run

        hidden = self.forward(
            to_device(host, self.device), self.cos[:longest], self.sin[:longest], attend
        )  # (n, L, D)
        last = (self.position[:count] - 1)[:, None, None].expand(-1, 1, hidden.shape[-1])
        self.logits[:count] = self.model.speech_head(hidden.gather(1, last)[:, 0]).float()

    def forward(self, rows: Tensor, cos: Tensor, sin: Tensor, attend: Callable) -> Tensor:
        """Hidden states of the adapter: (B, L, 1 + k) -> (B, L, D); `attend(cache)` is a block's attention."""
        x = self.model.embed(rows)
        for block, cache in zip(self.backbone, self.cache, strict=False):
            x = block(x, cos, sin, attend(cache))
        x = self.backbone[0].norm(x, self.model.model.norm)
        for block, cache in zip(self.adapter, self.cache[len(self.backbone) :], strict=True):
            x = block(x, cos, sin, attend(cache))
        return x

    # ---- the step ------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def step(self, slots: int, window: int, sampling: Sampling) -> None:
        """One row for the first `slots` sequences, none longer than `window` then: `sampled` and `logits` are the new ones."""
        key = (slots, window, sampling)
        if key not in self.recorded:
            changed = [self.position, self.noise_at, self.logits, *self.rows.state()]
            self.recorded[key] = Captured(lambda: self.work(slots, window, sampling), changed, self.record)
        self.recorded[key]()

    def work(self, slots: int, window: int, sampling: Sampling) -> None:
        """What is recorded."""
        n, logits = slots, self.logits[:slots]
        if sampling.greedy:
            sampled = logits.argmax(-1)
        else:
            noise = self.noise[:n].index_select(1, self.noise_at)[:, 0]  # (n, k)
            sampled = sampling.choose(logits / self.temperature[:n], noise)
            self.noise_at.add_(1).remainder_(NOISE_ROWS)
        self.sampled[:n].copy_(sampled)
        row = self.rows.next(sampled)  # (n, 1 + k)
        position = self.position[:n]
        beyond = self.places[:window] > position[:, None]  # (n, W)
        bias = self.zeros(n, 1, 1, window).masked_fill_(beyond[:, None, None], -torch.inf)
        cos, sin = (t.index_select(0, position)[:, None, None] for t in (self.cos, self.sin))  # (n, 1, 1, H)

        def attend(cache: Tensor) -> Callable:
            keys, values = cache[0, :n, :, :window], cache[1, :n, :, :window]  # (n, K, W, H)

            def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                place = position[:, None, None, None].expand_as(k)
                keys.scatter_(2, place, k)
                values.scatter_(2, place, v)
                grouped = q.unflatten(1, (k.shape[1], -1)).squeeze(3)  # (n, K, G, H): L is 1
                y = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=bias)
                return y.flatten(1, 2)[:, :, None]

            return run

        hidden = self.forward(row[:, None], cos, sin, attend)
        logits.copy_(self.model.speech_head(hidden[:, 0]))
        position += ~self.rows.done[:n]  # a finished sequence stays where it is

    # ---- the batch -----------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def keep(self, slots: list[int]) -> None:
        """Move these sequences to the front, in this order; the rest may be overwritten."""
        chosen = to_device(torch.tensor(slots), self.device)
        for t in (self.logits, self.position, self.noise, self.temperature, *self.rows.of_slots()):
            t[: len(slots)] = t.index_select(0, chosen)
        for cache in self.cache:  # one block at a time, so that memory holds one copy
            cache[:, : len(slots)] = cache.index_select(1, chosen)

    @torch.inference_mode()
    def refill(self, noise: Tensor) -> None:
        """The next uniform numbers: (n, NOISE_ROWS, k)."""
        self.noise[: len(noise)].copy_(to_device(noise, self.device), non_blocking=True)
