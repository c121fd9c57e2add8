"""Text normalisation and line error rates against the published evaluation script."""

import pytest

from omnilib.errors import UserError
from omnilib.eval.normalize import normalize
from omnilib.eval.wer import rates

PARTS = ("substitutions", "deletions", "insertions")


def test_every_string_normalises_as_in_the_published_script(golden):
    fixture, _ = golden("longtts_text_norm")
    assert fixture["normalize"]
    for case in fixture["normalize"]:
        assert normalize(case["text"], case["language"]) == case["output"], case["text"]


def test_rates_equal_the_published_ones(golden):
    fixture, _ = golden("longtts_text_norm")
    for case in fixture["wer"]:
        found = rates(case["truth"], case["hypothesis"])
        assert found.error == pytest.approx(case["wer"], abs=1e-12)
        for part in PARTS:
            assert getattr(found, part) == pytest.approx(case[part], abs=1e-12)


def test_normalisation_and_rates_end_to_end(golden):
    fixture, _ = golden("longtts_text_norm")
    for case in fixture["end_to_end"]:
        hypothesis, truth = (
            normalize(case["hypothesis"], case["language"]),
            normalize(case["truth"], case["language"]),
        )
        assert (hypothesis, truth) == (case["normalized_hypothesis"], case["normalized_truth"])
        found = rates(truth, hypothesis)
        assert found.error == pytest.approx(case["wer"], abs=1e-12)
        for part in PARTS:
            assert getattr(found, part) == pytest.approx(case[part], abs=1e-12)


def test_empty_truth_raises_and_empty_hypothesis_deletes_everything(golden):
    fixture, _ = golden("longtts_text_norm")
    for case in fixture["edge"]:
        if "raises" in case:
            with pytest.raises(ValueError, match="empty"):
                rates(case["truth"], case["hypothesis"])
        else:
            found = rates(case["truth"], case["hypothesis"])
            assert [found.error, *(getattr(found, part) for part in PARTS)] == case["result"]


def test_normalising_twice_changes_nothing(golden):
    fixture, _ = golden("longtts_text_norm")
    for case in fixture["normalize"]:
        assert normalize(case["output"], case["language"]) == case["output"]


def test_unknown_language_is_one_clear_line():
    with pytest.raises(UserError, match="unknown language 'fr': choose one of en, zh"):
        normalize("bonjour", "fr")
