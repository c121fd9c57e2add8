"""Information mining and its alternatives, beside equation 1 written out."""

import math

import pytest
import torch

from omnilib.brain.config import BrainConfig
from omnilib.brain.fusion import KINDS, Mining, make_projector, needs, projector_of
from omnilib.errors import ConfigError

W, N, D1, D2, OUT = 2, 7, 6, 5, 8


@pytest.fixture
def frames():
    torch.manual_seed(0)
    return torch.randn(W, N, D1), torch.randn(W, 2 * N, D2)


def made(kind: str, rate: int = 3) -> torch.nn.Module:
    torch.manual_seed(1)
    return make_projector(kind, D1, D2, rate, D1 if kind == "identity" else OUT, 16)


def eq_1(model: Mining, main, aux, own_only: bool):
    """Equation 1 with loops: one main frame after the other."""
    mined = torch.zeros_like(main)
    for w in range(W):
        for i in range(N):
            heard = aux[w, 2 * i : 2 * i + 2] if own_only else aux[w]
            scores = model.dual_query(main[w, i]) @ model.dual_aux(heard).T / math.sqrt(D1)
            mined[w, i] = main[w, i] + scores.softmax(0) @ model.dual_val(heard)
    groups = mined[:, :6].reshape(W, 2, 18)
    return model.linear2(torch.relu(model.linear1(groups)))


@pytest.mark.parametrize(
    ("kind", "own_only"),
    [("dual_mlp", True), ("dual_mlp_attn", True), ("dual_mlp_window", False)],
)
def test_mining_is_equation_1_as_released_and_as_printed(frames, kind, own_only):
    model = made(kind)
    torch.testing.assert_close(model(*frames), eq_1(model, *frames, own_only))


def test_released_and_printed_mining_share_weights_and_differ_in_what_a_frame_hears(frames):
    released, printed = made("dual_mlp"), made("dual_mlp_window")
    printed.load_state_dict(released.state_dict())
    main, aux = frames
    far = aux.clone()
    far[:, -1] = torch.randn(D2)
    assert torch.equal(released(main, aux)[:, 0], released(main, far)[:, 0])
    assert not torch.allclose(printed(main, aux)[:, 0], printed(main, far)[:, 0])


def test_printed_mining_does_not_hear_beyond_the_sound(frames):
    model, (main, aux) = made("dual_mlp_window"), frames
    far = aux.clone()
    far[0, 6:] = torch.randn(2 * N - 6, D2)  # main frames 3.. of the first window
    valid = torch.tensor([3, N])
    torch.testing.assert_close(model(main, aux, valid)[0, 0], model(main, far, valid)[0, 0])
    assert not torch.allclose(model(main, aux)[0, 0], model(main, far)[0, 0])
    torch.testing.assert_close(model(main[:1, :3], aux[:1, :6]), model(main, aux, valid)[:1, :1])


def test_attention_of_a_frame_adds_up_to_one(frames):
    for kind, width in (("dual_mlp", 2), ("dual_mlp_window", 2 * N)):
        weights = made(kind).attention(*frames)
        assert weights.shape == (W, N, width)
        torch.testing.assert_close(weights.sum(-1), torch.ones(W, N))


def test_concatenation_sets_a_frame_beside_its_two_auxiliary_frames(frames):
    main, aux = frames
    model, seen = made("dual_mlp_type2"), []
    model.linear1.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    model(main, aux)
    assert torch.equal(seen[0][1, 1, : D1 + 2 * D2], torch.cat((main[1, 3], aux[1, 6], aux[1, 7])))


def test_normed_concatenation_normalises_each_side(frames):
    main, aux = frames
    model = made("dual_mlp_type2_norm")
    torch.testing.assert_close(model(main, aux), model(main * 3.0, aux * 0.5), atol=1e-3, rtol=1e-3)


def test_one_encoder_alone_ignores_the_other(frames):
    main, aux = frames
    assert torch.equal(made("simple_mlp")(main, aux), made("simple_mlp")(main, aux * 2))
    assert torch.equal(made("aux_mlp")(main, aux), made("aux_mlp")(None, aux))
    assert not torch.equal(made("aux_mlp")(main, aux), made("aux_mlp")(main, aux * 2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rate", [1, 2, 3, 7])
def test_all_kinds_give_the_same_number_of_positions_and_learn(frames, kind, rate):
    model = made(kind, rate)
    out = model(*frames)
    count = N if kind in ("linear", "identity") else N // rate
    assert out.shape == (W, count, D1 if kind == "identity" else OUT)
    if kind != "identity":
        out.square().sum().backward()
        assert all(p.grad is not None for p in model.parameters())


def test_one_setting_of_the_config_chooses_the_kind():
    for kind in KINDS:
        config = BrainConfig(hidden_size=8, mm_speech_projector_type=kind, speech_projector_width=4)
        assert type(projector_of(config)) is type(made(kind))
    assert [needs(k) for k in ("dual_mlp", "simple_mlp", "aux_mlp")] == [
        (True, True),
        (True, False),
        (False, True),
    ]


def test_an_unknown_kind_is_told():
    with pytest.raises(ConfigError, match="mm_speech_projector_type 'conv' is unknown: use one of dual_mlp"):
        made("conv")
