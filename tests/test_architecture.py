"""The rooms of DESIGN section 2: arrows go one way, and no room is reached from itself."""

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from omnilib.paths import ROOT

FOLDERS = ("omnilib", "data_prep")


def modules(root: Path) -> dict[str, Path]:
    """Dotted name -> file, of all Python files below the folders."""
    files = [p for top in FOLDERS for p in sorted((root / top).rglob("*.py"))]
    return {".".join(p.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): p for p in files}


def imported(path: Path, known: dict[str, Path]) -> set[str]:
    """Modules of ours that a file imports, anywhere in it: also in functions, not for type hints alone."""
    tree, found = ast.parse(path.read_text(encoding="utf-8")), set()
    hints = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
    skipped = {id(inner) for block in hints for inner in ast.walk(block)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in known else node.module for name in names}
    return {name for name in found if name in known}


def room(module: str) -> str:
    """A folder is a room; so is a file that lies beside the folders."""
    return ".".join(module.split(".")[:2])


def graph(root: Path, name=lambda module: module) -> dict[str, set[str]]:
    """What each module or room imports, itself left out."""
    known, arrows = modules(root), {}
    for module, path in known.items():
        arrows.setdefault(name(module), set()).update(map(name, imported(path, known)))
    return {key: values - {key} for key, values in arrows.items()}


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """Names along one circle, or []."""
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        return error.args[1]
    return []


@cache
def rooms() -> dict[str, set[str]]:
    return graph(ROOT, room)


def reached(start: str) -> set[str]:
    """All rooms that a room imports, directly or through others."""
    seen, waiting = set(), [start]
    while waiting:
        new = rooms().get(waiting.pop(), set()) - seen
        seen |= new
        waiting += new
    return seen


def test_no_module_and_no_room_is_imported_by_what_it_imports():
    assert circle(graph(ROOT)) == []
    assert circle(rooms()) == []


def test_the_library_never_imports_data_prep():
    arrows = graph(ROOT)
    wrong = [
        (a, b) for a in arrows for b in arrows[a] if a.startswith("omnilib") and b.startswith("data_prep")
    ]
    assert wrong == [], "run it as a module by name, as cli.py does"


@pytest.mark.parametrize(
    ("start", "never"),
    [
        ("mouth", {"voice", "brain", "speak", "train", "eval"}),
        ("voice", {"mouth", "brain", "speak", "train", "eval"}),
        ("brain", {"voice", "speak", "train", "eval"}),
        ("text", {"mouth", "voice", "brain", "speak"}),
        ("audio", {"mouth", "voice", "brain", "text"}),
        ("speak", {"train", "eval", "report", "smoke", "checkpoints"}),
        ("train", {"speak", "eval", "report", "bench", "smoke"}),
        ("report", {"eval", "bench", "cli"}),
    ],
)
def test_arrows_follow_the_design(start, never):
    assert f"omnilib.{start}" in rooms(), "the room has another name now"
    assert not reached(f"omnilib.{start}") & {f"omnilib.{name}" for name in never}


def test_brain_and_mouth_share_kernels_and_nothing_else():
    """Both are Qwen blocks: the brain trains through `mouth/fast_blocks.py`, and neither knows the other's model."""
    arrows = graph(ROOT)
    used = {
        b
        for a in arrows
        for b in arrows[a]
        if a.startswith("omnilib.brain") and b.startswith("omnilib.mouth")
    }
    assert used <= {"omnilib.mouth.fast_blocks"}


def test_speaking_is_mouth_and_voice():
    assert {"omnilib.mouth", "omnilib.voice", "omnilib.text"} <= rooms()["omnilib.speak"]


def test_a_circle_and_a_wrong_arrow_are_found(tmp_path):
    """The checks themselves, on a small tree: an import inside a function counts, one for type hints does not."""
    for name, code in {
        "omnilib/__init__": "",
        "data_prep/__init__": "",
        "data_prep/shards": "X = 1",
        "omnilib/a": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from omnilib import c\n",
        "omnilib/b": "def f():\n    from omnilib import c\n",
        "omnilib/c": "from omnilib.b import f\nimport data_prep.shards\n",
    }.items():
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(code)
    arrows = graph(tmp_path)
    assert arrows["omnilib.a"] == set() and arrows["omnilib.c"] == {"omnilib.b", "data_prep.shards"}
    assert set(circle(arrows)) == {"omnilib.b", "omnilib.c"}


@pytest.mark.parametrize("folder", ["train", "eval", "bench", "serve"])
def test_a_program_ends_with_one_line_after_a_mistake_of_its_user(folder):
    texts = {path: path.read_text("utf-8") for path in (ROOT / "omnilib" / folder).glob("*.py")}
    programs = {path: text for path, text in texts.items() if 'if __name__ == "__main__":' in text}
    assert programs
    for path, text in programs.items():
        assert "with in_one_line():" in text or "except UserError as error:" in text, path
