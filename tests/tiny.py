"""A folder of checkpoints with tiny random weights, in the layout of checkpoints/nano."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from safetensors.torch import save_file

from omnilib.brain.trained import Base, build_base
from omnilib.mouth.speechlm import SpeechLM, SpeechLMConfig
from omnilib.paths import ROOT
from omnilib.text import text_size, train_tokenizer
from omnilib.train.common import export_model
from omnilib.voice.flow import EncoderConfig, EstimatorConfig, Flow, FlowConfig
from omnilib.voice.hift import HiFT, HiFTConfig
from omnilib.voice.speaker import SpeakerConfig, SpeakerEncoder
from omnilib.voice.tokenizer import SpeechTokenizer, SpeechTokenizerConfig

CODES = 27  # 3^3
LINES = [
    "the quick brown fox, I'd say, jumps over a lazy dog.",
    "早上好，今天天气很好，我们去公园散步吧。",
]  # every letter


def tone(seconds: float, rate: int = 16000, hertz: float = 220.0) -> np.ndarray:
    """Speech of a voice near that pitch, again and again: recordings in which nobody speaks are refused."""
    path = ROOT / "tests/voices" / ("woman.ogg" if hertz > 150 else "man.ogg")
    wave, own = soundfile.read(path, dtype="float32")
    return np.resize(soxr.resample(wave, own, rate), round(seconds * rate)).astype(np.float32)


def write_checkpoints(folder: Path) -> Path:
    """tokenizer, speaker, flow, hift, speechlm and two voices."""
    torch.manual_seed(0)
    tokenizer = SpeechTokenizer(SpeechTokenizerConfig(width=32, heads=2, layers=1, kernel=5, fsq_dims=3))
    speaker = SpeakerEncoder(SpeakerConfig(width=16, dilations=[1, 2], dim=24))
    flow = Flow(
        FlowConfig(
            vocab=CODES,
            speaker_dim=24,
            encoder=EncoderConfig(width=16, heads=2, linear_units=32, blocks=1, up_blocks=1),
            estimator=EstimatorConfig(channels=[16], heads=2, head_dim=8, blocks=1, mid_blocks=1),
        )
    )
    hift = HiFT(
        HiFTConfig(
            base_channels=16,
            upsample_rates=[8, 5],
            upsample_kernel_sizes=[16, 11],
            istft_n_fft=48,
            istft_hop_len=12,
            resblock_kernel_sizes=[3],
            resblock_dilation_sizes=[[1, 3]],
            source_resblock_kernel_sizes=[3, 3],
            source_resblock_dilation_sizes=[[1], [1]],
            f0_cond_channels=16,
        )
    )
    for name, module in (("tokenizer", tokenizer), ("speaker", speaker), ("flow", flow), ("hift", hift)):
        export_model(folder / name, module, module.config, {"step": 0})

    words = train_tokenizer(
        ["the light of the morning was on the water.", *LINES] * 4, size=600, alphabet=100
    )
    size = text_size(words)
    config = SpeechLMConfig(
        vocab_size=size + 4 * (CODES + 2),
        tokenizer_speech_size=CODES + 2,
        tts_adapter_config="[1,32,2_2,64]",
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        tie_word_embeddings=True,
        speech_blank=0,
    )
    SpeechLM(config).save_pretrained(folder / "speechlm")
    words.save_pretrained(folder / "speechlm")

    voices = {}
    for name, language, text in (("ann", "en", "the light of the morning"), ("bo", "zh", "早上好")):
        (folder / "voices").mkdir(exist_ok=True)
        soundfile.write(
            folder / "voices" / f"{name}.wav", tone(3.0, hertz=200 if name == "ann" else 120), 16000
        )
        voices[name] = {"file": f"{name}.wav", "text": text, "language": language}
    (folder / "voices" / "voices.json").write_text(json.dumps(voices, ensure_ascii=False))
    return folder


def write_brain(folder: Path) -> Path:
    """A trained brain of random weights, with ears and eyes."""
    spec = Base(base="smoke", vision=[2, 16, 2, 24])
    model, _ = build_base(spec)
    folder.mkdir(parents=True)
    projector = {k: v for k, v in model.state_dict().items() if "mm_speech_projector" in k}
    save_file(projector, folder / "model.safetensors")
    (folder / "meta.json").write_text(json.dumps({"base": asdict(spec), "aux_sha256": "", "lora": None}))
    return folder
