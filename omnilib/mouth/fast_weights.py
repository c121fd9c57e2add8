"""Weights laid out for decoding: made when a model is loaded, the files stay as they are.

A row of the mouth is a handful of matrix products with one vector each, so what counts is how few of them
there are and in which order and precision their weights lie in memory:

- q, k and v are one product, and so are the two halves of the gated MLP;
- "fp32": one to three vectors meet weights stored input-first, more meet a copy packed by oneDNN. Exact to
  about 1e-5;
- "bf16": packed by oneDNN, half the bytes. Norms, rotations and the residual stream stay in float32;
- "int8": weights in eight bits with one scale an output, activations in bfloat16. Activations are never put
  into eight bits: a shared scale would make a sequence sound different in company.

Each vector is multiplied by itself whatever stands beside it. What padding still moves is the order of sums
in attention, by 1e-6; rounding to bfloat16 behind it can tip a choice that is nearly even, so that in "bf16"
and "int8" a text in a batch may say a row differently than alone. In "fp32" none was seen to.

A model that was not prepared (one in training) is decoded from copies that live as long as the `Stepper`; a
large one, or one on a GPU, from its own parameters.

Shapes: N vectors, I inputs, O outputs, D width, A query heads, K key heads, H head width, k streams, S ids a
stream.
"""

import contextlib
import math
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnilib.device import GIB, fast_bfloat16, free_memory
from omnilib.errors import CheckpointError, LimitError, UserError
from omnilib.weight_files import shard_shapes

PRECISIONS = ("auto", "fp32", "bf16", "int8")
SMALL = 64_000_000  # weights up to which "auto" is fp32, and copies are made without asking
FEW = 4  # vectors from which on packed weights win over input-first ones
MANY = 128  # vectors from which on it is worth turning eight-bit weights back into floats


class Product:
    """Several linear layers on one input as one product: (N, I) -> (N, O), O the sum of theirs.

    Args:
        layers: their weights (O, I).
        precision: "fp32", "bf16", "int8", or "own": the tensors as they are, on any device and of any dtype.
        pack: whether "fp32" may hold a packed copy too.
        biases: (O,) of each, where they have one.
    """

    def __init__(
        self, layers: list[Tensor], precision: str, pack: bool = True, biases: list[Tensor | None] = ()
    ):
        self.pack = pack
        self.own = self.input_first = self.packed = self.eight = self.bias = None
        layers = [w.detach() for w in layers]
        if any(b is not None for b in biases):
            self.bias = torch.cat([b.detach() for b in biases])
        if precision == "own":
            self.own = layers
        elif precision == "fp32":
            self.input_first = torch.cat([w.float().t() for w in layers], 1)  # (I, O)
        elif precision == "bf16":
            whole = torch.cat([w.bfloat16() for w in layers])
            self.packed = torch.ops.mkldnn._reorder_linear_weight(whole)
        else:
            whole = torch.cat([w.float() for w in layers])
            self.scale = (
                whole.abs().amax(1).clamp(min=1e-12) / 127
            ).bfloat16()  # (O,) the kernel reads it so
            self.eight = (whole / self.scale.float()[:, None]).round_().clamp_(-127, 127).to(torch.int8)

    def __call__(self, x: Tensor) -> Tensor:
        return self.multiply(x) if self.bias is None else self.multiply(x) + self.bias

    def plus(self, residual: Tensor, x: Tensor) -> Tensor:
        """residual (N, O) float32 + product of x (N, I)."""
        if self.bias is None and self.input_first is not None and (len(x) < FEW or not self.pack):
            return torch.addmm(residual, x, self.input_first)
        return residual + self(x)

    def multiply(self, x: Tensor) -> Tensor:
        if self.input_first is not None:
            if len(x) < FEW or not self.pack:
                return torch.mm(x, self.input_first)
            if self.packed is None:
                self.packed = torch.ops.mkldnn._reorder_linear_weight(self.input_first.t().contiguous())
        elif self.own is not None:
            x = x.to(self.own[0].dtype)
            return torch.cat([F.linear(x, w) for w in self.own], -1)
        else:
            x = x.to(torch.bfloat16)
        if self.packed is not None:
            return torch.ops.mkldnn._linear_pointwise(x, self.packed, None, "none", [], "")
        if len(x) < MANY:
            return torch._weight_int8pack_mm(x, self.eight, self.scale)
        dtype = torch.bfloat16 if fast_bfloat16(x.device) else torch.float32
        return F.linear(x.to(dtype), self.eight.to(dtype) * self.scale.to(dtype)[:, None])


class BlockWeights:
    """One Qwen3 block: four products and its norms."""

    def __init__(self, layer: nn.Module, precision: str, pack: bool):
        attention, mlp = layer.self_attn, layer.mlp
        linears = [attention.q_proj, attention.k_proj, attention.v_proj]
        self.width = attention.head_dim  # H
        self.heads, self.groups = (p.out_features // self.width for p in linears[:2])  # A, K
        self.qkv = Product([p.weight for p in linears], precision, pack, [p.bias for p in linears])
        self.out = Product([attention.o_proj.weight], precision, pack, [attention.o_proj.bias])
        self.gate_up = Product([mlp.gate_proj.weight, mlp.up_proj.weight], precision, pack)
        self.down = Product([mlp.down_proj.weight], precision, pack)
        self.norm = layer.input_layernorm.weight.detach().float()  # (D,)
        self.mlp_norm = layer.post_attention_layernorm.weight.detach().float()
        norms = [attention.q_norm.weight] * self.heads + [attention.k_norm.weight] * self.groups
        self.head_norm = torch.stack(norms).detach().float()  # (A + K, H)

    def lend(self, layer: nn.Module) -> None:
        """Let the layer's parameters be views of the input-first weights: each lies in memory once."""
        attention, mlp = layer.self_attn, layer.mlp
        for product, linears in (
            (self.qkv, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (self.out, (attention.o_proj,)),
            (self.gate_up, (mlp.gate_proj, mlp.up_proj)),
            (self.down, (mlp.down_proj,)),
        ):
            parts = product.input_first.split([p.out_features for p in linears], 1)
            for linear, part in zip(linears, parts, strict=True):
                linear.weight.data = part.t()


class StepWeights:
    """All that a step multiplies with, but for the embedding."""

    def __init__(self, model: nn.Module, precision: str, lend: bool = False):
        pack = count_weights(model) <= SMALL
        self.precision = precision
        self.backbone, self.adapter = [], []
        with torch.no_grad():
            for blocks, layers in (
                (self.backbone, model.model.layers),
                (self.adapter, model.tts_adapter.layers),
            ):
                for layer in layers:
                    blocks.append(BlockWeights(layer, precision, pack))
                    if lend and precision == "fp32":
                        blocks[-1].lend(layer)
            self.norm = model.model.norm.weight.detach().float()
            self.head = Product([model.lm_head.weight[model.config.tokenizer_text_size :]], precision, pack)
            if lend and precision != "fp32":
                for (
                    parameter
                ) in model.parameters():  # not `model.to`, which would round the rotary frequencies
                    parameter.data = parameter.data.bfloat16()
        # of the cache: float32 is quicker on a processor, and bfloat16 would round differently beside padding
        self.dtype = model.lm_head.weight.dtype if precision == "own" else torch.float32
        self.seen = fingerprint(model)


PREPARED: WeakKeyDictionary[nn.Module, StepWeights] = WeakKeyDictionary()


def fingerprint(model: nn.Module) -> list[tuple[int, int]]:
    """Changes when a parameter is written to, moved or replaced."""
    return [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in model.parameters()]


def count_weights(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def choose_precision(precision: str, count: int, device: torch.device) -> str:
    """What "auto" means for a model of `count` weights on a device, or the precision itself.

    float32 for small ones, where a product costs no more than calling it. bfloat16, the precision that the
    published models were trained in, for large ones where the processor multiplies it. Never eight bits unasked.

    Raises:
        UserError: unknown, or the device has not got it.
    """
    if precision not in PRECISIONS:
        raise UserError(f"no precision '{precision}': choose one of {', '.join(PRECISIONS)}")
    fast = fast_bfloat16(device)
    if precision == "auto":
        return "bf16" if fast and count > SMALL else "fp32"
    if precision == "bf16" and not fast:
        raise UserError(f"this {device.type} device does not multiply bfloat16: use --precision fp32")
    if precision == "int8" and device.type != "cpu":
        raise UserError(f"int8 is for the processor, not for {device.type}: use --precision bf16 or fp32")
    return precision


def check_room(count: int, precision: str, device: torch.device) -> None:
    """Whether `count` weights will fit, while they are loaded and laid out.

    Raises:
        LimitError: one line with both numbers.
    """
    need = (
        count * {"fp32": 4, "bf16": 4, "int8": 5}[precision]
    )  # bf16: read and packed; int8: read in float32
    free = free_memory(device)
    if free is not None and need > free:
        raise LimitError(
            f"the speech model needs about {need / GIB:.1f} GiB in {precision}, "
            f"{free / GIB:.1f} GiB are free: close other programs, take a smaller model, or another --precision"
        )


def plan(folder: Path, precision: str, device: str) -> str:
    """The precision for the model in a folder, told from the headers of its files: nothing large is read.

    Raises:
        UserError: unknown, or the device has not got it.
        LimitError: the weights will not fit.
    """
    count = 0
    with contextlib.suppress(CheckpointError):  # whoever loads it will say what is wrong
        count = sum(math.prod(shape) for shape in shard_shapes(Path(folder)).values())
    chosen = choose_precision(precision, count, torch.device(device))
    check_room(count, chosen, torch.device(device))
    return chosen


def prepare(model: nn.Module, precision: str = "auto") -> str:
    """Lay out a model's weights for decoding, once; for inference only. Returns the precision chosen.

    In fp32 its parameters become views of the new layout; in bf16 and int8 they become bfloat16.

    Raises:
        UserError: the precision is unknown, or the device has not got it.
    """
    weight = model.lm_head.weight
    precision = choose_precision(precision, count_weights(model), weight.device)
    if weight.device.type == "cpu" and torch.backends.mkldnn.is_available():
        PREPARED[model] = StepWeights(model, precision, lend=True)
    else:
        wanted = torch.bfloat16 if precision == "bf16" else torch.float32
        for parameter in model.parameters():
            parameter.data = parameter.data.to(wanted)
    return precision


def weights_of(model: nn.Module) -> StepWeights:
    """The prepared weights of a model, or such as serve for one text."""
    ready = PREPARED.get(model)
    if ready is not None and ready.seen == fingerprint(model):
        return ready
    weight = model.lm_head.weight
    plain = (
        weight.device.type == "cpu" and weight.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    )
    return StepWeights(model, "fp32" if plain and count_weights(model) <= SMALL else "own")
