"""Weights laid out for decoding give what the readable model gives, in every precision a device has."""

import copy

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from omnilib.errors import LimitError, UserError
from omnilib.mouth import fast_weights
from omnilib.mouth.fast_weights import FEW, MANY, PREPARED, Product, check_room, choose_precision, prepare
from omnilib.mouth.speechlm import SpeechLM
from omnilib.mouth.step import Stepper

CPU = torch.device("cpu")


def draw(count: int, rows: int, seed: int = 0) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randint(11, (rows - i, 5), generator=g) for i in range(count)]


def readable(model, prompts: list[torch.Tensor], more: torch.Tensor) -> torch.Tensor:
    """Logits after the last row of each, through whole sequences."""
    with torch.no_grad():
        whole = [torch.cat([p, m])[None] for p, m in zip(prompts, more, strict=True)]
        return torch.stack([model(rows).speech_logits[0, -1].float() for rows in whole])


@pytest.mark.parametrize("count", [1, 3, 8])
@pytest.mark.parametrize("ready", [False, True])
def test_float32_steps_equal_the_readable_model(tiny, count, ready):
    model, prompts = tiny(4), draw(count, 20)
    more = torch.randint(11, (count, 6, 5), generator=torch.Generator().manual_seed(1))
    expected = readable(model, prompts, more)
    if ready:
        assert prepare(model) == "fp32"
    stepper = Stepper(model, prompts)
    for row in more.unbind(1):
        logits = stepper.advance(row[:, None])
    torch.testing.assert_close(logits, expected, atol=1e-4 * float(expected.std()), rtol=0)


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.05), ("int8", 0.1)])
def test_narrow_weights_give_nearly_the_same_logits(tiny, precision, tolerance):
    model, prompts = tiny(4), draw(3, 40)
    more = torch.randint(11, (3, 4, 5), generator=torch.Generator().manual_seed(1))
    expected = readable(model, prompts, more)
    assert prepare(model, precision) == precision
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    stepper = Stepper(model, prompts)
    for row in more.unbind(1):
        logits = stepper.advance(row[:, None])
    error = float((logits - expected).abs().mean() / expected.std())
    assert 0 < error < tolerance


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "own"])
@pytest.mark.parametrize("count", [1, FEW, MANY])
def test_a_product_is_its_linear_layers_side_by_side_plus_the_residual(precision, count):
    torch.manual_seed(0)
    layers = [nn.Linear(32, 48), nn.Linear(32, 16)]
    layers[1].bias = None
    x, residual = torch.randn(count, 32), torch.randn(count, 64)
    with torch.no_grad():
        expected = torch.cat([layer(x) for layer in layers], 1)
        biases = [layers[0].bias, torch.zeros(16)]
        product = Product([layer.weight for layer in layers], precision, True, biases)
        tolerance = 1e-5 if precision in ("fp32", "own") else 0.03
        torch.testing.assert_close(product(x).float(), expected, atol=tolerance, rtol=0)
        torch.testing.assert_close(product.plus(residual, x), residual + expected, atol=tolerance, rtol=0)


def test_eight_bits_keep_every_weight_within_half_a_step_of_its_output():
    weight = torch.randn(16, 64) * torch.logspace(-3, 2, 16)[:, None]  # outputs of very different size
    product = Product([weight], "int8")
    step = product.scale.float()[:, None]
    error = (product.eight * step - weight).abs()
    inside = product.eight.abs() < 127  # the largest may be cut: the scale has 8 bits itself
    assert (error <= 0.5001 * step)[inside].all() and (error <= step).all()


def test_lent_parameters_are_views_and_the_model_is_what_it_was(tiny):
    model, rows = tiny(4), draw(1, 12)[0][None]
    with torch.no_grad():
        before = model(rows).speech_logits
        prepare(model, "fp32")
        after = model(rows).speech_logits
    torch.testing.assert_close(after, before)
    attention, product = model.model.layers[0].self_attn, PREPARED[model].backbone[0].qkv
    storages = {p.weight.untyped_storage().data_ptr() for p in (attention.q_proj, attention.v_proj)}
    assert storages == {product.input_first.untyped_storage().data_ptr()}


def test_a_prepared_model_can_be_saved_and_copied(tiny, tmp_path):
    model = tiny(4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    prepare(model, "fp32")
    model.save_pretrained(tmp_path)
    for other in (SpeechLM.load(tmp_path), copy.deepcopy(model)):
        assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
        torch.testing.assert_close(Stepper(other, draw(1, 9)).logits, Stepper(model, draw(1, 9)).logits)


def test_rotary_frequencies_keep_their_precision(tiny):
    model = tiny(4)
    before = model.model.rotary_emb.inv_freq.clone()
    prepare(model, "bf16")
    assert torch.equal(model.model.rotary_emb.inv_freq, before)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_weights_that_change_after_preparing_are_heard(tiny, precision):
    model, prompts = tiny(4), draw(1, 9)
    prepare(model, precision)
    stale = Stepper(model, prompts).logits
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(100)
        fresh = Stepper(model, prompts).logits
        expected = model(prompts[0][None]).speech_logits[0, -1].float()
    assert (stale - expected).abs().max() > 0.1 * expected.std()
    assert (fresh - expected).abs().mean() < 0.03 * expected.std()


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_a_sequence_has_the_same_choices_alone_and_in_company(tiny, precision):
    model, prompts = tiny(4), draw(6, 60)
    prepare(model, precision)
    together = Stepper(model, prompts)
    more = torch.randint(11, (6, 12, 5), generator=torch.Generator().manual_seed(3))
    company = [together.logits, *(together.advance(row[:, None]) for row in more.unbind(1))]
    for i, prompt in enumerate(prompts):
        single = Stepper(model, [prompt])
        alone = [single.logits, *(single.advance(row[None, None]) for row in more[i])]
        for one, other in zip(alone, company, strict=True):
            assert (one[0] - other[i]).abs().mean() < 0.03 * one.std()


def test_a_row_takes_few_calls_into_torch(tiny):
    model = tiny(4)
    prepare(model, "fp32")
    stepper, row = Stepper(model, draw(1, 9)), torch.zeros(1, 1, 5, dtype=torch.long)
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        stepper.advance(row)
    blocks = len(stepper.blocks)
    assert len(recorded.events()) <= 115 * blocks + 60, "some 330 a block with the layers' own modules"


def test_auto_is_float32_for_small_models_and_bfloat16_for_large_ones(monkeypatch):
    for fast, count, expected in ((True, 4e6, "fp32"), (True, 6e8, "bf16"), (False, 6e8, "fp32")):
        monkeypatch.setattr(fast_weights, "fast_bfloat16", lambda device, fast=fast: fast)
        assert choose_precision("auto", count, CPU) == expected


@pytest.mark.parametrize(
    ("precision", "device", "says"),
    [("fp8", "cpu", "auto, fp32, bf16, int8"), ("", "cpu", "auto, fp32"), ("bf16", "cpu", "fp32"),
     ("bf16", "mps", "fp32"), ("int8", "cuda", "bf16 or fp32"), ("int8", "mps", "bf16 or fp32")],
)  # fmt: skip
def test_a_precision_that_is_not_there_is_one_line(monkeypatch, precision, device, says):
    monkeypatch.setattr(fast_weights, "fast_bfloat16", lambda device: False)
    with pytest.raises(UserError, match=says) as error:
        choose_precision(precision, 1000, torch.device(device))
    assert "\n" not in str(error.value)


def test_weights_beyond_memory_are_refused_before_they_are_read(monkeypatch):
    monkeypatch.setattr(fast_weights, "free_memory", lambda device: 3 * 2**30)
    check_room(500_000_000, "fp32", CPU)
    for precision in ("fp32", "bf16", "int8"):
        with pytest.raises(LimitError, match=r"GiB in .* 3.0 GiB are free") as error:
            check_room(2_000_000_000, precision, CPU)
        assert "\n" not in str(error.value)
    monkeypatch.setattr(fast_weights, "free_memory", lambda device: None)  # nobody can tell
    check_room(10**15, "fp32", CPU)
