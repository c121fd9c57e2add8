"""The box of chapter 12: speak, type or show something, and hear the answer while it is being written; needs a running
notebook, or files alone (`TalkBox.hear`)."""

import threading
from pathlib import Path
from typing import Any

import numpy as np

from omnilib.errors import UserError
from omnilib.report.askbox import AskBox, switched_off
from omnilib.report.player import begin, play, player
from omnilib.report.recorder import heard, recorder


class TalkBox(AskBox):
    """`AskBox` with a microphone and an answer that is heard while it is written.

    The answer comes in a thread of its own, so that the stop button of the player works meanwhile: what was heard until
    then stays in the conversation.

    Args:
        talk: of `omnilib.omni`.
        text: what stands in the field at first.
        settings: of the answer, for example max_new_tokens=64.
    """

    def __init__(self, talk: Any, text: str = "", **settings: Any):
        super().__init__(talk, text, **settings)
        import ipywidgets as widgets

        self.talk, self.thread = talk, None
        self.microphone, self.player = recorder(), player()
        self.used = 0  # bytes of the microphone's recording that was asked last
        if self.player is not None:
            self.player.observe(self.stopped, "played")
        live = [w for w in (self.microphone, self.player) if w is not None]
        self.view = widgets.VBox([*self.view.children[:-1], widgets.HBox(live), self.answer])

    def recorded(self) -> list[str]:
        """Path of the microphone's recording, if there is one that was not asked yet."""
        found = heard(self.microphone)
        if found is None or self.microphone.samples is self.used:
            return []
        import soundfile

        self.used = self.microphone.samples
        path = Path(self.folder.name) / "microphone.wav"
        path = path.with_stem(f"microphone-{len(list(path.parent.glob('microphone*')))}")
        soundfile.write(path, *found)
        return [str(path)]

    def ask(self, _: Any = None) -> None:
        """Answer what is in the box, in the background, with the controls switched off until it is done."""
        if self.thread is None or not self.thread.is_alive():
            given = {kind: self.uploaded(kind) for kind in self.files}
            given["audio"] = self.recorded() or given["audio"]
            arguments = (self.box.value, given)
            self.thread = threading.Thread(target=self.answered, args=arguments, daemon=True)
            self.thread.start()

    def answered(self, text: str, given: dict[str, list]) -> None:
        """`hear`, with what comes shown below the box."""
        self.answer.outputs = ()
        controls = (self.box, self.button, *self.files.values())
        with switched_off(self.button, controls, "talking ..."):
            try:
                self.hear(text, show=self.answer.append_stdout, **given)
            except UserError as error:
                self.answer.append_stdout(f"{error}\n")
            except Exception as error:  # a thread has nobody else to tell
                self.answer.append_stderr(f"{type(error).__name__}: {error}\n")

    def hear(self, text: str = "", show: Any = print, **given: Any) -> tuple[np.ndarray, int]:
        """The answer to files and words, played while it comes; runs headless too: wave (T,) and rate.

        Args:
            show: is given the words as they come.
            given: audio, images, videos: lists of files.

        Raises:
            UserError: as `omnilib.omni.Conversation.stream`.
        """
        answer, waves = self.talk.stream(text, **given, **self.settings), [np.zeros(0, np.float32)]
        rate = self.talk.omni.speech.rate
        begin(self.player, rate)
        for piece in answer:
            play(self.player, piece.wave)
            waves.append(np.asarray(piece.wave, dtype=np.float32))
            if piece.text and show is not print:
                show(piece.text)
        if show is print:
            print(self.talk.messages[-1]["content"])
        return np.concatenate(waves), rate

    def stopped(self, change: dict) -> None:
        """The listener pressed stop in the player."""
        if self.talk.answer is not None:
            self.talk.answer.stop(heard=change["new"][1])
