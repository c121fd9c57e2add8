"""Pictures, videos and recordings from files or arrays, checked: what cannot be used is told in one line.

    picture: path, PIL image, (H, W, 3) uint8     -> RGB image
    video:   path, list of pictures, (T, H, W, 3) -> RGB frames of one size, at most `max_frames`
    audio:   path, (T,) at 16 kHz, (samples, rate) -> (T,) at 16 kHz, all channels mixed

Of an animated picture the first frame counts. A length is asked of the file's header first, so that a
recording that no model could take is refused before it is read.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from omnilib.audio import TOKENIZER_RATE, load_wave, resample
from omnilib.errors import AudioError, MediaError, MissingTool

RATES = (1_000, 768_000)  # Hz
LONGEST_FILTERS = 4_000_000  # numbers in the filter bank of an exact resampling; odd rates go through soxr
MAX_RATIO = 200  # of the sides of a picture, as Qwen2.5-VL's processor
SIDE = 28  # pixels: two patches, one position
FRAME_PIXELS = (4 * SIDE * SIDE, 768 * SIDE * SIDE)  # of a video frame: least and most, as published
VIDEO_PIXELS = 2048 * 32 * SIDE * SIDE  # of a whole video, as published

Wave = str | Path | np.ndarray | Tensor | tuple


# ---- sound -------------------------------------------------------------------------------------------------


def check_rate(rate: object) -> int:
    """A sampling rate as an integer.

    Raises:
        AudioError: it is none.
    """
    number = isinstance(rate, int | float | np.integer | np.floating)
    if not number or not RATES[0] <= rate <= RATES[1] or rate != int(rate):
        raise AudioError(
            f"{rate!r} is no sampling rate: give a whole number of Hz between {RATES[0]} and {RATES[1]}",
        )
    return int(rate)


def to_16k(wave: Tensor, rate: int) -> Tensor:
    """(T,) at `rate` -> (T',) at 16 kHz; rates without a small common ratio are resampled by soxr."""
    up, down = (r // math.gcd(rate, TOKENIZER_RATE) for r in (TOKENIZER_RATE, rate))
    if up * (down + 14) > LONGEST_FILTERS:
        import soxr

        return torch.from_numpy(soxr.resample(wave.numpy(), rate, TOKENIZER_RATE))
    return resample(wave, rate, TOKENIZER_RATE)


def audio_samples(source: Wave) -> int:
    """Samples at 16 kHz of a recording, from the header if it is a file.

    Raises:
        AudioError: missing, unreadable or empty.
    """
    if not isinstance(source, str | Path):
        return len(load_audio(source))
    if not Path(source).is_file():
        raise AudioError(f"no audio file {source}: check the path")
    try:
        header = soundfile.info(str(source))
    except (soundfile.SoundFileError, RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0].rsplit(": ", 1)[-1]
        raise AudioError(
            f"{source} is not readable as audio ({reason}): give a wav, flac, ogg or mp3 file",
        ) from None
    if header.frames == 0:
        raise AudioError(f"{source} holds no sound: record it again")
    return math.ceil(header.frames * TOKENIZER_RATE / check_rate(header.samplerate))


def load_audio(source: Wave) -> Tensor:
    """A recording as mono float32 at 16 kHz: (T,).

    Args:
        source: a path; samples (T,) or (T, channels) at 16 kHz, floats in [-1, 1] or integers of full scale;
            or (samples, rate).

    Raises:
        AudioError: missing, unreadable, empty, NaN or infinite, or no sampling rate.
    """
    if isinstance(source, str | Path):
        if Path(source).is_file() and audio_samples(source):
            rate = check_rate(soundfile.info(str(source)).samplerate)
            return to_16k(load_wave(source, rate), rate)
        return load_wave(source, TOKENIZER_RATE)  # tells what is wrong
    samples, rate = source if isinstance(source, tuple) else (source, TOKENIZER_RATE)
    rate = check_rate(rate)
    array = samples.detach().cpu().numpy() if isinstance(samples, Tensor) else np.asarray(samples)
    if array.ndim not in (1, 2) or (array.ndim == 2 and array.shape[1] > 64):
        raise AudioError(f"audio of shape {array.shape}: give (samples,) or (samples, channels)")
    if array.size == 0:
        raise AudioError("audio of 0 samples: give a recording with sound")
    if array.dtype.kind in "iu":
        array = array / float(np.iinfo(array.dtype).max + 1)
    if array.dtype.kind != "f" or not np.isfinite(array).all():
        raise AudioError("audio holds NaN or infinite samples: record or export it again")
    mono = array.mean(1) if array.ndim == 2 else array  # all channels
    return to_16k(torch.from_numpy(np.ascontiguousarray(mono, dtype=np.float32)), rate)


# ---- pictures ----------------------------------------------------------------------------------------------


def pillow():
    """Pillow's modules.

    Raises:
        MissingTool: not installed.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise MissingTool(
            "Pillow is not installed: `pip install pillow`, or `pip install .[brain]`",
        ) from None
    return Image, ImageOps


def load_picture(source):
    """A picture in RGB, upright, on white where it is transparent, at least 28 pixels a side.

    Args:
        source: a path, a PIL image, or (H, W, 3) uint8.

    Raises:
        MediaError: missing, unreadable, truncated, too large, or too thin.
    """
    image_module, operations = pillow()
    name = str(source) if isinstance(source, str | Path) else "the picture"
    try:
        if isinstance(source, str | Path):
            if not Path(source).is_file():
                raise MediaError(f"no picture file {source}: check the path")
            image = image_module.open(source)
        else:
            ready = isinstance(source, image_module.Image)
            image = source if ready else image_module.fromarray(np.asarray(source))
        check_size(name, *image.size)
        image.load()  # first frame
        image = operations.exif_transpose(image)
        if image.mode.startswith("I;16") or image.mode in (
            "I",
            "F",
        ):  # more than 8 bits: PIL would cut them off
            image = image_module.fromarray(eight_bits(np.asarray(image, dtype=np.float64)))
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            white = image_module.new("RGBA", image.size, "white")
            image = image_module.alpha_composite(white, image)
        image = image.convert("RGB")
    except MediaError:
        raise
    except image_module.DecompressionBombError:
        raise MediaError(
            f"{name} is too large to be read safely: make it smaller, at most {most_pixels()} million pixels",
        ) from None
    except (OSError, SyntaxError, ValueError, TypeError, EOFError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise MediaError(
            f"{name} is not readable as a picture ({reason}): give a png, jpeg, webp or gif file",
        ) from None
    if min(image.size) < SIDE:  # a speck becomes one position
        sides = [max(SIDE, round(side * SIDE / min(image.size))) for side in image.size]
        image = image.resize(sides, image_module.Resampling.BICUBIC)
    return image


def most_pixels() -> int:
    """Million pixels that Pillow reads without fear of a decompression bomb."""
    return int((pillow()[0].MAX_IMAGE_PIXELS or 2**31) // 1_000_000)


def check_size(name: str, width: int, height: int) -> None:
    """Raise unless a picture may be decoded and has sides that fit a grid of patches.

    Raises:
        MediaError: too many pixels, none, or too thin.
    """
    if width * height > most_pixels() * 1_000_000:
        raise MediaError(
            f"{name} has {width} x {height} pixels, at most {most_pixels()} million fit: make it smaller",
        )
    if min(width, height) == 0:
        raise MediaError(f"{name} has {width} x {height} pixels: give a picture")
    if max(width, height) / min(width, height) > MAX_RATIO:
        raise MediaError(
            f"{name} has {width} x {height} pixels, one side more than {MAX_RATIO} times the other: cut it",
        )


def eight_bits(values: np.ndarray) -> np.ndarray:
    """Grey values of any range on 0 .. 255; 16-bit full scale where they look like 16 bits."""
    top = 65535.0 if values.max(initial=0) > 255 else 255.0
    return (values.clip(0, top) * (255.0 / top)).round().astype(np.uint8)


# ---- videos ------------------------------------------------------------------------------------------------


@dataclass
class Video:
    """Marks a medium among pictures as a video: a path, a list of pictures, or (T, H, W, 3) uint8."""

    source: object


def evenly(total: float, count: int) -> list[float]:
    """`count` places spread over 0 .. total, ends included."""
    return [total * i / max(count - 1, 1) for i in range(count)]


def frame_count(seconds: float, fps: float, most: int) -> int:
    """Frames to take of a video of that length: even, at least 2, at most `most`, which wins."""
    wanted = max(2, math.floor(seconds * fps / 2) * 2)
    return min(wanted, max(most // 2 * 2, 1))


def load_video(source, fps: float = 2.0, max_frames: int = 16) -> list:
    """Frames of a video as RGB pictures of one size; a file gives `fps` a second, but at most `max_frames`
    spread evenly.

    Raises:
        MediaError: missing, unreadable, no frames, or frames of different sizes.
        MissingTool: PyAV is not installed (only files need it).
    """
    if isinstance(source, str | Path):
        return read_video(Path(source), fps, max_frames)
    given = list(source)
    if not given:
        raise MediaError("a video without frames: give at least one picture")
    if len(given) > max_frames:
        given = [given[round(i)] for i in evenly(len(given) - 1, max(max_frames // 2 * 2, 1))]
    frames = [load_picture(frame) for frame in given]
    if len({frame.size for frame in frames}) > 1:
        raise MediaError(
            f"frames of different sizes ({frames[0].size} and others): give a video's frames at one size",
        )
    return frames


def read_video(path: Path, fps: float, max_frames: int) -> list:
    """Frames of a video file: it is searched, not decoded whole, so hours cost little more than seconds."""
    try:
        import av
    except ImportError:
        raise MissingTool("PyAV is not installed: `pip install av`, or `pip install .[brain]`") from None
    if not path.is_file():
        raise MediaError(f"no video file {path}: check the path")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise MediaError(f"{path} holds no pictures: give a video file")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            first = (stream.start_time or 0) * stream.time_base
            written = (container.duration or 0) / av.time_base
            length = stream.duration * stream.time_base if stream.duration else written
            frames = sought(container, stream, float(first), float(length), fps, max_frames) if length else []
            if not frames:  # a length that is not written down, or wrong: count, then pick
                container.seek(0)
                total = sum(1 for _ in container.decode(stream))
                count = min(frame_count(total / float(stream.average_rate or 25), fps, max_frames), total)
                wanted = {round(i) for i in evenly(total - 1, count)}
                container.seek(0)
                frames = [f.to_image() for i, f in enumerate(container.decode(stream)) if i in wanted]
    except av.error.EOFError:
        raise MediaError(f"{path} holds no frames: record it again") from None
    except av.FFmpegError as error:
        raise MediaError(
            f"{path} is not readable as a video ({error.strerror}): give an mp4, mkv, webm or gif file",
        ) from None
    if not frames:
        raise MediaError(f"{path} holds no frames: record it again")
    return [load_picture(frame) for frame in frames]


def sought(container, stream, first: float, length: float, fps: float, max_frames: int) -> list:
    """Frames at even distances: for each, decoding starts at the last key frame before it."""
    frames, seen, held, decoder = [], None, None, None
    step = 1 / float(stream.average_rate or 25)
    for place in evenly(max(length - step, 0.0), frame_count(length, fps, max_frames)):
        target = first + place
        if decoder is None or target - held.time > 2.0:  # close ones follow without seeking
            container.seek(max(0, int(target / stream.time_base)), stream=stream, backward=True)
            decoder = container.decode(stream)
            held = next(decoder, None)
        if held is not None and held.time is None:
            return []  # no times are written down: they are counted
        while held is not None and held.time + step / 2 < target:
            following = next(decoder, None)
            if following is None or following.time is None:
                break
            held = following
        if held is None:
            break
        if held is not seen:  # fewer frames in the file than asked for
            frames.append(held.to_image())
            seen = held
    return frames


def frames_to_size(frames: Sequence, factor: int = SIDE) -> list:
    """Resize the frames of a video once, to multiples of `factor` within the pixels a frame may have; an odd
    count is completed by the last frame."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    image_module, _ = pillow()
    frames = [*frames, frames[-1]] if len(frames) % 2 else list(frames)
    least, most = FRAME_PIXELS
    most = max(min(most, VIDEO_PIXELS // len(frames) * 2), int(least * 1.05))
    width, height = frames[0].size
    height, width = smart_resize(max(height, factor), max(width, factor), factor, least, most)
    return [frame.resize((width, height), image_module.Resampling.BICUBIC) for frame in frames]
