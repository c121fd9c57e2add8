"""Conversations as the brain reads them: the published template `qwen2vl`.

    <|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n
    <|im_start|>user\\n ... <|im_end|>\\n
    <|im_start|>assistant\\n ... <|im_end|>\\n            an open turn ends behind "assistant\\n"

In a user's turn a picture or video is `<|vision_start|><image><|vision_end|>\\n`, a recording `<speech>` and
a line break unless the turn ends with it. A turn is a string, or a list of parts in the order in which they
shall be read:

    [{"role": "user", "content": [{"type": "image", "image": "cat.png"}, {"type": "text", "text": "Who?"}]},
     {"role": "assistant", "content": "A cat."},
     {"role": "user", "content": "What colour?"}]

All media of all turns stay. What a user types is text: a typed `<image>` or `<|im_end|>` is no placeholder
and no control token.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from omnilib.brain.layout import IGNORE, IMAGE, SPEECH
from omnilib.brain.media import Video
from omnilib.errors import MediaError

SYSTEM = "You are a helpful assistant."
START, END = "<|im_start|>", "<|im_end|>"
VISION = "<|vision_start|>", "<|vision_end|>\n"
MARKERS = {"<image>": IMAGE, "<video>": IMAGE, "<speech>": SPEECH}
ROLES = "system", "user", "assistant"


@dataclass
class Piece:
    """A stretch of a prompt: text, or the id of a placeholder."""

    text: str = ""
    marker: int | None = None
    typed: bool = False  # by a user: control tokens in it are plain text
    learn: bool = False  # an assistant's words


@dataclass
class Prompt:
    """Pieces and the media of their placeholders, in order."""

    pieces: list[Piece] = field(default_factory=list)
    pictures: list = field(default_factory=list)
    audio: list = field(default_factory=list)

    def ids(self, tokenizer) -> tuple[list[int], list[int]]:
        """Ids, and labels that ask for the assistant's words and their end. Every piece is tokenised alone,
        as published."""
        ids, labels = [], []
        for piece in self.pieces:
            new = [piece.marker] if piece.marker is not None else tokens(tokenizer, piece.text, piece.typed)
            ids += new
            labels += new if piece.learn else [IGNORE] * len(new)
        return ids, labels


def tokens(tokenizer, text: str, typed: bool = False) -> list[int]:
    """Ids of a text, nothing added; with `typed`, names of control tokens are plain characters."""
    risky = typed and any(name in text for name in special_names(tokenizer))
    options = {"split_special_tokens": True} if risky else {}
    return tokenizer.encode(text, add_special_tokens=False, **options) if text else []


def special_names(tokenizer) -> Iterable[str]:
    """Names of control tokens."""
    return getattr(tokenizer, "all_special_tokens", ()) or ()


def split_markers(text: str) -> list[Piece]:
    """A prompt string cut at its placeholders; its author is trusted with control tokens."""
    stretches = re.split(f"({'|'.join(MARKERS)})", text)
    return [Piece(marker=MARKERS[s]) if s in MARKERS else Piece(s) for s in stretches if s]


def part_of(part: object, last: bool, prompt: Prompt) -> list[Piece]:
    """Pieces of one part of a turn; its medium is added to `prompt`."""
    if isinstance(part, str):
        return [Piece(part, typed=True)]
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text":
        return [Piece(str(part["text"]), typed=True)]
    if kind in ("image", "video", "audio") and part.get(kind) is None:
        raise MediaError(f"a part of type '{kind}' without '{kind}': give the file or array under that name")
    if kind in ("image", "video"):
        prompt.pictures.append(part["image"] if kind == "image" else Video(part["video"]))
        return [Piece(VISION[0]), Piece(marker=IMAGE), Piece(VISION[1])]
    if kind == "audio":
        prompt.audio.append(part["audio"])
        return [Piece(marker=SPEECH)] + ([] if last else [Piece("\n")])
    raise MediaError(
        f"a turn holds {part!r}: parts are texts or {{'type': 'text' | 'image' | 'video' | 'audio', ...}}",
    )


def conversation(messages: Sequence[dict], answer: bool = True, system: str = SYSTEM) -> Prompt:
    """The prompt of a conversation.

    Args:
        messages: turns as above; a first turn of role "system" replaces `system`.
        answer: leave an assistant's turn open at the end.

    Raises:
        MediaError: an unknown role or part, or no turns.
    """
    if not messages:
        raise MediaError("an empty conversation: give at least one user's turn")
    if messages[0].get("role") == "system":
        system, messages = messages[0]["content"], messages[1:]
    prompt = Prompt([Piece(f"{START}system\n{system}{END}\n")])
    for message in messages:
        role, content = message.get("role"), message.get("content")
        if role not in ROLES[1:]:
            raise MediaError(
                f"a turn of role {role!r}: roles are user and assistant, and system for the first",
            )
        parts = [content] if isinstance(content, str) else list(content or ())
        if role == "assistant" and not all(isinstance(p, str) or p.get("type") == "text" for p in parts):
            raise MediaError("an assistant's turn with media: the brain answers in text")
        prompt.pieces.append(Piece(f"{START}{role}\n"))
        for i, part in enumerate(parts):
            prompt.pieces += part_of(part, i == len(parts) - 1, prompt)
        if role == "assistant":
            for piece in prompt.pieces[len(prompt.pieces) - len(parts) :]:
                piece.learn = True
            prompt.pieces += [Piece(END, learn=True), Piece("\n")]
        else:
            prompt.pieces.append(Piece(f"{END}\n"))
    if answer:
        prompt.pieces.append(Piece(f"{START}assistant\n"))
    return Prompt(joined(prompt.pieces), prompt.pictures, prompt.audio)


def joined(pieces: Sequence[Piece]) -> list[Piece]:
    """Neighbouring texts as one, so that they are tokenised together as in the published prompt string."""
    result: list[Piece] = []
    for piece in pieces:
        if result and joins(result[-1]) and joins(piece) and result[-1].learn == piece.learn:
            result[-1].text += piece.text
            result[-1].typed = False  # nothing in it looks like a control token but the template's own
        else:
            result.append(replace(piece))
    return result


def joins(piece: Piece) -> bool:
    """Whether a piece may be tokenised with the template: nothing typed in it looks like a control token."""
    return piece.marker is None and not (piece.typed and "<" in piece.text)
