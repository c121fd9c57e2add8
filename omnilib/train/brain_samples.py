"""Samples of the brain: a JSONL manifest -> batches.

    {"id": "q-17", "split": "train", "task": "arithmetic",
     "turns": [{"role": "user", "text": "<speech>"}, {"role": "assistant", "text": "seven"}],
     "audio": ["q/17.wav"], "images": [], "video": []}

`<image>`, `<video>` and `<speech>` in a user's text mark the places of media; without any, media stand
before the words of the first user's turn. Paths are relative to the manifest and may not leave its folder.
A recording may also be a piece of a file of the speech corpus: {"path", "start", "duration", "rate"}.

Frozen towers give the same features at every step, so these may be kept on disk (`FeatureCache`): one
safetensors file for each recording or picture, named by the hashes of the file, the encoder and the
settings.
"""

import hashlib
import json
import math
import re
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from omnilib.brain import media
from omnilib.brain.fusion import positions_rate
from omnilib.brain.inputs import BrainProcessor
from omnilib.brain.layout import grow
from omnilib.brain.media import Video
from omnilib.brain.mllm import Brain
from omnilib.brain.prompts import MARKERS, Prompt, conversation
from omnilib.data import load_segment, sha256
from omnilib.errors import DataError, UserError
from omnilib.train.common import autocast
from omnilib.train.lengths import LengthBatches

MEDIA = {"<image>": "images", "<video>": "video", "<speech>": "audio"}
KINDS = {"<image>": "image", "<video>": "video", "<speech>": "audio"}  # of a part of a turn
PIECE = {"path", "start", "duration", "rate"}
MARKED = re.compile(f"({'|'.join(MARKERS)})")

# ---- the manifest ------------------------------------------------------------------------------------------


def read_samples(path: Path) -> list[dict]:
    """Records of a manifest, checked.

    Raises:
        DataError: missing file, or one line on the first fault: not JSON, a field missing or of another type,
            an id that stands twice, roles out of order, markers that do not match media, a path that leaves
            the folder or a file that is not there.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"no manifest {path}: make one with `python -m data_prep.brain`")
    root, samples, seen = path.parent.resolve(), [], set()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path} ({error}): give a JSONL file in UTF-8") from None
    for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):
        try:
            sample = json.loads(line)
            fault = fault_of(sample, root)
        except json.JSONDecodeError as error:
            fault = f"not JSON ({error.msg})"
        if not fault and sample["id"] in seen:
            fault = f"id '{sample['id']}' stands twice; ids must be unique"
        if fault:
            raise DataError(f"{path}:{number}: {fault}; correct the manifest or make it again")
        seen.add(sample["id"])
        samples.append(sample)
    return samples


def fault_of(sample: object, root: Path) -> str:
    """What is wrong with a record; empty if nothing."""
    if not isinstance(sample, dict):
        return "not a record"
    if missing := [f for f in ("id", "split", "task", "turns") if f not in sample]:
        return f"missing {', '.join(missing)}"
    if wrong := [f for f in ("id", "split", "task") if not isinstance(sample[f], str) or not sample[f]]:
        return f"{wrong[0]} is {sample[wrong[0]]!r}, not a word"
    turns = sample["turns"]
    talks = isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns)
    if not talks or not all(isinstance(turn.get("text"), str) for turn in turns):
        return "turns must be a list of {role, text}"
    roles = [t.get("role") for t in turns]
    talk = roles[1:] if roles[:1] == ["system"] else roles
    if not talk or len(talk) % 2 or talk != ["user", "assistant"] * (len(talk) // 2):
        order = "after an optional system, user and assistant take turns and the assistant ends"
        return f"roles are {roles}: {order}"
    if empty := [i for i, t in enumerate(turns) if t["role"] == "assistant" and not t["text"].strip()]:
        return f"turn {empty[0]} is an answer without words"
    text = "".join(t["text"] for t in turns if t["role"] == "user")
    marked = bool(MARKED.search(text))
    for marker, name in MEDIA.items():
        items = sample.get(name, [])
        if not isinstance(items, list):
            return f"{name} must be a list"
        if marked and text.count(marker) != len(items):
            return f"{text.count(marker)} {marker} but {len(items)} {name}"
        for item in items:
            if fault := fault_of_file(item, name, root):
                return fault
    return ""


def fault_of_file(item: object, name: str, root: Path) -> str:
    """What is wrong with a medium; empty if nothing."""
    if isinstance(item, dict) and name == "audio":
        numbers = [item.get(k) for k in ("start", "duration", "rate")]
        real = all(type(n) in (int, float) and math.isfinite(n) for n in numbers)
        if not set(item) >= PIECE or not real or numbers[0] < 0 or min(numbers[1:]) <= 0:
            return "a piece of a recording needs path, start, and duration and rate above 0"
        item = item["path"]
    if not isinstance(item, str) or not item:
        return f"{name} holds {item!r}, not a path"
    try:
        place = (root / item).resolve()
        inside, there = place.is_relative_to(root), place.is_file()
    except (OSError, ValueError):  # a name no file system takes
        inside, there = True, False
    if not inside:
        return f"path '{item}' leaves the folder of the manifest; not read"
    return "" if there else f"no file '{item}'"


def prompt_of(sample: dict, root: Path) -> Prompt:
    """The conversation in the published template, media in their places."""
    waiting = {marker: iter(sample.get(name, [])) for marker, name in MEDIA.items()}
    marked = any(MARKED.search(t["text"]) for t in sample["turns"] if t["role"] == "user")
    messages, first = [], not marked
    for turn in sample["turns"]:
        if turn["role"] != "user":
            messages.append({"role": turn["role"], "content": turn["text"]})
            continue
        stretches = [s for s in MARKED.split(turn["text"]) if s]
        if first:
            stretches = [marker for marker, name in MEDIA.items() for _ in sample.get(name, [])] + stretches
            first = False
        parts = [
            {"type": KINDS[s], KINDS[s]: placed(next(waiting[s]), root)} if s in KINDS else s
            for s in stretches  # in order
        ]
        messages.append({"role": "user", "content": parts})
    return conversation(messages, answer=False)


def placed(item: str | dict, root: Path) -> str | dict:
    """A medium with its whole path."""
    return str(root / item) if isinstance(item, str) else item | {"root": str(root)}


# ---- media -------------------------------------------------------------------------------------------------


def clip_samples(source: str | dict) -> int:
    """Samples at 16 kHz of a recording or a piece of one."""
    if isinstance(source, str):
        return media.audio_samples(source)
    return math.ceil(round(source["duration"] * source["rate"]) * media.TOKENIZER_RATE / source["rate"])


def load_clip(source: str | dict) -> Tensor:
    """A recording or a piece of one: (T,) at 16 kHz."""
    if isinstance(source, str):
        return media.load_audio(source)
    return media.load_audio(
        (load_segment(source | {"id": source["path"]}, Path(source["root"])), source["rate"]),
    )


@lru_cache(maxsize=100_000)
def file_hash(path: str) -> str:
    """sha256 of a file, taken once."""
    return sha256(Path(path))


def tower_hash(tower: nn.Module | None) -> str:
    """Hash of an encoder's weights."""
    digest = hashlib.sha256()
    for name, value in sorted((tower.state_dict() if tower is not None else {}).items()):
        digest.update(name.encode() + value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class FeatureCache:
    """Features of frozen towers on disk, in half precision."""

    def __init__(self, folder: Path, brain: Brain, processor: BrainProcessor):
        self.folder, self.brain, self.processor = Path(folder), brain, processor
        config, size = brain.config, processor.image_processor.size
        hears = [config.window_samples, config.mel_bins, positions_rate(config)]
        sees = [size["shortest_edge"], size["longest_edge"], config.video_fps, config.video_max_frames]
        self.keys = {
            "audio": f"{tower_hash(brain.model.speech_tower)} {hears}",
            "picture": f"{tower_hash(brain.model.vision_tower)} {sees}",
        }
        self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, kind: str, source: str | dict | Video) -> Path:
        """Where the features of a medium lie."""
        source = source.source if isinstance(source, Video) else source
        whole = isinstance(source, str)
        piece = [] if whole else [source[k] for k in ("start", "duration", "rate")]
        file = source if isinstance(source, str) else str(Path(source["root"]) / source["path"])
        key = f"{kind} {self.keys[kind]} {file_hash(file)} {piece}"
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:40]}.safetensors"

    @torch.no_grad()
    def get(self, kind: str, source: str | dict | Video) -> dict[str, Tensor]:
        """Features of a recording (main (W, N, D1), aux (W, 2 N, D2), positions (W,)) or of a picture
        (features (n, D), grid (3,)); made if they are not there or damaged."""
        path = self.path(kind, source)
        try:
            return load_file(str(path))
        except (OSError, SafetensorError):
            pass
        made = self.encode_clip(source) if kind == "audio" else self.encode_picture(source)
        made = {k: (v.half() if v.is_floating_point() else v).cpu().contiguous() for k, v in made.items()}
        temporary = path.with_suffix(".tmp")
        save_file(made, temporary)
        temporary.replace(path)
        return made

    def encode_clip(self, source: str | dict) -> dict[str, Tensor]:
        clip, config = load_clip(source), self.brain.config
        positions = torch.tensor(self.processor.speech_positions(len(clip)))
        windows, device = self.processor.windows(clip), self.brain.device
        main, aux = [], []
        for some, count in zip(
            windows.split(config.speech_batch),
            positions.split(config.speech_batch),
            strict=True,
        ):
            with autocast(device, True):  # kept in half precision anyway
                a, b = self.brain.model.encode_speech(some.to(device), count.to(device))
            main, aux = main + list(a if a is not None else ()), aux + list(b if b is not None else ())
        made = {"main": main, "aux": aux}
        return {k: pad_sequence(v, batch_first=True) for k, v in made.items() if v} | {"positions": positions}

    def encode_picture(self, source: str | Video) -> dict[str, Tensor]:
        pixels, grid = self.processor.picture(source)
        grids = torch.tensor([grid], device=self.brain.device)
        return {
            "features": self.brain.model.see(pixels.to(self.brain.device), grids),
            "grid": torch.tensor(grid),
        }


# ---- batches -----------------------------------------------------------------------------------------------


class Samples:
    """Batches of one split; a batch is a function of (seed, step) alone.

    Args:
        samples: records of `read_samples`.
        root: folder of the manifest.
        positions: budget of a batch, rows x longest.
        cache: of the towers that do not learn; `pictures` tells whether the vision tower is one of them.

    Raises:
        DataError: no samples, or one that is too long or cannot be read: its id and why.
    """

    def __init__(
        self,
        samples: list[dict],
        root: Path,
        processor: BrainProcessor,
        positions: int,
        seed: int = 0,
        cache: FeatureCache | None = None,
        pictures: bool = True,
    ):
        self.samples, self.root, self.processor, self.cache = samples, Path(root), processor, cache
        self.picture_cache = cache if pictures else None
        self.lengths = [self.length(sample) for sample in samples]
        limit = min(positions, processor.config.max_position_embeddings)
        for sample, length in zip(samples, self.lengths, strict=True):
            if length > limit:
                raise DataError(
                    f"sample '{sample['id']}' has {length} positions, {limit} fit: raise `positions`",
                )
        self.batches = LengthBatches(self.lengths, positions, seed)

    def grid(self, source: str | Video) -> tuple[int, int, int]:
        """Patches of a picture along time, height and width."""
        if self.picture_cache:
            return tuple(self.picture_cache.get("picture", source)["grid"].tolist())
        return self.processor.picture(source)[1]

    def length(self, sample: dict) -> int:
        """Positions behind the growth of placeholders."""
        try:
            prompt = prompt_of(sample, self.root)
            ids, _ = prompt.ids(self.processor.tokenizer)
            clips = sum(sum(self.processor.speech_positions(clip_samples(clip))) for clip in prompt.audio)
            seen = sum(math.prod(self.grid(p)) // self.processor.config.merge**2 for p in prompt.pictures)
        except UserError as error:
            raise DataError(f"sample '{sample['id']}': {error}") from None
        return len(ids) - len(prompt.audio) - len(prompt.pictures) + clips + seen

    def batch(self, step: int) -> dict[str, Tensor]:
        """What `Brain.forward` takes; with a cache, `main_frames` and `aux_frames` too."""
        return self.collate([self.samples[i] for i in self.batches.at(step)])

    def collate(self, samples: list[dict]) -> dict[str, Tensor]:
        """A batch of some samples, padded on the right."""
        rows, pixels, grids, windows, counts, heard, seen = [], [], [], [], [], [], []
        for sample in samples:
            prompt = prompt_of(sample, self.root)
            ids, labels = prompt.ids(self.processor.tokenizer)
            own, taken = [], []
            for source in prompt.pictures:
                if self.picture_cache:
                    kept = self.picture_cache.get("picture", source)
                    seen.append(kept["features"].float())
                    own.append(tuple(kept["grid"].tolist()))
                else:
                    patches, grid = self.processor.picture(source)
                    pixels.append(patches)
                    own.append(grid)
            for source in prompt.audio:
                if self.cache:
                    heard.append(self.cache.get("audio", source))
                    taken.append(heard[-1]["positions"].tolist())
                else:
                    clip = load_clip(source)
                    windows.append(self.processor.windows(clip))
                    taken.append(self.processor.speech_positions(len(clip)))
                counts += taken[-1]
            grids += own
            rows.append(grow(ids, own, [sum(n) for n in taken], labels, self.processor.config.merge))
        batch = self.processor.tensors(rows, pixels, grids, windows, counts, "right")
        for name in ("main", "aux"):
            if frames := [window.float() for kept in heard if name in kept for window in kept[name]]:
                batch[f"{name}_frames"] = pad_sequence(frames, batch_first=True)  # (W, N, D)
        if heard:
            batch["feature_positions"] = torch.tensor(counts)
        if seen:
            batch["picture_features"] = torch.cat(seen)
        return batch
