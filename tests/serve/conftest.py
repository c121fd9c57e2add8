"""A running server on tiny weights, with a mouth and a brain."""

import threading
import time
from dataclasses import replace

import pytest
import torch
import uvicorn

from omnilib.brain.ask import Brain
from omnilib.brain.config import smoke_config
from omnilib.brain.inputs import BrainProcessor
from omnilib.brain.mllm import Brain as BrainModel
from omnilib.speak import TextToSpeech
from tests.brain import reference
from tests.tiny import write_checkpoints

STORY = "The light was on the water."


class Scripted(Brain):
    """A brain whose words are given; it hears, sees and counts positions as any other.

    Attributes:
        script: what it answers.
        pause: seconds before each word.
        heard: the batches it was asked with; the newest few.
    """

    def __init__(self, model, processor):
        super().__init__(model, processor, weights="")
        self.script, self.pause, self.heard = STORY, 0.0, []

    def steps(self, batch, settings):
        self.heard = [*self.heard[-7:], batch]
        ids = self.processor.tokenizer.encode(self.script, add_special_tokens=False)
        for number, made in enumerate([*ids, 2][: settings.max_new_tokens]):
            time.sleep(self.pause)
            if self.script.startswith("!") and number == 5:
                raise RuntimeError("the brain broke")
            yield torch.tensor([made])


def tiny_brain(kind=Scripted, **settings):
    """A brain of random weights, which writes what we say, or (`kind=Brain`) what its weights say."""
    words = reference.longest_match(reference.WORDS, eos="<|im_end|>", pad="<|endoftext|>")
    torch.manual_seed(0)
    model = BrainModel(smoke_config(len(reference.WORDS), pad_token_id=0, eos_token_id=2)).eval()
    return kind(model, BrainProcessor(words, model.config), **settings)


def start(app):
    """Serve an app in this process: its port, and how to stop it."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]

    def stop():
        server.should_exit = True
        thread.join(10)

    return port, stop


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    speech = TextToSpeech.load(write_checkpoints(tmp_path_factory.mktemp("tiny")))
    speech.settings = replace(speech.settings, rows_per_token=2.0)
    torch.manual_seed(0)
    for weight in speech.codec.flow.parameters():  # a flow begins with zeros, and would not hear its tokens
        weight.data += 0.1 * torch.randn_like(weight)
    return speech
