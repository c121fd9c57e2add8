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
        self.lock = threading.RLock()  # a signal's handler may stop the answer that is just being kept

    def keep(self, text: str, again: bool = False) -> None:
        """Question and answer go into the messages, once; `again`: the answer that is there becomes this text, as less
        of it was heard than was made."""
        with self.lock:
            first, self.over = not self.over, True
            if first or again:
                self.told["content"] = text.strip()
            if first:
                self.messages += [self.asked, self.told]

    def drop(self) -> None:
        """The turn failed: nothing of it is kept."""
        with self.lock:
            self.over = True
