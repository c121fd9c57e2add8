"""Speech tokenizer: parity with the published arithmetic, padding, straight-through gradient, paper size."""

import pytest
import torch

from omnilib.errors import CheckpointError, ConfigError
from omnilib.train.common import export_model
from omnilib.voice.tokenizer import (
    SpeechTokenizer,
    SpeechTokenizerConfig,
    code_count,
    codes_to_values,
    valid_mask,
    values_to_codes,
)

TINY = SpeechTokenizerConfig(bands=16, width=32, heads=2, layers=2, kernel=5, fsq_dims=4)


def from_golden(config: dict) -> SpeechTokenizerConfig:
    c, dims = config["config"], 0
    while 3**dims < c["n_codebook_size"]:
        dims += 1
    return SpeechTokenizerConfig(
        c["n_mels"], c["n_audio_state"], c["n_audio_head"], c["n_audio_layer"], c["fsmn_kernel_size"], dims
    )


def test_hidden_states_and_codes_match_the_reference_strictly_loaded(golden):
    config, t = golden("fsq_tokenizer")
    model = t.load_into(SpeechTokenizer(from_golden(config))).eval()
    with torch.no_grad():
        got = model(t["in.mel"], t["in.mel_len"])
    assert torch.equal(got.lengths, t["out.codes_len"])
    valid = valid_mask(got.lengths, got.codes.shape[1])
    near = dict(atol=config["tolerance"]["hidden abs"], rtol=0)
    if t.has("out.hidden"):
        torch.testing.assert_close(got.hidden[valid], t["out.hidden"][valid], **near)
    if t.has("out.pre_tanh"):
        torch.testing.assert_close(got.latent[valid], t["out.pre_tanh"][valid], **near)
    assert torch.equal(got.codes[valid], t["out.codes"][valid].long())
    codes, lengths = model.encode(t["in.mel"], t["in.mel_len"])
    assert torch.equal(codes[valid], t["out.codes"][valid].long()) and torch.equal(
        lengths, t["out.codes_len"]
    )


def test_padded_batch_gives_the_codes_of_each_alone():
    torch.manual_seed(0)
    model = SpeechTokenizer(TINY).eval()
    mels = [torch.randn(16, n) for n in (100, 61, 38)]
    lengths = torch.tensor([m.shape[1] for m in mels])
    batch = torch.full((3, 16, 100), 7.0)  # padding of any value must not matter
    for row, mel in zip(batch, mels, strict=True):
        row[:, : mel.shape[1]] = mel
    codes, counts = model.encode(batch, lengths)
    for i, mel in enumerate(mels):
        alone, count = model.encode(mel[None])
        assert counts[i] == count[0] == code_count(mel.shape[1])
        assert torch.equal(codes[i, : counts[i]], alone[0])


def test_codes_and_digits_are_inverse_and_cover_the_codebook():
    codes = torch.arange(3**4)
    values = codes_to_values(codes, 4)
    assert torch.equal(values_to_codes(values), codes)
    assert values.unique().tolist() == [-1, 0, 1] and len(values.unique(dim=0)) == 81


def test_gradient_passes_straight_through_the_rounding():
    model = SpeechTokenizer(TINY)
    result = model(torch.randn(1, 16, 40), torch.tensor([40]))
    assert set(result.values.detach().round().unique().tolist()) <= {-1.0, 0.0, 1.0}
    torch.testing.assert_close(result.values, result.values.round(), atol=1e-6, rtol=0)
    result.values.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_untrained_codes_are_spread_so_training_starts():
    torch.manual_seed(0)
    codes, _ = SpeechTokenizer(SpeechTokenizerConfig(width=64, heads=1, layers=2, fsq_dims=5)).encode(
        torch.rand(4, 128, 400)
    )
    assert len(codes.unique()) > 20


def test_paper_preset_has_the_published_size():
    with torch.device("meta"):
        model = SpeechTokenizer(SpeechTokenizerConfig())
    # conv 128->1280, conv 1280->1280, six blocks of (4 linears without one bias, memory, two norms, 4x feed-forward), FSQ 8
    w = 1280
    block = 4 * w * w + 3 * w + 31 * w + 4 * w + 8 * w * w + 5 * w
    assert (
        sum(p.numel() for p in model.parameters())
        == (128 * 3 * w + w) + (3 * w * w + w) + 6 * block + 8 * w + 8
    )
    assert model.config.codes == 6561


def test_checkpoint_round_trip_and_its_errors(tmp_path):
    model = SpeechTokenizer(TINY).eval()
    export_model(tmp_path, model, TINY, {"step": 1})
    again = SpeechTokenizer.load(tmp_path)
    mel = torch.randn(1, 16, 80)
    assert torch.equal(again.encode(mel)[0], model.encode(mel)[0])
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(CheckpointError):
        SpeechTokenizer.load(tmp_path)
    with pytest.raises(ConfigError):
        SpeechTokenizer.load(tmp_path / "nowhere")
