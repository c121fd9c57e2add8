"""A button that records the microphone in the browser and hands the samples to Python; needs a running notebook.

The browser decodes what it recorded, so Python gets plain samples and needs no codec. Nothing is fetched or sent elsewhere.
"""

from typing import Any

import numpy as np

LONGEST = 15  # seconds; then the recording stops by itself
PROGRAM = """
function render({ model, el }) {
  const button = document.createElement("button");
  const line = document.createElement("span");
  button.textContent = "record a voice";
  line.style.marginLeft = "8px";
  el.append(button, line);
  let recorder = null;
  async function keep(blob) {
    const context = new AudioContext();
    const sound = await context.decodeAudioData(await blob.arrayBuffer());
    const samples = sound.getChannelData(0).slice();
    model.set("rate", Math.round(sound.sampleRate));
    model.set("samples", new DataView(samples.buffer));
    model.save_changes();
    line.textContent = samples.length / sound.sampleRate < 1 ? "too short" : "recorded";
    context.close();
  }
  button.addEventListener("click", async () => {
    if (recorder && recorder.state === "recording") { recorder.stop(); return; }
    try {
      const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
      recorder = new MediaRecorder(stream);
      const parts = [];
      recorder.ondataavailable = (event) => parts.push(event.data);
      recorder.onstop = async () => {
        stream.getTracks().forEach((track) => track.stop());
        button.textContent = "record a voice";
        try { await keep(new Blob(parts)); } catch (error) { line.textContent = "no sound: " + error.message; }
      };
      recorder.start();
      button.textContent = "stop";
      line.textContent = "recording ...";
      setTimeout(() => { if (recorder.state === "recording") recorder.stop(); }, 1000 * model.get("longest"));
    } catch (error) { line.textContent = "no microphone: " + error.message; }
  });
}
export default { render };
"""


def recorder() -> Any | None:
    """The widget, or None where anywidget is not installed; `heard` tells what it holds."""
    try:
        import anywidget
        import traitlets
    except ImportError:
        return None

    class Recorder(anywidget.AnyWidget):
        _esm = PROGRAM
        samples = traitlets.Bytes(b"").tag(sync=True)
        rate = traitlets.Int(0).tag(sync=True)
        longest = traitlets.Int(LONGEST).tag(sync=True)

    return Recorder()


def heard(widget: Any | None) -> tuple[np.ndarray, int] | None:
    """Samples (T,) and rate of the last recording, None when there is none."""
    if widget is None or not widget.rate or len(widget.samples) < 4:
        return None
    return np.frombuffer(bytes(widget.samples), dtype="<f4").copy(), widget.rate
