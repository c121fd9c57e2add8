"""Pictures, videos and recordings of every make, and one line for each that cannot be used."""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from omnilib.brain import media
from omnilib.brain.media import frames_to_size, load_audio, load_picture, load_video
from omnilib.errors import AudioError, MediaError

# ---- sound -------------------------------------------------------------------------------------------------


def test_all_channels_are_mixed(tmp_path):
    left = np.zeros(1600, np.float32)
    right = np.full(1600, 0.5, np.float32)
    stereo = np.stack([left, right], 1)
    soundfile.write(tmp_path / "s.wav", stereo, 16000)
    for source in (tmp_path / "s.wav", stereo, torch.from_numpy(stereo), (stereo, 16000)):
        assert load_audio(source).mean() == pytest.approx(0.25, abs=1e-4)


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 24000, 44100, 48000, 44101, 47999])
def test_any_rate_becomes_16k(tmp_path, rate):
    t = np.arange(rate) / rate
    tone = (0.5 * np.sin(2 * np.pi * 440 * t)).astype(np.float32)
    soundfile.write(tmp_path / "t.wav", tone, rate)
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    for wave in (load_audio((tone, rate)), load_audio(tmp_path / "t.wav")):
        assert abs(len(wave) - 16000) <= 1
        assert np.abs(wave.numpy()[500:15000] - expected[500:15000]).max() < 0.02


def test_integers_are_read_at_full_scale():
    assert load_audio(np.array([16384, -32768], np.int16)).tolist() == [0.5, -1.0]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros(0, np.float32), "audio of 0 samples"),
        (np.zeros((0, 2), np.float32), "audio of 0 samples"),
        (np.array([0.0, np.nan], np.float32), "NaN or infinite"),
        (np.array([0.0, np.inf], np.float32), "NaN or infinite"),
        (np.zeros((2, 16000), np.float32), "give \\(samples,\\) or \\(samples, channels\\)"),
        (np.zeros((1, 1, 5), np.float32), "audio of shape"),
        ((np.zeros(5, np.float32), 0), "0 is no sampling rate"),
        ((np.zeros(5, np.float32), -16000), "is no sampling rate"),
        ((np.zeros(5, np.float32), 16000.5), "is no sampling rate"),
        ((np.zeros(5, np.float32), float("nan")), "is no sampling rate"),
        ((np.zeros(5, np.float32), "16k"), "'16k' is no sampling rate"),
        ((np.zeros(5, np.float32), 10**9), "is no sampling rate"),
        ("nowhere.wav", "no audio file nowhere.wav"),
    ],
)
def test_unusable_audio_is_one_line(source, message):
    with pytest.raises(AudioError, match=message) as error:
        load_audio(source)
    assert "\n" not in str(error.value)


def test_unusable_audio_files_are_one_line(tmp_path):
    (tmp_path / "text.wav").write_text("hello")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16000)
    soundfile.write(tmp_path / "nan.wav", np.array([0, np.nan, 0]), 16000, subtype="FLOAT")
    (tmp_path / "cut.wav").write_bytes((tmp_path / "nan.wav").read_bytes()[:20])
    for name, message in (
        ("text", "not readable"),
        ("empty", "holds no sound"),
        ("nan", "NaN"),
        ("cut", "not readable"),
    ):
        with pytest.raises(AudioError, match=message) as error:
            load_audio(tmp_path / f"{name}.wav")
        assert "\n" not in str(error.value)


# ---- pictures ----------------------------------------------------------------------------------------------


def rgb(image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "HSV", "LAB"])
def test_every_colour_mode_becomes_rgb(tmp_path, mode):
    source = Image.fromarray(np.full((40, 50, 3), (250, 10, 10), np.uint8))
    if mode == "LAB":
        source = Image.new("LAB", (50, 40))
    else:
        source = source.convert(mode)
    assert rgb(load_picture(source)).shape == (40, 50, 3)
    if mode in ("P", "CMYK", "YCbCr", "HSV"):
        assert rgb(load_picture(source))[20, 20, 0] > 200 > 60 > rgb(load_picture(source))[20, 20, 1]


def test_grey_of_sixteen_bits_keeps_its_shades():
    grey = Image.fromarray(np.linspace(0, 65535, 40 * 40).reshape(40, 40).astype(np.uint16))
    values = rgb(load_picture(grey))[..., 0]
    assert values.min() == 0 and values.max() == 255 and len(np.unique(values)) > 200


def test_what_is_transparent_becomes_white(tmp_path):
    clear = Image.new("RGBA", (40, 40), (255, 0, 0, 0))
    assert (rgb(load_picture(clear)) == 255).all()
    palette = clear.convert("P")
    palette.info["transparency"] = 0
    palette.save(tmp_path / "p.png", transparency=palette.getpixel((0, 0)))
    assert (rgb(load_picture(tmp_path / "p.png")) == 255).all()


def test_a_picture_stored_sideways_stands_upright(tmp_path):
    wide = Image.fromarray(np.zeros((30, 60, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    wide.save(tmp_path / "side.jpg", exif=exif)
    assert load_picture(tmp_path / "side.jpg").size == (30, 60)


def test_of_an_animated_picture_the_first_frame_counts(tmp_path):
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue", "green")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=100)
    assert rgb(load_picture(tmp_path / "a.gif"))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("size", [(1, 1), (1, 100), (20, 3), (27, 28)])
def test_a_tiny_picture_grows_to_one_position_with_its_shape(size):
    grown = load_picture(Image.new("RGB", size, "red"))
    assert min(grown.size) >= 28
    assert grown.size[0] / grown.size[1] == pytest.approx(size[0] / size[1], rel=0.2)


def png_of(width: int, height: int) -> bytes:
    """A header that promises a size, and nothing behind it."""
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(20_000, 20_000), (14_000, 14_000), (60_000, 10_000)])
def test_a_huge_picture_is_refused_before_it_is_decoded(tmp_path, size):
    (tmp_path / "huge.png").write_bytes(png_of(*size))
    with pytest.raises(MediaError, match="make it smaller") as error:
        load_picture(tmp_path / "huge.png")
    assert "\n" not in str(error.value)


def test_unusable_pictures_are_one_line(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8)
    for kind in ("png", "jpeg", "webp", "gif"):
        Image.fromarray(noise).save(tmp_path / f"whole.{kind}")
        data = (tmp_path / f"whole.{kind}").read_bytes()
        (tmp_path / f"cut.{kind}").write_bytes(data[: len(data) // 2])
        with pytest.raises(MediaError, match="not readable as a picture") as error:
            load_picture(tmp_path / f"cut.{kind}")
        assert "\n" not in str(error.value)
    (tmp_path / "text.png").write_text("hello")
    bad = [
        (tmp_path / "text.png", "not readable"),
        (tmp_path / "none.png", "no picture file"),
        (np.zeros((1, 300, 3), np.uint8), "300 x 1 pixels, one side more than 200 times"),
        (np.zeros((0, 0, 3), np.uint8), "."),
        (np.zeros((4, 4, 7), np.uint8), "not readable"),
    ]
    for source, message in bad:
        with pytest.raises(MediaError, match=message) as error:
            load_picture(source)
        assert "\n" not in str(error.value)


# ---- videos ------------------------------------------------------------------------------------------------


def write_video(
    path,
    count: int,
    fps: int = 10,
    seconds_apart: float | None = None,
    size: int = 64,
    **options,
):
    """Frame i is a grey of 10 i; `seconds_apart` spreads few frames over hours."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        if seconds_apart:
            stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        for i in range(count):
            grey = np.full((size, size, 3), min(10 * i, 255), np.uint8)
            frame = av.VideoFrame.from_ndarray(grey, format="rgb24")
            frame.pts = int(i * seconds_apart * 1000) if seconds_apart else i
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def greys(frames) -> list[int]:
    return [round(float(np.asarray(f).mean()) / 10) for f in frames]


def test_a_video_file_gives_two_frames_a_second_from_first_to_last(tmp_path):
    frames = load_video(write_video(tmp_path / "v.mp4", 21))  # 2.1 s
    assert greys(frames) == [0, 7, 13, 20]


def test_a_long_video_gives_at_most_as_many_frames_as_asked(tmp_path):
    path = write_video(tmp_path / "v.mp4", 25, fps=1)
    assert len(load_video(path)) == 16 and greys(load_video(path))[-1] == 24
    assert greys(load_video(path, max_frames=4)) == [0, 8, 16, 24]
    assert len(load_video(path, max_frames=1)) == 1
    assert len(load_video(path, fps=0.2)) == 4


@pytest.mark.parametrize("kind", ["mkv", "mp4"])
def test_three_hours_are_searched_not_decoded(tmp_path, kind, monkeypatch):
    path = write_video(tmp_path / f"long.{kind}", 25, seconds_apart=450.0)  # 3 h
    frames = load_video(path, max_frames=8)
    assert 2 <= len(frames) <= 8 and greys(frames)[0] == 0 and greys(frames)[-1] >= 22
    assert greys(frames) == sorted(greys(frames))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_very_short_videos_are_read(tmp_path, count):
    frames = load_video(write_video(tmp_path / "v.mp4", count))
    assert 1 <= len(frames) <= count and greys(frames)[0] == 0


def test_a_video_without_a_written_length_is_counted(tmp_path, monkeypatch):
    path = write_video(tmp_path / "v.mp4", 21)
    monkeypatch.setattr(media, "sought", lambda *a: [])
    assert greys(load_video(path)) == [0, 7, 13, 20]


def test_an_odd_number_of_frames_is_completed_by_the_last():
    frames = [np.full((56, 56, 3), 10 * i, np.uint8) for i in range(5)]
    assert greys(frames_to_size(load_video(frames))) == [0, 1, 2, 3, 4, 4]
    assert greys(frames_to_size(load_video(frames[:1]))) == [0, 0]
    assert greys(load_video(np.stack(frames), max_frames=3)) == [0, 4]


def test_a_gif_may_be_a_video(tmp_path):
    colours = [Image.new("RGB", (40, 40), (i, i, i)) for i in (0, 100, 200, 250)]
    colours[0].save(tmp_path / "a.gif", save_all=True, append_images=colours[1:], duration=500)
    assert len(load_video(tmp_path / "a.gif")) >= 2


def test_unusable_videos_are_one_line(tmp_path):
    (tmp_path / "text.mp4").write_text("hello")
    soundfile.write(tmp_path / "sound.wav", np.zeros(1600), 16000)
    whole = write_video(tmp_path / "whole.mp4", 30).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    with av.open(str(tmp_path / "none.mkv"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        container.start_encoding()
    bad = [
        (tmp_path / "text.mp4", "not readable as a video"),
        (tmp_path / "sound.wav", "holds no pictures"),
        (tmp_path / "cut.mp4", "not readable as a video"),
        (tmp_path / "none.mkv", "holds no frames"),
        (tmp_path / "nowhere.mp4", "no video file"),
        ([], "a video without frames"),
        (np.zeros((0, 4, 4, 3), np.uint8), "a video without frames"),
        ([np.zeros((40, 40, 3), np.uint8), np.zeros((50, 40, 3), np.uint8)], "frames of different sizes"),
    ]
    for source, message in bad:
        with pytest.raises(MediaError, match=message) as error:
            load_video(source)
        assert "\n" not in str(error.value)


def test_frames_are_bounded_each_and_together():
    frames = [Image.new("RGB", (4000, 3000))] * 2
    sizes = {f.size for f in frames_to_size(frames)}
    (width, height) = next(iter(sizes))
    assert len(sizes) == 1 and width % 28 == height % 28 == 0 and width * height <= media.FRAME_PIXELS[1]
    assert frames_to_size([Image.new("RGB", (28, 28))])[0].size == (56, 56)  # four positions at least
