"""Choosing checkpoints on development lines: which lines, which systems, one flow pass for all vocoders."""

import pandas as pd
import pytest
import torch

from omnilib.data import read_manifest
from omnilib.errors import DataError
from omnilib.eval import development
from omnilib.voice.codec import Codec
from tests import tones
from tests.tiny import write_checkpoints


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tones")
    return tones.build(folder, {"low": 0.8, "high": 1.3}, {"train": 2, "dev": 3, "test": 2})


class Deaf:
    """Hears the same word in everything."""

    def __init__(self):
        self.heard = []

    def submit(self, wave, rate, language):
        assert rate == 24_000 and wave.dim() == 1 and len(wave) > 0
        self.heard.append(wave)
        return lambda: "nothing"


def test_only_development_lines_of_the_wished_speakers_are_taken(corpus):
    records = read_manifest(corpus)
    speakers = {r["speaker"] for r in records}
    found = development.chosen(records, 2, [])
    assert {r["split"] for r in found} == {"dev"} and len(found) == 2 * len(speakers)
    one = sorted(speakers)[0]
    assert {r["speaker"] for r in development.chosen(records, 5, [one])} == {one}
    with pytest.raises(DataError, match="--speakers"):
        development.chosen(records, 5, ["nobody"])


def test_every_system_and_vocoder_is_judged_once_a_line(corpus, monkeypatch, tmp_path):
    codec = Codec.load(write_checkpoints(tmp_path))
    records = development.chosen(read_manifest(corpus), 2, [])
    flows = []
    blocks = codec.mel_blocks
    monkeypatch.setattr(codec, "mel_blocks", lambda *args: flows.append(1) or blocks(*args))
    judge = Deaf()
    frame = development.measure(codec, {"a": codec.hift, "b": codec.hift}, records, corpus.parent, judge)
    assert len(flows) == len(records) and len(judge.heard) == 5 * len(records)
    counts = frame.groupby(["system", "vocoder"]).size().to_dict()
    assert counts == {
        ("recording", ""): 4,
        ("copy", "a"): 4,
        ("copy", "b"): 4,
        ("codec", "a"): 4,
        ("codec", "b"): 4,
    }
    result = development.table(frame)
    assert (
        isinstance(result, pd.DataFrame) and set(result["error"]) == {100.0} and (result["words"] > 0).all()
    )
    made = judge.heard[1:5]
    assert (
        torch.equal(made[0], made[1])
        and torch.equal(made[2], made[3])
        and not torch.equal(made[0][:100], made[2][:100])
    )


def test_a_missing_corpus_is_one_line(tmp_path, capsys):
    assert development.main(["--manifest", str(tmp_path / "none.jsonl")]) == 2
    assert capsys.readouterr().err.startswith("error: no manifest")
