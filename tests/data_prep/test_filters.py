"""Filters and the step that applies them."""

import pytest

from data_prep.filters import FILTERS, reason
from data_prep.pipeline import RECIPES, load_recipe
from data_prep.steps.filter import FilterStep
from omnilib.errors import ConfigError

GOOD = {
    "id": "a", "source": "radio", "duration": 10.0, "dnsmos": 3.4, "snr_db": 30.0, "snr_lowest_db": 25.0, "crest_db": 5.0, "speech": [[0, 4], [5, 9]],
    "language": "en", "heard_language": "en", "language_probability": 0.9, "heard": "hello", "error": 0.1, "surprise": 0.2,
    "beyond": 0.0,
}  # fmt: skip


@pytest.mark.parametrize("name", FILTERS)
def test_a_good_record_passes_every_filter(name):
    assert FILTERS[name](GOOD) is None


@pytest.mark.parametrize(
    ("name", "limits", "change", "expected"),
    [
        ("duration", {}, {"duration": 0.9}, "too_short"),
        ("duration", {"most": 9.0}, {}, "too_long"),
        ("quality", {}, {"dnsmos": 2.9}, "low_quality"),
        ("quality", {"sources": {"radio": 3.5}}, {}, "low_quality"),
        ("quality", {"sources": {"radio": 2.0}}, {"dnsmos": 2.1}, None),
        ("noise", {}, {"snr_db": 14.0}, "noisy"),
        ("noise", {"anywhere": 16.0}, {"snr_lowest_db": 15.0}, "noisy"),
        ("clipping", {}, {"crest_db": 2.0}, "clipped"),
        ("speech_share", {}, {"speech": [[0, 1]]}, "little_speech"),
        ("language", {}, {"heard_language": "zh"}, "wrong_language"),
        ("language", {}, {"heard_language": "zh", "language_probability": 0.4}, None),
        ("language", {"wanted": ["zh"]}, {}, "language_not_wanted"),
        ("language", {"wanted": ["en", "zh"]}, {"heard_language": "pl", "language_probability": 0.8}, None),
        (
            "language",
            {"wanted": ["en", "zh"]},
            {"heard_language": "pl", "language_probability": 0.95},
            "wrong_language",
        ),
        (
            "language",
            {"wanted": ["en", "zh"]},
            {"language": None, "heard_language": "pl"},
            "language_not_wanted",
        ),
        ("language", {}, {"language": None, "language_probability": 0.3}, "language_unsure"),
        ("language", {}, {"language": None}, None),
        ("transcript", {}, {"error": 0.6, "surprise": 3.0}, "wrong_transcript"),
        ("transcript", {}, {"error": 0.6, "surprise": 0.1, "beyond": 0.5}, "wrong_transcript"),
        ("transcript", {}, {"error": 0.1, "surprise": 0.1, "beyond": 0.5}, None),
        ("transcript", {}, {"error": 0.6, "surprise": 0.1}, None),
        ("transcript", {"languages": {"en": 0.7}}, {"error": 0.6, "surprise": 3.0}, None),
        ("transcript", {}, {"error": None, "surprise": None}, None),
        ("heard_something", {}, {"heard": " "}, "no_words"),
    ],
)
def test_each_filter_finds_its_fault(name, limits, change, expected):
    assert FILTERS[name](GOOD | change, **limits) == expected


def test_the_step_keeps_the_first_reason_and_leaves_its_input_alone():
    record = GOOD | {"snr_db": 1.0, "dnsmos": 1.0}
    (result,) = FilterStep(rules={"noise": {}, "quality": None}).run([record], None)
    assert result["dropped"] == {"step": "filter", "reason": "noisy"} and "dropped" not in record
    assert reason(GOOD, {"noise": {}, "quality": None}) is None


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{name: filter, rules: {loudnes: {}}}", "unknown filter 'loudnes'; known: .*noise"),
        (
            "{name: filter, rules: {noise: {level: 3}}}",
            "filter 'noise' has no parameter 'level'; known: least",
        ),
        ("{name: filter}", "needs `rules:`"),
        ("{name: language, by: ear}", "by is 'whisper' or 'script'"),
    ],
)
def test_a_mistake_in_a_recipe_is_one_clear_line(tmp_path, entry, message):
    path = tmp_path / "mine.yaml"
    path.write_text(f"steps: [{entry}]\n")
    with pytest.raises(ConfigError, match=message):
        load_recipe(path)


def test_a_filter_before_its_step_is_a_mistake_in_the_recipe():
    with pytest.raises(ConfigError, match="put the step 'quality' before it"):
        reason({"id": "a", "source": "x"}, {"noise": {}})


@pytest.mark.parametrize("recipe", sorted(p.stem for p in RECIPES.glob("*.yaml")))
def test_every_recipe_loads(recipe):
    steps, _ = load_recipe(recipe)
    names = [s.name for s in steps]
    assert names[0] == "decode" and names[-1] == "tokens"
    assert ("vad" in names) == (recipe != "raw")
