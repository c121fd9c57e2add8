"""HiFT: parity with the reference, streaming = offline, learning, resuming."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from omnilib import config as configs
from omnilib.audio import mel_80
from omnilib.data import load_segment, read_manifest, write_manifest
from omnilib.errors import CheckpointError, ConfigError, DataError
from omnilib.train import common
from omnilib.train import hift as training
from omnilib.voice.discriminators import (
    DiscriminatorConfig,
    Discriminators,
    adversarial_loss,
    discriminator_loss,
    feature_loss,
    fine_mel_loss,
    spectral_loss,
)
from omnilib.voice.hift import HiFT, HiFTConfig, harmonic_phase, noise_at, published_keys
from omnilib.voice.pitch import measure_pitch

TINY = HiFTConfig(
    base_channels=16,
    upsample_rates=[8, 5],
    upsample_kernel_sizes=[16, 11],
    istft_n_fft=48,
    istft_hop_len=12,
    resblock_kernel_sizes=[3, 5],
    resblock_dilation_sizes=[[1, 3], [1]],
    source_resblock_kernel_sizes=[3, 5],
    source_resblock_dilation_sizes=[[1], [1]],
    f0_cond_channels=16,
)


def config_of(published: dict) -> HiFTConfig:
    """The reference's keyword arguments as our config: only the nested STFT sizes are spelt differently."""
    sizes = dict(published)
    istft = sizes.pop("istft_params")
    return HiFTConfig(**sizes, istft_n_fft=istft["n_fft"], istft_hop_len=istft["hop_len"])


def load_reference(golden) -> tuple[HiFT, dict, dict]:
    info, tensors = golden("hift_inference")
    return tensors.load_into(HiFT(config_of(info["config"]))).eval(), info["tolerance"], tensors


def need(tensors: dict, *keys: str) -> None:
    """Skip what this instance of the fixture has no tensors for."""
    if not tensors.has(*keys):
        pytest.skip(f"this instance of the fixtures has no {', '.join(k for k in keys if k not in tensors)}")


def voiced_model(config: HiFTConfig = TINY, scale: float = 12.0) -> HiFT:
    """Random weights, loud enough that every path shows in the wave, with a pitch around 120 Hz."""
    torch.manual_seed(0)
    model = HiFT(config).eval()
    with torch.no_grad():
        for block in [*model.resblocks, *model.source_resblocks]:
            for conv in [*block.convs1, *block.convs2]:
                conv.weight = conv.weight * scale
        model.conv_post.weight = model.conv_post.weight * scale
        model.f0_predictor.classifier.bias.fill_(120.0)
    return model


# ------------------------------------------------------------------------------------------------------- parity


def test_f0_matches_the_reference(golden):
    model, tolerance, tensors = load_reference(golden)
    need(tensors, "out.f0")
    with torch.inference_mode():
        f0 = model.f0_predictor(tensors["in.mel"])
    torch.testing.assert_close(f0, tensors["out.f0"], atol=tolerance["f0 abs"], rtol=0)


@pytest.mark.parametrize("case", ["zero_noise", "recorded_noise", "cache"])
def test_inference_matches_the_reference(golden, case):
    model, tolerance, tensors = load_reference(golden)
    need(
        tensors,
        "in.noise.randn",
        *(["in.cache_source"] if case == "cache" else []),
        f"out.{case}.source",
        f"out.{case}.wav",
    )
    noise = tensors["in.noise.randn"].float()
    noise = noise if case == "recorded_noise" else torch.zeros_like(noise)
    cache = tensors["in.cache_source"] if case == "cache" else None
    wave, source = model.inference(tensors["in.mel"], cache, noise)
    torch.testing.assert_close(source, tensors[f"out.{case}.source"], atol=tolerance["source abs"], rtol=0)
    torch.testing.assert_close(
        wave, tensors[f"out.{case}.wav"], atol=tolerance["wav abs, end to end"], rtol=0
    )


@pytest.mark.parametrize("case", ["zero_noise", "recorded_noise", "cache"])
def test_decode_matches_the_reference_given_its_source(golden, case):
    model, tolerance, tensors = load_reference(golden)
    need(tensors, f"out.{case}.source", f"out.{case}.wav")
    with torch.inference_mode():
        wave = model.decode(tensors["in.mel"], tensors[f"out.{case}.source"])
    limit = tolerance["wav abs, decode fed with out.*.source"]
    torch.testing.assert_close(wave, tensors[f"out.{case}.wav"], atol=limit, rtol=0)


def test_full_size_has_the_published_keys_and_shapes(golden):
    published, _ = golden("state_dict_keys_full")
    with torch.device("meta"):
        model = HiFT(HiFTConfig())
    assert {k: list(v.shape) for k, v in model.state_dict().items()} == published["hift"]
    assert sum(p.numel() for p in model.parameters()) == published["parameters"]["hift"]


def test_older_weight_norm_names_and_the_generator_prefix_load():
    model, other = voiced_model(), HiFT(TINY)
    old = {}
    for key, value in model.state_dict().items():
        key = key.replace(".parametrizations.weight.original0", ".weight_g").replace(
            ".parametrizations.weight.original1", ".weight_v"
        )
        old["generator." + key] = value
    other.load_state_dict(published_keys(old))
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    )


# -------------------------------------------------------------------------------------------------- equivalence


@pytest.mark.parametrize("sizes", [[60], [1] * 60, [7, 30, 3, 20]])
def test_streamed_pieces_equal_one_pass(sizes):
    model = voiced_model()
    mel = torch.randn(1, TINY.in_channels, 60, generator=torch.Generator().manual_seed(1))
    whole, _ = model.inference(mel, noise=noise_at(0, 60 * TINY.hop, TINY.nb_harmonics + 1))
    stream, edges = model.stream(), [0]
    for size in sizes:
        edges.append(edges[-1] + size)
    pieces = [stream.push(mel[..., a:b], last=b == 60) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    assert whole.std() > 0.01
    torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=2e-5, rtol=0)


def test_a_context_below_the_reach_is_audible_in_the_numbers():
    model = voiced_model()
    mel = torch.randn(1, TINY.in_channels, 60, generator=torch.Generator().manual_seed(1))
    exact, short = model.stream(), model.stream(context=5)
    assert TINY.reach > 5
    one, two = (
        torch.cat([s.push(mel[..., :30]), s.push(mel[..., 30:], last=True)], 1) for s in (exact, short)
    )
    assert (one - two).abs().max() > 1e-5


def test_stream_memory_stays_bounded():
    model, stream = voiced_model(), voiced_model().stream()
    for _ in range(30):
        stream.push(torch.randn(1, TINY.in_channels, 10))
    assert stream.mel.shape[-1] <= 2 * model.config.reach + 10
    assert stream.spoken == 300 - stream.context


def test_folding_weight_norm_keeps_the_wave():
    model = voiced_model()
    mel, noise = torch.randn(1, TINY.in_channels, 12), torch.zeros(1, 12 * TINY.hop, TINY.nb_harmonics + 1)
    before, _ = model.inference(mel, noise=noise)
    after, _ = model.fold_weight_norm().inference(mel, noise=noise)
    torch.testing.assert_close(after, before, atol=1e-5, rtol=0)


def test_phase_of_a_steady_pitch_is_a_straight_line_even_after_ten_minutes():
    rate, hop, frames = 24_000, 480, 30_000
    start = torch.zeros(1, 1, dtype=torch.float64)
    phase = harmonic_phase(torch.full((1, frames), 200.3), 1, rate, hop, start)[0, 0]
    step = phase[-2000:].diff().remainder(1.0)[:1000]
    torch.testing.assert_close(step, torch.full_like(step, 200.3 / rate), atol=1e-6, rtol=0)


def test_equal_generators_give_equal_waves():
    model, mel = voiced_model(), torch.randn(1, TINY.in_channels, 10)
    waves = [model.inference(mel, generator=torch.Generator().manual_seed(s))[0] for s in (3, 3, 4)]
    assert torch.equal(waves[0], waves[1])
    assert not torch.equal(waves[0], waves[2])


# ----------------------------------------------------------------------------------------------------- learning


def hum(f0: float, seconds: float = 0.64) -> torch.Tensor:
    """A vowel-like sum of harmonics: (T,)."""
    t = torch.arange(int(seconds * 24_000)) / 24_000
    return 0.15 * sum(torch.sin(2 * math.pi * f0 * h * t) / h for h in range(1, 12))


@pytest.mark.parametrize("f0", [75.0, 130.0, 220.0, 380.0])
def test_measured_pitch_of_a_hum(f0):
    measured = measure_pitch(hum(f0)[None])
    assert measured.shape == (1, 32)
    torch.testing.assert_close(measured[0, 4:-4], torch.full((24,), f0), rtol=0.01, atol=0)


def test_noise_and_silence_have_no_pitch():
    noise = 0.1 * torch.randn(2, 15_360, generator=torch.Generator().manual_seed(0))
    assert (measure_pitch(noise) > 0).float().mean() < 0.05
    assert not measure_pitch(torch.zeros(1, 15_360)).any()


def test_perfect_scores_cost_a_discriminator_nothing():
    real, fake = [(torch.ones(2, 5), [])], [(torch.zeros(2, 5), [])]
    assert discriminator_loss(real, fake) == 0
    assert adversarial_loss(fake) == 1
    assert discriminator_loss(fake, real) == 2


def test_discriminators_judge_a_wave_at_every_period_and_resolution():
    judges = Discriminators(DiscriminatorConfig(period_channels=[4, 8], band_channels=4))
    wave = hum(110.0)[None].repeat(2, 1).requires_grad_()
    judged = judges(wave)
    assert len(judged) == 5 + 3
    assert feature_loss(judged, judged) == 0
    adversarial_loss(judged).backward()
    assert wave.grad.abs().sum() > 0


@pytest.fixture
def corpus(tmp_path) -> Path:
    """Eight hums with noise in one shard, and their manifest."""
    generator = torch.Generator().manual_seed(0)
    waves = [hum(90.0 + 25 * i, 1.0) + 0.01 * torch.randn(24_000, generator=generator) for i in range(8)]
    samples = (torch.cat(waves).clamp(-1, 1) * 32767).to(torch.int16)
    import soundfile

    soundfile.write(tmp_path / "shard.wav", samples.numpy(), 24_000, subtype="PCM_16")
    common_fields = {
        "path": "shard.wav",
        "duration": 1.0,
        "rate": 24_000,
        "text": "",
        "language": "en",
        "source": "hum",
        "licence": "CC0",
    }
    records = [
        {
            "id": str(i),
            "start": float(i),
            "speaker": str(i),
            "split": "train" if i < 6 else "dev",
            **common_fields,
        }
        for i in range(8)
    ]
    write_manifest(tmp_path / "manifest.jsonl", records)
    return tmp_path / "manifest.jsonl"


def settings(corpus: Path, *more: str) -> training.Config:
    return configs.load(training.Config, "smoke/hift", [f"manifest={corpus}", *more])


def test_spectral_losses_fall_on_the_corpus(corpus, tmp_path):
    cfg = settings(
        corpus,
        "phases=[]",
        "steps=60",
        "batch_seconds=2.88",
        "eval_every=1000",
        "save_every=1000",
        "lr=0.003",
    )
    training.train(cfg, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [row["mel"] for row in rows if "mel" in row]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


@pytest.mark.parametrize(("every", "kept"), [(2, 2), (5, 3)], ids=["within a phase", "between phases"])
def test_a_killed_run_goes_on_with_the_same_losses(corpus, tmp_path, every, kept):
    def losses(folder: str) -> list[tuple]:
        rows = [json.loads(line) for line in (tmp_path / folder / "log.jsonl").read_text().splitlines()]
        return [(r["step"], r["loss"], r.get("judges")) for r in rows if "loss" in r]

    cfg = settings(corpus, f"save_every={every}")
    training.train(cfg, tmp_path / "whole")
    (tmp_path / "killed").mkdir()
    save = common.save_state

    def die(*args):
        save(*args)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(common, "save_state", die)
        training.train(cfg, tmp_path / "killed")
    assert len(losses("killed")) == kept
    training.train(cfg, tmp_path / "killed")
    assert losses("killed") == losses("whole")
    assert losses("whole")[-1][2] is not None  # the adversarial phase was part of it


def test_bursts_a_little_late_cost_more_in_fine_mels_than_in_the_long_window():
    noise = torch.randn(2, 15_360, generator=torch.Generator().manual_seed(0))
    wave = 0.01 * noise[:1]
    wave[0, ::1500] += 0.3
    late = wave.roll(120, dims=-1)  # 5 ms
    assert fine_mel_loss(wave, wave, 24_000) == 0
    assert fine_mel_loss(wave, late, 24_000) > 3 * (mel_80(wave) - mel_80(late)).abs().mean()
    fake = (0.01 * noise[1:]).requires_grad_()
    fine_mel_loss(wave, fake, 24_000).backward()
    assert fake.grad.isfinite().all() and fake.grad.any()


def test_a_share_of_the_crops_is_made_from_the_given_mels_in_step_with_the_recording(corpus, tmp_path):
    records = [r for r in read_manifest(corpus) if r["split"] == "train"]
    whole = {r["id"]: mel_80(load_segment(r, corpus.parent)) for r in records}
    save_file(
        {k: (m + 1.0).half() for k, m in whole.items() if k != "0"}, tmp_path / "mels.safetensors"
    )  # marked; one is missing
    cfg = settings(
        corpus,
        f"mels={tmp_path}/mels.safetensors",
        "mels_share=0.5",
        "batch_seconds=3.84",
        "crop_seconds=0.64",
    )
    crops = training.Crops(cfg, records, corpus.parent)
    waves, given = crops.batch(3)
    assert waves.shape == (6, 15_360) and given.shape == (3, 80, 32)
    mels = training.heard(mel_80(waves), given)
    assert mels.shape == (6, 80, 32)
    assert torch.equal(mels[:3], mel_80(waves[:3]))
    inside = slice(2, -2)  # at the edges a crop alone sees its own reflection
    torch.testing.assert_close(mels[3:, :, inside] - 1.0, mel_80(waves[3:])[..., inside], atol=0.02, rtol=0)
    assert torch.equal(crops.batch(3)[1], given) and not torch.equal(crops.batch(4)[1], given)
    training.train(
        settings(corpus, f"mels={tmp_path}/mels.safetensors", "phases=[]", "steps=2", "fine_mel_weight=1.0"),
        tmp_path / "run",
    )
    assert "fine_mel" in (tmp_path / "run" / "log.jsonl").read_text()
    with pytest.raises(DataError, match="omnilib.train.encode --codec"):
        training.Crops(settings(corpus, "mels=nowhere.safetensors"), records, corpus.parent)


def test_runs_of_any_seed_are_judged_on_the_same_crops(corpus):
    records = [r for r in read_manifest(corpus) if r["split"] == "dev"]
    one, two = (
        training.development_crops(records, corpus.parent, settings(corpus, f"seed={seed}"))
        for seed in (0, 5)
    )
    assert torch.equal(one, two)


def test_an_exported_run_loads_and_speaks(corpus, tmp_path):
    training.train(
        settings(corpus, "phases=[]", "steps=2", "save_every=100", "eval_every=100"), tmp_path / "run"
    )
    model = HiFT.load(tmp_path / "run")
    mel = mel_80(hum(120.0))[None]
    wave, _ = model.inference(mel, generator=torch.Generator().manual_seed(0))
    assert wave.shape == (1, mel.shape[-1] * 480)
    assert (tmp_path / "run" / "samples").is_dir()


def test_a_truncated_checkpoint_is_named(corpus, tmp_path):
    common.export_model(tmp_path / "hift", HiFT(TINY), TINY, {})
    path = tmp_path / "hift" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot read"):
        HiFT.load(tmp_path / "hift")


def test_a_checkpoint_of_another_size_is_named(tmp_path):
    common.export_model(tmp_path / "hift", HiFT(TINY), TINY, {})
    save_file({"conv_pre.bias": torch.zeros(16)}, tmp_path / "hift" / "model.safetensors")
    with pytest.raises(CheckpointError, match="does not fit HiFT: missing"):
        HiFT.load(tmp_path / "hift")


def test_every_committed_config_is_valid():
    sizes = {name: configs.load(training.Config, f"{name}/hift") for name in ("smoke", "nano", "paper")}
    assert sizes["paper"].model == HiFTConfig()
    assert all(cfg.model.hop == 480 for cfg in sizes.values())
    with pytest.raises(ConfigError):
        configs.load(training.Config, "nano/hift", ["model.base_chanels=3"])


@pytest.mark.gpu
def test_a_training_step_gives_the_same_losses_and_gradients_on_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    cfg = configs.load(training.Config, "smoke/hift").model
    model = HiFT(cfg)
    wave = 0.1 * torch.randn(2, 15_360, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(2, 15_360, cfg.nb_harmonics + 1, generator=torch.Generator().manual_seed(1))
    found = {}
    for device in ("cpu", "cuda"):
        net, real = copy.deepcopy(model).to(device), wave.to(device)
        mel = mel_80(real)
        source = net.m_source(net.f0_predictor(mel).detach(), noise.to(device))
        fake = net.decode(mel, source)
        loss = (
            (mel_80(fake) - mel).abs().mean() + spectral_loss(real, fake) + fine_mel_loss(real, fake, 24_000)
        )
        loss.backward()
        found[device] = (
            loss.item(),
            {name: p.grad.cpu() for name, p in net.named_parameters() if p.grad is not None},
        )
    assert found["cuda"][0] == pytest.approx(found["cpu"][0], rel=1e-3)
    for name, gradient in found["cpu"][1].items():
        assert (
            torch.nn.functional.cosine_similarity(gradient.flatten(), found["cuda"][1][name].flatten(), dim=0)
            > 0.99
        ), name


def test_the_vocoder_learns_from_mels_of_its_own_window(corpus, tmp_path):
    cfg = settings(corpus, "model.mel_window=1024")
    wave = load_segment(read_manifest(corpus)[0], corpus.parent)[None]
    assert torch.equal(training.spectrum(cfg.model, wave), mel_80(wave, window=1024))
    training.train(cfg, tmp_path / "run")
    assert HiFT.load(tmp_path / "run").config.mel_window == 1024
    save_file({"0": mel_80(wave, window=1024)[0]}, tmp_path / "mels.safetensors", {"mel_window": "1024"})
    assert list(training.load_mels(tmp_path / "mels.safetensors", 1024)) == ["0"]
    with pytest.raises(DataError, match="of windows of 1024 samples, the vocoder reads 1920"):
        training.train(settings(corpus, f"mels={tmp_path}/mels.safetensors"), tmp_path / "other")
    (tmp_path / "mels.safetensors").write_bytes((tmp_path / "mels.safetensors").read_bytes()[:100])
    with pytest.raises(DataError, match="cannot read mels"):
        training.load_mels(tmp_path / "mels.safetensors", 1024)
