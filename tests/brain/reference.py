"""What the reference fixtures share: their tokenizer, their waves, their models under our config."""

import numpy as np
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast, WhisperConfig
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_audio.configuration_qwen2_audio import Qwen2AudioEncoderConfig

from omnilib.brain.config import BrainConfig
from omnilib.brain.media import Video
from omnilib.brain.mllm import Brain

SPECIAL = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"
WORDS = [
    *SPECIAL,
    "\n",
    "system",
    "user",
    "assistant",
    *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,?!<>|_/'",
]


def longest_match(words: list[str], eos: str, pad: str) -> PreTrainedTokenizerFast:
    """A tokenizer that takes the longest known word at each place; decoding is concatenation."""
    vocabulary = {word: i for i, word in enumerate(words)}
    model = models.WordPiece(
        vocabulary,
        unk_token=pad,
        max_input_chars_per_word=10**9,
        continuing_subword_prefix="",
    )
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([word for word in words if word.startswith("<|")])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=eos,
        pad_token=pad,
        clean_up_tokenization_spaces=False,
    )


def wave(seconds: float, seed: int, rate: int = 16000) -> np.ndarray:
    """The fixtures' recipe: (n,) int16."""
    n = round(seconds * rate)
    t = np.arange(n) / rate
    f0, k, f1 = 180 + 7 * (seed % 11), 11 + seed % 5, 900 + 13 * (seed % 17)
    x = 0.35 * np.sin(2 * np.pi * (f0 * t + 0.5 * k * t * t)) * (0.6 + 0.4 * np.sin(2 * np.pi * 1.7 * t))
    x = (x + 0.12 * np.sin(2 * np.pi * f1 * t)) * ((t % 5) < 4.4)
    x = x + 0.01 * np.random.RandomState(seed).standard_normal(n)  # noqa: NPY002  the recipe's generator
    return np.clip(np.round(x * 32767), -32768, 32767).astype(np.int16)


def rope(text: dict) -> dict:
    """Rotary settings of either spelling."""
    section = text["mrope"] if "mrope" in text else text["rope_scaling"]["mrope_section"]
    return {"rope_type": "default", "rope_theta": text["rope_theta"], "mrope_section": section}


def text_fields(text: dict) -> dict:
    names = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
    )
    fields = {name: text[name] for name in (*names, "rms_norm_eps")}
    return fields | {
        "rope_parameters": rope(text),
        "tie_word_embeddings": text.get("tie_word_embeddings", False),
        "bos_token_id": None,
        "eos_token_id": None,
        "attn_implementation": text.get("attention", "eager"),
    }


def encoder(kind: type, sizes: dict, bins: int = 128):
    return kind(
        d_model=sizes["d_model"],
        encoder_layers=sizes["layers"],
        encoder_attention_heads=sizes["heads"],
        encoder_ffn_dim=sizes["ffn"],
        num_mel_bins=sizes.get("num_mel_bins", bins),
        max_source_positions=sizes.get("max_source_positions", 1500),
        activation_function=sizes.get("activation", "gelu"),
    )


def brain_config(meta: dict, **fields) -> BrainConfig:
    """The config of `brain_generate_greedy`."""
    c = meta["config"]
    vision = {k: v for k, v in c["vision"].items() if k != "attention"}
    settings = dict(
        **text_fields(c["llm"]),
        pad_token_id=None,
        vision_tower_config=Qwen2_5_VLVisionConfig(**vision),
        speech_tower_config=encoder(Qwen2AudioEncoderConfig, c["audio_main"]),
        speech_tower_aux_config=encoder(WhisperConfig, c["audio_aux"]),
        mm_speech_projector_type=c["projector"]["type"],
        speech_encoder_ds_rate=c["projector"]["speech_encoder_ds_rate"],
        speech_projector_width=c["projector"]["mid"],
        speech_norm=c["speech_norm"],
        reference_quirks=True,
    )
    return BrainConfig(**(settings | fields))


def load(model: Brain, tensors: dict) -> Brain:
    """Weights of a fixture, strictly; a tied head may be absent."""
    state = {k[2:]: v for k, v in tensors.items() if k.startswith("w.") and not k.startswith("w.variant.")}
    if model.config.tie_word_embeddings:
        model.tie_weights()
        state.setdefault("lm_head.weight", state["model.embed_tokens.weight"])
    model.load_state_dict(state, strict=True)
    return model.eval()


def brain(meta: dict, tensors: dict, **fields) -> Brain:
    """The reference brain of `brain_generate_greedy`."""
    return load(Brain(brain_config(meta, **fields)), tensors)


def tokenizer(meta: dict) -> PreTrainedTokenizerFast:
    t = meta["tokenizer"]
    return longest_match(t["id_to_string"], t["eos"], t["pad"])


def media_of(meta: dict, tensors: dict, case: dict) -> tuple[list, list]:
    """Pictures (videos marked) and waves of a case."""
    pictures = []
    for name in case["media"]:
        still = tensors.get(f"in.media.{name}.rgb")
        pictures.append(
            still.numpy() if still is not None else Video(tensors[f"in.media.{name}.frames"].numpy()),
        )
    waves = [meta["waves"][name] for name in case["waves"]]
    return pictures, [wave(w["seconds"], w["seed"], w["rate"]) for w in waves]
