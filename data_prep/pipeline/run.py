"""A run of a recipe over a manifest: do what is not done yet, step by step.

A step is done when its done.json names the same input, parameters and code. Consecutive "map" steps run as
one group, so that audio is decoded once; see the package's docstring for the folder a run makes.
"""

import json
import os
import shutil
import time
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

from data_prep.corpora import MAX_BAD
from data_prep.pipeline.engine_local import local_engine
from data_prep.pipeline.files import digest, file_digest, read_json
from data_prep.pipeline.funnel import conclude
from data_prep.pipeline.join import join, part_lines
from data_prep.pipeline.manifest import check_input
from data_prep.pipeline.parts import Engine, Job, Part, cut
from data_prep.pipeline.recipe import load_recipe
from data_prep.pipeline.step import Step
from omnilib.errors import ConfigError, DataError


def is_done(folder: Path, wanted: dict) -> bool:
    """Has this step finished with the same input, parameters and code?

    Raises:
        DataError: it has, but its manifest is no longer the one it wrote.
    """
    found = read_json(folder / "done.json")
    if found is None or any(found.get(k) != v for k, v in wanted.items()):
        return False
    for name, key in (("manifest.jsonl", "manifest"), ("dropped.jsonl", "dropped")):
        if not (folder / name).is_file() or file_digest(folder / name) != found[key]:
            raise DataError(
                f"{folder / name} was changed after it was written: restore it, or delete {folder} to do the step again"
            )
    return True


def curate(
    manifest: Path,
    recipe: str | Path,
    out: Path,
    engine: Engine | None = None,
    workers: int | None = None,
    max_bad: float = MAX_BAD,
) -> dict:
    """Run a recipe over a manifest, or continue a run; returns the funnel (see `funnel`).

    Lines of the manifest that are no usable record are dropped with a reason, and counted in the funnel;
    more than a share of `max_bad` stops the run before its first step.

    Args:
        engine: what does the parts; processes of this machine when None.
        workers: of those processes; all cores when None.

    Raises:
        UserError: bad recipe, input, folder or disk, in one line; whatever was finished stays and is not done again.
    """
    manifest, out = Path(manifest), Path(out)
    steps, part_seconds = load_recipe(recipe)
    if not 0 <= max_bad <= 1:
        raise ConfigError(f"--max-bad is {max_bad}: give a share from 0 to 1")
    if workers is not None and workers < 1:
        raise ConfigError(f"{workers} workers: give at least 1")
    if manifest.parent.resolve() == out.resolve():
        raise ConfigError(f"--out {out} is the folder of the input, which stays as it is: choose another")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with FileLock(out / ".lock", timeout=0):
            shutil.rmtree(out / "tmp", ignore_errors=True)
            final, written = out / "manifest.jsonl", read_json(out / "funnel.json")
            if written and final.is_file() and file_digest(final) != written["manifest_sha256"]:
                raise DataError(
                    f"{final} was changed after it was written: give it another name, then run again"
                )
            engine = engine or partial(local_engine, workers=workers or os.cpu_count())
            last = run_steps(manifest, steps, part_seconds, out, engine, max_bad)
            return conclude(out, last, manifest.parent)
    except Timeout:
        raise DataError(f"another run is working in {out}: wait for it or choose another --out") from None
    except OSError as error:
        where = error.filename or out
        raise DataError(
            f"cannot read or write {where} ({error.strerror or error}): put that right and run again; nothing finished is lost"
        ) from None


def run_steps(
    manifest: Path, steps: list[Step], part_seconds: float, out: Path, engine: Engine, max_bad: float
) -> list[Path]:
    """Do what is not done yet; returns the folders of all steps, the input's first."""
    folders = [out / "00_input"] + [out / f"{i:02d}_{s.name}" for i, s in enumerate(steps, 1)]
    source, index = take_input(manifest, folders[0], out, max_bad), 0
    while index < len(steps):
        wanted = [{"step": s.name, "parameters": s.parameters(), "code": s.code()} for s in steps]
        if is_done(folders[index + 1], wanted[index] | {"input": source}):
            source = read_json(folders[index + 1] / "done.json")["manifest"]
            index += 1
            continue
        end = index + 1
        while steps[index].scope == "map" and end < len(steps) and steps[end].scope == "map":
            end += 1
        forget(out, folders[index + 1 :])
        key = digest(json.dumps([source, wanted[index:end], part_seconds], sort_keys=True).encode())[:16]
        job = Job(
            tuple(steps[index:end]),
            folders[index] / "manifest.jsonl",
            out / "work" / key,
            manifest.parent,
            out,
        )
        parts = cut(job.manifest, part_seconds if steps[index].scope == "map" else None)
        do_parts(job, parts, engine)
        source = join(out, folders[index + 1 : end + 1], part_lines(job, parts), wanted[index:end], source)
        shutil.rmtree(out / "work", ignore_errors=True)
        index = end
    return folders


def take_input(manifest: Path, folder: Path, out: Path, max_bad: float) -> str:
    """Check the input and copy its records to 00_input; returns the hash of the copy."""
    if not manifest.is_file():
        raise DataError(
            f"no manifest {manifest}: give a JSON-lines file, e.g. one that `python -m data_prep.corpora` wrote"
        )
    source = file_digest(manifest)
    if (found := read_json(folder / "done.json")) and found["input"] != source:
        raise DataError(f"{out} holds what was made of another manifest: choose another --out, or delete it")
    if not is_done(folder, {"step": "input", "input": source}):
        join(
            out,
            [folder],
            ({"step": 0, "record": r} for r in check_input(manifest, max_bad, drop=True)),
            [{"step": "input"}],
            source,
        )
    return read_json(folder / "done.json")["manifest"]


def forget(out: Path, folders: list[Path]) -> None:
    """Delete what the steps in `folders` and the whole run wrote before: it belongs to another input or
    recipe."""
    for name in ("manifest.jsonl", "dropped.jsonl", "funnel.json", "card.md"):
        (out / name).unlink(missing_ok=True)
    for folder in folders:
        for name in ("done.json", "manifest.jsonl", "dropped.jsonl"):
            (folder / name).unlink(missing_ok=True)


def do_parts(job: Job, parts: list[Part], engine: Engine) -> None:
    """Do the parts that have no result yet, with a progress bar."""
    todo = [part for part in parts if not job.result(part).exists()]
    began, hours = time.perf_counter(), 0.0
    with tqdm(
        total=len(parts),
        initial=len(parts) - len(todo),
        desc=" ".join(s.name for s in job.steps),
        unit="part",
    ) as bar:
        for got in engine(job, todo) if todo else ():
            hours += got
            bar.update()
            bar.set_postfix_str(
                f"{hours:.2f} h, {3600 * hours / (time.perf_counter() - began):.0f} audio-h/h"
            )
    if missing := sum(not job.result(part).exists() for part in todo):
        raise DataError(f"{missing} of {len(todo)} parts were not finished: run again to do them")
