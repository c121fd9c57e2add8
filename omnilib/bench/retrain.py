"""What retraining the committed nano checkpoints costs: every training stage of dvc.yaml timed on this machine as `make retrain` runs it.

    python -m omnilib.bench.retrain        # 20 minutes; nothing else may run meanwhile
    python -m omnilib.bench.retrain --stages tokenizer --like flow=flow_short     # a new stage of steps that were timed before

Stages of a lane (`omnilib/retrain.py`) are timed with a lane's threads, beside a stage of the other lane; the others alone.

Each stage runs its own command for a few steps in a folder that is thrown away; its cost is what those predict for all of its steps,
evaluations and its start. A stage that changes its work on the way (the flow's encoder first, then all of it) is timed in both
phases. What is no training (corpus, speech tokens, mels) is not repeated: its wall time is the recorded one, within a lane as many
times that as there are lanes, as if it had used every core well. `recorded_seconds` are those of the run that made the checkpoint,
mostly beside another one: what it cost us, not what it costs. The predicted seconds go to checkpoints/nano/wall_times.json; the headline
figure `retrain_hours` is what they take as planned, lanes side by side.

Needs the corpus in data/ with its tokens, speaker vectors and mels, and the committed checkpoints. What only an earlier stage would have
left behind is replaced, see `at_hand`. Units: seconds.
"""

import argparse
import importlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from threading import Event

import yaml
from tqdm import tqdm

from omnilib import config as configs
from omnilib import retrain
from omnilib.audio import MEL_WINDOW
from omnilib.environment import device_model
from omnilib.errors import DataError, UserError
from omnilib.paths import CHECKPOINTS, DATA, REPORTS, ROOT
from omnilib.provenance import git_state, write_json

REPORT = REPORTS / "nano" / "retrain.json"
WARM, STEPS = 10, 40  # steps before the clock starts, and those of a trial
LOGGED = {
    "log_every": WARM,
    "eval_every": 1_000_000,
    "save_every": 1_000_000,
}  # one evaluation: after the last step


def stages() -> dict[str, tuple[str, str, Path]]:
    """Training stages of the graph: {name: (module, config, output folder)}."""
    found = {}
    for name, stage in retrain.graph().items():
        words = shlex.split(stage["cmd"])
        if len(words) > 2 and words[2].startswith("omnilib.train.") and "--config" in words:
            found[name] = (
                words[2],
                words[words.index("--config") + 1],
                Path(words[words.index("--out") + 1]),
            )
    return found


def resolved(module: str, config: str) -> dict:
    """All settings of a stage, defaults included."""
    known = vars(importlib.import_module(module)).values()
    schema = next(
        c
        for c in known
        if is_dataclass(c) and c.__module__ == module and "steps" in {f.name for f in fields(c)}
    )
    return asdict(configs.load(schema, config))


def phases(config: dict) -> list[tuple[int, dict]]:
    """(steps, settings of a trial) of the parts of a run that differ in their work."""
    steps = config.get("stop") or config["steps"]
    whole = {"stop": 0} if "stop" in config else {}
    if early := min(config.get("encoder_steps", 0), steps):
        return [
            (count, whole | {"encoder_steps": of})
            for count, of in ((early, STEPS), (steps - early, 0))
            if count
        ]
    return [(steps, whole)]


def at_hand(settings: dict) -> dict:
    """Settings whose inputs are here: tokens and mels of an earlier tokenizer are replaced by those of the last one, an earlier run that
    is not here by a fresh start (stage 2 of the mouth: by the committed one). A step takes as long: the sizes are the stage's own."""
    settings = dict(settings)
    for key in ("tokens", "mels"):
        if settings.get(key) and not (DATA / settings[key]).exists():
            settings[key] = f"nano/{key}.safetensors"
            if key == "mels":
                settings["model"] = settings["model"] | {"mel_window": MEL_WINDOW}
    starts = settings.get("init")
    if isinstance(starts, dict):
        settings["init"] = {k: run for k, run in starts.items() if (ROOT / run / "state").is_dir()}
    elif settings.get("stage") == 2 and not (ROOT / starts / "model.safetensors").is_file():
        settings["init"] = "checkpoints/nano/speechlm"
    elif starts and "stage" not in settings and not (ROOT / starts / "state").is_dir():
        settings["init"] = ""
    if settings.get("meter") and not (ROOT / settings["meter"] / "phonemes").is_dir():
        settings["meter"] = "checkpoints/nano/tokenizer"
    return settings


def trial(module: str, config: str, settings: dict, threads: int | None = None) -> dict[str, float]:
    """Run a stage for STEPS steps: seconds of its start, of a step and of what follows the last step. `threads`: all cores when None.

    Raises:
        DataError: the command failed; its last line says why.
    """
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder) / "trial.yaml"
        here.write_text(yaml.safe_dump(at_hand(resolved(module, config))), encoding="utf-8")
        pairs = [f"{k}={v}" for k, v in (LOGGED | {"steps": STEPS} | settings).items()]
        command = [sys.executable, "-m", module, "--config", str(here), "--out", folder, "--set", *pairs]
        began = time.time()
        environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
        whole = time.time() - began
        if done.returncode:
            raise DataError(
                f"{config} does not run: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
            )
        log = [
            json.loads(line) for line in (Path(folder) / "log.jsonl").read_text(encoding="utf-8").splitlines()
        ]
    clock = {
        row["step"]: row["seconds"] for row in reversed(log)
    }  # of two rows of a step, the first is the end of its training
    step = (clock[STEPS] - clock[WARM]) / (STEPS - WARM)
    last = log[-1]["seconds"] - clock[STEPS]
    return {"start": whole - STEPS * step - last, "step": step, "evaluation": last}


def cost(module: str, config: str, threads: int | None = None) -> dict:
    """Seconds of one stage, predicted from short trials."""
    settings = resolved(module, config)
    parts = [(count, trial(module, config, change, threads)) for count, change in phases(settings)]
    first = parts[0][1]
    steps = sum(count for count, _ in parts)
    evaluations = -(-steps // settings["eval_every"])
    seconds = (
        first["start"] + sum(count * t["step"] for count, t in parts) + evaluations * first["evaluation"]
    )
    return {
        "steps": steps,
        "threads": threads or os.cpu_count(),
        "seconds_per_step": [round(t["step"], 4) for _, t in parts],
        "seconds_per_evaluation": round(first["evaluation"], 2),
        "start_seconds": round(first["start"], 1),
        "seconds": round(seconds, 1),
    }


def like(name: str, other: str, rows: dict[str, dict]) -> dict:
    """The row of stage `name`, whose steps are those of `other`'s last phase, timed before: rows of one machine stay rows of one machine.

    Raises:
        DataError: `other` is not timed, or its model or batch is another.
    """
    trained = stages()
    (module, config, out), (other_module, other_config, _) = trained[name], trained[other]
    mine, theirs = resolved(module, config), resolved(other_module, other_config)
    sizes = ("model", "tokenizer", "head", "batch_seconds", "max_seconds")
    if module != other_module or any(mine.get(k) != theirs.get(k) for k in sizes) or len(phases(mine)) > 1:
        raise DataError(f"a step of {name} is not one of {other}: time it with --stages")
    if "seconds_per_step" not in rows.get(other, {}):
        raise DataError(f"{other} has not been timed: name it in --stages")
    row, steps = rows[other], sum(count for count, _ in phases(mine))
    step, evaluations = row["seconds_per_step"][-1], -(-steps // mine["eval_every"])
    seconds = row["start_seconds"] + steps * step + evaluations * row["seconds_per_evaluation"]
    own = {
        "steps": steps,
        "seconds_per_step": [step],
        "seconds": round(seconds, 1),
        "like": other,
        "recorded_seconds": recorded(name, out),
    }
    return row | own


def recorded(name: str, out: Path) -> float | None:
    """Wall time of the run of stage `name`: as noted in an earlier report of this bench, or in the result it left in `out`."""
    report, meta = REPORT, ROOT / out / "meta.json"
    noted = json.loads(report.read_text(encoding="utf-8"))["stages"].get(name, {}) if report.is_file() else {}
    own = json.loads(meta.read_text(encoding="utf-8")).get("train_seconds") if meta.is_file() else None
    return own if own is not None else noted.get("recorded_seconds")


def measure(
    wanted: list[str],
    times: dict[str, float],
    keep: Callable[[dict], None] = lambda result: None,
    alike: dict[str, str] | None = None,
) -> dict:
    """Every stage's row, and what they take together; `times` has the wall times known so far, the only ones of what is no training.
    `keep` is given what is known after each stage; `alike` names stages that take the steps of another, see `like`."""
    known = json.loads(REPORT.read_text(encoding="utf-8"))["stages"] if REPORT.is_file() else {}
    rows = {name: {"seconds": seconds, "recorded_seconds": seconds} for name, seconds in times.items()}
    rows |= {
        name: known[name] for name in times if name in known and name not in wanted
    }  # timed by an earlier call
    trained, (_, lanes, _) = stages(), retrain.plan(retrain.graph())
    for module, _, _ in trained.values():
        importlib.import_module(module)  # here, because two threads that import one package at once can fail
    for name in (name for names in lanes.values() for name in names if name in rows and name not in trained):
        rows[name] = rows[name] | {"seconds": len(lanes) * rows[name]["recorded_seconds"]}
    bar = tqdm(total=len(wanted), unit="stage")

    def timed(name: str, threads: int | None) -> None:
        module, config, out = trained[name]
        rows[name] = cost(module, config, threads) | {
            "recorded_seconds": recorded(name, out) or times.get(name)
        }
        keep(summary(dict(rows)))
        bar.update()

    for name in wanted:
        if not any(name in names for names in lanes.values()):
            timed(name, None)
    here = {lane: [n for n in names if n in wanted] for lane, names in lanes.items()}
    ended = {lane: Event() for lane in lanes}

    def run(lane: str) -> None:
        """Time a lane's stages, then keep the core as busy until the other lane has ended."""
        try:
            for name in here[lane]:
                timed(name, retrain.threads())
        finally:
            ended[lane].set()
        module, config, _ = trained[next(n for n in reversed(lanes[lane]) if n in trained)]
        while not all(event.is_set() for event in ended.values()):
            trial(module, config, {}, retrain.threads())

    if any(here.values()):
        with ThreadPoolExecutor(len(lanes)) as pool:
            list(pool.map(run, lanes))
    bar.close()
    for name, other in (alike or {}).items():
        rows[name] = like(name, other, rows)
        keep(summary(dict(rows)))
    return summary(rows)


def summary(rows: dict[str, dict]) -> dict:
    """The report of these rows."""
    return {
        "hours": round(retrain.wall_seconds({name: row["seconds"] for name, row in rows.items()}) / 3600, 2),
        "recorded_hours": round(sum(row["recorded_seconds"] or 0.0 for row in rows.values()) / 3600, 2),
        "stages": rows,
        "trial_steps": STEPS,
        "device": device_model(),
        "cores": os.cpu_count(),
        "threads_in_lanes": retrain.threads(),
        "commit": git_state()["commit"],
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    trained = [
        name for name, (module, _, _) in stages().items() if module != "omnilib.train.text"
    ]  # that counts pieces: seconds
    parser.add_argument("--stages", nargs="*", choices=trained, default=trained, help="time these only")
    parser.add_argument(
        "--like",
        nargs="+",
        default=[],
        metavar="STAGE=OTHER",
        help="STAGE is not timed: its steps are OTHER's, timed before",
    )
    args = parser.parse_args(argv)
    alike = dict(pair.split("=", 1) for pair in args.like if "=" in pair)
    if len(alike) < len(args.like) or {*alike, *alike.values()} - {*trained}:
        parser.error(f"--like takes STAGE=OTHER, both of: {', '.join(trained)}")
    path = CHECKPOINTS / "nano" / "wall_times.json"
    times = json.loads(path.read_text(encoding="utf-8"))

    def keep(result: dict) -> None:
        write_json(REPORT, result)
        write_json(path, {name: row["seconds"] for name, row in result["stages"].items()})

    try:
        result = measure([name for name in args.stages if name not in alike], times, keep, alike)
    except UserError as error:
        print(f"error: {error} (stages timed so far are kept; go on with --stages)", file=sys.stderr)
        return 2
    for name, row in result["stages"].items():
        print(
            f"{name:24} {row['seconds'] / 60:7.1f} min, {(row['recorded_seconds'] or 0) / 60:7.1f} min recorded"
        )
    print(f"{result['hours']} h with lanes side by side")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
