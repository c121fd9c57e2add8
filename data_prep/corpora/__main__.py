"""`python -m data_prep.corpora [name]`: the table of corpora, or the manifest of one of them."""

from itertools import islice
from pathlib import Path

from data_prep.corpora import CORPORA, MAX_BAD, load, save
from omnilib import options
from omnilib.errors import DataError, UserError


def overview() -> str:
    """The table of corpora."""
    rows = ["| name | hours en / zh | licence | hub |", "|---|---|---|---|"]
    for name in CORPORA:
        corpus = load(name)
        hours = " / ".join(f"{corpus.HOURS[k]:,.0f}" if k in corpus.HOURS else "-" for k in ("en", "zh"))
        rows.append(f"| {name} | {hours} | {corpus.LICENCE} | {corpus.HUB or corpus.WHY} |")
    return "\n".join(rows)


def main(argv: list[str] | None = None) -> None:
    parser = options.Parser(prog="python -m data_prep.corpora", description=__doc__)
    parser.add_argument("name", nargs="?", help=f"one of {', '.join(CORPORA)}; without it, a table of them")
    parser.add_argument("--root", type=Path, help="folder of the downloaded corpus")
    parser.add_argument("--out", type=Path, help="folder of the manifest (default: the root)")
    parser.add_argument(
        "--language", help="only this language, e.g. en or zh; for a plain folder: the language it is in"
    )
    parser.add_argument("--limit", type=options.count, help="stop after so many records")
    parser.add_argument(
        "--allow-missing", action="store_true", help="listed files that are absent are no bad rows"
    )
    parser.add_argument(
        "--max-bad",
        type=float,
        default=MAX_BAD,
        help="share of bad rows above which nothing is written (default: %(default)s)",
    )
    parser.add_argument(
        "--stream", action="store_true", help="take it from the hub (needs the network and accepted terms)"
    )
    args = parser.parse_args(argv)
    try:
        if not 0 <= args.max_bad <= 1:
            raise DataError(f"--max-bad is {args.max_bad}: give a share from 0 to 1")
        if args.name is None:
            print(overview())
            return
        corpus = load(args.name)
        if args.language and len(corpus.HOURS) == 1 and args.language not in corpus.HOURS:
            raise DataError(f"{args.name} holds {next(iter(corpus.HOURS))} only, not '{args.language}'")
        if args.stream:
            if corpus.HUB is None:
                raise DataError(f"{args.name} cannot be streamed: {corpus.WHY}")
            if args.out is None:
                raise DataError("streaming needs --out, the folder to keep the clips in")
            out, records = args.out, corpus.stream(args.out, args.language, args.limit)
        else:
            if args.root is None:
                raise DataError(f"{args.name} needs --root: {corpus.LAYOUT}")
            out = args.out or args.root
            records = islice(corpus.prepare(args.root, out, args.language, args.allow_missing), args.limit)
        counts = save(records, out, args.name, args.max_bad, args.allow_missing)
        why = ", ".join(f"{reason} {count}" for reason, count in counts["reasons"].most_common())
        renamed = (
            f"; {counts['renamed']} renamed, since another file has the same id" if counts["renamed"] else ""
        )
        dropped = f"{counts['dropped']} dropped" + (f" ({why}), see {out / 'dropped.jsonl'}" if why else "")
        print(
            f"{out / 'manifest.jsonl'}: {counts['kept']} records, {counts['hours']:.2f} h; {dropped}{renamed}"
        )
    except UserError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
