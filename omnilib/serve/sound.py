"""Voices by name, and 16-bit samples as files."""

import io

import soundfile

from omnilib.output import wav_header
from omnilib.serve.http import Refusal
from omnilib.speak import TextToSpeech

FORMATS = {  # name -> (media type, what libsndfile calls it; None: written here, piece by piece)
    "wav": ("audio/wav", None),
    "pcm": ("audio/pcm", None),
    "flac": ("audio/flac", ("FLAC", "PCM_16")),
    "opus": ("audio/ogg", ("OGG", "OPUS")),
    "mp3": ("audio/mpeg", ("MP3", "MPEG_LAYER_III")),
}


def known_voice(name: str | None, speech: TextToSpeech) -> str | None:
    """A name of the server's own voices, or None for the default.

    Raises:
        Refusal: no such voice.
    """
    if name in (None, "", "default"):
        return None
    if name not in speech.voices:
        known = ", ".join([*speech.voices, "default"])
        raise Refusal(400, f"no voice '{name[:60]}': choose one of {known}")
    return name


def encoded(wave: bytes, kind: str, rate: int) -> bytes:
    """16-bit samples as a whole file."""
    if FORMATS[kind][1] is None:
        return (wav_header(rate, len(wave) // 2) if kind == "wav" else b"") + wave
    (form, subtype), file = FORMATS[kind][1], io.BytesIO()
    raw = {"samplerate": rate, "channels": 1, "format": "RAW", "subtype": "PCM_16", "endian": "LITTLE"}
    soundfile.write(file, soundfile.read(io.BytesIO(wave), **raw)[0], rate, format=form, subtype=subtype)
    return file.getvalue()
