"""The same audio twice: byte for byte, re-encoded, shifted, louder, or cut out of the other; and the same words by one voice.

`fingerprint` follows Haitsma and Kalker (2002): windows of 0.25 s, 16 ms apart, 25 energies between 200 and 2,800 Hz, and a bit for
the sign of each difference of neighbouring bands against half a window earlier. Level cancels out, codecs flip few bits, and
overlapping windows make a shift of half a hop harmless. Adds `audio_sha256` (of the samples) and `fingerprint` (base64).
`duplicates` looks up windows that agree in one of four sets of 18 bits, votes for pairs and offsets, and calls two records one
where, at the best offset, the share of differing bits is at most `most_errors` over most of the shorter one. The longest stays, of
equals the first by id. Beyond five hours the sets get larger, up to 24 bits, and only windows whose bits pass a hash take part, so
memory stays near a gigabyte while copies at the lowest bitrates get fewer votes. Reasons: duplicate_audio, duplicate_text, with
`duplicate_of`.

Shapes: T samples at 8 kHz, N windows, B = 25 bands.
"""

import base64
import hashlib
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np
import scipy.fft
import soxr

from data_prep.pipeline import Audio, Step, dropped, register

RATE, SIZE, HOP = 8_000, 2048, 128
LAG = 8  # windows between the two that a bit compares
BANDS, LOW, HIGH = 25, 200.0, 2800.0
QUIET_DB = 30.0  # windows so far below the loudest hold noise, their bits mean nothing
NEAR = 4  # neighbouring offsets that vote together
BLOCK = 4096  # windows analysed at once
MOST_COMPARED = 1 << 20  # pairs of windows in memory
WINDOWS = 1 << 20  # that take part in the look-up, about five hours of audio


@cache
def band_edges() -> np.ndarray:
    """First spectrum bin of each band and the end of the last: (B + 1,)."""
    return np.round(np.geomspace(LOW, HIGH, BANDS + 1) * SIZE / RATE).astype(int)


def band_energies(wave: np.ndarray) -> np.ndarray:
    """(T,) -> (N, B)."""
    wave = np.pad(wave, (0, max(0, SIZE + LAG * HOP - len(wave))))
    frames = np.lib.stride_tricks.sliding_window_view(wave, SIZE)[::HOP]  # (N, SIZE)
    window, edges = np.hanning(SIZE).astype(np.float32), band_edges()
    parts = []
    for i in range(0, len(frames), BLOCK):
        spectrum = scipy.fft.rfft(frames[i : i + BLOCK] * window)[:, : edges[-1]]
        parts.append(np.add.reduceat(spectrum.real**2 + spectrum.imag**2, edges[:-1], axis=1))
    return np.concatenate(parts)


def words_of(energies: np.ndarray) -> np.ndarray:
    """24 bits a window, 0 where it is quiet: (N, B) -> (N - LAG,) uint32."""
    slope = np.diff(np.log(energies + 1e-12), axis=1)  # (N, B - 1)
    difference = slope[LAG:] - slope[:-LAG]
    words = ((difference > 0) << np.arange(BANDS - 1)).sum(axis=1).astype(np.uint32)
    level = 10 * np.log10(energies.sum(axis=1) + 1e-12)
    return np.where(level[LAG:] > level.max() - QUIET_DB, words, 0)


@register
@dataclass
class Fingerprint(Step):
    """What a record sounds like, in 250 bytes a second."""

    name: ClassVar[str] = "fingerprint"

    def run(self, records: list[dict], audio: Audio) -> list[dict]:
        return [self.mark(record, audio) for record in records]

    def mark(self, record: dict, audio: Audio) -> dict:
        wave = audio.wave(record)
        samples = (wave * 32767).round().astype("<i2")
        words = words_of(band_energies(soxr.resample(wave, record["rate"], RATE)))
        return record | {
            "audio_sha256": hashlib.sha256(samples.tobytes()).hexdigest(),
            "fingerprint": base64.b64encode(words.astype("<u4").tobytes()).decode(),
        }


def read_words(record: dict) -> np.ndarray:
    """The fingerprint of a record: (N,)."""
    return np.frombuffer(base64.b64decode(record["fingerprint"]), dtype="<u4")


def best_match(one: np.ndarray, other: np.ndarray, offsets: np.ndarray, least_overlap: float) -> float:
    """Least share of bits that differ where other[i + offset] lies under one[i], of the (K,) offsets where at least `least_overlap`
    of the sounding windows of the one with fewer of them meet a sounding window; 1 if there is no such offset."""
    shares = [1.0]
    for some in np.array_split(offsets, 1 + len(offsets) * len(one) // MOST_COMPARED):
        place = some[:, None] + np.arange(len(one))  # (K, N)
        under = np.where((place >= 0) & (place < len(other)), other.take(place, mode="clip"), 0)
        sounding = (under != 0) & (one != 0)
        count = sounding.sum(axis=1)
        enough = count >= max(1, least_overlap * min(np.count_nonzero(one), np.count_nonzero(other)))
        differing = (np.bitwise_count(under ^ one) * sounding).sum(axis=1)
        shares += (differing[enough] / count[enough] / (BANDS - 1)).tolist()
    return min(shares)


def masks(windows: int) -> list[np.uint32]:
    """Bits of each key, six of 24 left out in turn, fewer where there are more windows to tell apart."""
    out = next((out for out in (6, 4, 2) if windows <= WINDOWS << (6 - out)), 0)
    lefts = [{4 * i + turn for i in range(out)} for turn in range(4 if out else 1)]
    return [np.uint32(sum(1 << b for b in range(BANDS - 1) if b not in left)) for left in lefts]


@register
@dataclass
class Duplicates(Step):
    """Keep one of each."""

    name: ClassVar[str] = "duplicates"
    scope: ClassVar[str] = "all"
    most_errors: float = 0.25  # of the bits; 285 copies of the wild set stay below 0.20, nearly all that only share a word are above it
    least_overlap: float = 0.6  # of the shorter record's sounding windows
    votes: int = 2  # equal keys about one offset that a pair needs before it is compared
    most_shared: int = 40  # a window that more records share is too common to vote
    text: bool = True  # one text by one speaker is kept once

    def run(self, records: list[dict], audio: Audio) -> list[dict]:
        ordered = sorted(records, key=lambda r: (-round(r["duration"]), r["id"]))
        first = self.same_sound(ordered)
        if self.text:
            first |= self.same_text([r for r in ordered if r["id"] not in first])
        return [
            dropped(r | {"duplicate_of": first[r["id"]][1]}, self.name, first[r["id"]][0])
            if r["id"] in first
            else r
            for r in records
        ]

    def same_text(self, records: list[dict]) -> dict[str, tuple[str, str]]:
        """id -> (reason, id kept) of texts one speaker says again."""
        seen: dict[tuple, str] = {}
        found = {}
        for record in records:
            letters = "".join(c for c in (record.get("text") or "").casefold() if c.isalnum())
            if not letters or not record.get("speaker"):
                continue
            key = (record["source"], record["speaker"], letters)
            if key in seen:
                found[record["id"]] = ("duplicate_text", seen[key])
            seen.setdefault(key, record["id"])
        return found

    def same_sound(self, records: list[dict]) -> dict[str, tuple[str, str]]:
        """id -> (reason, id kept) of recordings that hold the same sound."""
        seen: dict[str, str] = {}
        found = {}
        for record in records:
            if (kept := seen.setdefault(record["audio_sha256"], record["id"])) != record["id"]:
                found[record["id"]] = ("duplicate_audio", kept)
        rest = [r for r in records if r["id"] not in found]
        words = [read_words(r) for r in rest]
        for (one, other), offsets in sorted(self.candidates(words).items()):
            if rest[other]["id"] in found:
                continue
            near = np.unique(np.add.outer(np.array(offsets) * NEAR, np.arange(-1, NEAR + 1)))
            if best_match(words[other], words[one], -near, self.least_overlap) <= self.most_errors:
                kept = rest[one]["id"]
                found[rest[other]["id"]] = ("duplicate_audio", found[kept][1] if kept in found else kept)
        return found

    def candidates(self, words: list[np.ndarray]) -> dict[tuple[int, int], list[int]]:
        """Pairs (one < other) of records that share windows, and the offsets (in NEAR windows) they have votes for."""
        value = np.concatenate(words)
        owner = np.repeat(np.arange(len(words), dtype=np.int32), [len(w) for w in words])
        place = np.concatenate([np.arange(len(w), dtype=np.int32) for w in words])
        value, owner, place = value[value != 0], owner[value != 0], place[value != 0]
        reach = max(map(len, words), default=0) // NEAR + 1  # offsets lie between -reach and reach
        shape = (len(words), len(words), 2 * reach + 1)  # a pair and its offset, shifted, as one number
        found = [self.pairs(value & mask, owner, place, shape) for mask in masks(len(value))]
        pairs, votes = np.unique(np.concatenate(found), return_counts=True)
        offsets: dict[tuple[int, int], list[int]] = defaultdict(list)
        for one, other, offset in np.stack(
            np.unravel_index(pairs[votes >= self.votes], shape), axis=1
        ).tolist():
            offsets[one, other].append(offset - reach)
        return offsets

    def pairs(
        self, key: np.ndarray, owner: np.ndarray, place: np.ndarray, shape: tuple[int, ...]
    ) -> np.ndarray:
        """(one, other, offset // NEAR) of each two windows of different records with the same key, as numbers: (P,) int64."""
        chosen = (key * np.uint32(2654435761) >> np.uint32(8)) % np.uint32(
            -(-len(key) // WINDOWS) or 1
        ) == 0  # by value: copies agree
        key, owner, place = key[chosen], owner[chosen], place[chosen]
        order = np.lexsort((owner, key))
        key, owner, place = key[order], owner[order], place[order]
        starts = np.flatnonzero(np.r_[True, key[1:] != key[:-1]])
        common = np.repeat(
            np.diff(np.r_[starts, len(key)]) > self.most_shared, np.diff(np.r_[starts, len(key)])
        )
        key, owner, place = key[~common], owner[~common], place[~common]
        found = []
        for step in range(1, self.most_shared):
            same = (key[step:] == key[:-step]) & (owner[step:] != owner[:-step])
            offset = (place[step:] - place[:-step])[same] // NEAR + shape[2] // 2
            found.append(np.ravel_multi_index((owner[:-step][same], owner[step:][same], offset), shape))
        return np.concatenate(found)
