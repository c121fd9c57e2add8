"""Learn the nano text tokenizer from the corpus text (the paper uses Qwen3's, 151k pieces).

python -m omnilib.train.text --config nano/text --out checkpoints/nano/text
"""

import json
from dataclasses import dataclass
from pathlib import Path

from omnilib import config as configs
from omnilib.data import read_manifest, sha256
from omnilib.errors import in_one_line
from omnilib.paths import DATA
from omnilib.text import encode, save_tokenizer, train_tokenizer
from omnilib.train.common import (
    atomic_folder,
    run_script,
)
from omnilib.train.spelling import pronunciations


@dataclass
class Config:
    """Sizes of the vocabulary (byte-pair encoding, arXiv 1508.07909)."""

    manifest: str = "nano/manifest.jsonl"  # below the data folder, or a path
    size: int = 4096  # text ids in all, control tokens included
    alphabet: int = 2500  # single characters; rarer ones are spelt in bytes
    longest: int = 0  # letters of a piece at most, its space included; 0: whole words are allowed
    pronunciations: bool = (
        False  # learn from the lines of the pronunciation task too, so that it has its signs
    )


def train(config: Config, out: Path) -> dict[str, float]:
    """Learn the pieces and write them to `out`; returns how many there are, and how many a second of speech has."""
    manifest = DATA / config.manifest
    records = [r for r in read_manifest(manifest) if r["split"] == "train"]
    texts = [r["text"] for r in records]
    lines = pronunciations(texts) if config.pronunciations else []
    tokenizer = train_tokenizer([*texts, *lines], config.size, config.alphabet, config.longest or None)
    pieces = sum(len(encode(tokenizer, r["text"])) for r in records)
    seconds = sum(r["duration"] for r in records)
    metrics = {"pieces_per_second_of_speech": round(pieces / seconds, 3), "size": len(tokenizer)}

    def write(folder) -> None:
        save_tokenizer(tokenizer, folder)
        configs.save(config, folder / "config.yaml")
        meta = {"metrics": metrics, "manifest_sha256": sha256(manifest)}
        (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")

    atomic_folder(out, write)
    print(metrics)
    return metrics


def main(argv: list[str] | None = None) -> dict[str, float]:
    return run_script(__doc__, Config, train, argv)


if __name__ == "__main__":
    with in_one_line():
        main()
