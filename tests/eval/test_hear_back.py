"""What was heard of a text, word by word."""

import numpy as np
import pytest

from omnilib.errors import UserError
from omnilib.eval import hear_back


def test_words_are_marked_by_what_went_wrong_with_them():
    heard = hear_back.compare("The sea was very calm tonight.", "the see was calm tonight now", "en")
    assert heard.marks == [("equal", "the"), ("substitute", "see"), ("equal", "was"), ("delete", "very"), ("equal", "calm"), ("equal", "tonight"), ("insert", "now")]  # fmt: skip
    assert heard.error == pytest.approx(3 / 6) and heard.words == 6
    assert "50 % of 6 words" in str(heard) and "line-through" in heard.html()


@pytest.mark.parametrize("transcript", ["I saw 42 ships.", "i saw forty two ships"])
def test_a_number_is_right_in_figures_and_in_words(transcript):
    assert hear_back.compare("I saw 42 ships.", transcript, "en").error == 0


def test_mandarin_is_compared_by_syllables_without_tones():
    assert hear_back.compare("他在那里。", "她在哪里", "zh").error == 0


def test_silence_misses_every_word():
    heard = hear_back.compare("the sea", "", "en")
    assert (
        heard.error == 1
        and heard.marks == [("delete", "the"), ("delete", "sea")]
        and "no speech" in str(heard)
    )


def test_what_the_judge_wrote_is_escaped():
    assert "<b>" not in hear_back.Heard("<b>", 1.0, 1, [("insert", "<b>")]).html()


def test_a_text_without_words_is_one_line():
    with pytest.raises(UserError, match="nothing to speak"):
        hear_back.compare("...", "you", "en")


def test_the_judge_is_loaded_once_and_only_when_asked(monkeypatch):
    made = []

    class Judge:
        def __init__(self, **_):
            made.append(self)

        def transcribe(self, wave, rate, language):
            return "the sea"

    monkeypatch.setattr(hear_back, "Whisper", Judge)
    back = hear_back.HearBack()
    assert made == []
    assert [back.hear(np.zeros(16_000), 16_000, "the sea", "en").error for _ in range(2)] == [0, 0] and len(
        made
    ) == 1
