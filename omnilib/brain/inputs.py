"""Text, pictures, videos and sound -> what `Brain` takes: the processor.

    processor = BrainProcessor(tokenizer, config)
    batch = processor("<|im_start|>user\\n<image>\\nWhat is it?...", images=["cat.png"])   # or a dialogue:
    batch = processor.chat([{"role": "user", "content": [{"type": "audio", "audio": "q.wav"}]}])
    ids = model.generate(**batch)

A batch holds `input_ids` (B, L) with grown placeholders, `attention_mask`, `position_ids` (3, B, L),
`rope_deltas` (B,), `labels` if asked for, `pixel_values` and `image_grid_thw` of all pictures and videos,
`input_features` (W, bins, F) and `feature_positions` (W,) of all recordings. Lengths are computed first: what
is longer than the model's context is refused before a spectrum is made.
"""

import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoProcessor, AutoTokenizer, BatchFeature
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from omnilib.brain import media
from omnilib.brain.config import BrainConfig
from omnilib.brain.encoders import mel_windows, window_positions
from omnilib.brain.fusion import positions_rate
from omnilib.brain.layout import Row, check_counts, collate, grow
from omnilib.brain.limits import check_context
from omnilib.brain.media import SIDE, Video
from omnilib.brain.prompts import IMAGE, SPEECH, Prompt, conversation, split_markers
from omnilib.errors import CheckpointError, MediaError

PUBLISHED_PIXELS = (3136, 12_845_056)  # least and most of a picture in the published preprocessor_config.json
SETTINGS = "processor_config.json"


def one_each(value: Sequence | None, texts: str | Sequence[str], what: str) -> list[list]:
    """Media of each text: a list for one text, a list of lists for several.

    Raises:
        MediaError: another number of lists than of texts.
    """
    if isinstance(texts, str):
        return [list(() if value is None else value)]
    if value is None:
        return [[] for _ in texts]
    if len(value) != len(texts) or not all(isinstance(item, list | tuple) or item is None for item in value):
        raise MediaError(
            f"{len(texts)} texts need {len(texts)} lists of {what}, one for each: {what}=[[...], [...]]",
        )
    return [list(item or ()) for item in value]


class BrainProcessor:
    """Prepares batches for a brain of a given config."""

    def __init__(
        self,
        tokenizer,
        config: BrainConfig,
        min_pixels: int = PUBLISHED_PIXELS[0],
        max_pixels: int = PUBLISHED_PIXELS[1],
    ):
        self.tokenizer, self.config = tokenizer, config
        vision = config.vision_tower_config
        self.image_processor = Qwen2VLImageProcessorPil(
            min_pixels=min_pixels,
            max_pixels=max_pixels,
            patch_size=vision.patch_size if vision else 14,
            temporal_patch_size=vision.temporal_patch_size if vision else 2,
            merge_size=config.merge,
        )

    # ---- saving --------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: Path | str) -> None:
        """Tokenizer, and the pixel limits; the rest is in the model's config."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.tokenizer.save_pretrained(str(folder))
        self.config.save_pretrained(str(folder))
        size = self.image_processor.size
        settings = {
            "processor_class": type(self).__name__,
            "min_pixels": size["shortest_edge"],
            "max_pixels": size["longest_edge"],
        }
        (Path(folder) / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n")

    @classmethod
    def from_pretrained(cls, folder: Path | str, config: BrainConfig | None = None, **_) -> "BrainProcessor":
        """Of a folder that `save_pretrained` wrote or a published one; pixel limits also from
        `preprocessor_config.json`.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        folder = Path(folder)
        try:
            config = config or BrainConfig.from_pretrained(str(folder), local_files_only=True)
            tokenizer = AutoTokenizer.from_pretrained(
                str(folder),
                local_files_only=True,
                trust_remote_code=False,
            )
            limits = {}
            for name in ("preprocessor_config.json", SETTINGS):
                if (folder / name).is_file():
                    limits |= json.loads((folder / name).read_text(encoding="utf-8"))
        except Exception as error:  # transformers, the Rust tokenizer and json each raise their own
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(
                f"cannot read the processor in {folder}: {first}; restore the files",
            ) from error
        size = limits.get("size") or {}
        least = limits.get("min_pixels") or size.get("shortest_edge") or PUBLISHED_PIXELS[0]
        most = limits.get("max_pixels") or size.get("longest_edge") or PUBLISHED_PIXELS[1]
        return cls(tokenizer, config, least, most)

    # ---- pictures ------------------------------------------------------------------------------------------

    def patches(self, frames: Sequence, resize: bool = True) -> tuple[Tensor, tuple[int, int, int]]:
        """Patches of one picture (frames of one) or of a video: (P, 1176), and the grid."""
        depth = self.image_processor.temporal_patch_size
        made = self.image_processor(images=list(frames), do_resize=resize, return_tensors="np")
        _, height, width = made["image_grid_thw"][0]
        pixels = torch.from_numpy(np.ascontiguousarray(made["pixel_values"]))
        if len(frames) > 1:  # transformers repeats each frame; a video has neighbours side by side instead
            side = self.image_processor.patch_size
            repeated = pixels.view(len(frames), height * width, 3, depth, side * side)
            single = repeated[:, :, :, 0]  # (T, h w, 3, side^2)
            pairs = single.unflatten(0, (-1, depth)).permute(0, 2, 3, 1, 4)  # (T / 2, h w, 3, 2, side^2)
            pixels = pairs.reshape(-1, 3 * depth * side * side)
        return pixels, (len(frames) // depth or 1, int(height), int(width))

    def picture(self, source) -> tuple[Tensor, tuple[int, int, int]]:
        """Patches and grid of a picture, or of a `Video`.

        Raises:
            MediaError: it cannot be used.
        """
        if not isinstance(source, Video):
            return self.patches([media.load_picture(source)])
        frames = media.load_video(source.source, self.config.video_fps, self.config.video_max_frames)
        doubled = self.config.reference_quirks and not isinstance(source.source, str | Path)
        return self.patches(media.frames_to_size(frames, SIDE * (1 + doubled)), resize=False)

    # ---- sound ---------------------------------------------------------------------------------------------

    def speech_positions(self, samples: int) -> list[int]:
        """Positions that each window of a recording of so many samples (16 kHz) takes."""
        config = self.config
        return window_positions(
            samples,
            config.window_samples,
            positions_rate(config),
            config.reference_quirks,
        )

    # ---- batches -------------------------------------------------------------------------------------------

    def __call__(
        self,
        text: str | Sequence[str],
        images: Sequence | None = None,
        videos: Sequence | None = None,
        audio: Sequence | None = None,
        padding_side: str = "left",
    ) -> BatchFeature:
        """A batch from prompt strings.

        Args:
            text: one prompt or several; `<image>`, `<video>`, `<speech>` mark the places of media.
            images, videos, audio: in the order of their placeholders; a list, or for several texts a list for
                each. A `Video` among `images` stands for `<image>` too, as in the published prompts.
            padding_side: "left" to answer, "right" to train.

        Raises:
            MediaError, AudioError: media that cannot be used, or not one for each placeholder.
            LimitError: longer than the model's context.
        """
        given = {"images": images, "videos": videos, "audio": audio}
        lists = [one_each(value, text, name) for name, value in given.items()]
        texts = [text] if isinstance(text, str) else list(text)
        prompts = [self.prompt(t, *own) for t, *own in zip(texts, *lists, strict=True)]
        return self.batch(prompts, padding_side, with_labels=False)

    def prompt(self, text: str, images: list, videos: list, audio: list) -> Prompt:
        """Pieces of one prompt string, and its media in the order of the text."""
        markers = re.findall("<image>|<video>", text)
        check_counts(markers.count("<image>"), len(images), "<image>", "images are")
        check_counts(markers.count("<video>"), len(videos), "<video>", "videos are")
        pictures, films = iter(images), iter(videos)
        ordered = [next(pictures) if marker == "<image>" else Video(next(films)) for marker in markers]
        return Prompt(split_markers(text), ordered, audio)

    def chat(
        self,
        messages: Sequence,
        answer: bool = True,
        labels: bool = False,
        padding_side: str | None = None,
        **options,
    ) -> BatchFeature:
        """A batch from one conversation or several (see `prompts.conversation`).

        Args:
            answer: leave an assistant's turn open; False for training.
            labels: also give labels, which ask for the assistant's words.
            padding_side: by default "right" with labels, else "left".
        """
        single = not messages or isinstance(messages[0], dict)
        conversations = [messages] if single else messages
        prompts = [conversation(m, answer, **options) for m in conversations]
        return self.batch(prompts, padding_side or ("right" if labels else "left"), labels)

    def batch(self, prompts: Sequence[Prompt], padding_side: str, with_labels: bool) -> BatchFeature:
        """Lengths and limits first, then pixels and spectra."""
        if not prompts:
            raise MediaError("nothing to prepare: give at least one prompt")
        encoded = [prompt.ids(self.tokenizer) for prompt in prompts]
        for prompt, (ids, _) in zip(prompts, encoded, strict=True):
            check_counts(ids.count(IMAGE), len(prompt.pictures), "<image>", "pictures or videos are")
            check_counts(ids.count(SPEECH), len(prompt.audio), "<speech>", "recordings are")
            sound = sum(sum(self.speech_positions(media.audio_samples(clip))) for clip in prompt.audio)
            check_context(len(ids) - len(prompt.audio) + sound, 1, self.config.context)
        rows, pixels, grids, windows, counts = [], [], [], [], []
        for prompt, (ids, labels) in zip(prompts, encoded, strict=True):
            pictures = [self.picture(source) for source in prompt.pictures]
            clips = [media.load_audio(source) for source in prompt.audio]
            taken = [self.speech_positions(len(clip)) for clip in clips]
            row = grow(
                ids,
                [g for _, g in pictures],
                [sum(n) for n in taken],
                labels if with_labels else None,
                self.config.merge,
            )
            check_context(int(row.positions.max()) + 1, 1, self.config.context)
            rows.append(row)
            pixels += [p for p, _ in pictures]
            grids += [g for _, g in pictures]
            windows += [self.windows(clip) for clip in clips]
            counts += itertools.chain(*taken)
        return BatchFeature(self.tensors(rows, pixels, grids, windows, counts, padding_side))

    def windows(self, wave: Tensor) -> Tensor:
        """Log-mel windows of a recording: (T,) -> (W, bins, F)."""
        return mel_windows(
            wave,
            self.config.window_samples,
            self.config.mel_bins,
            self.config.reference_quirks,
        )

    def tensors(
        self,
        rows: list[Row],
        pixels: list[Tensor],
        grids: list,
        windows: list[Tensor],
        counts: list[int],
        padding_side: str,
    ) -> dict[str, Tensor]:
        """Everything of a batch under the names of `Brain.forward`."""
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0
        tensors = collate(rows, pad, padding_side)
        if pixels:
            tensors |= {"pixel_values": torch.cat(pixels), "image_grid_thw": torch.tensor(grids)}
        if windows:
            tensors |= {"input_features": torch.cat(windows), "feature_positions": torch.tensor(counts)}
        return tensors

    # ---- answers -------------------------------------------------------------------------------------------

    def decode(self, ids: Sequence[int] | Tensor) -> str:
        """The words of an answer, control tokens left out."""
        return self.tokenizer.decode(list(map(int, ids)), skip_special_tokens=True)

    def batch_decode(self, ids: Sequence | Tensor) -> list[str]:
        """The same for each row of a batch."""
        return [self.decode(row) for row in ids]


AutoProcessor.register(BrainConfig, BrainProcessor)
