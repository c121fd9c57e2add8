"""Published folders: what loads, what is refused and how it is told, sizes of the presets, pinned downloads.

The folders written here have the layout of MGM-Omni-TTS and CosyVoice2 releases, tiny and random.
"""

import json
import pickle
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file, save_file

from omnilib import config as configs
from omnilib import weights
from omnilib.audio import log_mel_128, save_wave
from omnilib.errors import CheckpointError, ConfigError, UserError
from omnilib.mouth.speechlm import SpeechLM, SpeechLMConfig
from omnilib.speak import TextToSpeech
from omnilib.text import text_size, train_tokenizer
from omnilib.train import flow as flow_training
from omnilib.train import hift as hift_training
from omnilib.train.tokenizer import Config as TokenizerConfig
from omnilib.voice.flow import EncoderConfig, EstimatorConfig, Flow, FlowConfig
from omnilib.voice.hift import HiFT, HiFTConfig
from omnilib.voice.tokenizer import SpeechTokenizer
from tests.tiny import tone

CODES = 27
FLOW = FlowConfig(
    vocab=CODES,
    encoder=EncoderConfig(width=16, heads=2, linear_units=32, blocks=1, up_blocks=1),
    estimator=EstimatorConfig(channels=[16], heads=2, head_dim=8, blocks=1, mid_blocks=1),
)
HIFT = HiFTConfig(base_channels=32, f0_cond_channels=16)


# ---- writing a folder ------------------------------------------------------------------------------------------------


def onnx_model(path: Path, nodes: list, inputs: list, output, constants: dict[str, np.ndarray]) -> None:
    named = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "tiny", inputs, [output], named)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def write_tokenizer_onnx(path: Path) -> None:
    """code t = |10 mean over bands of frame 4 t| mod 27, with the published inputs: mel (1, 128, F), length (1,)."""
    nodes = [
        helper.make_node("ReduceMean", ["feats"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("Slice", ["mean", "zero", "end", "one", "four"], ["kept"]),
        helper.make_node("Mul", ["kept", "ten"], ["scaled"]),
        helper.make_node("Abs", ["scaled"], ["positive"]),
        helper.make_node("Cast", ["positive"], ["whole"], to=TensorProto.INT32),
        helper.make_node("Mod", ["whole", "size"], ["codes"]),
    ]
    inputs = [
        helper.make_tensor_value_info("feats", TensorProto.FLOAT, [1, 128, "F"]),
        helper.make_tensor_value_info("feats_length", TensorProto.INT32, [1]),
    ]
    numbers = {"zero": 0, "end": 2**31 - 1, "one": 1, "four": 4}
    constants = {k: np.array([v], np.int64) for k, v in numbers.items()} | {
        "ten": np.float32([10]),
        "size": np.int32([CODES]),
    }
    onnx_model(
        path, nodes, inputs, helper.make_tensor_value_info("codes", TensorProto.INT32, [1, "T"]), constants
    )


def write_speaker_onnx(path: Path) -> None:
    """mean square of each band, times a matrix: (1, F, 80) -> (1, 192)."""
    nodes = [
        helper.make_node("Mul", ["input", "input"], ["square"]),
        helper.make_node("ReduceMean", ["square"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["mean", "matrix"], ["output"]),
    ]
    matrix = np.random.default_rng(0).standard_normal((80, 192)).astype(np.float32)
    given = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["B", "F", 80])
    onnx_model(
        path,
        nodes,
        [given],
        helper.make_tensor_value_info("output", TensorProto.FLOAT, ["B", 192]),
        {"matrix": matrix},
    )


@dataclass
class Written:
    folder: Path
    mouth: SpeechLM
    flow: Flow
    hift: HiFT


def old_spelling(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weight norm as torch wrote it before 2.0."""
    old = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    for new, name in old.items():
        state = {k.replace(new, name): v for k, v in state.items()}
    return state


def write_folder(folder: Path) -> Written:
    """A whole published folder: sharded mouth, its tokenizer, cosyvoice2/ with the four files."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["hello there", "one two three"], size=300)
    text, speech = text_size(tokenizer), CODES + 2
    config = SpeechLMConfig(
        vocab_size=text + 4 * speech, tokenizer_speech_size=speech, tts_adapter_config="[1,32,2_2,64]", hidden_size=32, intermediate_size=64,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=16, tie_word_embeddings=False,
    )  # fmt: skip
    mouth, flow, hift = SpeechLM(config), Flow(FLOW), HiFT(HIFT)
    mouth.save_pretrained(folder, max_shard_size="60KB")
    tokenizer.save_pretrained(folder)
    voice = folder / "cosyvoice2"
    voice.mkdir()
    torch.save(flow.state_dict() | {"epoch": 3, "step": 1000}, voice / "flow.pt")
    torch.save({f"generator.{k}": v for k, v in old_spelling(hift.state_dict()).items()}, voice / "hift.pt")
    write_tokenizer_onnx(voice / "speech_tokenizer_v2.onnx")
    write_speaker_onnx(voice / "campplus.onnx")
    return Written(folder, mouth, flow.eval(), hift.eval())


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Written:
    return write_folder(tmp_path_factory.mktemp("original") / "MGM-Omni-TTS-tiny")


@pytest.fixture
def written(original, tmp_path) -> Written:
    """A copy that a test may spoil."""
    return replace(original, folder=Path(shutil.copytree(original.folder, tmp_path / "MGM-Omni-TTS-tiny")))


def load(written: Written) -> weights.Published:
    return weights.load(written.folder, flow=FLOW, hift=HIFT)


# ---- what loads ------------------------------------------------------------------------------------------------------


def test_a_published_folder_loads_and_speaks(written):
    assert len(list(written.folder.glob("model-*.safetensors"))) > 1
    published = load(written)
    for name, weight in written.mouth.state_dict().items():
        assert torch.equal(published.mouth.state_dict()[name], weight), name
    assert torch.equal(published.mouth.offsets, written.mouth.offsets)
    for name, weight in written.flow.state_dict().items():
        assert torch.equal(published.codec.flow.state_dict()[name], weight), name
    mel, noise = torch.randn(1, 80, 12), torch.zeros(1, 12 * HIFT.hop, 9)
    wave, _ = published.codec.hift.inference(mel, noise=noise)
    torch.testing.assert_close(wave, written.hift.inference(mel, noise=noise)[0])
    assert published.layout.audio_sep == published.mouth.config.tokenizer_text_size - 1

    sound = 0.3 * torch.sin(torch.arange(16_000) * 0.1)
    voice = published.codec.voice(sound, 16_000)
    assert voice.speaker.shape == (192,) and len(voice.tokens) == 25
    wave = published.codec.decode(voice.tokens[:10], voice)
    assert wave.shape == (9600,) and torch.isfinite(wave).all()
    rows = torch.zeros(1, 3, 5, dtype=torch.long)
    torch.testing.assert_close(published.mouth(rows).speech_logits, written.mouth.eval()(rows).speech_logits)


def test_a_speaker_of_a_published_folder_speaks_in_the_voice_of_a_recording(written, tmp_path):
    speaker = TextToSpeech.from_published(load(written))
    save_wave(tmp_path / "voice.wav", torch.as_tensor(tone(2.0, 24_000)), 24_000)
    speaker.settings = replace(speaker.settings, max_rows=40)
    result = speaker.speak("hello there", tmp_path / "voice.wav", "one two three")
    assert result.wave.shape == (960 * len(result.tokens),) and torch.isfinite(result.wave).all()
    with pytest.raises(UserError, match="--voice"):
        speaker.speak("hello there")


def test_speaker_load_knows_a_published_folder(written):
    with pytest.raises(CheckpointError, match="flow.pt"):  # ours is tiny: the published sizes do not fit
        TextToSpeech.load(written.folder)


@pytest.mark.parametrize("prefix", ["", "generator."])
@pytest.mark.parametrize("old", [False, True])
def test_every_spelling_of_the_vocoder_loads(written, prefix, old):
    state = old_spelling(written.hift.state_dict()) if old else written.hift.state_dict()
    torch.save({f"{prefix}{k}": v for k, v in state.items()}, written.folder / "cosyvoice2" / "hift.pt")
    state, fit = weights.read_voice_part(written.folder / "cosyvoice2" / "hift.pt", HiFT(HIFT))
    assert fit.fits, fit.line()
    assert all(torch.equal(state[k], v) for k, v in written.hift.state_dict().items())


def test_one_unsharded_file_and_a_pt_of_the_old_format_load_too(written):
    written.mouth.save_pretrained(written.folder)
    for shard in [
        *written.folder.glob("model-*.safetensors"),
        written.folder / "model.safetensors.index.json",
    ]:
        shard.unlink()
    torch.save(
        written.flow.state_dict(),
        written.folder / "cosyvoice2" / "flow.pt",
        _use_new_zipfile_serialization=False,
    )
    assert load(written).mouth.config.num_hidden_layers == 2


def test_a_tied_head_may_be_absent(tmp_path):
    config = SpeechLMConfig(
        vocab_size=300 + 4 * 29, tokenizer_speech_size=29, tts_adapter_config="[1,32,2_2,64]", hidden_size=32, intermediate_size=64,
        num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=16, tie_word_embeddings=True,
    )  # fmt: skip
    model = SpeechLM(config)
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(str(tmp_path / "model.safetensors"))
    loaded = SpeechLM.load(tmp_path)
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


def test_onnx_front_ends_have_the_interface_of_our_modules(written):
    voice = written.folder / "cosyvoice2"
    mel = log_mel_128(torch.randn(2, 16_000))
    codes, lengths = weights.OnnxTokenizer(voice / "speech_tokenizer_v2.onnx").encode(
        mel, torch.tensor([100, 61])
    )
    expected = (mel.mean(1)[:, ::4] * 10).abs().int() % CODES
    assert lengths.tolist() == [25, 16] and codes.dtype == torch.long
    assert torch.equal(codes[0], expected[0].long()) and torch.equal(codes[1, :16], expected[1, :16].long())
    fbank = torch.randn(2, 50, 80) + 3
    speaker = weights.OnnxSpeaker(voice / "campplus.onnx")
    vectors = speaker(fbank, torch.tensor([50, 30]))
    assert vectors.shape == (2, 192)
    torch.testing.assert_close(
        vectors[1:], speaker(fbank[1:, :30] + 5), rtol=1e-3, atol=1e-3
    )  # the mean is taken off


def test_nothing_in_a_folder_is_executed(written, tmp_path):
    """Remote code beside the weights, named by both configs, is not even looked at."""
    for name in ("config.json", "tokenizer_config.json"):
        value = json.loads((written.folder / name).read_text())
        classes = {
            "AutoConfig": "evil.Evil",
            "AutoModelForCausalLM": "evil.Evil",
            "AutoTokenizer": ["evil.Evil", "evil.Evil"],
        }
        (written.folder / name).write_text(json.dumps(value | {"auto_map": classes}))
    (written.folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    assert len(load(written).tokenizer) > 250
    assert not (tmp_path / "ran").exists()


# ---- what is refused -------------------------------------------------------------------------------------------------


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_one_report_tells_of_all_parts(written):
    voice, shards = written.folder / "cosyvoice2", sorted(written.folder.glob("model-*.safetensors"))
    assert all(fit.fits for fit in weights.check(written.folder, FLOW, HIFT))
    flow = written.flow.state_dict()
    lost, short = list(flow)[0], list(flow)[1]
    torch.save(
        {k: v[..., :1] if k == short else v for k, v in flow.items() if k != lost}
        | {"extra": torch.zeros(2)},
        voice / "flow.pt",
    )
    tensors = load_file(str(shards[0]))
    gone = sorted(tensors)[0]
    save_file({("other" if k == gone else k): v for k, v in tensors.items()}, shards[0])
    index = written.folder / "model.safetensors.index.json"
    places = json.loads(index.read_text())
    places["weight_map"]["other"] = places["weight_map"].pop(gone)
    index.write_text(json.dumps(places))
    fits = weights.check(written.folder, FLOW, HIFT)
    text = weights.report(fits)
    for line in (
        f"missing    {gone}",
        "unexpected other",
        f"missing    {lost}",
        "unexpected extra",
        f"shape      {short} is",
        "hift.pt: ",
    ):
        assert line in text, text
    with pytest.raises(CheckpointError, match="do not fit") as error:
        load(written)
    assert all(word in one_line(error) for word in (gone, "other", lost, short, "extra"))


def test_published_sizes_are_the_default_and_a_tiny_folder_does_not_fit_them(written):
    with pytest.raises(CheckpointError, match="flow.pt") as error:
        weights.load_voice(written.folder / "cosyvoice2")
    assert "and" in one_line(error) and "more" in one_line(error)  # long lists are cut


@pytest.mark.parametrize("name", ["config.json", "cosyvoice2/flow.pt", "cosyvoice2/hift.pt", "cosyvoice2/campplus.onnx",
                                  "cosyvoice2/speech_tokenizer_v2.onnx", "model.safetensors.index.json"])  # fmt: skip
@pytest.mark.parametrize("damage", ["missing", "cut", "garbage", "empty"])
def test_missing_and_damaged_files(written, name, damage):
    path = written.folder / name
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(
            {"cut": content[: len(content) // 2], "garbage": b"\x07garbage" * 50, "empty": b""}[damage]
        )
    with pytest.raises(CheckpointError) as error:
        load(written)
    assert one_line(error).endswith(("get it again", "correct the folder", "get it from its source"))


def test_truncated_and_lost_shards(written):
    first, second, *_ = sorted(written.folder.glob("model-*.safetensors"))
    content = first.read_bytes()
    for broken in (content[:100], content[:-10], b""):
        first.write_bytes(broken)
        with pytest.raises(CheckpointError, match=f"{first.name} is damaged"):
            load(written)
    first.write_bytes(content)
    second.unlink()
    with pytest.raises(CheckpointError, match=f"no {second.name}"):
        load(written)


def test_index_that_leaves_the_folder_or_lies_is_refused(written):
    path = written.folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    key = next(iter(index["weight_map"]))
    for place, words in (("../else.safetensors", "refused"), ("/etc/passwd", "refused")):
        path.write_text(json.dumps({"weight_map": index["weight_map"] | {key: place}}))
        with pytest.raises(CheckpointError, match=words):
            load(written)
    path.write_text(json.dumps({"weight_map": index["weight_map"] | {"ghost": index["weight_map"][key]}}))
    with pytest.raises(CheckpointError, match="promises ghost"):
        load(written)


class Bomb:
    """Touches a file when unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize(
    "write",
    [lambda value, path: torch.save(value, path), lambda value, path: path.write_bytes(pickle.dumps(value))],
)
def test_a_pickle_with_code_in_it_is_refused_unread(written, tmp_path, write):
    for name in ("flow.pt", "hift.pt"):
        good = (written.folder / "cosyvoice2" / name).read_bytes()
        write({"weight": Bomb(tmp_path / "ran")}, written.folder / "cosyvoice2" / name)
        with pytest.raises(CheckpointError, match=f"{name} is refused") as error:
            load(written)
        one_line(error)
        (written.folder / "cosyvoice2" / name).write_bytes(good)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "value", [torch.zeros(3), {"model": {"a": torch.zeros(1)}}, {3: torch.zeros(1)}, [1, 2]]
)
def test_a_pt_that_is_no_state_dict_is_refused(written, value):
    torch.save(value, written.folder / "cosyvoice2" / "flow.pt")
    with pytest.raises(CheckpointError, match="no plain state dict"):
        load(written)


def test_other_models_are_told_apart(written):
    config = written.folder / "config.json"
    good = json.loads(config.read_text())
    config.write_text(json.dumps(good | {"model_type": "qwen3"}))
    with pytest.raises(CheckpointError, match="'qwen3' model"):
        load(written)
    config.write_text(json.dumps(good | {"vocab_size": good["vocab_size"] + 1}))
    with pytest.raises(ConfigError, match="vocab_size"):
        load(written)
    config.write_text(json.dumps(good))
    voice = written.folder / "cosyvoice2"
    write_speaker_onnx(voice / "speech_tokenizer_v2.onnx")
    with pytest.raises(CheckpointError, match="takes 1 inputs, not 2"):
        load(written)


# ---- published sizes -------------------------------------------------------------------------------------------------


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# Parameters of Qwen/Qwen3-{0.6B,1.7B,4B} on their model pages (embedding tied, 151,936 rows), width, layers.
QWEN3 = {"0.6B": (596_049_920, 1024, 28), "2B": (1_720_574_976, 2048, 28), "4B": (4_022_468_096, 2560, 36)}


@pytest.mark.parametrize("name", QWEN3)
def test_speechlm_presets_have_the_published_size(name):
    """Backbone as published, its table cut to 151,672 text rows and extended by 4 x 6,563, plus 6 of its own blocks."""
    total, width, layers = QWEN3[name]
    block = (total - 151_936 * width - width) // layers  # all but table and last norm, evenly
    assert block * layers + 151_936 * width + width == total
    expected = total + (151_672 + 4 * 6_563 - 151_936) * width + 6 * block
    model = weights.on_meta(SpeechLM, weights.speechlm_preset(name))
    assert parameters(model) == expected
    assert all(p.is_meta for p in model.parameters())
    assert parameters(model.tts_adapter) == 6 * block
    assert model.config.layout().audio_sep == 151_671


def test_unknown_preset_is_told():
    with pytest.raises(ConfigError, match="choose one of 0.6B, 2B, 4B"):
        weights.speechlm_preset("7B")


def test_voice_presets_have_the_published_size(golden):
    published = golden("state_dict_keys_full")[0]["parameters"]
    flow = weights.on_meta(Flow, configs.load(flow_training.Config, "paper/flow").model)
    assert parameters(flow) == published["flow"] == 112_549_360
    hift = weights.on_meta(HiFT, configs.load(hift_training.Config, "paper/hift").model)
    assert parameters(hift) == published["hift"] == 20_821_295
    # Whisper-type encoder of width 1280, by hand: two convolutions of 3; 6 blocks of 4 square maps (key without bias), a
    # depth-wise convolution of 31, a 4 x feed-forward, 2 norms; FSQ projection to 8 digits.
    w = 1280
    block = 4 * w * w + 3 * w + 31 * w + (8 * w * w + 5 * w) + 4 * w
    expected = (128 * w * 3 + w) + (w * w * 3 + w) + 6 * block + (8 * w + 8)
    assert (
        parameters(
            weights.on_meta(SpeechTokenizer, configs.load(TokenizerConfig, "paper/tokenizer").tokenizer)
        )
        == expected
    )


# ---- download --------------------------------------------------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b"{}",
    "model.safetensors": b"weights",
    "modeling.py": b"raise SystemExit",
    "cosyvoice2/flow.pt": b"flow",
}


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a download needs: one repository, one commit."""

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path.startswith("/api/models/someone/tts/revision/"):
            known = path.rsplit("/", 1)[1] in (COMMIT, "main")
            info = {
                "id": "someone/tts",
                "sha": COMMIT,
                "siblings": [{"rfilename": name} for name in FILES],
                "private": False,
            }
            return self.answer(200 if known else 404, json.dumps(info).encode(), "RevisionNotFound")
        if path == f"/api/models/someone/tts/tree/{COMMIT}":
            tree = [
                {"type": "file", "path": name, "size": len(body), "oid": "0" * 40}
                for name, body in FILES.items()
            ]
            return self.answer(200, json.dumps(tree).encode(), "")
        name = path.removeprefix(f"/someone/tts/resolve/{COMMIT}/")
        return self.answer(200 if name in FILES else 404, FILES.get(name, b""), "EntryNotFound")

    do_HEAD = do_GET

    def answer(self, status: int, body: bytes, missing: str) -> None:
        self.send_response(status)
        headers = {
            "Content-Length": str(len(body)),
            "ETag": '"etag"',
            "X-Repo-Commit": COMMIT,
            "Content-Type": "application/json",
        }
        if status == 404:
            headers["X-Error-Code"] = missing
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args) -> None:
        """Quiet."""


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_download_takes_a_pinned_commit_and_no_code(hub, tmp_path):
    folder = weights.download(f"someone/tts@{COMMIT}", tmp_path / "tts", endpoint=hub)
    assert (folder / "model.safetensors").read_bytes() == b"weights" and (
        folder / "cosyvoice2" / "flow.pt"
    ).read_bytes() == b"flow"
    assert not (folder / "modeling.py").exists()
    assert json.loads((folder / "source.json").read_text()) == {
        "repository": "someone/tts",
        "revision": COMMIT,
    }


def test_download_tells_the_commit_of_a_branch(hub, tmp_path):
    with pytest.raises(ConfigError, match=f"ask for someone/tts@{COMMIT}"):
        weights.download("someone/tts@main", tmp_path, endpoint=hub)
    with pytest.raises(CheckpointError, match="cannot fetch someone/tts@ffff") as error:
        weights.download("someone/tts@" + "f" * 40, tmp_path, endpoint=hub)
    one_line(error)
    for pin in ("someone/tts", "tts@main", "@main", "a/b/c@main"):
        with pytest.raises(ConfigError, match="owner/name@revision"):
            weights.download(pin, tmp_path)


def test_download_without_network_is_one_line(tmp_path):
    with pytest.raises(CheckpointError, match="check the name and the network") as error:
        weights.download(f"someone/tts@{COMMIT}", tmp_path / "tts", endpoint="http://127.0.0.1:9")
    one_line(error)
    assert not (tmp_path / "tts" / "source.json").exists()
