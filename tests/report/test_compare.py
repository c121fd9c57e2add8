"""`omni compare` and the table and plot of a sweep."""

import json

import pytest

from omnilib import cli
from omnilib.errors import UserError
from omnilib.provenance import write_stamp
from omnilib.report import compare


def entry(value, low=None, high=None, n=10, **more):
    return {"value": value, "n": n, "ci95": None if low is None else [low, high], "unit": "", **more}


def write_report(folder, metrics, parameters, speed=None):
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps({"settings": {"temperature": 0.2}, "metrics": metrics}))
    record = {"commit": "a" * 40, "parameters": parameters, "date": "2026-01-01", "wall_seconds": 3.0}
    write_stamp(folder, record, {"metrics": speed or {}})
    return folder


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        (entry(0.1, 0.05, 0.15), entry(0.14, 0.1, 0.2), "within"),
        (entry(0.1, 0.05, 0.15), entry(0.3, 0.2, 0.4), "differs"),
        (entry(0.1, 0.05, 0.15), entry(0.15), "within"),
        (entry(0.1), entry(0.1000001), "differs"),
        (entry(0.1), entry(0.1 + 1e-14), "same"),
        (entry(float("nan")), entry(float("nan")), "same"),
        (entry(0.1), None, "only in A"),
        (None, entry(0.1), "only in B"),
    ],
)
def test_verdict_follows_from_the_intervals(a, b, verdict):
    assert compare.verdict_of(a, b) == verdict


def test_two_report_folders_show_settings_that_differ_and_every_figure(tmp_path, capsys):
    a = write_report(
        tmp_path / "a", {"token_error": entry(0.4, 0.3, 0.5)}, {"seed": 0, "k": 4}, {"rtf_here": entry(0.1)}
    )
    b = write_report(
        tmp_path / "b", {"token_error": entry(0.45, 0.35, 0.5)}, {"seed": 1, "k": 4}, {"rtf_here": entry(0.3)}
    )
    assert cli.main(["compare", str(a), str(b)]) == 0, "within the interval, and speed does not count"
    told = capsys.readouterr().out
    assert "| parameters.seed | 0 | 1 |" in told and "parameters.k" not in told
    assert "| token_error | 40.0 % (30.0 to 50.0) | 45.0 % (35.0 to 50.0) | within |" in told
    assert "| rtf_here | 0.1 | 0.3 | differs (speed) |" in told
    (b / "metrics.json").write_text(
        json.dumps({"metrics": {"token_error": entry(0.9, 0.8, 1.0), "new": entry(1)}})
    )
    assert cli.main(["compare", str(a), str(b)]) == 1
    told = capsys.readouterr().out
    assert "differs |" in told and "| new | - | 1 | only in B |" in told


def test_summary_files_and_a_folder_of_reports_compare_too(tmp_path):
    write_report(tmp_path / "nano" / "04_x", {"loss": entry(2.0)}, {})
    (tmp_path / "nano" / "summary.json").write_text(
        json.dumps({"wer_en_tts": entry(0.1), "nothing": {"value": None, "n": 0}})
    )
    (tmp_path / "nano" / "timings.json").write_text(json.dumps({"rtf_total": entry(0.1)}))
    whole = compare.read_side(str(tmp_path / "nano"))
    assert set(whole.metrics) == {"wer_en_tts", "rtf_total", "04_x: loss"}
    assert set(compare.read_side(str(tmp_path / "nano" / "summary.json")).metrics) == {"wer_en_tts"}


def test_commits_are_read_without_a_checkout(tmp_path, monkeypatch):
    import subprocess

    def git(*arguments):
        who = ["-c", "user.name=n", "-c", "user.email=e"]
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init", "-q")
    for number, value in enumerate((0.1, 0.9)):
        folder = tmp_path / "reports" / "nano"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "summary.json").write_text(json.dumps({"wer_en_tts": entry(value)}))
        git("add", ".")
        git("commit", "-q", "-m", str(number))
    (tmp_path / "reports" / "nano" / "summary.json").write_text("what stands here now does not matter")
    monkeypatch.setattr(compare, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    text, code = compare.text_of(
        compare.read_side("HEAD~1"), compare.read_side("HEAD:reports/nano/summary.json")
    )
    assert code == 1 and "| wer_en_tts | 10.0 % | 90.0 % | differs |" in text
    with pytest.raises(UserError, match="has no reports/paper"):
        compare.read_side("HEAD", "paper")


@pytest.mark.parametrize("name", ["nowhere", "--output=x", "", ":", "-x:reports"])
def test_what_is_no_run_is_one_line(name):
    with pytest.raises(UserError, match="is no folder"):
        compare.read_side(name)


@pytest.mark.parametrize("text", ['{"metrics": ', "[1]", "{}", b"\xff\xfe"])
def test_damaged_and_empty_files_are_one_line(tmp_path, text):
    path = tmp_path / "metrics.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match="cannot read|holds no figures|no figures"):
        compare.read_side(str(path))


def test_a_sweep_is_one_table_and_one_plot(tmp_path):
    import pandas

    folders = [
        write_report(tmp_path / f"04_x@k={k},seed={seed}", {"token_error": entry(0.1 * k, 0.05, 0.9)}, {"k": k, "seed": seed}, {"rtf": entry(1 / k)})
        for k in (1, 2)
        for seed in (0, 1)
    ]  # fmt: skip
    files = compare.sweep(folders, tmp_path / "04_x-sweep")
    assert [f.name for f in files] == ["04_x-sweep.csv", "04_x-sweep.json", "04_x-sweep.png"]
    table = pandas.read_csv(files[0])
    assert len(table) == 8 and set(table["metric"]) == {"token_error", "rtf"}
    assert set(table.columns) >= {"run", "k", "seed", "metric", "value", "low", "high", "n", "unit"}
    assert compare.varied(table) == ["k", "seed"]
    assert json.loads(files[1].read_text())[0]["k"] == 1
    assert files[2].read_bytes().startswith(b"\x89PNG") and files[2].stat().st_size > 5000
    with pytest.raises(UserError, match="no figures"):
        compare.sweep([], tmp_path / "none")


def test_a_sweep_over_texts_is_drawn_too(tmp_path):
    folders = [
        write_report(tmp_path / name, {"loss": entry(i)}, {"text": f"{name} words $x_1"})
        for i, name in enumerate("ab")
    ]
    assert compare.sweep(folders, tmp_path / "sweep")[2].exists()
