"""The fast decoder gives the ids of the plain one; fewer bits stay near."""

import pytest
import torch

from omnilib.brain.decode import AnswerSettings, stream
from omnilib.brain.fast_decode import FastDecoder, Linear, attend_behind, quantised
from omnilib.errors import ConfigError


def ids(steps):
    return torch.cat(list(steps)).tolist()


@pytest.fixture
def prompt(ready, sound):
    def make(**fields):
        model, processor = ready(**fields)
        with torch.no_grad():  # biases count too
            for name, weight in model.named_parameters():
                if name.endswith("_proj.bias"):
                    weight.normal_()
        picture = torch.zeros(56, 84, 3, dtype=torch.uint8).numpy()
        parts = [{"type": "image", "image": picture}, {"type": "audio", "audio": sound(3.0)}, "what"]
        return model, processor.chat([{"role": "user", "content": parts}])

    return make


@pytest.mark.parametrize("prefill", [2048, 7])
def test_ids_are_those_of_plain_decoding(prompt, prefill):
    model, batch = prompt()
    settings = AnswerSettings(max_new_tokens=24, eos=(), prefill=prefill)
    assert ids(FastDecoder(model, "float32").stream(batch, settings)) == ids(stream(model, batch, settings))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.01)])
def test_a_later_piece_sees_what_a_mask_would_show_it(dtype, tolerance):
    torch.manual_seed(0)
    q = torch.randn(30, 6, 16, dtype=dtype)
    keys, values = torch.randn(2, 2, 100, 16, dtype=dtype)
    behind = torch.ones(100, 100, dtype=torch.bool).tril()[-30:]
    wanted = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(0, 1), *(x.repeat_interleave(3, 0) for x in (keys, values)), attn_mask=behind
    )
    made = attend_behind(q, keys, values)
    torch.testing.assert_close(made, wanted.transpose(0, 1).reshape(30, -1), atol=tolerance, rtol=0)


def test_ids_are_the_same_beyond_the_trained_length_and_when_drawn(prompt):
    model, batch = prompt(long_positions="yarn", max_position_embeddings=32, longest=900)
    for settings in (
        AnswerSettings(max_new_tokens=12, eos=()),
        AnswerSettings(max_new_tokens=12, eos=(), temperature=0.8, top_k=5, seed=3),
    ):
        assert ids(FastDecoder(model, "float32").stream(batch, settings)) == ids(
            stream(model, batch, settings)
        )


def test_an_answer_ends_where_the_model_ends_it(prompt):
    model, batch = prompt()
    whole = ids(stream(model, batch, AnswerSettings(max_new_tokens=8, eos=())))
    settings = AnswerSettings(max_new_tokens=8, eos=(whole[2],))
    assert ids(FastDecoder(model, "float32").stream(batch, settings)) == whole[: whole.index(whole[2]) + 1]


@pytest.mark.parametrize(("weights", "tolerance"), [("bfloat16", 0.02), ("int8", 0.03)])
def test_fewer_bits_change_little(weights, tolerance):
    torch.manual_seed(0)
    layers = [torch.nn.Linear(64, 48), torch.nn.Linear(64, 32, bias=False)]
    x = torch.randn(5, 64)
    exact = torch.cat([layer(x) for layer in layers], -1)
    made = Linear(layers, weights)(x.bfloat16()).float()
    assert (made - exact).norm() / exact.norm() < tolerance


def test_rows_keep_their_own_scale():
    weight = torch.tensor([[1.0, -2.0], [0.001, 0.002], [0.0, 0.0]])
    whole, scale = quantised(weight)
    assert whole.dtype == torch.int8 and whole.abs().max() == 127
    torch.testing.assert_close(whole.float() * scale.float()[:, None], weight, rtol=0.02, atol=1e-8)


def test_batches_and_unknown_weights_are_one_line(ready, words):
    model, processor = ready()
    with pytest.raises(ConfigError, match="weights 'int2' are unknown"):
        FastDecoder(model, "int2")
    batch = processor.chat([[{"role": "user", "content": "a"}], [{"role": "user", "content": "what is it"}]])
    with pytest.raises(ConfigError, match=r"use `decode.stream` for batches"):
        next(FastDecoder(model).stream(batch))
