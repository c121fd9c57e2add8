"""The brain for many requests at once: who may come in, who is answered now, and how each is stopped.

    enter (429 when full) --read the body--> sit (wait, or go with the client) --answer--> leave

A seat's brain takes one step at a time with the others, as a step sets the model's rotary frequencies.
The mouth of a chat decodes by itself, row by row behind the brain, so it sounds the same alone and in
company.
"""

import asyncio
import copy
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace

import torch
from anyio import CapacityLimiter
from fastapi import Request
from torch import Tensor

from omnilib.brain.ask import Brain
from omnilib.brain.decode import AnswerSettings, ends
from omnilib.omni import Answer, Omni
from omnilib.serve.batching import Busy
from omnilib.serve.http import Limits, Refusal, read_bytes
from omnilib.serve.meters import Meters
from omnilib.speak import TextToSpeech
from omnilib.tracks import Piece, Writer

LOOK = 0.25  # seconds between looks whether a waiting client is still there
READERS = 2  # requests whose recordings and pictures are decoded at the same time: bounds memory
KEPT = 3600  # seconds for which the words of a spoken answer can be named by its id
MOST_KEPT = 1024


class SharedBrain:
    """A brain asked by many: it takes one step at a time. An answer that would not fit the context ends with it.

    Attributes:
        positions: of the last prompt.
        cut: whether the context ended the answer.
    """

    def __init__(self, brain: Brain, lock: threading.Lock):
        self.brain, self.lock, self.positions, self.cut = brain, lock, 0, False
        self.model, self.processor, self.settings = brain.model, brain.processor, brain.settings

    def steps(self, batch: dict, settings: AnswerSettings) -> Iterator[Tensor]:
        """As `Brain.steps`."""
        self.positions = batch["input_ids"].shape[1]
        room = self.model.config.context - int(batch["position_ids"].max()) - 1
        fitting = replace(settings, max_new_tokens=max(1, min(room, settings.max_new_tokens)))
        return self.in_turn(self.brain.steps(batch, fitting), settings)

    def in_turn(self, steps: Iterator[Tensor], settings: AnswerSettings) -> Iterator[Tensor]:
        while True:
            with self.lock:
                new = next(steps, None)
            if new is None:
                break
            yield new
        self.cut = True  # asked for more than there is
        yield torch.tensor(ends(self.model, settings)[:1])


class Written:
    """An answer in text alone; iterate once, as over `omni.Answer`."""

    def __init__(self, brain: SharedBrain, messages: list[dict], settings: AnswerSettings):
        self.brain, self.stopped = Writer(brain, messages, settings), False

    def __iter__(self) -> Iterator[Piece]:
        while not (self.brain.over or self.stopped):
            _, text = self.brain.step()
            yield Piece(text, torch.empty(0))

    def stop(self) -> None:
        """No more; any thread may call it."""
        self.stopped = True


class Seat:
    """One request's place: entered when it comes, sat down when it is its turn, left once."""

    def __init__(self, talks: "Talks"):
        self.talks, self.sits, self.left = talks, False, False
        self.conversation: str | None = None
        self.answer: Answer | Written | None = None
        talks.inside += 1

    def claim(self, conversation: str | None) -> None:
        """Be the only request of a named conversation.

        Raises:
            Refusal: another one is being answered.
        """
        if conversation in self.talks.conversations:
            raise Refusal(
                409,
                f"conversation '{conversation[:60]}' is being answered: wait for it, or cancel that request",
            )
        if conversation is not None:
            self.talks.conversations.add(conversation)
            self.conversation = conversation

    async def sit(self, request: Request) -> None:
        """Wait for a free place.

        Raises:
            Refusal: the client has gone.
        """
        while not self.sits:
            try:
                await asyncio.wait_for(self.talks.room.acquire(), LOOK)
                self.sits = True
                self.talks.active += 1
            except TimeoutError:
                if await request.is_disconnected():
                    raise Refusal(499, "the client has gone") from None

    def leave(self) -> None:
        """End the answer wherever it is, and make room; a second call does nothing."""
        if self.left:
            return
        self.left = True
        if self.answer is not None:
            self.answer.stop()
            self.talks.meters.tokens.inc(len(self.answer.brain.ids))
        self.talks.inside -= 1
        self.talks.conversations.discard(self.conversation)
        if self.sits:
            self.talks.active -= 1
            self.talks.room.release()


class Talks:
    """All that chats and transcriptions share.

    Args:
        brain: None: every request is told `why` it is not there.
    """

    def __init__(self, brain: Brain | None, speech: TextToSpeech, limits: Limits, meters: Meters, why: str):
        self.brain, self.limits, self.meters, self.why = brain, limits, meters, why
        self.omni = Omni(brain, speech) if brain is not None else None
        self.lock, self.room = threading.Lock(), asyncio.Semaphore(limits.talks)
        self.threads, self.readers = CapacityLimiter(limits.talks), CapacityLimiter(READERS)
        self.inside = self.active = 0
        self.conversations: set[str] = set()
        self.spoken: OrderedDict[str, tuple[str, float]] = OrderedDict()  # id -> words, until when

    @property
    def waiting(self) -> int:
        """Requests that are being read, or wait for a place."""
        return self.inside - self.active

    async def enter(self, request: Request) -> Seat:
        """A new request.

        Raises:
            Refusal: there is no brain. Busy: as many as may wait are waiting.
        """
        full = self.inside >= self.limits.talks + self.limits.waiting
        if self.brain is not None and not full:
            return Seat(self)
        busy = Busy(f"{self.inside} requests are being answered: try again soon")
        await read_bytes(request, self.limits.upload, self.limits.patience, keep=False)
        raise busy if full else Refusal(503, self.why)

    def ask(
        self,
        messages: list[dict],
        settings: AnswerSettings,
        voice: str | None = None,
        language: str | None = None,
        speak: bool = False,
    ) -> tuple[Answer | Written, SharedBrain]:
        """An answer to the last message, about to begin, and the brain that writes it.

        Args:
            messages: of `BrainProcessor.chat`.

        Raises:
            UserError: longer than the context, a voice that cannot be used.
        """
        brain = SharedBrain(self.brain, self.lock)
        if not speak:
            return Written(brain, messages, settings), brain
        omni = copy.copy(self.omni)
        omni.brain = brain
        talk = omni.conversation(voice, language=language)
        talk.messages = messages[:-1]
        return Answer(talk, messages[-1], settings, speak=True), brain

    def remember(self, text: str, name: str | None = None) -> tuple[str, int]:
        """Keep the words of a spoken answer: its id, and the Unix time until which a request may name it."""
        name, until = name or f"audio_{uuid.uuid4().hex}", int(time.time()) + KEPT
        self.spoken[name] = text, until
        while len(self.spoken) > MOST_KEPT:
            self.spoken.popitem(last=False)
        return name, until

    def recall(self, name: str) -> str:
        """The words of an earlier spoken answer.

        Raises:
            Refusal: unknown, or too old.
        """
        text, until = self.spoken.get(name, ("", 0))
        if until < time.time():
            raise Refusal(
                400, f"no spoken answer '{name[:60]}' is known (any more): send its words as content"
            )
        return text
