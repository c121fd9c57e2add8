"""What stays of a turn: the question, and of the answer what was heard."""

import threading


class Turn:
    """A question and its answer, put into the messages of a talk once; any thread may call.

    Args:
        messages: of the talk, as `brain.inputs.BrainProcessor.chat` takes them.
        asked: the user's message.
    """

    def __init__(self, messages: list[dict], asked: dict):
        self.messages, self.asked = messages, asked
        self.told = {"role": "assistant", "content": ""}
        self.over = False  # kept or dropped
        self.lock = threading.Lock()

    def keep(self, text: str, again: bool = False) -> None:
        """Question and answer go into the messages, once; `again`: the answer that is there becomes this text, as less
        of it was heard than was made."""
        with self.lock:
            if self.over and not again:
                return
            if not self.over:
                self.messages += [self.asked, self.told]
            self.over, self.told["content"] = True, text.strip()

    def drop(self) -> None:
        """The turn failed: nothing of it is kept."""
        with self.lock:
            self.over = True
