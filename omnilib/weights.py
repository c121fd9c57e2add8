"""Published weights -> our classes, and the published sizes (paper sections 3.1, 3.2).

A folder as MGM-Omni-TTS is published:

    config.json  model-0000i-of-0000n.safetensors  model.safetensors.index.json     the mouth (or one model.safetensors)
    tokenizer_config.json  vocab.json  merges.txt  added_tokens.json  ...           its text tokenizer
    cosyvoice2/  flow.pt  hift.pt  campplus.onnx  speech_tokenizer_v2.onnx          the voice (a CosyVoice2-0.5B folder has the same four)

Notable choices
- Nothing in a folder is executed: safetensors; `.pt` through `weights_only=True`; ONNX graphs; no remote code.
- Names and shapes of *all* parts are compared first, from file headers, so that one report tells everything that does not
  fit before gigabytes are read. Names must fit strictly.
- `hift.pt` comes in four spellings: with or without `generator.` before each name, weight norm as `weight_g / weight_v`
  or as `parametrizations.weight.original0 / original1`. All load.
- Hub ids are pinned to a commit, and nothing is fetched unless `download` is called.

Shapes: B batch, F frames, T codes (25 Hz).
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from omnilib.errors import CheckpointError, ConfigError, MissingTool, UserError
from omnilib.mouth.chunking import Layout
from omnilib.mouth.rows import layout_of
from omnilib.mouth.speechlm import SpeechLM, SpeechLMConfig
from omnilib.text import load_tokenizer
from omnilib.voice.codec import Codec, CodecSettings
from omnilib.voice.flow import Flow, FlowConfig
from omnilib.voice.hift import HiFT, HiFTConfig, published_keys
from omnilib.weight_files import Fit, compare, demand, existing, on_meta, read_json, read_pt, shard_shapes
from omnilib.weight_files import report as report

# ---------------------------------------------------------------- published sizes

QWEN3_TEXT = 151_669  # pieces of the Qwen3 tokenizer, special ones included; three audio control tokens come behind them
SPEECH_IDS, STREAMS, ADAPTER_LAYERS = 6563, 4, 6  # paper section 3.2
BACKBONES = {  # Qwen3 technical report, table 1: width, layers, heads, mlp width (8 key-value heads of 128 in all three)
    "0.6B": (1024, 28, 16, 3072),
    "2B": (2048, 28, 16, 6144),  # Qwen3-1.7B; the adapter makes it 2B
    "4B": (2560, 36, 32, 9728),
}


def speechlm_preset(name: str) -> SpeechLMConfig:
    """The mouth at a published size: "0.6B", "2B" or "4B".

    The paper gives the adapter's depth (6) but not its other sizes; its blocks are taken to be those of the backbone.

    Raises:
        ConfigError: no such size.
    """
    if name not in BACKBONES:
        raise ConfigError(f"no SpeechLM size '{name}': choose one of {', '.join(BACKBONES)}")
    width, layers, heads, mlp = BACKBONES[name]
    text = QWEN3_TEXT + 3
    return SpeechLMConfig(
        vocab_size=text + STREAMS * SPEECH_IDS,
        tokenizer_text_size=text,
        tokenizer_speech_size=SPEECH_IDS,
        speech_token_count=STREAMS,
        tts_adapter_config=f"[{ADAPTER_LAYERS},{width},{heads}_{heads // 8},{mlp}]",
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=mlp,
        max_position_embeddings=40_960,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        tie_word_embeddings=True,
        pad_token_id=151_643,
        eos_token_id=151_645,
    )


WEIGHT_NORM = {
    "weight_g": "parametrizations.weight.original0",
    "weight_v": "parametrizations.weight.original1",
}  # gain, direction


def hift_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Any spelling of `hift.pt` -> the names of `voice/hift.py`."""
    result = {}
    for key, value in published_keys(state).items():
        head, _, last = key.rpartition(".")
        result[f"{head}.{WEIGHT_NORM[last]}" if last in WEIGHT_NORM else key] = value
    return result


# ---------------------------------------------------------------- ONNX front ends


def onnx_session(path: Path, inputs: int, threads: int = 1):
    """An onnxruntime session on the GPU if there is one, else on the CPU.

    Raises:
        MissingTool: onnxruntime is not installed.
        CheckpointError: missing or damaged file, or another number of inputs.
    """
    try:
        import onnxruntime
    except ImportError:
        raise MissingTool(
            "onnxruntime is not installed: `pip install onnxruntime`, or `pip install .[onnx]`"
        ) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    providers = [p for p in wanted if p in onnxruntime.get_available_providers()]
    try:
        session = onnxruntime.InferenceSession(str(existing(path)), options, providers=providers)
    except CheckpointError:
        raise
    except Exception as error:  # onnxruntime's own exceptions have no common public base
        raise CheckpointError(f"{path} is damaged ({str(error).splitlines()[0]}): get it again") from None
    if len(session.get_inputs()) != inputs:
        raise CheckpointError(
            f"{path} takes {len(session.get_inputs())} inputs, not {inputs}: it is another model; get it again"
        )
    return session


class OnnxTokenizer(nn.Module):
    """`speech_tokenizer_v2.onnx` behind the interface of `SpeechTokenizer.encode`."""

    def __init__(self, path: str | Path):
        super().__init__()
        self.session = onnx_session(Path(path), inputs=2)
        self.names = [i.name for i in self.session.get_inputs()]  # log-mel (1, 128, F) and its length (1,)

    @torch.inference_mode()
    def encode(self, mel: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Log-mel (B, 128, F) -> codes (B, T) and their lengths (B,); one item at a time, as the published graph wants."""
        frames = [mel.shape[-1]] * len(mel) if lengths is None else lengths.tolist()
        codes = []
        for item, count in zip(mel.float().cpu(), frames, strict=True):
            feed = {
                self.names[0]: item[None, :, :count].numpy(),
                self.names[1]: torch.tensor([count], dtype=torch.int32).numpy(),
            }
            codes.append(torch.from_numpy(self.session.run(None, feed)[0]).flatten().long())  # (T,)
        padded = nn.utils.rnn.pad_sequence(codes, batch_first=True)  # (B, T)
        return padded.to(mel.device), torch.tensor([len(c) for c in codes], device=mel.device)


class OnnxSpeaker(nn.Module):
    """`campplus.onnx` behind the interface of `SpeakerEncoder`."""

    def __init__(self, path: str | Path):
        super().__init__()
        self.session = onnx_session(Path(path), inputs=1)
        self.name = self.session.get_inputs()[0].name

    @torch.inference_mode()
    def forward(self, fbank: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, F, 80), lengths (B,) in frames -> (B, 192); the mean of each recording is taken off first."""
        frames = [fbank.shape[1]] * len(fbank) if lengths is None else lengths.tolist()
        vectors = []
        for item, count in zip(fbank.float().cpu(), frames, strict=True):
            item = item[:count] - item[:count].mean(0)  # (F, 80)
            vectors.append(
                torch.from_numpy(self.session.run(None, {self.name: item[None].numpy()})[0]).flatten()
            )
        return torch.stack(vectors).to(fbank.device)


# ---------------------------------------------------------------- the parts


def tts_config(folder: Path) -> SpeechLMConfig:
    """config.json of the mouth.

    Raises:
        CheckpointError: missing, damaged, or of another kind of model.
    """
    kind = read_json(folder / "config.json").get("model_type")
    if kind != SpeechLMConfig.model_type:
        raise CheckpointError(
            f"{folder}/config.json is of a '{kind}' model, not '{SpeechLMConfig.model_type}': give an MGM-Omni-TTS folder"
        )
    try:
        return SpeechLMConfig.from_pretrained(str(folder), local_files_only=True)
    except UserError:
        raise
    except Exception as error:  # transformers checks values in its own ways
        raise CheckpointError(
            f"{folder}/config.json cannot be used ({str(error).splitlines()[0]}): get it again"
        ) from None


def check_speechlm(folder: str | Path) -> Fit:
    """Whether the shards of a mouth fit its config."""
    model = on_meta(SpeechLM, tts_config(Path(folder)))
    return compare("speech model", model, shard_shapes(Path(folder)), set(model.all_tied_weights_keys))


def read_voice_part(path: Path, module: nn.Module) -> tuple[dict[str, Tensor], Fit]:
    """A `.pt` under our names, and whether it fits `module`."""
    state = read_pt(path)
    if isinstance(module, HiFT):
        state = hift_keys(state)
    return state, compare(path.name, module, {k: tuple(v.shape) for k, v in state.items()})


def check_voice(
    folder: str | Path, flow: FlowConfig | None = None, hift: HiFTConfig | None = None
) -> list[Fit]:
    """Whether flow.pt and hift.pt fit; sizes are the published ones unless given."""
    modules = {"flow.pt": on_meta(Flow, flow or FlowConfig()), "hift.pt": on_meta(HiFT, hift or HiFTConfig())}
    return [read_voice_part(Path(folder) / name, module)[1] for name, module in modules.items()]


def load_voice(
    folder: str | Path,
    flow: FlowConfig | None = None,
    hift: HiFTConfig | None = None,
    settings: CodecSettings | None = None,
) -> Codec:
    """flow.pt, hift.pt, campplus.onnx and speech_tokenizer_v2.onnx of a folder -> codec.

    Raises:
        CheckpointError: a file is missing, damaged or refused, or its names or shapes do not fit.
        MissingTool: onnxruntime is not installed.
    """
    folder = Path(folder)
    demand(check_voice(folder, flow, hift))
    tokenizer, speaker = (
        OnnxTokenizer(folder / "speech_tokenizer_v2.onnx"),
        OnnxSpeaker(folder / "campplus.onnx"),
    )
    modules = {"flow.pt": Flow(flow or FlowConfig()), "hift.pt": HiFT(hift or HiFTConfig())}
    for name, module in modules.items():
        module.load_state_dict(read_voice_part(folder / name, module)[0])
    return Codec(tokenizer, speaker, modules["flow.pt"], modules["hift.pt"].fold_weight_norm(), settings)


def is_brain(folder: str | Path) -> bool:
    """Whether a published folder holds a brain (MGM-Omni-7B, 32B) and not a mouth."""
    return str(read_json(Path(folder) / "config.json").get("model_type")).startswith(("MGMOmni", "MGMQwen"))


def check(folder: str | Path, flow: FlowConfig | None = None, hift: HiFTConfig | None = None) -> list[Fit]:
    """Compare a whole published folder with our classes, without building them; print `report(...)` of it.

    Raises:
        CheckpointError: a file is missing, damaged or refused.
    """
    if is_brain(folder):
        from omnilib.brain import published

        return published.check(folder)
    return [check_speechlm(folder), *check_voice(Path(folder) / "cosyvoice2", flow, hift)]


def load_brain(folder: str | Path, **options):
    """A published brain (MGM-Omni-7B, 32B): see `omnilib.brain.published.load`."""
    from omnilib.brain import published

    return published.load(folder, **options)


@dataclass
class Published:
    """Everything that is needed to speak."""

    mouth: SpeechLM
    tokenizer: object  # of transformers
    codec: Codec

    @property
    def layout(self) -> Layout:
        """The row layout of mouth and tokenizer."""
        return layout_of(self.mouth.config, self.tokenizer)


def load(
    folder: str | Path,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    flow: FlowConfig | None = None,
    hift: HiFTConfig | None = None,
) -> Published:
    """A published MGM-Omni-TTS folder -> mouth, text tokenizer and codec.

    Raises:
        CheckpointError: any part is missing, damaged, refused or does not fit; one line tells of all parts.
        MissingTool: onnxruntime is not installed.
    """
    demand(check(folder, flow, hift))  # before anything large is built
    tokenizer = load_tokenizer(folder)
    codec = load_voice(Path(folder) / "cosyvoice2", flow, hift).to(device)
    mouth = SpeechLM.load(folder, dtype, device)
    return Published(mouth, tokenizer, codec)


# ---------------------------------------------------------------- download

WANTED = [
    "*.json",
    "merges.txt",
    "*.safetensors",
    "*flow.pt",
    "*hift.pt",
    "*campplus.onnx",
    "*speech_tokenizer_v2.onnx",
]  # no code
REPOSITORIES = {  # named by the authors' README; other sizes: see their collection
    "2B": "wcy1122/MGM-Omni-TTS-2B-0927",
    "7B": "wcy1122/MGM-Omni-7B",  # a brain
}


def split_pin(pin: str) -> tuple[str, str]:
    """Repository and revision of "owner/name@revision".

    Raises:
        ConfigError: not of that form.
    """
    repository, _, revision = pin.partition("@")
    if repository.count("/") != 1 or not all(repository.split("/")) or not revision:
        raise ConfigError(f"'{pin}' is not 'owner/name@revision': for example {REPOSITORIES['2B']}@main")
    return repository, revision


def download(pin: str, folder: str | Path, endpoint: str | None = None) -> Path:
    """Fetch a published folder from the hub, pinned: "owner/name@<40 hex digits>". Goes on where it was cut off.

    Args:
        endpoint: another hub than huggingface.co.

    Raises:
        ConfigError: not pinned to a commit; tells the commit that a branch stands at now.
        CheckpointError: hub not reachable, or no such repository or revision.
    """
    from huggingface_hub import HfApi, snapshot_download

    repository, revision = split_pin(pin)
    try:
        commit = (
            HfApi(endpoint=endpoint).model_info(repository, revision=revision, timeout=20).sha
        )  # fails at once when offline
        if revision != commit:
            raise ConfigError(
                f"'{pin}' may change: '{revision}' is now at {commit}; ask for {repository}@{commit}"
            )
        snapshot_download(
            repository, revision=commit, local_dir=folder, allow_patterns=WANTED, endpoint=endpoint
        )
    except ConfigError:
        raise
    except Exception as error:  # the hub client raises errors of its own, of its HTTP library, and OSError
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        raise CheckpointError(
            f"cannot fetch {pin} ({reason}): check the name and the network, or copy the folder here by hand"
        ) from None
    source = {"repository": repository, "revision": revision}
    temporary = Path(folder) / "source.json.tmp"
    temporary.write_text(json.dumps(source, indent=1) + "\n")
    os.replace(temporary, Path(folder) / "source.json")
    return Path(folder)
