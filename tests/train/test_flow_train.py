"""The flow's training script on a corpus of tones: it runs, resumes exactly, learns, and refuses bad input clearly."""

import json
import wave

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from omnilib import config as configs
from omnilib import storage
from omnilib.audio import mel_80
from omnilib.data import load_segment, write_manifest
from omnilib.errors import CheckpointError, ConfigError, DataError
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
    item = data.load(data.segments.records[:1])[0]
    tokens, mel = item.tokens, item.mel
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


def test_the_encoder_learns_alone_then_both_and_the_log_says_which(corpus, tmp_path):
    shared = [
        "steps=0",
        "lr=5e-3",
        "warmup=2",
        "eval_every=60",
        "save_every=60",
        "average=0.5",
        "bf16=false",
        "storage=float32",
    ]
    alone = "{name: encoder, steps: 40, encoder_only: true}"
    script.train(settings(corpus, f"phases=[{alone}]", "model.prior_weight=1.0", *shared), tmp_path / "alone")
    seen = losses(tmp_path / "alone")
    assert sum(seen[s] for s in range(31, 41)) < 0.8 * sum(seen[s] for s in range(1, 11))
    common.seed_everything(0)
    fresh = Flow(settings(corpus).model).state_dict()
    trained = storage.read(tmp_path / "alone" / "model.safetensors")
    assert all(torch.equal(trained[k], fresh[k]) for k in fresh if k.startswith("decoder."))
    assert not torch.equal(trained["encoder_proj.weight"], fresh["encoder_proj.weight"])
    both = f"phases=[{alone},{{name: all, steps: 5, lr: 1e-3}}]"
    script.train(settings(corpus, both, "model.prior_weight=1.0", *shared), tmp_path / "both")
    rows = [json.loads(line) for line in (tmp_path / "both" / "log.jsonl").read_text().splitlines()]
    rows = [r for r in rows if "loss" in r]
    assert [r["phase"] for r in rows] == ["encoder"] * 40 + ["all"] * 5
    assert {s: l for s, l in losses(tmp_path / "both").items() if s <= 40} == seen
    assert rows[39]["lr"] < rows[42]["lr"], "each phase has its own schedule"
    moved = storage.read(tmp_path / "both" / "model.safetensors")
    assert any(not torch.equal(moved[k], fresh[k]) for k in fresh if k.startswith("decoder."))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["phases=[{name: a}]"], "phase 1: give it a name and a number of steps"),
        (["phases=[{steps: 3}]"], "phase 1: give it a name and a number of steps"),
        (["phases=[{name: a, steps: 3, encoder_lr: 1}]"], "encoder_lr"),
        (["phases=[{name: a, steps: 3, lr: fast}]"], "fast"),
        (["phases=[{name: a, steps: 3}, {name: a, steps: 3}]"], "one name"),
        (["phases=[{name: a, steps: 3, seed: 1, model: {vocab: 9}}]"], "model, seed cannot change"),
        (["steps=0"], "a run needs `steps`"),
    ],
)
def test_a_mistake_in_the_phases_is_one_line(corpus, tmp_path, overrides, words):
    with pytest.raises(ConfigError, match=words) as caught:
        script.train(settings(corpus, "steps=0", *overrides), tmp_path)
    assert "\n" not in str(caught.value)


def test_a_rehearsal_runs_all_phases_in_fewer_steps(corpus):
    phases = "phases=[{name: a, steps: 800, lr: 2e-3}, {name: b, steps: 150}, {name: c, steps: 50}]"
    whole, short = (common.Schedule(settings(corpus, f"steps={n}", phases)) for n in (0, 20))
    assert [(p.name, p.first, p.end) for p in whole.phases] == [
        ("a", 0, 800),
        ("b", 800, 950),
        ("c", 950, 1000),
    ]
    assert [(p.name, p.first, p.end) for p in short.phases] == [("a", 0, 16), ("b", 16, 19), ("c", 19, 20)]
    assert short.at(3).config.lr == 2e-3 and short.at(18).name == "b" and short.at(19).config.lr != 2e-3


def test_codes_of_another_tokenizer_are_refused(corpus, tmp_path):
    tokens = load_file(corpus / "tokens.safetensors")
    for name, digest in (("own", common.sha256(corpus / "manifest.jsonl")), ("other", "0" * 64)):
        save_file(tokens, tmp_path / f"{name}.safetensors", {"model_sha256": digest})
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "model.safetensors").write_bytes((corpus / "manifest.jsonl").read_bytes())
    given = [f"tokenizer={tmp_path}/tokenizer", "steps=1"]
    script.train(settings(corpus, f"tokens={tmp_path}/own.safetensors", *given), tmp_path / "a")
    with pytest.raises(DataError, match="codes of another tokenizer"):
        script.train(settings(corpus, f"tokens={tmp_path}/other.safetensors", *given), tmp_path / "b")
    with pytest.raises(CheckpointError, match="no tokenizer"):
        script.train(settings(corpus, f"tokenizer={tmp_path}/nowhere"), tmp_path / "c")


def test_weights_choose_by_part_and_language():
    records = [
        {"id": f"{part}{language}{i}", "part": part, "language": language}
        for part in ("raw", "synthetic")
        for language in ("en", "zh")
        for i in range(50)
    ]
    kept = common.weighted(records, {"raw": 0.2, "synthetic/zh": 2.5, "en": 1})
    count = lambda part, language: sum(r["part"] == part and r["language"] == language for r in kept)  # noqa: E731
    assert (
        3 <= count("raw", "en") <= 18
        and count("synthetic", "en") == 50
        and 105 <= count("synthetic", "zh") <= 145
    )
    assert kept == common.weighted(records, {"raw": 0.2, "synthetic/zh": 2.5, "en": 1})


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
    mel = data.load([record])[0].mel  # (2N, 80)
    want = mel_80(load_segment(record, corpus), window=1024).T[: len(mel)]
    torch.testing.assert_close(mel, want)
