"""Chapters 10 to 12 read what the measuring programs write; without it their rows read `not attempted`."""

import itertools
import json

import pytest

from omnilib import report
from omnilib.bench import brain as bench
from omnilib.eval import brain as answers
from omnilib.eval import needle
from omnilib.paths import NOTEBOOKS


def measured(folder):
    """Files of three programs, from records of known content: found up to 5 minutes, not in 75."""
    folder.mkdir(parents=True)
    records = [
        {
            "id": f"{minutes}-{depth}-{number}", "minutes": minutes, "depth": depth, "recording": number,
            "mode": mode, "secret": "red tree 42", "found": mode == "needle" and minutes < 75,
            "answer": "red tree 42" if mode == "needle" and minutes < 75 else "no",
        }
        for minutes, depth, number, mode in itertools.product(
            (1.0, 75.0), (0.0, 1.0), range(2), ("needle", "control")
        )
    ]  # fmt: skip
    (folder / "needle.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n")
    (folder / "needle.json").write_text(json.dumps(needle.figures(records)))
    rows = [
        {
            "seconds": n,
            "memory_gib": 1.5,
            **dict.fromkeys(("spectrum", "encoders", "prompt", "total"), n / 10),
        }
        for n in (60, 3600, 4500)
    ]
    cost = {"rows": rows, "laws": bench.laws(rows), "metrics": bench.headlines(rows)}
    (folder / "cost.json").write_text(json.dumps(cost))
    figure = {"value": 0.5, "n": 100, "ci95": [0.4, 0.6], "unit": "rate"}
    keys = [f"brain_{n}{m}" for n in ("sqa", *(f"see_{s}" for s in answers.SEEN)) for m in ("", "_typed")]
    blind = {
        key.removesuffix("_typed") + "_blind": figure | {"value": 0.1, "ci95": [0.05, 0.2]} for key in keys
    }
    whole = dict.fromkeys(keys, figure) | blind
    (folder / "metrics.json").write_text(json.dumps({"metrics": whole}))


def rows_of(folder) -> dict[str, tuple[str, str]]:
    """{metric: (verdict, measured)} of a chapter's table."""
    found = json.loads((folder / "metrics.json").read_text())
    return {row["metric"]: (row["verdict"], row["measured"]) for row in found["paper"]}


@pytest.mark.slow
def test_chapters_draw_their_verdicts_from_the_measured_files(tmp_path, monkeypatch):
    monkeypatch.setenv("OMNILIB_REPORTS", str(tmp_path / "reports"))
    measured(tmp_path / "reports" / "smoke" / "brain")
    for name in ("10_hour_long_audio", "11_eyes_and_ears"):
        outcome = report.run_notebook(NOTEBOOKS / f"{name}.ipynb", "smoke", tmp_path / "out", timeout=300)
        assert outcome.ok, outcome.error
    long, seen = (rows_of(tmp_path / "out" / "smoke" / n) for n in ("10_hour_long_audio", "11_eyes_and_ears"))
    assert long["needle_success_trained"][0] == "trend holds"
    assert long["needle_success_75min"][0] == "differs" and long["needle_success_75min"][1].startswith(
        "0.0 %"
    )
    assert long["needle_false"][0] == long["brain_memory_75min_gib"][0] == "trend holds"
    assert {
        (tmp_path / "out/smoke/10_hour_long_audio/figures" / f"{n}.png").is_file()
        for n in ("needle", "long_laws")
    } == {True}
    assert seen["brain_sqa"] == ("trend holds", "50.0 % (40.0 to 60.0): spoken questions answered right")
    assert [v for m, (v, _) in seen.items() if str(m).startswith("brain_see")] == ["trend holds"] * 5


def talked(folder):
    """Files of `eval.talk`: speech 2 points above the mouth alone, spoken answers 8 points below written ones."""
    folder.mkdir(parents=True)
    values = {"omni_speech_wer": 0.07, "omni_mouth_wer": 0.05, "omni_sqa_spoken": 0.52, "omni_sqa_text": 0.6}
    figure = {"n": 100, "ci95": [0.01, 0.9], "unit": "rate"}
    whole = {name: figure | {"value": value} for name, value in values.items()}
    (folder / "metrics.json").write_text(json.dumps({"metrics": whole}))
    speed = {"omni_first_sound_s": 0.8, "omni_underruns": 0.0, "omni_stop_s": 0.2, "omni_stop_ended_s": 0.3}
    clock = {name: {"value": value, "n": 20, "ci95": None, "unit": "s"} for name, value in speed.items()}
    (folder / "timings.json").write_text(json.dumps({"metrics": clock}))


@pytest.mark.slow
def test_chapter_12_draws_its_verdicts_from_the_measured_files(tmp_path, monkeypatch):
    monkeypatch.setenv("OMNILIB_REPORTS", str(tmp_path / "reports"))
    talked(tmp_path / "reports" / "smoke" / "talk")
    outcome = report.run_notebook(NOTEBOOKS / "12_both_tracks.ipynb", "smoke", tmp_path / "out", timeout=300)
    assert outcome.ok, outcome.error
    folder = tmp_path / "out" / "smoke" / "12_both_tracks"
    rows, speed = rows_of(folder), json.loads((folder / "timings.json").read_text())
    assert rows["omni_speech_wer"] == (
        "trend holds",
        "7.0 % (1.0 to 90.0): word error of spoken answers against their text",
    )
    assert rows["omni_sqa_spoken"][0] == "differs" and rows["second_turn_windows_ratio"][0] == "trend holds"
    timed = {row["metric"]: row["verdict"] for row in speed["paper"]}
    assert timed["omni_first_sound_s"] == "trend holds" and "text_share_at_first_sound" in timed
    assert timed["omni_stop_s"] == "differs" and "omni_underruns" in speed["metrics"]
    for name in ("tracks", "tracks_start", "budget", "slower", "lead"):
        assert (folder / "figures" / f"{name}.png").is_file()
