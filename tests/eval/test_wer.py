"""Error rates of lines and corpora."""

import numpy as np
import pytest

from omnilib.eval.wer import Rates, beyond, bootstrap, corpus, line_rates, min_rule, rates, toneless_pinyin


def test_homophones_are_character_errors_but_no_pinyin_errors():
    found = line_rates("他在家。", "她再加", "zh")
    assert found["pinyin"].error == 0
    assert found["cer"].error == 1


def test_traditional_script_is_no_error():
    found = line_rates("这个软件包的数据。", "這個軟件包的數據", "zh")
    assert found["pinyin"].error == found["cer"].error == 0


def test_digits_of_the_judge_are_read_out_for_pinyin():
    assert toneless_pinyin("过了12年") == toneless_pinyin("过了十二年") == "guo le shi er nian"


def test_polyphones_are_read_in_context():
    assert toneless_pinyin("银行 行走") == "yin hang xing zou"
    assert toneless_pinyin("GPT模型") == "gpt mo xing"


def test_min_rule_takes_the_smaller_error_and_the_spoken_form_in_a_tie():
    raw, spoken = "call 911 now", "call nine one one now"
    assert min_rule(raw, spoken, "call nine one one now", "en").error == 0
    assert min_rule(raw, spoken, "call 911 now", "en").error == 0
    assert min_rule("a b", "a b c d", "", "en").words == 4


def test_corpus_error_is_weighted_by_reference_words():
    lines = [rates("a b c d e f g h i j", "a b c d e f g h i j"), rates("x y", "x z")]
    found = corpus(lines)
    assert found["value"] == pytest.approx(1 / 12)
    assert (found["n"], found["words"]) == (2, 12)
    assert found["substitutions"] == pytest.approx(1 / 12) and found["deletions"] == found["insertions"] == 0


def test_parts_add_up_to_the_error():
    found = rates("one two three four", "four three two one more words")
    assert found.substitutions + found.deletions + found.insertions == pytest.approx(found.error)


def test_interval_holds_the_mean_shrinks_with_n_and_is_reproducible():
    rng = np.random.default_rng(0)
    few, many = rng.uniform(size=20), rng.uniform(size=2000)
    value, (low, high) = bootstrap(few)
    assert low < value < high
    _, (low_many, high_many) = bootstrap(many)
    assert high_many - low_many < (high - low) / 5
    assert bootstrap(few) == bootstrap(few)


def test_interval_covers_the_truth_about_nineteen_times_in_twenty():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        _, (low, high) = bootstrap(rng.exponential(1.0, size=80))
        hits += low <= 1.0 <= high
    assert 0.87 <= hits / 200 <= 0.99


def test_nothing_to_average_raises():
    with pytest.raises(ValueError, match="no samples"):
        corpus([])


def test_rates_of_one_line_are_its_corpus():
    line = Rates(0.25, 0.25, 0.0, 0.0, 4)
    assert corpus([line])["value"] == 0.25


@pytest.mark.parametrize(
    ("truth", "heard", "language", "share"),
    [
        ("You are", "you are no longer muted.", "en", 3 / 5),
        ("longer muted", "You are no longer muted.", "en", 3 / 5),
        ("You are no longer muted.", "You are no longer muted.", "en", 0.0),
        ("You are no longer muted.", "You were no longer mute", "en", 0.0),  # other words are no more words
        ("You are", "", "en", 0.0),
        ("移除系统中", "移除系統中不再需要", "zh", 4 / 9),
    ],
)
def test_beyond_is_what_was_said_outside_the_text(truth, heard, language, share):
    assert beyond(truth, heard, language) == pytest.approx(share)
