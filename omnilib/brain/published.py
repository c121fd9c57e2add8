"""Published brains -> our classes, and the published sizes (paper section 3.1).

A folder as MGM-Omni-7B / 32B is published:

    config.json  model-0000i-of-0000n.safetensors  model.safetensors.index.json     weights, of towers too
    tokenizer_config.json  vocab.json  merges.txt  ...                              text tokenizer

Its config names three more folders: mm_vision_tower (Qwen2.5-VL's vision tower), mm_speech_tower
(Qwen2-Audio's encoder, "Dual-" is cut out of the name) and speech_tower_aux (Belle-Whisper). They are looked
for by their last name in `towers`, in the folder, and beside it. Where a tower's weights come from is the
released rule, and the report says it:

    unfreeze_mm_*_tower set     the checkpoint's own weights
    not set                     the tower's folder; the checkpoint's own weights only if there is none

Notable choices
- All names and shapes are compared first, from file headers, as in `omnilib.weight_files`. Nothing in a folder is
  executed.
- Weights go straight from the files to their device and dtype: no second copy in memory.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import dispatch_model, infer_auto_device_map, init_empty_weights
from accelerate.utils import set_module_tensor_to_device
from safetensors import safe_open
from transformers import GenerationConfig, WhisperConfig
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_audio.configuration_qwen2_audio import Qwen2AudioEncoderConfig

from omnilib.brain.config import BrainConfig
from omnilib.brain.inputs import BrainProcessor
from omnilib.brain.mllm import Brain, attention_for
from omnilib.errors import CheckpointError, ConfigError, LimitError, UserError
from omnilib.weight_files import Fit, compare, demand, read_json, read_pt, shard_shapes

MODEL_TYPES = "MGMOmni", "MGMQwen25VL"
NOT_OURS = ("model.mm_projector.",)  # built by the released code, never applied
BUFFERS = (".rotary_emb.inv_freq", ".rotary_pos_emb.inv_freq")  # older files hold them

# ---------------------------------------------------------------- published sizes

LLM = {  # Qwen2.5 technical report: width, layers, heads, key-value heads, mlp width
    "7B": (3584, 28, 28, 4, 18_944),
    "32B": (5120, 64, 40, 8, 27_648),
}
VISION_MLP = {"7B": 3420, "32B": 3456}  # Qwen2.5-VL's public configs
QWEN_VOCABULARY = 152_064
LARGE = dict(
    num_mel_bins=128,
    max_source_positions=1500,
    encoder_layers=32,
    encoder_attention_heads=20,
    encoder_ffn_dim=5120,
)


def vision_preset(name: str) -> Qwen2_5_VLVisionConfig:
    """Qwen2.5-VL's vision tower for the language model of that size."""
    return Qwen2_5_VLVisionConfig(
        depth=32,
        hidden_size=1280,
        num_heads=16,
        intermediate_size=VISION_MLP[name],
        out_hidden_size=LLM[name][0],
        tokens_per_second=2,
    )


def audio_presets() -> tuple[Qwen2AudioEncoderConfig, WhisperConfig]:
    """Qwen2-Audio's encoder and Whisper-large-v3, whose encoder is the auxiliary one."""
    return Qwen2AudioEncoderConfig(d_model=1280, **LARGE), WhisperConfig(d_model=1280, **LARGE)


def brain_preset(name: str) -> BrainConfig:
    """The brain at a published size: "7B" or "32B". Its `speech_encoder_ds_rate` is a guess.

    Raises:
        ConfigError: no such size.
    """
    if name not in LLM:
        raise ConfigError(f"no brain size '{name}': choose one of {', '.join(LLM)}")
    width, layers, heads, kv_heads, mlp = LLM[name]
    main, aux = audio_presets()
    return BrainConfig(
        vocab_size=QWEN_VOCABULARY,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=mlp,
        rms_norm_eps=1e-6,
        max_position_embeddings=128_000,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": [16, 24, 24]},
        bos_token_id=151_643,
        eos_token_id=151_645,
        pad_token_id=151_643,
        vision_tower_config=vision_preset(name),
        speech_tower_config=main,
        speech_tower_aux_config=aux,
    )


# ---------------------------------------------------------------- towers


@dataclass(frozen=True)
class Tower:
    """One of the three towers: where its names, its config and its folder are told."""

    noun: str
    prefix: str  # of names in the brain's checkpoint
    names: str  # field of the published config that names its folder
    flag: str
    config: str  # field of our config
    kind: type
    inside: tuple[str, ...]  # prefixes of names in the tower's own folder, the longest first
    nested: tuple[str, ...]  # where a larger model's config.json holds the tower's


TOWERS = (
    Tower(
        "vision tower",
        "model.vision_tower.vision_tower.",
        "mm_vision_tower",
        "unfreeze_mm_vision_tower",
        "vision_tower_config",
        Qwen2_5_VLVisionConfig,
        ("model.visual.", "visual."),
        ("vision_config",),
    ),
    Tower(
        "main audio encoder",
        "model.speech_tower.speech_tower.",
        "mm_speech_tower",
        "unfreeze_mm_speech_tower",
        "speech_tower_config",
        Qwen2AudioEncoderConfig,
        ("model.audio_tower.", "audio_tower."),
        ("audio_config",),
    ),
    Tower(
        "auxiliary audio encoder",
        "model.speech_tower.speech_tower_aux.",
        "speech_tower_aux",
        "unfreeze_mm_speech_tower",
        "speech_tower_aux_config",
        WhisperConfig,
        ("model.encoder.", "encoder."),
        (),
    ),
)


@dataclass
class Part:
    """Where some weights of a brain come from."""

    folder: Path
    names: dict[str, str]  # name in the brain -> name in the folder's files
    shapes: dict[str, tuple[int, ...]]  # by name in the brain


@dataclass
class Plan:
    """What a published folder and the folders of its towers hold, before anything is read."""

    config: BrainConfig
    parts: list[Part]
    told: list[str] = field(default_factory=list)  # a line for each thing a user should know


def tower_folder(folder: Path, name: str | None, towers: Path | None) -> Path | None:
    """The folder that a config means, by its last name only: no path in a config leads elsewhere."""
    last = Path((name or "").replace("Dual-", "").rstrip("/")).name
    places = [p / last for p in (towers, folder, folder.parent) if p is not None and last]
    return next((p for p in places if (p / "config.json").is_file()), None)


def own_config(tower: Tower, folder: Path):
    """The tower's config in its own folder, or in that of the larger model it was cut from."""
    raw = read_json(folder / "config.json")
    for key in tower.nested:
        raw = raw.get(key) or raw
    try:
        return tower.kind(**{k: v for k, v in raw.items() if k not in ("model_type", "architectures")})
    except Exception as error:  # transformers checks values in its own ways
        raise CheckpointError(
            f"{folder}/config.json cannot be used ({str(error).splitlines()[0]}): get it again",
        ) from None


def file_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a folder's weights: safetensors, or one `pytorch_model.bin` of tensors alone."""
    single = folder / "pytorch_model.bin"
    if single.is_file() and not any(folder.glob("*.safetensors")):
        return {k: tuple(v.shape) for k, v in read_pt(single).items()}
    return shard_shapes(folder)


def own_part(tower: Tower, folder: Path) -> Part:
    """A tower's folder under the brain's names; other parts of a larger model in it are left out."""
    shapes = {k: v for k, v in file_shapes(folder).items() if not k.endswith(BUFFERS)}
    inner = next((p for p in tower.inside if any(k.startswith(p) for k in shapes)), "")
    names = {tower.prefix + k.removeprefix(inner): k for k in shapes if k.startswith(inner)}
    return Part(folder, names, {ours: shapes[theirs] for ours, theirs in names.items()})


def published_config(tower: Tower, shapes: dict[str, tuple[int, ...]]):
    """The published config whose sizes a tower in a checkpoint has, or None."""
    main, aux = audio_presets()
    known = {
        "vision tower": [vision_preset(n) for n in LLM],
        "main audio encoder": [main],
        "auxiliary audio encoder": [aux],
    }
    for config in known[tower.noun]:
        fields = {
            "vision_tower_config": None,
            "speech_tower_config": None,
            "speech_tower_aux_config": None,
            tower.config: config,
        }
        width = config.out_hidden_size if isinstance(config, Qwen2_5_VLVisionConfig) else 64
        with torch.device("meta"):
            empty = Brain(
                BrainConfig(
                    hidden_size=width,
                    num_hidden_layers=0,
                    num_attention_heads=2,
                    num_key_value_heads=1,
                    vocab_size=8,
                    **fields,
                ),
            )
        if {k: tuple(v.shape) for k, v in empty.state_dict().items() if k.startswith(tower.prefix)} == shapes:
            return config
    return None


def plan(folder: str | Path, towers: str | Path | None = None) -> Plan:
    """Read configs and headers and decide where each weight comes from.

    Args:
        folder: a published brain.
        towers: a folder that holds the towers' folders.

    Raises:
        CheckpointError: a file is missing, damaged or of another model; a tower is nowhere.
    """
    folder, towers = Path(folder), None if towers is None else Path(towers)
    raw = read_json(folder / "config.json")
    if raw.get("model_type") not in MODEL_TYPES:
        raise CheckpointError(
            f"{folder}/config.json is of a '{raw.get('model_type')}' model: give a brain's folder",
        )
    shapes = {k: v for k, v in shard_shapes(folder).items() if not k.endswith(BUFFERS)}
    made = Plan(config=None, parts=[])
    if dropped := [k for k in shapes if k.startswith(NOT_OURS)]:
        made.told.append(
            f"mm_projector: {len(dropped)} tensors left out (the released code never applies it)",
        )
    shapes = {k: v for k, v in shapes.items() if not k.startswith(NOT_OURS)}
    fields = {}
    for tower in TOWERS:
        held = {k: v for k, v in shapes.items() if k.startswith(tower.prefix)}
        if not held and not raw.get(tower.names) and not raw.get(tower.config):
            made.told.append(f"{tower.noun}: none")
            continue
        own = tower_folder(folder, raw.get(tower.names), towers)
        carried = raw.get(tower.config)
        if held and (raw.get(tower.flag) or own is None):
            config = carried or (own_config(tower, own) if own else published_config(tower, held))
            if config is None:
                raise CheckpointError(
                    f"the {tower.noun} of {folder} has no published size: "
                    f"put its folder '{raw.get(tower.names)}' beside it, "
                    "which holds its config.json, or give towers=",
                )
            made.told.append(f"{tower.noun}: {len(held)} tensors from the checkpoint")
        elif own is not None:
            config, part = own_config(tower, own), own_part(tower, own)
            made.parts.append(part)
            shapes = {k: v for k, v in shapes.items() if not k.startswith(tower.prefix)}
            unused = f"; the checkpoint's own {len(held)} are not used, as {tower.flag} is not set"
            unused = unused if held else ""
            made.told.append(f"{tower.noun}: {len(part.names)} tensors from the folder {own.name}{unused}")
        else:
            raise CheckpointError(
                f"the {tower.noun} is neither in {folder} nor in a folder named "
                f"'{raw.get(tower.names)}' beside it: "
                "get that folder too, or give towers=",
            )
        fields[tower.config] = config
    for name, default in (
        ("speech_norm", False),
        ("speech_encoder_ds_rate", 5),
        ("mm_speech_projector_type", "dual_mlp"),
    ):
        if name not in raw:
            made.told.append(f"{name} is not in config.json: taken as {default}")
    first = shapes.get("model.mm_speech_projector.linear1.weight")
    raw = {k: v for k, v in raw.items() if k not in ("model_type", "vision_config")}
    raw |= {"speech_projector_width": first[0]} if first else {}
    try:
        made.config = BrainConfig(**(raw | fields))
    except UserError:
        raise
    except Exception as error:  # transformers checks values in its own ways
        raise CheckpointError(
            f"{folder}/config.json cannot be used ({str(error).splitlines()[0]}): get it again",
        ) from None
    made.parts.insert(0, Part(folder, {k: k for k in shapes}, shapes))
    return made


def empty_brain(config: BrainConfig) -> Brain:
    """A brain whose parameters have no memory yet; tables of the rotary embeddings are real."""
    with init_empty_weights(include_buffers=False):
        return Brain(config)


def check(folder: str | Path, towers: str | Path | None = None) -> list[Fit]:
    """Compare a published folder and its towers with our classes, from headers alone.

    Raises:
        CheckpointError: a file is missing, damaged or refused.
    """
    made = plan(folder, towers)
    return [fit_of(made, empty_brain(made.config))]


def fit_of(made: Plan, model: Brain) -> Fit:
    """How all parts together fit a brain."""
    found = {name: shape for part in made.parts for name, shape in part.shapes.items()}
    tied = {"lm_head.weight"} if made.config.tie_word_embeddings else set()
    return compare("brain", model, found, tied)


# ---------------------------------------------------------------- loading


def tensors_of(part: Part):
    """(name in the brain, tensor) of a part, one at a time."""
    single = part.folder / "pytorch_model.bin"
    if single.is_file() and not any(part.folder.glob("*.safetensors")):
        state = read_pt(single)
        yield from ((ours, state[theirs]) for ours, theirs in part.names.items())
        return
    back = {theirs: ours for ours, theirs in part.names.items()}
    index = part.folder / "model.safetensors.index.json"
    files = ["model.safetensors"]
    if index.is_file():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    for name in files:
        with safe_open(str(part.folder / name), "pt") as file:
            held = [k for k in file.keys() if k in back]  # noqa: SIM118  not a dict
            yield from ((back[k], file.get_tensor(k)) for k in held)


def device_of(name: str, device_map: dict[str, int | str | torch.device]) -> int | str | torch.device:
    """Where a parameter goes: the entry with the longest matching module name."""
    fitting = [key for key in device_map if key == "" or name == key or name.startswith(f"{key}.")]
    if not fitting:
        raise ConfigError(f"device_map has no place for {name}: add an entry '' for all the rest")
    return device_map[max(fitting, key=len)]


@dataclass
class PublishedBrain:
    """Everything that is needed to answer."""

    brain: Brain
    processor: BrainProcessor
    report: list[str]  # where the towers come from, and what was assumed


def load(
    folder: str | Path,
    towers: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    device_map: str | dict | None = None,
) -> PublishedBrain:
    """A published MGM-Omni-7B/32B folder -> brain and processor, ready to answer.

    Args:
        towers: a folder that holds the towers' folders, if they are not beside the brain's.
        dtype: of all weights; the released code uses float16.
        device: of everything, unless there is a device_map.
        device_map: "auto", or module name -> device.

    Raises:
        CheckpointError: a part is missing, damaged, refused or does not fit; one line tells of all parts.
        LimitError: "auto" finds too little memory.
    """
    made = plan(folder, towers)
    made.config._attn_implementation = attention = attention_for(
        device if device_map is None else "cuda",
        dtype,
    )
    model = empty_brain(made.config)
    demand([fit_of(made, model)])  # before anything large is read
    places = device_map if isinstance(device_map, dict) else {"": device}
    if device_map == "auto":
        model.tie_weights()
        places = infer_auto_device_map(model, no_split_module_classes=model._no_split_modules, dtype=dtype)
        if "disk" in places.values():
            raise LimitError(
                f"{folder} does not fit the memory here in {dtype}: take a smaller dtype or more devices",
            )
    for part in made.parts:
        for name, tensor in tensors_of(part):
            set_module_tensor_to_device(model, name, device_of(name, places), value=tensor, dtype=dtype)
    model.tie_weights()
    if device_map is None:
        model.to(device)  # buffers
    else:
        dispatch_model(model, places)
    if (Path(folder) / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(str(folder), local_files_only=True)
    told = [*made.told, f"attention: {attention}; weights: {str(dtype).removeprefix('torch.')}"]
    return PublishedBrain(model.eval(), BrainProcessor.from_pretrained(folder, made.config), told)
