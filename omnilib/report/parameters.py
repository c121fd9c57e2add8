"""Parameters of a notebook: its typed literals, and values for them given as text (`streams=2`, `seed=0,1,2`).

A parameter that is not text takes several values with commas; for text, repeat the name. All combinations are run.
"""

import ast
import hashlib
import itertools
import json
import re
from pathlib import Path
from typing import Any

from omnilib.errors import UserError

MANY = 64  # combinations that one command runs


def read_notebook(path: Path) -> Any:
    """A notebook file.

    Raises:
        UserError: missing, empty, not UTF-8, damaged JSON, another format, or no kernelspec.
    """
    import nbformat

    try:
        text = path.read_text(encoding="utf-8")
        if not text.strip():
            raise UserError(f"{path.name} is empty: restore it with `git checkout`")
        whole = json.loads(text)
        if (
            not isinstance(whole, dict)
            or not isinstance(whole.get("cells"), list)
            or whole.get("nbformat") != 4
        ):
            raise UserError(f"{path.name} is no notebook of format 4: open it in JupyterLab and save it")
        nbformat.validate(whole)
        node = nbformat.reads(text, as_version=4)
    except OSError as error:
        raise UserError(f"cannot read {path.name}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path.name} is not UTF-8 text: save it as UTF-8") from None
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path.name} is damaged JSON ({error.msg} in line {error.lineno}): restore it with `git checkout`"
        ) from None
    except nbformat.ValidationError as error:
        first = str(error).splitlines()[0]
        raise UserError(
            f"{path.name} is no valid notebook ({first}): open it in JupyterLab and save it"
        ) from None
    kernel = node.metadata.get("kernelspec", {})
    if not kernel.get("name"):
        raise UserError(
            f"{path.name} names no kernel (no kernelspec in its metadata): open it in JupyterLab, choose Python 3, save it"
        )
    if kernel.get("language", "python").lower() != "python":
        raise UserError(f"{path.name} is written for {kernel['language']}: only Python notebooks are run")
    return node


def read_parameters(path: Path) -> dict[str, tuple[Any, type]]:
    """{name: (default, type)} of the cell tagged `parameters`.

    Raises:
        UserError: a notebook that cannot be read, or no such cell.
    """
    cells = [c for c in read_notebook(path).cells if "parameters" in c.metadata.get("tags", [])]
    if not cells:
        raise UserError(f"{path.name} has no cell tagged `parameters`: tag the first code cell")
    try:
        lines = ast.parse(cells[0].source).body
    except SyntaxError as error:
        raise UserError(
            f"{path.name}: its parameters cell is no Python (line {error.lineno}): {error.msg}"
        ) from None
    known = {}
    for line in lines:
        target = (
            line.target
            if isinstance(line, ast.AnnAssign)
            else line.targets[0]
            if isinstance(line, ast.Assign)
            else None
        )
        if isinstance(target, ast.Name) and line.value is not None:
            try:
                value = ast.literal_eval(line.value)
            except ValueError:
                continue  # computed, no literal: it cannot be given from outside
            kinds = {"int": int, "float": float, "str": str, "bool": bool}
            kind = kinds.get(ast.unparse(line.annotation)) if isinstance(line, ast.AnnAssign) else None
            known[target.id] = (value, kind or type(value))
    if not known:
        raise UserError(f"{path.name}: its parameters cell sets no `name: type = literal`")
    return known


def parse_value(name: str, text: str, kind: type) -> Any:
    """Text as the parameter's type.

    Raises:
        UserError: it is not of that type.
    """
    try:
        if kind is str:
            return text
        if kind is bool:
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[
                text.strip().lower()
            ]
        if kind in (int, float):
            return kind(text)
        value = ast.literal_eval(text)
        if not isinstance(value, kind):
            raise ValueError
        return value
    except (ValueError, KeyError, SyntaxError):
        raise UserError(f"parameter {name}: '{text}' is no {kind.__name__}") from None


def combinations(given: list[str], notebooks: list[Path]) -> list[dict[str, Any]]:
    """Every combination of values: `["k=1,2", "seed=0"]` -> `[{"k": 1, "seed": 0}, {"k": 2, "seed": 0}]`; [] when nothing was given.

    Raises:
        UserError: no `name=value`, a name that a notebook does not have, a value of another type, or too many combinations.
    """
    values: dict[str, list] = {}
    for item in given:
        name, equals, text = item.partition("=")
        name = name.strip()
        if not equals or not name.isidentifier():
            raise UserError(f"'{item}' is no name=value: write for example -p seed=1")
        if name in ("scale", "out_dir"):
            raise UserError(
                f"parameter {name} is set by the command: use --scale; a changed run has its own folder under runs/variants"
            )
        for notebook in notebooks:
            known = read_parameters(notebook)
            if name not in known:
                have = ", ".join(sorted(known.keys() - {"scale", "out_dir"}))
                raise UserError(
                    f"{notebook.name} has no parameter {name}; it has: {have} (choose a notebook with --only)"
                )
            kind = known[name][1]
            parts = text.split(",") if kind in (int, float, bool) else [text]
            found = [parse_value(name, part, kind) for part in parts]
        values.setdefault(name, []).extend(v for v in found if v not in values.get(name, []))
    every = (
        [dict(zip(values, choice, strict=True)) for choice in itertools.product(*values.values())]
        if values
        else []
    )
    if len(every) * len(notebooks) > MANY:
        raise UserError(
            f"{len(every)} combinations for {len(notebooks)} notebooks: one command runs at most {MANY}; give fewer values"
        )
    return every


def variant_name(values: dict[str, Any]) -> str:
    """What a changed run's folder adds to the notebook's name: `@streams=2,seed=1`."""
    parts = []
    for name, value in values.items():
        plain = re.sub(r"[^\w.+-]+", "-", str(value)).strip("-")[:40]
        if plain != str(value):  # not all of the value fits a file name
            plain += "-" + hashlib.sha256(str(value).encode()).hexdigest()[:6]
        parts.append(f"{name}={plain}")
    return "@" + ",".join(parts)
