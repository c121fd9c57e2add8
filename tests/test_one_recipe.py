"""What is committed is what the configs give: one config a checkpoint, one corpus, one tokenizer."""

import importlib
import json
import shlex
from dataclasses import asdict

import pytest
import yaml

from omnilib import config as configs
from omnilib.data import sha256
from omnilib.paths import CHECKPOINTS, ROOT

NANO = CHECKPOINTS / "nano"
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
TRAINED = {
    name: shlex.split(stage["cmd"])
    for name, stage in STAGES.items()
    if "omnilib.train" in stage["cmd"] and "--config" in stage["cmd"]
}
DERIVED = ("head.fsq_dims", "head.phonemes")  # set by the script from other settings and the corpus
BRAIN = ("brain_stage1", "brain_eyes", "brain")


def meta(name: str) -> dict:
    return json.loads((NANO / name / "meta.json").read_text(encoding="utf-8"))


def test_every_committed_training_is_a_stage():
    made = {path.parent.name for path in NANO.glob("*/meta.json")}
    assert made == TRAINED.keys(), (
        "a checkpoint that no stage makes, or a stage whose checkpoint is not committed"
    )


def differences(trained: dict, resolved: dict, default: dict, where: str = "") -> list[str]:
    """Settings that are not what was trained with; one that came later must stand where it changes nothing."""
    found = []
    for key, value in resolved.items():
        place = f"{where}{key}"
        if key not in trained:
            found += [] if value == default[key] else [f"{place} is new, and {value}"]
        elif (
            isinstance(value, dict)
            and isinstance(trained[key], dict)
            and isinstance(default[key], dict)
            and default[key]
        ):
            found += differences(trained[key], value, default[key], f"{place}.")
        elif value != trained[key] and place not in DERIVED:
            found.append(f"{place}: {trained[key]} then, {value} now")
    return found + [f"{where}{key} is gone" for key in trained.keys() - resolved.keys()]


@pytest.mark.parametrize("name", TRAINED)
def test_a_checkpoint_was_trained_with_the_config_of_its_stage(name):
    words = TRAINED[name]
    module, config = words[words.index("-m") + 1], words[words.index("--config") + 1]
    assert config == f"nano/{name}" and words[words.index("--out") + 1] == f"checkpoints/nano/{name}"
    kind = importlib.import_module(module).Config
    resolved, default = (json.loads(json.dumps(asdict(c))) for c in (configs.load(kind, config), kind()))
    if name == "text":  # made in one go, it keeps its size alone
        assert meta(name)["metrics"]["size"] == resolved["size"]
    else:
        assert differences(meta(name)["config"], resolved, default) == []


def test_a_changed_setting_would_be_found():
    then, now = (
        {"lr": 1.0, "model": {"width": 2}},
        {"lr": 1.0, "model": {"width": 2, "pitch": False}, "new": 0},
    )
    default = {"lr": 0.5, "model": {"width": 1, "pitch": False}, "new": 0}
    assert differences(then, now, default) == []
    assert differences(then, now | {"new": 1}, default) == ["new is new, and 1"]
    assert differences(then, now | {"model": {"width": 3, "pitch": True}}, default) == [
        "model.width: 2 then, 3 now",
        "model.pitch is new, and True",
    ]
    assert differences(then | {"old": 1}, now, default) == ["old is gone"]


def test_all_learnt_from_one_corpus_and_the_codes_of_one_tokenizer():
    corpora = {name: meta(name)["manifest_sha256"] for name in TRAINED if name not in BRAIN}
    assert len(set(corpora.values())) == 1, corpora
    assert len({meta(name)["manifest_sha256"] for name in BRAIN}) == 1
    codes = {meta(name)["tokenizer_sha256"] for name in ("flow", "speechlm_stage1", "speechlm")}
    assert codes == {sha256(NANO / "tokenizer" / "model.safetensors")}
