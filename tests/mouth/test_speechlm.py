"""SpeechLM: parity with the reference, losses, padding, saving, stages."""

import json
import os
import re

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from omnilib import storage
from omnilib.errors import CheckpointError, ConfigError
from omnilib.mouth.speechlm import PUBLISHED_BLANK_CODES, SpeechLM, SpeechLMConfig


def build(config: dict, tensors: dict) -> SpeechLM:
    """The reference model of a fixture, loaded strictly."""
    return tensors.load_into(SpeechLM(SpeechLMConfig(**config)))


def random_batch(
    model: SpeechLM, lengths: list[int], seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Right-padded rows, mask and labels."""
    g = torch.Generator().manual_seed(seed)
    c, size = model.config, max(lengths)
    text = torch.randint(c.tokenizer_text_size, (len(lengths), size, 1), generator=g)
    speech = torch.randint(c.tokenizer_speech_size, (len(lengths), size, c.speech_token_count), generator=g)
    rows = torch.cat([text, speech], -1)
    mask = torch.arange(size)[None] < torch.tensor(lengths)[:, None]
    labels = rows.masked_fill(~mask[..., None], -100)
    return rows, mask, labels


def test_training_forward_matches_the_reference(golden):
    meta, t = golden("tts_lm_forward")
    model = build(meta["config"], t).train()
    ids, labels, mask = t["in.input_ids"], t["in.labels"], t["in.attention_mask"]
    before = ids.clone()
    out = model(ids, mask, labels, return_logits=True)
    assert torch.equal(ids, before), "the caller's ids must not change"
    live = mask.bool()
    near = dict(atol=meta["tolerance"]["speech_logits/text_logits/hidden abs"], rtol=0)
    if t.has("out.inputs_embeds"):
        embeds = model.embed(ids.masked_fill(~live[..., None], 0))
        torch.testing.assert_close(embeds[live], t["out.inputs_embeds"][live], atol=1e-6, rtol=0)
    for name in ("lm_hidden", "adapter_hidden", "text_logits", "speech_logits"):
        if t.has(f"out.{name}"):
            torch.testing.assert_close(getattr(out, name)[live], t[f"out.{name}"][live], **near)
    near = dict(atol=meta["tolerance"]["loss abs"], rtol=0)
    for name, key in (
        ("text_loss", "out.loss_text"),
        ("speech_loss", "out.loss_speech"),
        ("loss", "out.loss"),
    ):
        if t.has(key):
            torch.testing.assert_close(getattr(out, name), t[key], **near)
    out.loss.backward()
    names = dict(model.named_parameters())
    norms = {k.removeprefix("out.gradnorm."): v for k, v in t.items() if k.startswith("out.gradnorm.")}
    assert set(norms) <= set(names)
    assert set(norms) == set(names) or not t.has(*(f"out.gradnorm.{name}" for name in names))
    for name, norm in norms.items():
        ours = names[name].grad.double().norm()
        torch.testing.assert_close(
            ours, norm.double(), rtol=meta["tolerance"]["gradnorm rel"], atol=1e-7, msg=name
        )


def test_offsets_match_the_reference(golden):
    meta, t = golden("tts_lm_forward")
    model = build(meta["config"], t)
    live = t["in.attention_mask"].bool()
    if not t.has("out.input_ids_after_inplace"):
        pytest.skip("this instance has no ids after the offset")
    assert torch.equal((t["in.input_ids"] + model.offsets)[live], t["out.input_ids_after_inplace"][live])


@pytest.mark.parametrize("streams", [1, 2, 4, 8])
def test_losses_are_plain_cross_entropies_at_every_stream_count(tiny, streams):
    model = tiny(streams)
    rows, mask, labels = random_batch(model, [9, 6])
    labels[0, :4, 1:] = -100
    labels[1, 2:, 0] = -100
    out = model(rows, mask, labels, return_logits=True)
    text = F.cross_entropy(out.text_logits[:, :-1].flatten(0, 1), labels[:, 1:, 0].flatten())
    speech = F.cross_entropy(out.speech_logits[:, :-1].flatten(0, 2), labels[:, 1:, 1:].flatten())
    torch.testing.assert_close(out.text_loss, text)
    torch.testing.assert_close(out.speech_loss, speech)
    weighted = model(rows, mask, labels, text_weight=0.25, speech_weight=2.0)
    torch.testing.assert_close(weighted.loss, 0.25 * text + 2 * speech)
    assert weighted.text_logits is None, "training must not build logits nobody asked for"


def test_no_labels_at_all_is_a_zero_loss_with_gradients(tiny):
    model = tiny(2)
    rows, mask, labels = random_batch(model, [5])
    out = model(rows, mask, torch.full_like(labels, -100))
    assert out.loss.item() == 0.0
    out.loss.backward()
    assert model.tts_adapter.layers[0].mlp.up_proj.weight.grad.abs().sum() == 0


def test_padding_on_either_side_does_not_change_a_sequence(tiny):
    model = tiny(4)
    rows, mask, _ = random_batch(model, [8, 5])
    garbage = rows.masked_fill(~mask[..., None], -100)
    alone = model(rows[1:, :5]).speech_logits[0]
    right = model(garbage, mask).speech_logits[1, :5]
    left = model(garbage.roll(3, 1)[1:], mask.roll(3, 1)[1:]).speech_logits[0, 3:]
    torch.testing.assert_close(right, alone, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(left, alone, atol=1e-4, rtol=1e-4)


def test_a_row_never_sees_later_rows(tiny):
    model = tiny(4)
    rows, _, _ = random_batch(model, [8])
    changed = rows.clone()
    changed[:, 5:] = 0
    torch.testing.assert_close(
        model(rows).speech_logits[:, :5], model(changed).speech_logits[:, :5], atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("length", [12, 700])
def test_written_out_blocks_are_the_layers_of_transformers(tiny, length):
    model = tiny(2)
    assert model.can_take_fast_path
    rows, _, labels = random_batch(model, [length, length])
    gradients = []
    for model.fast_path in (True, False):
        model.zero_grad()
        out = model(rows, None, labels, return_logits=True)
        out.loss.backward()
        gradients.append(
            (out.speech_logits.detach(), {n: p.grad.clone() for n, p in model.named_parameters()})
        )
    torch.testing.assert_close(gradients[0][0], gradients[1][0], atol=1e-4, rtol=1e-4)
    for name, expected in gradients[1][1].items():
        scale = expected.abs().max().item()
        torch.testing.assert_close(gradients[0][1][name], expected, atol=1e-4 * scale, rtol=1e-3, msg=name)


def test_written_out_blocks_learn_as_well_in_bf16(tiny):
    model = tiny(2)
    rows, mask, labels = random_batch(model, [40, 40])
    exact = model(rows, mask, labels).loss.item()
    losses = []
    for model.fast_path in (True, False):
        with torch.autocast("cpu", torch.bfloat16):
            losses.append(model(rows, mask, labels).loss.item())
    assert abs(losses[0] - exact) < 1.5 * abs(losses[1] - exact) + 0.02 * exact


def test_recomputed_activations_give_the_same_loss_and_gradients(tiny):
    model = tiny(2).train()
    rows, mask, labels = random_batch(model, [9, 7])
    results = []
    for recompute in (False, True):
        if recompute:
            model.gradient_checkpointing_enable()
            assert not model.can_take_fast_path
        model.zero_grad()
        loss = model(rows, mask, labels).loss
        loss.backward()
        results.append((loss.detach(), model.tts_adapter.layers[0].mlp.up_proj.weight.grad.clone()))
    torch.testing.assert_close(results[0], results[1], atol=1e-5, rtol=1e-3)


def test_one_batch_can_be_learnt_by_heart(tiny):
    model = tiny(2).train()
    rows, mask, labels = random_batch(model, [10, 10])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    first = model(rows, mask, labels).loss.item()
    for _ in range(60):
        optimizer.zero_grad()
        loss = model(rows, mask, labels).loss
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2 < first


def test_saved_folder_loads_through_every_door_with_published_names(tiny, tmp_path, golden):
    model = tiny(4)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "MGMTTS" and config["architectures"] == ["MGMTTSForCausalLM"]
    assert {"tokenizer_speech_size", "speech_token_count", "tts_adapter_type", "tts_adapter_config"} <= set(
        config
    )
    _, tensors = golden("tts_lm_forward")
    depth = {n for n in load_file(tmp_path / "model.safetensors") if not re.search(r"layers\.[1-9]", n)}
    head = {"lm_head.weight"}  # a tied instance stores it once, as the embedding
    published = {k[2:] for k in tensors if k.startswith("w.") and not re.search(r"layers\.[1-9]", k)}
    assert depth | head == published | head
    assert isinstance(AutoConfig.from_pretrained(tmp_path), SpeechLMConfig)
    rows, _, _ = random_batch(model, [6])
    expected = model(rows).speech_logits
    for loaded in (
        SpeechLM.load(tmp_path),
        AutoModelForCausalLM.from_pretrained(tmp_path),
        SpeechLM.from_pretrained(tmp_path),
    ):
        assert isinstance(loaded, SpeechLM)
        torch.testing.assert_close(loaded.eval()(rows).speech_logits, expected, atol=1e-5, rtol=1e-5)


def test_tied_head_is_stored_once_and_comes_back_tied(tiny, tmp_path):
    tiny(2, tie_word_embeddings=True).save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    loaded = SpeechLM.load(tmp_path)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


@pytest.mark.parametrize("tied", [False, True])
def test_an_eight_bit_folder_loads_through_every_door(tiny, tmp_path, tied):
    model = tiny(2, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    exact = load_file(path)
    save_file(storage.pack(exact, "int8"), path, {"format": "pt"})
    for loaded in (
        SpeechLM.load(tmp_path),
        AutoModelForCausalLM.from_pretrained(tmp_path),
        SpeechLM.from_pretrained(tmp_path),
    ):
        assert isinstance(loaded, SpeechLM) and loaded.dtype == torch.float32
        assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
        for name, value in exact.items():
            assert (loaded.get_parameter(name) - value).abs().max() <= value.abs().max() / 100, name
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(CheckpointError, match="model.safetensors"):
        SpeechLM.load(tmp_path)


@pytest.mark.parametrize(
    "damage", ["missing key", "extra key", "wrong shape", "truncated", "no weights", "no folder"]
)
def test_a_damaged_checkpoint_is_one_clear_line(tiny, tmp_path, damage):
    folder = tmp_path / "model"
    tiny(2).save_pretrained(folder)
    path = folder / "model.safetensors"
    weights = load_file(path)
    if damage == "missing key":
        del weights["model.norm.weight"]
    elif damage == "extra key":
        weights["model.extra.weight"] = torch.zeros(2)
    elif damage == "wrong shape":
        weights["model.norm.weight"] = torch.zeros(7)
    save_file(weights, path, metadata={"format": "pt"})
    if damage == "truncated":
        os.truncate(path, path.stat().st_size // 2)
    elif damage == "no weights":
        path.unlink()
    with pytest.raises(CheckpointError) as caught:
        SpeechLM.load(tmp_path / "elsewhere" if damage == "no folder" else folder)
    assert "\n" not in str(caught.value)


def test_wrong_sizes_are_refused():
    with pytest.raises(ConfigError, match="vocab_size"):
        SpeechLMConfig(vocab_size=100, tokenizer_text_size=50, tokenizer_speech_size=10, speech_token_count=4)
    good = SpeechLMConfig(
        vocab_size=90, hidden_size=32, tokenizer_speech_size=10, tts_adapter_config="[3,32,8_2,64]"
    )
    assert good.tokenizer_text_size == 50
    adapter = good.adapter()
    assert (
        adapter.num_hidden_layers,
        adapter.num_attention_heads,
        adapter.num_key_value_heads,
        adapter.intermediate_size,
    ) == (3, 8, 4, 64)
    for wrong in ("[3,16,8_2,64]", "[3,32]", "many"):
        with pytest.raises(ConfigError):
            SpeechLMConfig(
                vocab_size=90, hidden_size=32, tokenizer_speech_size=10, tts_adapter_config=wrong
            ).adapter()


def test_published_size_brings_the_published_silence():
    config = SpeechLMConfig(vocab_size=1000 + 4 * 6563)
    assert config.speech_blank == 6486 and config.speech_blank in config.speech_blank_codes
    assert len(set(PUBLISHED_BLANK_CODES)) == len(PUBLISHED_BLANK_CODES) and max(PUBLISHED_BLANK_CODES) < 6561


def test_stage_1_moves_only_adapter_and_new_rows(tiny):
    model = tiny(2).train()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    model.freeze_backbone()
    rows, mask, labels = random_batch(model, [8])
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0
    )
    model(rows, mask, labels).loss.backward()
    optimizer.step()
    old = model.config.tokenizer_text_size - 3
    for name, parameter in model.named_parameters():
        moved = (parameter.detach() != before[name]).any()
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            assert torch.equal(parameter[:old], before[name][:old]), name
            assert (parameter[old:] != before[name][old:]).any(), name
        else:
            assert moved == name.startswith("tts_adapter"), name


def test_stage_1_starts_from_a_text_model(tiny):
    model = tiny(2)
    sizes = {
        k: getattr(model.config, k)
        for k in (
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
        )
    }
    backbone = Qwen3ForCausalLM(Qwen3Config(vocab_size=model.config.tokenizer_text_size, **sizes)).eval()
    grown = SpeechLM.from_backbone(backbone, model.config).eval()
    ids = torch.randint(model.config.tokenizer_text_size, (1, 7))
    expected = backbone.model(
        inputs_embeds=grown.embed(torch.cat([ids[..., None], ids.new_full((1, 7, 2), 12)], -1))
    ).last_hidden_state
    rows = torch.cat([ids[..., None], ids.new_full((1, 7, 2), 12)], -1)
    torch.testing.assert_close(grown(rows).lm_hidden, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(grown.text_head(expected), backbone.lm_head(expected))
    with pytest.raises(ConfigError):
        SpeechLM.from_backbone(
            Qwen3ForCausalLM(Qwen3Config(**{**sizes, "num_hidden_layers": 1}, vocab_size=9)), model.config
        )
