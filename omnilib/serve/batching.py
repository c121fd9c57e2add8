"""Continuous batching: one mouth speaks many requests at once, and each may come and go at any row.

    submit(job) --waiting--> prompt alone, in a cache of its own --join--> the batch, one row a step --> 25 Hz tokens
                                                                              leaves when done or cancelled

Every request keeps a `Decoder` of its own: chunk machine, random generator, limits. Only the pass through the
model is shared, so a request has the same tokens alone and in company.

Shapes: B batch, M rows in the cache, K key heads, H head width.
"""

import queue
import threading
from collections import deque
from collections.abc import Iterator
from types import SimpleNamespace

import torch

from omnilib.errors import UserError
from omnilib.mouth.decode import Decoder, row_tokens
from omnilib.mouth.passes import left_over
from omnilib.mouth.step import Stepper
from omnilib.speak import Job, TextToSpeech, no_sound

SPARE = 256  # rows of padding on the left of all sequences before the cache is moved up
END = object()


class Busy(UserError):
    """As many requests as may wait are waiting."""


def replace_cache(stepper: Stepper, cache: list, start: torch.Tensor, length: int) -> None:
    """Give a stepper another cache of `length` rows, and room beyond."""
    stepper.cache, stepper.start, stepper.length = cache, start, length
    stepper.uneven = bool(start.any())
    stepper.reserve(max(stepper.capacity, length + 1))


def join(batch: Stepper, new: Stepper) -> None:
    """Add the sequences of `new` behind those of `batch`; the shorter of the two is padded on the left."""
    length = max(batch.length, new.length)
    cache = []
    for ours, theirs in zip(batch.cache, new.cache, strict=True):
        pair = []
        for old, more in zip(ours, theirs, strict=True):  # (B, K, M, H)
            both = old.new_zeros(len(old) + len(more), old.shape[1], length, old.shape[3])
            both[: len(old), :, length - batch.length :] = old[:, :, : batch.length]
            both[len(old) :, :, length - new.length :] = more[:, :, : new.length]
            pair.append(both)
        cache.append(tuple(pair))
    start = torch.cat([batch.start + length - batch.length, new.start + length - new.length])
    batch.logits = torch.cat([batch.logits, new.logits])
    replace_cache(batch, cache, start, length)


def trim(batch: Stepper) -> None:
    """Drop the padding that all sequences have on the left, so that the cache stays as long as the longest."""
    spare = int(batch.start.min())
    if spare >= SPARE:
        cache = [(k[:, :, spare : batch.length], v[:, :, spare : batch.length]) for k, v in batch.cache]
        batch.capacity = batch.length - spare
        replace_cache(batch, cache, batch.start - spare, batch.length - spare)


class Utterance:
    """One text being spoken: iterate over its tokens, a list a row, from any thread.

    Raises (while iterating):
        UserError: the text gave no sound.
    """

    def __init__(self, job: Job):
        self.job, self.ids = job, job.request.ids  # ids: what is left to speak
        self.tokens: queue.SimpleQueue = queue.SimpleQueue()
        self.cancelled = False
        self.decoder: Decoder | None = None

    def begin(self, speech: TextToSpeech) -> Stepper:
        """A pass of its own over the ids left; returns the prompt in a cache, to be joined to the batch."""
        machine = speech.front.machine(self.ids, self.job.rules)
        prompts = [self.job.reference.prompt]
        self.decoder = Decoder(speech.model, speech.front.layout, prompts, [machine], self.job.settings)
        return self.decoder.stepper

    def step(self, logits: torch.Tensor, blank: int | None) -> None:
        """One row, given the batch's logits for it (1, k, S)."""
        self.decoder.stepper = SimpleNamespace(logits=logits, device=logits.device)
        self.decoder.fed = True
        for _, row in self.decoder.step():
            if tokens := row_tokens(row, self.decoder.layout, blank):
                self.tokens.put(tokens)

    def cancel(self) -> None:
        """Leave the batch before its next row."""
        self.cancelled = True

    def __iter__(self) -> Iterator[list[int]]:
        heard = False
        while (item := self.tokens.get()) is not END:
            if isinstance(item, Exception):
                raise item
            heard = True
            yield item
        if not heard and not self.cancelled:
            raise no_sound(self.job)


class Batcher:
    """The mouth in a thread of its own.

    Args:
        slots: sequences decoded together.
        waiting: requests that may wait for a slot.
    """

    def __init__(self, speech: TextToSpeech, slots: int = 16, waiting: int = 16):
        self.speech, self.slots, self.most_waiting = speech, slots, waiting
        self.waiting: deque[Utterance] = deque()
        self.active: list[Utterance] = []
        self.stepper: Stepper | None = None
        self.news, self.closed = threading.Condition(), False
        self.thread = threading.Thread(target=self.run, name="mouth", daemon=True)
        self.thread.start()

    def submit(self, job: Job) -> Utterance:
        """Queue a text.

        Raises:
            Busy: the queue is full.
        """
        with self.news:
            free = self.slots - len(self.active)
            if len(self.waiting) >= self.most_waiting + free or self.closed:
                raise Busy(
                    f"{len(self.active) + len(self.waiting)} requests are being served: try again soon"
                )
            self.waiting.append(utterance := Utterance(job))
            self.news.notify()
        return utterance

    def close(self) -> None:
        """Stop; whoever still listens is told so."""
        with self.news:
            self.closed = True
            self.news.notify()
        self.thread.join()

    @torch.inference_mode()
    def run(self) -> None:
        while True:
            with self.news:
                self.news.wait_for(lambda: self.closed or self.waiting or self.active)
                if self.closed:
                    left = [*self.active, *self.waiting]
                    break
            try:
                self.admit()
                self.step()
            except Exception as error:  # one fault must not silence the server
                for utterance in self.active:
                    utterance.tokens.put(error)
                self.active, self.stepper = [], None
        for utterance in left:
            utterance.tokens.put(UserError("the server is stopping"))

    def admit(self) -> None:
        """Let go of who was cancelled, then fill the free slots."""
        self.leave([u for u in self.active if u.cancelled])
        while len(self.active) < self.slots:
            with self.news:
                if not self.waiting:
                    return
                utterance = self.waiting.popleft()
            if utterance.cancelled:
                utterance.tokens.put(END)
                continue
            try:
                new = utterance.begin(self.speech)
            except Exception as error:
                utterance.tokens.put(error)
                continue
            if self.stepper is None:
                self.stepper = new
            else:
                join(self.stepper, new)
            self.active.append(utterance)

    def step(self) -> None:
        """One row of every request in the batch."""
        if not self.active:
            return
        for i, utterance in enumerate(self.active):
            utterance.step(self.stepper.logits[i : i + 1], self.speech.model.config.speech_blank)
        self.leave([u for u in self.active if u.decoder.done])
        if self.active:
            newest = [u.decoder.grids[0][-1] for u in self.active]
            rows = torch.tensor([(row.text, *row.speech) for row in newest], device=self.stepper.device)
            self.stepper.advance(rows[:, None])  # (B, 1, 1 + k)

    def leave(self, gone: list[Utterance]) -> None:
        """Take requests out of the batch; a long text waits for its next pass, before all others."""
        if not gone:
            return
        stay = [i for i, u in enumerate(self.active) if u not in gone]
        self.active = [self.active[i] for i in stay]
        if stay:
            self.stepper.keep(stay)
            trim(self.stepper)
        else:
            self.stepper = None
        for utterance in gone:
            utterance.ids = () if utterance.cancelled else left_over(utterance.decoder.machines[0])
            if utterance.ids:
                with self.news:
                    self.waiting.appendleft(utterance)
            else:
                utterance.tokens.put(END)
