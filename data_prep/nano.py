"""The nano corpus: some 95 h of English and Mandarin, spoken by engines that ship in packages, from text that ships in packages.

    python -m data_prep.nano --out data/nano                 # everything, about three hours on 2 cores
    python -m data_prep.nano --out data/nano --hours 1       # a pilot with the same test sets
    python -m data_prep.nano --out data/ears --hours raw=12,en=0.8,zh=0.8 --train-only --shards 327   # for the brain
    python -m data_prep.nano --out data/ears_zh --hours raw=0,en=0,zh=4 --train-only --plain   # and recorded syllables
    python -m data_prep.nano --out data/nano --dry-run       # what it costs
    python -m data_prep.nano --out data/nano --describe      # what it is made of: hours by engine and voice, words

The plan is in `open_plan.py`, the building in `open_corpus.py`. `speakers.py` names the voices of the plain engines: the raw
part of the corpus, and all of it where Kokoro's packages are missing (one line says what is lost then).
"""

import hashlib
from argparse import ArgumentTypeError
from pathlib import Path

from omnilib import options
from omnilib.errors import UserError
from omnilib.paths import DATA


def key_of(text: str) -> int:
    """A stable random number of a sentence."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def hours_of(text: str) -> float | dict[str, float]:
    """One number of hours, or those of each part: "raw=4,en=1,zh=1"."""
    if "=" not in text:
        return options.positive(text)
    names = ("raw", "en", "zh")
    given = dict(entry.partition("=")[::2] for entry in text.split(","))
    if set(given) != set(names):
        raise ArgumentTypeError(f"'{text}' must name each of {', '.join(names)}: raw=4,en=1,zh=1")
    hours = {name: options.positive(given[name]) if float(given[name]) else 0.0 for name in names}
    if not any(hours.values()):
        raise ArgumentTypeError(f"'{text}' is nothing to speak: give one of them more than 0")
    return hours


def main(argv: list[str] | None = None) -> None:
    parser = options.Parser(description=__doc__)
    parser.add_argument("--out", type=Path, default=DATA / "nano")
    parser.add_argument(
        "--hours",
        type=hours_of,
        help="about so many hours of training speech (default: all, about 95), or of each part: raw=4,en=1,zh=1",
    )
    parser.add_argument("--train-only", action="store_true", help="no test and development sentences")
    parser.add_argument(
        "--plain",
        action="store_true",
        help="as if Kokoro's packages were missing: flite, piper and gcin speak",
    )
    parser.add_argument(
        "--shards",
        type=options.count,
        help="only the first so many parts of the plan, a mixture of all of it",
    )
    parser.add_argument("--workers", type=options.count)
    parser.add_argument(
        "--collect", action="store_true", help="write the manifests of what is finished so far and stop"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what it costs and stop")
    parser.add_argument(
        "--describe", action="store_true", help="print and write what it is made of, and stop"
    )
    args = parser.parse_args(argv)
    try:
        if args.describe:
            from data_prep import describe

            return describe.main(args.out)
        from data_prep import open_corpus  # which imports the voices from here

        digest = open_corpus.build(
            args.out,
            args.hours,
            args.workers,
            args.collect,
            args.dry_run,
            args.train_only,
            args.shards,
            args.plain,
        )
        print(f"manifest sha256 {digest}" if digest else "nothing was spoken")
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    except OSError as error:  # a manifest or the plan cannot be written
        raise SystemExit(
            f"error: cannot write in {args.out} ({error.strerror or error}): free some space and run again; "
            "finished shards are kept"
        ) from None


if __name__ == "__main__":
    main()
