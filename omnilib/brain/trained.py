"""A brain made of pretrained parts, and what training puts on top of it.

    brain, processor = load_trained("checkpoints/nano/brain")

Only what was trained lies in such a folder: the projector, a LoRA of the language model (or its merged
matrices), the vision tower if it learned. The parts below are named in `meta.json` and found again by
`build_base`:

| base | language model | audio encoders |
|---|---|---|
| nano | SmolLM2-135M of its package | Whisper base of its packages, twice; on the auxiliary one, `aux` |
| smoke | random, two layers; reads bytes | random, one layer, windows of three seconds |
| a folder | as `Brain.load` reads it | as they lie there |
"""

import json
import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig

from omnilib import storage
from omnilib.brain.config import smoke_config
from omnilib.brain.inputs import BrainProcessor
from omnilib.brain.mllm import Brain
from omnilib.brain.parts import assemble, smollm2, whisper_base
from omnilib.data import sha256
from omnilib.errors import CheckpointError, ConfigError, MissingTool
from omnilib.paths import ROOT

AUX = "model.speech_tower.speech_tower_aux."
LAYERS = r"model\.layers\.\d+\."  # of the language model, not of a tower
LORA = ".lora_"
LONG = {"long_positions": "yarn", "longest": 262_144}  # nano: beyond SmolLM2's 8,192 positions (11 minutes)


@dataclass
class Base:
    """What lies below the trained weights."""

    base: str = "nano"  # nano | smoke | a folder of a whole brain, below the workspace
    aux: str = ""  # a folder of `omnilib.train.encoders`: an auxiliary encoder that was trained further
    projector: str = "dual_mlp"  # how the encoders are fused, see `brain.fusion.KINDS`
    ds_rate: int = 5  # frames of 40 ms that become one position
    vision: list[int] = field(
        default_factory=list,
    )  # depth, width, heads and feed-forward of a fresh vision tower; empty: no eyes
    max_pixels: int = 50176  # of a picture: 64 positions
    seed: int = 0  # of what is fresh


@dataclass
class Lora:
    """Low-rank updates of the language model (Hu et al. 2021, arXiv 2106.09685)."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    )


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One id for each byte and each control token of the template: reads any text, knows no words."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
    names = special + sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )


def vision_config(sizes: list[int], out: int) -> Qwen2_5_VLVisionConfig | None:
    """A vision tower of Qwen2.5-VL's class; every fourth block and the last attend to the whole picture.

    Raises:
        ConfigError: not four sizes, or heads that do not divide the width.
    """
    if not sizes:
        return None
    if len(sizes) != 4 or min(sizes) < 1 or sizes[1] % (4 * sizes[2]):
        raise ConfigError(
            f"vision is {sizes}: give [depth, width, heads, feed-forward], the width a multiple of 4 x heads",
        )
    depth, width, heads, feed_forward = sizes
    full = sorted({*range(3, depth, 4), depth - 1})
    made = dict(
        hidden_size=width,
        num_heads=heads,
        intermediate_size=feed_forward,
        fullatt_block_indexes=full,
    )
    return Qwen2_5_VLVisionConfig(depth=depth, out_hidden_size=out, **made)


def build_base(spec: Base) -> tuple[Brain, BrainProcessor]:
    """The parts together; what is fresh is drawn from `spec.seed` and the same at every call.

    Raises:
        ConfigError: sizes that contradict each other. CheckpointError: a folder is missing or damaged.
        MissingTool: the package of a part is not installed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        own = dict(mm_speech_projector_type=spec.projector, speech_encoder_ds_rate=spec.ds_rate)
        if spec.base == "nano":
            llama, tokenizer = smollm2()
            vision = vision_config(spec.vision, llama.config.hidden_size)
            brain = assemble(
                llama,
                *whisper_base(),
                vision_tower_config=vision,
                speech_projector_width=1024,
                **LONG,
                **own,
            )
        elif spec.base == "smoke":
            tokenizer = byte_tokenizer()
            ids = dict(pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
            vision = vision_config(spec.vision, 32)
            brain = Brain(smoke_config(len(tokenizer), 3.0, vision_tower_config=vision, **ids, **own))
        else:
            brain = Brain.load(ROOT / spec.base)
            processor = BrainProcessor.from_pretrained(ROOT / spec.base, brain.config)
            tokenizer = processor.tokenizer
    if spec.aux:
        load_aux(brain, ROOT / spec.aux)
    if brain.model.speech_tower is not None and not brain.config.unfreeze_mm_speech_tower:
        brain.model.speech_tower.share()
    return brain.eval(), BrainProcessor(tokenizer, brain.config, max_pixels=spec.max_pixels)


def load_aux(brain: Brain, folder: Path) -> None:
    """Put the trained part of an auxiliary encoder into a brain.

    Raises:
        CheckpointError: missing, or of another encoder.
    """
    weights = storage.read(folder / "model.safetensors")
    put(
        brain,
        {AUX + k.removeprefix("encoder."): v for k, v in weights.items() if k.startswith("encoder.")},
        folder,
    )


def put(model: nn.Module, weights: dict[str, Tensor], folder: Path) -> None:
    """Copy weights by name.

    Raises:
        CheckpointError: a name or a shape that the model does not have.
    """
    own = model.state_dict()
    wrong = [k for k, v in weights.items() if k not in own or own[k].shape != v.shape]
    if wrong or not weights:
        found = f"{wrong[0]} has no place" if wrong else "no weights"
        raise CheckpointError(
            f"{folder} does not fit this brain ({found}): name a run on the same base, with the same sizes",
        )
    model.load_state_dict(weights, strict=False)


# ---- LoRA --------------------------------------------------------------------------------------------------


def add_lora(brain: Brain, lora: Lora) -> None:
    """Put low-rank updates beside matrices of the language model; nothing but them learns afterwards.

    Raises:
        MissingTool: peft is not installed. ConfigError: no matrix of the language model has such a name.

    Source: LoRA, arXiv 2106.09685.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise MissingTool(
            "peft is not installed: `pip install --no-deps peft`, or `pip install .[brain]`",
        ) from None
    names = "|".join(map(re.escape, lora.targets))
    pattern = rf"{LAYERS}\w+\.({names})"
    if lora.rank < 1 or not any(re.fullmatch(pattern, name) for name, _ in brain.named_modules()):
        raise ConfigError(
            f"LoRA of rank {lora.rank} on {lora.targets}: give a rank of at least 1 and names such as q_proj",
        )
    inject_adapter_in_model(
        LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=pattern),
        brain,
    )


def lora_layers(brain: nn.Module) -> dict[str, nn.Module]:
    """Layers that carry an update, by the name of the matrix they stand for."""
    return {name: m for name, m in brain.named_modules() if hasattr(m, "lora_A") and hasattr(m, "base_layer")}


@torch.no_grad()
def merge_lora(brain: Brain) -> None:
    """Add every update to its matrix, and take the updates away."""
    for name, layer in lora_layers(brain).items():
        layer.merge()
        brain.set_submodule(name, layer.base_layer)
    if hasattr(brain, "peft_config"):
        del brain.peft_config


@torch.no_grad()
def trained_tensors(
    brain: Brain,
    weights: dict[str, Tensor],
    names: set[str],
    merge: bool,
) -> dict[str, Tensor]:
    """What an export holds.

    Args:
        weights: state dict, LoRA unmerged.
        names: of tensors that learned, as the state dict has them, or of merged matrices that learned before.
        merge: give whole matrices instead of the LoRA.
    """
    layers = lora_layers(brain)
    result = {}
    for name, value in weights.items():
        matrix = name.removesuffix(".base_layer.weight")
        plain = name.replace(".base_layer.", ".")
        if matrix in layers and merge:
            up, down = (weights[f"{matrix}.lora_{side}.default.weight"].float() for side in "BA")
            result[plain] = value.float() + layers[matrix].scaling["default"] * (up @ down)
        elif LORA in name:
            result |= {} if merge else {name: value}
        elif name in names or plain in names:
            result[plain] = value
    return result


# ---- folders -----------------------------------------------------------------------------------------------


def read_meta(folder: Path | str) -> dict:
    """What an export says of itself.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    path = Path(folder) / "meta.json"
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        return meta | {"base": {f.name: meta["base"][f.name] for f in fields(Base)}}
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"no trained brain in {folder} ({reason}): train it with `python -m omnilib.train.brain`",
        ) from None


def aux_hash(spec: Base) -> str:
    """sha256 of the auxiliary encoder's trained weights; empty without them.

    Raises:
        CheckpointError: named but missing.
    """
    path = ROOT / spec.aux / "model.safetensors"
    if spec.aux and not path.is_file():
        raise CheckpointError(
            f"no auxiliary encoder in {spec.aux}: train it with `python -m omnilib.train.encoders`",
        )
    return sha256(path) if spec.aux else ""


def load_trained(folder: Path | str) -> tuple[Brain, BrainProcessor]:
    """The base parts with a trained folder on top, LoRA merged, ready to answer.

    Raises:
        CheckpointError: missing or damaged, or the base is not the one it was trained on.
        MissingTool: the package of a part is not installed.
    """
    meta = read_meta(folder)
    spec = Base(**meta["base"])
    if aux_hash(spec) != meta.get("aux_sha256", ""):
        raise CheckpointError(
            f"{spec.aux} is not the encoder that {folder} was trained with: restore it, or train again",
        )
    brain, processor = build_base(spec)
    weights = storage.read(Path(folder) / "model.safetensors")
    plain = {k: v for k, v in weights.items() if LORA not in k}
    if plain:
        put(brain, plain, Path(folder))
    if updates := {k: v for k, v in weights.items() if LORA in k}:
        add_lora(brain, Lora(**meta["lora"]))
        put(brain, updates, Path(folder))
        merge_lora(brain)
    return brain.requires_grad_(False).eval(), processor


def learned_before(folder: Path | str) -> set[str]:
    """Names of the tensors that an export changed, merged matrices for its LoRA."""
    names = storage.read(Path(folder) / "model.safetensors")
    return {name.split(LORA)[0] + ".weight" if LORA in name else name for name in names}


def base_of(config: Base) -> dict:
    """The fields of `Base` in a config that has more."""
    return {f.name: asdict(config)[f.name] for f in fields(Base)}
