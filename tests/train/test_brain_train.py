"""Both stages of the brain on tiny random parts: what learns, exact resume after kill -9, export, errors."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from omnilib import config as configs
from omnilib.brain import trained
from omnilib.errors import CheckpointError, ConfigError, DataError, UserError
from omnilib.paths import CONFIGS, ROOT
from omnilib.train import brain as training
from omnilib.train.brain_samples import FeatureCache, Samples, read_samples
from tests.train import brain_corpus


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    return brain_corpus.build(tmp_path_factory.mktemp("brain"))


STAGES = {1: "smoke/brain_stage1", 2: "smoke/brain"}


def run(manifest: Path, out: Path, stage: int, *overrides: str) -> dict[str, float]:
    return training.main(argv(manifest, out, stage, *overrides))


def argv(manifest: Path, out: Path, stage: int, *overrides: str) -> list[str]:
    return [
        "--config",
        STAGES[stage],
        "--out",
        str(out),
        "--set",
        f"manifest={manifest}",
        *overrides,
    ]


def config_of(manifest: Path, stage: int, *overrides: str) -> training.Config:
    return configs.load(
        training.Config,
        STAGES[stage],
        [f"manifest={manifest}", *overrides],
    )


def losses(out: Path) -> list[float]:
    rows = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if "loss" in row]


def batch_of(manifest: Path, processor) -> dict[str, torch.Tensor]:
    return Samples(read_samples(manifest), manifest.parent, processor, 1200).collate(read_samples(manifest))


@pytest.fixture(scope="module")
def stage1(manifest, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("stage1")
    run(manifest, out, 1, "vision=[2,16,2,24]")
    return out


@pytest.fixture(scope="module")
def stage2(manifest, stage1, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("stage2")
    run(manifest, out, 2, f"init={stage1}")
    return out


def test_stage_2_overfits_one_batch_of_all_modalities(manifest):
    config = config_of(manifest, 2, "lora_rank=0", "lr=0.01")
    model, processor, _ = training.build(config)
    learner, optimizer = training.Learner(model).train(), training.optimizer_of(model, config)
    batch = batch_of(manifest, processor)
    seen = []
    for _ in range(60):
        loss = learner(**batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.append(loss.item())
    assert seen[-1] < 0.1 * seen[0]


def test_stage_1_learns_the_projector_and_moves_nothing_else(manifest, stage1):
    start, _, _ = training.build(config_of(manifest, 1, "vision=[2,16,2,24]"))
    assert training.report(start)[0].endswith("frozen") and "learn" in training.report(start)[2]
    after, before = trained.load_trained(stage1)[0].state_dict(), start.state_dict()
    for name, value in before.items():
        assert torch.equal(after[name], value) != ("projector" in name), name
    assert all("projector" in name for name in load_file(stage1 / "model.safetensors"))


def test_eyes_alone_learn_by_ctc_and_keep_what_the_projector_learned(manifest, stage1, tmp_path):
    eyes = ("learn_vision=true", "ctc=1.0", "ctc_steps=6", f"init={stage1}", "vision=[2,16,2,24]")
    run(manifest, tmp_path, 1, "tasks=[see]", *eyes)
    before, after = (
        trained.load_trained(stage1)[0].state_dict(),
        trained.load_trained(tmp_path)[0].state_dict(),
    )
    for name, value in before.items():
        assert torch.equal(after[name], value) != (training.part_of(name) == "vision tower"), name
    rows = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    assert [row["ctc"] for row in rows if "ctc" in row]


def test_likeness_joins_at_its_step(manifest, tmp_path):
    logs = []
    for weight in (0.0, 1.0):
        out = tmp_path / str(weight)
        run(manifest, out, 1, "ctc_steps=6", "steps=6", f"likeness={weight}", "likeness_from=4")
        rows = map(json.loads, (out / "log.jsonl").read_text().splitlines())
        logs.append([row["ctc"] for row in rows if "ctc" in row])
    assert logs[0][:4] == logs[1][:4] and logs[0][4] < logs[1][4]


def test_stage_2_moves_lora_projector_and_eyes_but_no_frozen_matrix(manifest, stage1, stage2):
    before, after = trained.load_trained(stage1)[0].state_dict(), trained.load_trained(stage2)[0].state_dict()
    assert before.keys() == after.keys()
    for name, value in before.items():
        part, matrix = training.part_of(name), "layers" in name and "_proj.weight" in name
        learns = part in ("projector", "vision tower") or (part == "language model" and matrix)
        assert torch.equal(after[name], value) != learns, name
    names = load_file(stage2 / "model.safetensors")
    assert any(".lora_A." in name for name in names) and not any("speech_tower" in name for name in names)


@pytest.mark.parametrize("merge", [False, True])
def test_export_gives_the_same_answers_as_the_model_that_was_trained(manifest, tmp_path, merge):
    config = config_of(manifest, 2, f"merge={merge}".lower())
    model, processor, before = training.build(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model.eval()
    batch = batch_of(manifest, processor)
    wanted = model(**batch, return_logits=True).logits
    training.export(tmp_path, model, config, model.state_dict(), before, {})
    loaded, _ = trained.load_trained(tmp_path)
    assert not trained.lora_layers(loaded)
    torch.testing.assert_close(loaded(**batch, return_logits=True).logits, wanted, atol=2e-4, rtol=1e-3)
    assert any("lora" in name for name in load_file(tmp_path / "model.safetensors")) != merge


def test_a_second_round_keeps_what_earlier_rounds_learned(manifest, stage2, tmp_path):
    run(
        manifest,
        tmp_path,
        2,
        f"init={stage2}",
        "learn_vision=false",
        "steps=1",
        "eval_every=1",
        "save_every=1",
        "lr=0.0",
    )
    first, second = (
        trained.load_trained(stage2)[0].state_dict(),
        trained.load_trained(tmp_path)[0].state_dict(),
    )
    for name, value in first.items():
        torch.testing.assert_close(second[name], value)


def test_killed_run_resumes_with_the_same_losses(manifest, tmp_path):
    flags = ["lora_dropout=0.2"]  # random numbers go on too
    run(manifest, tmp_path / "whole", 2, *flags)
    script = Path(__file__).parent / "killed_brain.py"
    command = [sys.executable, script, "5", *argv(manifest, tmp_path / "cut", 2, *flags)]
    killed = subprocess.run(command, capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    assert json.loads((tmp_path / "cut" / "state" / "meta.json").read_text())["step"] == 3
    run(manifest, tmp_path / "cut", 2, *flags)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole") and len(losses(tmp_path / "cut")) == 6


def test_recomputed_activations_change_no_loss(manifest, tmp_path):
    short = ["steps=3", "bf16=false"]
    run(manifest, tmp_path / "kept", 2, *short)
    run(manifest, tmp_path / "again", 2, *short, "checkpointing=true")
    assert losses(tmp_path / "again") == pytest.approx(losses(tmp_path / "kept"), abs=1e-5)


def test_cached_runs_together_give_the_losses_of_a_run_alone(manifest, tmp_path):
    model, processor, _ = training.build(config_of(manifest, 2, "learn_vision=false"))
    cache, records = FeatureCache(tmp_path, model, processor), read_samples(manifest)
    samples = Samples(records, manifest.parent, processor, 1200, cache=cache)
    for task in ("text", "see", "transcribe"):
        batch = samples.collate([r for r in records if r["task"] == task])
        alone, together = (training.Learner(model, t, True, True).train()(**batch) for t in (False, True))
        torch.testing.assert_close(alone, together)
        assert together.requires_grad


def test_a_state_holds_only_what_learns(stage1):
    count = sum(v.numel() for v in load_file(stage1 / "state" / "model.safetensors").values())
    assert count == sum(v.numel() for v in load_file(stage1 / "model.safetensors").values())


def test_cached_features_give_the_loss_of_fresh_ones_and_damaged_files_are_made_again(manifest, tmp_path):
    model, processor, _ = training.build(config_of(manifest, 2, "learn_vision=false"))
    cache = FeatureCache(tmp_path, model, processor)
    records, learner = read_samples(manifest), training.Learner(model.eval())
    fresh = Samples(records, manifest.parent, processor, 1200)
    kept = Samples(records, manifest.parent, processor, 1200, cache=cache)
    assert kept.lengths == fresh.lengths
    batch = kept.collate(records)
    assert "input_features" not in batch and "pixel_values" not in batch
    wanted = learner(**fresh.collate(records))
    torch.testing.assert_close(learner(**batch), wanted, atol=2e-3, rtol=2e-3)
    files = sorted(tmp_path.iterdir())
    files[0].write_bytes(b"cut")
    torch.testing.assert_close(learner(**kept.collate(records)), wanted, atol=2e-3, rtol=2e-3)
    with torch.no_grad():
        model.model.speech_tower.speech_tower.layer_norm.weight.add_(1)
    changed = FeatureCache(tmp_path, model, processor)
    clip = str(manifest.parent / "low-train.wav")
    assert changed.path("audio", clip) != cache.path("audio", clip)


def test_a_run_with_a_cache_encodes_every_recording_once(manifest, tmp_path):
    run(manifest, tmp_path / "out", 1, f"cache={tmp_path / 'cache'}", "tasks=[transcribe]")
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 4
    assert losses(tmp_path / "out")[-1] < losses(tmp_path / "out")[0]


def test_labels_are_the_answers_alone_and_lengths_are_those_of_the_batch(manifest):
    _, processor, _ = training.build(config_of(manifest, 2))
    records = read_samples(manifest)
    samples = Samples(records, manifest.parent, processor, 1200)
    batch = samples.collate(records)
    assert batch["attention_mask"].sum(1).tolist() == samples.lengths
    for record, labels in zip(records, batch["labels"], strict=True):
        wanted = record["turns"][-1]["text"] + "<|im_end|>"
        assert processor.tokenizer.decode(labels[labels >= 0].tolist()) == wanted


def test_a_diverged_run_stops_and_keeps_its_last_state(manifest, tmp_path):
    with pytest.raises(UserError, match="loss is nan"):
        run(manifest, tmp_path, 1, "lr=1e36", "warmup=0", "save_every=1", "bf16=false")
    assert (tmp_path / "state" / "meta.json").is_file()


GOOD = brain_corpus.row("a", "text", "one", "two")
FAULTS = {
    "not JSON": "{",
    "not a record": [],
    "missing split": {k: v for k, v in GOOD.items() if k != "split"},
    "not a word": GOOD | {"task": 3},
    "turns must be": GOOD | {"turns": [3]},
    "the assistant ends": GOOD | {"turns": GOOD["turns"][:1]},
    "roles are": GOOD | {"turns": [{"role": "robot", "text": "x"}, *GOOD["turns"]]},
    "without words": brain_corpus.row("a", "text", "one", " "),
    "images must be a list": GOOD | {"images": "cat.png"},
    "1 <image> but 0 images": brain_corpus.row("a", "see", "<image>?", "cat"),
    "0 <speech> but 1 audio": brain_corpus.row(
        "a",
        "see",
        "<image>",
        "cat",
        images=["a.png"],
        audio=["low-train.wav"],
    ),
    "leaves the folder": GOOD | {"images": ["../outside.png"]},
    "path '/etc/passwd' leaves": GOOD | {"audio": ["/etc/passwd"]},
    "no file 'gone.wav'": GOOD | {"audio": ["gone.wav"]},
    "not a path": GOOD | {"video": [None]},
    "a piece of a recording": GOOD | {"audio": [{"path": "a.wav", "start": -1, "duration": 1, "rate": 8000}]},
    "stands twice": None,
}


@pytest.mark.parametrize("words", FAULTS)
def test_every_fault_of_a_manifest_is_one_line_with_its_place(tmp_path, words):
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "low-train.wav").write_bytes(b"")
    bad = FAULTS[words]
    lines = [GOOD | {"id": "first"}, GOOD | {"id": "first"} if bad is None else bad]
    path = tmp_path / "manifest.jsonl"
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))
    with pytest.raises(DataError) as caught:
        read_samples(path)
    assert words in str(caught.value) and ":2:" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"\xff\xfe", "in UTF-8"), (b"", ":1: not JSON"), (None, "no manifest")],
)
def test_a_manifest_that_is_none_is_one_line(tmp_path, data, words):
    path = tmp_path / "manifest.jsonl"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(DataError, match=words) as caught:
        read_samples(path)
    assert "\n" not in str(caught.value)


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    (tmp_path / "secret.wav").write_bytes(b"x")
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "in.wav").symlink_to(tmp_path / "secret.wav")
    (folder / "manifest.jsonl").write_text(json.dumps(GOOD | {"audio": ["in.wav"]}) + "\n")
    with pytest.raises(DataError, match="leaves the folder"):
        read_samples(folder / "manifest.jsonl")


@pytest.mark.parametrize(
    ("overrides", "error", "words"),
    [
        (["stage=3"], ConfigError, "must be 1 or 2"),
        (["tasks=[dance]"], DataError, "no train samples of dance"),
        (["positions=40"], DataError, "raise `positions`"),
        (["vision=[2,16,3,24]"], ConfigError, "vision is"),
        (["lora_targets=[nothing]"], ConfigError, "q_proj"),
        (["vision=[]"], ConfigError, "learn_vision needs"),
        (["ctc=0.3"], ConfigError, "ctc is of stage 1"),
        (["likeness=0.3"], ConfigError, "likeness need ctc"),
        (["init=runs/no_such_brain"], CheckpointError, "no trained brain"),
        (["aux=runs/no_such_encoder"], CheckpointError, "cannot read"),
    ],
)
def test_settings_that_cannot_work_are_one_line(manifest, tmp_path, overrides, error, words):
    with pytest.raises(error, match=words) as caught:
        run(manifest, tmp_path, 2, *overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(f"{p.parent.name}/{p.stem}" for p in CONFIGS.glob("*/brain*.yaml")))
def test_every_config_is_read_and_sets_what_it_names(name):
    config = configs.load(training.Config, name)
    assert config.stage == (2 if name.endswith("/brain") else 1) and config.steps > 0
    if config.init:  # the stage before stands on the same base
        before = configs.load(training.Config, f"{name.split('/')[0]}/{Path(config.init).name}")
        assert training.base_of(before) == training.base_of(config)


def test_idle_parts_add_nothing_and_get_a_gradient_when_processes_train_together(manifest):
    model, processor, _ = training.build(config_of(manifest, 2, "lora_rank=0"))
    records = [r for r in read_samples(manifest) if r["task"] == "text"]
    batch = Samples(records, manifest.parent, processor, 1200).collate(records)
    alone, together = (training.Learner(model, several).train()(**batch) for several in (False, True))
    assert torch.equal(alone, together)
    together.backward()
    learning = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in learning)


def test_fsdp_without_gpus_is_refused_before_anything_is_written(manifest, tmp_path, monkeypatch):
    config = yaml.safe_load((CONFIGS / "fsdp2.yaml").read_text())
    assert config["fsdp_config"]["fsdp_version"] == 2
    assert config["fsdp_config"]["fsdp_transformer_layer_cls_to_wrap"] in trained.Brain._no_split_modules
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="needs GPUs"):
            run(manifest, tmp_path / "out", 2)
        assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_zero3_trains_two_processes_with_batches_of_other_media_and_exports(manifest, tmp_path):
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / "deepspeed" / "zero3.yaml")]
    launch += ["--num_processes", "2", "--main_process_port", "0", "-m", "omnilib.train.brain"]
    command = [sys.executable, *launch, *argv(manifest, tmp_path, 2, "steps=4", "save_every=2")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path)[-1] < losses(tmp_path)[0]
    before, after = (
        trained.build_base(trained.Base(**trained.read_meta(tmp_path)["base"])),
        trained.load_trained(tmp_path),
    )
    for (name, old), new in zip(before[0].state_dict().items(), after[0].state_dict().values(), strict=True):
        assert new.shape == old.shape and torch.equal(new, old) >= ("speech_tower" in name), name


def test_another_base_under_an_earlier_stage_is_refused(manifest, stage1, tmp_path):
    with pytest.raises(ConfigError, match="another ds_rate"):
        run(manifest, tmp_path, 2, f"init={stage1}", "ds_rate=4")


def test_weights_of_another_size_are_refused(stage1, tmp_path):
    for name in ("meta.json", "model.safetensors"):
        (tmp_path / name).write_bytes((stage1 / name).read_bytes())
    wrong = {name: torch.zeros(1) for name in load_file(stage1 / "model.safetensors")}
    save_file(wrong, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="does not fit this brain"):
        trained.load_trained(tmp_path)


def test_the_quick_layers_train_as_the_models_own(manifest, tmp_path):
    for name in ("true", "false"):
        run(manifest, tmp_path / name, 1, f"fast={name}", "bf16=false")
    own, quick = losses(tmp_path / "false"), losses(tmp_path / "true")
    assert quick == pytest.approx(own, rel=1e-3) and own[0] != own[-1]


@pytest.mark.parametrize(
    ("overrides", "device", "sharded"),
    [
        (["fast=false"], "cpu", False),
        (["checkpointing=true"], "cpu", False),
        ([], "cpu", True),
        ([], "cuda", False),
    ],
)
def test_the_quick_layers_stay_away_where_they_do_not_apply(manifest, overrides, device, sharded):
    config = config_of(manifest, 1, *overrides)
    assert training.fast_language(None, config, torch.device(device), sharded) is None


def test_samples_are_repeated_by_task_and_language():
    samples = [
        {"id": f"{task}{language}{i}", "task": task, "language": language}
        for task, language in (("transcribe", "en"), ("transcribe", "zh"), ("emoji", "en"))
        for i in range(40)
    ]
    found = training.weighted(samples, {"transcribe": 2, "transcribe/zh": 3, "emoji": 0.5})
    counts = {
        kind: sum(s["id"].startswith(kind) for s in found)
        for kind in ("transcribeen", "transcribezh", "emoji")
    }
    assert counts["transcribeen"] == 80 and counts["transcribezh"] == 120 and 10 < counts["emoji"] < 30
    assert training.weighted(samples, {}) == samples
    for wrong in ({"emoji": -1}, {"chart": 1}):
        with pytest.raises(ConfigError, match="weights"):
            training.weighted(samples, wrong)
