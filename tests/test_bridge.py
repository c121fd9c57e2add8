"""What goes over from a brain to a mouth of another vocabulary is what the whole text would have been."""

import json
import random

import pytest

from omnilib.bridge import SameIds, Words, same_vocabulary
from omnilib.mouth.front_end import FrontEnd
from omnilib.mouth.speechlm import SpeechLMConfig
from omnilib.paths import ROOT
from omnilib.text import load_tokenizer
from tests.brain.reference import WORDS, longest_match

FORMS = [
    json.loads(line)
    for line in (ROOT / "omnilib/eval/spoken_forms.jsonl").read_text(encoding="utf-8").splitlines()
]
PLAIN = {"en": " and then we saw that the light of day was good. ", "zh": "，后来我们去看了看，天气很好。"}


@pytest.fixture(scope="module")
def front() -> FrontEnd:
    folder = ROOT / "checkpoints/nano/speechlm"
    return FrontEnd(SpeechLMConfig.from_pretrained(folder), load_tokenizer(folder))


def handed_over(front: FrontEnd, text: str, language: str | None, size: int = 1) -> list[list[int]]:
    """Ids that go over, one list a step, the last at the end of the text."""
    bridge = Words(front, language)
    steps = [bridge.push(0, text[: at + size]) for at in range(0, len(text), size)]
    return [*steps, bridge.close(text)]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_no_written_form_is_spoken_otherwise_for_coming_piece_by_piece(front, language):
    texts = [form["text"] for form in FORMS if form["language"] == language]
    random.Random(1).shuffle(texts)
    early = whole = 0
    for first in range(0, len(texts), 3):
        text = PLAIN[language].join(texts[first : first + 3])
        steps = handed_over(front, text, language, size=random.Random(first).randint(1, 5))
        assert tuple(sum(steps, [])) == front.read(text, language).ids, text
        early, whole = early + sum(map(len, steps[:-1])), whole + sum(map(len, steps))
    assert early > whole / 2, "most of it should go over while the text is being written"


@pytest.mark.parametrize(
    "text",
    [
        "# Title of it\n\n- one **bold and loud** word\n- two [links to it](http://a.b/c) here\n\nand that is all of it.",
        "run this now:\n```\nfor all of them print this\n```\nand then it is done for the day.",
        "| name | age |\n|---|---|\n| old man here | 5 |\nand so it goes on and on.",
        "it was in may 5 years ago, at 10 pm on the 3rd of june, for $5 million dollars in all of it.",
        "he said (as if in a dream of old) that we all go, and 3.5 km more of it.",
        "  \n the light of the morning was on the water, 你好，世界，and the day was good.",
        "so it goes 🙂 and on it goes 🙂🙂 and we all go home.",
    ],
)
def test_marks_numbers_and_two_scripts_are_read_as_in_the_whole_text(front, text):
    assert tuple(sum(handed_over(front, text, "en"), [])) == front.read(text, "en").ids


def test_an_unfinished_word_is_held_back(front):
    bridge = Words(front, "en")
    assert bridge.push(0, "the light of the morn") != []
    given = front.tokenizer.decode(bridge.ids)
    assert "morn" not in given and given.split() == ["the", "light"]


@pytest.mark.parametrize("text", ["", "   ", "...", "🙂", "\n\n**\n"])
def test_a_text_of_nothing_to_speak_hands_over_nothing(front, text):
    assert sum(handed_over(front, text, None), []) == []


def test_what_was_said_is_the_written_text_of_the_ids_that_were_taken(front):
    text = "We meet at 5 pm on the shore of the lake and then we all walk home. So it is."
    bridge = Words(front, "en")
    for at in range(len(text)):
        bridge.push(0, text[: at + 1])
    bridge.close(text)
    said = [bridge.said(taken) for taken in range(len(bridge.ids) + 1)]
    assert said[0] == "" and said[-1] == text and len(set(said)) > 3
    assert all(text.startswith(part) for part in said) and said == sorted(said, key=len)


def test_one_vocabulary_hands_over_id_for_id():
    words = longest_match(WORDS, "<|im_end|>", "<|endoftext|>")
    controls = [f"<|audio_{name}|>" for name in ("start", "end", "sep")]
    mouth = longest_match([*WORDS, *controls], "<|im_end|>", "<|endoftext|>")
    assert same_vocabulary(words, mouth, len(WORDS) + 3)
    other = longest_match([*reversed(WORDS), *controls], "<|im_end|>", "<|endoftext|>")
    assert not same_vocabulary(words, other, len(WORDS) + 3)
    bridge = SameIds(words.decode)
    ids = words.encode("hi you", add_special_tokens=False)
    assert [bridge.push(i, "") for i in ids] == [[i] for i in ids] and bridge.push(None, "hi you") == []
    assert bridge.said(2) == "hi"
