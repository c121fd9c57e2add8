"""How weights lie on disk: safetensors in float32, in bfloat16, or in eight bits a number.

Eight bits: each row of a matrix (output channel of a convolution, line of a table) is divided by its largest absolute value
and rounded to -127 .. 127; the divisor stands beside it under `<name>::scale`. Small tensors (vectors, rows of fewer than 16
numbers) stay in bfloat16. Loaded weights are float32 whatever the form. The nano checkpoints use it to fit into the repository.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from omnilib.errors import CheckpointError, ConfigError

FORMS = ("float32", "bfloat16", "int8")
SCALE = "::scale"
SHORT_ROW = 16


def pack(weights: dict[str, Tensor], form: str) -> dict[str, Tensor]:
    """Weights as they are written; tensors of integers are left alone.

    Raises:
        ConfigError: `form` is none of FORMS.
    """
    if form not in FORMS:
        raise ConfigError(f"storage '{form}' is unknown: use one of {', '.join(FORMS)}")
    packed = {}
    for name, value in weights.items():
        value = value.detach().contiguous()
        if not value.is_floating_point():
            packed[name] = value
        elif form == "int8" and value.dim() > 1 and value[0].numel() >= SHORT_ROW:
            rows = value.float().flatten(1)
            scale = rows.abs().amax(1).clamp(min=1e-12) / 127  # (rows,)
            packed[name] = (rows / scale[:, None]).round().to(torch.int8).view_as(value)
            packed[name + SCALE] = scale
        else:
            packed[name] = value.to(torch.float32 if form == "float32" else torch.bfloat16)
    return packed


def unpack(packed: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse: eight-bit tensors times their scale, in float32; others as they are."""
    weights = {}
    for name, value in packed.items():
        scale = packed.get(name + SCALE)
        if not name.endswith(SCALE):
            weights[name] = (
                value if scale is None else (value.flatten(1).float() * scale[:, None]).view(value.shape)
            )
    return weights


def is_packed(path: Path) -> bool:
    """Whether a safetensors file holds eight-bit weights."""
    if not path.is_file():
        return False
    try:
        with safe_open(str(path), "pt") as file:
            return any(name.endswith(SCALE) for name in file.keys())  # noqa: SIM118  not a dict
    except (OSError, SafetensorError) as error:
        raise unreadable(path, error) from error


def read(path: Path) -> dict[str, Tensor]:
    """The weights of a safetensors file in any of the forms.

    Raises:
        CheckpointError: missing or truncated.
    """
    try:
        return unpack(load_file(str(path)))
    except (OSError, SafetensorError) as error:
        raise unreadable(path, error) from error


def from_pretrained(load: Callable, config_class: type, folder: str | Path, *args, config=None, **kwargs):
    """What `load`, the `from_pretrained` of a transformers model, gives; folders whose weights lie in eight bits are read too."""
    path = Path(folder) / "model.safetensors"
    if not is_packed(path):
        return load(folder, *args, config=config, **kwargs)
    config = config or config_class.from_pretrained(folder, local_files_only=True)
    return load(None, *args, config=config, state_dict=read(path), **kwargs)


def unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"cannot read {path}: {error}; restore it with `git checkout` or train it again")


def unique_tensors(model: nn.Module) -> dict[str, Tensor]:
    """State dict without the second name of tied tensors (safetensors stores each storage once)."""
    seen: set[int] = set()
    result = {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() in seen and tensor.numel():
            continue
        seen.add(tensor.data_ptr())
        result[name] = tensor
    return result


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a safetensors file strictly (names tied to a loaded tensor may be absent).

    Raises:
        CheckpointError: file missing, truncated, or names or shapes differ.
    """
    weights = read(path)
    expected = unique_tensors(model)
    missing, unexpected = sorted(set(expected) - set(weights)), sorted(set(weights) - set(model.state_dict()))
    if missing or unexpected:
        raise CheckpointError(
            f"{path} does not fit {type(model).__name__}: missing {missing[:3]}, unexpected {unexpected[:3]}"
        )
    try:
        model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise CheckpointError(
            f"{path} does not fit {type(model).__name__}: {str(error).splitlines()[-1].strip()}"
        ) from error
