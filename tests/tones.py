"""A tiny corpus of tones for the training tests: four "phonemes" (two tones each) spoken by voices of different pitch."""

import json
import wave as wavefile
from pathlib import Path

import numpy as np

RATE = 24_000
PHONEMES = {"a": (500, 1500), "b": (900, 2700), "c": (1300, 3300), "d": (700, 4100)}


def build(
    folder: Path, speakers: dict[str, float], splits: dict[str, int], timed: bool = True, seed: int = 0
) -> Path:
    """Write shards and manifest.jsonl; `speakers` maps name to pitch factor, `splits` the utterances a speaker has in each."""
    rng, records = np.random.default_rng(seed), []
    folder.mkdir(parents=True, exist_ok=True)
    for speaker, factor in speakers.items():
        waves, position = [], 0
        for split, count in splits.items():
            for number in range(count):
                steps = rng.integers(
                    1, len(PHONEMES), size=int(rng.integers(6, 12))
                )  # never the same twice running
                phonemes = ["pau", *np.array(list(PHONEMES))[steps.cumsum() % len(PHONEMES)], "pau"]
                lengths = np.array([RATE * int(rng.integers(3, 6)) // 25 for _ in phonemes])
                pieces = [tone(p, n, factor) for p, n in zip(phonemes, lengths, strict=True)]
                samples = np.concatenate(pieces) + 0.003 * rng.standard_normal(lengths.sum())
                timing = {"phoneme_ends": (np.cumsum(lengths) / RATE).round(4).tolist()} if timed else {}
                records.append(
                    {"id": f"{speaker}-{split}-{number}", "path": f"{speaker}.wav", "start": position / RATE, "duration": len(samples) / RATE,
                     "rate": RATE, "text": " ".join(phonemes[1:-1]), "phonemes": [str(p) for p in phonemes], "language": "en", "speaker": speaker,
                     "source": "tones", "licence": "CC0-1.0", "split": split, "in_lexicon": True} | timing
                )  # fmt: skip
                waves.append(samples)
                position += len(samples)
        with wavefile.open(str(folder / f"{speaker}.wav"), "wb") as file:
            file.setparams((1, 2, RATE, 0, "NONE", ""))
            file.writeframes((np.concatenate(waves) * 20_000).clip(-32768, 32767).astype("<i2").tobytes())
    path = folder / "manifest.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


def tone(phoneme: str, count: int, factor: float) -> np.ndarray:
    """Two sines, or silence for a pause, over a buzz that is the voice."""
    time = np.arange(count) / RATE
    buzz = 0.1 * np.sign(np.sin(2 * np.pi * 120 * factor * time))
    if phoneme not in PHONEMES:
        return 0.0 * time
    return buzz + sum(0.3 * np.sin(2 * np.pi * f * time) for f in PHONEMES[phoneme])
