"""Strict experiment configs: a dataclass gives names, types and defaults; a flat YAML and `key=value` override them."""

from dataclasses import is_dataclass
from pathlib import Path
from typing import TypeVar

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from omnilib.errors import ConfigError
from omnilib.paths import CONFIGS

T = TypeVar("T")


def find(name: str | Path) -> Path:
    """Path of a config: a file, or the name of one in `omnilib/configs`, such as "nano/flow".

    Raises:
        ConfigError: no such file.
    """
    for path in (Path(name), CONFIGS / f"{name}.yaml"):
        if path.is_file():
            return path
    known = ", ".join(sorted(f"{p.parent.name}/{p.stem}" for p in CONFIGS.glob("*/*.yaml")))
    raise ConfigError(f"no config '{name}': give a YAML file or one of: {known}")


def load(cls: type[T], name: str | Path | None = None, overrides: list[str] | None = None) -> T:
    """Build `cls` (a dataclass) from its defaults, then a YAML, then `key=value` overrides.

    Raises:
        ConfigError: unknown file, not YAML, unknown key, or a value of the wrong type.
    """
    assert is_dataclass(cls), f"{cls} is not a dataclass"
    try:
        layers = [OmegaConf.structured(cls)]
        if name is not None:
            layers.append(OmegaConf.load(find(name)))
        if overrides:
            layers.append(OmegaConf.from_dotlist(list(overrides)))
        return OmegaConf.to_object(OmegaConf.merge(*layers))
    except OmegaConfBaseException as error:
        first, key = str(error).strip().splitlines()[0], getattr(error, "full_key", None)
        where = f"{key}: " if key and f"'{key}'" not in first else ""
        raise ConfigError(
            f"config {name or cls.__name__}: {where}{first} (see the fields of {cls.__name__})"
        ) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"config {name} is not YAML: {' '.join(str(error).split())}") from None


def override(config: T, values: dict) -> T:
    """A copy of `config` with some fields changed, checked as `load` checks them.

    Raises:
        ConfigError: unknown key or a value of the wrong type.
    """
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(config), OmegaConf.create(values)))
    except OmegaConfBaseException as error:
        first = str(error).strip().splitlines()[0]
        raise ConfigError(f"{first} (see the fields of {type(config).__name__})") from None


def save(config: object, path: Path) -> None:
    """Write the resolved config as YAML."""
    Path(path).write_text(OmegaConf.to_yaml(OmegaConf.structured(config)), encoding="utf-8")
