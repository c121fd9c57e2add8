"""The nano corpus: some 95 h of English and Mandarin, spoken by engines that ship in packages, from text that ships in packages.

    python -m data_prep.nano --out data/nano                 # everything, about three hours on 2 cores
    python -m data_prep.nano --out data/nano --hours 1       # a pilot with the same test sets
    python -m data_prep.nano --out data/nano --dry-run       # what it costs

The plan is in `open_plan.py`, the building in `open_corpus.py`. Here are the voices of the plain engines: the raw part of the
corpus, and all of it where Kokoro's packages are missing (one line says what is lost then).
"""

import argparse
import hashlib
from dataclasses import dataclass
from pathlib import Path

from data_prep.engines import ENGINES
from omnilib import options
from omnilib.errors import UserError
from omnilib.paths import DATA


@dataclass(frozen=True)
class Speaker:
    """An engine voice resampled by a factor; `lines` training sentences (0: heard in the test split only)."""

    engine: str
    voice: str
    factor: float
    lines: int

    @property
    def name(self) -> str:
        return (
            f"{self.voice}_{round(self.factor * 100):03d}"
            if self.engine != "gcin"
            else f"gcin{self.voice}_{round(self.factor * 100):03d}"
        )

    @property
    def language(self) -> str:
        return ENGINES[self.engine].language


SPEAKERS = [
    Speaker("flite", "rms", 1.00, 4000),
    Speaker("flite", "rms", 0.85, 3500),
    Speaker("flite", "rms", 1.22, 3500),
    Speaker("flite", "slt", 1.00, 4000),
    Speaker("flite", "slt", 0.85, 3500),
    Speaker("flite", "slt", 1.22, 0),
    Speaker("flite", "awb", 1.00, 3000),
    Speaker("flite", "awb", 1.22, 3000),
    Speaker("flite", "awb", 0.85, 0),
    Speaker("flite", "kal16", 1.00, 4500),
    Speaker("flite", "kal16", 1.22, 4500),
    Speaker("flite", "kal16", 0.85, 0),
    Speaker("piper", "joe", 1.00, 1200),
    Speaker("piper", "joe", 0.85, 700),
    Speaker("piper", "joe", 1.22, 700),
    Speaker("gcin", "3", 0.87, 5500),
    Speaker("gcin", "3", 1.00, 5500),
    Speaker("gcin", "3", 1.15, 5500),
    Speaker("gcin", "3", 1.32, 0),
]


def key_of(text: str) -> int:
    """A stable random number of a sentence."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=DATA / "nano")
    parser.add_argument(
        "--hours",
        type=options.positive,
        help="about so many hours of training speech (default: all, about 95)",
    )
    parser.add_argument("--workers", type=options.count)
    parser.add_argument(
        "--collect", action="store_true", help="write the manifests of what is finished so far and stop"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what it costs and stop")
    args = parser.parse_args(argv)
    try:
        from data_prep import open_corpus  # which imports the voices from here

        digest = open_corpus.build(args.out, args.hours, args.workers, args.collect, args.dry_run)
        print(f"manifest sha256 {digest}" if digest else "nothing was spoken")
    except UserError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
