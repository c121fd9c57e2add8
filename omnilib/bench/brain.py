"""What the brain costs: tokens a second beside plain decoding, seconds and memory against the length of sound.

    python -m omnilib.bench.brain --speed                     # about 2 minutes; reports/nano/brain/speed.json
    python -m omnilib.bench.brain --cost                      # about a quarter of an hour; reports/nano/brain/cost.json
    python -m omnilib.bench.brain --cost --seconds 4500       # one length; the others stay in the file

--speed  The same weights, prompts and number of tokens through transformers' own `generate` (float32, its best on this
         CPU) and through `brain.fast_decode`, in turns within one run, so that a busy machine slows both. The ratio
         is the median over rounds. Agreement: how many greedy answers are the same to the token.
--cost   For each length: spectrum, encoders with projector, prompt, 16 tokens of answer, and the largest memory of the
         process meanwhile. The law is the exponent of a straight line through log seconds over log length, from 60 s
         on. Seconds do not depend on what the weights have learned: without a trained brain the projector is random,
         and the file says so.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from omnilib import options
from omnilib.brain.ask import Brain, folder_of
from omnilib.brain.decode import AnswerSettings
from omnilib.brain.fast_decode import WEIGHTS, FastDecoder
from omnilib.brain.trained import Base, build_base
from omnilib.errors import CheckpointError, UserError
from omnilib.eval.results import add_bench
from omnilib.paths import REPORTS
from omnilib.provenance import read_json, stamp, write_json

LENGTHS = (1, 4, 15, 60, 225, 900, 1800, 3600, 4500)  # seconds of sound
LAW_FROM = 60  # seconds: below, fixed costs rule
ANSWER = 16  # tokens behind the sound
PROMPTS = (
    "What is the capital of France?",
    "Name three animals that live in the sea.",
    "Write a short story about a river and a bridge.",
    "How many days are in a week?",
    "Explain why the sky is blue.",
    "Give me a recipe for tea.",
)
GIB = 2**30


def loaded(scale: str, weights: str) -> tuple[Brain, str]:
    """The trained brain, or its parts with a random projector; and which."""
    try:
        return Brain.load(folder_of(scale), weights=weights), "trained"
    except CheckpointError:
        model, processor = build_base(Base(base="smoke" if scale == "smoke" else "nano"))
        return Brain(model, processor, weights=weights), "random projector"


# ---- speed -------------------------------------------------------------------------------------------------


def plain_ids(brain: Brain, batch: dict, count: int) -> list[int]:
    """Transformers' own `generate`, which goes on behind an end as the fast decoder does: no token has this id."""
    never = brain.model.config.vocab_size
    made = brain.model.generate(**batch, max_new_tokens=count, do_sample=False, eos_token_id=never)
    return made[0].tolist()


def fast_ids(decoder: FastDecoder, batch: dict, count: int) -> list[int]:
    """The fast decoder."""
    return [int(ids) for ids in decoder.stream(batch, AnswerSettings(max_new_tokens=count, eos=()))]


def timed(work: Callable[[], list[int]]) -> tuple[list[int], float]:
    """What it gives, and its seconds."""
    started = time.perf_counter()
    made = work()
    return made, time.perf_counter() - started


def measure_speed(brain: Brain, prompts: Sequence[str], count: int, rounds: int) -> dict:
    """Tokens a second of every kind of weights and of plain decoding, in turns."""
    decoders = {kind: FastDecoder(brain.model, kind) for kind in WEIGHTS}
    batches = [brain.processor.chat([{"role": "user", "content": p}]) for p in prompts]
    seconds: dict[str, list[float]] = {name: [] for name in ("plain", *WEIGHTS)}
    answers: dict[str, list[list[int]]] = {name: [] for name in seconds}
    for number in range(rounds + 1):  # the first warms up
        batch = batches[number % len(batches)]
        for name in seconds:
            work = (
                (lambda b=batch: plain_ids(brain, b, count))
                if name == "plain"
                else (lambda b=batch, d=decoders[name]: fast_ids(d, b, count))
            )
            ids, spent = timed(work)
            if number:
                seconds[name].append(spent)
                answers[name].append(ids)
    rows = {}
    for name, spent in seconds.items():
        same = [agreement(a, b) for a, b in zip(answers["plain"], answers[name], strict=True)]
        ratios = [a / b for a, b in zip(seconds["plain"], spent, strict=True)]
        rows[name] = {
            "tokens_per_second": count / statistics.median(spent),
            "speedup": statistics.median(ratios),
            "speedup_range": [min(ratios), max(ratios)],
            "same_answers": sum(s == count for s in same),
            "same_tokens_at_start": statistics.mean(same),
        }
    return {"rows": rows, "tokens": count, "rounds": rounds, "prompts": list(prompts)}


def agreement(a: Sequence[int], b: Sequence[int]) -> int:
    """Tokens until two answers part."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


# ---- cost --------------------------------------------------------------------------------------------------


def reset_peak() -> None:
    """Forget the largest memory so far (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_gib() -> float:
    """Largest resident memory since `reset_peak`; where the kernel cannot tell, of the whole process."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / GIB
    except (OSError, StopIteration):
        from omnilib.provenance import peak_memory_gb

        return peak_memory_gb() * 1e9 / GIB


@torch.no_grad()
def measure_length(brain: Brain, seconds: float) -> dict:
    """Seconds of each part, and memory, for sound of one length (soft noise; its content costs nothing)."""
    reset_peak()
    rng = np.random.default_rng(0)
    wave = (rng.standard_normal(round(seconds * 16_000), dtype=np.float32) * 0.05).astype(np.float32)
    marks = [time.perf_counter()]
    asked = [{"role": "user", "content": [{"type": "audio", "audio": wave}, "What is said?"]}]
    batch = dict(brain.processor.chat(asked))
    marks.append(time.perf_counter())
    with brain.decoder.towers():
        heard = brain.model.model.hear(batch.pop("input_features"), batch.pop("feature_positions"))
    marks.append(time.perf_counter())
    steps = brain.steps(batch | {"speech_features": heard}, AnswerSettings(max_new_tokens=ANSWER, eos=()))
    next(steps)
    marks.append(time.perf_counter())
    count = 1 + sum(1 for _ in steps)
    marks.append(time.perf_counter())
    parts = np.diff(marks).tolist()
    row = dict(zip(("spectrum", "encoders", "prompt", "answer"), parts, strict=True))
    return {
        "seconds": seconds,
        "positions": batch["input_ids"].shape[1],
        **{name: round(value, 3) for name, value in row.items()},
        "total": round(sum(parts), 3),
        "answer_tokens": count,
        "memory_gib": round(peak_gib(), 3),
    }


def laws(rows: Sequence[dict]) -> dict[str, float]:
    """Exponent of each part over length: 1 is linear, 2 quadratic."""
    longer = [r for r in rows if r["seconds"] >= LAW_FROM]
    if len(longer) < 2:
        return {}
    x = np.log([r["seconds"] for r in longer])
    parts = "spectrum", "encoders", "prompt", "total"
    return {p: round(float(np.polyfit(x, np.log([max(r[p], 1e-6) for r in longer]), 1)[0]), 3) for p in parts}


def headlines(rows: Sequence[dict]) -> dict[str, dict]:
    """Seconds for an hour of sound, and memory of 75 minutes, where these lengths were measured."""
    by, found = {r["seconds"]: r for r in rows}, {}
    figure = lambda value, unit: {"value": value, "n": 1, "ci95": None, "unit": unit}  # noqa: E731
    if 3600 in by:
        found["brain_seconds_per_audio_hour"] = figure(by[3600]["total"], "s")
    if 4500 in by:
        found["brain_memory_75min_gib"] = figure(by[4500]["memory_gib"], "GiB")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = options.Parser(description=__doc__)
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--cost", action="store_true")
    parser.add_argument("--scale", type=options.scale, default="nano")
    parser.add_argument("--weights", default="int8", choices=WEIGHTS, help="of the fast decoder, for --cost")
    parser.add_argument("--tokens", type=options.count, default=64, help="of each answer, for --speed")
    parser.add_argument("--rounds", type=options.count, default=6, help="for --speed")
    parser.add_argument(
        "--seconds", type=float, action="append", help="lengths of --cost (default: 1 to 4500)"
    )
    parser.add_argument("--reports", type=Path, default=REPORTS)
    args = parser.parse_args(argv)
    if not args.speed and not args.cost:
        parser.error("give --speed, --cost, or both")
    place = args.reports / args.scale / "brain"
    place.mkdir(parents=True, exist_ok=True)
    try:
        brain, which = loaded(args.scale, args.weights)
        settings = {"brain": which, "threads": torch.get_num_threads()}
        if args.speed:
            speed(brain, args, settings, place)
        if args.cost:
            cost(brain, args, settings | {"weights": args.weights, "attention": "sdpa"}, place)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def speed(brain: Brain, args: argparse.Namespace, settings: dict, place: Path) -> None:
    """Measure, print, write speed.json."""
    started = time.time()
    made = measure_speed(brain, PROMPTS, args.tokens, args.rounds)
    best, plain = made["rows"]["int8"], made["rows"]["plain"]
    figure = lambda value, unit: {"value": value, "n": args.rounds, "ci95": None, "unit": unit}  # noqa: E731
    metrics = {
        "brain_tokens_per_s": figure(best["tokens_per_second"], "tokens/s"),
        "brain_speedup": figure(best["speedup"], "x") | {"range": best["speedup_range"]},
    }
    whole = {"name": "brain speed", "scale": args.scale, "settings": settings, "metrics": metrics}
    write_json(
        place / "speed.json",
        whole | made | {"provenance": stamp(args.scale, {}, settings, {}, time.time() - started)},
    )
    add_bench(place / "speed.json", metrics, args.reports)
    for name, row in made["rows"].items():
        print(
            f"{name:10} {row['tokens_per_second']:6.1f} tokens/s  x{row['speedup']:.2f}  "
            f"{row['same_answers']} of {args.rounds} answers the same"
        )
    print(
        f"fast decoding over plain ({plain['tokens_per_second']:.1f} tokens/s): {best['speedup']:.2f} times"
    )


def cost(brain: Brain, args: argparse.Namespace, settings: dict, place: Path) -> None:
    """Measure each length, print, write cost.json after each; rows of other lengths stay."""
    started, path = time.time(), place / "cost.json"
    measure_length(brain, 1.0)  # warms up
    for seconds in args.seconds or LENGTHS:
        row = measure_length(brain, seconds)
        old = read_json(path)
        kept = [r for r in old.get("rows", []) if r["seconds"] != seconds and old.get("settings") == settings]
        rows = sorted([*kept, row], key=lambda r: r["seconds"])
        whole = {"name": "brain cost", "scale": args.scale, "settings": settings, "metrics": headlines(rows)}
        whole |= {"rows": rows, "laws": laws(rows)}
        write_json(path, whole | {"provenance": stamp(args.scale, {}, settings, {}, time.time() - started)})
        print(
            f"{seconds:7.0f} s: {row['total']:8.1f} s ({row['encoders']:.1f} encoders, {row['prompt']:.1f} prompt), "
            f"{row['memory_gib']:.2f} GiB",
            flush=True,
        )
    add_bench(path, headlines(rows), args.reports)
    print("exponents over length:", laws(rows))


if __name__ == "__main__":
    raise SystemExit(main())
