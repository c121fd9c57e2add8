"""A recipe, `data_prep/recipes/<name>.yaml`, read into steps; every mistake in it is one line."""

import importlib
import pkgutil
from dataclasses import fields
from pathlib import Path

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from data_prep.pipeline.step import STEPS, Step
from omnilib.errors import ConfigError

HOME = Path(__file__).parent.parent
RECIPES, OPS = HOME / "recipes", HOME / "steps"
PART_SECONDS = 1800.0  # of audio, where the recipe does not say


def load_recipe(recipe: str | Path) -> tuple[list[Step], float]:
    """Steps and part length of a recipe: a YAML file or the name of one in `data_prep/recipes`.

    Raises:
        ConfigError: no such recipe, not YAML, or an unknown step, parameter or key.
    """
    for module in pkgutil.iter_modules([str(OPS)]):
        importlib.import_module(f"data_prep.steps.{module.name}")
    path = next((p for p in (Path(recipe), RECIPES / f"{recipe}.yaml") if p.is_file()), None)
    if path is None:
        known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.yaml")))
        raise ConfigError(f"no recipe '{recipe}': give a YAML file or one of: {known}")
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (OmegaConfBaseException, yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(
            f"recipe {path.name} is not readable YAML: {' '.join(str(error).split())}"
        ) from None
    if not isinstance(content, dict) or not isinstance(content.get("steps"), list) or not content["steps"]:
        raise ConfigError(f"recipe {path.name}: needs a list `steps:` of at least one step")
    if unknown := set(content) - {"steps", "part_seconds"}:
        raise ConfigError(
            f"recipe {path.name}: unknown key '{sorted(unknown)[0]}'; known: steps, part_seconds"
        )
    part_seconds = content.get("part_seconds", PART_SECONDS)
    if not isinstance(part_seconds, int | float) or part_seconds <= 0:
        raise ConfigError(
            f"recipe {path.name}: part_seconds is {part_seconds}: give seconds of audio, e.g. 1800"
        )
    return [build_step(entry, path.name) for entry in content["steps"]], part_seconds


def build_step(entry: object, recipe: str) -> Step:
    """A step from its recipe entry `{name: vad, threshold: 0.5}`; types are checked against the dataclass."""
    entry = {"name": entry} if isinstance(entry, str) else entry
    if not isinstance(entry, dict) or entry.get("name") not in STEPS:
        name = entry.get("name") if isinstance(entry, dict) else entry
        raise ConfigError(f"recipe {recipe}: unknown step '{name}'; known: {', '.join(sorted(STEPS))}")
    cls = STEPS[entry["name"]]
    parameters = {k: v for k, v in entry.items() if k != "name"}
    if unknown := set(parameters) - {f.name for f in fields(cls) if f.init}:
        known = ", ".join(f.name for f in fields(cls) if f.init)
        raise ConfigError(
            f"recipe {recipe}: step '{cls.name}' has no parameter '{sorted(unknown)[0]}'; known: {known}"
        )
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), parameters))
    except OmegaConfBaseException as error:
        raise ConfigError(f"recipe {recipe}: step '{cls.name}': {str(error).splitlines()[0]}") from None
