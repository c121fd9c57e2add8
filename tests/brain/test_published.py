"""Published brains: sizes, names, where towers come from, what is refused. The folders written here are tiny
and random."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import WhisperModel

from omnilib import cli, weights
from omnilib.brain import mllm, published
from omnilib.brain.config import BrainConfig
from omnilib.brain.decode import AnswerSettings, ends
from omnilib.brain.fusion import make_projector
from omnilib.brain.mllm import Brain
from omnilib.errors import CheckpointError, ConfigError, LimitError
from tests.brain import reference

VISION, MAIN, AUX = "qwen2.5-vl-vision", "Dual-qwen2-audio", "belle-whisper"
NAMES = {
    "mm_vision_tower": f"model_zoo/{VISION}",
    "mm_speech_tower": f"/far/away/{MAIN}",
    "speech_tower_aux": f"{AUX}/",
}
FLAGS = {"unfreeze_mm_vision_tower": True, "unfreeze_mm_speech_tower": True}
OURS = "vision_tower_config", "speech_tower_config", "speech_tower_aux_config"


# ---- writing folders ---------------------------------------------------------------------------------------


def shifted(state: dict, by: float) -> dict:
    """Other weights of the same shapes."""
    return {k: v + by for k, v in state.items()}


def write(folder: Path, model: Brain, tokenizer, keep_towers: bool, **fields) -> Path:
    """A brain in the published layout, sharded, with the towers in folders beside it (their weights are other
    ones)."""
    brain = folder / "MGM-Omni-tiny"
    model.save_pretrained(brain, max_shard_size="40KB")
    tokenizer.save_pretrained(brain)
    raw = json.loads((brain / "config.json").read_text())
    raw = {k: v for k, v in raw.items() if k not in OURS} | NAMES | fields
    raw |= {"rope_theta": 10000.0, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}
    raw.pop("rope_parameters", None)
    (brain / "config.json").write_text(json.dumps(raw))
    index = json.loads((brain / "model.safetensors.index.json").read_text())
    if not keep_towers:
        for name in sorted(set(index["weight_map"].values())):
            state = {k: v for k, v in load_file(brain / name).items() if "_tower" not in k}
            save_file(state, brain / name, {"format": "pt"})
        index["weight_map"] = {k: v for k, v in index["weight_map"].items() if "_tower" not in k}
        (brain / "model.safetensors.index.json").write_text(json.dumps(index))
    write_towers(folder, model)
    return brain


def write_towers(folder: Path, model: Brain) -> None:
    config, towers = model.config, model.model
    visual = shifted(towers.vision_tower["vision_tower"].state_dict(), 1.0)
    save_to(folder / VISION, visual, config.vision_tower_config.to_dict())
    audio = shifted(towers.speech_tower.speech_tower.state_dict(), 1.0)
    audio = {f"audio_tower.{k}": v for k, v in audio.items()} | {"language_model.norm": torch.zeros(3)}
    save_to(
        folder / MAIN.removeprefix("Dual-"),
        audio,
        {"audio_config": config.speech_tower_config.to_dict(), "model_type": "qwen2_audio"},
    )
    whisper = WhisperModel(config.speech_tower_aux_config)
    whisper.encoder.load_state_dict(shifted(towers.speech_tower.speech_tower_aux.state_dict(), 1.0))
    whisper.save_pretrained(folder / AUX)  # decoder included


def save_to(folder: Path, state: dict, config: dict) -> None:
    folder.mkdir()
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture
def folder(tiny, words, tmp_path):
    """`folder(keep_towers, **fields) -> (path, brain)`."""

    def make(keep_towers: bool = True, **fields) -> tuple[Path, Brain]:
        model = tiny()
        return write(tmp_path, model, words, keep_towers, **fields), model

    return make


def same(ours: torch.nn.Module, theirs: torch.nn.Module, by: float = 0.0) -> bool:
    a, b = ours.state_dict(), theirs.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k] + by if by else b[k]) for k in a)


# ---- where weights come from -------------------------------------------------------------------------------


def test_with_the_flags_towers_come_from_the_checkpoint(folder, sound):
    path, model = folder(**FLAGS)
    loaded = weights.load_brain(path)
    assert same(loaded.brain, model)
    assert sum(line.endswith("tensors from the checkpoint") for line in loaded.report) == 3
    talk = [{"role": "user", "content": [{"type": "audio", "audio": sound(1.0).numpy()}]}]
    batch = loaded.processor.chat(talk)
    assert torch.equal(
        loaded.brain.generate(**batch, max_new_tokens=5, do_sample=False),
        model.generate(**batch, max_new_tokens=5, do_sample=False),
    )


def test_ids_that_end_an_answer_are_those_of_the_folder(folder):
    path, _ = folder(**FLAGS)
    made = json.loads((path / "generation_config.json").read_text()) | {"eos_token_id": [7, 9]}
    (path / "generation_config.json").write_text(json.dumps(made))
    loaded = published.load(path).brain
    assert ends(loaded, AnswerSettings()) == [7, 9]


def test_without_the_flags_towers_come_from_their_folders_and_it_is_told(folder):
    path, model = folder(keep_towers=True)
    loaded = published.load(path)
    assert same(loaded.brain.model.vision_tower, model.model.vision_tower, 1.0)
    assert same(loaded.brain.model.speech_tower, model.model.speech_tower, 1.0)
    assert same(loaded.brain.model.layers, model.model.layers)
    lines = " / ".join(loaded.report)
    assert f"from the folder {VISION}; the checkpoint's own" in lines
    assert "unfreeze_mm_vision_tower is not set" in lines


def test_towers_that_the_checkpoint_lacks_come_from_their_folders(folder):
    path, model = folder(keep_towers=False)
    loaded = published.load(path)
    assert same(loaded.brain.model.speech_tower, model.model.speech_tower, 1.0)
    assert not any("not used" in line for line in loaded.report)


def test_towers_are_found_in_a_folder_of_towers(folder, tmp_path):
    path, model = folder(keep_towers=False)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in (VISION, MAIN.removeprefix("Dual-"), AUX):
        shutil.move(tmp_path / name, elsewhere / name)
    with pytest.raises(CheckpointError, match=r"vision tower is neither in .* nor in a folder named"):
        published.load(path)
    assert same(
        published.load(path, towers=elsewhere).brain.model.vision_tower,
        model.model.vision_tower,
        1.0,
    )


def test_a_tower_in_a_pickle_of_tensors_loads_and_any_other_pickle_is_refused(folder, tmp_path):
    path, model = folder(keep_towers=False)
    place = tmp_path / AUX
    state = load_file(place / "model.safetensors")
    (place / "model.safetensors").unlink()
    torch.save(state, place / "pytorch_model.bin")
    assert same(published.load(path).brain.model.speech_tower, model.model.speech_tower, 1.0)
    torch.save({"a": Path}, place / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="refused"):
        published.load(path)


def test_towers_without_folder_and_of_no_published_size_are_an_error(folder, tmp_path):
    path, _ = folder(**FLAGS)
    for name in (VISION, MAIN.removeprefix("Dual-"), AUX):
        shutil.rmtree(tmp_path / name)
    with pytest.raises(CheckpointError, match="has no published size: put its folder"):
        published.load(path)


@pytest.mark.parametrize("size", ["7B", "32B"])
def test_towers_of_published_size_are_known_by_their_shapes(size):
    with torch.device("meta"):
        model = Brain(published.brain_preset(size))
    for tower in published.TOWERS:
        held = {k: tuple(v.shape) for k, v in model.state_dict().items() if k.startswith(tower.prefix)}
        config = published.published_config(tower, held)
        assert config.to_dict() == getattr(model.config, tower.config).to_dict()
        held.popitem()
        assert published.published_config(tower, held) is None


# ---- dtype, devices ----------------------------------------------------------------------------------------


def test_dtype_and_device_map_are_kept(folder, sound):
    path, model = folder(**FLAGS)
    half = published.load(path, dtype=torch.bfloat16)
    assert {p.dtype for p in half.brain.parameters()} == {torch.bfloat16}
    spread = published.load(path, device_map={"": "cpu", "model.layers.1": "cpu"})
    assert same(spread.brain, model)
    batch = spread.processor.chat(
        [{"role": "user", "content": [{"type": "audio", "audio": sound(1.0)}, "hi"]}],
    )
    assert torch.equal(spread.brain(**batch).logits, model(**batch).logits)
    half.brain.generate(**batch, max_new_tokens=2)
    assert same(published.load(path, device_map="auto").brain, model)
    with pytest.raises(ConfigError, match="device_map has no place for"):
        published.load(path, device_map={"model.layers": "cpu"})


def test_a_model_that_fits_no_device_is_told_before_it_is_read(folder, monkeypatch):
    path, _ = folder(**FLAGS)
    monkeypatch.setattr(published, "infer_auto_device_map", lambda *a, **k: {"": "disk"})
    with pytest.raises(LimitError, match="does not fit the memory"):
        published.load(path, device_map="auto")


def test_flash_attention_is_taken_where_it_can_run(monkeypatch):
    monkeypatch.setattr(mllm, "is_flash_attn_2_available", lambda: True)
    assert mllm.attention_for("cuda:1", torch.bfloat16) == "flash_attention_2"
    assert mllm.attention_for("cuda", torch.float32) == "sdpa"
    assert mllm.attention_for("cpu", torch.bfloat16) == "sdpa"
    monkeypatch.setattr(mllm, "is_flash_attn_2_available", lambda: False)
    assert mllm.attention_for("cuda", torch.bfloat16) == "sdpa"


def test_a_fetched_brain_is_compared_and_told_how_to_load(folder, monkeypatch, capsys):
    path, _ = folder(**FLAGS)
    monkeypatch.setattr(weights, "download", lambda pin, place: None)
    assert cli.main(["fetch", f"a/b@{'0' * 40}", "--out", str(path)]) == 0
    told = capsys.readouterr().out
    assert "tensors fit" in told and "omnilib.weights.load_brain" in told


# ---- what is refused ---------------------------------------------------------------------------------------


def drop(folder: Path, name: str) -> None:
    """Take a tensor out of its shard and the index."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shard = folder / index["weight_map"].pop(name)
    state = load_file(shard)
    state.pop(name)
    save_file(state, shard, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_every_misfit_is_told_before_anything_is_read(folder):
    path, _ = folder(**FLAGS)
    drop(path, "model.norm.weight")
    drop(path, "model.speech_tower.speech_tower.conv1.bias")
    with pytest.raises(
        CheckpointError,
        match=r"2 missing \(model.norm.weight, model.speech_tower.speech_tower.conv1.bias\)",
    ):
        published.load(path)
    fits = weights.check(path)
    assert "missing    model.norm.weight" in weights.report(fits)


def test_an_unused_projector_and_old_buffers_are_left_out(folder):
    path, model = folder(**FLAGS)
    extra = {
        "model.mm_projector.weight": torch.zeros(2, 2),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(2),
    }
    index = json.loads((path / "model.safetensors.index.json").read_text())
    save_file(extra, path / "model-extra.safetensors", {"format": "pt"})
    index["weight_map"] |= dict.fromkeys(extra, "model-extra.safetensors")
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    loaded = published.load(path)
    assert same(loaded.brain, model)
    assert any("mm_projector: 1 tensors left out" in line for line in loaded.report)


def test_fields_that_the_config_lacks_are_told(folder):
    path, _ = folder(**FLAGS)
    raw = json.loads((path / "config.json").read_text())
    raw.pop("speech_norm")
    (path / "config.json").write_text(json.dumps(raw))
    assert "speech_norm is not in config.json: taken as False" in published.load(path).report


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "is of a 'llama' model"),
        ({"speech_encoder_ds_rate": 4}, "of another shape"),
        ({"speech_encoder_ds_rate": 0}, "must be at least 1"),
        ({"mm_speech_projector_type": "magic"}, "'magic' is unknown"),
        ({"hidden_size": 30}, "the vision tower gives 32"),
        ({"hidden_act": 7}, "cannot be used"),
    ],
)
def test_a_config_of_something_else_is_one_line(folder, change, message):
    path, _ = folder(**FLAGS)
    raw = json.loads((path / "config.json").read_text()) | change
    (path / "config.json").write_text(json.dumps(raw))
    with pytest.raises((CheckpointError, ConfigError), match=message) as error:
        published.load(path)
    assert "\n" not in str(error.value)


def test_a_tied_head_may_be_absent(tiny, words, tmp_path):
    model = tiny(tie_word_embeddings=True)
    path = write(tmp_path, model, words, keep_towers=True, **FLAGS)
    index = json.loads((path / "model.safetensors.index.json").read_text())
    assert "lm_head.weight" not in index["weight_map"]
    loaded = published.load(path).brain
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert same(loaded, model)


# ---- names and sizes ---------------------------------------------------------------------------------------


def expanded(keys: dict) -> dict[str, tuple]:
    """Keys with their {i} written out."""
    names = {}
    for key, value in keys.items():
        if isinstance(value, dict):
            low, high = map(int, value["i"].split(".."))
            names |= {key.replace("{i}", str(i)): tuple(value["shape"]) for i in range(low, high + 1)}
        else:
            names[key] = tuple(value)
    return names


@pytest.mark.parametrize("size", ["7B", "32B"])
def test_presets_have_the_published_names_shapes_and_counts(golden, size):
    meta, _ = golden("state_dict_keys_brain")
    model = weights.on_meta(Brain, published.brain_preset(size))
    assert {k: tuple(v.shape) for k, v in model.state_dict().items()} == expanded(meta["full"][size]["keys"])
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    told, m = meta["full"][size]["parameters"], model.model
    assert count(model) == told["total"] == {"7B": 9_591_484_160, "32B": 34_755_183_104}[size]
    assert count(m.embed_tokens) + count(m.layers) + count(m.norm) == told["llm_without_head"]
    assert count(m.vision_tower) == told["vision"]
    assert count(m.mm_speech_projector) == told["speech_projector"]
    assert count(m.speech_tower.speech_tower) == told["audio_main"]
    assert count(m.speech_tower.speech_tower_aux) == told["audio_aux"]


def test_an_unknown_preset_is_told():
    with pytest.raises(ConfigError, match="no brain size '3B': choose one of 7B, 32B"):
        published.brain_preset("3B")


def test_the_tiny_brain_has_the_published_names_and_shapes(golden):
    meta, _ = golden("state_dict_keys_brain")
    config = reference.brain_config(golden("brain_generate_greedy")[0])
    ours = {k: tuple(v.shape) for k, v in weights.on_meta(Brain, config).state_dict().items()}
    theirs = {k: tuple(v) for k, v in meta["tiny"].items()}
    if config.tie_word_embeddings:
        theirs.setdefault("lm_head.weight", ours["lm_head.weight"])
    assert ours == theirs
    without = BrainConfig(**(config.to_dict() | dict.fromkeys(OURS)))
    width = dict(speech_projector_width=config.speech_projector_width)
    assert len(weights.on_meta(Brain, without).state_dict()) == meta["keys_without_towers_loaded"], width


def test_projector_variants_have_the_published_names_and_shapes(golden):
    meta, _ = golden("state_dict_keys_brain")
    frames = {
        "simple_mlp": 1,
        "dual_mlp": 1,
        "dual_mlp_attn": 1,
        "dual_mlp_type2": 3,
        "dual_mlp_type2_norm": 2,
        "linear": 1,
    }
    for kind, keys in meta["speech_projector_variants"]["keys"].items():
        first = keys.get("linear1.weight", keys.get("weight"))
        rate, out = (
            first[1] // (1280 * frames.get(kind, 1)),
            keys.get("linear2.weight", keys.get("weight"))[0],
        )
        ratio = 1 if kind == "dual_mlp_type2_norm" else 2  # there the listing is of 1280 + 1280 a frame
        with torch.device("meta"):
            made = make_projector(kind, 1280, 1280, rate, out, ratio=ratio)
        assert {k: list(v.shape) for k, v in made.state_dict().items()} == keys, kind
