"""Notebook runs: a good one is stamped, a failing or killed one is named and the others go on."""

import json

import nbformat
import numpy as np
import pytest

from omnilib import report
from omnilib.errors import UserError
from omnilib.paths import ROOT

PARAMETERS = 'scale: str = "smoke"  # smoke | nano | paper\nseed: int = 0\nout_dir: str = ""'
GOOD = """
import matplotlib.pyplot as plt
import numpy as np
import time
from omnilib import report
run = report.start(NAME, scale=scale, seed=seed, out_dir=out_dir)
run.set(temperature=0.2, retries=0)
run.metric("error", 0.125, n=8, ci95=(0.1, 0.15))
run.metric("rtf_here", time.perf_counter(), n=1, unit="s/s")
figure, axis = plt.subplots()
axis.plot([0, 1])
run.figure(figure, "line", "a line")
run.audio(np.sin(np.arange(8000) / 8), 16000, "tone", "a tone", demo=True)
run.paper_table([
    {"claim": "it works", "ref": "section 3", "paper": "2.28", "metric": "error", "verdict": "trend holds"},
    {"claim": "it runs", "ref": "table 1", "paper": "0.19", "metric": "rtf_here", "verdict": "trend holds", "rule": "below 1"},
    {"claim": "it flies", "ref": "table 9", "paper": "1", "metric": "height", "verdict": "differs"},
])
run.finish()
"""


def write_notebook(folder, name: str, *cells: str, parameters: str | None = PARAMETERS):
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = nbformat.v4.new_notebook(metadata=kernel)
    notebook.cells.append(
        nbformat.v4.new_markdown_cell("# Title\nwith $x^2$, `$PATH` and\n\n$$\\frac{a}{b}$$")
    )
    if parameters:
        notebook.cells.append(nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    notebook.cells += [nbformat.v4.new_code_cell(c.replace("NAME", repr(name))) for c in cells]
    path = folder / f"{name}.ipynb"
    nbformat.write(notebook, path)
    return path


@pytest.mark.slow
def test_good_failing_and_killed_notebooks_in_one_run(tmp_path):
    before = 'from omnilib import report\nrun = report.start(NAME, scale=scale, out_dir=out_dir)\nrun.metric("early", 1.0, n=1)\nprint("printed before")'
    notebooks = [
        write_notebook(
            tmp_path,
            "01_killed",
            before,
            "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
            "print('never')",
        ),
        write_notebook(tmp_path, "02_failing", before, "raise ValueError('the reason')"),
        write_notebook(tmp_path, "03_good", GOOD),
    ]
    reports = tmp_path / "reports"
    outcomes = report.run_notebooks(notebooks, "smoke", reports)

    assert [(o.name, o.ok) for o in outcomes] == [
        ("01_killed", False),
        ("02_failing", False),
        ("03_good", True),
    ]
    assert "ied" in outcomes[0].error  # "Kernel died"
    assert "ValueError: the reason" in outcomes[1].error
    for name, outcome in zip(
        ("01_killed", "02_failing"), outcomes[:2], strict=True
    ):  # what was made before is kept, elsewhere
        assert not (reports / "smoke" / name).exists()
        folder = tmp_path / "reports-failed" / "smoke" / name
        assert outcome.page == str(folder / "report.html")
        assert "printed before" in (folder / "report.html").read_text()
        assert "This run failed" in (folder / "report.html").read_text()
        assert json.loads((folder / "metrics.json").read_text())["metrics"]["early"]["value"] == 1.0
        provenance = json.loads((folder / "provenance.json").read_text())
        assert provenance["status"] == "failed" and provenance["parameters"]["seed"] == 0

    good = reports / "smoke" / "03_good"
    metrics = json.loads((good / "metrics.json").read_text())
    assert metrics["metrics"]["error"] == {"value": 0.125, "n": 8, "ci95": [0.1, 0.15], "unit": ""}
    assert [r["verdict"] for r in metrics["paper"]] == ["trend holds", "not attempted"]
    assert metrics["paper"][0]["measured"] == "12.5 % (10.0 to 15.0): error"
    assert (good / "figures" / "line.png").stat().st_size > 1000
    assert (good / "audio" / "tone.mp3").stat().st_size > 1000
    provenance = json.loads((good / "provenance.json").read_text())
    assert provenance["status"] == "ok"
    assert provenance["settings"] == {"temperature": 0.2, "retries": 0}
    assert set(provenance) >= {
        "commit",
        "dirty",
        "notebook_sha256",
        "parameters",
        "versions",
        "checkpoint_sha256",
    }
    timings = json.loads((good / "timings.json").read_text())
    assert set(timings) == {"date", "device", "wall_seconds", "peak_memory_gb", "metrics", "paper"} and set(
        timings["metrics"]
    ) == {"rtf_here"}
    page = (good / "report.html").read_text()
    assert (
        "<math" in page
        and "$PATH" in page
        and "<script" not in page
        and "http://" not in page.replace("http://www.w3.org", "")
    )
    assert str(ROOT) not in page + json.dumps(provenance)

    report.build_index(reports, "smoke")
    index = (reports / "index.html").read_text()
    assert "data:audio/mpeg;base64," in index and "a tone" in index
    assert "the reason" not in index, "a failed run is no report"
    assert "smoke/03_good/report.html" in index


def test_unknown_parameter_is_an_error_before_anything_runs(tmp_path):
    notebook = write_notebook(tmp_path, "01_x", "open('ran', 'w')")
    with pytest.raises(UserError, match="no parameter temprature; it has: out_dir, scale, seed"):
        report.run_notebooks([notebook], "smoke", tmp_path / "reports", {"temprature": 1})
    assert not (tmp_path / "reports").exists()


def test_notebook_without_a_parameters_cell_is_an_error(tmp_path):
    notebook = write_notebook(tmp_path, "01_x", "1", parameters=None)
    with pytest.raises(UserError, match="tagged `parameters`"):
        report.check_parameters(notebook, {"scale": "smoke"})


def test_choosing_a_notebook_that_is_not_there_lists_the_others(tmp_path):
    write_notebook(tmp_path, "01_x", "1")
    assert [p.stem for p in report.list_notebooks("01", tmp_path)] == ["01_x"]
    with pytest.raises(UserError, match="there are: 01_x"):
        report.list_notebooks("77", tmp_path)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"verdict": "great", "metric": "m"}, "not one of"),
        ({"verdict": "reproduced", "metric": "m"}, "never earns"),
        ({"verdict": "not attempted", "metric": None}, "needs a reason"),
    ],
)
def test_verdicts_outside_the_rules_are_refused(row, told):
    with pytest.raises(UserError, match=told):
        report.paper_row({"claim": "c", "ref": "r", "paper": "1", **row}, {"m": {"value": 1, "n": 1}}, "nano")


def test_equations_become_mathml_and_code_and_prices_stay():
    source = "$a_1$ costs $5 and $6; `$HOME$` \n```\n$x$\n```\n$$\\sum_i x_i$$"
    result = report.math_to_mathml(source)
    assert result.count("<math") == 2
    assert "costs $5 and $6" in result and "`$HOME$`" in result and "```\n$x$\n```" in result


def test_mp3_keeps_the_length_and_the_tone():
    import io

    import soundfile

    wave = np.sin(2 * np.pi * 440 * np.arange(32000) / 16000).astype(np.float32) * 0.5
    decoded, rate = soundfile.read(io.BytesIO(report.encode_mp3(wave, 16000)))
    assert rate == report.AUDIO_RATE
    assert abs(len(decoded) / rate - 2.0) < 0.1
    spectrum = np.abs(np.fft.rfft(decoded[:rate]))
    assert abs(int(spectrum.argmax()) - 440) <= 1


def test_readme_table_is_drawn_from_summary_between_markers(tmp_path):
    (tmp_path / "nano").mkdir()
    summary = {
        "wer_en_tts": {"value": 0.1234, "n": 120, "ci95": [0.1, 0.15], "source": "reports/nano/wer.json"},
        "extra_one": {"value": 7, "n": 1, "ci95": None, "source": "s"},
    }
    (tmp_path / "nano" / "summary.json").write_text(json.dumps(summary))
    readme = tmp_path / "nano" / "README.md"
    readme.write_text("before\n<!-- results:begin (omni report) -->\nstale\n<!-- results:end -->\nafter\n")
    report.build_index(tmp_path, "nano", readme)
    report.build_index(tmp_path, "nano", readme)  # drawing twice changes nothing
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "stale" not in text
    shown = "| English word error | not measured | not measured | 12.3 % (10.0 to 15.0) | 120 | reports/nano/wer.json |"
    assert shown in text
    assert "| extra one | 7 | - | 1 | s |" in text
    assert "| real-time factor, whole chain | not measured | s of work for 1 s of speech | - | - |" in text


def test_readme_without_markers_is_an_error(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("no markers")
    with pytest.raises(UserError, match="put them back"):
        report.update_markers(readme, "x")
