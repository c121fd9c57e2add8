"""What stands behind a committed figure: changes are found by name, comments do not count, acceptance needs a reason."""

import json

import pytest

from omnilib.errors import UserError
from omnilib.report import sources

CODE = '''"""A module."""
import os  # for the path


def f(x):
    """Twice."""
    return 2 * x  # a comment
'''


def test_comments_docstrings_and_blank_lines_do_not_count_and_code_does():
    same = (
        CODE.replace("# a comment", "# another")
        .replace('"""Twice."""', '"""Two times."""')
        .replace("\n\n\n", "\n\n\n\n")
    )
    assert sources.code_hash(same) == sources.code_hash(CODE)
    assert sources.code_hash(CODE.replace("2 * x", "3 * x")) != sources.code_hash(CODE)
    assert sources.code_hash(CODE.replace('"""A module."""', 'NAME = "#1"')) != sources.code_hash(CODE)


def test_imports_inside_functions_count():
    assert sources.imports_of("def f():\n    from omnilib.mouth import decode\n") == {
        "omnilib.mouth",
        "omnilib.mouth.decode",
    }


def test_behind_the_evaluation_stand_model_judge_data_checkpoints_and_packages_but_no_page():
    found = sources.behind("eval")
    for path in ("omnilib/voice/flow.py", "omnilib/mouth/decode.py", "omnilib/eval/judges.py", "omnilib/spoken.py",
                 "data_prep/frozen", "checkpoints/nano/speechlm/model.safetensors"):  # fmt: skip
        assert path in found["files"], path
    assert not [
        p for p in found["files"] if p.startswith(("omnilib/report", "omnilib/plots", "omnilib/train"))
    ]
    assert {"torch", "transformers", "jiwer", "faster-whisper"} <= found["packages"].keys()


def test_public_names_and_smoke_training_put_no_other_part_behind_a_result():
    """`from omnilib import x` runs omnilib/__init__.py, which names Brain; a change in the brain makes no voice figure old."""
    ours, _ = sources.closure(["from omnilib import frozen, speak\nimport omnilib.eval.stage2_grid"])
    assert {"omnilib", "omnilib.frozen", "omnilib.train.speechlm"} <= ours
    assert not [name for name in ours if name.startswith(("omnilib.brain", "omnilib.smoke"))]


def test_behind_curation_stand_the_steps_that_its_recipe_names():
    files = sources.behind("curation")["files"]
    assert {
        "data_prep/steps/vad.py",
        "data_prep/steps/duplicates.py",
        "data_prep/recipes/wild.yaml",
    } <= files.keys()


def test_a_chapter_counts_by_its_code_not_by_its_prose(tmp_path):
    cells = [
        {"cell_type": "markdown", "source": ["words"]},
        {"cell_type": "code", "source": ["%matplotlib inline\n", "x = 1"]},
    ]
    path = tmp_path / "a.ipynb"
    path.write_text(json.dumps({"cells": cells}))
    assert sources.notebook_code(path) == "x = 1"


@pytest.fixture
def result(tmp_path):
    """A measured result in a reports folder of its own."""
    folder = tmp_path / "nano" / "eval"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text("{}")
    sources.record(folder, "eval")
    return folder


def tamper(folder, path: str = "omnilib/voice/flow.py", value: str = "0" * 16) -> None:
    stored = json.loads((folder / "sources.json").read_text())
    stored["files"][path] = value
    (folder / "sources.json").write_text(json.dumps(stored))


def test_a_fresh_result_is_up_to_date_and_a_changed_source_is_named(result, tmp_path):
    assert sources.check(tmp_path) == {}
    tamper(result)
    tamper(result, "omnilib/gone.py")
    assert sources.check(tmp_path) == {
        "eval": ["omnilib/gone.py is gone", "omnilib/voice/flow.py has changed"]
    }


def test_an_accepted_change_is_up_to_date_again_and_keeps_its_reason(result, tmp_path):
    tamper(result)
    tamper(result, "omnilib/gone.py")
    with pytest.raises(UserError, match="--why needs a sentence"):
        sources.accept("eval", "fine", tmp_path)
    sources.accept("eval", "only an error message has changed", tmp_path)
    assert sources.check(tmp_path) == {}
    assert (
        json.loads((result / "sources.json").read_text())["accepted"][0]["why"]
        == "only an error message has changed"
    )
    with pytest.raises(UserError, match="nothing behind 'eval' has changed"):
        sources.accept("eval", "only an error message has changed", tmp_path)


def test_a_result_without_a_note_and_one_without_a_program_are_named(result, tmp_path):
    (result / "sources.json").unlink()
    other = tmp_path / "nano" / "dreams"
    other.mkdir()
    (other / "metrics.json").write_text("{}")
    found = sources.check(tmp_path)
    assert found == {
        "eval": ["nobody noted what it was measured with"],
        "dreams": ["no program or notebook of that name is left"],
    }


def test_a_damaged_note_is_one_line(result, tmp_path):
    (result / "sources.json").write_text("{")
    with pytest.raises(UserError, match="cannot read eval/sources.json"):
        sources.check(tmp_path)


def test_behind_a_chapter_of_the_brain_stand_the_parts_it_declares():
    assert sources.needs_of(sources.ROOT / "notebooks" / "08_the_brain.ipynb") == ("encoders", "brain")
    assert sources.needs_of(sources.ROOT / "notebooks" / "04_the_mouth.ipynb") == ()
    files = sources.behind("08_the_brain")["files"]
    assert "omnilib/brain/fusion.py" in files and "notebooks/08_the_brain.ipynb" in files
    assert not any(name.startswith("checkpoints/nano/speechlm") for name in files)
    speaks = sources.behind("12_both_tracks")["files"]
    assert {"checkpoints/nano/codec.yaml", "checkpoints/nano/decode.yaml"} <= speaks.keys()
