"""A corpus for the brain, tiny: tones to transcribe, colours to name, a video of two colours, words alone."""

from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from omnilib.data import write_manifest

COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220)}


def row(name: str, task: str, question: str, answer: str, split: str = "train", **media: list) -> dict:
    turns = [{"role": "user", "text": question}, {"role": "assistant", "text": answer}]
    return {"id": name, "split": split, "task": task, "turns": turns, **media}


def build(folder: Path) -> Path:
    """Write the corpus, return the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i, (word, pitch) in enumerate({"low": 200, "high": 1500}.items()):
        for split, seconds in (("train", 0.6), ("dev", 0.8)):
            time = np.arange(round(seconds * 16000)) / 16000
            soundfile.write(folder / f"{word}-{split}.wav", 0.3 * np.sin(2 * np.pi * pitch * time), 16000)
            rows.append(
                row(
                    f"tone-{i}-{split}",
                    "transcribe",
                    "What is said?",
                    word,
                    split,
                    audio=[f"{word}-{split}.wav"],
                )
            )
    for colour, rgb in COLOURS.items():
        Image.new("RGB", (56, 56), rgb).save(folder / f"{colour}.png")
        rows.append(
            row(f"see-{colour}", "see", "Look: <image> which colour?", colour, images=[f"{colour}.png"]),
        )
    frames = [Image.new("RGB", (56, 56), rgb) for rgb in COLOURS.values()]
    frames[0].save(folder / "film.gif", save_all=True, append_images=frames[1:], duration=500)
    rows.append(
        row("film", "video", "<video><speech>", "red blue", video=["film.gif"], audio=["low-train.wav"]),
    )
    rows.append(row("words", "text", "one and one", "two"))
    write_manifest(folder / "manifest.jsonl", rows)
    return folder / "manifest.jsonl"
