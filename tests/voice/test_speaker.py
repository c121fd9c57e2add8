"""Speaker encoder: padding, loudness, learning to tell voices apart, exact resume, export."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from omnilib.audio import fbank_80
from omnilib.errors import CheckpointError, ConfigError, DataError
from omnilib.train import encode as encoding
from omnilib.train import speaker as training
from omnilib.voice.speaker import SpeakerConfig, SpeakerEncoder
from tests import tones

TINY = SpeakerConfig(width=16, dilations=[1, 2], dim=24)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("voices")
    tones.build(folder / "a", {"s1": 0.6, "s2": 0.9, "s3": 1.4, "s4": 2.0}, {"train": 8, "test": 4})
    tones.build(folder / "b", {"new1": 0.75, "new2": 1.7}, {"test": 4}, seed=1)
    lines = []
    for part in ("a", "b"):
        for line in (folder / part / "manifest.jsonl").read_text().splitlines():
            record = json.loads(line)
            lines.append(json.dumps(record | {"path": f"{part}/{record['path']}"}))
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "manifest.jsonl"


def train(manifest: Path, out: Path, *overrides: str) -> dict[str, float]:
    return training.main(
        ["--config", "smoke/speaker", "--out", str(out), "--set", f"manifest={manifest}", *overrides]
    )


def losses(out: Path) -> dict[int, float]:
    return {
        r["step"]: r["loss"]
        for r in map(json.loads, (out / "log.jsonl").read_text().splitlines())
        if "loss" in r
    }


def test_padding_changes_nothing():
    torch.manual_seed(0)
    model = SpeakerEncoder(TINY).eval()
    banks = [torch.randn(n, 80) for n in (120, 77, 50)]
    padded = torch.full((3, 120, 80), 9.0)
    for row, bank in zip(padded, banks, strict=True):
        row[: len(bank)] = bank
    with torch.no_grad():
        batch = model(padded, torch.tensor([120, 77, 50]))
        for row, bank in zip(batch, banks, strict=True):
            torch.testing.assert_close(row, model(bank[None])[0], atol=1e-4, rtol=1e-4)


def test_loudness_does_not_move_the_vector():
    torch.manual_seed(0)
    model = SpeakerEncoder(TINY).eval()
    wave = torch.randn(16_000) * 0.1
    with torch.no_grad():
        torch.testing.assert_close(
            model(fbank_80(wave)[None]), model(fbank_80(wave * 0.3)[None]), atol=2e-3, rtol=1e-2
        )


def test_margin_makes_the_true_speaker_harder():
    cosine, speaker = torch.tensor([[0.8, 0.1], [0.2, 0.7]]), torch.tensor([0, 1])
    plain = training.margin_loss(cosine, speaker, 0.0, 10.0)
    torch.testing.assert_close(
        plain, torch.nn.functional.cross_entropy(10 * cosine, speaker), atol=1e-5, rtol=0
    )
    assert training.margin_loss(cosine, speaker, 0.3, 10.0) > plain


def test_equal_error_rate_of_known_scores():
    assert training.equal_error_rate(np.array([0.9, 0.8]), np.array([0.1, 0.2]))[0] == 0.0
    assert training.equal_error_rate(np.array([0.1, 0.9]), np.array([0.2, 0.8]))[0] == pytest.approx(0.5)
    rng = np.random.default_rng(0)
    error, threshold = training.equal_error_rate(rng.normal(1, 1, 20_000), rng.normal(-1, 1, 20_000))
    assert error == pytest.approx(0.1587, abs=0.01) and threshold == pytest.approx(0.0, abs=0.05)


def test_trained_encoder_tells_unseen_voices_apart_and_exports_their_vectors(corpus, tmp_path):
    metrics = train(
        corpus,
        tmp_path,
        "steps=40",
        "eval_every=40",
        "save_every=40",
        "encoder.width=32",
        "batch_seconds=16",
        "lr=5e-3",
        "eval_items=4",
    )
    seen = losses(tmp_path)
    assert seen[40] < 0.5 * seen[1]
    assert metrics["all_eer"] < 0.25 and metrics["unseen_same_mean"] > metrics["unseen_other_mean"]
    target = tmp_path / "vectors.safetensors"
    encoding.main(
        [
            "--manifest",
            str(corpus),
            "--speaker",
            str(tmp_path),
            "--out",
            str(target),
            "--split",
            "test",
            "--processes",
            "1",
        ]
    )
    vectors = load_file(target)
    assert len(vectors) == 24 and all(v.shape == (24,) and v.dtype == torch.float32 for v in vectors.values())
    model = SpeakerEncoder.load(tmp_path)
    record = next(r for r in encoding.read_manifest(corpus) if r["id"] == "new1-test-0")
    wave, _ = encoding.load_batch([(record, 0.0, record["duration"])], corpus.parent)
    with torch.no_grad():
        torch.testing.assert_close(vectors["new1-test-0"], model(fbank_80(wave))[0], atol=1e-3, rtol=1e-3)


def test_stopped_run_resumes_with_the_same_losses(corpus, tmp_path, monkeypatch):
    train(corpus, tmp_path / "whole", "bf16=false")
    check = training.check_finite

    def dies_at_six(loss, step):
        if step == 6:
            raise KeyboardInterrupt
        check(loss, step)

    monkeypatch.setattr(training, "check_finite", dies_at_six)
    with pytest.raises(KeyboardInterrupt):
        train(corpus, tmp_path / "stopped", "bf16=false")
    monkeypatch.setattr(training, "check_finite", check)
    train(corpus, tmp_path / "stopped", "bf16=false")
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")


def test_one_voice_is_not_enough_and_is_said(tmp_path):
    manifest = tones.build(tmp_path / "one", {"s1": 1.0}, {"train": 3, "test": 2})
    with pytest.raises(DataError, match="2 speakers"):
        train(manifest, tmp_path / "out")


def test_paper_vector_size_and_checkpoint_errors(tmp_path):
    assert SpeakerConfig().dim == 192
    with pytest.raises(ConfigError):
        SpeakerEncoder.load(tmp_path)
    (tmp_path / "config.yaml").write_text("width: 16\n")
    with pytest.raises(CheckpointError):
        SpeakerEncoder.load(tmp_path)
