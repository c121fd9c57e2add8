"""Every notebook: one parameters cell, no outputs, ids, and it runs at `smoke` in under a minute."""

import ast
import json
from pathlib import Path

import nbformat
import pytest

from omnilib import report
from omnilib.paths import NOTEBOOKS, ROOT

EVERY = sorted([*NOTEBOOKS.glob("*.ipynb"), *NOTEBOOKS.glob("solutions/*.ipynb")])
CHAPTERS = [p for p in EVERY if p.parent == NOTEBOOKS]


def read(path):
    return nbformat.read(path, as_version=4)


def test_there_are_notebooks():
    assert CHAPTERS


@pytest.mark.parametrize("path", EVERY, ids=lambda p: p.stem)
def test_notebook_is_clean(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert "papermill" not in notebook.metadata and "widgets" not in notebook.metadata
    for cell in notebook.cells:
        assert cell.id
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None
            assert "sys.path" not in cell.source and not cell.source.lstrip().startswith(("!", "%pip"))
    assert path.stat().st_size < 150_000
    assert str(ROOT) not in path.read_text() and str(Path.home()) + "/" not in path.read_text()


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_chapter_has_one_parameters_cell_of_typed_literals(path):
    notebook = read(path)
    tagged = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1
    body = ast.parse(tagged[0].source).body
    assert all(isinstance(line, ast.AnnAssign) for line in body), "one typed literal a line: `seed: int = 0  # help`"
    assert {line.target.id for line in body} >= {"scale", "seed", "out_dir"}
    for line in body:
        ast.literal_eval(line.value)


@pytest.mark.slow
@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_chapter_runs_at_smoke(path, tmp_path):
    outcome = report.run_notebook(path, "smoke", tmp_path, timeout=300)
    assert outcome.ok, outcome.error
    folder = tmp_path / "smoke" / path.stem
    found = json.loads((folder / "metrics.json").read_text())
    assert found["paper"], "a chapter ends in the table `what the paper says vs what we measured`"
    assert json.loads((folder / "provenance.json").read_text())["status"] == "ok"
