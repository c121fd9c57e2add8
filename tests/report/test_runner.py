"""Notebook runs end to end: reasons of failures, earlier reports that stay, runs that repeat to the byte, a quiet terminal."""

import json
import re

import nbformat
import pytest

from omnilib import report
from omnilib.errors import UserError
from omnilib.provenance import commit_of, read_stamp, scrub, write_stamp
from omnilib.report import headlines, notebooks
from omnilib.report.notebooks import reason
from tests.test_report import GOOD, write_notebook


@pytest.mark.slow
def test_two_runs_repeat_to_the_byte_but_for_what_timings_json_holds(tmp_path):
    notebook = write_notebook(tmp_path, "03_good", GOOD.replace("seed=seed", "seed=seed, width=3"))
    files = []
    for _ in range(2):  # the second replaces the first
        assert report.run_notebook(notebook, "smoke", tmp_path / "reports", {"seed": 5}).ok
        folder = tmp_path / "reports" / "smoke" / "03_good"
        files.append(
            {
                p.relative_to(folder).as_posix(): p.read_bytes()
                for p in sorted(folder.rglob("*"))
                if p.is_file()
            }
        )
    first, second = files
    assert set(first) == set(second) == {
        *("metrics.json", "provenance.json", "timings.json", "report.html", "figures/line.png", "audio/tone.mp3")
    }  # fmt: skip
    assert [name for name in first if first[name] != second[name]] in (
        ["report.html", "timings.json"],
        ["timings.json"],
    )
    drop = re.compile(rb"<td>[0-9.,]+ s/s: rtf here</td>")  # the cell drawn from a figure of speed
    assert drop.search(first["report.html"]) and drop.sub(b"", first["report.html"]) == drop.sub(
        b"", second["report.html"]
    )
    assert b".new-" not in first["report.html"], "the page names the folder it stands in"
    assert (
        b"Another machine may change this line" in first["report.html"]
        and b"<code>rtf_here</code>" in first["report.html"]
    )
    record = json.loads(first["provenance.json"])
    assert record["parameters"] == {"scale": "smoke", "seed": 5, "width": 3}, (
        "the notebook's own, its seed among them"
    )
    assert not {"date", "wall_seconds", "device"} & set(record)
    timings = json.loads(first["timings.json"])
    assert timings["wall_seconds"] > 0 and re.fullmatch(r"\d{4}-\d\d-\d\d", timings["date"])
    assert (
        timings["paper"][0]["rule"] == "below 1"
        and "rtf_here" not in json.loads(first["metrics.json"])["metrics"]
    )


@pytest.mark.slow
def test_failures_have_reasons_and_the_others_go_on(tmp_path, capfd):
    (tmp_path / "90_bad.ipynb").write_text('{"cells": [')
    good = write_notebook(
        tmp_path, "93_good", "import os\nos.write(1, b'noise')\nos.system('echo noise >&2')"
    )
    earlier = tmp_path / "out" / "smoke" / "91_magic"
    earlier.mkdir(parents=True)
    (earlier / "report.html").write_text("an earlier good report")
    chosen = [
        tmp_path / "90_bad.ipynb",
        write_notebook(tmp_path, "91_magic", "%nosuchmagic"),
        write_notebook(tmp_path, "92_shell", "!false"),
        good,
    ]
    outcomes = report.run_notebooks(chosen, "smoke", tmp_path / "out")
    assert [(o.name, o.ok) for o in outcomes] == [
        ("90_bad", False),
        ("91_magic", False),
        ("92_shell", False),
        ("93_good", True),
    ]
    for outcome, words in zip(
        outcomes, ("damaged JSON", "magic function `%nosuchmagic` not found", "exit code 1"), strict=False
    ):
        assert words in outcome.error and "\n" not in outcome.error
    assert (earlier / "report.html").read_text() == "an earlier good report"
    assert "nosuchmagic" in (tmp_path / "out-failed" / "smoke" / "91_magic" / "report.html").read_text()
    told = capfd.readouterr()
    assert "noise" not in told.out and not told.err, "only our own lines reach the terminal"
    assert len(told.out.splitlines()) == 6, told.out


class Failed(Exception):
    """What papermill and nbclient raise: with or without a name and a value."""

    def __init__(self, ename="", evalue="", source="", text=""):
        super().__init__(text)
        self.ename, self.evalue, self.source = ename, evalue, source


@pytest.mark.parametrize(
    ("problem", "told"),
    [
        (Failed("ValueError", "the reason\nmore"), "ValueError: the reason"),
        (Failed("ValueError", "\n\n second"), "ValueError: second"),
        (
            Failed("ValueError", "", "x = 1\nraise ValueError"),
            "ValueError without a message in the cell that ends with `raise ValueError`",
        ),
        (Failed("CellExecutionError", "", text="\x1b[31mUsageError: bad\x1b[0m"), "UsageError: bad"),
        (RuntimeError("Kernel died"), "RuntimeError: Kernel died"),
        (TimeoutError(), "TimeoutError without a message; see kernel.log"),
    ],
)
def test_every_failure_is_one_line_with_a_reason(problem, told):
    assert reason(problem) == told


def test_a_page_that_cannot_be_drawn_fails_that_notebook_alone(monkeypatch):
    monkeypatch.setattr(notebooks, "render", lambda *a: 1 / 0)
    text, error = notebooks.draw(nbformat.v4.new_notebook(), "01_x", "")
    assert "could not be drawn: ZeroDivisionError: division by zero" in error and error in text


def test_a_full_disk_fails_that_notebook_and_the_earlier_report_stays(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    earlier = tmp_path / "out" / "smoke" / "01_x" / "report.html"
    earlier.parent.mkdir(parents=True)
    earlier.write_text("earlier")
    monkeypatch.setattr(notebooks, "execute", full)
    outcome = report.run_notebook(write_notebook(tmp_path, "01_x", "1"), "smoke", tmp_path / "out")
    assert not outcome.ok and "No space left" in outcome.error
    assert earlier.read_text() == "earlier" and len(list((tmp_path / "out" / "smoke").iterdir())) == 1


def test_the_outer_stamp_only_adds(tmp_path):
    notebook = write_notebook(tmp_path, "01_x", "1")
    own = {
        "parameters": {"scale": "smoke", "seed": 7, "width": 3},
        "settings": {"temperature": 0.2},
        "commit": "b" * 40,
        "dirty": True,
    }
    write_stamp(
        tmp_path,
        {**own, "date": "2020-01-01", "wall_seconds": 1.0},
        {"metrics": {"rtf": {"value": 1.0, "n": 1}}},
    )
    values = {"scale": "smoke", "seed": 7, "out_dir": "somewhere"}
    record = notebooks.complete_stamp(tmp_path, notebook, "smoke", values, 12.0, "")
    found = json.loads((tmp_path / "provenance.json").read_text())
    assert (
        found["parameters"] == own["parameters"]
        and found["settings"] == own["settings"]
        and found["commit"] == own["commit"]
    )
    assert {"notebook_sha256", "versions", "checkpoint_sha256", "manifest_sha256"} <= set(found)
    timings = json.loads((tmp_path / "timings.json").read_text())
    assert timings["wall_seconds"] == 12.0 and timings["metrics"]["rtf"]["value"] == 1.0, (
        "seconds of the whole notebook"
    )
    assert read_stamp(tmp_path) == record and commit_of(record) == "bbbbbbbb + local changes"


def test_local_changes_are_shown_on_the_front_page(tmp_path):
    folder = tmp_path / "nano" / "04_x"
    folder.mkdir(parents=True)
    (folder / "report.html").write_text("page")
    (folder / "metrics.json").write_text('{"metrics": {}}')
    write_stamp(folder, {"status": "ok", "commit": "c" * 40, "dirty": True, "wall_seconds": 3.0})
    report.build_index(tmp_path, "nano")
    for name in ("index.html", "README.md"):
        assert "cccccccc + local changes" in (tmp_path / name).read_text()


def test_a_front_page_is_not_emptied(tmp_path):
    (tmp_path / "index.html").write_text("good")
    for scale in ("paper", "smoke"):
        with pytest.raises(UserError, match="nothing was measured"):
            report.build_index(tmp_path, scale)
    (tmp_path / "nano").mkdir()
    (tmp_path / "nano" / "summary.json").write_text('{"wer_en_tts": ')
    with pytest.raises(UserError, match="summary.json"):
        report.build_index(tmp_path, "nano")
    (tmp_path / "nano" / "summary.json").write_text('{"wer_en_tts": {"value": 0.1, "n": 3}}')
    (tmp_path / "README.md.real").write_text("no markers")
    with pytest.raises(UserError, match="put them back"):
        report.build_index(tmp_path, "nano", tmp_path / "README.md.real")
    assert (tmp_path / "index.html").read_text() == "good", "nothing is written when a part of it cannot be"
    assert not (tmp_path / "README.md").exists()


@pytest.mark.parametrize("scale", ["smoke", "nowhere"])
def test_report_refuses_a_scale_that_is_not_for_the_front_page(scale, capsys, monkeypatch):
    from omnilib import cli

    monkeypatch.setattr(report, "build_index", lambda *a, **k: pytest.fail("the front page was written"))
    assert cli.main(["report", "--scale", scale]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "unit", "shown"),
    [
        ("phoneme_error_as_trained", "", "4.3 %"),
        ("wer_en_tts", "", "4.3 %"),
        ("anything", "rate", "4.3 %"),
        ("curation_padding_waste", "", "4.3 %"),
        ("error_last_over_first", "", "0.043"),
        ("curation_boundary_error_s", "", "0.043 s"),
        ("sim_seen", "", "0.043"),
        ("rtf_here", "s/s", "0.043 s/s"),
    ],
)
def test_a_share_is_shown_in_percent_everywhere(name, unit, shown):
    entry = {"value": 0.043, "n": 5, "ci95": None, "unit": unit}
    row = {"claim": "c", "ref": "r", "paper": "WER 4.98 %", "metric": name, "verdict": "trend holds"}
    found = report.paper_row(row, {name: entry}, "nano")
    assert found["measured"] == f"{shown}: {headlines.measure_of(name)}"


def test_every_verdict_has_its_rule_beside_it(tmp_path):
    row = {
        "claim": "short is better",
        "ref": "table 1",
        "paper": "-",
        "metric": "loss",
        "verdict": "trend holds",
    }
    recorded = {"loss": {"value": 1.5, "n": 5, "ci95": None, "unit": "nats"}}
    assert report.paper_row(row | {"rule": "below 2"}, recorded, "nano")["rule"] == "below 2"
    assert "short is better" in report.paper_row(row, recorded, "nano")["rule"]
    assert report.paper_row(row | {"paper": "our aim <= 2 %"}, recorded, "nano")["rule"] == "<= 2 %"
    assert report.paper_row(row, {}, "nano")["rule"] == "-", "nothing was attempted"
    folder = tmp_path / "nano" / "04_x"
    folder.mkdir(parents=True)
    (folder / "report.html").write_text("page")
    paper = [report.paper_row(row | {"rule": "below 2"}, recorded, "nano")]
    (folder / "metrics.json").write_text(json.dumps({"metrics": recorded, "paper": paper}))
    write_stamp(folder, {"status": "ok", "commit": "c" * 40, "dirty": False, "wall_seconds": 3.0})
    report.build_index(tmp_path, "nano")
    page = (tmp_path / "index.html").read_text()
    assert "<td>1.5 nats: loss</td><td>nano · 5</td><td>trend holds</td><td>below 2</td>" in page


def test_sentences_with_unseen_words_follow_the_everyday_ones():
    """The committed front page, drawn from the committed figures."""
    names = [row[0] for row in report.summary_rows("nano")]
    for language in ("English word error", "Mandarin pinyin error"):
        everyday = names.index(f"{language}, everyday sentences, text to speech")
        assert everyday < names.index(f"{language}, sentences with unseen words, text to speech")
        assert f"{language}, text to speech" not in names, "the same figure by its former name"
    rows = {row[0]: row for row in report.summary_rows("nano")}
    assert " %" in rows["English word error, sentences with unseen words, text to speech"][1]
    assert all(row[2] for row in rows.values()), "each figure says what it is counted in"


def test_a_figure_keeps_six_digits_and_whole_numbers_stay(tmp_path):
    run = report.Run("01_x", "smoke", tmp_path, {})
    for name, value in {
        "loss": 4.469815917313099,
        "other": 4.469815902411938,
        "params": 16858125,
        "nothing": float("nan"),
    }.items():
        assert run.metric(name, value, 1, (value, value)) is value
    found = json.loads((tmp_path / "metrics.json").read_text())["metrics"]
    assert (
        found["loss"] == found["other"]
        and found["loss"]["value"] == 4.46982
        and found["loss"]["ci95"] == [4.46982, 4.46982]
    )
    assert found["params"]["value"] == 16858125 and found["nothing"]["value"] != found["nothing"]["value"]


def test_figures_of_speed_are_told_from_others():
    speed = {
        "rtf_total": {},
        "ttfs_stream_s": {},
        "mouth_cost": {"unit": "s/s"},
        "speedup_k4": {},
        "first_sound_here_s": {"unit": "s"},
    }
    plain = {
        "heard_seconds": {"unit": "s"},
        "wer_en_tts": {},
        "artful": {},
        "tokens_per_second": {"unit": "/s"},
        "rtf_x": {"timing": False},
    }
    assert headlines.split_timings({**speed, **plain}) == (plain, speed)


def test_only_whole_names_of_folders_are_replaced(monkeypatch):
    from omnilib.paths import ROOT

    monkeypatch.setattr(
        "tempfile.tempdir", str(ROOT / "elsewhere")
    )  # a clone may itself lie in the folder for temporary files
    assert scrub(f"{ROOT}/a {ROOT} {ROOT}.old {ROOT}2/b") == f"./a . {ROOT}.old {ROOT}2/b"


def test_a_chapter_names_the_parts_it_needs_and_runs_when_they_are_there(tmp_path, monkeypatch):
    from omnilib import checkpoints

    monkeypatch.setattr(checkpoints, "CHECKPOINTS", tmp_path / "checkpoints")
    plain, needy = (write_notebook(tmp_path, name, "1") for name in ("01_plain", "08_needy"))
    node = nbformat.read(needy, as_version=4)
    node.metadata["needs"] = ["brain"]
    nbformat.write(node, needy)
    damaged = tmp_path / "09_damaged.ipynb"
    damaged.write_text("{")
    every = [plain, needy, damaged]
    assert report.parts_needed(needy) == ["brain"] and report.parts_needed(plain) == []
    chosen, lines = report.with_parts(every, "nano")
    assert chosen == [plain, damaged], "one that cannot be read is reported when its turn comes"
    assert len(lines) == 1 and lines[0].startswith("08_needy left out: checkpoints/nano/brain is missing")
    assert "make retrain" in lines[0] and "\n" not in lines[0]
    assert report.with_parts(every, "smoke") == (every, []), "at smoke a chapter trains what it needs"
    (tmp_path / "checkpoints" / "nano" / "brain").mkdir(parents=True)
    assert report.with_parts(every, "nano") == (every, [])


def test_claims_one_by_one_make_the_same_table_as_rows(tmp_path, monkeypatch):
    run = report.start("01_x", "smoke", out_dir=str(tmp_path))
    run.metric("word_error", 0.2, 50)
    row = {
        "claim": "c",
        "ref": "r",
        "paper": "3 %",
        "verdict": "differs",
        "metric": "word_error",
        "unit": "%",
    }
    run.claim(**row)
    run.claim(claim="d", ref="r", paper="-", verdict="trend holds", metric="nobody_measured", rule="above 0")
    run.paper_table()
    one_by_one = run.paper
    run.paper_table([row])
    assert one_by_one[0] == run.paper[0] and "20.0 %" in run.paper[0]["measured"]
    assert one_by_one[1]["verdict"] == "not attempted" and "nobody_measured" in one_by_one[1]["why"]
