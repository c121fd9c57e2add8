"""From the two audio encoders to positions of the language model (paper section 3.1, equation 1).

    T_A = MLP(Q + Softmax(phi(Q) phi(K)^T) phi(V)),   Q main frames (25 Hz), K = V auxiliary frames (50 Hz)

The published code restricts eq. 1: a main frame attends only to its own two auxiliary frames. phi is
LayerNorm + Linear, scores are divided by sqrt(D1), and the MLP takes `rate` neighbouring frames at once.
`KINDS` is the one setting:

    dual_mlp, dual_mlp_attn    information mining as published
    dual_mlp_window            information mining as printed: all auxiliary frames of the window
    dual_mlp_type2             concatenation: main frame and its auxiliary frames side by side
    dual_mlp_type2_norm        the same, each side normalised first
    simple_mlp                 main encoder alone
    aux_mlp                    auxiliary encoder alone, at the same number of positions
    linear, identity           every main frame becomes a position

Names of kinds (but `dual_mlp_window`, `aux_mlp`) and of parameters are the published ones.

Shapes: W windows, N main frames, r auxiliary frames a main frame, D1, D2 their widths, T = N // rate.
"""

import torch
from torch import Tensor, nn

from omnilib.brain.config import AUX_PER_MAIN, BrainConfig
from omnilib.errors import ConfigError


def pair(aux: Tensor, count: int) -> Tensor:
    """Auxiliary frames beside their main frame: (W, N r, D2) -> (W, N, r, D2)."""
    return aux.reshape(len(aux), count, -1, aux.shape[-1])


def phi(inputs: int, outputs: int) -> nn.Sequential:
    """The projection of eq. 1."""
    return nn.Sequential(nn.LayerNorm(inputs), nn.Linear(inputs, outputs))


class Projector(nn.Module):
    """`rate` frames at once through Linear, ReLU, Linear; subclasses say what a frame is."""

    def __init__(self, frame: int, rate: int, width: int, out: int):
        super().__init__()
        self.rate = rate
        self.linear1 = nn.Linear(frame * rate, width)
        self.linear2 = nn.Linear(width, out)

    def mlp(self, frames: Tensor) -> Tensor:
        """(W, N, frame) -> (W, T, out); frames that fill no group are dropped, as published."""
        count = frames.shape[1] // self.rate
        grouped = frames[:, : count * self.rate].reshape(len(frames), count, -1)  # (W, T, rate * frame)
        return self.linear2(self.linear1(grouped).relu())


class Mining(Projector):
    """Information mining, eq. 1; `whole_window` decides over which auxiliary frames the softmax runs."""

    def __init__(self, main: int, aux: int, rate: int, width: int, out: int, whole_window: bool = False):
        super().__init__(main, rate, width, out)
        self.whole_window = whole_window
        self.dual_query, self.dual_aux, self.dual_val = (phi(main, main), phi(aux, main), phi(aux, main))

    def attention(self, main: Tensor, aux: Tensor, valid: Tensor | None = None) -> Tensor:
        """Softmax(phi(Q) phi(K)^T / sqrt(D1)): (W, N, r), or (W, N, N r) over a whole window.

        Args:
            valid: (W,) main frames that hold sound; frames beyond them are not attended to.
        """
        query, key = self.dual_query(main), self.dual_aux(aux)  # (W, N, D1), (W, N r, D1)
        scale = query.shape[-1] ** -0.5
        if not self.whole_window:
            scores = (query[:, :, None] * scale) @ pair(key, query.shape[1]).mT  # (W, N, 1, r)
            return scores[:, :, 0].softmax(-1)
        scores = query * scale @ key.mT  # (W, N, N r)
        if valid is not None:
            ratio = aux.shape[1] // main.shape[1]
            beyond = torch.arange(aux.shape[1], device=aux.device) >= (valid * ratio)[:, None]  # (W, N r)
            scores = scores.masked_fill(beyond[:, None], torch.finfo(scores.dtype).min)
        return scores.softmax(-1)

    def mine(self, main: Tensor, aux: Tensor, valid: Tensor | None = None) -> Tensor:
        """Q + Softmax(...) phi(V): (W, N, D1)."""
        weights, value = self.attention(main, aux, valid), self.dual_val(aux)
        if self.whole_window:
            return main + weights @ value
        return main + (weights[:, :, None] @ pair(value, main.shape[1]))[:, :, 0]

    def forward(self, main: Tensor, aux: Tensor, valid: Tensor | None = None) -> Tensor:
        """(W, N, D1), (W, N r, D2) -> (W, T, out)."""
        return self.mlp(self.mine(main, aux, valid))


class Concatenation(Projector):
    """Main frame and its auxiliary frames side by side, each side normalised first if `norm`."""

    def __init__(
        self,
        main: int,
        aux: int,
        rate: int,
        width: int,
        out: int,
        norm: bool = False,
        ratio: int = AUX_PER_MAIN,
    ):
        super().__init__(main + ratio * aux, rate, width, out)
        self.norm1 = nn.LayerNorm(main) if norm else nn.Identity()
        self.norm2 = nn.LayerNorm(ratio * aux) if norm else nn.Identity()

    def forward(self, main: Tensor, aux: Tensor, valid: Tensor | None = None) -> Tensor:
        """(W, N, D1), (W, N r, D2) -> (W, T, out)."""
        beside = pair(aux, main.shape[1]).flatten(2)  # (W, N, r D2)
        return self.mlp(torch.cat((self.norm1(main), self.norm2(beside)), -1))


class OneEncoder(Projector):
    """One encoder alone; of the auxiliary one, twice as many frames make a position."""

    def __init__(self, width_in: int, rate: int, width: int, out: int, auxiliary: bool = False):
        super().__init__(width_in, rate * AUX_PER_MAIN if auxiliary else rate, width, out)
        self.auxiliary = auxiliary

    def forward(self, main: Tensor | None, aux: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
        """(W, N, D1) or (W, N r, D2) -> (W, T, out)."""
        return self.mlp(aux if self.auxiliary else main)


class EveryFrame(nn.Linear):
    """Each main frame becomes a position."""

    def forward(self, main: Tensor, aux: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
        """(W, N, D1) -> (W, N, out)."""
        return super().forward(main)


class Untouched(nn.Identity):
    """Each main frame is a position."""

    def forward(self, main: Tensor, aux: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
        """(W, N, D1) -> (W, N, D1)."""
        return main


DUAL = "dual_mlp", "dual_mlp_attn", "dual_mlp_window", "dual_mlp_type2", "dual_mlp_type2_norm"
KINDS = *DUAL, "simple_mlp", "aux_mlp", "linear", "identity"


def positions_rate(config: BrainConfig) -> int:
    """Main frames (40 ms) that become one position of the language model."""
    return 1 if config.mm_speech_projector_type in ("linear", "identity") else config.speech_encoder_ds_rate


def needs(kind: str) -> tuple[bool, bool]:
    """Whether a kind listens to the main and to the auxiliary encoder."""
    return kind != "aux_mlp", kind in DUAL or kind == "aux_mlp"


def make_projector(
    kind: str,
    main: int,
    aux: int,
    rate: int,
    out: int,
    width: int | None = None,
    ratio: int = AUX_PER_MAIN,
) -> nn.Module:
    """A projector of one of `KINDS`.

    Args:
        main, aux: widths of the encoders, D1 and D2.
        rate: main frames to a position.
        out: width of the language model.
        width: between the two layers; published: 2048, or 4096 for `dual_mlp_type2_norm`.
        ratio: auxiliary frames a main frame, r.

    Raises:
        ConfigError: no such kind.
    """
    width = width or (4096 if kind == "dual_mlp_type2_norm" else 2048)
    if kind in ("dual_mlp", "dual_mlp_attn", "dual_mlp_window"):
        return Mining(main, aux, rate, width, out, whole_window=kind == "dual_mlp_window")
    if kind in ("dual_mlp_type2", "dual_mlp_type2_norm"):
        return Concatenation(main, aux, rate, width, out, norm=kind == "dual_mlp_type2_norm", ratio=ratio)
    if kind in ("simple_mlp", "aux_mlp"):
        return OneEncoder(aux if kind == "aux_mlp" else main, rate, width, out, auxiliary=kind == "aux_mlp")
    if kind == "linear":
        return EveryFrame(main, out)
    if kind == "identity":
        return Untouched()
    raise ConfigError(f"mm_speech_projector_type '{kind}' is unknown: use one of {', '.join(KINDS)}")


def projector_of(config: BrainConfig) -> nn.Module:
    """The projector that a config asks for."""
    return make_projector(
        config.mm_speech_projector_type,
        config.main_width,
        config.aux_width,
        config.speech_encoder_ds_rate,
        config.hidden_size,
        config.speech_projector_width,
    )
