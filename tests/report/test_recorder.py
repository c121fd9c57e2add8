"""The recorder's program in a real browser: what the microphone gave reaches Python as samples."""

import base64
import io
import json

import numpy as np
import pytest
import soundfile

from omnilib.report import recorder
from tests import browser

PAGE = """<!doctype html><body><div id="el"></div><script type="module">
const data = Uint8Array.from(atob("%s"), (c) => c.charCodeAt(0));
const values = { longest: 15 };
window.values = values;
const allowed = %s;
Object.defineProperty(navigator, "mediaDevices", { value: { getUserMedia: async () => {
  if (!allowed) throw new Error("denied");
  return { getTracks: () => [] };
} } });
window.MediaRecorder = class {
  constructor() { this.state = "inactive"; }
  start() { this.state = "recording"; }
  stop() { this.state = "inactive"; this.ondataavailable({ data }); this.onstop(); }
};
const model = { get: (k) => values[k], set: (k, v) => { values[k] = v; }, save_changes: () => { values.saved = true; } };
%s
render({ model, el: document.getElementById("el") });
</script></body>"""
TONE = np.sin(np.arange(44_100) / 20).astype(np.float32) * 0.3
CLICK = "document.querySelector('button').click()"
WAIT = "new Promise((done) => setTimeout(done, %d))"


@pytest.fixture
def page(tmp_path):
    if browser.executable() is None:
        pytest.skip(browser.MISSING)
    sound = io.BytesIO()
    soundfile.write(sound, TONE, 44_100, format="WAV", subtype="FLOAT")

    def write(allowed=True):
        path = tmp_path / f"page{allowed}.html"
        program = recorder.PROGRAM.replace("export default { render };", "")
        path.write_text(PAGE % (base64.b64encode(sound.getvalue()).decode(), json.dumps(allowed), program))
        return path

    with browser.Browser(tmp_path / "profile") as chromium:
        yield chromium, write


def test_start_and_stop_hand_over_the_samples(page):
    chromium, write = page
    visit = chromium.visit(write(), 800)
    chromium.ask(f"{CLICK}; {WAIT % 100}")
    assert chromium.ask("document.querySelector('button').textContent") == "stop"
    chromium.ask(f"{CLICK}; {WAIT % 800}")
    rate, count, saved = chromium.ask("[values.rate, values.samples.byteLength / 4, values.saved]")
    peak = chromium.ask("Math.max(...new Float32Array(values.samples.buffer).slice(0, 5000))")
    assert saved and count == pytest.approx(rate, rel=0.01) and peak == pytest.approx(0.3, abs=0.01)
    assert visit.errors == [] and chromium.ask("document.querySelector('span').textContent") == "recorded"


def test_a_microphone_that_is_denied_is_one_line(page):
    chromium, write = page
    chromium.visit(write(allowed=False), 800)
    chromium.ask(f"{CLICK}; {WAIT % 100}")
    assert chromium.ask("document.querySelector('span').textContent") == "no microphone: denied"
