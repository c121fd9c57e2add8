"""ARTIFACT.md: the table is that of the committed figures, and the quick claims hold when their commands are run."""

import json
import os
import re
import shlex
import subprocess
import sys

import pytest

from omnilib.paths import REPORTS, ROOT
from omnilib.report import artifact
from omnilib.report.headlines import HEADLINES


def test_the_committed_table_is_drawn_from_the_committed_figures():
    text = (ROOT / "ARTIFACT.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- results:begin[^>]*-->\n(.*)\n<!-- results:end -->", text, flags=re.S)
    assert found and found[1] == artifact.table(), "run `omni report`"


def test_every_headline_and_every_measured_row_of_a_chapter_is_a_claim():
    table = artifact.table()
    rows = artifact.chapter_claims("nano", REPORTS)
    assert {c.where for c in rows} == {f"{n:02d}" for n in range(13)}
    summary = json.loads((REPORTS / "nano" / "summary.json").read_text())
    assert len(artifact.headline_claims("nano", REPORTS)) >= 30
    assert f"{100 * summary['wer_en_tts']['value']:.1f} %" in table


def test_a_headline_names_the_program_that_measures_it():
    commands = {key: artifact.command_of(key) for key in HEADLINES}
    assert commands["speed_codec_full"].startswith("python -m omnilib.bench.speed")
    assert commands["brain_speedup"].endswith("--speed") and commands["brain_sqa"].endswith("eval.brain")
    assert commands["long60_wer"].endswith("--minutes 60") and commands["long_wer_en"] == artifact.EVAL
    modules = {shlex.split(command)[2] for command in commands.values() if command.startswith("python -m")}
    assert all((ROOT / module.replace(".", "/")).with_suffix(".py").is_file() for module in modules)
    assert artifact.tolerance_of("speed_batch16") == artifact.tolerance_of("rtf_total")


@pytest.mark.slow
@pytest.mark.parametrize(
    "claim", [c for c in artifact.LIBRARY if c.quick], ids=lambda c: c.where + " " + c.text[:40]
)
def test_quick_claims_hold(claim):
    (ROOT / "runs").mkdir(exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = artifact.arguments(claim.command, sys.executable)
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert run.returncode == 0, (run.stdout + run.stderr)[-2000:]
