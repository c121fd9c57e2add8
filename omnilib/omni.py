"""Brain and mouth on two tracks: the mouth speaks an answer while the brain is writing it.

    talk = Omni.load("nano").conversation(voice="slt")
    for piece in talk.stream(audio=["question.wav"]):     # a piece: some text, some samples, or both
        print(piece.text, end=""), play(piece.wave)       # `talk.answer.stop(heard)` at any moment: silence, kept history
    reply = talk.ask("And in the evening?")               # text and wave as a whole

One turn of the loop (paper section 3; `Answer.run`):

    question --Brain--> one id --bridge--> ids the mouth reads --ChunkMachine--> one row --SpeechLM--> k tokens
                ^ until it says its end           waits for a word         until the last chunk ends      |
                                                                                                          v
    . . . . . . . . . . . . . . . the cut between two stages . . . . . . . . . . . . . . . . . . . . .  tokens
                                                              wave <--HiFT-- mel <--flow, a voice--  (25 Hz)

What comes next is planned (`pacing.Pace`) so that speech never starves once it began: rows before brain steps while
the listener's lead is short, a first piece as long as this machine needs. Rows and tokens are the same in any order.

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
from omnilib.history import Turn
from omnilib.mouth.passes import fit
from omnilib.pacing import Pace
from omnilib.plan import Plan
from omnilib.speak import Reference, TextToSpeech
from omnilib.tracks import Mouth, Piece, Reply, Sound, WarmVoices, Writer
from omnilib.voice.codec import MelStream


class Answer:
    """Both tracks of one answer: iterate over its pieces, once.

    Attributes: `brain.text`, what is written so far; `mouth`, its rows and chunks, None if it does not speak; `spans`,
    every step with its time; `plan`, what was handed out, and when.
    """

    def __init__(self, talk: "Conversation", asked: dict, settings: AnswerSettings, speak: bool):
        omni, self.talk, self.pace, self.spans = talk.omni, talk, talk.omni.pace, []
        self.turn, self.stopped = Turn(talk.messages, asked), False
        with self.pace.timed("read", self.spans):
            self.brain = Writer(omni.brain, [*talk.messages, asked], settings)
        self.bridge = SameIds(self.brain.decode) if omni.same else Words(omni.speech.front, talk.language)
        voice = omni.speech.model, omni.speech.front, talk.reference.prompt, talk.settings
        self.mouth = Mouth(*voice, omni.released) if speak else None
        self.plan = Plan(self.pace, self.brain, self.bridge, self.mouth, omni.speech.rate)
        self.pieces = self.run()

    def __iter__(self) -> Iterator[Piece]:
        return self.pieces

    @property
    def done(self) -> bool:
        return self.stopped or (self.brain.over and (self.mouth is None or self.mouth.over))

    def brain_step(self) -> str:
        """One id of the brain, if it has not ended, over the bridge: the text that is whole with it."""
        if self.brain.over or self.stopped:
            return ""
        with self.pace.timed("brain" if self.brain.ids else "first", self.spans):
            new, text = self.brain.step()
            if self.mouth is not None:
                ids = self.bridge.push(new, self.brain.text)
                ids += self.bridge.close(self.brain.text) if self.brain.over else []
                self.mouth.push(ids, last=self.brain.over)
        return text

    def mouth_step(self) -> list[int]:
        """One row, if enough text is known: the 25 Hz tokens (k or none) to be heard."""
        if self.mouth is None or self.stopped or not self.mouth.ready:
            return []
        with self.pace.timed("row", self.spans):
            return self.mouth.step()

    def run(self) -> Iterator[Piece]:
        plan = self.plan
        try:
            sound = Sound(self.talk.omni.speech.codec, self.talk.warm()) if self.mouth else None
            while not self.done:
                text = self.brain_step() if plan.brain_next(sound) else ""
                if sound:
                    sound.take(self.mouth_step())
                    if sound.due(last=self.done) and not self.stopped:
                        with self.pace.timed("hop", self.spans):
                            plan.hold(sound.step(last=self.done))
                wave = plan.let_out(sound, last=self.done)
                if (text or len(wave)) and not self.stopped:
                    plan.give(wave)
                    yield Piece(text, wave)
        except GeneratorExit:  # whoever listened has gone
            self.stopped = True
        except BaseException:
            self.turn.drop()  # a turn that fails is not kept
            raise
        self.turn.keep(self.said() if self.stopped else self.brain.text)
        self.talk.warm()  # for the next answer, as this one has shown what it takes

    def stop(self, heard: float | None = None) -> None:
        """No more of either track; what was heard stays in the conversation. Any thread may call it, also when all is
        made and still being played. `heard`: seconds of sound that were played; None: all that was handed out."""
        self.stopped = self.stopped or not self.turn.over
        self.turn.keep(self.said(heard), again=heard is not None)

    def said(self, heard: float | None = None) -> str:
        """What of the text was heard after so many seconds of what was handed out; all of it if it does not speak."""
        if self.mouth is None:
            return self.brain.text
        return self.bridge.said(self.mouth.heard(self.plan.tokens_heard(heard)))


class Conversation:
    """Turns of one talk in one voice. `messages` holds all that was said, heard and shown."""

    def __init__(self, omni: "Omni", reference: Reference, language: str | None, system: str | None):
        self.omni, self.reference, self.language = omni, reference, language
        self.messages: list[dict] = [] if system is None else [{"role": "system", "content": system}]
        settings, room = omni.speech.settings, omni.speech.model.config.max_position_embeddings
        self.settings = settings if omni.released else fit(settings, room, len(reference.prompt))
        self.answer: Answer | None = None

    def warm(self) -> MelStream:
        """The voice in the flow, computed once: called before the question, the answer is heard sooner."""
        return self.omni.voices.warm(self.reference.voice, self.omni.pace, self.omni.first_hop)

    def stream(
        self,
        text: str = "",
        audio: Sequence = (),
        images: Sequence = (),
        videos: Sequence = (),
        speak=True,
        **settings,
    ) -> Answer:
        """The next answer, piece by piece; see `brain.ask.Brain.ask` for what may be asked and what is raised, at once.

        Args:
            speak: False: text alone. settings: fields of `AnswerSettings`.

        Raises:
            UserError: the answer before is still being given.
        """
        if self.answer is not None and not self.answer.turn.over:
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
    """Brain and mouth together. `released`: rows of the released joint loop, for comparison; `first_hop`: tokens that
    the first piece of sound waits for; 0: the fewest, the same sound everywhere; None: as this machine needs."""

    def __init__(self, brain: Brain, speech: TextToSpeech, released: bool = False, first_hop: int | None = 0):
        self.brain, self.speech, self.released, self.first_hop = brain, speech, released, first_hop
        self.voices, self.pace = WarmVoices(speech.codec), Pace(speech.front.layout.streams / 25)
        size = speech.model.config.tokenizer_text_size
        self.same = same_vocabulary(brain.processor.tokenizer, speech.tokenizer, size)

    @classmethod
    def load(cls, scale: str | Path = "nano", device: str = "cpu") -> "Omni":
        """Both parts of checkpoints/<scale>; raises as `Brain.load` and `TextToSpeech.load`."""
        return cls(Brain.load(scale, device), TextToSpeech.load(scale, device), first_hop=None)

    def conversation(
        self, voice: str | Path | Reference | None = None, voice_text: str | None = None, language: str | None = None,
        system: str | None = None,
    ) -> Conversation:  # fmt: skip
        """A talk in a voice: a name, a recording with its transcript, or the default of the language.

        Raises:
            UserError, AudioError: the voice cannot be used.
        """
        if not isinstance(voice, Reference):
            voice = self.speech.reference(voice, voice_text, language or "en")
        return Conversation(self, voice, language, system)
