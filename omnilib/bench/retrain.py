"""What retraining the committed nano checkpoints costs: every training stage of dvc.yaml timed alone on this machine.

    python -m omnilib.bench.retrain --out reports/nano/retrain.json        # 15 minutes; nothing else may run meanwhile

Each stage runs its own command for a few steps in a folder that is thrown away; its cost is what those predict for all of its steps,
evaluations and its start. A stage that changes its work on the way (the flow's encoder first, then all of it) is timed in both
phases. What is no training (corpus, speech tokens, mels) is not repeated: its wall time is the recorded one. `recorded_seconds` are
those of the run that made the checkpoint, mostly beside another one: what it cost us, not what it costs.

Needs what `make retrain` leaves behind: the corpus in data/ and the earlier runs in runs/. Units: seconds.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from tqdm import tqdm

from data_prep.score import add_to_summary
from omnilib.environment import device_model
from omnilib.errors import DataError, UserError
from omnilib.paths import CHECKPOINTS, REPORTS, ROOT
from omnilib.provenance import git_state, write_json

WARM, STEPS = 10, 40  # steps before the clock starts, and those of a trial
LOGGED = {"log_every": WARM, "eval_every": 1_000_000, "save_every": 1_000_000}  # one evaluation: after the last step


def stages() -> dict[str, tuple[str, str, Path]]:
    """Training stages of the graph: {name: (module, config, output folder)}."""
    found = {}
    for name, stage in yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"].items():
        words = shlex.split(stage["cmd"])
        if len(words) > 2 and words[2].startswith("omnilib.train.") and "--config" in words:
            found[name] = (words[2], words[words.index("--config") + 1], Path(words[words.index("--out") + 1]))
    return found


def phases(config: dict) -> list[tuple[int, dict]]:
    """(steps, settings of a trial) of the parts of a run that differ in their work."""
    steps, alone = config["steps"], min(config.get("encoder_steps", 0), config["steps"])
    if not alone:
        return [(steps, {})]
    return [(alone, {"encoder_steps": STEPS}), (steps - alone, {"encoder_steps": 0})]


def trial(module: str, config: str, settings: dict) -> dict[str, float]:
    """Run a stage for STEPS steps: seconds of its start, of a step and of what follows the last step.

    Raises:
        DataError: the command failed; its last line says why.
    """
    with tempfile.TemporaryDirectory() as folder:
        pairs = [f"{k}={v}" for k, v in (LOGGED | {"steps": STEPS} | settings).items()]
        command = [sys.executable, "-m", module, "--config", config, "--out", folder, "--set", *pairs]
        began = time.time()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        whole = time.time() - began
        if done.returncode:
            raise DataError(f"{config} does not run: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
        log = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    clock = {row["step"]: row["seconds"] for row in reversed(log)}  # of two rows of a step, the first is the end of its training
    step = (clock[STEPS] - clock[WARM]) / (STEPS - WARM)
    last = log[-1]["seconds"] - clock[STEPS]
    return {"start": whole - STEPS * step - last, "step": step, "evaluation": last}


def cost(module: str, config: str) -> dict:
    """Seconds of one stage, predicted from short trials."""
    settings = yaml.safe_load((ROOT / "omnilib" / "configs" / f"{config}.yaml").read_text(encoding="utf-8"))
    parts = [(steps, trial(module, config, change)) for steps, change in phases(settings)]
    first = parts[0][1]
    evaluations = -(-settings["steps"] // settings["eval_every"]) if "eval_every" in settings else 1
    seconds = first["start"] + sum(steps * t["step"] for steps, t in parts) + evaluations * first["evaluation"]
    return {
        "steps": settings["steps"],
        "seconds_per_step": [round(t["step"], 4) for _, t in parts],
        "seconds_per_evaluation": round(first["evaluation"], 2),
        "start_seconds": round(first["start"], 1),
        "seconds": round(seconds, 1),
    }


def recorded(out: Path) -> float | None:
    """Wall time of the run whose result lies in `out`."""
    meta = ROOT / out / "meta.json"
    return json.loads(meta.read_text(encoding="utf-8")).get("train_seconds") if meta.is_file() else None


def measure(wanted: list[str] | None = None) -> dict:
    """Every stage's row, and their sum in hours."""
    graph = {name: stage for name, stage in stages().items() if wanted is None or name in wanted}
    rows = {}
    for name, (module, config, out) in tqdm(graph.items(), unit="stage"):
        if module != "omnilib.train.text":  # counts pieces, takes no steps: a few seconds
            rows[name] = cost(module, config) | {"recorded_seconds": recorded(out)}
    times = json.loads((CHECKPOINTS / "nano" / "wall_times.json").read_text(encoding="utf-8"))
    for name, seconds in times.items():
        if name not in graph and wanted is None:
            rows[name] = {"seconds": seconds, "recorded_seconds": seconds}
    return {
        "hours": round(sum(row["seconds"] for row in rows.values()) / 3600, 2),
        "recorded_hours": round(sum(row["recorded_seconds"] or 0.0 for row in rows.values()) / 3600, 2),
        "stages": rows,
        "trial_steps": STEPS,
        "device": device_model(),
        "threads": os.environ.get("OMP_NUM_THREADS", str(os.cpu_count())),
        "commit": git_state()["commit"],
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", choices=list(stages()), default=None, help="time these only")
    parser.add_argument("--out", type=Path, default=REPORTS / "nano" / "retrain.json")
    parser.add_argument("--summary", type=Path, help="summary.json to put the hours in")
    args = parser.parse_args(argv)
    try:
        result = measure(args.stages)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_json(args.out, result)
    for name, row in result["stages"].items():
        print(f"{name:24} {row['seconds'] / 60:7.1f} min alone, {(row['recorded_seconds'] or 0) / 60:7.1f} min recorded")
    print(f"{result['hours']} h alone, {result['recorded_hours']} h recorded")
    if args.summary:
        entry = {"value": result["hours"], "n": len(result["stages"]), "ci95": None}
        add_to_summary(args.summary, {"retrain_hours": entry}, "reports/nano/retrain.json")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
