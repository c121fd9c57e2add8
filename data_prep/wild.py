"""A "wild" set with known truth, to measure curation: what a crawler would bring home, and what is really in it.

    python -m data_prep.wild --hours 3 --out data/wild              # about 3 h of audio, every file below sources/<source>/
    python -m data_prep.wild --minutes 4 --out runs/wild            # the same kinds of trouble, fewer voices

Writes manifest.jsonl (what the crawler knows: path, source, licence, and text, language and speaker where a page claims them),
truth.json (what is in each file) and SUMMARY of kinds. Only the frozen recordings (people and engines) are spoken; noise, music and
silence are generated. The frozen subset holds 20 minutes, so it is used once in each "world": a world plays every recording faster
or slower (pitch moves along), which makes it another voice that says the sentence in another time. Worlds lie 7 % apart or more, where the
fingerprint of `data_prep/steps/duplicates.py` no longer takes them for copies. Nothing of this is ever trained on.

A world has three groups of voices that are never confused because a group holds each engine voice once:

    reader|crowd|club-<w>    one sentence a file with text, language and speaker; FLAC, MP3, Opus. Faults: see FAULTS
    radio-<w>                several voices, pauses, jingles, noise at known levels; no text; M4A, MP3, Opus, FLAC
    mirror-<w>               copies: of sentences (see COPIES) and of whole recordings (re-encoded, shifted, quieter)
    street-<w>               noise, music, silence, and files that cannot be read (see CORRUPT)

truth.json: {"seed", "minutes", "files": [{"id", "path", "duration", "units": [...]}]}. A unit is what is scored: {"id", "kind"
sentence|turn|sound|file, "start", "end" of the speech in seconds, "speech": [[start, end], ...], "voice", "language", "text",
"fault": null or a name, "detail", "snr" in dB or null, "copy_of": id of a unit or null, "copy": kind}. `fault: "borderline"`
(noise at 15 dB) is neither good nor bad. The same seed and length give the same manifest and truth.

Shapes: T samples, float32, mono, 24 kHz.
"""

import hashlib
import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from tqdm import tqdm

from data_prep.pipeline.files import dump
from data_prep.steps.levels import frame_levels
from omnilib import options
from omnilib.data import read_manifest
from omnilib.errors import ConfigError, DataError, UserError
from omnilib.eval.wer import line_rates
from omnilib.paths import ROOT

FROZEN = ROOT / "data_prep" / "frozen"
RATE = 24_000
FACTORS = (1.0, 0.93, 1.08, 0.87, 1.16)  # speeds of the worlds
WORLD_MINUTES = 41.0  # raw audio that the frozen subset makes in one world
GROUPS = {
    "reader": ("_100",),
    "crowd": ("_122", "_132"),
    "club": ("_085", "_087", "_115"),
}  # voices of the plain engines, by their pitch
PEOPLE = ("allison",)
FORMS = {"reader": "flac", "crowd": "mp3", "club": "opus"}
LEAST_MINUTES = 2.0
SPOKEN_ALONE = 0.6  # share of a voice's sentences that become files of their own; the others go on the radio
FAULTS = {  # shares of the sentence files
    "wrong_transcript": 0.10,
    "wrong_speaker": 0.05,
    "wrong_language": 0.04,
    "noisy": 0.08,
    "clipped": 0.05,
    "borderline": 0.03,
    "mild": 0.06,  # good, with noise at 25 or 30 dB
}
COPIES = {
    "exact": 0.06,
    "opus": 0.06,
    "mp3": 0.06,
    "shifted": 0.06,
    "gain": 0.06,
    "all": 0.05,
}  # shares of the good sentence files
CORRUPT = ("empty", "garbage", "page", "cut_flac", "cut_mp3", "damaged", "not_finite", "missing")
CORRUPT_SHARE = 0.05
BAD_SNR, GOOD_SNR, BORDER_SNR = (0.0, 5.0, 10.0), (25.0, 30.0), (15.0,)
CLIPPING = (10.0, 14.0, 18.0)  # dB that the peak would stand above full scale
ROOM = 45.0  # dB of speech above the noise of the room, everywhere
EDGE_DB = 35.0  # speech begins and ends where its level is so far below its loud frames
SOUNDS = ("pink", "white", "traffic", "music", "silence", "hiss")


# ------------------------------------------------------------------------------------------------ sound


def pink(size: int, rng: np.random.Generator) -> np.ndarray:
    """Noise whose power falls with frequency, root mean square 1: (T,)."""
    spectrum = np.fft.rfft(rng.standard_normal(size))
    spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), size * 30 / RATE))
    wave = np.fft.irfft(spectrum, size)
    return (wave / wave.std()).astype(np.float32)


def noise(kind: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """pink, white, or traffic (pink that swells and fades), root mean square 1: (T,)."""
    if kind == "white":
        return rng.standard_normal(size).astype(np.float32)
    wave = pink(size, rng)
    if kind == "traffic":
        wave *= 1 + 0.8 * np.sin(
            2 * np.pi * np.arange(size) / RATE / rng.uniform(2, 5) + rng.uniform(0, 6)
        ).astype(np.float32)
    return wave / wave.std()


def music(size: int, rng: np.random.Generator) -> np.ndarray:
    """Plucked chords over a bass, peak 1: (T,)."""
    wave, beat = np.zeros(size, np.float32), round(RATE * rng.uniform(0.3, 0.6))
    for number, start in enumerate(range(0, size, beat)):
        root = 55.0 * 2 ** (rng.choice([0, 3, 5, 7, 10]) / 12)
        t = np.arange(min(3 * beat, size - start)) / RATE
        for multiple in (1, 4, 5, 6) if number % 2 else (1, 4, 4 * 2 ** (7 / 12), 8):
            for harmonic in (1, 2, 3):
                tone = (
                    np.sin(2 * np.pi * root * multiple * harmonic * t) * np.exp(-3 * harmonic * t) / harmonic
                )
                wave[start : start + len(t)] += tone.astype(np.float32)
    return wave / max(np.abs(wave).max(), 1e-9)


def clipped(wave: np.ndarray, decibel: float) -> np.ndarray:
    """The wave driven `decibel` above full scale and cut off there."""
    return 0.89 * np.clip(wave / np.abs(wave).max() * 10 ** (decibel / 20), -1, 1)


def edges(wave: np.ndarray) -> tuple[int, int]:
    """First and last sample of speech: frames of 10 ms within EDGE_DB of the loud ones."""
    levels = frame_levels(wave, RATE // 100)
    loud = np.flatnonzero(levels > np.percentile(levels, 95) - EDGE_DB)
    return int(loud[0]) * RATE // 100, min(len(wave), (int(loud[-1]) + 1) * RATE // 100)


def power(wave: np.ndarray) -> float:
    return float(np.mean(np.square(wave)))


def write_audio(path: Path, wave: np.ndarray, level: float = 0.5) -> None:
    """flac, wav, mp3, opus or m4a by the name's ending; `level` 0..1 is how hard lossy formats compress."""
    form = path.suffix[1:]
    if form == "m4a":
        return write_m4a(path, wave)
    kinds = {
        "flac": ("FLAC", "PCM_16"),
        "wav": ("WAV", "PCM_16"),
        "mp3": ("MP3", "MPEG_LAYER_III"),
        "opus": ("OGG", "OPUS"),
    }
    container, subtype = kinds[form]
    more = {} if form in ("flac", "wav") else {"compression_level": level}
    with soundfile.SoundFile(str(path), "w", RATE, 1, subtype, format=container, **more) as file:
        for start in range(0, len(wave), RATE):
            file.write(np.clip(wave[start : start + RATE], -1, 1))


def write_m4a(path: Path, wave: np.ndarray, bits: int = 64_000) -> None:
    """AAC in an MP4 container."""
    import av

    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=RATE, layout="mono")
        stream.bit_rate = bits
        for start in range(0, len(wave), 1024):
            frame = av.AudioFrame.from_ndarray(
                np.clip(wave[None, start : start + 1024], -1, 1), format="fltp", layout="mono"
            )
            frame.rate, frame.pts = RATE, start
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


# ------------------------------------------------------------------------------------------------ what is spoken


@dataclass
class Sentence:
    """One frozen recording in one world: only the speech, silence around it cut off."""

    wave: np.ndarray
    text: str
    language: str
    voice: str
    group: str  # of GROUPS
    licence: str


@dataclass
class Item:
    """A file to write, what its manifest says about it, and the truth."""

    source: str
    form: str
    wave: np.ndarray | None
    claims: dict  # text, language, speaker of the manifest
    units: list[dict]
    licence: str = "CC0-1.0"
    level: float = 0.5
    spoil: str = ""  # one of CORRUPT
    original: "Item | None" = None  # copied byte for byte
    id: str = ""


def generator(seed: int, *key: object) -> np.random.Generator:
    """A random generator determined by seed and name alone."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(f"{seed} {key}".encode()).digest()[:8]))


def group_of(voice: str) -> str:
    """Which group of voices: people go with the readers, natural voices by a hash of their name."""
    if voice in PEOPLE:
        return "reader"
    names = list(GROUPS)
    drawn = names[hashlib.sha256(voice.encode()).digest()[0] % len(names)]
    return next((name for name, ends in GROUPS.items() if voice.endswith(ends)), drawn)


def choose(share: float, seed: int) -> list[dict]:
    """Frozen records to speak: everything, or some sentences of as few voices as make `share` of the hours."""
    records = read_manifest(FROZEN / "manifest.jsonl")
    voices = defaultdict(list)
    for record in records:
        voices[record["speaker"]].append(record)
    budget, chosen = share * sum(r["duration"] for r in records), []
    order = sorted(
        voices,
        key=lambda v: (list(GROUPS).index(group_of(v)), hashlib.sha256(f"{seed} {v}".encode()).digest()),
    )
    most = 10_000 if share >= 1 else max(10, round(30 * share))
    for voice in order:
        mine = sorted(voices[voice], key=lambda r: hashlib.sha256(f"{seed} {r['id']}".encode()).digest())
        chosen += mine[:most] if sum(r["duration"] for r in chosen) < budget else []
    return chosen


def speak(record: dict, factor: float) -> Sentence:
    """The record at another speed."""
    wave, rate = soundfile.read(FROZEN / record["path"], dtype="float32")
    wave = soxr.resample(wave, rate * factor, RATE).astype(np.float32)
    start, end = edges(wave)
    voice, group = f"{record['speaker']}x{factor:g}", group_of(record["speaker"])
    return Sentence(wave[start:end], record["text"], record["language"], voice, group, record["licence"])


# ------------------------------------------------------------------------------------------------ faults


def allot(shares: dict[str, float], keys: Sequence[int], rng: np.random.Generator) -> dict[int, str]:
    """Give each fault its share of the keys, at least one each where there are enough."""
    order, given = [int(k) for k in rng.permutation(keys)], {}
    for name, share in shares.items():
        for _ in range(max(1, round(share * len(keys)))):
            if order:
                given[order.pop()] = name
    return given


def wrong_text(
    sentence: Sentence, others: Sequence[Sentence], rng: np.random.Generator
) -> tuple[str, str, float]:
    """(wrong text, how, its error against the truth): more than 30 % of words (zh: syllables) are wrong."""
    same = [s.text for s in others if s.language == sentence.language and s.text != sentence.text] or [
        "Nothing of the kind."
    ]
    space = "" if sentence.language == "zh" else " "
    words = [c for c in sentence.text if c.isalnum()] if sentence.language == "zh" else sentence.text.split()
    for how in [*rng.permutation(["other", "cut", "mixed"]), "other"] * 5:
        stranger = str(rng.choice(same))
        spare = [c for c in stranger if c.isalnum()] if sentence.language == "zh" else stranger.split()
        text = stranger
        if how == "cut":
            text = space.join(words[: max(1, round(len(words) * rng.uniform(0.35, 0.6)))])
        elif how == "mixed":
            changed = rng.permutation(len(words))[: max(1, round(len(words) * rng.uniform(0.4, 0.8)))]
            text = space.join(str(rng.choice(spare)) if i in changed else w for i, w in enumerate(words))
        error = line_rates(sentence.text, text, sentence.language)[
            "pinyin" if sentence.language == "zh" else "wer"
        ].error
        if error > 0.3:
            return text, str(how), round(error, 3)
    raise DataError(f"no wrong text for '{sentence.text}': give the wild set more sentences")


def babble(size: int, others: Sequence[Sentence], rng: np.random.Generator) -> np.ndarray:
    """Six voices at once, root mean square 1: (T,)."""
    wave = np.zeros(size, np.float32)
    for index in rng.integers(len(others), size=6):
        wave += np.roll(
            np.resize(others[index].wave / np.sqrt(power(others[index].wave)), size), int(rng.integers(size))
        )
    return wave / wave.std()


def with_noise(
    wave: np.ndarray, level: float, snr: float, others: Sequence[Sentence], rng: np.random.Generator
) -> tuple[np.ndarray, str]:
    """The wave with noise `snr` dB under speech of power `level`, and the kind of noise."""
    kind = str(rng.choice(["pink", "white", "traffic", "babble"]))
    added = babble(len(wave), others, rng) if kind == "babble" else noise(kind, len(wave), rng)
    return wave + added * np.float32(np.sqrt(level) * 10 ** (-snr / 20)), kind


# ------------------------------------------------------------------------------------------------ files


def unit(kind: str, start: float, end: float, **more: object) -> dict:
    base = {
        "voice": None,
        "language": None,
        "text": None,
        "speech": [],
        "fault": None,
        "detail": None,
        "snr": None,
    }
    return (
        {"kind": kind, "start": round(start, 4), "end": round(end, 4)}
        | base
        | {"copy_of": None, "copy": None}
        | more
    )


def sentence_item(
    source: str,
    form: str,
    sentence: Sentence,
    fault: str,
    everyone: Sequence[Sentence],
    rng: np.random.Generator,
) -> Item:
    """A sentence file: silence, speech, silence, and perhaps a fault."""
    level, lead, tail = power(sentence.wave), *(round(x * RATE) for x in rng.uniform(0.25, 0.9, 2))
    wave = np.pad(sentence.wave, (lead, tail))
    wave = wave + noise("pink", len(wave), rng) * np.float32(np.sqrt(level) * 10 ** (-ROOM / 20))
    claims = {"text": sentence.text, "language": sentence.language, "speaker": sentence.voice}
    detail, snr = None, None
    if fault in ("noisy", "borderline", "mild"):
        snr = float(rng.choice({"noisy": BAD_SNR, "borderline": BORDER_SNR, "mild": GOOD_SNR}[fault]))
        wave, detail = with_noise(wave, level, snr, everyone, rng)
    elif fault == "clipped":
        detail = float(rng.choice(CLIPPING))
        wave = clipped(wave, detail)
    elif fault == "wrong_transcript":
        claims["text"], how, error = wrong_text(sentence, everyone, rng)
        detail = {"how": how, "error": error}
    elif fault == "wrong_language":
        claims["language"] = "en" if sentence.language == "zh" else "zh"
    elif fault == "wrong_speaker":
        others = sorted({s.voice for s in everyone if s.group == sentence.group} - {sentence.voice})
        claims["speaker"] = str(rng.choice(others or ["somebody"]))
    if fault != "clipped":
        wave = wave / np.abs(wave).max() * rng.uniform(0.15, 0.85)
    start, end = round(lead / RATE, 4), round((lead + len(sentence.wave)) / RATE, 4)
    truth = unit(
        "sentence",
        start,
        end,
        voice=sentence.voice,
        language=sentence.language,
        text=sentence.text,
        speech=[[start, end]],
    )
    return Item(
        source,
        form,
        wave.astype(np.float32),
        claims,
        [truth | {"fault": None if fault in ("", "mild") else fault, "detail": detail, "snr": snr}],
        sentence.licence,
    )


def copy_item(item: Item, kind: str, source: str, rng: np.random.Generator) -> Item:
    """A copy of a file: byte for byte, in another format, with other silence before it, at another level, or all of that."""
    wave, form, lead, level = item.wave, item.form, 0, 0.5
    if kind in ("shifted", "all"):
        lead = round(RATE * rng.uniform(0.05, 1.0))
        wave = np.concatenate([pink(lead, rng) * np.float32(1e-4), wave])
    if kind in ("gain", "all"):
        wave = wave * np.float32(min(10 ** (rng.choice([-9, -6, 6]) / 20), 0.97 / np.abs(wave).max()))
    if kind in ("opus", "mp3"):
        form, level = kind, float(rng.choice([0.5, 0.8, 0.9]))
    elif kind != "exact":
        form = str(rng.choice(["opus", "mp3"] if kind == "all" else ["flac", "wav"]))
    shift = lead / RATE
    units = [moved(u, shift) | {"copy": kind} for u in item.units]
    return Item(
        source,
        form,
        wave,
        dict(item.claims),
        units,
        item.licence,
        level,
        original=item if kind == "exact" else None,
    )


def moved(truth: dict, shift: float) -> dict:
    """A unit, `shift` seconds later; its original is looked up when it has an id."""
    speech = [[round(a + shift, 4), round(b + shift, 4)] for a, b in truth["speech"]]
    return truth | {
        "start": round(truth["start"] + shift, 4),
        "end": round(truth["end"] + shift, 4),
        "speech": speech,
        "copy_of": truth,
    }


def turns_of(sentences: Sequence[Sentence], rng: np.random.Generator) -> list[list[Sentence]]:
    """Turns of 3.5-15 s, several sentences of one voice each; neighbours never have the same voice."""
    stacks = defaultdict(list)
    for index in rng.permutation(len(sentences)):
        stacks[sentences[index].voice].append(sentences[index])
    turns, last = [], None
    while voices := sorted(
        v for v in stacks if v != last and sum(len(s.wave) for s in stacks[v]) > 4.0 * RATE
    ):
        weight = np.array([len(stacks[v]) for v in voices], float)
        last = str(rng.choice(voices, p=weight / weight.sum()))
        turn, wanted = [], rng.uniform(4.0, 12.0)
        while stacks[last] and sum(len(s.wave) for s in turn) < wanted * RATE:
            turn.append(stacks[last].pop())
        turns.append(turn)
    return [t for t in turns if sum(len(s.wave) for s in t) > 3.5 * RATE]


def radio_item(
    source: str,
    form: str,
    turns: list[list[Sentence]],
    everyone: Sequence[Sentence],
    rng: np.random.Generator,
) -> Item:
    """A long recording: jingle, turns with pauses, a jingle in the middle, some turns in noise, no claims at all."""
    pieces, units, place = [], [], 0
    quality = (
        allot({"noisy": 0.2, "mild": 0.1, "borderline": 0.05}, range(len(turns)), rng)
        if len(turns) > 3
        else {}
    )

    def add(wave: np.ndarray) -> tuple[float, float]:
        nonlocal place
        pieces.append(wave.astype(np.float32))
        place += len(wave)
        return (place - len(wave)) / RATE, place / RATE

    for number, turn in enumerate(turns):
        if number in (0, len(turns) // 2):
            tune = 0.12 * music(round(RATE * rng.uniform(4, 8)), rng)
            units.append(unit("sound", *add(tune), fault="music", detail="jingle"))
            add(np.zeros(round(RATE * rng.uniform(0.8, 1.5))))
        fault, speech, first = quality.get(number, ""), [], len(pieces)
        level = float(np.mean([power(s.wave) for s in turn]))
        for index, sentence in enumerate(turn):
            if index:
                add(np.zeros(round(RATE * rng.uniform(0.15, 0.7))))
            speech.append(
                [round(x, 4) for x in add(sentence.wave * np.float32(np.sqrt(level / power(sentence.wave))))]
            )
        snr, kind = None, None
        if fault:
            snr = float(rng.choice({"noisy": BAD_SNR, "borderline": BORDER_SNR, "mild": GOOD_SNR}[fault]))
            wave, kind = with_noise(np.concatenate(pieces[first:]), level, snr, everyone, rng)
            pieces[first:] = [wave.astype(np.float32)]
        gain = 0.07 / np.sqrt(level)  # one loudness for all speakers
        pieces[first:] = [p * np.float32(gain) for p in pieces[first:]]
        voice, text = turn[0], " ".join(s.text for s in turn)
        truth = unit(
            "turn",
            speech[0][0],
            speech[-1][1],
            voice=voice.voice,
            language=voice.language,
            text=text,
            speech=speech,
        )
        units.append(truth | {"fault": None if fault in ("", "mild") else fault, "detail": kind, "snr": snr})
        add(np.zeros(round(RATE * rng.uniform(0.6, 2.5))))
    wave = np.concatenate(pieces)
    wave += noise("pink", len(wave), rng) * np.float32(0.07 * 10 ** (-ROOM / 20))
    return Item(
        source,
        form,
        wave / max(1.0, np.abs(wave).max()),
        {},
        units,
        "CC-BY-SA-3.0 and others, see data_prep/frozen",
    )


def sound_item(source: str, kind: str, seconds: float, rng: np.random.Generator) -> Item:
    """A recording without a voice."""
    size = round(seconds * RATE)
    if kind == "music":
        wave = 0.5 * music(size, rng)
    elif kind == "silence":
        wave = np.zeros(size, np.float32)
    else:
        wave = noise("pink" if kind == "hiss" else kind, size, rng) * np.float32(
            2e-4 if kind == "hiss" else 0.05
        )
    fault = kind if kind in ("music", "silence") else "noise"
    return Item(
        source,
        str(rng.choice(["mp3", "flac", "opus"])),
        wave,
        {},
        [unit("sound", 0, seconds, fault=fault, detail=kind)],
    )


def corrupt_item(source: str, spoil: str, item: Item) -> Item:
    """A good file's data, to be destroyed after it is written."""
    form = {"cut_mp3": "mp3", "page": "mp3", "not_finite": "wav"}.get(spoil, "flac")
    claims = item.claims | ({"duration": round(len(item.wave) / RATE, 2)} if spoil == "cut_mp3" else {})
    seconds = len(item.wave) / RATE
    return Item(
        source,
        form,
        item.wave,
        claims,
        [unit("file", 0, seconds, fault="corrupt", detail=spoil)],
        item.licence,
        spoil=spoil,
    )


def destroy(path: Path, spoil: str, wave: np.ndarray, rng: np.random.Generator) -> None:
    """Make a written file unusable."""
    data = path.read_bytes()
    half = len(data) // 2
    changed: dict[str, Callable[[], bytes]] = {
        "empty": lambda: b"",
        "garbage": lambda: rng.bytes(len(data)),
        "page": lambda: b"<!DOCTYPE html><html><title>404 Not Found</title></html>\n",
        "cut_flac": lambda: data[:half],
        "cut_mp3": lambda: data[:half],
        "damaged": lambda: data[: half // 2] + rng.bytes(half) + data[half // 2 + half :],
    }
    if spoil == "missing":
        path.unlink()
    elif spoil == "not_finite":
        broken = wave.copy()
        broken[len(wave) // 3 : len(wave) // 3 + 100] = np.nan
        soundfile.write(path, broken, RATE, subtype="FLOAT")
    else:
        path.write_bytes(changed[spoil]())


# ------------------------------------------------------------------------------------------------ worlds


def world(number: int, share: float, seed: int) -> Iterator[Item]:
    """Every file of one world."""
    rng = generator(seed, "world", number)
    sentences = [speak(record, FACTORS[number]) for record in choose(share, seed)]
    alone, aloud = divide(sentences, rng)
    source = {name: f"{name}-{number}" for name in (*GROUPS, "radio", "mirror", "street")}
    faults = allot(FAULTS, range(len(alone)), rng)
    good = []
    for index, sentence in enumerate(alone):
        item = sentence_item(
            source[sentence.group], FORMS[sentence.group], sentence, faults.get(index, ""), sentences, rng
        )
        good += [] if faults.get(index) else [item]
        yield item
    for index, kind in allot(COPIES, range(len(good)), rng).items():
        yield copy_item(good[index], kind, source["mirror"], rng)
    for index in range(max(len(CORRUPT), round(CORRUPT_SHARE * len(alone)))):
        yield corrupt_item(source["street"], CORRUPT[index % len(CORRUPT)], good[index % len(good)])
    for group in GROUPS:
        turns = turns_of([s for s in aloud if s.group == group], rng)
        if turns:
            item = radio_item(
                source["radio"], str(rng.choice(["m4a", "mp3", "opus", "flac"])), turns, sentences, rng
            )
            yield item
            if group != "club":
                yield mirrored(item, source["mirror"], rng)
    for index in range(max(1, round(3 * share)) * len(SOUNDS)):
        yield sound_item(
            source["street"], SOUNDS[index % len(SOUNDS)], float(rng.uniform(3, 6) * (1 + 3 * share)), rng
        )


def divide(sentences: list[Sentence], rng: np.random.Generator) -> tuple[list[Sentence], list[Sentence]]:
    """Sentences that become files, and those for the radio; people's voices only become files."""
    voices = defaultdict(list)
    for sentence in sentences:
        voices[sentence.voice].append(sentence)
    alone, aloud = [], []
    for voice, mine in voices.items():
        count = len(mine) if voice.startswith("allison") else round(SPOKEN_ALONE * len(mine))
        order = [mine[i] for i in rng.permutation(len(mine))]
        alone, aloud = alone + order[:count], aloud + order[count:]
    return alone, aloud


def mirrored(item: Item, source: str, rng: np.random.Generator) -> Item:
    """A whole recording again: another jingle before it, 4 dB quieter, another format."""
    tune = 0.1 * music(round(RATE * rng.uniform(3, 6)), rng)
    wave = np.concatenate([tune, np.zeros(RATE // 2, np.float32), item.wave * np.float32(10 ** (-4 / 20))])
    shift = (len(tune) + RATE // 2) / RATE
    copies = [moved(u, shift) | {"copy": "recording"} for u in item.units]
    jingle = unit("sound", 0, len(tune) / RATE, fault="music", detail="jingle")
    return Item(source, "mp3" if item.form != "mp3" else "opus", wave, {}, [jingle, *copies], item.licence)


# ------------------------------------------------------------------------------------------------ writing


def save(item: Item, number: int, seed: int, out: Path) -> tuple[dict, dict]:
    """Write a file; returns its manifest record and its truth. The id names the source only."""
    item.id = f"{item.source}-{hashlib.sha256(f'{seed} {number}'.encode()).hexdigest()[:8]}"
    path = out / "sources" / item.source / f"{item.id}.{item.form}"
    path.parent.mkdir(parents=True, exist_ok=True)
    if item.original is not None:
        shutil.copyfile(out / "sources" / item.original.source / f"{item.original.id}.{item.form}", path)
    else:
        write_audio(path, item.wave, item.level)
    if item.spoil:
        destroy(path, item.spoil, item.wave, generator(seed, item.id))
    for index, truth in enumerate(item.units):
        truth["id"] = f"{item.id}#{index}"
        truth["copy_of"] = truth["copy_of"]["id"] if truth["copy_of"] else None
    place = {"id": item.id, "path": path.relative_to(out).as_posix()}
    known = {"source": item.source, "licence": item.licence} | item.claims
    return place | known, place | {
        "source": item.source,
        "duration": round(len(item.wave) / RATE, 4),
        "units": item.units,
    }


def build(out: Path, minutes: float, seed: int = 0) -> dict:
    """Write a wild set of about `minutes`; returns its truth.

    Raises:
        ConfigError: too short to hold every fault, or longer than the frozen subset can be varied.
        DataError: the folder holds something else.
    """
    most = WORLD_MINUTES * len(FACTORS)
    if not LEAST_MINUTES <= minutes <= most:
        raise ConfigError(
            f"{minutes:g} minutes: choose {LEAST_MINUTES:g} (to hold every fault) to {most:.0f} (more would repeat itself)"
        )
    if out.exists() and any(out.iterdir()):
        raise DataError(f"{out} is not empty: choose another --out, or delete it")
    out.mkdir(parents=True, exist_ok=True)
    worlds = min(len(FACTORS), max(1, round(minutes / WORLD_MINUTES + 0.35)))
    records, files, number = [], [], 0
    with tqdm(total=round(60 * minutes), desc="wild", unit="s") as bar:
        for index in range(worlds):
            for item in world(index, min(1.0, minutes / worlds / WORLD_MINUTES), seed):
                record, truth = save(item, number, seed, out)
                records, files, number = [*records, record], [*files, truth], number + 1
                bar.update(round(truth["duration"]))
    order = sorted(range(number), key=lambda i: records[i]["id"])
    (out / "manifest.jsonl").write_bytes(b"".join(dump(records[i]) for i in order))
    truth = {
        "seed": seed,
        "minutes": round(sum(f["duration"] for f in files) / 60, 3),
        "files": [files[i] for i in order],
    }
    (out / "truth.json").write_text(json.dumps(truth, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
    return truth


def describe(truth: dict) -> str:
    """Files, minutes and units by fault."""
    units = [u for f in truth["files"] for u in f["units"]]
    counts = Counter(f"copy: {u['copy']}" if u["copy"] else u["fault"] or "good" for u in units)
    names = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
    sources = len({f["source"] for f in truth["files"]})
    return (
        f"{truth['minutes'] / 60:.2f} h in {len(truth['files'])} files of {sources} sources; units: {names}"
    )


def main(argv: list[str] | None = None) -> None:
    parser = options.Parser(description=__doc__)
    parser.add_argument("--hours", type=float, default=3.0)
    parser.add_argument("--minutes", type=float, help="instead of --hours")
    parser.add_argument("--seed", type=options.seed, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    try:
        print(
            describe(
                build(args.out, args.minutes if args.minutes is not None else 60 * args.hours, args.seed)
            )
        )
    except UserError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
