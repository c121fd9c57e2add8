"""Outside a notebook: execute one headless with papermill and stamp it.

A failing notebook or killed kernel is reported by name and the others go on.
"""

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from omnilib.errors import UserError
from omnilib.paths import NOTEBOOKS, REPORTS, ROOT
from omnilib.provenance import scrub, stamp, write_json
from omnilib.report.html import render


def list_notebooks(only: str | None = None, folder: Path = NOTEBOOKS) -> list[Path]:
    """Notebooks in order, or those whose name starts with `only`.

    Raises:
        UserError: nothing matches.
    """
    every = sorted(folder.glob("[0-9]*.ipynb"))
    chosen = [p for p in every if p.name.startswith(only or "")]
    if not chosen:
        raise UserError(f"no notebook starts with '{only}'; there are: {', '.join(p.stem for p in every)}")
    return chosen


def check_parameters(notebook: Path, parameters: dict) -> None:
    """Papermill only warns on an unknown parameter; we stop.

    Raises:
        UserError: no parameters cell, or a name it does not have.
    """
    import papermill

    known = papermill.inspect_notebook(str(notebook))
    unknown = sorted(set(parameters) - set(known))
    if not known:
        raise UserError(f"{notebook.name} has no cell tagged `parameters`: tag the first code cell")
    if unknown:
        raise UserError(f"{notebook.name} has no parameter {', '.join(unknown)}; it has: {', '.join(sorted(known))}")


@dataclass
class Outcome:
    """How one notebook went."""

    name: str
    ok: bool
    seconds: float
    error: str = ""


def run_notebook(notebook: Path, scale: str, reports: Path = REPORTS, parameters: dict | None = None, timeout: int = 1500) -> Outcome:
    """Execute one notebook headless into `reports/<scale>/<name>/`; what it had made before a failure is kept.

    Raises:
        UserError: unknown parameter (checked before anything runs).
    """
    import nbformat
    import papermill

    target = (reports / scale / notebook.stem).resolve()
    out_dir = target.relative_to(ROOT).as_posix() if target.is_relative_to(ROOT) else str(target)
    values = {"scale": scale, "out_dir": out_dir, **(parameters or {})}
    check_parameters(notebook, values)
    shutil.rmtree(target, ignore_errors=True)  # an old number must not survive beside a new failure
    target.mkdir(parents=True)
    executed = target / "executed.ipynb"
    started, error = time.time(), ""
    try:
        papermill.execute_notebook(
            str(notebook), str(executed), values, cwd=str(ROOT), kernel_name="python3", progress_bar=False, execution_timeout=timeout
        )
    except Exception as problem:  # whatever stopped this notebook, the others go on
        error = first_words(problem)
    seconds = time.time() - started
    node = nbformat.read(executed if executed.exists() else notebook, as_version=4)
    (target / "report.html").write_text(render(node, notebook.stem, error), encoding="utf-8")
    executed.unlink(missing_ok=True)
    metrics = target / "metrics.json"
    settings = json.loads(metrics.read_text(encoding="utf-8"))["settings"] if metrics.exists() else {}
    record = stamp(scale, values, settings, {"notebook": notebook}, seconds)
    write_json(target / "provenance.json", {"status": "failed" if error else "ok", "error": scrub(error), **record})
    return Outcome(notebook.stem, not error, seconds, scrub(error))


def first_words(problem: Exception) -> str:
    """One line: the error a cell raised, or what stopped the kernel."""
    name = getattr(problem, "ename", type(problem).__name__)
    lines = str(getattr(problem, "evalue", problem)).strip().splitlines()
    return f"{name}: {lines[0] if lines else ''}"


def run_notebooks(notebooks: list[Path], scale: str, reports: Path = REPORTS, parameters: dict | None = None) -> list[Outcome]:
    """Execute notebooks one after another, showing progress; failures do not stop the rest."""
    for notebook in notebooks:
        check_parameters(notebook, {"scale": scale, "out_dir": "", **(parameters or {})})
    outcomes = []
    for number, notebook in enumerate(notebooks, 1):
        print(f"[{number}/{len(notebooks)}] {notebook.stem} ...", end=" ", flush=True)
        outcomes.append(run_notebook(notebook, scale, reports, parameters))
        last = outcomes[-1]
        print(f"{'ok' if last.ok else 'FAILED'} in {last.seconds:.0f} s {last.error}", flush=True)
    return outcomes
