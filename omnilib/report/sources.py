"""Is a committed figure out of date? What stands behind each result, as hashes, written when it was measured.

    reports/<scale>/<result>/sources.json     {"files": {path: hash}, "packages": {name: version}, "accepted": [...]}

Behind a result stand the modules that its program imports (all of ours, however deep, presentation left out), the frozen data,
the configs and checkpoints it reads, and the locked versions of the packages those modules import. Comments, docstrings and blank
lines do not count. `omni report --check` names what has changed since. A figure that is kept nevertheless, because the change cannot move
it or because measuring it again takes hours, is accepted by name with a reason, which is printed on the front page:

    omni report --check
    omni report --accept eval_all --why "only error messages changed; omni verify is exact"
"""

import ast
import hashlib
import io
import json
import re
import tokenize
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import packages_distributions
from pathlib import Path

from omnilib.errors import UserError
from omnilib.paths import REPORTS, ROOT

PRESENTATION = ("omnilib.report", "omnilib.plots", "omnilib.provenance", "omnilib.environment", "omnilib.cli", "omnilib.errors",
                "omnilib.paths", "omnilib.eval.results", "omnilib.output", "omnilib.diagrams")  # fmt: skip
LAZY = (
    "omnilib",
    "omnilib.smoke",
    "omnilib.weights",
)  # only their outermost imports count: type hints of the public names, smoke training and the brain are not behind a nano result
SPOKEN = ("text", "tokenizer", "speaker", "flow", "hift", "speechlm", "voices", "decode.yaml", "codec.yaml")
SETTINGS = {"speechlm": "decode.yaml", "flow": "codec.yaml"}  # beside the parts whose use they set
CHECKPOINT_FILES = ("model.safetensors", "config.yaml", "config.json", "tokenizer.json", "voices.json")
FROZEN = ("data_prep/frozen",)  # manifest, texts and every recording
STEPS = tuple(
    f"data_prep.steps.{p.stem}" for p in sorted((ROOT / "data_prep" / "steps").glob("[a-z]*.py"))
)  # named in recipes, not imported
PROGRAMS: dict[
    str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]
] = {  # result -> programs, data, checkpoints
    "eval": (("omnilib.eval.nano",), FROZEN, SPOKEN),
    "eval_all": (("omnilib.eval.nano", "omnilib.eval.all_lines"), (), SPOKEN),
    "brain": (
        ("omnilib.eval.brain",),
        ("data_prep/frozen_brain", *FROZEN),
        ("encoders", "brain"),
    ),
    "curation": (
        ("data_prep.wild", "data_prep.curate", "data_prep.score", *STEPS),
        ("data_prep/recipes/wild.yaml",),
        (),
    ),
    "curation_gain": (
        ("omnilib.eval.curation_gain",),
        ("omnilib/configs/ablations/stage2_grid.yaml",),
        ("text", "tokenizer"),
    ),
    "ends": (("omnilib.eval.ends",), (), SPOKEN),
    "long10": (("omnilib.eval.longform",), FROZEN, SPOKEN),
    "long60": (("omnilib.eval.longform",), FROZEN, SPOKEN),
    "precision": (("omnilib.eval.precision",), FROZEN, SPOKEN),
    "spoken": (
        ("omnilib.bench.spoken",),
        ("omnilib/eval/spoken_forms.jsonl", "omnilib/eval/spoken_forms_fresh.jsonl"),
        (),
    ),
    "stage2_grid": (
        ("omnilib.eval.stage2_grid",),
        ("omnilib/configs/ablations/stage2_grid.yaml",),
        ("text", "tokenizer"),
    ),
    "talk": (
        ("omnilib.eval.talk",),
        ("data_prep/frozen_brain", *FROZEN),
        ("encoders", "brain", *SPOKEN),
    ),
}


def module_file(name: str) -> Path | None:
    """File of one of our modules, or None."""
    place = ROOT / name.replace(".", "/")
    return next((p for p in (place.with_suffix(".py"), place / "__init__.py") if p.is_file()), None)


@lru_cache(maxsize=1024)
def imports_of(source: str, outermost: bool = False) -> frozenset[str]:
    """Names of all modules that a source imports, in functions too unless `outermost`; `from a import b` gives a and a.b."""
    found = set()
    for node in ast.parse(source).body if outermost else ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def closure(sources: Iterable[str]) -> tuple[set[str], set[str]]:
    """(our modules, foreign top-level packages) that the sources need."""
    ours, foreign, waiting = set(), set(), [name for source in sources for name in imports_of(source)]
    while waiting:
        name = waiting.pop()
        if not name.startswith(("omnilib", "data_prep")):
            foreign.add(name.split(".")[0])
        elif name not in ours and not name.startswith(PRESENTATION) and (path := module_file(name)):
            ours.add(name)
            waiting += imports_of(path.read_text(encoding="utf-8"), outermost=name in LAZY)
    return ours, foreign


@lru_cache(maxsize=1024)
def code_hash(source: str) -> str:
    """Hash of what a Python source does: comments, docstrings and blank lines left out."""
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", None)
        if (
            isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
            and body
            and ast.get_docstring(node, clean=False) is not None
        ):
            for row in range(body[0].lineno - 1, body[0].end_lineno):
                lines[row] = ""
    kept = "\n".join(line.rstrip() for line in lines if line.strip())
    return hashlib.sha256(kept.encode()).hexdigest()[:16]


def file_hash(path: Path) -> str:
    """Hash of a file, or of all files of a folder with their names."""
    if path.is_dir():
        parts = (
            f"{p.name} {file_hash(p)}\n"
            for p in sorted(path.rglob("*"))
            if p.is_file() and p.name != "heard.json"
        )
        return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]
    if path.suffix == ".py":
        return code_hash(path.read_text(encoding="utf-8"))
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def notebook_code(path: Path) -> str:
    """The code cells of a notebook as one source; magics and shell lines left out."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = ("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    return "\n".join(
        line for cell in code for line in cell.splitlines() if not line.lstrip().startswith(("%", "!"))
    )


def needs_of(path: Path) -> tuple[str, ...]:
    """Trained parts that a notebook declares to need."""
    return tuple(json.loads(path.read_text(encoding="utf-8"))["metadata"].get("needs", ()))


def pins(packages: set[str]) -> dict[str, str]:
    """Locked versions of the packages that hold these top-level modules."""
    known = packages_distributions()
    wanted = {re.sub(r"[-_.]+", "-", d).lower() for name in packages for d in known.get(name, [])}
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    locked = dict(
        line.split(" ")[0].split("==", 1) for line in lines if "==" in line and not line.startswith("#")
    )
    return {n: v for n, v in sorted(locked.items()) if re.sub(r"[-_.]+", "-", n).lower() in wanted}


def behind(name: str, scale: str = "nano") -> dict:
    """What stands behind a result now.

    Args:
        name: a folder of reports/<scale>: a program's (see PROGRAMS) or a notebook's.

    Raises:
        UserError: no such program or notebook.
    """
    notebook = ROOT / "notebooks" / f"{name}.ipynb"
    if name in PROGRAMS:
        programs, data, parts = PROGRAMS[name]
        sources, extra = [f"import {p}" for p in programs], [ROOT / d for d in data]
    elif notebook.is_file():
        sources, extra, parts = (
            [notebook_code(notebook)],
            [notebook, *(ROOT / d for d in FROZEN)],
            needs_of(notebook) or SPOKEN,
        )
    else:
        raise UserError(
            f"no program or notebook makes a result '{name}': choose from {', '.join(PROGRAMS)} or a notebook's name"
        )
    ours, foreign = closure(sources)
    files = [module_file(m) for m in ours] + [p for p in extra if p.suffix != ".ipynb"]
    folder = ROOT / "checkpoints" / scale
    for part in (*parts, *(SETTINGS[p] for p in parts if p in SETTINGS)):
        place = folder / part
        files += [place] if place.is_file() else sorted(p for p in place.rglob("*") if committed(p))
    hashes = {p.relative_to(ROOT).as_posix(): file_hash(p) for p in sorted(set(files)) if p.exists()}
    if notebook.is_file():
        hashes[f"notebooks/{name}.ipynb"] = code_hash(notebook_code(notebook))
    return {"files": hashes, "packages": pins(foreign)}


def committed(path: Path) -> bool:
    """Whether a file of a checkpoint is one that a clone has: no state to go on from, no weights of a stage on the way."""
    on_the_way = path.name == "model.safetensors" and path.parent.name in ("brain_stage1", "brain_eyes")
    return path.name in CHECKPOINT_FILES and path.parent.name != "state" and not on_the_way


def record(folder: Path, name: str, scale: str = "nano") -> None:
    """Write `sources.json` beside a result that has just been measured."""
    from omnilib.provenance import write_json

    write_json(folder / "sources.json", {**behind(name, scale), "accepted": []})


def changes(known: dict, now: dict) -> list[str]:
    """One phrase for each difference."""
    found = []
    for kind, verb in (("files", ""), ("packages", "package ")):
        for name in sorted(known[kind].keys() | now[kind].keys()):
            old, new = known[kind].get(name), now[kind].get(name)
            if old != new:
                found.append(
                    f"{verb}{name} "
                    + ("is new" if old is None else "is gone" if new is None else "has changed")
                )
    return found


def latest(path: Path) -> dict:
    """The state that a result was last measured or accepted at.

    Raises:
        UserError: no such file, or a damaged one.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return {
            kind: stored[kind] | {k: v for a in stored["accepted"] for k, v in a[kind].items()}
            for kind in ("files", "packages")
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"cannot read {path.parent.name}/sources.json ({error}): measure that result again"
        ) from None


def check(reports: Path = REPORTS, scale: str = "nano") -> dict[str, list[str]]:
    """Results whose sources have changed: {result: [what changed, ...]}; {} when all committed figures are up to date."""
    stale = {}
    for path in sorted((reports / scale).glob("*/metrics.json")):
        name = path.parent.name
        if name not in PROGRAMS and not (ROOT / "notebooks" / f"{name}.ipynb").is_file():
            stale[name] = ["no program or notebook of that name is left"]
        elif not path.with_name("sources.json").is_file():
            stale[name] = ["nobody noted what it was measured with"]
        elif found := changes(strip(latest(path.with_name("sources.json"))), behind(name, scale)):
            stale[name] = found
    return stale


def notes(reports: Path = REPORTS, scale: str = "nano") -> list[tuple[str, str, str]]:
    """(result, date, reason) of every result that is kept although its code or data changed; what was said twice, once."""
    found = []
    for path in sorted((reports / scale).glob("*/sources.json")):
        stored = json.loads(path.read_text(encoding="utf-8"))
        found += [(path.parent.name, entry["date"], entry["why"]) for entry in stored.get("accepted", [])]
    return list(dict.fromkeys(found))


def strip(state: dict) -> dict:
    """Sources without those that a later acceptance lists as removed."""
    return {kind: {k: v for k, v in entries.items() if v is not None} for kind, entries in state.items()}


def accept(name: str, why: str, reports: Path = REPORTS, scale: str = "nano") -> list[str]:
    """Keep a result although its code or data changed, with the reason; returns the changes.

    Raises:
        UserError: no such result, nothing has changed, or no reason given.
    """
    from omnilib.provenance import write_json

    path = reports / scale / name / "sources.json"
    known, now = latest(path), behind(name, scale)
    found = changes(strip(known), now)
    if not found:
        raise UserError(f"nothing behind '{name}' has changed: there is nothing to accept")
    if len(why.split()) < 4:
        raise UserError("--why needs a sentence: what changed, and how you know that the figure stays")
    stored = json.loads(path.read_text(encoding="utf-8"))
    moved = {
        kind: {
            k: now[kind].get(k)
            for k in known[kind].keys() | now[kind].keys()
            if known[kind].get(k) != now[kind].get(k)
        }
        for kind in ("files", "packages")
    }
    stored["accepted"].append({"date": datetime.now(UTC).strftime("%Y-%m-%d"), "why": why, **moved})
    write_json(path, stored)
    return found
