"""Brain and mouth on two tracks: the mouth speaks an answer while the brain is writing it.

    talk = Omni.load("nano").conversation(voice="slt")
    for piece in talk.stream(audio=["question.wav"]):     # a piece: some text, some samples, or both
        print(piece.text, end=""), play(piece.wave)       # `talk.answer.stop()` at any moment: silence, kept history
    reply = talk.ask("And in the evening?")               # text and wave as a whole

One turn of the loop (paper section 3; `Answer.step`):

    question --Brain--> one id --bridge--> ids the mouth reads --ChunkMachine--> one row --SpeechLM--> k tokens
                ^ until it says its end           waits for a word         until the last chunk ends      |
                                                                                                          v
    . . . . . . . . . . . . . . . the cut between two stages . . . . . . . . . . . . . . . . . . . . .  tokens
                                                              wave <--HiFT-- mel <--flow, a voice--  (25 Hz)

The cut: above it (`tracks.Mouth`) rows of the SpeechLM, which hand out 25 Hz tokens and know nothing of sound; below
it (`tracks.Sound`) flow and vocoder, which take tokens and a voice and know nothing of text. Each side may run elsewhere.

What the released loop does and this one does not: it dies of a leading blank (here the mouth waits for a word) and
of an empty reply (here: no text, no sound); it speaks a chunk of nothing when only blanks are left; it forgets media
in the second turn; its two entry points have two prompts (here one, `mouth.rows.prompt_rows`). `released=True` has
its rows, for comparison.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from omnilib.brain.ask import Brain, turn
from omnilib.brain.decode import AnswerSettings, ends
from omnilib.bridge import SameIds, Words, same_vocabulary
from omnilib.errors import UserError
from omnilib.mouth.chunking import Chunk
from omnilib.mouth.passes import fit
from omnilib.speak import Reference, TextToSpeech
from omnilib.tracks import Mouth, Sound
from omnilib.voice.codec import MelStream


@dataclass(frozen=True)
class Piece:
    """What came of a step: text (n characters) and sound (n,) at 24 kHz, either may be empty."""

    text: str
    wave: Tensor = field(repr=False)


@dataclass(frozen=True)
class Reply:
    """An answer as a whole."""

    text: str
    wave: Tensor = field(repr=False)  # (T,)
    rate: int
    chunks: list[Chunk]  # of the speech; `error` tells of one that a guard stopped


class Answer:
    """Both tracks of one answer: iterate over its pieces, once.

    Attributes:
        text: what the brain has written; mouth: its rows and chunks, None if it does not speak.
    """

    def __init__(self, talk: "Conversation", asked: dict, settings: AnswerSettings, speak: bool):
        omni = self.omni = talk.omni
        batch = omni.brain.processor.chat([*talk.messages, asked]).to(omni.brain.model.device)
        self.talk, self.asked, self.text, self.ids = talk, asked, "", []
        self.left, self.stops = settings.max_new_tokens, ends(omni.brain.model, settings)
        self.steps = omni.brain.steps(batch, settings)
        self.bridge = (
            SameIds(omni.brain.processor.decode) if omni.same else Words(omni.speech.front, talk.language)
        )
        self.mouth = talk.mouth() if speak else None
        self.stopped = self.kept = False
        self.pieces = self.run()

    @property
    def written(self) -> bool:
        """Whether the brain has ended."""
        return self.left == 0

    @property
    def done(self) -> bool:
        return self.stopped or (self.written and (self.mouth is None or self.mouth.over))

    def brain_step(self) -> str:
        """One id of the brain, if it has not ended: the text that is whole with it."""
        if self.written:
            return ""
        new = int(next(self.steps)[0])
        ended = new in self.stops
        self.left = 0 if ended else self.left - 1
        before = self.text
        if not ended:
            self.ids.append(new)
        text = self.omni.brain.processor.decode(self.ids)
        if self.written or not text.endswith("\ufffd"):  # a character comes when it is whole
            self.text = text
        if self.mouth is not None:
            ids = [] if ended else self.bridge.push(new, self.text)
            self.mouth.push(ids + (self.bridge.close(self.text) if self.written else []), self.written)
        return self.text[len(before) :]

    def step(self) -> tuple[str, list[int]]:
        """One turn of the loop: (text, tokens)."""
        return self.brain_step(), self.mouth.step() if self.mouth is not None else []

    def run(self) -> Iterator[Piece]:
        try:
            sound = Sound(self.omni.speech.codec, self.talk.warm()) if self.mouth is not None else None
            while not self.done:
                text, tokens = self.step()
                wave = sound.push(tokens, self.done) if sound and not self.stopped else torch.empty(0)
                if (text or len(wave)) and not self.stopped:
                    yield Piece(text, wave)
        except GeneratorExit:  # whoever listened has gone
            self.stopped = True
        self.keep()

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        return next(self.pieces)

    def stop(self) -> None:
        """No more of either track, from now on; what was said stays in the conversation. Also of another thread."""
        self.stopped = True
        self.keep()

    @property
    def said(self) -> str:
        """What of the text the mouth has taken up; all of it if it does not speak."""
        return self.text if self.mouth is None else self.bridge.said(self.mouth.taken)

    def keep(self) -> None:
        """The turn goes into the history, once."""
        if not self.kept:
            self.kept = True
            text = (self.said if self.stopped else self.text).strip()
            self.talk.messages += [self.asked, {"role": "assistant", "content": text}]


class Conversation:
    """Turns of one talk in one voice. `messages` holds all that was said, heard and shown."""

    def __init__(self, omni: "Omni", reference: Reference, language: str | None, system: str | None):
        self.omni, self.reference, self.language = omni, reference, language
        self.messages: list[dict] = [] if system is None else [{"role": "system", "content": system}]
        speech = omni.speech
        room = speech.model.config.max_position_embeddings, len(reference.prompt)
        self.settings = speech.settings if omni.released else fit(speech.settings, *room)
        self.answer: Answer | None = None
        self.warmed: MelStream | None = None

    def mouth(self) -> Mouth:
        """The mouth, about to speak in this voice."""
        speech, prompt = self.omni.speech, self.reference.prompt
        return Mouth(speech.model, speech.front, prompt, self.settings, self.omni.released)

    def warm(self) -> MelStream:
        """The voice in the flow, computed once."""
        self.warmed = self.warmed or self.omni.speech.codec.warm(self.reference.voice)
        return self.warmed

    def stream(
        self,
        text: str = "",
        audio: Sequence = (),
        images: Sequence = (),
        videos: Sequence = (),
        speak: bool = True,
        **settings,
    ) -> Answer:
        """The next answer, piece by piece; see `brain.ask.Brain.ask` for what may be asked and what is raised, at once.

        Args:
            speak: False: text alone.
            settings: fields of `AnswerSettings`.

        Raises:
            UserError: the answer before is still being given.
        """
        if self.answer is not None and not self.answer.kept:
            raise UserError("the last answer is still being given: read it to its end, or stop() it first")
        chosen = replace(self.omni.brain.settings, **settings)
        self.answer = Answer(self, turn(text, audio, images, videos), chosen, speak)
        return self.answer

    def ask(self, text: str = "", **question) -> Reply:
        """The next answer as a whole; as `stream`."""
        answer = self.stream(text, **question)
        waves = [piece.wave for piece in answer]
        wave = torch.cat(waves) if waves else torch.empty(0)
        return Reply(
            answer.text.strip(), wave, self.omni.speech.rate, answer.mouth.chunks if answer.mouth else []
        )


class Omni:
    """Brain and mouth together.

    Args:
        released: rows of the released joint loop; for comparison.
    """

    def __init__(self, brain: Brain, speech: TextToSpeech, released: bool = False):
        self.brain, self.speech, self.released = brain, speech, released
        size = speech.model.config.tokenizer_text_size
        self.same = same_vocabulary(brain.processor.tokenizer, speech.tokenizer, size)

    @classmethod
    def load(cls, scale: str | Path = "nano", device: str = "cpu") -> "Omni":
        """Both parts of checkpoints/<scale>; raises as `Brain.load` and `TextToSpeech.load`."""
        return cls(Brain.load(scale, device), TextToSpeech.load(scale, device))

    def conversation(
        self,
        voice: str | Path | Reference | None = None,
        voice_text: str | None = None,
        language: str | None = None,
        system: str | None = None,
    ) -> Conversation:
        """A talk in a voice: a name, a recording with its transcript, or the default of the language.

        Raises:
            UserError, AudioError: the voice cannot be used.
        """
        given = isinstance(voice, Reference)
        reference = voice if given else self.speech.reference(voice, voice_text, language or "en")
        return Conversation(self, reference, language, system)
