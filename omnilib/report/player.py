"""Sound in the browser while it is being made: pieces are played one behind the other, without gaps; needs a running
notebook.

    sound = player()
    begin(sound, rate=24_000); play(sound, wave)       # as often as there are pieces
    sound.observe(stopped, "played")                   # the listener pressed stop: seconds that were heard

Samples go to the page as they are (float32); nothing is fetched.
"""

from typing import Any

import numpy as np

PROGRAM = """
function render({ model, el }) {
  const button = document.createElement("button");
  const line = document.createElement("span");
  button.textContent = "stop";
  button.disabled = true;
  line.style.marginLeft = "8px";
  el.append(button, line);
  let context = null, begun = null, ends = 0, silent = 0, rate = 24000, sources = [];
  function heard() {
    return begun === null ? 0 : Math.max(0, Math.min(context.currentTime, ends) - begun - silent);
  }
  function quiet() {
    sources.forEach((source) => { try { source.stop(); } catch (error) {} });
    sources = [];
    button.disabled = true;
  }
  function play(samples) {
    const sound = context.createBuffer(1, samples.length, rate);
    sound.copyToChannel(samples, 0);
    const source = context.createBufferSource();
    source.buffer = sound;
    source.connect(context.destination);
    const now = context.currentTime;
    if (begun === null) { begun = ends = now + 0.02; }
    if (now > ends) { silent += now - ends; ends = now; line.textContent = "waited for sound"; }
    source.start(ends);
    ends += sound.duration;
    sources.push(source);
  }
  model.on("msg:custom", (message, buffers) => {
    if (message.kind === "begin") {
      quiet();
      context = context || new AudioContext();
      context.resume();
      begun = null; silent = 0; rate = message.rate;
      line.textContent = "";
      button.disabled = false;
    } else if (message.kind === "piece") {
      const view = buffers[0];
      play(new Float32Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength)));
    }
  });
  button.addEventListener("click", () => {
    const seconds = heard();
    quiet();
    line.textContent = "stopped after " + seconds.toFixed(1) + " s";
    model.set("played", [model.get("played")[0] + 1, seconds]);
    model.save_changes();
  });
}
export default { render };
"""


def player() -> Any | None:
    """The widget, or None where anywidget is not installed. `played` counts the stops, and holds the seconds heard."""
    try:
        import anywidget
        import traitlets
    except ImportError:
        return None

    class Player(anywidget.AnyWidget):
        _esm = PROGRAM
        played = traitlets.List([0, 0.0]).tag(sync=True)

    return Player()


def begin(widget: Any | None, rate: int) -> None:
    """A new answer: what still plays is stopped."""
    if widget is not None:
        widget.send({"kind": "begin", "rate": rate})


def play(widget: Any | None, wave: Any) -> None:
    """A piece (n,), behind those before."""
    if widget is not None and len(wave):
        widget.send({"kind": "piece"}, [np.asarray(wave, dtype="<f4").tobytes()])
