"""Figures on every test line: paired differences, headlines beside those of the committed sample."""

import json

import pytest

from omnilib.errors import DataError
from omnilib.eval import all_lines


def line(number: int, language: str, system: str, error: float, words: int, seen: bool = True) -> dict:
    key = all_lines.MEASURES[language]
    return {
        "id": f"{language}-{number}",
        "role": "eval",
        "language": language,
        "system": system,
        "seen": seen,
        key: {"error": error, "words": words},
    }


@pytest.fixture
def run(tmp_path):
    """An evaluation of four lines a language: the codec adds one error in ten words to each, the speech two."""
    records = [
        line(n, language, system, 0.2 * (n % 2) + more, 10 if n < 3 else 30, seen=n != 0)
        for language in ("en", "zh")
        for n in range(4)
        for system, more in (("gt", 0.0), ("codec", 0.1), ("tts", 0.2))
    ]
    entry = {"n": 4, "ci95": [0.0, 0.5], "unit": "rate", "seed": 0, "judge": "ear", "normaliser": "plain"}
    metrics = {name: entry | {"value": 0.1 * i} for i, name in enumerate(all_lines.RATES)}
    folder = tmp_path / "run" / "nano" / "eval"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps({"settings": {"judges": "ear"}, "metrics": metrics}))
    (folder / "utterances.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (folder / "provenance.json").write_text("{}")
    return tmp_path / "run"


def test_differences_are_of_the_same_lines_and_headlines_join_the_others(run, tmp_path):
    reports = tmp_path / "reports"
    (reports / "nano").mkdir(parents=True)
    (reports / "nano" / "summary.json").write_text(json.dumps({"wer_en_gt": {"value": 0.5}}))
    assert all_lines.main(["--run", str(run), "--reports", str(reports)]) == 0
    metrics = json.loads((reports / "nano" / "eval_all" / "metrics.json").read_text())["metrics"]
    for name, value in {"wer_en_codec_over_gt": 0.1, "zh_tts_over_gt": 0.2}.items():
        assert metrics[name]["value"] == pytest.approx(value) and metrics[name]["ci95"] == pytest.approx(
            [value, value]
        ), "lines differ, pairs do not"
        assert (metrics[name]["n"], metrics[name]["words"], metrics[name]["judge"]) == (4, 60, "ear")
    assert (
        metrics["wer_en_codec_over_gt_unseen"]["n"] == 1
        and metrics["wer_en_codec_over_gt_seen"]["words"] == 50
    )
    summary = json.loads((reports / "nano" / "summary.json").read_text())
    assert set(summary) == {"wer_en_gt", *(f"{name}_all" for name in all_lines.RATES)}
    assert summary["wer_en_gt"] == {"value": 0.5}
    assert summary["zh_tts_all"] == {
        "value": 0.5,
        "n": 4,
        "ci95": [0.0, 0.5],
        "source": "reports/nano/eval_all/metrics.json",
    }
    assert (reports / "nano" / "eval_all" / "utterances.jsonl").is_file()


def test_a_run_that_is_not_there_or_lacks_figures_is_one_line(run, tmp_path, capsys):
    assert all_lines.main(["--run", str(tmp_path / "none"), "--reports", str(tmp_path)]) == 2
    assert "no evaluation in" in capsys.readouterr().err
    path = run / "nano" / "eval" / "metrics.json"
    whole = json.loads(path.read_text())
    whole["metrics"].pop("zh_tts")
    path.write_text(json.dumps(whole))
    with pytest.raises(DataError, match="lacks zh_tts"):
        all_lines.collect(run, tmp_path / "reports", "nano")
    assert not (tmp_path / "reports").exists()
