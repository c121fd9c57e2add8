"""Will it fit? The context of a model and the memory of a machine, asked before anything is computed."""

from torch import Tensor, nn

from omnilib.device import GIB, free_memory
from omnilib.errors import LimitError


def check_context(positions: int, new: int, limit: int) -> None:
    """Raise unless a prompt and its answer fit the model's context.

    Raises:
        LimitError: one line with both numbers.
    """
    if positions + new > limit:
        raise LimitError(
            f"this needs {positions + new} positions ({positions} of input, {new} to answer), "
            f"the model has {limit}: shorten the input, or take a model with a longer context",
        )


def memory_needed(model: nn.Module, batch: int, length: int, new: int, pixels: Tensor | None = None) -> int:
    """Bytes that decoding takes beside the weights: key/value cache and the widest layer of the prompt.

    The encoders of sound work in batches of a fixed size and are left out; so are parts of a megabyte.
    """
    config, size = model.config, next(model.parameters()).element_size()
    head = config.hidden_size // config.num_attention_heads
    cache = 2 * config.num_hidden_layers * config.num_key_value_heads * head * (length + new)
    widest = length * (3 * config.intermediate_size + 4 * config.hidden_size)  # of one layer, no gradients
    vision = config.vision_tower_config
    patches = 0
    if pixels is not None and vision is not None:
        patches = len(pixels) * (3 * vision.intermediate_size + 8 * vision.hidden_size)
    return size * (batch * (cache + widest) + patches)


def check_memory(model: nn.Module, batch: int, length: int, new: int, pixels: Tensor | None = None) -> None:
    """Raise if decoding would take more memory than is free.

    Raises:
        LimitError: one line with both numbers.
    """
    need, free = (
        memory_needed(model, batch, length, new, pixels),
        free_memory(next(model.parameters()).device),
    )
    if free is not None and need > free:
        raise LimitError(
            f"this needs about {need / GIB:.1f} GiB of memory ({batch} x {length} positions), "
            f"{free / GIB:.1f} GiB are free: shorten the input, take fewer samples, or answer shorter",
        )
