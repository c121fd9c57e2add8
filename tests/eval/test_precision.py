"""Precisions are compared on the same sentences; the rule says which may be a default."""

import json

import pytest
import torch

from omnilib.eval import precision
from omnilib.eval.frozen import Frozen
from tests.eval.test_ends import Parrot
from tests.eval.test_nano import Ear
from tests.eval.test_wiring import folder  # noqa: F401  a frozen set of short lines
from tests.tiny import write_checkpoints


def row(variant: str, number: int, heard: str, similarity: float) -> dict:
    own = {"id": f"s{number}", "language": "en", "variant": variant, "text": "the light of the morning"}
    own |= {"transcript": heard, "similarity": similarity}
    return own | precision.score_of(own)


def test_changes_are_paired_by_sentence_and_the_rule_reads_their_intervals():
    good, bad = "the light of the morning", "the night of a morning"
    rows = [row("fp32", n, good if n % 2 else bad, 0.8) for n in range(20)]
    rows += [row("bf16", n, good if n % 2 else bad, 0.8) for n in range(20)]  # the same errors
    rows += [row("int8", n, bad, 0.8) for n in range(20)]
    rows += [row("flow_bf16", n, good if n % 2 else bad, 0.7) for n in range(20)]
    found = precision.figures(rows)
    assert found["fp32_en_error"]["value"] == found["bf16_en_error"]["value"] == pytest.approx(0.2)
    assert found["bf16_en_error_change"]["ci95"] == [0.0, 0.0]
    assert found["int8_en_error_change"]["value"] == pytest.approx(0.2)
    assert found["flow_bf16_en_similarity_change"]["value"] == pytest.approx(-0.1)
    assert precision.allowed(found) == {"flow_bf16": False, "bf16": True, "int8": False}


def test_the_command_speaks_in_every_precision_and_writes_rows(folder, tmp_path, monkeypatch, capsys):  # noqa: F811
    checkpoints = write_checkpoints(tmp_path / "tiny")
    (checkpoints / "decode.yaml").write_text("temperature: 1.0\nmax_rows: 16\n")
    monkeypatch.setattr(precision, "Whisper", Parrot)
    monkeypatch.setattr(precision, "SpeakerJudge", Ear)
    monkeypatch.setattr(precision.sources, "record", lambda *given: None)
    given = ["--frozen", str(folder)] + [
        "--scale",
        str(checkpoints),
        "--english",
        "2",
        "--chinese",
        "0",
        "--reports",
        str(tmp_path / "reports"),
    ]
    assert precision.main([*given]) == 0
    place = checkpoints / "precision"  # a folder as scale stands for itself
    rows = [json.loads(line) for line in (place / "rows.jsonl").read_text().splitlines()]
    whole = json.loads((place / "metrics.json").read_text())
    assert any(r["similarity"] > 0 for r in rows)
    assert {r["variant"] for r in rows} <= set(precision.VARIANTS) and len(rows) % 2 == 0
    assert precision.figures(rows) == whole["metrics"] and whole["may_be_default"].keys() <= set(
        precision.VARIANTS
    )
    assert "may be a default" in capsys.readouterr().out


def test_a_precision_that_the_processor_lacks_is_left_out_in_one_line(tmp_path, monkeypatch, capsys):
    from omnilib.mouth import fast_weights

    monkeypatch.setattr(fast_weights, "fast_bfloat16", lambda device: False)
    found = dict(precision.speakers(str(write_checkpoints(tmp_path / "tiny"))))
    assert "bf16" not in found and "fp32" in found
    assert "bf16: left out: " in capsys.readouterr().err and torch.is_tensor(
        next(found["fp32"].model.parameters())
    )


def test_sentences_are_those_of_the_frozen_set():
    lines = precision.choose(Frozen(), "en", 4)
    assert len(lines) == 4 and {line.language for line in lines} == {"en"}
