"""Files of weights, of any published model: what is in them, read without running anything, and how it fits
a module.

Only headers are read to compare; `.pt` files go through `weights_only=True`, so no object in them is ever
built.
"""

import json
import pickle
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from omnilib.errors import CheckpointError


def on_meta(model: type[nn.Module], config) -> nn.Module:
    """A model without memory: to count or to compare."""
    with torch.device("meta"):
        return model(config)


# ---------------------------------------------------------------- comparing


@dataclass
class Fit:
    """How the tensors of a file (or set of shards) fit a module; empty lists: exactly."""

    part: str
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    shapes: list[str] = field(default_factory=list)  # "name is (3, 4), needs (4, 4)"
    tensors: int = 0  # in the file

    @property
    def fits(self) -> bool:
        return not (self.missing or self.unexpected or self.shapes)

    def line(self, show: int = 3) -> str:
        """One line; names beyond the first `show` of a kind are counted."""
        if self.fits:
            return f"{self.part}: {self.tensors} tensors fit"
        parts = []
        for words, names in (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("of another shape", self.shapes),
        ):
            if names:
                more = f", and {len(names) - show} more" if len(names) > show else ""
                parts.append(f"{len(names)} {words} ({', '.join(names[:show])}{more})")
        return f"{self.part}: {', '.join(parts)}"


def compare(
    part: str, module: nn.Module, found: dict[str, tuple[int, ...]], may_lack: set[str] | None = None
) -> Fit:
    """Names and shapes in a file against those a module has; `may_lack` names are tied to others."""
    needed = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    return Fit(
        part,
        missing=sorted(needed.keys() - found.keys() - (may_lack or set())),
        unexpected=sorted(found.keys() - needed.keys()),
        shapes=[
            f"{k} is {found[k]}, needs {needed[k]}"
            for k in sorted(needed.keys() & found.keys())
            if found[k] != needed[k]
        ],
        tensors=len(found),
    )


def report(fits: list[Fit]) -> str:
    """Every name, a line each: for people."""
    lines = []
    for fit in fits:
        lines.append(fit.line(0) if fit.fits else f"{fit.part}: does not fit")
        for words, names in (("missing", fit.missing), ("unexpected", fit.unexpected), ("shape", fit.shapes)):
            lines += [f"    {words:<10} {name}" for name in names]
    return "\n".join(lines)


def demand(fits: list[Fit]) -> None:
    """Raise unless everything fits.

    Raises:
        CheckpointError: one line with the first names of each part that does not.
    """
    wrong = [fit.line() for fit in fits if not fit.fits]
    if wrong:
        raise CheckpointError(
            f"weights do not fit: {'; '.join(wrong)}; get the files again, or a config of the same size"
        )


# ---------------------------------------------------------------- reading files


def existing(path: Path) -> Path:
    """The path, if there is such a file.

    Raises:
        CheckpointError: there is none.
    """
    if not path.is_file():
        raise CheckpointError(
            f"no {path.name} in {path.parent}: get it with `omnilib.weights.download`, or correct the folder"
        )
    return path


def read_json(path: Path) -> dict:
    """A JSON object.

    Raises:
        CheckpointError: missing or damaged.
    """
    try:
        value = json.loads(existing(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged ({error}): get it again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is damaged (not an object): get it again")
    return value


def shard_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of all tensors of a sharded or single safetensors model; only headers are read.

    Raises:
        CheckpointError: a shard is missing, truncated, lies outside the folder, or lacks what the index promises.
    """
    index, shapes = folder / "model.safetensors.index.json", {}
    places = read_json(index).get("weight_map") if index.is_file() else None
    if index.is_file() and not isinstance(places, dict):
        raise CheckpointError(f"{index} is damaged (no weight_map): get it again")
    names = sorted(set(places.values())) if places else ["model.safetensors"]
    for name in names:
        if Path(name).name != name:
            raise CheckpointError(f"{index} names '{name}', a path outside the folder: refused")
        try:
            with safe_open(str(existing(folder / name)), "pt") as file:
                shapes |= {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118  not a dict
        except SafetensorError as error:
            raise CheckpointError(f"{folder / name} is damaged ({error}): get it again") from None
    lost = sorted(set(places or ()) - set(shapes))
    if lost:
        raise CheckpointError(
            f"{index} promises {', '.join(lost[:3])}, which no shard holds: get the shards again"
        )
    return shapes


def read_pt(path: Path) -> dict[str, Tensor]:
    """A `.pt` state dict, memory-mapped where its format allows; objects other than tensors are never built.

    Raises:
        CheckpointError: missing, damaged, or with anything but tensors in it.
    """
    try:
        state = torch.load(
            existing(path), map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except pickle.UnpicklingError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        reason = next((line for line in lines if "GLOBAL" in line or "invalid load key" in line), lines[0])
        raise CheckpointError(
            f"{path} is refused, as it is damaged or holds more than tensors ({reason}): get it from its source"
        ) from None
    except (
        OSError,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        IndexError,
        AttributeError,
        TypeError,
    ) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path} is damaged ({reason}): get it again") from None
    if isinstance(state, dict):
        state = {
            k: v for k, v in state.items() if k not in ("epoch", "step")
        }  # CosyVoice's trainer leaves these in
    if not isinstance(state, dict) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()
    ):
        raise CheckpointError(f"{path} is no plain state dict (name -> tensor): get it from its source")
    return state
