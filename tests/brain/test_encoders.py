"""Audio encoders: windows, masks, bounded memory, what a short clip costs; equality with transformers' own
forward."""

import pytest
import torch
from transformers import WhisperConfig
from transformers.models.qwen2_audio.configuration_qwen2_audio import Qwen2AudioEncoderConfig

from omnilib.audio import log_mel
from omnilib.brain import encoders
from omnilib.brain.encoders import SpeechTower, mel_windows, window_positions
from omnilib.errors import AudioError

WINDOW = 480_000


@pytest.mark.parametrize(
    ("seconds", "rate", "positions"),
    [
        (1, 5, [5]),
        (0.001, 5, [1]),
        (3.1, 5, [16]),
        (30, 5, [150]),
        (30.001, 5, [150, 1]),
        (60, 5, [150, 150]),
        (65, 5, [150, 150, 25]),
        (30, 4, [187]),  # 750 frames hold 187 groups of 4; two frames are dropped, as published
        (29.99, 4, [187]),
        (31, 4, [187, 7]),
        (0, 5, []),
    ],
)
def test_a_clip_costs_its_own_length(seconds, rate, positions):
    assert window_positions(round(seconds * 16000), WINDOW, rate) == positions


def test_quirks_cost_whole_windows_and_one_more_at_exact_multiples():
    for seconds, windows in ((0, 1), (1, 1), (29.9, 1), (30, 2), (31, 2), (60, 3)):
        assert window_positions(round(seconds * 16000), WINDOW, 5, quirks=True) == [150] * windows


def test_an_exact_multiple_makes_no_silent_window(sound):
    assert mel_windows(sound(4.0), 32_000, 16).shape == (2, 16, 200)
    assert mel_windows(sound(4.0), 32_000, 16, quirks=True).shape == (3, 16, 200)


def test_silence_after_a_window_does_not_change_the_windows_before(sound):
    whole, longer = (
        mel_windows(sound(4.0), 32_000, 16),
        mel_windows(torch.cat((sound(4.0), sound(0.5))), 32_000, 16),
    )
    assert torch.equal(whole, longer[:2])


def test_spectra_of_a_bounded_number_of_windows_are_in_memory(sound, monkeypatch):
    sizes = []
    spy = lambda some, bins: sizes.append(len(some)) or log_mel(some, bins)  # noqa: E731
    monkeypatch.setattr(encoders, "log_mel", spy)
    wave = sound(41.0)
    together = mel_windows(wave, 32_000, 16)
    assert sizes == [8, 8, 4, 1]  # the last is shorter
    torch.testing.assert_close(together[20:], mel_windows(wave[640_000:], 32_000, 16))


def test_empty_audio_is_one_line():
    with pytest.raises(AudioError, match="audio of 0 samples: give a recording"):
        mel_windows(torch.zeros(0), 32_000, 16)


@pytest.fixture
def tower(tiny) -> SpeechTower:
    return tiny().model.speech_tower


def test_whole_windows_equal_the_forward_of_transformers(tower, sound):
    mel = mel_windows(sound(4.0), 32_000, 16)
    main, aux = tower(mel)
    torch.testing.assert_close(main, tower.speech_tower(mel).last_hidden_state, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(aux, tower.speech_tower_aux(mel).last_hidden_state, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_short_window_is_the_same_alone_and_beside_a_long_one(tiny, sound, attention):
    tower = tiny(attn_implementation=attention).model.speech_tower
    for encoder in (tower.speech_tower, tower.speech_tower_aux):
        encoder.set_attn_implementation(attention)
    mel = torch.cat((mel_windows(sound(0.4), 32_000, 16), mel_windows(sound(2.0, 1), 32_000, 16)))
    alone = tower(mel[:1], torch.tensor([10]))
    both = tower(mel, torch.tensor([10, 50]))
    assert alone[0].shape[1:] == (10, 16) and alone[1].shape[1:] == (20, 12)
    torch.testing.assert_close(both[0][0, :10], alone[0][0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(both[1][0, :20], alone[1][0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(both[0][1], tower(mel[1:])[0][0], atol=1e-5, rtol=1e-4)


def test_sound_that_is_masked_is_not_heard(tower, sound):
    mel = mel_windows(sound(2.0), 32_000, 16)
    other = mel.clone()
    other[..., 60:] = 1.0
    for ours, theirs in zip(tower(mel, torch.tensor([10])), tower(other, torch.tensor([10])), strict=True):
        assert torch.equal(ours, theirs)


def spied(model, monkeypatch) -> list[tuple[int, int]]:
    """(windows, frames) of each run of the main encoder."""
    sizes, layer = [], model.model.speech_tower.speech_tower.layers[0]
    forward = layer.forward
    monkeypatch.setattr(
        layer,
        "forward",
        lambda x, *a, **k: sizes.append(tuple(x.shape[:2])) or forward(x, *a, **k),
    )
    return sizes


def test_encoders_see_a_bounded_number_of_windows_whatever_the_length(ready, sound, monkeypatch):
    model, processor = ready(speech_batch=3)
    sizes = spied(model, monkeypatch)
    wave = sound(23.0)
    counts = processor.speech_positions(len(wave))
    features = model.model.hear(processor.windows(wave), torch.tensor(counts))
    assert [n for n, _ in sizes] == [3, 3, 3, 3] and len(features) == sum(counts) == 115
    model.config.speech_batch = 100
    torch.testing.assert_close(
        model.model.hear(processor.windows(wave), torch.tensor(counts)),
        features,
        atol=1e-4,
        rtol=1e-4,
    )


def test_a_short_clip_is_computed_at_its_own_length(ready, sound, monkeypatch):
    model, processor = ready()
    sizes = spied(model, monkeypatch)
    wave = sound(0.4)
    model.model.hear(processor.windows(wave), torch.tensor(processor.speech_positions(len(wave))))
    assert sizes == [(1, 20)]


def test_frozen_towers_get_no_gradient_and_trainable_ones_do(ready, sound):
    for flag in (False, True):
        model, processor = ready(unfreeze_mm_speech_tower=flag)
        model.train()
        wave = sound(1.0)
        model.model.hear(
            processor.windows(wave),
            torch.tensor(processor.speech_positions(len(wave))),
        ).square().sum().backward()
        tower = model.model.speech_tower
        for encoder in (tower.speech_tower, tower.speech_tower_aux):
            assert (encoder.conv1.weight.grad is not None) is flag
            assert encoder.training is flag
        assert model.model.mm_speech_projector.linear1.weight.grad is not None


def test_frames_of_the_towers_may_be_kept_and_fused_later(ready, sound):
    model, processor = ready(speech_norm=True)
    wave = sound(5.0)
    windows, counts = processor.windows(wave), torch.tensor(processor.speech_positions(len(wave)))
    kept = model.model.encode_speech(windows, counts)
    features = model.model.fuse(*kept, counts)
    torch.testing.assert_close(features, model.model.hear(windows, counts))
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(len(features)))


def test_one_encoder_brains_work_and_a_missing_encoder_is_told(tiny, sound):
    for kind, absent in (("simple_mlp", "speech_tower_aux_config"), ("aux_mlp", "speech_tower_config")):
        model = tiny(mm_speech_projector_type=kind, **{absent: None})
        mel = mel_windows(sound(1.0), 32_000, 16)
        assert model.model.hear(mel, torch.tensor([5])).shape == (5, 32)
        model.config.mm_speech_projector_type = "dual_mlp"
        with pytest.raises(ValueError, match="needs an audio encoder that this brain lacks"):
            model.model.hear(mel, torch.tensor([5]))


@pytest.mark.parametrize("seconds", [0.03, 0.6, 1.97, 2.0, 2.01, 5.3])
def test_the_silence_behind_a_short_recording_is_filled_in_not_computed(sound, seconds):
    wave, window = sound(seconds), 32_000
    count = -(-len(wave) // window)
    padded = torch.nn.functional.pad(wave, (0, count * window - len(wave))).view(count, window)
    torch.testing.assert_close(mel_windows(wave, window, 16), log_mel(padded, 16), rtol=0, atol=1e-6)
    torch.testing.assert_close(
        mel_windows(wave * 1e-6, window, 16), log_mel(padded * 1e-6, 16), rtol=0, atol=1e-6
    )
    silent = torch.zeros_like(wave)
    torch.testing.assert_close(mel_windows(silent, window, 16), log_mel(padded * 0, 16), rtol=0, atol=1e-6)


def test_layers_that_both_encoders_begin_with_are_computed_once():
    sizes = dict(num_mel_bins=16, max_source_positions=100, encoder_layers=3, encoder_attention_heads=2)
    sizes |= dict(d_model=16, encoder_ffn_dim=24)
    torch.manual_seed(0)
    tower = SpeechTower(Qwen2AudioEncoderConfig(**sizes), WhisperConfig(**sizes)).eval()
    assert tower.share() == 0  # nothing alike
    tower.speech_tower_aux.load_state_dict(tower.speech_tower.state_dict())
    with torch.no_grad():
        tower.speech_tower_aux.layers[2].fc1.weight.add_(0.1)  # the last layer was trained further
        mel, frames = torch.randn(3, 16, 200), torch.tensor([50, 20, 5])
        apart = tower(mel, frames)
        assert tower.share() == 2
        calls = []
        for layer in (*tower.speech_tower.layers, *tower.speech_tower_aux.layers):
            layer.register_forward_hook(lambda *_: calls.append(1))
        together = tower(mel, frames)
    assert len(calls) == 4  # two shared, one of each
    for a, b in zip(apart, together, strict=True):
        torch.testing.assert_close(a, b)
    assert not torch.equal(together[0], together[1][:, ::2])


def test_one_encoder_alone_shares_nothing():
    assert (
        SpeechTower(None, WhisperConfig(d_model=16, encoder_layers=1, encoder_attention_heads=2)).share() == 0
    )
