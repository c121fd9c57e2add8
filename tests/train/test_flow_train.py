"""The flow's training script on a corpus of tones: it runs, resumes exactly, learns, and refuses bad input clearly."""

import json
import wave

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from omnilib import config as configs
from omnilib import storage
from omnilib.audio import mel_80
from omnilib.data import load_segment, write_manifest
from omnilib.errors import CheckpointError, DataError
from omnilib.train import common
from omnilib.train import flow as script
from omnilib.voice.flow import Flow, FlowConfig

RATE = 24_000
PITCHES = [200, 300, 450, 700, 1000, 1500]  # token i sounds as tone i


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Utterances whose 40 ms pieces are tones named by their tokens; two voices, one twice as loud."""
    folder, rng = tmp_path_factory.mktemp("tones"), np.random.default_rng(0)
    samples, records, tokens, speakers, at = [], [], {}, {}, 0
    for number in range(16):
        count, voice = int(rng.integers(18, 30)), number % 2
        ids = np.repeat(rng.integers(0, len(PITCHES), count // 3 + 1), 3)[:count]
        phase = np.cumsum(np.repeat(2 * np.pi * np.array(PITCHES)[ids] / RATE, 960))
        sound = (0.15 * (1 + voice) * np.sin(phase) * 32767).astype("<i2")
        name = f"u{number:02d}"
        records.append(
            {
                "id": name,
                "path": "shard.wav",
                "start": at / RATE,
                "duration": len(sound) / RATE,
                "rate": RATE,
                "text": "tone",
                "language": "en",
                "speaker": f"v{voice}",
                "source": "tones",
                "licence": "CC0",
                "split": "dev" if number > 12 else "train",
            }  # fmt: skip
        )
        tokens[name] = torch.from_numpy(ids.astype(np.int16))
        speakers[name] = torch.eye(192)[voice]
        samples.append(sound)
        at += len(sound)
    with wave.open(str(folder / "shard.wav"), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes(np.concatenate(samples).tobytes())
    write_manifest(folder / "manifest.jsonl", records)
    save_file(tokens, folder / "tokens.safetensors")
    save_file(speakers, folder / "speakers.safetensors")
    return folder


def settings(corpus, *overrides: str) -> script.Config:
    files = [
        f"manifest={corpus}/manifest.jsonl",
        f"tokens={corpus}/tokens.safetensors",
        f"speakers={corpus}/speakers.safetensors",
    ]
    return configs.load(script.Config, "smoke/flow", [*files, "model.vocab=6", *overrides])


def utterances(cfg: script.Config, corpus) -> script.Utterances:
    records = script.read_manifest(corpus / "manifest.jsonl")
    vectors = [
        script.load_vectors(corpus / f"{name}.safetensors", "a test") for name in ("tokens", "speakers")
    ]
    return script.Utterances(records, corpus, *vectors, cfg)


def losses(out) -> dict[int, float]:
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


SIZES = {
    "smoke/flow": (1e4, 3e5),
    "flow_nano_start": (2e6, 6e6),
    "flow_nano_encoder": (4e6, 7e6),
    "flow_nano_joint": (4e6, 7e6),
    "flow_nano_before": (4e6, 7e6),
    "flow_nano_lines": (4e6, 7e6),
    "flow_nano_speeds": (4e6, 7e6),
    "nano/flow": (4e6, 7e6),
    "paper/flow": (112549360, 112549360),
}


@pytest.mark.parametrize("name", SIZES)
def test_every_flow_config_loads_and_builds(name):
    cfg = configs.load(script.Config, name)
    with torch.device("meta"):
        count = common.count_parameters(Flow(cfg.model))["total"]
    assert SIZES[name][0] <= count <= SIZES[name][1]


def test_a_batch_is_a_function_of_the_step_and_aligned(corpus):
    data = utterances(settings(corpus), corpus)
    kinds = set()
    for step in range(6):
        batch, again = data.batch(step), data.batch(step)
        assert torch.equal(batch.tokens, again.tokens) and torch.equal(batch.mel, again.mel)
        assert batch.mel.shape[2] == 2 * batch.tokens.shape[1]
        kinds.add(batch.prompt_frames is None)
        if batch.prompt_frames is not None:
            assert (batch.prompt_frames > 0).all() and (batch.prompt_frames < 2 * batch.lengths).all()
    assert kinds == {True, False}


def test_each_token_sounds_in_its_own_mel_frames(corpus):
    data = utterances(settings(corpus), corpus)
    tokens, mel = data.load(data.segments.records[:1])[0]
    loudest = mel[1::2].argmax(1)  # second frame of each token: inside the tone on both sides
    for token in tokens.unique():
        bands = loudest[tokens == token]
        assert (bands == bands.mode().values).float().mean() > 0.6
    order = [loudest[tokens == t].mode().values.item() for t in tokens.unique()]
    assert order == sorted(order) and len(set(order)) == len(order)


def test_a_killed_run_continues_with_the_same_losses(corpus, tmp_path, monkeypatch):
    whole = settings(corpus)
    script.train(whole, tmp_path / "whole")
    check = common.check_finite

    def killed(loss, step):
        check(loss, step)
        if step == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(common, "check_finite", killed)
        with pytest.raises(KeyboardInterrupt):
            script.train(whole, tmp_path / "killed")
    script.train(whole, tmp_path / "killed")

    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert set(losses(tmp_path / "whole")) == set(range(1, whole.steps + 1))
    one, two = (storage.read(tmp_path / run / "model.safetensors") for run in ("whole", "killed"))
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_the_exported_folder_builds_the_same_flow_and_the_loss_falls(corpus, tmp_path):
    cfg = settings(
        corpus,
        "steps=60",
        "lr=5e-3",
        "warmup=5",
        "eval_every=30",
        "save_every=60",
        "average=0.9",
        "bf16=false",
        "storage=float32",
    )
    metrics = script.train(cfg, tmp_path)
    seen = losses(tmp_path)
    assert sum(seen[s] for s in range(51, 61)) < 0.7 * sum(seen[s] for s in range(1, 11))
    assert set(metrics) == {"dev_loss", "dev_prior_loss", "dev_mel_l1"}
    assert json.loads((tmp_path / "meta.json").read_text())["metrics"] == metrics
    flow = Flow(configs.load(FlowConfig, tmp_path / "config.yaml"))
    storage.load_weights(flow, tmp_path / "model.safetensors")
    again = script.evaluate(
        flow.eval(), dev_utterances(cfg, corpus), cfg, torch.device("cpu"), tmp_path / "again.safetensors"
    )
    assert again == pytest.approx(metrics, rel=1e-4)


def test_the_encoder_learns_alone_then_both_from_the_weights_of_earlier_runs(corpus, tmp_path):
    """`encoder_steps` leaves the U-Net as it was; `init` takes the parts it names from the runs it names."""
    common_part = ["lr=5e-3", "warmup=2", "eval_every=60", "average=0.5", "bf16=false", "storage=float32"]
    first, second = tmp_path / "first", tmp_path / "second"
    script.train(
        settings(corpus, "steps=40", "encoder_steps=40", "model.prior_weight=1.0", *common_part), first
    )
    seen = losses(first)
    assert sum(seen[s] for s in range(31, 41)) < 0.8 * sum(seen[s] for s in range(1, 11))
    common.seed_everything(0)
    fresh = Flow(settings(corpus).model).state_dict()
    trained = storage.read(first / "model.safetensors")
    assert all(torch.equal(trained[k], fresh[k]) for k in fresh if k.startswith("decoder."))
    assert not torch.equal(trained["encoder_proj.weight"], fresh["encoder_proj.weight"])

    late = ["steps=1", f"init={{encoder: {first}}}", "seed=3", *common_part, "lr=1e-9", "warmup=0"]
    script.train(settings(corpus, *late), second)
    mixed = storage.read(second / "model.safetensors")
    assert torch.allclose(mixed["encoder_proj.weight"], trained["encoder_proj.weight"], atol=1e-6)
    assert not torch.allclose(mixed["input_embedding.weight"], trained["input_embedding.weight"], atol=1e-3)
    with pytest.raises(CheckpointError, match="no earlier run .*none"):
        script.train(settings(corpus, f"init={{encoder: {tmp_path}/none}}"), tmp_path / "third")


def test_a_wider_encoder_starts_as_the_narrow_one_it_came_from(tmp_path):
    narrow, wide = (
        configs.load(script.Config, "smoke/flow", [f"model.encoder.linear_units={n}"]).model for n in (32, 48)
    )
    old, new = Flow(narrow).eval(), Flow(wide).eval()
    state = tmp_path / "state" / "model.safetensors"
    state.parent.mkdir()
    save_file({f"average.{k}": v.contiguous() for k, v in old.state_dict().items()}, state)
    tokens, speaker = torch.arange(20)[None] % narrow.vocab, torch.randn(1, narrow.speaker_dim)
    with torch.no_grad():
        expected = old.encode(tokens, speaker)
        common.start_from(new, tmp_path, within="average.")
        assert not torch.allclose(new.encode(tokens, speaker), expected, atol=1e-5), (
            "without growing the wider layers stay fresh"
        )
        common.start_from(new, tmp_path, within="average.", grow=True)
        torch.testing.assert_close(new.encode(tokens, speaker), expected)
    inner = [p for name, p in new.named_parameters() if name.endswith("w_1.weight")]
    assert all(p.shape[0] == 48 and p[32:].abs().sum() > 0 for p in inner), "new rows must be able to learn"


def test_a_run_can_start_from_what_another_one_exported(tmp_path):
    config = configs.load(script.Config, "smoke/flow").model
    old, new = Flow(config), torch.nn.ModuleDict({"generator": Flow(config)})
    common.export_model(tmp_path, old, config, {}, form="int8")
    common.start_from(new, tmp_path, exported="generator.")
    for name, value in storage.read(tmp_path / "model.safetensors").items():
        torch.testing.assert_close(new.state_dict()[f"generator.{name}"], value.float())
    with pytest.raises(CheckpointError, match="nothing of .* fits"):
        common.start_from(new, tmp_path)


def dev_utterances(cfg: script.Config, corpus) -> script.Utterances:
    data = utterances(cfg, corpus)
    data.segments.records = [r for r in data.segments.records if r["split"] == "dev"]
    return data


def test_missing_tokens_are_one_clear_line(corpus, tmp_path):
    with pytest.raises(DataError, match="cannot read .*none.safetensors.*omnilib.train.encode --tokenizer"):
        script.train(settings(corpus, "tokens=none.safetensors"), tmp_path)
    save_file({"other": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(DataError, match="none of .* records has tokens"):
        script.train(settings(corpus, f"tokens={tmp_path}/other.safetensors"), tmp_path)


def test_the_flow_learns_mels_of_its_own_window(corpus):
    cfg = settings(corpus, "model.mel_window=1024")
    data = utterances(cfg, corpus)
    record = data.segments.records[0]
    mel = data.load([record])[0][1]  # (2N, 80)
    want = mel_80(load_segment(record, corpus), window=1024).T[: len(mel)]
    torch.testing.assert_close(mel, want)
