"""Curate a manifest of raw recordings by a recipe.

    python -m data_prep.curate --recipe wild --manifest in/manifest.jsonl --out out                # all cores
    python -m data_prep.curate --recipe wild --manifest in/manifest.jsonl --out out --engine ray --address auto

Run it again to continue after a stop: what is finished is not done again. Ends in out/manifest.jsonl, dropped.jsonl, funnel.json
and card.md. A mistake in recipe or input is one line on stderr and exit code 2.
"""

import sys
from functools import partial
from pathlib import Path

from data_prep.corpora import MAX_BAD
from data_prep.pipeline import curate
from data_prep.pipeline.parts import Engine
from omnilib import options
from omnilib.errors import UserError


def main(argv: list[str] | None = None) -> int:
    parser = options.Parser(description=__doc__)
    parser.add_argument("--recipe", required=True, help="a YAML file or the name of one in data_prep/recipes")
    parser.add_argument(
        "--manifest", type=Path, required=True, help="JSON lines; paths relative to its folder"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--engine", choices=["local", "ray"], default="local")
    parser.add_argument(
        "--address", default=None, help="Ray cluster, e.g. auto (default: start one on this machine)"
    )
    parser.add_argument(
        "--workers", type=options.count, default=None, help="processes or Ray actors (default: all cores)"
    )
    parser.add_argument(
        "--max-bad",
        type=float,
        default=MAX_BAD,
        help="share of bad manifest lines above which nothing is done (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    try:
        engine = ray_cluster(args.workers, args.address) if args.engine == "ray" else None
        table = curate(args.manifest, args.recipe, args.out, engine, args.workers, args.max_bad)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    kept = table["steps"][-1]["kept"]
    if bad := table["steps"][0]["dropped"]:
        why = ", ".join(f"{reason} {tally['records']}" for reason, tally in bad.items())
        print(f"bad lines of the manifest, left out: {why}; see {args.out / 'dropped.jsonl'}")
    print(f"kept {kept['records']} records, {kept['hours']:.2f} h; funnel and data card in {args.out}")
    return 0


def ray_cluster(workers: int | None, address: str | None) -> Engine:
    """The engine of a Ray cluster, imported only where it is asked for."""
    from data_prep.pipeline.engine_ray import ray_engine

    return partial(ray_engine, workers=workers, address=address)


if __name__ == "__main__":
    sys.exit(main())
