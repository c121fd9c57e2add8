"""Both stages of the mouth on a tiny corpus: what learns and what stays, exact resume after kill -9, errors."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from data_prep.shards import write_shards
from omnilib import config as configs
from omnilib.data import read_manifest, write_manifest
from omnilib.errors import CheckpointError, ConfigError, DataError
from omnilib.mouth.rows import layout_of
from omnilib.mouth.speechlm import SpeechLM
from omnilib.paths import CONFIGS
from omnilib.text import load_tokenizer
from omnilib.train import common
from omnilib.train import speechlm as training
from tests.train import corpus as tiny

STEPS = 40


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> tiny.Corpus:
    return tiny.build(tmp_path_factory.mktemp("tiny"))


def run(
    corpus: tiny.Corpus, out: Path, stage: int, *overrides: str, init: Path | None = None
) -> dict[str, float]:
    argv = [
        "--config",
        "smoke/speechlm_stage1" if stage == 1 else "smoke/speechlm",
        "--out",
        str(out),
        "--set",
        *corpus.overrides(init),
        *overrides,
    ]
    return training.main(argv)


def log_rows(out: Path) -> list[dict]:
    """The log without its clock."""
    rows = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    return [{k: v for k, v in row.items() if k not in ("seconds", "rows_per_second")} for row in rows]


def losses(out: Path, name: str = "loss") -> list[float]:
    return [row[name] for row in log_rows(out) if name in row]


@pytest.fixture(scope="module")
def stage1(corpus, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("stage1")
    run(corpus, out, 1, f"steps={STEPS}", "eval_every=20", "save_every=20", "bf16=false")
    return out


@pytest.fixture(scope="module")
def stage2(corpus, stage1, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("stage2")
    run(corpus, out, 2, f"steps={STEPS}", "eval_every=20", "save_every=20", init=stage1)
    return out


def test_both_stages_learn(stage1, stage2):
    first, second = losses(stage1, "speech"), losses(stage2, "speech")
    assert sum(first[-5:]) < 0.6 * sum(first[:5])
    assert sum(second[-5:]) < sum(first[-5:])
    text = losses(stage2, "text")
    assert sum(text[-5:]) < sum(text[:5])  # in stage 1 the language model is frozen
    errors = losses(stage2, "dev_token_error")
    assert errors[-1] < losses(stage1, "dev_token_error")[0]


def exact_state(out: Path) -> dict[str, torch.Tensor]:
    """Float32 weights at the end of a run (the export is rounded to bfloat16)."""
    from safetensors.torch import load_file

    return load_file(str(out / "state" / "model.safetensors"))


def test_stage_1_changes_only_adapter_and_new_rows(corpus, stage1):
    config = configs.load(training.Config, "smoke/speechlm_stage1", corpus.overrides())
    training.seed_everything(config.seed)
    before = training.build(config, load_tokenizer(corpus.text))
    after, old_rows = exact_state(stage1), before.config.tokenizer_text_size - 3
    tables = {"model.embed_tokens.weight", "lm_head.weight"}
    for name, weight in before.state_dict().items():
        if name not in after:  # tied
            continue
        if name in tables:
            assert torch.equal(after[name][:old_rows], weight[:old_rows])
            assert (after[name][old_rows:] != weight[old_rows:]).any(1).float().mean() > 0.9
        elif name.startswith("tts_adapter."):
            assert not torch.equal(after[name], weight), name
        else:
            assert torch.equal(after[name], weight), name


def test_stage_2_changes_everything_and_the_adapter_learns_five_times_as_fast(corpus, stage1, stage2):
    before, after = SpeechLM.load(stage1).state_dict(), exact_state(stage2)
    assert all(not torch.equal(after[name], before[name]) for name in after)
    config = configs.load(training.Config, "smoke/speechlm", corpus.overrides(stage1))
    model = training.build(config, load_tokenizer(corpus.text))
    groups = [g for o in training.optimizers_of(model, config).values() for g in o.param_groups]
    adapter = {id(p) for p in model.tts_adapter.parameters()}
    assert {id(p) for g in groups for p in g["params"]} == {id(p) for p in model.parameters()}
    assert all(g["scale"] == (5.0 if id(p) in adapter else 1.0) for g in groups for p in g["params"])
    assert config.adapter_lr_scale == 5.0  # paper


@pytest.mark.parametrize(("last", "kept"), [("4", 3), ("5", 4)], ids=["within a phase", "between phases"])
def test_killed_run_resumes_with_the_same_losses(corpus, tmp_path, last, kept):
    phases = "phases=[{name: short, steps: 4, bpe_dropout: 0.3}, {name: long, steps: 2, lr: 2e-3, shares: [0.0, 1.0]}]"
    flags = ["--config", "smoke/speechlm_stage1", "--set", *corpus.overrides(), "steps=0", phases]
    training.main([*flags, "--out", str(tmp_path / "whole")])
    script = Path(__file__).parent / "killed.py"
    killed = subprocess.run(
        [sys.executable, script, last, *flags, "--out", tmp_path / "cut"], capture_output=True, text=True
    )
    assert killed.returncode == -9, killed.stderr
    assert json.loads((tmp_path / "cut" / "state" / "meta.json").read_text())["step"] == kept
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    training.main([*flags, "--out", str(tmp_path / "cut")])
    assert log_rows(tmp_path / "cut") == log_rows(tmp_path / "whole")
    for name, weight in exact_state(tmp_path / "whole").items():
        assert torch.equal(weight, exact_state(tmp_path / "cut")[name]), name


def test_stage_2_refuses_a_stage_1_that_learnt_other_codes(corpus, stage1, tmp_path):
    codes = common.load_tensors(corpus.tokens)
    for name, digest in (("own", "a" * 64), ("other", "b" * 64)):
        save_file(codes, tmp_path / f"{name}.safetensors", {"model_sha256": digest})
    run(corpus, tmp_path / "one", 1, f"tokens={tmp_path}/own.safetensors", "steps=1")
    run(corpus, tmp_path / "two", 2, f"tokens={tmp_path}/own.safetensors", "steps=1", init=tmp_path / "one")
    with pytest.raises(DataError, match="learnt the codes of another tokenizer") as caught:
        run(
            corpus,
            tmp_path / "no",
            2,
            f"tokens={tmp_path}/other.safetensors",
            "steps=1",
            init=tmp_path / "one",
        )
    assert "\n" not in str(caught.value)


def test_long_samples_come_from_speakers_with_enough_speech(corpus):
    config = configs.load(training.Config, "smoke/speechlm_stage1", corpus.overrides())
    tokenizer = load_tokenizer(corpus.text)
    model = training.build(config, tokenizer)
    talk = training.Conversations(config, tokenizer, training.layout_of(model.config, tokenizer))
    few, many = sorted(talk.speakers["en"])
    talk.speakers["en"][few] = talk.speakers["en"][few][:1]
    talk.seconds[few] = talk.speakers["en"][few][0]["seconds"]
    seconds, rng = 2 * talk.seconds[few], training.step_rng(0, 0)
    lengths = [len(talk.sample(rng, "en", seconds)[0]) for _ in range(6)]
    talk.seconds[few] = seconds  # it claims to have as much to say
    short = [len(talk.sample(rng, "en", seconds)[0]) for _ in range(12)]
    assert min(lengths) > min(short), "a speaker of one sentence cannot fill a long sample"


def test_finished_run_exports_the_published_layout(stage2):
    model = SpeechLM.load(stage2)
    assert model.config.architectures == ["MGMTTSForCausalLM"]
    meta = json.loads((stage2 / "meta.json").read_text())
    assert meta["step"] == STEPS and meta["config"]["stage"] == 2 and meta["metrics"]["dev_speech_loss"] > 0
    assert (
        load_tokenizer(stage2).convert_tokens_to_ids("<|audio_sep|>") + 1 == model.config.tokenizer_text_size
    )


@pytest.mark.parametrize(
    ("overrides", "error", "words"),
    [
        (["learning_rate=1"], ConfigError, "learning_rate"),
        (["lr=fast"], ConfigError, "fast"),
        (["stage=3"], ConfigError, "must be 1 or 2"),
        (["optimizer=sgd"], ConfigError, "optimizer"),
        (["adapter='[1,48,2_2,64]'"], ConfigError, "48 wide"),
        (["init=/nowhere"], CheckpointError, "train the stage before"),
        (["tokens=/nowhere.safetensors"], DataError, "no speech tokens"),
        (["tokens=DAMAGED"], DataError, "cannot read.*omnilib.train.encode"),
        (["steps=0"], ConfigError, "a run needs `steps`"),
        (["manifest=/nowhere.jsonl"], DataError, "no manifest"),
        (["languages=[zh]"], DataError, "zh"),
        (["codes=8"], DataError, "codes"),
    ],
)
def test_mistakes_are_told_in_one_line(corpus, tmp_path, overrides, error, words):
    (tmp_path / "damaged.safetensors").write_bytes(corpus.tokens.read_bytes()[:200])  # a disk that was full
    overrides = [o.replace("DAMAGED", str(tmp_path / "damaged.safetensors")) for o in overrides]
    with pytest.raises(error, match=words) as caught:
        run(corpus, tmp_path, 1, *overrides)
    assert "\n" not in str(caught.value)


def test_state_of_another_model_is_refused(corpus, tmp_path):
    run(corpus, tmp_path, 1, "steps=1")
    with pytest.raises(CheckpointError, match="holds a run with another adapter"):
        run(corpus, tmp_path, 1, "adapter='[2,32,2_2,64]'")
    (tmp_path / "settings.json").unlink()  # a folder that does not say: the weights do
    with pytest.raises(CheckpointError, match="does not fit|cannot resume"):
        run(corpus, tmp_path, 1, "adapter='[2,32,2_2,64]'")


@pytest.mark.parametrize(
    "name", sorted(f"{p.parent.name}/{p.stem}" for p in CONFIGS.glob("*/speechlm*.yaml"))
)
def test_every_config_loads(name):
    config = configs.load(training.Config, name)
    assert name.endswith("stage1") == (config.stage == 1)
    assert len(config.seconds) == len(config.shares) + 1 and len(config.languages) == len(
        config.language_shares
    )
    if name.startswith("paper"):
        assert (config.codes, config.streams, config.chunk_min, config.chunk_max) == (6561, 4, 50, 100)
        assert config.adapter_lr_scale == {1: 1.0, 2: 5.0}[config.stage]


def test_weight_change_is_relative_and_by_group():
    before = {
        "model.layers.0.w": torch.ones(2, 2),
        "tts_adapter.layers.0.w": torch.ones(2, 2),
        "model.embed_tokens.weight": torch.ones(5, 2),
    }
    after = {k: v.clone() for k, v in before.items()} | {"tts_adapter.layers.1.w": torch.ones(1)}
    after["tts_adapter.layers.0.w"] *= 1.5
    after["model.embed_tokens.weight"][3:] *= 3.0
    change = training.weight_change(before, after, text_rows=3)
    assert change == pytest.approx({"backbone": 0.0, "adapter": 0.5, "text rows": 0.0, "speech rows": 2.0})


# ---------------------------------------------------------------- shards


@pytest.fixture(scope="module")
def shards(corpus, tmp_path_factory) -> Path:
    """The tiny corpus with tokens in its records, as curation writes it, in shards of a few seconds."""
    from safetensors.torch import load_file

    folder = tmp_path_factory.mktemp("shards")
    codes = load_file(str(corpus.tokens))
    root = corpus.manifest.parent
    records = [
        r | {"tokens": codes[r["id"]].tolist(), "path": str(Path(r["path"]))}
        for r in read_manifest(corpus.manifest)
    ]
    write_manifest(root / "with_tokens.jsonl", records)
    write_shards(root / "with_tokens.jsonl", folder, seconds=6)
    return folder


def conversations(corpus: tiny.Corpus, *overrides: str) -> training.Conversations:
    config = configs.load(training.Config, "smoke/speechlm_stage1", [*corpus.overrides(), *overrides])
    tokenizer = load_tokenizer(corpus.text)
    return training.Conversations(
        config, tokenizer, layout_of(training.build(config, tokenizer).config, tokenizer)
    )


def test_windows_of_shards_pass_over_every_record_and_batches_depend_on_the_step_alone(corpus, shards):
    data = conversations(corpus, f"shards={shards}", "window=2", "window_steps=3")
    windows, whole = data.windows, conversations(corpus)
    assert windows.per_pass > 1 and data.hours == pytest.approx(whole.hours, rel=0.01)
    ids = [
        sorted(
            r["id"]
            for n in range(p * windows.per_pass, (p + 1) * windows.per_pass)
            for r, _ in windows.pairs(n)
        )
        for p in (0, 1)
    ]
    assert (
        ids[0] == ids[1] == sorted(r["id"] for r in read_manifest(corpus.manifest) if r["split"] == "train")
    )
    batches = [data.batch(step) for step in range(8)]
    again = conversations(corpus, f"shards={shards}", "window=2", "window_steps=3")
    for step in (7, 2, 4):  # a resumed run starts anywhere
        assert all(torch.equal(a, b) for a, b in zip(again.batch(step), batches[step], strict=True))


def test_training_streams_shards(corpus, shards, tmp_path):
    run(
        corpus,
        tmp_path / "out",
        1,
        f"shards={shards}",
        "window=2",
        "window_steps=2",
        "steps=6",
        "save_every=6",
        "eval_every=6",
    )
    assert len(losses(tmp_path / "out")) == 6
    assert "shards_sha256" in json.loads((tmp_path / "out" / "meta.json").read_text())


def test_shards_without_tokens_say_what_to_do(corpus, tmp_path):
    write_shards(corpus.manifest, tmp_path / "bare", seconds=600)
    with pytest.raises(DataError, match="step `tokens`"):
        run(corpus, tmp_path / "out", 1, f"shards={tmp_path / 'bare'}")


def test_sentences_longer_than_a_chunk_are_passed_over_or_reported(corpus):
    data = conversations(corpus)
    for item in data.speakers["en"]["low"]:
        item["text"] = " ".join(["tone"] * 500)  # a speaker none of whose sentences fits
    assert all(data.batch(step)[0].numel() for step in range(3))
    for item in data.speakers["en"]["high"]:
        item["text"] = " ".join(["tone"] * 500)
    with pytest.raises(DataError, match="raise chunk_max"):
        data.batch(3)
