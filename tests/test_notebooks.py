"""Every notebook: one parameters cell, no outputs, ids, sentences that are true, solutions that run at `smoke`.

That chapters run, and what their pages are like, is tested in test_pages.py.
"""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest

from omnilib import report
from omnilib.paths import NOTEBOOKS, REPORTS, ROOT

EVERY = sorted([*NOTEBOOKS.glob("*.ipynb"), *NOTEBOOKS.glob("solutions/*.ipynb")])
CHAPTERS = [p for p in EVERY if p.parent == NOTEBOOKS]
SOLUTIONS = [p for p in EVERY if p.parent != NOTEBOOKS]


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
    assert all(isinstance(line, ast.AnnAssign) for line in body), (
        "one typed literal a line: `seed: int = 0  # help`"
    )
    assert {line.target.id for line in body} >= {"scale", "seed", "out_dir"}
    for line in body:
        ast.literal_eval(line.value)


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_every_exercise_has_a_solution(path):
    prose = "\n".join(c.source for c in read(path).cells if c.cell_type == "markdown")
    asked = re.findall(r"^(\d+)\. ", prose.split("## Exercises")[1].split("\n## ")[0], re.M)
    answers = read(NOTEBOOKS / "solutions" / f"{path.stem}_solutions.ipynb")
    solved = re.findall(
        r"^## (\d+)\. ", "\n".join(c.source for c in answers.cells if c.cell_type == "markdown"), re.M
    )
    assert asked == solved == [str(n) for n in range(1, len(asked) + 1)]


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda p: p.stem)
def test_solutions_compute_instead_of_expecting(path):
    """Each answer has code of its own, and no sentence foretells what nobody measured."""
    cells = read(path).cells
    prose = "\n".join(c.source for c in cells if c.cell_type == "markdown")
    assert not re.search(r"\b[Ee]xpect\b", prose)
    number, answered = "0", set()
    for cell in cells:
        if cell.cell_type == "markdown":
            number = (re.findall(r"^## (\d+)\. ", cell.source, re.M) or [number])[-1]
        elif "print(" in cell.source or "assert " in cell.source:
            answered.add(number)
    assert set(re.findall(r"^## (\d+)\. ", prose, re.M)) <= answered


@pytest.mark.parametrize("path", EVERY, ids=lambda p: p.stem)
def test_diagrams_are_pictures_not_letters(path):
    """Drawings of letters wrap in JupyterLab and are clipped in reports; a code block in a text is for a command."""
    for cell in read(path).cells:
        if cell.cell_type == "markdown":
            assert not re.search(r"--+>|<--+|\^\s*\n|[|+]--", cell.source.replace("|---|", "")), cell.source[
                :200
            ]
            for picture in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", cell.source):
                assert picture[0].strip() and (path.parent / picture[1]).is_file(), picture


def claims_of(path: Path) -> list[dict[str, str]]:
    """Arguments of every `run.claim(...)` in a notebook, as source."""
    found = []
    for cell in read(path).cells:
        if cell.cell_type == "code" and "run.claim(" in cell.source:
            for node in ast.walk(ast.parse(cell.source)):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "run.claim":
                    found.append({k.arg: ast.unparse(k.value) for k in node.keywords})
    return found


BRAIN = [p for p in CHAPTERS if p.stem[:2] in ("08", "09", "10", "11", "12")]


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_every_claim_states_its_rule_and_its_unit(path):
    """A row of the last table says by which rule its verdict was reached; shares stand in percent, like the paper's."""
    claims = claims_of(path)
    assert len(claims) >= 3
    for claim in claims:
        if claim.get(None):
            assert {"rule", "unit"} <= set(claim), "rows that a library function made get their rule here"
            continue
        assert {"claim", "ref", "paper", "verdict"} <= set(claim), claim
        if claim["verdict"] == "'not attempted'":
            assert "why" in claim, claim
            continue
        assert "rule" in claim and "judge" in claim and "metric" in claim, claim
        share = SHARES.search(claim["metric"])
        assert bool(share) == (claim.get("unit") == "'%'"), claim


SHARES = re.compile(
    r"wer|asr|zh_|_error|error_(?!last)|share|_change|accuracy|needle_|sqa|see_|measure|nearest|speaker_from|rows_used"
)


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_a_claim_has_one_field_a_line(path):
    for cell in read(path).cells:
        if cell.cell_type == "code":
            assert "run.paper_table([" not in cell.source.replace("\n", "").replace(" ", ""), (
                "use run.claim(...)"
            )
            for node in ast.walk(ast.parse(cell.source)):
                if (
                    isinstance(node, ast.Call)
                    and ast.unparse(node.func) == "run.claim"
                    and len(node.keywords) > 3
                ):
                    places = [keyword.value.lineno for keyword in node.keywords]
                    assert len(set(places)) == len(places), ast.unparse(node)


@pytest.mark.parametrize("path", EVERY, ids=lambda p: p.stem)
def test_code_fits_a_laptop(path):
    """No line beyond 100 columns, and no cell that is longer than a screen."""
    for cell in read(path).cells:
        if cell.cell_type == "code":
            lines = cell.source.splitlines()
            assert all(len(line) <= 100 for line in lines), max(lines, key=len)
            assert len(lines) <= 30, f"{len(lines)} lines: {lines[0]}"


STAGES = {
    "tokenizer": "02", "speaker": "02", "flow": "03", "hift": "03", "text": "05", "backbone": "05",
    "stage1": "05", "stage2": "06",
}  # fmt: skip


@pytest.mark.parametrize("stage", STAGES)
def test_every_training_stage_has_a_pass_line(stage):
    """A cell of its chapter asks the committed log of the stage: is it learning?"""
    path = next(NOTEBOOKS.glob(f"{STAGES[stage]}*.ipynb"))
    lines = [
        ast.unparse(node.args[0])
        for cell in read(path).cells
        if cell.cell_type == "code"
        for node in ast.walk(ast.parse(cell.source))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "run.passes"
    ]
    assert any(re.match(rf"f?'{stage}", name) for name in lines), lines


PICTURES = {"02": "fsq_grid", "03": "flow_path", "04": "token_rows", "07": "token_rows"}


@pytest.mark.parametrize("number", PICTURES)
def test_tensors_are_drawn_by_the_library(number):
    code = "\n".join(c.source for c in read(next(NOTEBOOKS.glob(f"{number}*"))).cells)
    assert f"drawings.{PICTURES[number]}(" in code and "run.drawing(" in code


TABLES = ["9.1", "13.0", "21.7", "1.7", "8.8", "4.5", "1.9", "81.7", "87.4", "69.3", "70.4", "7.3"]


@pytest.mark.parametrize("path", BRAIN, ids=lambda p: p.stem)
def test_numbers_of_the_paper_are_those_of_its_tables(path):
    """Encoder ablation, ASR, AIR-Bench and speech-instructed VQA: claims hold no other figure as the paper's."""
    for cell in read(path).cells:
        if cell.cell_type == "code" and "run.claim(" in cell.source:
            nodes = list(ast.walk(ast.parse(cell.source)))
            told = [part for n in nodes if isinstance(n, ast.Tuple) for part in n.elts]
            told += [n.value for n in nodes if isinstance(n, ast.keyword) and n.arg == "paper"]
            words = [n.value for n in told if isinstance(n, ast.Constant) and isinstance(n.value, str)]
            for figure in re.findall(r"\d+\.\d+", " ".join(words)):
                assert figure in TABLES, figure


@pytest.mark.parametrize("path", EVERY, ids=lambda p: p.stem)
def test_what_a_notebook_needs_can_be_trained(path):
    from omnilib import smoke

    needs = read(path).metadata.get("needs", [])
    assert set(needs) <= set(smoke.RECIPES)
    code = "\n".join(c.source for c in read(path).cells if c.cell_type == "code")
    wanted = re.findall(r'"(encoders|brain_stage1|brain_eyes|brain)"', code)
    loads = "load_trained(folder" in code or "Brain.load(folder" in code or "training_log" in code
    assert not (loads and wanted) or {"brain"} <= set(needs), "declare them: metadata.needs"


def test_paper_row_shows_a_share_with_its_range_in_percent():
    recorded = {"e": {"value": 0.0429, "n": 6, "ci95": [0.03, 0.06], "unit": ""}}
    row = {
        "claim": "c",
        "ref": "r",
        "paper": "WER 4.98 %",
        "metric": "e",
        "unit": "%",
        "rule": "lower",
        "verdict": "trend holds",
    }
    assert report.paper_row(row, recorded, "nano")["measured"] == "4.3 % (3.0 to 6.0): e"


WRONG = {
    "trained over lunch": "training takes hours",
    "scored on seed 1": "the committed score is of another seed",
    "ten equal stretches": "the figure shows how many there are",
    "last over first third": "stretches are fifths",
    "ten seconds of speech": "the length is printed",
    "w = 0.7 $$": "the guidance of a run is printed",
    "euler_steps=10": "the codec's own number of steps is recorded",
    "synthetic third": "100 of 400 thousand hours are a quarter",
    "filter drops below 20": "the limit is read from the rules",
    "lr=4e-4": "half of the grid's rate is computed from its file",
    "seed 2 here": "settings are printed, not repeated in a sentence",
    "several runs": "a checkpoint is made by one config in one run",
    "rows of one machine": "timings from different machines are not mixed",
    "kept out of training, a few percent": "unseen speakers are described in one plain sentence",
    "is heard as silence": "no energy: the judge writes nothing down",
    "nineteen engine voices": "voices are counted by the code, not in a sentence",
    "1,024 samples": "the window is read from the config",
}


@pytest.mark.parametrize("words", WRONG)
def test_sentences_found_wrong_do_not_come_back(words):
    for path in EVERY:
        assert words not in path.read_text(encoding="utf-8"), f"{path.stem}: {WRONG[words]}"


def test_sentences_about_committed_runs_agree_with_their_files():
    measured = json.loads((REPORTS / "nano" / "eval" / "metrics.json").read_text())["metrics"]
    assert 4 < measured["retrain_hours"]["value"] < 24, "chapter 00 says: within a day"


@pytest.mark.slow
@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda p: p.stem)
def test_solutions_run_at_smoke(path, tmp_path):
    papermill.execute_notebook(
        str(path),
        str(tmp_path / "executed.ipynb"),
        {"scale": "smoke"},
        cwd=str(ROOT),
        kernel_name="python3",
        progress_bar=False,
        execution_timeout=300,
    )


def test_nbdime_leaves_out_what_running_a_notebook_changes(tmp_path):
    assert "*.ipynb diff=jupyternotebook merge=jupyternotebook" in (ROOT / ".gitattributes").read_text()
    before, run, edited = read(CHAPTERS[0]), read(CHAPTERS[0]), read(CHAPTERS[0])
    cell = next(c for c in run.cells if c.cell_type == "code")
    cell.outputs, cell.execution_count = [nbformat.v4.new_output("stream", text="x")], 3
    cell.metadata.update(collapsed=True, execution={})
    edited.cells[-1].source += "one more sentence"
    paths = {name: tmp_path / f"{name}.ipynb" for name in ("before", "run", "edited")}
    for name, notebook in (("before", before), ("run", run), ("edited", edited)):
        nbformat.write(notebook, paths[name])

    def difference(name: str) -> str:
        command = [Path(sys.executable).with_name("nbdiff"), str(paths["before"]), str(paths[name])]
        return subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
        ).stdout

    assert difference("run") == ""
    assert "one more sentence" in difference("edited")
