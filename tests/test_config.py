"""Configs are strict: a wrong key, type or file is one clear line."""

import re
from dataclasses import dataclass, field

import pytest

from omnilib import config
from omnilib.errors import ConfigError


@dataclass
class Inner:
    width: int = 8


@dataclass
class Outer:
    lr: float = 1e-3
    name: str = "a"
    inner: Inner = field(default_factory=Inner)


def test_yaml_then_overrides_win_over_defaults(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("lr: 0.5\ninner:\n  width: 16\n")
    loaded = config.load(Outer, path, ["inner.width=32", "name=b"])
    assert loaded == Outer(lr=0.5, name="b", inner=Inner(32))


def test_saved_config_loads_back_equal(tmp_path):
    saved = Outer(lr=0.25, inner=Inner(3))
    config.save(saved, tmp_path / "c.yaml")
    assert config.load(Outer, tmp_path / "c.yaml") == saved


@pytest.mark.parametrize(
    ("text", "overrides", "told"),
    [
        ("learning_rate: 1\n", [], "learning_rate"),
        ("inner:\n  widht: 1\n", [], "widht"),
        ("lr: fast\n", [], "lr: .*fast"),
        ("", ["inner.width=wide"], "inner.width: .*wide"),
        ("", ["depth=3"], "depth"),
    ],
)
def test_wrong_key_or_type_is_named_in_one_line(tmp_path, text, overrides, told):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        config.load(Outer, path, overrides)
    assert re.search(told, str(error.value))
    assert "\n" not in str(error.value)


def test_file_that_is_not_yaml_is_a_config_error(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("lr: [1, 2\n:::")
    with pytest.raises(ConfigError, match="x.yaml"):
        config.load(Outer, path)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match="no config 'nowhere'"):
        config.load(Outer, "nowhere")
