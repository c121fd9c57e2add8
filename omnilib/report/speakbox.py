"""The box of chapter 00: type a sentence, choose or record a voice, hear it and see what the judge heard; needs a
running notebook."""

import tempfile
from pathlib import Path
from typing import Any

from omnilib.errors import UserError
from omnilib.report.recorder import heard, recorder

OWN = "my recording"


class SpeakBox:
    """A text field, a choice of voices, a recording of one's own, a button and the answer below them.

    Enter and the button do the same. While the models work the controls are switched off and the button says so, so
    that a second press is not lost in silence. A mistake is answered with one line. Recordings stay on this machine, in a
    temporary folder that goes with the box.

    Args:
        speaker: of `omnilib.speak`.
        listener: of `omnilib.eval.hear_back`; it writes down what it hears, also of a recording without a transcript.
        language_of: tells the language of a text.
    """

    def __init__(
        self,
        speaker: Any,
        text: str,
        voice: str,
        seed: int = 0,
        listener: Any = None,
        language_of: Any = None,
    ):
        import ipywidgets as widgets

        self.speaker, self.seed, self.listener = speaker, seed, listener
        self.language_of = language_of or (lambda _: "en")
        self.folder = tempfile.TemporaryDirectory(prefix="omnilib-voice-")
        wide = widgets.Layout(width="90%")
        self.box = widgets.Text(value=text, description="text", layout=wide, continuous_update=True)
        self.menu = widgets.Dropdown(
            options=[*speaker.voices, OWN], value=voice, description="voice", continuous_update=True
        )
        self.file = widgets.FileUpload(accept="audio/*", multiple=False, description="upload a voice")
        self.microphone = recorder()
        self.said = widgets.Text(
            value="",
            description="it says",
            layout=wide,
            placeholder="words of the recording; empty: the judge listens",
        )
        self.button = widgets.Button(description="speak", button_style="primary")
        self.answer = widgets.Output()
        self.button.on_click(self.say)
        self.box.on_msg(self.typed)
        self.file.observe(self.chosen, "value")
        if self.microphone is not None:
            self.microphone.observe(self.chosen, "samples")
        own = widgets.HBox([w for w in (self.file, self.microphone) if w is not None])
        self.recording: Path | None = None  # of the learner's own voice
        self.view = widgets.VBox([self.box, self.menu, own, self.said, self.button, self.answer])

    def typed(self, _: Any, content: dict, __: Any = None) -> None:
        """A message of the text field: Enter was pressed."""
        if content.get("event") == "submit":
            self.say()

    def chosen(self, change: dict) -> None:
        """A recording arrived: it is the voice from now on, and its words are not those of the last one."""
        place = Path(self.folder.name) / f"voice-{len(list(Path(self.folder.name).iterdir()))}"
        if change["owner"] is self.file:
            if not self.file.value:
                return
            suffix = Path(self.file.value[0]["name"]).suffix[:8].lower()  # an uploaded name is no path
            path = place.with_suffix(suffix if suffix[1:].isalnum() else ".wav")
            path.write_bytes(bytes(self.file.value[0]["content"]))
        else:
            found = heard(self.microphone)
            if found is None:
                return
            import soundfile

            path = place.with_suffix(".wav")
            soundfile.write(path, *found)
        self.recording, self.said.value, self.menu.value = path, "", OWN

    def voice(self) -> dict[str, Any]:
        """Arguments of `speak` for the chosen voice.

        Raises:
            UserError: no recording yet, or nobody who could write down what it says.
        """
        if self.menu.value != OWN:
            return {"voice": self.menu.value}
        if self.recording is None:
            raise UserError(
                "record or upload 3 to 10 seconds of a voice first, or choose another one in the menu"
            )
        if not self.said.value.strip():
            if self.listener is None:
                raise UserError("write down what the recording says: the model continues from it")
            language = self.language_of(self.box.value)
            self.said.value = self.listener.words_of(self.recording, language)
        return {"voice": self.recording, "voice_text": self.said.value}

    def say(self, _: Any = None) -> None:
        """Speak the text of the box; the controls are disabled meanwhile."""
        from IPython.display import HTML, Audio, clear_output, display

        controls = (self.box, self.menu, self.file, self.said, self.button)
        self.button.description = "speaking ..."
        for control in controls:
            control.disabled = True
        try:
            with self.answer:
                clear_output()
                try:
                    result = self.speaker.speak(self.box.value, **self.voice(), seed=self.seed)
                    display(Audio(result.wave.numpy(), rate=result.rate))
                    print(f"{result.seconds:.1f} s of speech, flagged chunks: {result.flagged or 'none'}")
                    if self.listener is not None:
                        text = self.box.value
                        back = self.listener.hear(result.wave, result.rate, text, self.language_of(text))
                        display(HTML(back.html()))
                except UserError as error:
                    print(error)
        finally:
            self.button.description = "speak"
            for control in controls:
                control.disabled = False
