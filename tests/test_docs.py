"""What the README says to type exists."""

import re

import pytest

from omnilib import cli
from omnilib.paths import ROOT

DOCS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "environment.yml",
    *sorted(ROOT.glob("omnilib/configs/*/*.yaml")),
]


def texts() -> str:
    return "\n".join(p.read_text(encoding="utf-8") for p in DOCS)


def test_every_make_target_named_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"(?:`|^|omnilib )make ([a-z-]+)", texts(), re.M))
    assert {"reproduce", "test"} <= named <= targets
    assert {"help", "env", "test", "reproduce", "retrain", "lab", "lint", "lock", "clean"} <= targets


def test_every_omni_command_named_exists():
    parser = cli.build_parser()
    named = set(re.findall(r"(?:`|bin/)omni ([a-z]+)", texts()))
    assert named
    for command in named:
        with pytest.raises(SystemExit) as stop:
            parser.parse_args(
                [command, "--help"] if command not in ("train", "data") else [command, "--no-such"]
            )
        assert stop.value.code in (0, 2)
        assert command in cli.COMMANDS


def test_every_module_named_in_a_config_header_exists():
    for path in ROOT.glob("omnilib/configs/*/*.yaml"):
        for module in re.findall(r"-m ((?:omnilib|data_prep)[a-z_.0-9]+)", path.read_text()):
            assert (ROOT / (module.replace(".", "/") + ".py")).exists(), f"{path.name}: {module}"


def test_every_stage_of_the_graph_names_files_that_exist():
    import yaml

    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    made = {
        next(iter(o)) if isinstance(o, dict) else o
        for s in stages.values()
        for o in [*s.get("outs", []), *s.get("metrics", [])]
    }
    for name, stage in stages.items():
        for path in stage["deps"]:
            assert path in made or (ROOT / path).exists(), f"{name}: {path}"
        module = re.search(r"-m ([a-z_.0-9]+)", stage["cmd"])[1]
        assert (ROOT / (module.replace(".", "/") + ".py")).exists(), f"{name}: {module}"
        for config in re.findall(r"--config (\S+)", stage["cmd"]):
            assert (ROOT / "omnilib" / "configs" / f"{config}.yaml").exists(), f"{name}: {config}"


def test_files_named_in_readme_exist():
    readme = (ROOT / "README.md").read_text()
    for link in re.findall(r"\]\((?!http)([^)]+)\)", readme):
        assert (ROOT / link).exists(), link


def test_ci_runs_what_a_developer_runs():
    script = (ROOT / ".ci" / "run").read_text()
    assert script.strip().splitlines()[-1] == "exec make test"


def test_no_machine_path_in_what_is_documented():
    for path in [*ROOT.glob("*.md"), *ROOT.glob("reports/*.md"), ROOT / "Makefile", ROOT / "dvc.yaml"]:
        assert not re.search(r"/(home|work|root|Users)/", path.read_text(encoding="utf-8")), path
