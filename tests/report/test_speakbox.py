"""The box of chapter 00: any text, a voice of the menu or one's own, and what was heard back."""

import datetime
import io
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from omnilib import report
from omnilib.errors import MissingTool
from omnilib.eval import hear_back
from omnilib.report import recorder, speakbox

TONE = np.sin(np.arange(48_000) / 20).astype(np.float32) * 0.3


class Speaker:
    """Speaks a tone and remembers what it was asked."""

    voices = {"a": {}, "b": {}}

    def __init__(self):
        self.asked = []

    def speak(self, text, seed, **voice):
        self.asked.append((text, voice))
        return SimpleNamespace(wave=torch.from_numpy(TONE), rate=24_000, seconds=2.0, flagged=[])


class Listener:
    """Hears what it is told to."""

    def __init__(self, transcript="the sea was calm"):
        self.transcript, self.judged = transcript, []

    def transcribe(self, wave, rate, language):
        self.judged.append((len(wave), rate, language))
        return self.transcript

    def words_of(self, path, language):
        samples, rate = soundfile.read(path)
        return self.transcribe(samples, rate, language)

    def hear(self, wave, rate, text, language):
        return hear_back.compare(text, self.transcribe(wave, rate, language), language)


@pytest.fixture
def box(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda *a, **k: shown.extend(a))
    found = report.SpeakBox(Speaker(), "The sea was rough.", "a", listener=Listener())
    found.shown = shown
    return found


def uploaded(box, name, rate=24_000):
    sound = io.BytesIO()
    soundfile.write(sound, TONE, rate, format="WAV")
    now = datetime.datetime.now()
    entry = {"name": name, "type": "audio/wav", "size": 1, "content": memoryview(sound.getvalue())}
    box.file.value = (entry | {"last_modified": now},)


def test_what_the_judge_heard_stands_under_the_sound(box):
    box.say()
    page = " ".join(item.data for item in box.shown if type(item).__name__ == "HTML")
    assert "25 % of 4 words wrong" in page and ">calm</span>" in page


def test_an_uploaded_recording_becomes_the_voice_and_the_judge_writes_down_its_words(box):
    uploaded(box, "../../evil name.wav")
    assert box.menu.value == speakbox.OWN and box.recording.parent == type(box.recording)(box.folder.name)
    box.say()
    assert box.said.value == "the sea was calm", "written down for the learner to correct"
    text, voice = box.speaker.asked[-1]
    assert voice == {"voice": box.recording, "voice_text": "the sea was calm"}


def test_words_that_the_learner_wrote_are_kept_until_another_recording_comes(box):
    uploaded(box, "one.wav")
    box.said.value = "my own words"
    box.say()
    assert box.speaker.asked[-1][1]["voice_text"] == "my own words"
    first = box.recording
    uploaded(box, "two.wav")
    assert box.recording != first and box.said.value == ""


def test_without_a_recording_or_a_listener_one_line_says_what_to_do(box, capsys):
    box.menu.value = speakbox.OWN
    box.say()
    assert "record or upload" in capsys.readouterr().out and box.speaker.asked == []
    uploaded(box, "one.wav")
    box.listener = None
    box.say()
    assert "write down what the recording says" in capsys.readouterr().out and box.speaker.asked == []


def test_the_microphone_is_a_voice_too(box):
    if box.microphone is None:
        pytest.skip("anywidget is not installed: the box offers the upload alone")
    box.microphone.rate = 24_000
    box.microphone.samples = TONE.tobytes()
    assert box.menu.value == speakbox.OWN
    samples, rate = soundfile.read(box.recording)
    assert rate == 24_000 and np.allclose(samples, TONE, atol=1e-3)


def test_a_missing_judge_is_one_line_and_the_sound_stays(box, capsys):
    def missing(*_):
        raise MissingTool("faster-whisper is not installed: pip install x")

    box.listener.transcribe = missing
    box.say()
    assert "faster-whisper is not installed" in capsys.readouterr().out
    assert any(type(item).__name__ == "Audio" for item in box.shown)


def test_an_empty_recording_is_none():
    assert recorder.heard(None) is None
    assert recorder.heard(SimpleNamespace(samples=b"", rate=0)) is None
