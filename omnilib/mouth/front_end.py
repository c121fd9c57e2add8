"""The text front end: from a written text to the ids, the prompt and the chunk machine that the mouth
decodes.

One object a loaded model holds what never changes between texts: the row layout, the text of every id, and
which characters the tokenizer knows. A text is normalised here, once; everything behind works on ids.

    front = FrontEnd(model.config, tokenizer)
    script = front.read("It's 5 pm!", "en")             # normalised, within the vocabulary, as ids
    prompt = front.prompt(front.read(said), tokens)     # rows of the reference recording
    machine = front.machine(script.ids, front.rules(settings))

Shapes: R rows, k streams, T speech tokens (25 a second).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from omnilib.errors import UserError
from omnilib.mouth.chunking import ChunkMachine, ChunkRules, split_text
from omnilib.mouth.decode import DecodeSettings
from omnilib.mouth.passes import check_length, expected_seconds
from omnilib.mouth.readable import Reader, Reading
from omnilib.mouth.rows import layout_of, prompt_rows
from omnilib.spoken import tidy
from omnilib.text import clean_text, detect_language, encode, pieces

NOTHING = "there is nothing to speak in this text: give some words in English or Chinese"


@dataclass(frozen=True)
class Script:
    """A text as the mouth reads it.

    Attributes:
        text: in spoken form, of characters that the model knows.
        ids: its text ids.
        reading: what was replaced and left out on the way.
    """

    text: str
    ids: tuple[int, ...]
    reading: Reading


class FrontEnd:
    """What every text needs, built once for a model and its tokenizer (paper section 3.2).

    Args:
        config: the speech model's, a `SpeechLMConfig`.

    Raises:
        CheckpointError: model and tokenizer do not belong together.
    """

    def __init__(self, config, tokenizer):
        self.tokenizer = tokenizer
        self.layout = layout_of(config, tokenizer)
        self.piece = pieces(tokenizer)  # id -> its text
        self.reader = Reader(tokenizer)
        self.blanks = config.speech_blank_codes  # codes that mean silence

    def read(self, text: str, language: str | None = None) -> Script:
        """Normalise a text, bring it within what the tokenizer knows, and encode it.

        Raises:
            UserError: nothing in it can be spoken, or the language is unknown.
        """
        reading = self.reader.read(clean_text(text, language))
        final = tidy(reading.text, language or detect_language(reading.text))  # what was left out left blanks
        ids = tuple(encode(self.tokenizer, final))
        return Script(final, ids, reading)

    def seconds(self, text: str, language: str | None = None) -> float:
        """How long a text as typed will be, about, in seconds."""
        return expected_seconds(clean_text(text, language))

    def prompt(self, said: Script, tokens: Tensor) -> Tensor:
        """The voice-clone prompt: transcript and 25 Hz tokens (T,) of the reference recording -> (R, 1 + k).

        Raises:
            UserError: the transcript is too long for the recording.
        """
        return prompt_rows(self.tokenizer, self.layout, said.text, tokens)

    def rules(self, settings: DecodeSettings) -> ChunkRules:
        """Where chunks end and when they have failed, by the settings of one pass."""
        return settings.rules(self.blanks)

    def machine(self, ids: Sequence[int], rules: ChunkRules) -> ChunkMachine:
        """A fresh chunk machine for text ids.

        Raises:
            UserError: they hold nothing to speak.
        """
        if not split_text(ids, self.piece, rules):
            raise UserError(NOTHING)
        return ChunkMachine(self.layout, rules, self.piece, ids)

    def check_length(self, script: Script) -> float:
        """Seconds the text is expected to take.

        Raises:
            UserError: more than an hour.
        """
        return check_length(script.reading.text)
