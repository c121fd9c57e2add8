"""The box of chapter 11: uploads become files, answers come word by word, mistakes are one line."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from omnilib import report
from omnilib.errors import MediaError


class FakeBrain:
    """Repeats what it was asked; an empty question is refused. Remembers files and whether controls were off."""

    def __init__(self):
        self.asked, self.busy = [], []

    def stream(self, text="", audio=(), images=(), videos=(), **settings):
        self.busy.append((self.ui.button.disabled, self.ui.box.disabled, self.ui.files["audio"].disabled))
        if not text:
            raise MediaError("nothing to answer")
        if text == "crash":
            raise RuntimeError("broken")
        files = [(Path(p).name, Path(p).read_bytes()) for p in (*audio, *images, *videos)]
        self.asked.append((text, files, settings))
        yield from text.split()


@pytest.fixture
def brain():
    found = FakeBrain()
    found.ui = report.AskBox(found, "what is it", max_new_tokens=5)
    return found


def upload(name: str, content: bytes) -> dict:
    return {
        "name": name,
        "type": "image/png",
        "size": len(content),
        "content": memoryview(content),
        "last_modified": datetime.now(UTC),
    }


def test_enter_and_the_button_ask_with_the_uploaded_files(brain):
    brain.ui.files["images"].set_trait("value", (upload("../../cat.PNG", b"cat"),))
    brain.ui.files["audio"].set_trait("value", (upload("q", b"wave"), upload("r.wav", b"w")))
    brain.ui.button.click()
    brain.ui.typed(brain.ui.box, {"event": "submit"}, [])
    brain.ui.typed(brain.ui.box, {"event": "other"}, [])
    files = [("audio-0", b"wave"), ("audio-1.wav", b"w"), ("images-0.png", b"cat")]
    assert brain.asked == [("what is it", files, {"max_new_tokens": 5})] * 2, "names of uploads are no paths"


@pytest.mark.parametrize("text", ["what", "", "crash"])
def test_controls_are_off_while_it_thinks_and_on_again_after(brain, text):
    brain.ui.box.value = text
    try:
        brain.ui.ask()
    except RuntimeError:
        assert text == "crash"
    assert brain.busy == [(True, True, True)]
    controls = (brain.ui.box, brain.ui.button, *brain.ui.files.values())
    assert not any(c.disabled for c in controls) and brain.ui.button.description == "ask"
