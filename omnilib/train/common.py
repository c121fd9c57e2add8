"""What every training script shares: seeds, learning rate, log, atomic checkpoints, exact resume.

The loops themselves stay in the scripts. A run folder holds
    log.jsonl          one line a logged step
    state/             newest resumable state: model.safetensors, optimizer.pt, meta.json
    settings.json      the resolved config of the run in state/
    model.safetensors, config.yaml, meta.json      the exported result
State is written to a temporary name and renamed, so a killed process or a full disk leaves the previous one whole.
"""

import argparse
import json
import math
import os
import pickle
import shutil
import time
from dataclasses import asdict, is_dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from omnilib import config as configs
from omnilib import storage
from omnilib.errors import CheckpointError, UserError
from omnilib.seed import seed_everything as seed_everything  # scripts import it from here
from omnilib.storage import load_weights, unique_tensors
from omnilib.text import save_tokenizer


def parse_args(doc: str, argv: list[str] | None = None) -> argparse.Namespace:
    """The flags every training script takes."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="name in omnilib/configs, or a YAML file")
    parser.add_argument("--set", dest="overrides", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument(
        "--out", required=True, type=Path, help="run folder; an unfinished run in it is continued"
    )
    return parser.parse_args(argv)


def lr_at(step: int, total: int, peak: float, warmup: int, floor: float = 0.05) -> float:
    """Linear warm-up to `peak`, then cosine down to `floor * peak` at `total`.

    Source: SGDR, arXiv 1608.03983, eq. 5.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def repeated(records: list[dict], repeat: dict[str, int]) -> list[dict]:
    """Records, each as often as `repeat` says: the first of its keys that fits the speaker (a name, or a pattern such as "slt_1[1-4]?"),
    or else the record's language; once when it says nothing."""
    speakers = {r["speaker"] for r in records}
    times = {s: next((count for key, count in repeat.items() if fnmatchcase(s, key)), None) for s in speakers}
    count = lambda r: repeat.get(r["language"], 1) if times[r["speaker"]] is None else times[r["speaker"]]  # noqa: E731
    return [r for r in records for _ in range(count(r))]


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

    def write(self, step: int, **values: float) -> None:
        row = {"step": step, **values, "seconds": round(time.time() - self.started, 2)}
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        print(
            "  ".join(f"{k} {v:.5g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()),
            flush=True,
        )


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
    out, free = Path(out), ("steps", "stop", "eval_items", "dev_items")
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


def start_from(
    model: nn.Module, folder: Path, prefix: str = "", within: str = "", exported: str = "", grow: bool = False
) -> None:
    """Copy the weights of an earlier run whose names, beginning with `prefix`, and shapes match; the rest stays fresh.

    Args:
        folder: of the run; its `state/` is read, or else what it exported.
        within: what precedes the model's names in the state, if it holds more than the model.
        exported: what precedes the exported names in the model, if it holds more than what is exported.
        grow: smaller matrices and vectors of the earlier run are taken too, see `grown`.

    Raises:
        CheckpointError: there is no such run, or nothing of it fits.
    """
    path, result = folder / "state" / "model.safetensors", folder / "model.safetensors"
    if path.is_file():
        saved = {k.removeprefix(within): v for k, v in load_file(str(path)).items() if k.startswith(within)}
    elif result.is_file():
        saved = {exported + k: v for k, v in storage.read(result).items()}
    else:
        raise CheckpointError(
            f"no earlier run {path}: train it first (see `make retrain`) or leave `init` empty"
        )
    own = model.state_dict()
    saved = {k: v for k, v in saved.items() if k.startswith(prefix) and k in own}
    if grow:
        saved = {k: grown(v, own[k]) for k, v in saved.items()}
    found = {k: v for k, v in saved.items() if own[k].shape == v.shape}
    if not found:
        raise CheckpointError(
            f"nothing of {folder} fits {type(model).__name__}: name a run of the same module, or leave `init` empty"
        )
    model.load_state_dict(found, strict=False)
    print(f"started with {len(found)} of {len(own)} tensors from {folder.name}")


def grown(old: torch.Tensor, fresh: torch.Tensor) -> torch.Tensor:
    """`old` in the first rows and columns of a larger `fresh` matrix or vector: new rows (outputs) stay fresh, new columns (inputs)
    are zero, so that a wider inner layer of a feed-forward pair changes nothing at first (Net2Net, arXiv 1511.05641). Others: `old`."""
    if (
        old.shape == fresh.shape
        or old.dim() != fresh.dim()
        or old.dim() > 2
        or any(a > b for a, b in zip(old.shape, fresh.shape, strict=True))
    ):
        return old
    result = fresh.clone()
    if old.dim() == 2:
        result[: len(old)] = 0.0
        result[: len(old), : old.shape[1]] = old
    else:
        result[: len(old)] = old
    return result


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
