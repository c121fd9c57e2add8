"""The auxiliary encoder's training: spelling, what learns, exact resume, and its way into the brain."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from omnilib import config as configs
from omnilib.brain import trained
from omnilib.errors import CheckpointError, ConfigError, DataError
from omnilib.train import common
from omnilib.train import encoders as training
from tests import tones


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    return tones.build(
        tmp_path_factory.mktemp("tones"),
        {"low": 0.8, "high": 1.3},
        {"train": 8, "dev": 3, "test": 1},
    )


def run(manifest: Path, out: Path, *overrides: str) -> dict[str, float]:
    flags = ["--config", "smoke/encoders", "--out", str(out), "--set", f"manifest={manifest}", *overrides]
    return training.main(flags)


def losses(out: Path) -> list[float]:
    rows = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if "loss" in row]


@pytest.mark.parametrize(
    ("text", "language", "wanted"),
    [
        ("It's 7 o'clock, Ann!", "en", "it's 7 o'clock ann"),
        ("你好，老师！", "zh", "ni3 hao3 lao3 shi1"),
        ("女儿的T恤", "zh", "nv3 er2 de5 t xu4"),
        ("……", "zh", ""),
    ],
)
def test_texts_are_spelt_in_one_alphabet(text, language, wanted):
    assert training.spelt(text, language) == wanted
    assert all(0 < i <= len(training.LETTERS) for i in training.ids_of(wanted))


def test_greedy_reading_drops_repeats_and_blanks_and_padding():
    ids = [0, 3, 3, 0, 3, 4, 0, 9]
    logits = torch.nn.functional.one_hot(torch.tensor(ids), len(training.LETTERS) + 1).float()
    assert training.greedy(logits, 7) == "bbc"


def test_edit_distance_counts_insertions_deletions_and_replacements():
    pairs = ("abc", "abc"), ("abc", ""), ("", "ab"), ("kitten", "sitting")
    assert [training.edit_distance(*pair) for pair in pairs] == [0, 3, 2, 3]


def test_upper_layers_learn_and_lower_ones_stay(manifest, tmp_path):
    config = configs.load(training.Config, "smoke/encoders", [f"manifest={manifest}"])
    training.seed_everything(config.seed)
    before = training.build(config).state_dict()
    run(manifest, tmp_path, "steps=30", "eval_every=30", "save_every=30")
    after = load_file(tmp_path / "model.safetensors")
    assert sum(losses(tmp_path)[-5:]) < 0.8 * sum(losses(tmp_path)[:5])
    upper = "encoder.layers.1.", "encoder.layer_norm.", "head."
    assert set(after) == {name for name in before if name.startswith(upper)}
    assert any(not torch.equal(after[k], before[k]) for k in after)


def test_a_run_cut_short_goes_on_with_the_same_losses(manifest, tmp_path, monkeypatch):
    run(manifest, tmp_path / "whole")

    class Cut(common.JsonlLog):
        def write(self, step, **values):
            super().write(step, **values)
            if step == 5:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(common, "JsonlLog", Cut)
        run(manifest, tmp_path / "cut")
    run(manifest, tmp_path / "cut")
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole") and len(losses(tmp_path / "cut")) == 6


def test_a_padded_batch_hears_what_a_single_utterance_hears(manifest):
    config = configs.load(training.Config, "smoke/encoders", [f"manifest={manifest}"])
    model = training.build(config).eval()
    mel, frames, targets, sizes, _ = training.Utterances(config, model, "train").batch(0)
    frames[0] = frames.max() // 2
    _, together = model(mel, frames, targets, sizes)
    _, alone = model(mel[:1], frames[:1], targets[:1], sizes[:1])
    count = 2 * int(frames[0])
    torch.testing.assert_close(together[0, :count], alone[0, :count], atol=1e-4, rtol=1e-4)


def test_the_brain_takes_the_trained_encoder_and_refuses_another(manifest, tmp_path):
    spec = trained.Base(base="smoke", aux=str(tmp_path))
    run(manifest, tmp_path)
    with pytest.raises(CheckpointError, match="does not fit this brain"):  # another width
        trained.build_base(spec)
    plain, _ = trained.build_base(trained.Base(base="smoke"))
    tower = plain.model.speech_tower.speech_tower_aux
    from safetensors.torch import save_file

    save_file(
        {f"encoder.{k}": v + 1 for k, v in tower.state_dict().items() if "layer_norm" in k},
        tmp_path / "model.safetensors",
    )
    changed, _ = trained.build_base(spec)
    heard = changed.model.speech_tower.speech_tower_aux
    assert torch.equal(heard.layer_norm.weight, tower.layer_norm.weight + 1)
    assert torch.equal(heard.conv1.weight, tower.conv1.weight)


@pytest.mark.parametrize(
    ("override", "error", "words"),
    [
        ("base=giant", ConfigError, "nano or smoke"),
        ("top_layers=3", ConfigError, "give 1 to 2"),
        ("languages=[fr]", DataError, "no train"),
    ],
)
def test_settings_that_cannot_work_are_one_line(manifest, tmp_path, override, error, words):
    with pytest.raises(error, match=words) as caught:
        run(manifest, tmp_path, override)
    assert "\n" not in str(caught.value)
