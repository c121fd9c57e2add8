"""Positions beyond the trained length: exact within it, one factor for a request, known methods."""

import pytest
import torch
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRotaryEmbedding

from omnilib.brain.config import smoke_config
from omnilib.brain.decode import AnswerSettings, stream
from omnilib.brain.positions import frequencies, rope_factor, scaled
from omnilib.errors import ConfigError, LimitError

LONG = dict(max_position_embeddings=96, longest=960)


def ids(model, batch, **settings):
    return torch.stack(list(stream(model, batch, AnswerSettings(**settings))))[:, 0].tolist()


@pytest.mark.parametrize("method", ["linear", "ntk", "yarn"])
def test_a_request_within_the_trained_length_is_answered_to_the_bit_as_without_scaling(ready, sound, method):
    plain, processor = ready()
    able, _ = ready(long_positions=method, longest=9000)
    batch = processor("<speech> what is it?", audio=[sound(3.0)])
    a, b = (m(**batch).logits for m in (plain, able))
    assert torch.equal(a, b)
    assert ids(plain, batch, max_new_tokens=8) == ids(able, batch, max_new_tokens=8)


@pytest.mark.parametrize("method", ["linear", "ntk", "yarn"])
def test_beyond_it_the_method_counts_and_generate_gives_the_same_ids(ready, sound, method):
    model, processor = ready(long_positions=method, **LONG)
    batch = processor("<speech> what is it?", audio=[sound(40.0)])
    assert batch["input_ids"].shape[1] > 200
    mine = ids(model, batch, max_new_tokens=8, eos=())
    theirs = model.generate(**batch, max_new_tokens=8, do_sample=False, eos_token_id=-1)[0].tolist()
    assert mine == theirs
    own = model.model.rotary_emb.inv_freq.clone()
    made = model.frequencies_for(batch["position_ids"], 8)
    assert not torch.equal(made[0], own)
    assert torch.equal(model.model.rotary_emb.inv_freq, own)  # given back


def test_pieces_of_a_long_prompt_share_one_factor(ready, sound):
    model, processor = ready(long_positions="yarn", **LONG)
    batch = processor("<speech> what is it?", audio=[sound(40.0)])
    whole, pieces = (ids(model, batch, max_new_tokens=8, eos=(), prefill=n) for n in (2048, 50))
    assert whole == pieces


def test_longer_than_the_longest_is_refused_with_both_numbers(ready, sound):
    model, processor = ready(long_positions="yarn", max_position_embeddings=96, longest=150)
    with pytest.raises(LimitError, match="the model has 150"):
        processor("<speech> what is it?", audio=[sound(40.0)])
    model, processor = ready(max_position_embeddings=96, longest=150)  # no method: the trained length
    with pytest.raises(LimitError, match="the model has 96"):
        processor("<speech> what is it?", audio=[sound(40.0)])


def test_the_factor_is_how_many_trained_lengths_are_needed(tiny):
    config = tiny(long_positions="yarn", **LONG).config
    assert [rope_factor(config, n) for n in (1, 96, 97, 192, 193, 960)] == [1, 1, 2, 2, 3, 10]


def test_methods_do_what_their_papers_say():
    config = smoke_config(9, long_positions="linear", hidden_size=128, vision_tower_config=None, **LONG)
    plain, _ = frequencies(config, 1)
    assert torch.allclose(plain, Qwen2_5_VLRotaryEmbedding(config).inv_freq)
    made, scaling = frequencies(config, 4)
    assert torch.allclose(made, plain / 4) and scaling == 1.0
    config.long_positions = "yarn"
    made, scaling = frequencies(config, 4)
    assert torch.allclose(made[-1:], plain[-1:] / 4)  # slow: divided
    assert made[0] > 0.9 * plain[0]  # fast: kept
    assert scaling == pytest.approx(0.1 * torch.tensor(4.0).log().item() + 1)
    config.long_positions = "ntk"
    made, _ = frequencies(config, 4)
    assert made[0] == plain[0] and made[-1] == pytest.approx(plain[-1].item() / 4, rel=1e-4)


def test_an_unknown_method_is_one_line(tiny):
    with pytest.raises(ConfigError, match="long_positions 'magic' is unknown"):
        tiny(long_positions="magic")


def test_frequencies_come_back_after_an_error(tiny):
    model = tiny(long_positions="yarn", **LONG)
    own = model.model.rotary_emb.inv_freq
    with pytest.raises(RuntimeError), scaled(model, frequencies(model.config, 2)):
        raise RuntimeError
    assert model.model.rotary_emb.inv_freq is own and model.model.rotary_emb.attention_scaling == 1.0
