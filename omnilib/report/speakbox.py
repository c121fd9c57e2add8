"""The box of chapter 00 in which a reader types a sentence and hears it; needs a running notebook."""

from typing import Any

from omnilib.errors import UserError


class SpeakBox:
    """A text field, a choice of voices, a button and the answer below them.

    Enter and the button do the same. While the models work the controls are switched off and the button says so, so
    that a second press is not lost in silence. A mistake is answered with one line.
    """

    def __init__(self, speaker: Any, text: str, voice: str, seed: int = 0):
        import ipywidgets as widgets

        self.speaker, self.seed = speaker, seed
        wide = widgets.Layout(width="90%")
        self.box = widgets.Text(value=text, description="text", layout=wide, continuous_update=True)
        self.menu = widgets.Dropdown(options=list(speaker.voices), value=voice, description="voice")
        self.button = widgets.Button(description="speak", button_style="primary")
        self.answer = widgets.Output()
        self.button.on_click(self.say)
        self.box.on_msg(self.typed)
        self.view = widgets.VBox([self.box, self.menu, self.button, self.answer])

    def typed(self, _: Any, content: dict, __: Any = None) -> None:
        """A message of the text field: Enter was pressed."""
        if content.get("event") == "submit":
            self.say()

    def say(self, _: Any = None) -> None:
        """Speak the text of the box; the controls are disabled meanwhile."""
        from IPython.display import Audio, clear_output, display

        controls = (self.box, self.menu, self.button)
        self.button.description = "speaking ..."
        for control in controls:
            control.disabled = True
        try:
            with self.answer:
                clear_output()
                try:
                    result = self.speaker.speak(self.box.value, voice=self.menu.value, seed=self.seed)
                    display(Audio(result.wave.numpy(), rate=result.rate))
                    print(f"{result.seconds:.1f} s of speech, flagged chunks: {result.flagged or 'none'}")
                except UserError as error:
                    print(error)
        finally:
            self.button.description = "speak"
            for control in controls:
                control.disabled = False
