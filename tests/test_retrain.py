"""The plan of `make retrain`: two lanes side by side."""

import subprocess
import sys

import pytest

from omnilib import retrain
from omnilib.report import sources

TOY = """
stages:
  base: {cmd: echo base > base.txt, outs: [base.txt: {cache: false}]}
  hift: {cmd: "CODEC", deps: [base.txt], outs: [hift.txt: {cache: false}]}
  speechlm: {cmd: "cp base.txt speechlm.txt", deps: [base.txt], outs: [speechlm.txt: {cache: false}]}
  evaluate: {cmd: cat hift.txt speechlm.txt > all.txt, deps: [hift.txt, speechlm.txt], outs: [all.txt: {cache: false}]}
"""


def test_every_stage_runs_once_after_what_it_needs_and_no_lane_needs_the_other():
    stages = retrain.graph()
    needs, (first, lanes, rest) = retrain.needs(stages), retrain.plan(stages)
    assert sorted([*first, *(n for names in lanes.values() for n in names), *rest]) == sorted(stages)
    assert (
        {"corpus", "tokens"} <= set(first)
        and {"flow", "hift"} <= set(lanes["codec"])
        and "speechlm" in lanes["mouth"]
        and "evaluate" in rest
    )
    for names in lanes.values():
        done = list(first)
        for name in names:
            assert needs[name] <= set(done), name
            done.append(name)
    done = [*first, *(n for names in lanes.values() for n in names)]
    for name in rest:
        assert needs[name] <= set(done), name
        done.append(name)


def test_every_stage_names_all_code_it_runs():
    text = (retrain.ROOT / "dvc.yaml").read_text(encoding="utf-8")
    assert retrain.with_code(text) == text, "imports have changed: python -m omnilib.retrain --code"
    flow = retrain.graph()["flow"]["deps"]
    assert {"omnilib/voice/flow.py", "omnilib/train/common.py", "omnilib/configs/nano/flow.yaml"} <= set(flow)
    assert not {"omnilib/train/hift.py", "omnilib/configs/nano/hift.yaml"} & set(flow)
    stale = text.replace("      - omnilib/voice/flow.py\n", "")
    assert stale != text and retrain.with_code(stale) == text


def test_a_stage_its_config_and_its_output_have_one_name():
    for name, stage in retrain.graph().items():
        words = stage["cmd"].split()
        if words[2].startswith("omnilib.train.") and "--config" in words:
            assert words[words.index("--config") + 1] == f"nano/{name}"
            assert words[words.index("--out") + 1] == f"checkpoints/nano/{name}"


def test_lanes_count_once_in_the_wall_time():
    seconds = {
        "corpus": 10.0,
        "hift": 30.0,
        "speechlm": 20.0,
        "evaluate": 5.0,
        "not in the graph": 1.0,
    }
    assert retrain.wall_seconds(seconds) == 10 + 30 + 5 + 1
    assert retrain.wall_seconds({}) == 0


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A project of four stages, two of them in lanes; the codec's command is given."""

    def make(codec: str):
        (tmp_path / "dvc.yaml").write_text(TOY.replace("CODEC", codec))
        subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"], cwd=tmp_path, check=True)
        monkeypatch.setattr(retrain, "ROOT", tmp_path)
        return tmp_path

    return make


def test_lanes_run_side_by_side_and_a_second_call_has_nothing_to_do(toy, capfd):
    # each waits for what only the other one, running now, writes or has left
    folder = toy(
        "for i in $(seq 600); do test -e speechlm.txt && break; sleep 0.1; done; test -e speechlm.txt && cp base.txt hift.txt"
    )
    assert retrain.main(["--force"]) == 0
    assert (folder / "all.txt").read_text() == "base\nbase\n"
    capfd.readouterr()
    assert retrain.main([]) == 0
    assert "Running stage" not in capfd.readouterr().out


def test_a_lane_that_fails_lets_the_other_end_and_says_how_to_go_on(toy, capfd):
    folder = toy("false")
    assert retrain.main([]) == 1
    assert (folder / "speechlm.txt").exists() and not (folder / "all.txt").exists()
    assert "error: codec did not end" in capfd.readouterr().err


def test_a_stage_that_speaks_depends_on_the_settings_it_speaks_with():
    speaks = 0
    for name, stage in retrain.graph().items():
        deps = set(stage["deps"])
        for part, settings in sources.SETTINGS.items():
            if f"checkpoints/nano/{part}/model.safetensors" in deps:
                assert f"checkpoints/nano/{settings}" in deps, name
                speaks += 1
    assert speaks
