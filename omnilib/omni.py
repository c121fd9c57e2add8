"""Brain and mouth on two tracks: the mouth speaks an answer while the brain is writing it.

    talk = Omni.load("nano").conversation(voice="slt")
    for piece in talk.stream(audio=["question.wav"]):     # a piece: some text, some samples, or both
        print(piece.text, end=""), play(piece.wave)       # `talk.answer.stop()` at any moment: silence, kept history
    reply = talk.ask("And in the evening?")               # text and wave as a whole

One turn of the loop (paper section 3; `Answer.run`):

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
from dataclasses import replace
from pathlib import Path

import torch

from omnilib.brain.ask import Brain, turn
from omnilib.brain.decode import AnswerSettings
from omnilib.bridge import SameIds, Words, same_vocabulary
from omnilib.errors import UserError
from omnilib.mouth.passes import fit
from omnilib.speak import Reference, TextToSpeech
from omnilib.tracks import Mouth, Piece, Reply, Sound, Writer
from omnilib.voice.codec import MelStream


class Answer:
    """Both tracks of one answer: iterate over its pieces, once.

    Attributes:
        brain: what is written so far, in `brain.text`.
        mouth: its rows and chunks; None if it does not speak.
    """

    def __init__(self, talk: "Conversation", asked: dict, settings: AnswerSettings, speak: bool):
        omni, self.talk, self.asked = talk.omni, talk, asked
        self.brain = Writer(omni.brain, [*talk.messages, asked], settings)
        self.bridge = SameIds(self.brain.decode) if omni.same else Words(omni.speech.front, talk.language)
        self.mouth = talk.mouth() if speak else None
        self.stopped = self.kept = False
        self.pieces = self.run()

    @property
    def done(self) -> bool:
        return self.stopped or (self.brain.over and (self.mouth is None or self.mouth.over))

    def brain_step(self) -> str:
        """One id of the brain, if it has not ended, over the bridge: the text that is whole with it."""
        if self.brain.over:
            return ""
        new, text = self.brain.step()
        if self.mouth is not None:
            ids = self.bridge.push(new, self.brain.text)
            ids += self.bridge.close(self.brain.text) if self.brain.over else []
            self.mouth.push(ids, last=self.brain.over)
        return text

    def mouth_step(self) -> list[int]:
        """One row, if enough text is known: the 25 Hz tokens (k or none) to be heard."""
        return [] if self.mouth is None else self.mouth.step()

    def run(self) -> Iterator[Piece]:
        try:
            sound = Sound(self.talk.omni.speech.codec, self.talk.warm()) if self.mouth is not None else None
            while not self.done:
                text, tokens = self.brain_step(), self.mouth_step()
                wave = sound.push(tokens, last=self.done) if sound else torch.empty(0)
                if (text or len(wave)) and not self.stopped:
                    yield Piece(text, wave)
        except GeneratorExit:  # whoever listened has gone
            self.stopped = True
        except BaseException:
            self.kept = True  # a turn that fails is not kept
            raise
        self.keep()

    def __iter__(self) -> Iterator[Piece]:
        return self.pieces

    def stop(self) -> None:
        """No more of either track; what was said stays in the conversation. Any thread may call it."""
        self.stopped = True
        self.keep()

    @property
    def said(self) -> str:
        """What of the text the mouth has taken up; all of it if it does not speak."""
        return self.brain.text if self.mouth is None else self.bridge.said(self.mouth.taken)

    def keep(self) -> None:
        """The turn goes into the history, once."""
        if not self.kept:
            self.kept = True
            text = (self.said if self.stopped else self.brain.text).strip()
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
        wave = torch.cat([torch.empty(0), *(piece.wave for piece in answer)])
        chunks = answer.mouth.chunks if answer.mouth else []
        return Reply(answer.brain.text.strip(), wave, self.omni.speech.rate, chunks)


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
