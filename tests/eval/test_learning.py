"""Pass lines are what a guess would reach; stages are compared only when nothing else differs."""

import math

import pytest

from omnilib.errors import DataError
from omnilib.eval import learning


def test_entropy_of_equal_counts_is_the_logarithm_and_of_one_kind_nothing():
    assert learning.entropy([5, 5, 5, 5]) == pytest.approx(math.log(4))
    assert learning.entropy([7, 0]) == 0


def test_piece_entropy_counts_over_all_texts(monkeypatch):
    monkeypatch.setattr(learning, "encode", lambda tokenizer, text: list(text))
    assert learning.piece_entropy(None, ["ab", "ba"]) == pytest.approx(math.log(2))
    with pytest.raises(DataError, match="no text"):
        learning.piece_entropy(None, [])


META = {
    "config": {"init": "checkpoints/nano/speechlm_stage1"},
    "tokens_sha256": "a",
    "chunk_rules": {"max_tokens": 9},
}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, []),
        ({"config": {"init": "runs/other"}}, ["goes on from other"]),
        ({"tokens_sha256": "b"}, ["codes are of two files"]),
        ({"chunk_rules": {}}, ["chunk rules differ"]),
    ],
)
def test_stages_are_comparable_only_on_the_same_codes_and_from_that_stage(change, told):
    found = learning.stage_differences(
        META | {"config": {"init": "checkpoints/nano/backbone"}}, META | change
    )
    assert len(found) == len(told) and all(words in line for words, line in zip(told, found, strict=True))
