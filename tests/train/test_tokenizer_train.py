"""Training the speech tokenizer and exporting codes: it learns, resumes exactly, and a killed export goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from omnilib.data import read_manifest
from omnilib.errors import CheckpointError, DataError, UserError
from omnilib.train import encode as encoding
from omnilib.train import tokenizer as training
from omnilib.train.prefetch import prefetch
from omnilib.voice.phonemes import (
    PhonemeHead,
    PhonemeHeadConfig,
    align,
    edit_distance,
    intelligibility,
    phoneme_set,
)
from omnilib.voice.tokenizer import SpeechTokenizer, codes_to_values
from tests import tones

SIZE = [
    "tokenizer.width=48",
    "head.width=32",
    "tokenizer.fsq_dims=4",
    "batch_seconds=12",
    "warmup=10",
    "lr=3e-3",
    "speeds=[1.0]",
    "band_mask=0",
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tones")
    return tones.build(folder, {"low": 0.8, "mid": 1.0, "high": 1.3}, {"train": 16, "dev": 3, "test": 3})


def train(manifest: Path, out: Path, *overrides: str) -> dict[str, float]:
    return training.main(
        ["--config", "smoke/tokenizer", "--out", str(out), "--set", f"manifest={manifest}", *overrides]
    )


def losses(out: Path) -> dict[int, float]:
    return {
        r["step"]: r["loss"]
        for r in map(json.loads, (out / "log.jsonl").read_text().splitlines())
        if "loss" in r
    }


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory) -> tuple[Path, dict[str, float]]:
    out = tmp_path_factory.mktemp("run")
    return out, train(corpus, out, *SIZE, "steps=80", "eval_every=80", "save_every=80", "dev_items=9")


def test_phonemes_are_learnt_through_the_codes(trained):
    out, metrics = trained
    seen = losses(out)
    assert seen[80] < 0.5 * seen[1]
    assert metrics["dev_error"] < 0.25, metrics
    assert metrics["code_perplexity"] > 4


def test_intelligibility_of_codes_tells_right_from_wrong(corpus, trained):
    out, _ = trained
    records = [r for r in encoding.read_manifest(corpus) if r["split"] == "test"]
    codes = encoding.encode_codes(SpeechTokenizer.load(out), records, corpus.parent)
    head = PhonemeHead.load(out)
    said = [r["phonemes"] for r in records]
    right = intelligibility(head, [codes[r["id"]] for r in records], said)
    shuffled = intelligibility(head, [codes[r["id"]] for r in records[1:] + records[:1]], said)
    assert right < 0.3 < shuffled
    assert intelligibility(head, [torch.zeros(0, dtype=torch.int16)] * len(said), said) == 1.0


def test_killed_run_resumes_with_the_same_losses(corpus, tmp_path):
    overrides = ["steps=12", "save_every=4", "eval_every=50", "bf16=false"]
    train(corpus, tmp_path / "whole", *overrides)
    command = [
        sys.executable,
        "-m",
        "omnilib.train.tokenizer",
        "--config",
        "smoke/tokenizer",
        "--out",
        str(tmp_path / "killed"),
        "--set",
    ]
    process = subprocess.Popen(
        [*command, f"manifest={corpus}", *overrides[1:], "steps=12"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.time() + 120
    while not (tmp_path / "killed" / "state" / "meta.json").exists() and process.poll() is None:
        assert time.time() < deadline, "no state was written"
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL) if process.poll() is None else None
    process.wait()
    assert not (tmp_path / "killed" / "model.safetensors").exists(), "the run ended before it could be killed"
    train(corpus, tmp_path / "killed", *overrides)
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_frame_labels_follow_the_phoneme_times_at_any_speed():
    head = PhonemeHead(PhonemeHeadConfig(fsq_dims=2, width=8, heads=1, layers=0, phonemes=["a", "b"]))
    item = (torch.randn(24_000), ["pau", "a", "b"], [0.2, 0.6, 1.0], 1.0)
    labels = training.collate([item], 24_000, head).labels[0]
    assert labels.tolist() == [0] * 10 + [1] * 20 + [2] * 20
    faster = training.collate([item], 24_000, head, speed=1.25)
    assert faster.mel.shape[-1] == 80 and faster.labels[0].tolist() == [0] * 8 + [1] * 16 + [2] * 16
    joined = training.collate([training.join(item, item)], 24_000, head)
    assert joined.labels[0].tolist() == labels.tolist() * 2 and joined.phoneme_counts.tolist() == [4]
    untimed = training.collate([(item[0], item[1], None, 1.0)], 24_000, head)
    assert (untimed.labels == -100).all()


def test_disturbed_recordings_keep_their_peaks_and_lose_their_quiet_cells():
    random = torch.Generator().manual_seed(0)
    mel = torch.full(
        (40, 128, 30), -1.0
    )  # Whisper's scale: 8 decades from the loudest cell to the floor are 2.0
    mel[:, 60:70, 10:20] = 1.0
    heard = training.augment(mel, 0.5, random)
    changed = (heard != mel).flatten(1).any(1)
    assert 8 < changed.sum() < 32 and torch.equal(heard[~changed], mel[~changed])
    assert torch.equal(training.augment(mel, 0.0, random), mel) and heard.isfinite().all()
    loud, quiet = heard[changed][:, 60:70, 10:20], heard[changed][:, :, :5]
    assert (loud - 1.0).abs().max() < 0.2, "6 dB are 0.15; noise adds a little"
    assert (quiet > -0.9).float().mean() > 0.9, "noise or the coder's floor covers the deepest cells"
    again = [training.augment(mel, 0.5, torch.Generator().manual_seed(5)) for _ in range(2)]
    assert torch.equal(*again)


def test_forced_alignment_finds_the_path_and_skips_absent_pauses():
    frames = [0, 1, 1, 2, 2, 2, 0, 2, 1, 1]
    noise = np.random.default_rng(0).normal(0, 0.3, (len(frames), 3))
    log_probs = np.log(np.eye(3)[frames] * 0.9 + 0.05) + noise
    assert align(log_probs, [0, 1, 2, 0, 2, 1, 0]).tolist() == frames
    assert align(log_probs[1:6], [0, 1, 0, 2, 0]).tolist() == frames[1:6]
    assert align(log_probs[1:3], [1]).tolist() == [1, 1]
    assert align(log_probs, [1, 2] * 6) is None


def test_recordings_without_times_are_aligned_by_the_model():
    head = PhonemeHead(PhonemeHeadConfig(fsq_dims=2, width=8, heads=1, layers=0, phonemes=["a", "b"]))
    timed = (torch.randn(24_000), ["pau", "a", "b"], [0.2, 0.6, 1.0], 1.0)
    batch = training.collate([timed, (*timed[:2], None, 1.0)], 24_000, head)
    scores = (
        torch.nn.functional.one_hot(torch.tensor([0] * 10 + [1] * 30 + [2] * 10), 3)
        .float()[None]
        .repeat(2, 1, 1)
        * 9
    )
    labels = training.align_untimed(scores, torch.tensor([25, 25]), batch)
    assert torch.equal(labels[0], batch.labels[0])
    assert labels[1].tolist() == [0] * 10 + [1] * 30 + [2] * 10


def test_long_or_padded_codes_read_as_each_alone():
    head = PhonemeHead(
        PhonemeHeadConfig(fsq_dims=3, width=16, heads=2, layers=1, kernel=3, phonemes=["a", "b", "c"])
    ).eval()
    codes = [torch.randint(0, 27, (n,), generator=torch.Generator().manual_seed(n)) for n in (40, 25, 9)]
    assert head.read(codes) == [head.read([c])[0] for c in codes]
    scores = head(codes_to_values(codes[0][None], 3), torch.tensor([40]))
    assert [s.shape[1] for s in scores] == [80, 40]


def test_edit_distance_counts_the_three_kinds_of_error():
    assert edit_distance("kitten", "sitting") == 3
    assert edit_distance([], [1, 2]) == 2 and edit_distance([1, 2], []) == 2 and edit_distance([1], [1]) == 0


def test_export_is_batched_exact_and_goes_on_after_a_kill(corpus, trained, tmp_path, monkeypatch):
    out, _ = trained
    monkeypatch.setattr(encoding, "PART_SECONDS", 8.0)
    monkeypatch.setitem(encoding.BATCH_SECONDS, "cpu", 5.0)
    records = encoding.read_manifest(corpus)
    target = tmp_path / "codes.safetensors"
    parts, done = encoding.cut_parts(records), []
    assert len(parts) > 3
    encode = encoding.encode_codes

    def killed_at_third(model, some, root):
        done.append(len(some))
        if len(done) == 3:
            raise KeyboardInterrupt
        return encode(model, some, root)

    monkeypatch.setattr(encoding, "encode_codes", killed_at_third)
    with pytest.raises(KeyboardInterrupt):
        encoding.export(records, corpus.parent, "codes", out, target, 1)
    assert not target.exists()
    encoding.export(records, corpus.parent, "codes", out, target, 1)
    assert sum(done[3:]) == len(records) - sum(done[:2]), "finished parts were encoded again"
    codes = load_file(target)
    assert set(codes) == {r["id"] for r in records} and not list(tmp_path.glob("*.parts-*"))
    model = SpeechTokenizer.load(out)
    for record in records[:5]:
        wave, _ = encoding.load_batch([(record, 0.0, record["duration"])], corpus.parent)
        alone, _ = model.encode(encoding.log_mel_128(wave))
        assert torch.equal(codes[record["id"]].long(), alone[0])
        assert codes[record["id"]].dtype == torch.int16
        assert abs(len(alone[0]) - 25 * record["duration"]) < 1
    calls = len(done)
    encoding.export(records, corpus.parent, "codes", out, target, 1)
    assert len(done) == calls, "an existing file of the same records and model was made again"


def test_export_in_two_processes_through_the_command_line(capsys, corpus, trained, tmp_path):
    out, _ = trained
    target = tmp_path / "codes.safetensors"
    encoding.main(
        [
            "--manifest",
            str(corpus),
            "--tokenizer",
            str(out),
            "--out",
            str(target),
            "--split",
            "dev",
            "--processes",
            "2",
        ]
    )
    assert len(load_file(target)) == 9
    with safe_open(str(target), "pt") as file:
        assert file.metadata()["kind"] == "codes" and len(file.metadata()["model_sha256"]) == 64
    part = tmp_path / "part.safetensors"
    command = [
        "--manifest",
        str(corpus),
        "--tokenizer",
        str(out),
        "--out",
        str(part),
        "--split",
        "dev",
        "--processes",
        "1",
    ]
    encoding.main([*command, "--every", "4"])
    assert load_file(part).keys() == {
        r["id"] for r in [r for r in read_manifest(corpus) if r["split"] == "dev"][::4]
    }
    with pytest.raises(SystemExit):
        encoding.main([*command, "--every", "0"])
    assert "--every: 0 is too few" in capsys.readouterr().err


def test_the_voice_shown_to_the_flow_is_the_recording_before_of_the_same_speaker():
    records = [{"id": i, "speaker": s} for i, s in enumerate("abab")] + [{"id": 4, "speaker": "c"}]
    assert [r["id"] for r in encoding.prompts_of(records)] == [2, 3, 0, 1, 4]


def test_long_recordings_are_cut_into_blocks_of_30_seconds():
    assert encoding.blocks_of({"duration": 65.0}) == [(0.0, 30.0), (30.0, 30.0), (60.0, 5.0)]
    assert encoding.blocks_of({"duration": 30.0}) == [(0.0, 30.0)]
    assert encoding.blocks_of({"duration": 1.2}) == [(0.0, 1.2)]


def test_missing_things_are_said_in_one_line(corpus, tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint"):
        encoding.main(
            [
                "--manifest",
                str(corpus),
                "--tokenizer",
                str(tmp_path),
                "--out",
                str(tmp_path / "x"),
                "--processes",
                "1",
            ]
        )
    with pytest.raises(DataError, match="no records"):
        encoding.main(
            [
                "--manifest",
                str(corpus),
                "--tokenizer",
                str(tmp_path),
                "--out",
                str(tmp_path / "x"),
                "--split",
                "none",
            ]
        )
    with pytest.raises(DataError, match="no phonemes"):
        phoneme_set([{"id": "x", "phonemes": []}])


def test_a_device_that_is_not_here_is_said_in_one_line(corpus, trained, tmp_path, monkeypatch):
    out, _ = trained
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no CUDA device"):
        encoding.main(
            [
                "--manifest",
                str(corpus),
                "--tokenizer",
                str(out),
                "--out",
                str(tmp_path / "x"),
                "--device",
                "cuda",
            ]
        )


@pytest.mark.parametrize("threads", [1, 3])
def test_prefetch_keeps_order_and_passes_errors_on(threads):
    def late(step: int) -> int:
        time.sleep(0.02 * (step == 2))  # the first is ready last
        return step * step

    assert list(prefetch(late, 2, 6, threads=threads)) == [(2, 4), (3, 9), (4, 16), (5, 25)]

    def fails(step: int) -> int:
        if step == 1:
            raise DataError("broken shard")
        return step

    with pytest.raises(DataError, match="broken shard"):
        list(prefetch(fails, 0, 5, threads=threads))
