"""The bench of the brain: parts add up, files grow, laws are exponents."""

import json

import pytest

from omnilib.bench import brain as bench


@pytest.fixture(scope="module")
def smoke():
    return bench.loaded("smoke", "int8")


def test_without_a_trained_brain_the_parts_are_measured_and_the_file_says_so(smoke):
    assert smoke[1] == "random projector"


def test_a_length_tells_its_parts_positions_and_memory(smoke):
    row = bench.measure_length(smoke[0], 7.0)
    assert row["positions"] > 35 and row["answer_tokens"] == bench.ANSWER and 0.01 < row["memory_gib"] < 20
    assert row["total"] == pytest.approx(
        sum(row[p] for p in ("spectrum", "encoders", "prompt", "answer")), abs=0.01
    )


def test_laws_are_the_exponents_of_what_grows():
    rows = [
        {"seconds": s, "spectrum": 2 * s, "encoders": s, "prompt": s**2, "total": s**1.5}
        for s in (60, 240, 900)
    ]
    assert bench.laws(rows) == {"spectrum": 1.0, "encoders": 1.0, "prompt": 2.0, "total": 1.5}
    assert bench.laws(rows[:1]) == {}


def test_the_files_hold_both_measurements_and_rows_of_other_lengths_stay(tmp_path, capsys):
    common = ["--scale", "smoke", "--reports", str(tmp_path)]
    given = ["--speed", "--cost", "--tokens", "4", "--rounds", "2", "--seconds", "2", "--seconds", "5"]
    assert bench.main([*common, *given]) == 0
    assert bench.main([*common, "--cost", "--seconds", "3"]) == 0
    cost = json.loads((tmp_path / "smoke/brain/cost.json").read_text())
    assert [r["seconds"] for r in cost["rows"]] == [2, 3, 5]
    speed = json.loads((tmp_path / "smoke/brain/speed.json").read_text())
    assert set(speed["metrics"]) == {"brain_tokens_per_s", "brain_speedup"}
    assert speed["rows"]["float32"]["same_answers"] == 2  # the same weights, the same ids
    assert speed["rows"]["plain"]["speedup"] == 1.0
    with pytest.raises(SystemExit):
        bench.main(common)


def test_answers_agree_until_they_part():
    assert bench.agreement([1, 2, 3], [1, 2, 4]) == 2 and bench.agreement([1, 2], [1, 2]) == 2


def test_headlines_stand_only_where_their_length_was_measured():
    rows = [
        {"seconds": 3600, "total": 500.0, "memory_gib": 3.0},
        {"seconds": 4500, "total": 700.0, "memory_gib": 3.5},
    ]
    assert set(bench.headlines(rows)) == {"brain_seconds_per_audio_hour", "brain_memory_75min_gib"}
    assert bench.headlines(rows[:0]) == {}
