"""Texts of any length: what does not fit one pass of the mouth goes on in the next, in the same voice.

What limits a pass is its rows: `max_rows` and `pass_rows` of the settings, and the positions that the model
knows, less those of the prompt. A pass ends where a chunk ends, at a sentence end wherever there is one, as
soon as the next chunk might not fit (`ChunkRules.rows`). So no estimate can lose text: how long a text will
be is only foretold for the progress bar, and to refuse what is longer than an hour.
"""

from collections.abc import Sequence
from dataclasses import replace

from omnilib.errors import ConfigError, UserError
from omnilib.mouth.chunking import ChunkMachine, split_text
from omnilib.mouth.decode import DecodeSettings

LETTER, CHARACTER = (
    0.066,
    0.19,
)  # seconds of speech of an English letter or space, of a Chinese character; Kokoro's
LONGEST = 3600.0  # seconds of speech at a time
LEAST_ROWS = 12  # of a pass: 2 seconds
RUNAWAY = 8.0  # rows a text id takes at most, where the settings put no closer guard


def fit(settings: DecodeSettings, positions: int, prompt: int) -> DecodeSettings:
    """Settings of one pass: its rows and its chunks fit the model behind a prompt of `prompt` rows.

    Raises:
        ConfigError: there is no room for even a word.
    """
    rows = min(settings.max_rows, settings.pass_rows or settings.max_rows, positions - prompt)
    if rows < LEAST_ROWS:
        raise ConfigError(
            f"a limit of {rows} rows leaves no room to speak a word: raise max_rows (pass_rows) or give a shorter reference recording"
        )
    ids = int(
        (rows - 3) / max(1.0, min(settings.rows_per_token, RUNAWAY))
    )  # of the longest chunk that surely fits
    longest = min(settings.chunk_max_tokens, max(1, ids - 1))  # a chunk may have one id more
    return replace(
        settings,
        passes=True,
        max_rows=rows,
        chunk_max_tokens=longest,
        chunk_min_tokens=min(settings.chunk_min_tokens, longest),
    )


def expected_seconds(text: str) -> float:
    """Speech that a normalised text will take, whatever the pieces that a tokenizer cuts it into."""
    chinese = sum("\u4e00" <= sign <= "\u9fff" for sign in text)
    return chinese * CHARACTER + (len(text) - chinese) * LETTER


def duration(seconds: float) -> str:
    """ "40 seconds", "12 minutes", "2.5 hours"."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def check_length(text: str) -> float:
    """Seconds a normalised text is expected to take.

    Raises:
        UserError: more than an hour.
    """
    seconds = expected_seconds(text)
    if seconds > LONGEST:
        raise UserError(
            f"this text would take about {duration(seconds)} to speak: split it into parts of at most "
            f"{duration(LONGEST)}, chapter by chapter"
        )
    return seconds


def left_over(machine: ChunkMachine) -> tuple[int, ...]:
    """Text ids for the next pass; () when the text is through."""
    return tuple(machine.rest) if split_text(machine.rest, machine.piece, machine.rules) else ()


def chunk_ids(ids: Sequence[int], machine: ChunkMachine) -> list[Sequence[int]]:
    """The text ids of each chunk that a pass over `ids` has spoken."""
    spans = split_text(ids, machine.piece, machine.rules)
    return [ids[start:end] for start, end in spans[: len(machine.chunks)]]
