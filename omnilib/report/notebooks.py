"""Outside a notebook: execute one headless with papermill and stamp it.

A notebook that cannot be read, fails or loses its kernel is reported by name and the others go on. Its earlier good report
stays; the page of the failed run is kept in `runs/reports-failed/`.
"""

import html
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omnilib.errors import CheckpointError, UserError
from omnilib.paths import NOTEBOOKS, REPORTS, ROOT
from omnilib.provenance import (
    commit_of,
    read_json,
    read_stamp,
    scrub,
    stamp,
    write_json,
    write_stamp,
    write_text,
)
from omnilib.report import sources
from omnilib.report.folders import failed_folder, fresh_folder, move_folder, replace_folder
from omnilib.report.headlines import is_timing, read_metrics
from omnilib.report.html import page, render
from omnilib.report.parameters import read_notebook, read_parameters

COLOURS = re.compile("\x1b\\[[0-9;]*[A-Za-z]")
# In a notebook `!false` is no error; a report must not stand on a shell line that failed.
STRICT_SHELL = (
    "from omnilib.report.shell import raise_on_failure; raise_on_failure(get_ipython()); del raise_on_failure"
)


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


def check_scale(scale: str) -> None:
    """Check before anything runs that chapters can run at a scale.

    Raises:
        UserError: no chapter runs at it, or its checkpoints are missing.
    """
    if scale != "smoke":  # smoke trains what it needs
        from omnilib import checkpoints

        checkpoints.folder(scale, "tokenizer", "flow", "hift", "speechlm")


def parts_needed(notebook: Path) -> list[str]:
    """Trained parts that a chapter declares in its metadata, such as `"needs": ["brain"]`; [] when it declares none.

    Raises:
        UserError: a notebook that cannot be read.
    """
    return list(read_notebook(notebook).metadata.get("needs", []))


def with_parts(notebooks: list[Path], scale: str) -> tuple[list[Path], list[str]]:
    """(notebooks whose trained parts are there, a line for each other one that says what to run).

    At smoke a chapter trains what it needs, so all stay. So does a notebook that cannot be read: its turn says why.
    """
    from omnilib import checkpoints

    chosen, lines = [], []
    for notebook in notebooks:
        try:
            needed = parts_needed(notebook)
        except UserError:
            needed = []
        try:
            if needed and scale != "smoke":
                checkpoints.folder(scale, *needed)
            chosen.append(notebook)
        except CheckpointError as error:
            lines.append(f"{notebook.stem} left out: {error}")
    return chosen, lines


def check_parameters(notebook: Path, parameters: dict) -> None:
    """Papermill only warns on an unknown parameter; we stop.

    Raises:
        UserError: a notebook that cannot be read, no parameters cell, or a name it does not have.
    """
    known = read_parameters(notebook)
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise UserError(
            f"{notebook.name} has no parameter {', '.join(unknown)}; it has: {', '.join(sorted(known))}"
        )


@dataclass
class Outcome:
    """How one notebook went."""

    name: str
    ok: bool
    seconds: float
    error: str = ""
    page: str = ""  # of a failed run


def run_notebook(
    notebook: Path,
    scale: str,
    reports: Path = REPORTS,
    parameters: dict | None = None,
    timeout: int = 1500,
    name: str = "",
) -> Outcome:
    """Execute one notebook headless into `reports/<scale>/<name>/`, which is replaced when the run has finished.

    Args:
        name: of the report folder; "" takes the notebook's.

    Raises:
        UserError: unknown parameter, or a folder that cannot be written (both before anything runs).
    """
    try:
        read_parameters(notebook)
    except UserError as problem:
        return Outcome(notebook.stem, False, 0.0, scrub(str(problem)))
    target = (reports / scale / (name or notebook.stem)).resolve()
    values = {"scale": scale, "out_dir": "", **(parameters or {})}
    check_parameters(notebook, values)
    with fresh_folder(target) as folder:
        values["out_dir"] = as_posix(folder)
        started = time.time()
        try:
            error = run_into(folder, target, notebook, scale, values, timeout)
            seconds = time.time() - started
            if error:
                kept = failed_folder(reports) / scale / target.name
                move_folder(folder, kept)
                return Outcome(
                    notebook.stem, False, seconds, error, as_posix((kept / "report.html").resolve())
                )
            replace_folder(folder, target)
        except OSError as problem:  # the disk is full: the earlier report stays, the others go on
            return Outcome(
                notebook.stem, False, time.time() - started, scrub(f"cannot write the report: {problem}")
            )
    return Outcome(notebook.stem, True, seconds)


def run_into(folder: Path, target: Path, notebook: Path, scale: str, values: dict, timeout: int) -> str:
    """Execute, stamp and draw a notebook in `folder`, which is to become `target`; returns what stopped it, "" when nothing did."""
    started = time.time()
    node, error = execute(notebook, folder, values, timeout)
    seconds = time.time() - started
    text, error = draw(node, notebook.stem, error)
    error = error.replace(folder.name, target.name)  # a page names the folder it is to have
    record = complete_stamp(folder, notebook, scale, values, seconds, error)
    text = text.replace(folder.name, target.name).replace("</main>", f"{footer(folder, record)}</main>")
    write_text(folder / "report.html", text)
    if not error:
        (folder / "kernel.log").unlink(missing_ok=True)
        if notebook.parent == NOTEBOOKS and scale != "smoke":
            sources.record(folder, notebook.stem, scale)
    return error


def as_posix(folder: Path) -> str:
    """A folder as a report names it: relative to the repository where it lies there."""
    return folder.relative_to(ROOT).as_posix() if folder.is_relative_to(ROOT) else str(folder)


def draw(node: Any, title: str, error: str) -> tuple[str, str]:
    """(page, error) of an executed notebook; outputs that no page can be made of are a failure of this notebook alone."""
    error = scrub(error)
    try:
        from nbconvert.preprocessors import CoalesceStreamsPreprocessor

        node, _ = CoalesceStreamsPreprocessor(enabled=True).preprocess(
            node, {}
        )  # chance decides how printed text is cut
        return render(node, title, error), error
    except Exception as problem:
        error = error or scrub(f"its page could not be drawn: {reason(problem)}")
        return page(title, f'<p class="failed">This run failed: {html.escape(error)}</p>'), error


def execute(notebook: Path, folder: Path, values: dict, timeout: int) -> tuple[Any, str]:
    """Run all cells; returns the notebook with its outputs and what stopped it ("" when nothing did).

    What the kernel and its programs print outside the cells goes to kernel.log.
    """
    import nbformat
    import papermill

    executed, error = folder / "executed.ipynb", ""
    with quiet(folder / "kernel.log"):
        try:
            papermill.execute_notebook(
                str(notebook),
                str(executed),
                values,
                cwd=str(ROOT),
                kernel_name="python3",
                language="python",
                progress_bar=False,
                execution_timeout=timeout,
                extra_arguments=[f"--IPKernelApp.exec_lines={STRICT_SHELL}"],
            )
        except Exception as problem:  # whatever stopped this notebook, the others go on
            node = nbformat.read(executed, as_version=4) if executed.exists() else None
            error = reason(problem, node)
        node = nbformat.read(executed if executed.exists() else notebook, as_version=4)
    executed.unlink(missing_ok=True)
    for number, cell in enumerate(node.cells):
        cell["id"] = f"cell-{number}"  # papermill's own cell has a new id each time
    return node, error


@contextmanager
def quiet(log: Path) -> Iterator[None]:
    """Send what this process and its children print to a file."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    with log.open("w", encoding="utf-8", errors="replace") as file:
        kept = [os.dup(1), os.dup(2)]
        try:
            for number in (1, 2):
                os.dup2(file.fileno(), number)
            with redirect_stdout(file), redirect_stderr(file):
                yield
        finally:
            file.flush()
            for number, copy in zip((1, 2), kept, strict=True):
                os.dup2(copy, number)
                os.close(copy)


def complete_stamp(
    folder: Path, notebook: Path, scale: str, values: dict, seconds: float, error: str
) -> dict:
    """Add what the runner knows to what the notebook recorded; the notebook's own parameters and settings stay."""
    own, timings = read_stamp(folder), read_json(folder / "timings.json")
    settings = own.get("settings") or read_json(folder / "metrics.json").get("settings", {})
    defaults = {key: value for key, (value, _) in read_parameters(notebook).items()}
    parameters = {**defaults, **values, **own.get("parameters", {})}
    parameters.pop("out_dir", None)  # where it was written is no part of what was measured
    record = stamp(scale, parameters, settings, {"notebook": notebook}, seconds)
    record = {
        "status": "failed" if error else "ok",
        "error": error,
        **record,
        **keep(own, "commit", "dirty", "versions", "device", "peak_memory_gb"),
    }
    speed = keep(timings, "metrics", "paper")
    write_stamp(folder, record, speed)
    if not (folder / "metrics.json").exists():
        write_json(
            folder / "metrics.json", {"name": notebook.stem, "scale": scale, "settings": {}, "metrics": {}}
        )
    return record


def keep(record: dict, *names: str) -> dict:
    """Those keys of a record that it has."""
    return {name: record[name] for name in names if name in record}


def footer(folder: Path, record: dict) -> str:
    """Last line of a page: which commit made it, and what another machine may change."""
    found = read_metrics(folder)
    speed = [f"<code>{name}</code>" for name, entry in found["metrics"].items() if is_timing(name, entry)]
    speed += [f"<code>{item['file']}</code>" for item in found.get("figures", []) if item.get("timing")]
    return (
        f'<p class="soft">Commit {commit_of(record)}. Date, duration and device: timings.json. Another machine may change this line, the '
        f"two lines that name commit and device, and what is measured of speed ({', '.join(speed) or 'nothing here'}).</p>\n"
    )


def reason(problem: Exception, node: Any = None) -> str:
    """One line: the error a cell raised, what a failed magic printed, or what stopped the kernel."""
    name = getattr(problem, "ename", "") or type(problem).__name__
    told = str(getattr(problem, "evalue", "") or "").strip()
    if not told and getattr(problem, "ename", "") in (
        "",
        "CellExecutionError",
    ):  # IPython prints what is wrong with a magic
        told = last_words(node) or str(problem)
    lines = [line.strip() for line in COLOURS.sub("", told).splitlines() if line.strip(" -\t")]
    if lines:
        return lines[0] if re.match(r"\w+(Error|Exception)\b", lines[0]) else f"{name}: {lines[0]}"
    source = str(getattr(problem, "source", "")).strip().splitlines()
    return f"{name} without a message" + (
        f" in the cell that ends with `{source[-1].strip()}`" if source else "; see kernel.log"
    )


def first_words(problem: Exception) -> str:
    """One line: the error a cell raised, or what stopped the kernel."""
    return reason(problem)


def last_words(node: Any) -> str:
    """Last line that the last executed cell wrote to its error stream."""
    ran = [cell for cell in (node.cells if node else []) if cell.get("outputs")]
    errors = [
        o for o in (ran[-1].outputs if ran else []) if o.get("name") == "stderr" or o.output_type == "error"
    ]
    lines = [
        line
        for o in errors
        for line in (o.get("text") or "\n".join(o.get("traceback", []))).splitlines()
        if line.strip()
    ]
    return lines[-1] if lines else ""


def run_notebooks(
    notebooks: list[Path], scale: str, reports: Path = REPORTS, parameters: dict | None = None, name: str = ""
) -> list[Outcome]:
    """Execute notebooks one after another, showing progress; failures do not stop the rest.

    Raises:
        UserError: a parameter that a readable notebook does not have (before anything runs).
    """
    for notebook in notebooks:
        try:
            read_notebook(notebook)
            read_parameters(notebook)
        except UserError:
            continue  # reported by name when its turn comes
        check_parameters(notebook, {"scale": scale, "out_dir": "", **(parameters or {})})
    outcomes = []
    for number, notebook in enumerate(notebooks, 1):
        print(f"[{number}/{len(notebooks)}] {notebook.stem}{name} ...", end=" ", flush=True)
        outcomes.append(
            run_notebook(notebook, scale, reports, parameters, name=f"{notebook.stem}{name}" if name else "")
        )
        last = outcomes[-1]
        print(f"{'ok' if last.ok else 'FAILED'} in {last.seconds:.0f} s {last.error}".rstrip(), flush=True)
        if last.page:
            print(f"      its page: {last.page}", flush=True)
    return outcomes
