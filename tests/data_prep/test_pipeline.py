"""The curation runner: same result however it ran, nothing lost, nothing twice, one clear line for bad input."""

import json

import pytest
from curation_steps import STEPS, contents, corpus, recipe

from data_prep.curate import main
from data_prep.pipeline import curate


@pytest.fixture
def run(tmp_path, monkeypatch):
    """`run(out, *steps)`: curate the corpus of tones in this process; returns the folder."""
    manifest = corpus(tmp_path / "in")
    monkeypatch.setenv("CURATION_LOG", str(tmp_path / "log"))

    def start(out: str = "out", *steps: str, workers: int = 1, **kwargs):
        curate(manifest, recipe(tmp_path, *(steps or STEPS), **kwargs), tmp_path / out, workers=workers)
        return tmp_path / out

    return start


def test_every_record_ends_up_kept_or_dropped_with_a_reason(run):
    out = run()
    kept = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    drops = [json.loads(line) for line in (out / "dropped.jsonl").read_text().splitlines()]
    assert len(kept) == 20 and {r["rank"] for r in kept} == set(range(20))
    assert {(r["id"], r["dropped"]["step"], r["dropped"]["reason"]) for r in drops} == {
        ("bad", "test_halve", "bad"),
        *((f"tone0{i}-{half}", "test_level", "quiet") for i in (0, 1) for half in (0, 1)),
    }
