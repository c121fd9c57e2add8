"""How texts end: what is counted as babble, and the figures of a whole run on a tiny model."""

import json
from dataclasses import replace

import pytest
import torch

from omnilib.eval import ends
from omnilib.eval.frozen import Line
from omnilib.speak import TextToSpeech
from tests.tiny import write_checkpoints


class Parrot:
    """A judge that always hears one word more in English."""

    id = "parrot"

    def transcribe(self, wave, rate, language):
        return "the light of the morning board" if language == "en" else "早上好"


@pytest.fixture(scope="module")
def speaker(tmp_path_factory):
    speaker = TextToSpeech.load(write_checkpoints(tmp_path_factory.mktemp("tiny")))
    speaker.settings = replace(speaker.settings, rows_per_token=1.0, speak_retries=0)
    return speaker


@pytest.fixture
def lines(speaker):
    kinds = {"ann": ("en", "The light of the morning."), "bo": ("zh", "早上好。")}
    return [
        Line(name, "eval", text, language, name, True, speaker.folder / f"{name}.wav")
        for name, (language, text) in kinds.items()
    ]


@pytest.mark.parametrize(
    ("text", "heard", "language", "count"),
    [
        ("Then Job arose!", "then job arose", "en", 0),
        ("Fell on his neck?", "Fill on this neck, buzzard.", "en", 1),
        ("I thought as a child.", "I thought as a child will conceive.", "en", 2),
        ("Rose of Jericho!", "well, rose of Jericho", "en", 0),
        ("早上好！", "早上好 小", "zh", 1),
        ("早上好！", "早上号", "zh", 0),
        ("the light", "", "en", 0),
    ],
)
def test_babble_is_what_is_heard_behind_the_last_word(text, heard, language, count):
    assert ends.words_behind(text, heard, language) == count


def test_every_end_is_typed_as_its_language_has_it(lines):
    english, chinese = map(ends.texts_of, lines)
    assert list(english.values()) == [
        f"The light of the morning{mark}" for mark in (".", "!", "?", "…", "", '."', ",", ";")
    ]
    assert [text[3:] for text in chinese.values()] == ["。", "！", "？", "…", "", "。”", "，", "；"]


def test_shares_carry_wilsons_interval():
    entry = ends.share([True] * 23 + [False] * 17)
    assert entry["value"] == 0.575 and entry["n"] == 40
    assert entry["ci95"] == pytest.approx([0.4220, 0.7149], abs=1e-4)
    assert ends.share([False] * 40)["ci95"][1] > 0.08, "none in forty is not never"


def test_a_run_writes_every_figure_with_its_count(speaker, lines, tmp_path, monkeypatch):
    spoken = []
    original = TextToSpeech.speak
    monkeypatch.setattr(
        TextToSpeech,
        "speak",
        lambda self, text, *rest, **more: spoken.append(text) or original(self, text, *rest, **more),
    )
    figures = ends.measure(
        speaker,
        lines,
        {x.speaker: replace(x, text=speaker.voices[x.speaker]["text"]) for x in lines},
        Parrot(),
    )
    assert len(figures) == 2 * 2 * len(ends.ENDS) and {entry["n"] for entry in figures.values()} == {2}
    assert figures["babble_spoken_!"]["value"] == 0.5
    assert len(spoken) == 2, "eight ends that read alike are spoken once"


def test_the_committed_figures_hold_every_end_and_none_is_bad():
    figures = json.loads((ends.REPORTS / "nano" / "ends" / "metrics.json").read_text())["metrics"]
    assert len(figures) == 2 * 2 * len(ends.ENDS)
    worst = max(figures, key=lambda name: figures[name]["value"])
    assert figures[worst]["value"] <= 0.05, worst
    assert {entry["n"] for entry in figures.values()} == {40}


def test_loud_tells_a_cut_wave_from_a_whole_one():
    t = torch.arange(48_000) / 24_000
    tone = 0.2 * torch.sin(1400 * t) * torch.linspace(0.01, 1, 48_000)
    assert ends.loud(tone) and not ends.loud(torch.cat([tone, torch.zeros(4800)]))
