"""What every training script shares: seeds, learning rate, log, atomic checkpoints, exact resume.

The loops themselves stay in the scripts, which all speak alike: `Config` holds the settings, `prepare` makes model, data and optimiser,
`train` learns and exports, `main` reads the command line. A run folder holds
    log.jsonl          one line a logged step
    state/             newest resumable state: model.safetensors, optimizer.pt, meta.json
    settings.json      the resolved config of the run in state/
    model.safetensors, config.yaml, meta.json      the exported result
State is written to a temporary name and renamed, so a killed process or a full disk leaves the previous one whole.
"""

import argparse
import hashlib
import json
import math
import os
import pickle
import shutil
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from omnilib import config as configs
from omnilib import options, storage
from omnilib.data import sha256
from omnilib.errors import CheckpointError, ConfigError, DataError, UserError
from omnilib.seed import seed_everything as seed_everything  # scripts import it from here
from omnilib.storage import load_weights, unique_tensors
from omnilib.text import save_tokenizer


def parse_args(doc: str, argv: list[str] | None = None) -> argparse.Namespace:
    """The flags every training script takes."""
    parser = options.Parser(description=doc)
    parser.add_argument("--config", required=True, help="name in omnilib/configs, or a YAML file")
    parser.add_argument("--set", dest="overrides", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument(
        "--out", required=True, type=Path, help="run folder; an unfinished run in it is continued"
    )
    return parser.parse_args(argv)


def run_script(doc: str, kind: type, train: Callable, argv: list[str] | None = None) -> dict[str, float]:
    """The `main` of a training script: settings from a config of this kind, then `train(config, out)`; its metrics."""
    args = parse_args(doc, argv)
    metrics = train(configs.load(kind, args.config, args.overrides), args.out)
    if (
        int(os.environ.get("WORLD_SIZE", "1")) > 1
    ):  # all is written; torch's threads may abort a process that ends by itself
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    return metrics


def lr_at(step: int, total: int, peak: float, warmup: int, floor: float = 0.05) -> float:
    """Linear warm-up to `peak`, then cosine down to `floor * peak` at `total`.

    Source: SGDR, arXiv 1608.03983, eq. 5.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


FIXED = {"phases", "seed", "manifest", "stage", "init", "text", "adapter", "optimizer", "storage", "shards"}


@dataclass(frozen=True)
class Phase:
    """A part of a run with settings of its own: steps `first` to `end` - 1."""

    name: str
    first: int
    end: int
    config: object

    def lr(self, step: int) -> float:
        """Warm-up and cosine within the phase."""
        return lr_at(step - self.first, self.end - self.first, self.config.lr, self.config.warmup)


class Schedule:
    """The phases of a run, in order.

    A config's `phases` is a list such as `[{name: encoder, steps: 8000, encoder_only: true}, {name: all, steps: 5000, lr: 5e-4}]`:
    each phase overrides fields of the config; without `phases` a run is one phase of `steps`. With both, the phases share `steps`
    in proportion to their own (`--set steps=60` rehearses a whole run). What depends on the settings of a phase (its batches) is
    made when its first step comes, so a step's batch is a function of (config, step) alone.

    Args:
        make: settings of a phase -> its data; called once a phase.

    Raises:
        ConfigError: a run without steps; a phase without name or steps, with the name of another one, or with a field that the
            config has not or that must not change within a run.
    """

    def __init__(self, config, make: Callable[[object], object] = lambda config: None):
        self.phases, self.make, self.made, self.lock = [], make, {}, threading.Lock()
        given = [dict(phase) for phase in config.phases] or [{"name": "all", "steps": config.steps}]
        fixed = {f.name for f in fields(config) if is_dataclass(getattr(config, f.name))} | FIXED
        for number, phase in enumerate(given, 1):
            steps = phase.get("steps")
            if not config.phases and not steps:
                raise ConfigError("a run needs `steps`, or `phases` with steps of their own")
            if not phase.get("name") or type(steps) is not int or steps < 1:
                raise ConfigError(f"phase {number}: give it a name and a number of steps of at least 1")
            if changed := sorted(fixed & phase.keys()):
                raise ConfigError(f"phase '{phase['name']}': {', '.join(changed)} cannot change within a run")
        if len({phase["name"] for phase in given}) < len(given):
            raise ConfigError("two phases have one name: name each once")
        own = sum(phase["steps"] for phase in given)
        scale = (config.steps or own) / own
        total, first = 0, 0
        for phase in given:
            total += phase["steps"]
            end = max(first + 1, round(total * scale))
            values = {k: v for k, v in phase.items() if k not in ("name", "steps")}
            settings = configs.override(config, values | {"phases": [], "steps": end - first})
            self.phases.append(Phase(str(phase["name"]), first, end, settings))
            first = end
        self.steps = first

    def at(self, step: int) -> Phase:
        """The phase of a step."""
        return next(phase for phase in self.phases if step < phase.end or phase is self.phases[-1])

    def data(self, step: int) -> object:
        """What `make` made for the phase of a step."""
        phase = self.at(step)
        with self.lock:
            if phase.first not in self.made:
                self.made[phase.first] = self.make(phase.config)
            return self.made[phase.first]


def weighted(records: list[dict], weights: dict[str, float]) -> list[dict]:
    """Records, each as often as `weights` says of its part and language ("raw/en"), part ("raw") or language ("en"), whichever is found
    first; once when it says nothing. A weight of 0.2 keeps one record in five, chosen by a hash of its id."""

    def times(record: dict) -> int:
        part, language = record.get("part", ""), record["language"]
        keys = (f"{part}/{language}", part, language)
        weight = next((weights[key] for key in keys if key in weights), 1.0)
        share = int.from_bytes(hashlib.sha256(record["id"].encode()).digest()[:4], "big") / 2**32
        return int(weight) + (share < weight - int(weight))

    return [r for r in records for _ in range(times(r))]


OPTIMIZERS = ("adamw", "muon")  # muon: matrices by Muon, the rest by AdamW


def check_optimizer(name: str) -> None:
    """Raises ConfigError: no such optimizer."""
    if name not in OPTIMIZERS:
        raise ConfigError(f"optimizer '{name}' is unknown: use {' or '.join(OPTIMIZERS)}")


def optimizers_by_name(groups: dict[str, list[dict]], lr: float) -> dict[str, torch.optim.Optimizer]:
    """Optimizers of parameter groups under "adamw" and "muon" (Muon: kellerjordan.github.io/posts/muon), empty groups left out.

    Muon's steps are scaled to the size that AdamW's have (arXiv 2502.16982), so that one rate fits both.
    """
    groups = {name: [g for g in own if g["params"]] for name, own in groups.items()}
    result: dict[str, torch.optim.Optimizer] = {
        "adamw": torch.optim.AdamW(groups["adamw"], lr=lr, betas=(0.9, 0.98))
    }
    if groups.get("muon"):
        result["muon"] = torch.optim.Muon(groups["muon"], lr=lr, adjust_lr_fn="match_rms_adamw")
    return result


def autocast(device: torch.device | str, enabled: bool = True):
    """bf16 autocast on CPU and CUDA: on AVX512-bf16 CPUs matrix products run 3-4x faster than in fp32."""
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=enabled)


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Parameters in all and those that learn."""
    return {
        "total": sum(p.numel() for p in model.parameters()),
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }


class JsonlLog:
    """One JSON object a line, flushed at once; `print`s a short form too."""

    def __init__(self, path: Path, resume_step: int | None = None):
        path.parent.mkdir(parents=True, exist_ok=True)
        if resume_step is None:
            path.write_text("")
        elif path.exists():  # drop lines the killed run wrote after its last state
            whole = path.read_text().split("\n")[:-1]  # the last line may be cut
            lines = [line for line in whole if json.loads(line)["step"] <= resume_step]
            path.write_text("".join(f"{line}\n" for line in lines))
        self.file = path.open("a")
        self.started = time.time()

    def write(self, step: int, **values: float | str) -> None:
        row = {"step": step, **values, "seconds": round(time.time() - self.started, 2)}
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        print(
            "  ".join(f"{k} {v:.5g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()),
            flush=True,
        )


class Run:
    """A run while it learns: where it started, its log, its clock, and what is due after a step.

    Attributes:
        start: steps done by earlier processes.
        writes: whether this process writes log and states: one of many does.

    Args:
        state: what `load_state` returned.
    """

    def __init__(self, out: Path, state: dict | None, writes: bool = True):
        self.out, self.writes, self.began = Path(out), writes, time.time()
        self.start, self.before = (state["step"], state["seconds"]) if state else (0, 0.0)
        self.log = JsonlLog(self.out / "log.jsonl", self.start if state else None) if writes else None

    @property
    def here(self) -> float:
        """Seconds since this process began, never 0."""
        return max(1e-9, time.time() - self.began)

    @property
    def seconds(self) -> float:
        """Seconds of training in all, with those before a stop."""
        return self.before + self.here

    def due(self, done: int, every: int, end: int) -> bool:
        """Whether after `done` steps it is time for what happens every so many steps and at the end of a phase."""
        return done % every == 0 or done == end

    def say(self, *lines: str) -> None:
        """Print, in the process that writes."""
        if self.writes:
            print(*lines, sep="\n", flush=True)

    def write(self, done: int, **values: float | str) -> None:
        """A line of the log, in the process that writes; floats with seven digits."""
        if self.writes:
            self.log.write(
                done, **{k: float(f"{v:.7g}") if type(v) is float else v for k, v in values.items()}
            )

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer | dict, done: int) -> None:
        """The state after `done` steps, in the process that writes."""
        if self.writes:
            save_state(self.out, model, optimizer, done, {"seconds": self.seconds})


def check_finite(loss: torch.Tensor, step: int) -> None:
    """Stop a diverged run before it overwrites a good state."""
    if not torch.isfinite(loss):
        raise UserError(
            f"loss is {loss.item()} at step {step}: lower the learning rate, then start again (the last state is kept)"
        )


def atomic_folder(target: Path, write) -> None:
    """Call `write(folder)` on a temporary folder, then rename it to `target`.

    Raises:
        CheckpointError: the disk is full or not writable; `target` is unchanged.
    """
    target = Path(target)
    temporary = target.with_name(target.name + ".tmp")
    old = target.with_name(target.name + ".old")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        write(temporary)
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            target.rename(old)
        temporary.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists() and not target.exists():
            old.rename(target)
        raise CheckpointError(
            f"could not write {target.name}: {error}; free disk space or choose another --out"
        ) from error


def save_state(
    out: Path, model: nn.Module, optimizer: torch.optim.Optimizer | dict, step: int, extra: dict | None = None
) -> None:
    """Everything needed to go on as if never stopped: weights, optimiser, step, RNG.

    `optimizer` may be a dict of optimisers (a GAN has two). Data position is a function of the step (see `data.Segments`).
    """
    optimizers = optimizer if isinstance(optimizer, dict) else {"optimizer": optimizer}

    def write(folder: Path) -> None:
        save_file({k: v.contiguous() for k, v in unique_tensors(model).items()}, folder / "model.safetensors")
        torch.save(
            {k: o.state_dict() for k, o in optimizers.items()} | {"rng": torch.get_rng_state()},
            folder / "optimizer.pt",
        )
        (folder / "meta.json").write_text(json.dumps({"step": step, **(extra or {})}))

    atomic_folder(Path(out) / "state", write)


def claim(out: Path, config: object) -> None:
    """Note the settings of a run in its folder; call it before the first step.

    Raises:
        CheckpointError: the folder holds an unfinished or finished run of other settings. How long a run is and how often it is looked
            at may change.
    """
    out, free = Path(out), ("steps", "eval_items", "dev_items")
    path, settings = out / "settings.json", json.loads(json.dumps(asdict(config)))
    if (out / "state").is_dir() and path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        keys = [
            k
            for k in settings
            if k not in free and not k.endswith("_every") and before.get(k, settings[k]) != settings[k]
        ]
        if keys:
            raise CheckpointError(
                f"{out} holds a run with another {', '.join(keys)}: name another --out, or delete that folder"
            )
    out.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def load_state(out: Path, model: nn.Module, optimizer: torch.optim.Optimizer | dict) -> dict | None:
    """Restore what `save_state` wrote; None when there is nothing to resume.

    Raises:
        CheckpointError: the state is truncated or of another model.
    """
    folder = Path(out) / "state"
    if not (folder / "meta.json").exists():
        old = Path(out) / "state.old"  # killed between the two renames
        if not (old / "meta.json").exists():
            return None
        old.rename(folder)
    optimizers = optimizer if isinstance(optimizer, dict) else {"optimizer": optimizer}
    try:
        load_weights(model, folder / "model.safetensors")
        state = torch.load(folder / "optimizer.pt", weights_only=True)
        for name, item in optimizers.items():
            item.load_state_dict(state[name])
        torch.set_rng_state(state["rng"])
        return json.loads((folder / "meta.json").read_text())
    except (OSError, KeyError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        if isinstance(error, CheckpointError):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"cannot resume from {folder}: {reason}; delete the folder to start again"
        ) from error


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """A file of `omnilib.train.encode`: {record id: codes, vector or mel}.

    Raises:
        DataError: it is missing or damaged.
    """
    try:
        return load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"cannot read {path} ({error}): make it with `python -m omnilib.train.encode`"
        ) from None


def made_by(path: Path) -> str:
    """sha256 of the weights that made a file of `omnilib.train.encode` (of tokenizer, speaker and flow for mels); "" when it is silent.

    Raises:
        DataError: it is missing or damaged.
    """
    try:
        with safe_open(str(path), "pt") as file:
            return (file.metadata() or {}).get("model_sha256", "")
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"cannot read {path} ({error}): make it with `python -m omnilib.train.encode`"
        ) from None


def check_tokenizer(path: Path, folder: Path) -> None:
    """Refuse codes (or mels made from codes) of another speech tokenizer than the one in `folder`.

    Raises:
        DataError: they are of another tokenizer, or damaged. CheckpointError: there is no such tokenizer.
    """
    weights = Path(folder) / "model.safetensors"
    if not weights.is_file():
        raise CheckpointError(f"no tokenizer {weights}: train it first (see `make retrain`)")
    if (hashes := made_by(path)) and sha256(weights) not in hashes.split():
        raise DataError(
            f"{path} holds codes of another tokenizer than {folder}: make it again with `python -m omnilib.train.encode`"
        )


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * model (arXiv 1803.05407)."""
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


def export_model(folder: Path, model: nn.Module, config: object, meta: dict, form: str = "float32") -> None:
    """Write model.safetensors + config.yaml + meta.json, what is kept in `checkpoints/`; `form` is one of `storage.FORMS`."""

    def write(temporary: Path) -> None:
        save_file(storage.pack(unique_tensors(model), form), temporary / "model.safetensors")
        if is_dataclass(config):
            configs.save(config, temporary / "config.yaml")
        (temporary / "meta.json").write_text(json.dumps(meta, indent=1, sort_keys=True) + "\n")

    folder = Path(folder)
    temporary = folder / "export"
    atomic_folder(temporary, write)
    for item in sorted(temporary.iterdir()):
        os.replace(item, folder / item.name)
    temporary.rmdir()


def run_meta(config: object, step: int, seconds: float, **more) -> dict:
    """The provenance each exported checkpoint carries: resolved config, steps, wall time, what it was trained on."""
    return {
        "config": asdict(config) if is_dataclass(config) else config,
        "step": step,
        "train_seconds": round(seconds, 1),
        **more,
    }


def export_pretrained(
    folder: Path,
    model,
    tokenizer,
    config: object,
    meta: dict,
    weights: dict | None = None,
    form: str = "bfloat16",
) -> None:
    """Write a transformers model with its tokenizer in the published layout, plus config.yaml and meta.json.

    Weights (the model's own unless given) are stored in bfloat16, as published; in eight bits only our own classes read them.
    """
    folder = Path(folder)
    weights = {
        k: v for k, v in (weights or model.state_dict()).items() if k not in model.all_tied_weights_keys
    }

    def write(temporary: Path) -> None:
        model.save_pretrained(temporary, state_dict=storage.pack(weights, "bfloat16"))
        if form != "bfloat16":
            save_file(storage.pack(weights, form), temporary / "model.safetensors", {"format": "pt"})
        save_tokenizer(tokenizer, temporary)
        configs.save(config, temporary / "config.yaml")
        (temporary / "meta.json").write_text(json.dumps(meta, indent=1, sort_keys=True) + "\n")

    atomic_folder(folder / "export", write)
    for item in sorted((folder / "export").iterdir()):
        os.replace(item, folder / item.name)
    (folder / "export").rmdir()
