"""Who speaks: vectors of voices, turns within a recording, labels that the voice contradicts.

    turns       one recording, several voices: numbers the voice of every speech region, so that segments do not mix them
    voiceprint  adds `voice`, the vector of a record (int8, base64)
    speakers    drops records whose voice is nearer to another label's than to their own (reason wrong_speaker)

`model` is "resemblyzer" (trained on real voices) or the folder of a `SpeakerEncoder` checkpoint.

Shapes: T samples at 16 kHz, N waves, E vector size.
"""

import base64
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from scipy.cluster.hierarchy import fcluster, linkage

from data_prep.pipeline import Audio, Step, dropped, register
from omnilib.audio import fbank_80
from omnilib.errors import AudioError
from omnilib.eval.judges import SpeakerJudge
from omnilib.voice.speaker import SpeakerEncoder

RATE = 16_000


def pack(vector: np.ndarray) -> str:
    """A unit vector (E,) as text: int8 moves a cosine by less than 0.01."""
    scaled = vector / np.abs(vector).max() * 127
    return base64.b64encode(scaled.round().astype(np.int8).tobytes()).decode()


def unpack(text: str) -> np.ndarray:
    """The unit vector (E,) again."""
    vector = np.frombuffer(base64.b64decode(text), dtype=np.int8).astype(np.float32)
    return vector / np.linalg.norm(vector)


class Voices:
    """Waves -> unit vectors."""

    def __init__(self, model: str, seconds: float):
        self.size = round(seconds * RATE)
        self.judge = SpeakerJudge() if model == "resemblyzer" else None
        self.encoder = None if self.judge else SpeakerEncoder.load(model)

    def middle(self, wave: np.ndarray) -> np.ndarray:
        start = max(0, (len(wave) - self.size) // 2)
        return np.array(wave[start : start + self.size])

    @torch.inference_mode()
    def vectors(self, waves: Iterable[np.ndarray]) -> list[np.ndarray | None]:
        """Unit vector (E,) of the middle of each wave, None where no voice is found."""
        if self.judge:
            return self.judge.embed_all([self.middle(wave) for wave in waves], RATE)
        return [self.encoded(self.middle(wave)) for wave in waves]

    def encoded(self, wave: np.ndarray) -> np.ndarray | None:
        try:
            vector = self.encoder(fbank_80(torch.from_numpy(wave))[None])[0].numpy()
        except AudioError:
            return None
        return vector / np.linalg.norm(vector)


@register
@dataclass
class Turns(Step):
    """Number the voices of a recording that has no speaker label."""

    name: ClassVar[str] = "turns"
    model: str = "resemblyzer"
    seconds: float = 1.8  # of a region that are listened to: one partial utterance of Resemblyzer
    least: float = 0.8  # seconds; shorter regions go with the nearest longer one
    threshold: float = 0.7  # cosine between averages above which two voices are one

    def open(self) -> None:
        self.voices = Voices(self.model, self.seconds)

    def run(self, records: list[dict], audio: Audio) -> list[dict]:
        return [
            r if r.get("speaker") or r.get("text") else r | {"turns": self.number(r, audio)} for r in records
        ]

    def number(self, record: dict, audio: Audio) -> list[int]:
        """The voice of each region, numbered in order of appearance."""
        wave = audio.wave(record, RATE)
        found = [
            (i, *region) for i, region in enumerate(record["speech"]) if region[1] - region[0] >= self.least
        ]
        pieces = [wave[round(start * RATE) : round(end * RATE)] for _, start, end in found]
        vectors = dict(zip((i for i, *_ in found), self.voices.vectors(pieces), strict=True))
        heard = [i for i, vector in vectors.items() if vector is not None]
        groups = cluster(np.stack([vectors[i] for i in heard]), self.threshold) if heard else []
        label = dict(zip(heard, groups, strict=True))
        return [
            label[min(heard, key=lambda j: self.distance(record["speech"], i, j))] if heard else 0
            for i in range(len(record["speech"]))
        ]

    def distance(self, speech: list[list[float]], one: int, other: int) -> float:
        """Silence between two regions."""
        return max(0.0, speech[max(one, other)][0] - speech[min(one, other)][1]) if one != other else -1.0


def cluster(vectors: np.ndarray, threshold: float) -> list[int]:
    """Average-link clusters of unit vectors (N, E), numbered in order of appearance."""
    if len(vectors) == 1:
        return [0]
    raw = fcluster(linkage(vectors, "average", metric="cosine"), 1 - threshold, criterion="distance")
    order = {label: number for number, label in enumerate(dict.fromkeys(raw.tolist()))}
    return [order[label] for label in raw.tolist()]


@register
@dataclass
class Voiceprint(Step):
    """The vector of each record's voice."""

    name: ClassVar[str] = "voiceprint"
    model: str = "resemblyzer"
    seconds: float = 3.4  # three partial utterances

    def open(self) -> None:
        self.voices = Voices(self.model, self.seconds)

    def run(self, records: list[dict], audio: Audio) -> list[dict]:
        vectors = self.voices.vectors(audio.wave(record, RATE) for record in records)
        return [
            dropped(record, self.name, "no_voice") if vector is None else record | {"voice": pack(vector)}
            for record, vector in zip(records, vectors, strict=True)
        ]


@register
@dataclass
class Speakers(Step):
    """Speaker labels against voices, within each source.

    A label with enough records has a voice of its own, the centre of them. With fewer, one wrong record among two would count as much
    as the right one: its records are only dropped where they are `certain` to be another label's voice. The more labels a source has,
    the likelier two people of it sound that much alike: at thousands of speakers leave it off.
    """

    name: ClassVar[str] = "speakers"
    scope: ClassVar[str] = "all"
    margin: float = 0.02  # how much nearer another label's voice must be
    floor: float = 0.6  # least cosine to the own label's voice
    least_records: int = 4  # labels with fewer records have no voice of their own
    certain: float = (
        1.0  # cosine to another label's voice from which a record of such a label is that voice; 1: off
    )

    def run(self, records: list[dict], audio: Audio) -> list[dict]:
        sources = defaultdict(list)
        for record in records:
            if record.get("speaker"):
                sources[record["source"]].append(record)
        wrong = {r["id"] for members in sources.values() for r in self.contradicted(members)}
        return [dropped(r, self.name, "wrong_speaker") if r["id"] in wrong else r for r in records]

    def contradicted(self, records: list[dict]) -> list[dict]:
        """Records of one source whose label their voice contradicts."""
        vectors = np.stack([unpack(r["voice"]) for r in records])
        labels = np.array([r["speaker"] for r in records])
        names = [
            name for name in dict.fromkeys(labels.tolist()) if (labels == name).sum() >= self.least_records
        ]
        if not names:
            return []
        centres = np.stack([centre(vectors[labels == name]) for name in names])  # (labels, E)
        near = vectors @ centres.T  # (N, labels)
        found = []
        for i, (record, label) in enumerate(zip(records, labels, strict=True)):
            other = max((c for name, c in zip(names, near[i], strict=True) if name != label), default=-1.0)
            if label in names:
                own = near[i, names.index(label)]
                wrong = own < self.floor or other > own + self.margin
            else:
                mates = vectors[(labels == label) & (np.arange(len(labels)) != i)]
                own = (mates @ vectors[i]).max(initial=-1.0)
                wrong = other > max(self.certain, own + self.margin)
            if wrong:
                found.append(record)
        return found


def centre(vectors: np.ndarray) -> np.ndarray:
    """Direction of most of the vectors (N, E): wrong ones may be up to a half of them."""
    medoid = vectors[np.median(vectors @ vectors.T, axis=1).argmax()]
    near = vectors[vectors @ medoid >= np.median(vectors @ medoid)]
    mean = near.mean(axis=0)
    return mean / np.linalg.norm(mean)
