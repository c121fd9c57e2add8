"""The box of chapter 12: a spoken question reaches the conversation, sound is played as it comes, a stop is one."""

import base64
import time
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from omnilib import report
from omnilib.errors import MediaError
from omnilib.report import player
from tests import browser
from tests.report.test_askbox import upload


class FakeTalk:
    """Says three words with a piece of sound each; waits in the second for a stop if it is asked to."""

    def __init__(self):
        self.omni = SimpleNamespace(speech=SimpleNamespace(rate=24000))
        self.asked, self.busy, self.messages, self.answer = [], [], [], None

    def stream(self, text="", audio=(), images=(), videos=(), **settings):
        self.busy.append((self.ui.button.disabled, self.ui.button.description))
        if not (text or audio):
            raise MediaError("nothing to answer")
        self.asked.append((text, list(audio), list(images), settings))
        self.answer = FakeAnswer(self, text)
        return self.answer


class FakeAnswer:
    def __init__(self, talk, text):
        self.talk, self.text, self.heard, self.over = talk, text, None, False

    def __iter__(self):
        for number, word in enumerate(("all ", "is ", "good")):
            deadline = time.monotonic() + 10
            while self.text == "wait" and number == 1 and not self.over and time.monotonic() < deadline:
                time.sleep(0.01)
            if self.over:
                return
            if self.text == "crash":
                raise RuntimeError("broken")
            yield SimpleNamespace(text=word, wave=np.full(2400, 0.1 * (number + 1), np.float32))
        self.talk.messages.append({"role": "assistant", "content": "all is good"})

    def stop(self, heard=None):
        self.over, self.heard = True, heard


class Sent(list):
    """What goes to the page."""

    def send(self, message, buffers=None):
        self.append((message["kind"], buffers))


@pytest.fixture
def talk():
    found = FakeTalk()
    found.ui = report.TalkBox(found, "how is it", max_new_tokens=5)
    return found


def done(ui):
    ui.thread.join(10)
    assert not ui.thread.is_alive()


def shown(ui) -> str:
    return "".join(part["text"] for part in ui.answer.outputs)


def test_words_and_files_are_asked_and_the_answer_is_shown(talk):
    talk.ui.files["images"].set_trait("value", (upload("../cat.PNG", b"cat"),))
    talk.ui.button.click()
    done(talk.ui)
    [(text, audio, images, settings)] = talk.asked
    assert (text, audio, settings) == ("how is it", [], {"max_new_tokens": 5}) and images[0].endswith(
        "images-0.png"
    )
    assert shown(talk.ui) == "all is good"


def test_what_the_microphone_recorded_is_asked_once(talk):
    talk.ui.box.value = ""
    wave = np.sin(np.arange(8000) / 9).astype("<f4") / 3
    talk.ui.microphone.rate, talk.ui.microphone.samples = 16000, wave.tobytes()
    talk.ui.ask()
    done(talk.ui)
    heard, rate = soundfile.read(talk.asked[0][1][0], dtype="float32")
    assert rate == 16000 and np.abs(heard - wave).max() < 1e-3
    talk.ui.ask()
    done(talk.ui)
    assert len(talk.asked) == 1 and "nothing to answer" in shown(talk.ui)
    talk.ui.microphone.samples = wave[::-1].tobytes()
    talk.ui.ask()
    done(talk.ui)
    assert talk.asked[1][1] != talk.asked[0][1]


def test_pieces_go_to_the_page_as_they_come(talk):
    talk.ui.player = Sent()
    wave, rate = talk.ui.hear("how is it", show=lambda _: None)
    assert [kind for kind, _ in talk.ui.player] == ["begin", "piece", "piece", "piece"] and rate == 24000
    sent = np.frombuffer(b"".join(buffers[0] for _, buffers in talk.ui.player[1:]), "<f4")
    assert np.array_equal(sent, wave) and len(wave) == 7200


def test_it_runs_headless_from_files_without_a_player(talk, capsys):
    talk.ui.player = None
    wave, _ = talk.ui.hear(audio=["question.wav"])
    assert len(wave) == 7200 and capsys.readouterr().out == "all is good\n"
    assert talk.asked == [("", ["question.wav"], [], {"max_new_tokens": 5})]


def test_stop_in_the_player_ends_the_answer_with_what_was_heard(talk):
    talk.ui.box.value = "wait"
    talk.ui.ask()
    deadline = time.monotonic() + 10
    while "all " not in shown(talk.ui) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert talk.ui.button.disabled and talk.ui.thread.is_alive()
    talk.ui.ask()  # a second press meanwhile
    talk.ui.player.played = [1, 0.05]
    done(talk.ui)
    assert talk.answer.heard == 0.05 and len(talk.asked) == 1 and shown(talk.ui) == "all "


@pytest.mark.parametrize("text", ["how", "", "crash"])
def test_controls_are_off_while_it_talks_and_on_again_after(talk, text):
    talk.ui.box.value = text
    talk.ui.ask()
    done(talk.ui)
    assert talk.busy == [(True, "talking ...")]
    controls = (talk.ui.box, talk.ui.button, *talk.ui.files.values())
    assert not any(c.disabled for c in controls) and talk.ui.button.description == "ask"
    told = {"how": "all is good", "": "nothing to answer\n", "crash": "RuntimeError: broken\n"}
    assert shown(talk.ui) == told[text]


# ---- the player's program in a real browser ------------------------------------------------------------------

PAGE = """<!doctype html><body><div id="el"></div><script type="module">
const values = { played: [0, 0] }, told = {};
window.values = values; window.started = []; window.stopped = 0; window.now = 0; window.tell = (m, b) => told.f(m, b);
window.AudioContext = class {
  get currentTime() { return window.now; }
  resume() {}
  createBuffer(_, length, rate) { return { duration: length / rate, copyToChannel(samples) { this.peak = Math.max(...samples); } }; }
  createBufferSource() { return { connect() {}, start(at) { window.started.push([at, this.buffer.peak]); },
                                  stop() { window.stopped += 1; } }; }
};
window.piece = (level, length) => {
  const view = new DataView(Float32Array.from({ length }, () => level).buffer);
  window.tell({ kind: "piece" }, [view]);
};
const model = { get: (k) => values[k], set: (k, v) => { values[k] = v; }, save_changes: () => { values.saved = true; },
                on: (_, f) => { told.f = f; } };
%s
render({ model, el: document.getElementById("el") });
</script></body>"""


@pytest.fixture
def page(tmp_path):
    if browser.executable() is None:
        pytest.skip(browser.MISSING)
    path = tmp_path / "page.html"
    path.write_text(PAGE % player.PROGRAM.replace("export default { render };", ""))
    with browser.Browser(tmp_path / "profile") as chromium:
        assert chromium.visit(path, 800).errors == []
        yield chromium


def test_pieces_are_played_without_gaps_and_a_stop_tells_what_was_heard(page):
    page.ask("tell({ kind: 'begin', rate: 1000 }); now = 5; piece(0.5, 1000); now = 5.5; piece(0.25, 500)")
    assert page.ask("started") == pytest.approx(np.array([[5.02, 0.5], [6.02, 0.25]]))
    page.ask("now = 7.0; piece(0.125, 1000)")  # 0.48 s too late
    assert page.ask("started")[2] == [7.0, 0.125]
    page.ask("now = 7.5; document.querySelector('button').click()")
    count, seconds = page.ask("values.played")
    assert (count, page.ask("stopped"), page.ask("values.saved")) == (1, 3, True)
    assert seconds == pytest.approx(2.0), "1 s, 0.5 s and half of the last second; silence is not heard"
    assert page.ask("document.querySelector('button').disabled")


def test_a_new_answer_silences_the_one_before(page):
    page.ask("tell({ kind: 'begin', rate: 1000 }); now = 1; piece(0.5, 9000); now = 2")
    page.ask("tell({ kind: 'begin', rate: 1000 }); piece(0.25, 1000)")
    assert page.ask("stopped") == 1 and page.ask("started")[1][0] == pytest.approx(2.02)


def test_samples_reach_the_page_as_they_are():
    sent = Sent()
    player.begin(sent, 24000)
    player.play(sent, np.array([0.5, -0.5]))
    player.play(sent, np.zeros(0))
    player.play(None, np.ones(3))
    assert [kind for kind, _ in sent] == ["begin", "piece"]
    assert base64.b64encode(sent[1][1][0]) == base64.b64encode(np.array([0.5, -0.5], "<f4").tobytes())
