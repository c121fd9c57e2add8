"""Ask the brain: files and words in, words out.

    brain = Brain.load("nano")
    print(brain.ask("What is in the picture?", images=["cat.png"]))
    for words in brain.stream(audio=["question.wav"]):
        print(words, end="", flush=True)

    talk = brain.conversation()                     # keeps pictures, videos and sound of all turns
    talk.ask("Who is this?", images=["cat.png"])
    talk.ask("What colour is it?")

Media stand before the words, pictures first, then videos, then sound. To place them elsewhere, put `<image>`,
`<video>` or `<speech>` in the text, one for each file: "Is <image> older than <image>?". What is wrong with a
file, or does not fit the context or the memory, is one line (`omnilib.errors`) before anything is computed.
"""

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from omnilib.brain import published
from omnilib.brain.decode import GREEDY, AnswerSettings, ends, stream
from omnilib.brain.fast_decode import FastDecoder
from omnilib.brain.inputs import BrainProcessor
from omnilib.brain.layout import check_counts
from omnilib.brain.mllm import Brain as Model
from omnilib.brain.positions import rope_factor
from omnilib.brain.prompts import MARKERS
from omnilib.brain.trained import load_trained
from omnilib.device import check_device
from omnilib.errors import CheckpointError, MediaError
from omnilib.paths import CHECKPOINTS

KINDS = {"<image>": "image", "<video>": "video", "<speech>": "audio"}  # of a part of a turn
NOUNS = {"<image>": "images are", "<video>": "videos are", "<speech>": "recordings are"}


@dataclass(frozen=True)
class Reply:
    """An answer and what it took."""

    text: str
    positions: int  # of the prompt, media included
    tokens: int  # of the answer
    rope_factor: int  # 1: within the trained length
    complete: bool  # False: cut at max_new_tokens
    seconds: dict[str, float] = field(default_factory=dict)  # read, first (encoders and prompt), answer

    def __str__(self) -> str:
        return self.text


def turn(text: str = "", audio: Sequence = (), images: Sequence = (), videos: Sequence = ()) -> dict:
    """A user's turn for `BrainProcessor.chat`.

    Raises:
        MediaError: nothing at all, one file instead of a list, or not one marker for each file.
    """
    given = {"<image>": images, "<video>": videos, "<speech>": audio}
    for marker, files in given.items():
        if isinstance(files, str | Path):
            raise MediaError(f"{NOUNS[marker].split()[0]} must be a list: [{str(files)!r}]")
    if not text.strip() and not any(len(files) for files in given.values()):
        raise MediaError("nothing to answer: give a question, or a recording, picture or video")
    stretches = [s for s in re.split(f"({'|'.join(MARKERS)})", text) if s]
    if not any(s in KINDS for s in stretches):
        stretches = [marker for marker, files in given.items() for _ in files] + ([text] if text else [])
    waiting = {}
    for marker, files in given.items():
        check_counts(stretches.count(marker), len(files), marker, NOUNS[marker])
        waiting[marker] = iter(files)
    parts = [{"type": KINDS[s], KINDS[s]: next(waiting[s])} if s in KINDS else s for s in stretches]
    return {"role": "user", "content": parts}


class Brain:
    """A model that hears, sees and reads, ready to answer.

    Args:
        model, processor: as `load` makes them.
        settings: how to answer unless a call says otherwise.
        weights: on CPU, of the fast decoder (`fast_decode.WEIGHTS`); "": plain decoding.
    """

    def __init__(
        self,
        model: Model,
        processor: BrainProcessor,
        settings: AnswerSettings = GREEDY,
        weights: str = "int8",
    ):
        self.model, self.processor, self.settings = model, processor, settings
        self.decoder = FastDecoder(model, weights) if weights and model.device.type == "cpu" else None

    def steps(self, batch: dict, settings: AnswerSettings) -> Iterator[Tensor]:
        """Ids of the answers, one step after the other: the fast decoder for one prompt on CPU."""
        if self.decoder is not None and len(batch["input_ids"]) == 1:
            return self.decoder.stream(batch, settings)
        return stream(self.model, batch, settings)

    @classmethod
    def load(cls, scale: str | Path = "nano", device: str = "cpu", weights: str = "int8") -> "Brain":
        """Read checkpoints/<scale>/brain, or a folder: a trained one, or a published MGM-Omni brain.

        Raises:
            CheckpointError: missing, damaged, or on another base. MissingTool: a package part is missing or
            another file than the known one.
        """
        check_device(device)
        folder = folder_of(scale)
        if (folder / "meta.json").is_file():
            model, processor = load_trained(folder)
            return cls(model.to(device), processor, weights=weights)
        dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
        loaded = published.load(folder, dtype=dtype, device=device)
        return cls(loaded.brain, loaded.processor, weights="")

    def ask(
        self,
        text: str = "",
        audio: Sequence = (),
        images: Sequence = (),
        videos: Sequence = (),
        **settings,
    ) -> Reply:
        """Answer one question.

        Args:
            text: the question in words; empty if it is spoken.
            audio, images, videos: paths or arrays, see `omnilib.brain.media`.
            settings: fields of `AnswerSettings`, for example max_new_tokens=64.

        Raises:
            AudioError, MediaError: a file that cannot be used, or not one marker for each.
            LimitError: longer than the context, or more memory than there is.
        """
        return self.conversation().ask(text, audio, images, videos, **settings)

    def stream(
        self, text: str = "", audio: Sequence = (), images: Sequence = (), videos: Sequence = (), **settings
    ) -> Iterator[str]:
        """As `ask`, words as they come."""
        return self.conversation().stream(text, audio, images, videos, **settings)

    def ask_many(self, turns: Sequence[dict], **settings) -> list[str]:
        """Answers to several single questions at once, padded to the longest: quicker, the same words.

        Args:
            turns: of `turn`; of similar length, or the short ones pay for the long ones.

        Raises:
            As `ask`.
        """
        batch = self.processor.chat([[asked] for asked in turns]).to(self.model.device)
        chosen, rows = replace(self.settings, **settings), [[] for _ in turns]
        stops = set(ends(self.model, chosen))
        for step in self.steps(batch, chosen):
            for ids, row in zip(step.tolist(), rows, strict=True):
                if not row or row[-1] not in stops:
                    row.append(ids)
        return [self.processor.decode(row).strip() for row in rows]

    def conversation(self, system: str | None = None) -> "Conversation":
        """Several questions, each with all that was said, heard and shown before."""
        return Conversation(self, system)


class Conversation:
    """Turns of one talk; `messages` is what `BrainProcessor.chat` takes. A turn that fails is not kept."""

    def __init__(self, brain: Brain, system: str | None = None):
        self.brain = brain
        self.messages: list[dict] = [] if system is None else [{"role": "system", "content": system}]
        self.last: Reply | None = None

    def ask(
        self, text: str = "", audio: Sequence = (), images: Sequence = (), videos: Sequence = (), **settings
    ) -> Reply:
        """Answer the next question; see `Brain.ask`."""
        for _ in self.stream(text, audio, images, videos, **settings):
            pass
        return self.last

    def stream(
        self, text: str = "", audio: Sequence = (), images: Sequence = (), videos: Sequence = (), **settings
    ) -> Iterator[str]:
        """Words of the next answer as they come; when all have, the turn is kept and `last` tells of it."""
        chosen = replace(self.brain.settings, **settings)
        asked = turn(text, audio, images, videos)
        return self._stream(asked, chosen)

    def _stream(self, asked: dict, settings: AnswerSettings) -> Iterator[str]:
        model, processor, began = self.brain.model, self.brain.processor, time.perf_counter()
        batch = processor.chat([*self.messages, asked]).to(model.device)
        read, ids, told, first = time.perf_counter(), [], "", 0.0
        for step in self.brain.steps(batch, settings):
            first = first or time.perf_counter()
            ids.append(int(step[0]))
            text = processor.decode(ids)
            if not text.endswith("\ufffd") and len(text) > len(told):  # a character comes when it is whole
                yield text[len(told) :]
                told = text
        text, done = processor.decode(ids), time.perf_counter()
        if text[len(told) :]:
            yield text[len(told) :]
        positions = batch["input_ids"].shape[1]
        needed = int(batch["position_ids"].max()) + 1 + settings.max_new_tokens
        self.last = Reply(
            text.strip(),
            positions,
            len(ids),
            rope_factor(model.config, needed),
            len(ids) < settings.max_new_tokens or ids[-1] in ends(model, settings),
            {"read": read - began, "first": first - read, "answer": done - first},
        )
        self.messages += [asked, {"role": "assistant", "content": text.strip()}]


def folder_of(scale: str | Path) -> Path:
    """The brain's folder of a scale, or a folder itself.

    Raises:
        CheckpointError: there is none.
    """
    given = Path(scale)
    for folder in (given, given / "brain", CHECKPOINTS / str(scale) / "brain"):
        if (folder / "meta.json").is_file() or (folder / "config.json").is_file():
            return folder
    raise CheckpointError(
        f"no trained brain '{scale}': give a folder, restore checkpoints/{given.name}/brain, "
        "or train it with `python -m omnilib.train.brain`",
    )
