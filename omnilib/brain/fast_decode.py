"""Answering one prompt on CPU, twice as fast and more: what plain decoding wastes, left out.

A step of transformers' `generate` on a small model reads all weights in float32 (540 MB of SmolLM2-135M) and makes
some sixty calls a layer. Here weights are read in fewer bytes and joined (q, k, v; gate, up), keys and values lie
in tensors that were made once, and logits are compared as they are.

| weights | bytes a number | what changes |
|---|---|---|
| float32 | 4 | nothing but the order of sums |
| bfloat16 | 2 | rounded to 8 bits of mantissa |
| int8 | 1 | each row scaled to -127 .. 127 (`quantised`), products in bfloat16 |

The prompt goes through the same layers, `AnswerSettings.prefill` positions at a time. `omnilib.bench.brain` measures
speed, and how many answers are the same to the word. Batches, GPUs and sampling beams take `decode.stream` and
`Brain.generate`.

Shapes: L positions of a piece, N positions so far, D width, A query heads, K key heads, G = A / K, H head width.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnilib.brain.decode import GREEDY, AnswerSettings, chosen_id, ends
from omnilib.brain.mllm import MEDIA, Brain
from omnilib.brain.positions import scaled
from omnilib.errors import ConfigError

WEIGHTS = "float32", "bfloat16", "int8"
FEW = 8  # rows up to which the int8 product is quicker than one in bfloat16
CANDIDATES = 8  # tokens whose logits are computed exactly
flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # gives the logs of the sums too


class Linear:
    """A linear layer with its weights in one of WEIGHTS: (L, inputs) -> (L, outputs)."""

    def __init__(self, layers: list[nn.Linear], weights: str):
        weight = torch.cat([layer.weight.detach() for layer in layers]).float()
        biases = [w.new_zeros(len(w)) if b is None else b for w, b in ((y.weight, y.bias) for y in layers)]
        bias = torch.cat(biases).detach()
        self.dtype = torch.float32 if weights == "float32" else torch.bfloat16
        self.bias = bias.to(self.dtype) if bool(bias.any()) else None
        self.scale = None
        if weights == "int8":
            self.weight, self.scale = quantised(weight)
        else:
            self.weight = weight.to(self.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        if self.scale is None:
            return F.linear(x, self.weight, self.bias)
        if len(x) > FEW:
            y = F.linear(x, self.weight.to(self.dtype)) * self.scale
        else:
            y = torch.ops.aten._weight_int8pack_mm(x, self.weight, self.scale)
        return y if self.bias is None else y + self.bias


def quantised(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(outputs, inputs) as int8 and a scale for each row, in bfloat16."""
    scale = (weight.abs().amax(1).clamp(min=1e-12) / 127).bfloat16()
    return (weight / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8), scale


def attend_behind(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """A later piece of a prompt: q (L, A, H), keys and values (K, N, H), of which the last L are its own -> (L, D).

    All positions of the piece see all that is before it, so that part needs no mask, and the A / K heads of a key
    head are more rows of one product. The two parts are weighed by their sums of exponentials. Of an hour of sound
    nearly everything is the first part: half the time of one masked call.
    """
    length, heads, width = q.shape
    before, each = keys.shape[1] - length, heads // len(keys)
    rows = q.view(length, len(keys), each, width).permute(1, 2, 0, 3).reshape(1, len(keys), -1, width)
    early, early_sum = flash(rows, keys[None, :, :before], values[None, :, :before])
    own_keys, own_values = (x[None, :, before:].repeat_interleave(each, 1) for x in (keys, values))
    own, own_sum = flash(q.transpose(0, 1)[None], own_keys, own_values, is_causal=True)
    share = torch.sigmoid(early_sum.reshape(heads, length, 1) - own_sum.reshape(heads, length, 1))
    y = torch.lerp(own[0].float(), early.reshape(heads, length, width).float(), share)
    return y.to(q.dtype).transpose(0, 1).reshape(length, -1)


@dataclass
class Layer:
    """Weights of one decoder layer."""

    before: Tensor  # norm (D,)
    qkv: Linear
    out: Linear
    between: Tensor
    gates: Linear
    down: Linear


class FastDecoder:
    """A brain's language model for one prompt at a time.

    Args:
        model: its weights are copied; what is trained later is not seen.
        weights: see above.

    Raises:
        ConfigError: an unknown kind of weights.
    """

    def __init__(self, model: Brain, weights: str = "int8"):
        if weights not in WEIGHTS:
            raise ConfigError(f"weights '{weights}' are unknown: use {', '.join(WEIGHTS)}")
        config = model.config
        self.model, self.weights, self.eps = model, weights, config.rms_norm_eps
        self.width = config.hidden_size // config.num_attention_heads
        self.heads, self.groups = config.num_attention_heads, config.num_key_value_heads
        self.layers = [self.layer_of(layer) for layer in model.model.layers]
        self.dtype = self.layers[0].qkv.dtype
        self.norm = model.model.norm.weight.detach().float()
        self.head = Linear([model.lm_head], weights)

    def layer_of(self, layer: nn.Module) -> Layer:
        attention, mlp = layer.self_attn, layer.mlp
        qkv = Linear([attention.q_proj, attention.k_proj, attention.v_proj], self.weights)
        out, down = Linear([attention.o_proj], self.weights), Linear([mlp.down_proj], self.weights)
        gates = Linear([mlp.gate_proj, mlp.up_proj], self.weights)
        norms = [n.weight.detach().float() for n in (layer.input_layernorm, layer.post_attention_layernorm)]
        return Layer(norms[0], qkv, out, norms[1], gates, down)

    def room(self, positions: int) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of every layer, (K, positions, H) each."""
        shape = (self.groups, positions, self.width)
        return [
            (torch.zeros(shape, dtype=self.dtype), torch.zeros(shape, dtype=self.dtype)) for _ in self.layers
        ]

    def forward(self, x: Tensor, positions: Tensor, cache: list[tuple[Tensor, Tensor]], start: int) -> Tensor:
        """Hidden states (L, D) of a piece (L, D) at `positions` (3, L), behind `start` cached ones."""
        length, end = len(x), start + len(x)
        cos, sin = self.model.model.rotary_emb(x[None].float(), positions[:, None])  # (1, L, H)
        cos, sin = (angle[0, :, None].to(self.dtype) for angle in (cos, sin))  # (L, 1, H)
        half = self.width // 2
        sin[..., :half] *= -1  # of the half that is turned backwards
        behind = None
        if length > 1 and not start:  # each position sees itself and what is before it
            behind = torch.ones(length, length, dtype=torch.bool).tril()
        x = x.float()  # what the layers add to stays exact
        for layer, (keys, values) in zip(self.layers, cache, strict=True):
            made = layer.qkv(self.normed(x, layer.before)).view(length, -1, self.width)
            flat = made[:, : self.heads + self.groups]
            turned = torch.addcmul(flat * cos, flat.roll(half, -1), sin)  # (L, A + K, H)
            keys[:, start:end] = turned[:, self.heads :].transpose(0, 1)
            values[:, start:end] = made[:, self.heads + self.groups :].transpose(0, 1)
            q = turned[:, : self.heads]
            if length > 1 and start:
                y = attend_behind(q, keys[:, :end], values[:, :end])
            else:
                y = self.attend(q, keys[:, :end], values[:, :end], behind)
            x = x + layer.out(y)
            gate, up = layer.gates(self.normed(x, layer.between)).chunk(2, -1)
            x = x + layer.down(F.silu(gate) * up)
        return F.rms_norm(x, x.shape[-1:], self.norm, self.eps)

    def normed(self, x: Tensor, weight: Tensor) -> Tensor:
        """RMS norm, ready for a product."""
        return F.rms_norm(x, x.shape[-1:], weight, self.eps).to(self.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """Of one position (1, D): (1, V), those of the likeliest few tokens exact, so that rounding decides nothing
        between them."""
        logits = self.head(hidden.to(self.dtype)).float()
        if self.dtype != torch.float32:
            best = logits.topk(min(CANDIDATES, logits.shape[-1])).indices[0]
            logits[0, best] = F.linear(hidden, self.model.lm_head.weight[best])[0]
        return logits

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, behind: Tensor | None) -> Tensor:
        """q (L, A, H), keys and values (K, N, H) -> (L, D)."""
        y = F.scaled_dot_product_attention(
            q.transpose(0, 1)[None], keys[None], values[None], attn_mask=behind, enable_gqa=True
        )[0]  # (A, L, H)
        return y.transpose(0, 1).reshape(len(q), -1)

    def towers(self) -> torch.autocast:
        """How sound and pictures are encoded: products in bfloat16 too, as in training, unless weights are float32."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.dtype != torch.float32)

    @torch.no_grad()
    def stream(self, batch: dict, settings: AnswerSettings = GREEDY) -> Iterator[Tensor]:
        """As `decode.stream`, for a batch of one row: each (1,)."""
        model = self.model
        media = {k: v for k, v in batch.items() if k in MEDIA}
        with self.towers():
            embeds, mask, positions, deltas = model.prepare(
                batch["input_ids"],
                batch.get("attention_mask"),
                batch.get("position_ids"),
                settings.max_new_tokens,
                **media,
            )
        if len(embeds) != 1 or not bool(mask.all()):
            raise ConfigError(
                "the fast decoder answers one prompt without padding: use `decode.stream` for batches"
            )
        rotary, count = model.frequencies_for(positions, settings.max_new_tokens), embeds.shape[1]
        cache = self.room(count + settings.max_new_tokens)
        stops, place = ends(model, settings), count + int(deltas[0])
        generator, warpers = torch.Generator().manual_seed(settings.seed), settings.warpers()
        for start in range(0, count, settings.prefill):
            end = min(start + settings.prefill, count)
            with scaled(model, rotary):
                hidden = self.forward(embeds[0, start:end], positions[:, 0, start:end], cache, start)
        for step in range(settings.max_new_tokens):
            ids = chosen_id(self.logits(hidden[-1:]), settings, warpers, generator)
            yield ids
            if int(ids) in stops or step + 1 == settings.max_new_tokens:
                return
            where = torch.full((3, 1), place + step)
            with scaled(model, rotary):
                hidden = self.forward(model.model.embed_tokens(ids), where, cache, count + step)
