"""Is the cloned voice the right one? Similarity to its reference, beside that to strangers.

A bare threshold proves little: two different voices of one engine easily pass it. So each made wave is compared with its
reference and with a gallery of 40 other voices that speak the same language: `similarity` to the reference, `impostor` to the
most similar stranger, and the share of waves whose reference is the nearest of all.

Shape legend: G voices of the gallery, E embedding width.
"""

from collections.abc import Sequence

import numpy as np
import torch
from tqdm import tqdm

from omnilib.audio import TOKENIZER_RATE
from omnilib.errors import AudioError
from omnilib.eval import similarity
from omnilib.eval.frozen import Frozen
from omnilib.eval.judges import SpeakerJudge
from omnilib.eval.wer import bootstrap

SIZE = 40  # voices of the gallery, of each language
# role of the lines -> beginning of the figures' names
GROUPS = {"eval": "clone", "human_voice": "clone_human"}


class Gallery:
    """Strangers to compare a made voice with: the frozen set's gallery, or the references of a language without one.

    Args:
        judge: makes vectors (E,).
        size: voices of a language at most.

    Attributes:
        vectors: language -> speaker -> (E,).
    """

    def __init__(self, frozen: Frozen, judge: SpeakerJudge, size: int = SIZE):
        self.judge, self.vectors = judge, {"en": {}, "zh": {}}
        for language, found in self.vectors.items():
            own = [line for line in frozen.references.values() if line.language == language]
            lines = frozen.of("gallery", language=language) or own
            for line in tqdm(lines[:size], desc=f"gallery {language}", unit="file", disable=None):
                try:
                    found[line.speaker] = judge.embed(line.wave(TOKENIZER_RATE), TOKENIZER_RATE)
                except AudioError:  # too little speech for the judge
                    continue

    def compare(
        self, wave: torch.Tensor, rate: int, speaker: str, reference: np.ndarray, language: str
    ) -> dict[str, float]:
        """Similarity of a wave (T,) to the reference vector (E,) of its speaker and to the nearest stranger of the
        language.

        A wave without speech is nobody: 0 for both.
        """
        try:
            made = self.judge.embed(wave, rate)
        except AudioError:
            return {"similarity": 0.0, "impostor": 0.0}
        others = [similarity.cosine(made, v) for name, v in self.vectors[language].items() if name != speaker]
        return {
            "similarity": similarity.cosine(made, reference),
            "impostor": max(others, default=0.0),
        }


def figures(records: Sequence[dict], threshold: float | None = None) -> dict[str, dict]:
    """`clone_similarity`, `clone_impostor` and `clone_nearest` of speech in held-out voices, `clone_human_*` of a person's.

    Args:
        records: rows of utterances.jsonl; those of the system "tts" with `impostor` count.
    """
    found = {}
    for role, name in GROUPS.items():
        rows = [
            r
            for r in records
            if r["role"] == role and r["system"] == "tts" and not r["seen"] and r.get("impostor") is not None
        ]
        if not rows:
            continue
        found[f"{name}_similarity"] = similarity.summary([r["similarity"] for r in rows], threshold)
        found[f"{name}_impostor"] = similarity.summary([r["impostor"] for r in rows], threshold)
        value, interval = bootstrap([float(r["similarity"] > r["impostor"]) for r in rows])
        found[f"{name}_nearest"] = {"value": value, "n": len(rows), "ci95": interval}
    return found
