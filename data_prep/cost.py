"""What a corpus of so many hours takes: storage, core-hours, GPU-hours, nodes, days and money per step, with a range.

    python -m data_prep.cost --hours 400000
    python -m data_prep.cost --hours 400000 --days 14 --gpu-price 3.1 --assume keep_wild=0.3,0.4,0.5 --json plan.json

Rates come from the benchmark of this repository (`reports/nano/curation/bench.json`, written by `data_prep.bench.curation`:
`{"steps": {name: {"audio_hours_per_core_hour": x, "audio_hours_per_gpu_hour": y}}}`, either key may be absent). Steps without a
measured rate use a published one where there is one, and else stay empty and are listed. Everything else is an assumption: low,
likely, high, with its source. Each figure is the 5th, 50th and 95th percentile of 20,000 draws from triangular distributions.
Conservative: every step is charged for all hours that come in, though later steps see only what earlier ones kept.

Units: hours of audio unless named core-hours, GPU-hours; TB = 10^12 bytes; money in the currency of the prices.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from data_prep.corpora import emilia, load
from omnilib import options
from omnilib.errors import ConfigError, DataError, UserError
from omnilib.paths import REPORTS

BENCH = REPORTS / "nano" / "curation" / "bench.json"
DRAWS = 20_000
PERCENTILES = {"low": 5, "likely": 50, "high": 95}
PAPER_RAW, PAPER_SYNTHETIC = 300_000, 100_000  # MGM-Omni paper, section 3.3
NAMED = ("emilia", "libriheavy", "common_voice", "aishell1", "aishell2", "aishell3")  # the paper's list
COSTLY = (
    "decode",
    "loudness",
    "vad",
    "language",
    "quality",
    "speakers",
    "duplicates",
    "tokens",
    "shards",
)  # must be measured


@dataclass(frozen=True)
class Guess:
    """An assumed quantity: least, most likely and greatest value, and where they come from."""

    low: float
    likely: float
    high: float
    unit: str
    source: str

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.likely <= self.high:
            raise ConfigError(
                f"an assumption is 0 < low <= likely <= high, not {self.low:g}, {self.likely:g}, {self.high:g}"
            )

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """(DRAWS,)"""
        if self.low == self.high:
            return np.full(DRAWS, self.low)
        return rng.triangular(self.low, self.likely, self.high, DRAWS)


@dataclass(frozen=True)
class Prices:
    """Example prices, to be replaced by your own; they come from no provider."""

    gpu_hour: float = 2.5
    core_hour: float = 0.04
    tb_month: float = 20.0


@dataclass(frozen=True)
class Cluster:
    days: float = 30.0
    cores_per_node: int = 64
    gpus_per_node: int = 8


def public_sets() -> list[dict]:
    """Hours of the sets the paper names, by their cards: {"name", "en", "zh", "total"}; Emilia's later half apart."""
    rows = []
    for name in NAMED:
        hours = load(name).HOURS
        rows.append({"name": name, "en": hours.get("en", 0), "zh": hours.get("zh", 0)})
    rows.append({"name": "emilia (YODAS)", "en": emilia.YODAS_HOURS, "zh": 0})  # nearly all English
    return [row | {"total": round(row["en"] + row["zh"], 1)} for row in rows]


FILLERS = [
    {"name": "People's Speech", "hours": 30_000, "what": "en, transcribed, CC BY(-SA); its card"},
    {"name": "WenetSpeech", "hours": 10_000, "what": "zh, transcribed, non-commercial; its card"},
    {"name": "GigaSpeech", "hours": 10_000, "what": "en, transcribed, non-commercial; arXiv 2106.06909"},
    {
        "name": "Unsupervised People's Speech",
        "hours": 1_000_000,
        "what": "raw, mostly en, CC BY(-SA); its card. Must be cut and transcribed",
    },
]
NOT_COUNTED = "Multilingual LibriSpeech (en 44.7k h) reads the same LibriVox recordings as Libriheavy; WenetSpeech4TTS is cut from WenetSpeech"


def supply(raw: float = PAPER_RAW) -> dict:
    """Do the named sets reach `raw` hours, and what would?"""
    sets = public_sets()
    high = sum(row["total"] for row in sets)
    low = high - emilia.YODAS_HOURS
    keep = ASSUMPTIONS["keep_wild"].likely
    transcribed = sum(f["hours"] for f in FILLERS[:3])
    return {
        "sets": sets,
        "wanted": raw,
        "without_yodas": round(low),
        "with_yodas": round(high),
        "zh": round(sum(row["zh"] for row in sets)),
        "missing": [round(max(0.0, raw - high)), round(max(0.0, raw - low))],
        "fillers": FILLERS,
        "not_counted": NOT_COUNTED,
        "missing_after_transcribed_fillers": [
            round(max(0.0, raw - have - transcribed)) for have in (high, low)
        ],
        "raw_hours_to_curate_instead": [round(max(0.0, raw - have) / keep) for have in (high, low)],
    }


NAMED_HOURS = [sum(row["total"] for row in public_sets()) - less for less in (emilia.YODAS_HOURS, 0)]
ASSUMPTIONS = {
    "named_hours": Guess(
        NAMED_HOURS[0], NAMED_HOURS[1], NAMED_HOURS[1], "h", "dataset cards, without and with Emilia-YODAS"
    ),
    "keep_named": Guess(0.70, 0.90, 0.98, "share kept", "assumption: these sets were curated before"),
    "keep_wild": Guess(
        0.29,
        0.3875,
        0.48,
        "share kept",
        "Emilia-Pipe kept 38.75 % (arXiv 2501.15907), plus or minus a quarter",
    ),
    "keep_synthetic": Guess(0.80, 0.92, 0.98, "share kept", "assumption"),
    "transcribe": Guess(
        10,
        15,
        20.8,
        "audio-h per GPU-h",
        "NeMo Curator 10-19 per H100-h, Emilia-Pipe 20.8 per RTX-4090-h: whole pipelines",
    ),
    "rtf_synthesis": Guess(
        0.19,
        0.33,
        0.60,
        "GPU-s per s",
        "MGM-Omni paper: 0.19-0.34 on one H800, batch 1; MegaTTS3 states none",
    ),
    "rewrite_tokens": Guess(
        18e3,
        22e3,
        30e3,
        "tokens per audio-h",
        "assumption: 3 text tokens a second of speech, read and written",
    ),
    "rewrite_speed": Guess(
        200, 400, 800, "tokens per GPU-s", "assumption for a 72B model, batched; no source"
    ),
    "core_factor": Guess(
        0.5, 1.0, 1.5, "speed of your cores", "assumption: relative to those of the benchmark"
    ),
    "utilisation": Guess(0.50, 0.70, 0.85, "busy share", "assumption: input, stragglers, restarts"),
    "source_mb": Guess(
        24.9,
        27.4,
        58.7,
        "MB per h",
        "Common Voice 24.0 en, an Emilia archive, Libri-Light FLAC: sizes over hours",
    ),
    "work_mb": Guess(78, 95, 112, "MB per h", "assumption: 24 kHz mono FLAC at 45-65 % of 172.8 MB"),
    "shard_mb": Guess(
        0.5, 0.8, 1.5, "MB per h", "25 tokens/s at 2 bytes, a 192-value speaker vector a segment, text"
    ),
}


def read_rates(path: Path) -> dict[str, dict[str, float]]:
    """{step: {"core": audio-h per core-h, "gpu": audio-h per GPU-h}} of a benchmark file; empty when there is none.

    Raises:
        DataError: the file is not what the benchmark writes.
    """
    if not Path(path).is_file():
        return {}
    try:
        steps = json.loads(Path(path).read_text(encoding="utf-8"))["steps"]
        units = (("core", "audio_hours_per_core_hour"), ("gpu", "audio_hours_per_gpu_hour"))
        rates = {
            name: {unit: float(row[key]) for unit, key in units if row.get(key)}
            for name, row in steps.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is not a curation benchmark ({error}): run `python -m data_prep.bench.curation` again"
        ) from None
    if bad := [name for name, row in rates.items() if any(not 0 < v < np.inf for v in row.values())]:
        raise DataError(
            f"{path}: rate of {', '.join(bad)} is not a positive number; run `python -m data_prep.bench.curation` again"
        )
    return {name: row for name, row in rates.items() if row}


def spread(values: np.ndarray) -> dict[str, float]:
    """Percentiles of the draws."""
    return {name: float(np.percentile(values, p)) for name, p in PERCENTILES.items()}


def plan(
    hours: float,
    rates: dict[str, dict[str, float]],
    synthetic_share: float = 0.25,
    prices: Prices | None = None,
    cluster: Cluster | None = None,
    assume: dict[str, Guess] | None = None,
    seed: int = 0,
) -> dict:
    """The plan for `hours` of kept speech, `synthetic_share` of it synthetic.

    Args:
        rates: measured, see `read_rates`.
        assume: replaces some of ASSUMPTIONS.

    Raises:
        ConfigError: hours, share, prices or cluster make no sense.
    """
    prices, cluster, guesses = prices or Prices(), cluster or Cluster(), ASSUMPTIONS | (assume or {})
    if not hours > 0 or not 0 <= synthetic_share <= 1:
        raise ConfigError("--hours is more than 0 and --synthetic-share lies between 0 and 1")
    if min(asdict(cluster).values()) <= 0 or min(asdict(prices).values()) < 0:
        raise ConfigError("days and nodes' sizes are more than 0, prices are not negative")
    if unknown := set(guesses) - set(ASSUMPTIONS):
        raise ConfigError(f"no assumption {', '.join(sorted(unknown))}: choose from {', '.join(ASSUMPTIONS)}")
    rng = np.random.default_rng(seed)
    x = {name: guess.draw(rng) for name, guess in guesses.items()}

    raw, synthetic = hours * (1 - synthetic_share), hours * synthetic_share
    named = np.minimum(x["named_hours"], raw / x["keep_named"])
    wild = np.maximum(raw - named * x["keep_named"], 0) / x["keep_wild"]
    spoken = synthetic / x["keep_synthetic"]
    incoming = named + wild + spoken

    steps: list[tuple[str, str, str, np.ndarray]] = []  # (name, unit, where the rate is from, unit-hours)
    if synthetic:
        steps.append(
            ("rewrite texts", "gpu", "assumed", spoken * x["rewrite_tokens"] / x["rewrite_speed"] / 3600)
        )
        steps.append(("synthesise", "gpu", "published", spoken * x["rtf_synthesis"]))
    for name, row in rates.items():
        if name != "transcribe":
            unit = "gpu" if "gpu" in row else "core"
            steps.append(
                (name, unit, "measured", incoming / row[unit] / (x["core_factor"] if unit == "core" else 1))
            )
    heard = rates.get("transcribe", {}).get("gpu")
    steps.append(
        ("transcribe", "gpu", "measured" if heard else "published", incoming / (heard or x["transcribe"]))
    )

    busy = {
        unit: sum((s[3] for s in steps if s[1] == unit), np.zeros(DRAWS)) / x["utilisation"]
        for unit in ("core", "gpu")
    }
    size = {"core": cluster.cores_per_node, "gpu": cluster.gpus_per_node}
    price = {"core": prices.core_hour, "gpu": prices.gpu_hour}
    nodes = {
        unit: int(np.ceil(np.percentile(busy[unit], 50) / (cluster.days * 24 * size[unit]))) for unit in busy
    }
    storage = {
        "sources": (named + wild) * x["source_mb"] / 1e6,
        "working FLAC": incoming * x["work_mb"] / 1e6,
        "kept FLAC": hours * x["work_mb"] / 1e6,
        "token shards": hours * x["shard_mb"] / 1e6,
    }
    stored = storage["sources"] + storage["working FLAC"] + storage["token shards"]
    money = {unit: busy[unit] * price[unit] for unit in busy} | {
        "storage": stored * prices.tb_month * cluster.days / 30
    }
    capacity = {unit: nodes[unit] * size[unit] * 24 for unit in nodes}
    return {
        "hours": hours,
        "supply": supply(raw),
        "incoming_hours": {
            k: spread(v)
            for k, v in (
                ("named sets", named),
                ("further raw", wild),
                ("synthetic", spoken),
                ("all", incoming),
            )
        },
        "steps": [
            {
                "name": name,
                "unit": unit,
                "rate_from": origin,
                "audio_hours_per_unit_hour": spread(
                    (spoken if name in ("rewrite texts", "synthesise") else incoming) / needed
                ),
                "unit_hours": spread(needed / x["utilisation"]),
                "days": spread(needed / x["utilisation"] / capacity[unit]),
                "cost": spread(needed / x["utilisation"] * price[unit]),
            }
            for name, unit, origin, needed in steps
        ],
        "storage_tb": {name: spread(v) for name, v in storage.items()} | {"at the peak": spread(stored)},
        "core_hours": spread(busy["core"]),
        "gpu_hours": spread(busy["gpu"]),
        "nodes": nodes,
        "days": {
            unit: spread(busy[unit] / capacity[unit]) if nodes[unit] else spread(np.zeros(DRAWS))
            for unit in nodes
        },
        "cost": {name: spread(v) for name, v in money.items()} | {"all": spread(sum(money.values()))},
        "missing": [name for name in COSTLY if name not in rates],
        "prices": asdict(prices),
        "cluster": asdict(cluster),
        "assumptions": {name: asdict(guess) for name, guess in guesses.items()},
    }


# ---- words -------------------------------------------------------------------------------------------------------------


def figure(value: float) -> str:
    """Three significant digits: '0.0123', '4.5', '12,300'."""
    if value == 0:
        return "0"
    value = float(f"{value:.3g}")
    return f"{value:,.{max(0, 2 - int(np.floor(np.log10(abs(value)))))}f}"


def between(values: dict[str, float]) -> str:
    """'likely (low - high)'."""
    return f"{figure(values['likely'])} ({figure(values['low'])} - {figure(values['high'])})"


def pair(values: list[float]) -> str:
    return f"{values[0]:,} - {values[1]:,}"


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows])


def render(result: dict) -> str:
    """The plan as Markdown: likely value (5th - 95th percentile)."""
    have, rows = result["supply"], result["steps"]
    unmeasured, units = ", ".join(result["missing"]), sorted({row["unit"] for row in rows})
    verdict = "**They do not add up.** " if have["missing"][0] else ""
    parts = [
        f"# Plan for {result['hours']:,.0f} h of speech\n\nEvery figure: likely (5th - 95th percentile).",
        "## Where the recordings come from\n",
        table(
            ["named set", "en", "zh", "all"],
            [[r["name"], *(f"{r[k]:,.0f}" for k in ("en", "zh", "total"))] for r in have["sets"]],
        ),
        f"\nTogether {have['without_yodas']:,} h, {have['with_yodas']:,} h with YODAS ({have['zh']:,} h Mandarin); wanted are "
        f"{have['wanted']:,.0f} h. {verdict}Missing, before any filter: {pair(have['missing'])} h.",
        "\nWhat would fill the gap:\n",
        table(["set", "h", "what"], [[f["name"], f"{f['hours']:,}", f["what"]] for f in have["fillers"]]),
        f"\nThe three transcribed ones leave {pair(have['missing_after_transcribed_fillers'])} h missing; from raw speech alone, "
        f"{pair(have['raw_hours_to_curate_instead'])} h would have to be curated. Not counted: {have['not_counted']}.",
        "\n## Hours that go in\n",
        table(["source", "h"], [[name, between(v)] for name, v in result["incoming_hours"].items()]),
        "\n## Steps\n",
        table(
            ["step", "unit", "audio-h per unit-h", "rate", "unit-hours", "days", "cost"],
            [
                [
                    s["name"],
                    s["unit"],
                    between(s["audio_hours_per_unit_hour"]),
                    s["rate_from"],
                    *(between(s[k]) for k in ("unit_hours", "days", "cost")),
                ]
                for s in rows
            ],
        ),
        f"\n**Not measured, so not in the sums: {unmeasured}. Run `python -m data_prep.bench.curation` first.**"
        if unmeasured
        else "",
        "\n## Sums\n",
        table(
            ["what", "value"],
            [
                *([f"{unit}-hours", between(result[f"{unit}_hours"])] for unit in units),
                *(
                    [f"{unit} nodes and days", f"{result['nodes'][unit]}, {between(result['days'][unit])}"]
                    for unit in units
                ),
                *([f"storage, {name} (TB)", between(v)] for name, v in result["storage_tb"].items()),
                *(
                    [f"cost, {name}", between(v)]
                    for name, v in result["cost"].items()
                    if name not in ("core", "gpu") or name in units
                ),
            ],
        ),
        "\n## Assumptions\n",
        table(
            ["name", "low", "likely", "high", "unit", "source"],
            [
                [name, *(figure(a[k]) for k in ("low", "likely", "high")), a["unit"], a["source"]]
                for name, a in result["assumptions"].items()
            ],
        ),
        "\nPrices (placeholders, put in your own): "
        + ", ".join(f"{k} {v:g}" for k, v in result["prices"].items())
        + ".",
        "Cluster: " + ", ".join(f"{k} {v:g}" for k, v in result["cluster"].items()) + ".",
        "Every step is charged for all hours that go in; fees of sets, downloads, people and the training itself are not in it.",
    ]
    return "\n".join(parts) + "\n"


def assumption(text: str) -> tuple[str, Guess]:
    """`name=low,likely,high` or `name=value`.

    Raises:
        ConfigError: unknown name or not numbers.
    """
    name, _, values = text.partition("=")
    if name not in ASSUMPTIONS:
        raise ConfigError(f"no assumption '{name}': choose from {', '.join(ASSUMPTIONS)}")
    try:
        numbers = [float(v) for v in values.split(",")]
        low, likely, high = numbers * 3 if len(numbers) == 1 else numbers
    except ValueError:
        raise ConfigError(f"--assume {text}: write {name}=low,likely,high or {name}=value") from None
    return name, Guess(low, likely, high, ASSUMPTIONS[name].unit, "given by the user")


def main(argv: list[str] | None = None) -> None:
    parser = options.Parser(description=__doc__)
    parser.add_argument(
        "--hours",
        type=options.number,
        default=PAPER_RAW + PAPER_SYNTHETIC,
        help="hours of speech to end with",
    )
    parser.add_argument(
        "--synthetic-share", type=options.number, default=PAPER_SYNTHETIC / (PAPER_RAW + PAPER_SYNTHETIC)
    )
    parser.add_argument("--gpu-price", type=options.number, default=Prices.gpu_hour, help="of a GPU-hour")
    parser.add_argument("--core-price", type=options.number, default=Prices.core_hour, help="of a core-hour")
    parser.add_argument(
        "--tb-month-price", type=options.number, default=Prices.tb_month, help="of a TB kept for a month"
    )
    parser.add_argument(
        "--days", type=options.number, default=Cluster.days, help="the nodes are counted for this time"
    )
    parser.add_argument("--cores-per-node", type=options.count, default=Cluster.cores_per_node)
    parser.add_argument("--gpus-per-node", type=options.count, default=Cluster.gpus_per_node)
    parser.add_argument("--assume", action="append", default=[], metavar="NAME=LOW,LIKELY,HIGH")
    parser.add_argument("--bench", type=Path, default=BENCH, help="measured rates")
    parser.add_argument("--json", type=Path, help="write the plan there too")
    args = parser.parse_args(argv)
    try:
        prices = Prices(args.gpu_price, args.core_price, args.tb_month_price)
        cluster = Cluster(args.days, args.cores_per_node, args.gpus_per_node)
        assume = dict(assumption(text) for text in args.assume)
        result = plan(args.hours, read_rates(args.bench), args.synthetic_share, prices, cluster, assume)
        if args.json:
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(render(result))
    except UserError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
