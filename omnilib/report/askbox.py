"""The box of chapter 11: files and words in, an answer out; needs a running notebook."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omnilib.errors import UserError

KINDS = {
    "audio": "audio/*",
    "images": "image/*",
    "videos": "video/*,.gif",
}  # argument of `ask` -> what is offered


@contextmanager
def switched_off(button: Any, controls: Sequence[Any], busy: str) -> Iterator[None]:
    """Controls disabled while something works, whatever becomes of it; the button says so."""
    label, button.description = button.description, busy
    for control in controls:
        control.disabled = True
    try:
        yield
    finally:
        button.description = label
        for control in controls:
            control.disabled = False


class AskBox:
    """A text field, an upload for each kind of file, a button, and the answer below them, word by word.

    A recording is a file too: on a phone the upload offers the microphone, on a computer any recorder will do.
    Files stay on this machine, in a temporary folder that goes with the box. A mistake is answered with one line.

    Args:
        brain: of `omnilib.brain.ask`.
        text: what stands in the field at first.
        settings: of the answer, for example max_new_tokens=64.
    """

    def __init__(self, brain: Any, text: str = "", **settings: Any):
        import ipywidgets as widgets

        self.brain, self.settings = brain, settings
        self.folder = tempfile.TemporaryDirectory(prefix="omnilib-ask-")
        wide = widgets.Layout(width="90%")
        self.box = widgets.Text(value=text, description="question", layout=wide, continuous_update=True)
        self.files = {
            kind: widgets.FileUpload(accept=accept, multiple=True, description=kind)
            for kind, accept in KINDS.items()
        }
        self.button = widgets.Button(description="ask", button_style="primary")
        self.answer = widgets.Output()
        self.button.on_click(self.ask)
        self.box.on_msg(self.typed)
        self.view = widgets.VBox(
            [self.box, widgets.HBox(list(self.files.values())), self.button, self.answer]
        )

    def typed(self, _: Any, content: dict, __: Any = None) -> None:
        """A message of the text field: Enter was pressed."""
        if content.get("event") == "submit":
            self.ask()

    def uploaded(self, kind: str) -> list[str]:
        """Paths of the files of a kind, written under names of our own: an uploaded name is no path."""
        paths = []
        for number, file in enumerate(self.files[kind].value):
            suffix = Path(file["name"]).suffix[:8].lower()
            path = Path(self.folder.name) / f"{kind}-{number}{suffix if suffix[1:].isalnum() else ''}"
            path.write_bytes(bytes(file["content"]))
            paths.append(str(path))
        return paths

    def ask(self, _: Any = None) -> None:
        """Answer what is in the box, with the controls switched off until it is done."""
        from IPython.display import clear_output

        controls = (self.box, self.button, *self.files.values())
        with switched_off(self.button, controls, "thinking ..."), self.answer:
            clear_output()
            try:
                given = {kind: self.uploaded(kind) for kind in KINDS}
                for words in self.brain.stream(self.box.value, **given, **self.settings):
                    print(words, end="", flush=True)
                print()
            except UserError as error:
                print(error)
