"""The plan: arithmetic by hand where nothing is uncertain, ranges where it is, and honesty about what is not measured."""

import json

import numpy as np
import pytest

from data_prep import cost as planner
from data_prep.cost import (
    ASSUMPTIONS,
    COSTLY,
    Cluster,
    Guess,
    Prices,
    assumption,
    between,
    plan,
    public_sets,
    read_rates,
    render,
    supply,
)
from omnilib.errors import ConfigError, DataError

RATES = {name: {"core": 200.0} for name in COSTLY}


def certain(**values) -> dict[str, Guess]:
    """Every assumption pinned to one value."""
    pinned = {name: guess.likely for name, guess in ASSUMPTIONS.items()} | values
    return {name: Guess(v, v, v, "", "") for name, v in pinned.items()}


def test_the_named_sets_do_not_reach_the_papers_300_thousand_hours():
    have = supply()
    assert 150_000 < have["without_yodas"] < have["with_yodas"] < 250_000  # the range the dataset cards give
    assert have["missing"] == [300_000 - have["with_yodas"], 300_000 - have["without_yodas"]]
    assert have["missing_after_transcribed_fillers"][0] > 0  # nor with the three transcribed sets
    curated = have["fillers"][3]["hours"] * ASSUMPTIONS["keep_wild"].likely
    assert curated > have["missing"][1]  # but there is raw speech enough
    assert "librispeech" not in {row["name"] for row in public_sets()}


def test_arithmetic_when_nothing_is_uncertain():
    hours = {
        "named_hours": 1000,
        "keep_named": 0.5,
        "keep_wild": 0.25,
        "keep_synthetic": 0.8,
        "source_mb": 20,
        "work_mb": 100,
    }
    assume = certain(**hours, transcribe=10, rtf_synthesis=0.5, core_factor=2, utilisation=0.5)
    result = plan(1000, {"vad": {"core": 100.0}}, 0.2, Prices(2, 0.1, 10), Cluster(1, 10, 8), assume)
    # 800 h raw: 500 kept of 1000 named, 300 of 1200 others; 200 h synthetic of 250 spoken: 2450 go in
    likely = {k: v["likely"] for k, v in result["incoming_hours"].items()}
    assert likely == pytest.approx({"named sets": 1000, "further raw": 1200, "synthetic": 250, "all": 2450})
    steps = {s["name"]: s for s in result["steps"]}
    assert steps["vad"]["unit_hours"]["likely"] == pytest.approx(2450 / 100 / 2 / 0.5)
    assert steps["transcribe"]["unit_hours"]["likely"] == pytest.approx(2450 / 10 / 0.5)
    assert steps["synthesise"]["unit_hours"]["likely"] == pytest.approx(250 * 0.5 / 0.5)
    assert steps["vad"]["cost"]["likely"] == pytest.approx(24.5 * 0.1)
    assert result["nodes"]["core"] == 1 and result["nodes"]["gpu"] == int(
        np.ceil(result["gpu_hours"]["likely"] / (24 * 8))
    )
    assert steps["vad"]["days"]["likely"] == pytest.approx(24.5 / (1 * 10 * 24))
    assert result["storage_tb"]["sources"]["likely"] == pytest.approx(2200 * 20 / 1e6)
    assert result["storage_tb"]["working FLAC"]["likely"] == pytest.approx(2450 * 100 / 1e6)
    assert result["cost"]["all"]["likely"] == pytest.approx(
        sum(result["cost"][k]["likely"] for k in ("core", "gpu", "storage"))
    )
    for row in result["steps"]:
        assert row["unit_hours"]["low"] == row["unit_hours"]["high"]


def test_ranges_hold_their_likely_value_and_repeat():
    result = plan(400_000, RATES)
    assert result == plan(400_000, RATES)

    def ranges(value):
        if isinstance(value, dict) and set(value) == {"low", "likely", "high"}:
            yield value
        elif isinstance(value, dict | list):
            for inner in value.values() if isinstance(value, dict) else value:
                yield from ranges(inner)

    found = list(ranges({k: v for k, v in result.items() if k != "assumptions"}))
    assert len(found) > 30 and all(0 <= r["low"] <= r["likely"] <= r["high"] for r in found)
    assert all(s["unit_hours"]["low"] < s["unit_hours"]["high"] for s in result["steps"])


def test_twice_the_rate_is_half_the_work_and_twice_the_price_twice_the_cost():
    one = plan(10_000, RATES)
    fast = plan(10_000, {name: {"core": 400.0} for name in COSTLY})
    assert fast["core_hours"]["likely"] == pytest.approx(one["core_hours"]["likely"] / 2)
    dear = plan(10_000, RATES, prices=Prices(5.0, 0.08, 40.0))
    assert dear["cost"]["all"]["high"] == pytest.approx(2 * one["cost"]["all"]["high"])
    assert plan(10_000, RATES, cluster=Cluster(days=1))["nodes"]["gpu"] > one["nodes"]["gpu"]


def test_few_hours_need_no_further_raw_speech():
    assert plan(1000, RATES)["incoming_hours"]["further raw"]["high"] == pytest.approx(0)
    assert plan(400_000, RATES)["incoming_hours"]["further raw"]["low"] > 50_000


def test_all_or_nothing_synthetic():
    assert plan(1000, RATES, 1.0)["incoming_hours"]["named sets"]["high"] == 0
    assert {"synthesise", "rewrite texts"}.isdisjoint(s["name"] for s in plan(1000, RATES, 0.0)["steps"])


def test_a_measured_gpu_rate_replaces_the_published_one():
    rates = RATES | {"transcribe": {"gpu": 100.0, "core": 2.0}, "tokens": {"gpu": 500.0, "core": 5.0}}
    steps = {s["name"]: s for s in plan(1000, rates)["steps"]}
    assert (steps["transcribe"]["rate_from"], steps["transcribe"]["unit"], steps["tokens"]["unit"]) == (
        "measured",
        "gpu",
        "gpu",
    )
    assert steps["transcribe"]["audio_hours_per_unit_hour"]["likely"] == pytest.approx(100)


def test_what_is_not_measured_is_said_and_left_out(tmp_path):
    assert read_rates(tmp_path / "bench.json") == {}
    text = render(plan(400_000, {}))
    assert "Not measured, so not in the sums: decode," in text and "data_prep.bench.curation" in text
    assert "core-hours" not in text.split("## Sums")[1].split("## Assumptions")[0]
    assert "**They do not add up.**" in text
    whole = render(plan(400_000, RATES))
    assert "Not measured" not in whole and "| core-hours |" in whole
    for name, guess in ASSUMPTIONS.items():
        assert f"| {name} |" in whole and guess.source in whole
    assert "placeholders" in whole


def test_measured_rates_are_read_from_the_benchmark(tmp_path):
    bench = tmp_path / "bench.json"
    bench.write_text(
        json.dumps({"steps": {"vad": {"audio_hours_per_core_hour": 150, "peak_memory_mib": 90}, "split": {}}})
    )
    assert read_rates(bench) == {"vad": {"core": 150.0}}
    for content in (
        "{",
        "[]",
        '{"steps": [1]}',
        '{"steps": {"vad": {"audio_hours_per_core_hour": -1}}}',
        '{"rates": {}}',
    ):
        bench.write_text(content)
        with pytest.raises(DataError, match="bench.json.*run `python -m data_prep.bench.curation` again"):
            read_rates(bench)


def test_figures_keep_three_digits():
    assert between({"low": 0.01234, "likely": 1.0, "high": 99.96}) == "1.00 (0.0123 - 100)"
    assert between({"low": 1234.0, "likely": 12345.0, "high": 0.0}) == "12,300 (1,230 - 0)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hours", "0"], "--hours is more than 0"),
        (["--synthetic-share", "1.5"], "lies between 0 and 1"),
        (["--days", "0"], "more than 0"),
        (["--gpu-price", "-1"], "not negative"),
        (["--assume", "luck=1"], "no assumption 'luck'"),
        (["--assume", "keep_wild=high"], "write keep_wild=low,likely,high"),
        (["--assume", "keep_wild=0.5,0.4,0.6"], "0 < low <= likely <= high"),
    ],
)
def test_nonsense_is_one_line(arguments, message):
    with pytest.raises(SystemExit, match=f"^error: .*{message}") as error:
        planner.main(arguments)
    assert "\n" not in str(error.value)


def test_unknown_assumptions_are_refused_in_code_too():
    with pytest.raises(ConfigError, match="no assumption luck"):
        plan(1000, {}, assume={"luck": Guess(1, 1, 1, "", "")})
    assert assumption("keep_wild=0.4")[1].low == 0.4


def test_command_line_prints_and_writes(tmp_path, capsys):
    planner.main(
        [
            "--hours",
            "1000",
            "--bench",
            str(tmp_path / "none.json"),
            "--json",
            str(tmp_path / "a" / "plan.json"),
            "--assume",
            "keep_wild=0.4",
        ]
    )
    assert "# Plan for 1,000 h of speech" in capsys.readouterr().out
    written = json.loads((tmp_path / "a" / "plan.json").read_text())
    assert written["hours"] == 1000 and written["assumptions"]["keep_wild"]["source"] == "given by the user"
