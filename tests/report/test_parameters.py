"""Notebooks that cannot be read say why; parameters given as text are typed, checked and combined."""

import json

import nbformat
import pytest

from omnilib import cli
from omnilib.errors import UserError
from omnilib.report import list_notebooks
from omnilib.report.parameters import combinations, parse_value, read_parameters, variant_name

KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
SOURCE = 'scale: str = "smoke"\nseed: int = 0\nout_dir: str = ""\nk: int = 4  # streams\nrate: float = 1\ntext: str = "a"\nfast: bool = True'


def write(path, source=SOURCE, metadata=KERNEL):
    cells = (
        [nbformat.v4.new_code_cell(source, metadata={"tags": ["parameters"]})] if source is not None else []
    )
    nbformat.write(nbformat.v4.new_notebook(metadata=metadata, cells=cells), path)
    return path


def damaged(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is empty"),
        ("  \n", "is empty"),
        ('{"cells": [', "damaged JSON"),
        (b"\xff\xfe{}", "not UTF-8"),
        ("[]", "no notebook of format 4"),
        ("{}", "no notebook of format 4"),
        (
            json.dumps({"nbformat": 3, "nbformat_minor": 0, "metadata": {}, "cells": []}),
            "no notebook of format 4",
        ),
        (
            json.dumps(
                {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [{"cell_type": "code"}]}
            ),
            "no valid notebook",
        ),
    ],
)
def test_a_damaged_notebook_says_what_is_wrong_in_one_line(tmp_path, text, told):
    with pytest.raises(UserError, match=told) as caught:
        read_parameters(damaged(tmp_path / "90_bad.ipynb", text))
    assert "90_bad.ipynb" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "metadata", "told"),
    [
        (SOURCE, {}, "names no kernel"),
        (SOURCE, {"kernelspec": {"name": "ir", "display_name": "R", "language": "R"}}, "written for R"),
        (None, KERNEL, "tagged `parameters`"),
        ("k: int = ", KERNEL, "no Python"),
        ("print(1)", KERNEL, "sets no"),
    ],
)
def test_a_notebook_without_kernel_or_parameters_says_so(tmp_path, source, metadata, told):
    with pytest.raises(UserError, match=told):
        read_parameters(write(tmp_path / "90_bad.ipynb", source, metadata))


def test_a_missing_notebook_is_one_line(tmp_path):
    with pytest.raises(UserError, match="cannot read 90_none.ipynb"):
        read_parameters(tmp_path / "90_none.ipynb")


def test_defaults_and_types_come_from_the_parameters_cell(tmp_path):
    known = read_parameters(write(tmp_path / "1_x.ipynb"))
    assert (
        known["k"] == (4, int)
        and known["rate"] == (1, float)
        and known["fast"] == (True, bool)
        and known["text"] == ("a", str)
    )
    assert read_parameters(write(tmp_path / "2_x.ipynb", "k = 3\nwhen = now()")) == {"k": (3, int)}, (
        "computed is no literal"
    )


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("3", int, 3),
        ("0.5", float, 0.5),
        ("2", float, 2.0),
        ("true", bool, True),
        ("No", bool, False),
        ("3", str, "3"),
        ("[1]", list, [1]),
    ],
)
def test_a_value_takes_the_type_of_its_parameter(text, kind, value):
    found = parse_value("p", text, kind)
    assert found == value and type(found) is kind


@pytest.mark.parametrize(
    ("text", "kind"), [("x", int), ("1.5", int), ("", float), ("maybe", bool), ("(1,)", list), ("f(", list)]
)
def test_a_value_of_another_type_is_refused(text, kind):
    with pytest.raises(UserError, match=f"is no {kind.__name__}"):
        parse_value("p", text, kind)


def test_commas_and_repeated_names_make_a_sweep(tmp_path):
    notebook = [write(tmp_path / "1_x.ipynb")]
    assert combinations([], notebook) == []
    assert combinations(["k=1,2", "seed=3"], notebook) == [{"k": 1, "seed": 3}, {"k": 2, "seed": 3}]
    assert combinations(["k=1", "k=2,1"], notebook) == [{"k": 1}, {"k": 2}], "each value once"
    assert combinations(["text=well, yes", "text=no"], notebook) == [{"text": "well, yes"}, {"text": "no"}], (
        "a comma of a text is its own"
    )
    assert combinations(["text=a=b"], notebook) == [{"text": "a=b"}]


@pytest.mark.parametrize(
    "given",
    [
        "k",
        "=1",
        "k = x",
        "stream=1",
        "scale=nano",
        "out_dir=/tmp/x",
        "k=",
        "a b=1",
        f"k={','.join(map(str, range(99)))}",
    ],
)
def test_wrong_parameters_are_refused_before_anything_runs(tmp_path, given):
    with pytest.raises(UserError):
        combinations([given], [write(tmp_path / "1_x.ipynb")])


def test_a_changed_run_has_its_own_folder_name():
    assert variant_name({"k": 2, "seed": 1}) == "@k=2,seed=1"
    first, second = variant_name({"text": "../../a b"}), variant_name({"text": "../../a c"})
    assert "/" not in first and first != second and len(variant_name({"text": "x" * 500})) < 80


@pytest.mark.parametrize(
    "arguments", [["-p", "streamz=1"], ["--seed", "x"], ["-p", "k"], ["--scale", "paper"]]
)
def test_reproduce_refuses_before_running_and_exits_2(arguments, monkeypatch, capsys):
    from omnilib import report

    monkeypatch.setattr(report, "run_notebooks", lambda *a, **k: pytest.fail("something ran"))
    monkeypatch.setattr(report, "build_index", lambda *a, **k: pytest.fail("the front page was written"))
    assert cli.main(["reproduce", "--only", "04", *arguments]) == 2
    told = capsys.readouterr().err
    assert told.startswith("omni: ") and told.count("\n") == 1


def test_changed_parameters_go_to_their_own_folders_and_into_one_table(tmp_path, monkeypatch, capsys):
    from omnilib import report
    from omnilib.report.notebooks import Outcome

    def run(notebooks, scale, reports, values, name=""):
        folder = reports / scale / f"{notebooks[0].stem}{name}"
        folder.mkdir(parents=True)
        metrics = {"loss": {"value": values["seed"] * 1.0, "n": 1, "ci95": None, "unit": ""}}
        (folder / "metrics.json").write_text(json.dumps({"metrics": metrics}))
        (folder / "provenance.json").write_text(json.dumps({"parameters": values}))
        return [Outcome(folder.name, True, 0.0)]

    monkeypatch.setattr(cli, "ROOT", tmp_path)
    monkeypatch.setattr(cli, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(cli, "REPORTS", tmp_path / "reports")
    monkeypatch.setattr(report, "run_notebooks", run)
    monkeypatch.setattr(report, "build_index", lambda *a, **k: pytest.fail("the front page was written"))
    assert cli.main(["reproduce", "--only", "04", "--scale", "smoke", "--seed", "0,1,2"]) == 0
    stem = list_notebooks("04")[0].stem
    home = tmp_path / "runs" / "variants" / "smoke"
    assert {p.name for p in home.iterdir()} == {f"{stem}@seed={n}" for n in range(3)} | {
        f"{stem}-sweep.{e}" for e in ("csv", "json", "png")
    }
    assert [row["value"] for row in json.loads((home / f"{stem}-sweep.json").read_text())] == [0.0, 1.0, 2.0]
    assert not (tmp_path / "reports").exists() and "3 runs of" in capsys.readouterr().out
