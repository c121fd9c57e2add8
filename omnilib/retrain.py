"""Run the stage graph of dvc.yaml; what trains the codec and what trains the mouth at the same time.

    python -m omnilib.retrain --force      # what `make retrain` calls: everything anew
    python -m omnilib.retrain              # after a stop: what is not done yet
    python -m omnilib.retrain --code       # after a change of imports: name the code of each stage in dvc.yaml anew

DVC runs one stage after the other, and a stage of a small model gains little from a second core. So after what both need (corpus, speech
tokenizer) two lanes run side by side, each with half of the cores; then the rest (evaluation, reports). DVC locks the files of a stage
while it runs; asked for single stages, in order, neither lane touches what the other one writes. A lane that fails lets the other one
end. Arguments are handed to `dvc repro`.
"""

import os
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import yaml

from omnilib.errors import in_one_line
from omnilib.paths import ROOT

LANES = {
    "codec": ("hift", "speakers"),
    "mouth": ("speechlm",),
}  # last stages; what they alone need goes with them


def graph() -> dict[str, dict]:
    """The stages of dvc.yaml."""
    return yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]


BY_HAND = ("reports",)  # runs notebooks: pages and chapters, not modules
STEPS = ("data_prep.curate",)  # programs that import the curation steps by the names in a recipe


def programs(stage: dict) -> list[str]:
    """Modules that a stage starts: "python -m a ... && python -m b ..." -> [a, b]."""
    words = shlex.split(stage["cmd"])
    return [words[i + 1] for i, word in enumerate(words) if word == "-m"]


def code(stage: dict) -> list[str]:
    """Files of ours that a stage runs: all that its programs import, however deep, its config and its recipe."""
    from omnilib.report import sources

    names = programs(stage)
    steps = sources.STEPS if set(names) & set(STEPS) else ()
    ours, _ = sources.closure(f"import {name}" for name in (*names, *steps))
    files = {sources.module_file(name).relative_to(ROOT).as_posix() for name in ours}
    words = shlex.split(stage["cmd"])
    for flag, folder in (("--config", "omnilib/configs"), ("--recipe", "data_prep/recipes")):
        files |= {f"{folder}/{words[i + 1]}.yaml" for i, word in enumerate(words) if word == flag}
    return sorted(files - {"omnilib/__init__.py", "data_prep/__init__.py"})  # they only pass names on


def data(stage: dict) -> list[str]:
    """Dependencies of a stage that are no code: what other stages write, notebooks."""
    made = ("data_prep/frozen/", "data_prep/frozen_brain/")
    program = lambda d: d.startswith(("omnilib/", "data_prep/")) and not d.startswith(made)  # noqa: E731
    return [dep for dep in stage.get("deps", []) if not program(dep)]


def with_code(text: str) -> str:
    """dvc.yaml with the code of each stage that trains or measures named anew."""
    stages, lines, name, skip = yaml.safe_load(text)["stages"], [], None, False
    for line in text.splitlines():
        if found := re.fullmatch(r"  (\w+):.*", line):
            name = found.group(1)
        if re.match(r"    deps:", line) and name not in BY_HAND:
            lines += ["    deps:", *(f"      - {dep}" for dep in (*data(stages[name]), *code(stages[name])))]
            skip = True
        elif skip and line.startswith("      - "):
            continue
        else:
            skip = False
            lines.append(line)
    return "\n".join(lines) + "\n"


def needs(stages: dict[str, dict]) -> dict[str, set[str]]:
    """{stage: those that write one of its dependencies, or something within it}."""
    written = {}
    for name, stage in stages.items():
        for entry in stage.get("outs", []) + stage.get("metrics", []):
            written[entry if isinstance(entry, str) else next(iter(entry))] = name
    inside = lambda path, folder: path == folder or path.startswith(f"{folder}/")  # noqa: E731
    return {
        name: {
            owner
            for dep in stage.get("deps", [])
            for path, owner in written.items()
            if inside(dep, path) or inside(path, dep)
        }
        for name, stage in stages.items()
    }


def plan(stages: dict[str, dict]) -> tuple[list[str], dict[str, list[str]], list[str]]:
    """Stages that come first, those of each lane, and the rest; each list in an order that respects the graph."""
    before, order = needs(stages), []

    def visit(name: str, found: list[str]) -> list[str]:
        if name not in found:
            for other in sorted(before[name]):
                visit(other, found)
            found.append(name)
        return found

    for name in stages:
        visit(name, order)
    wanted = {
        lane: {n for end in ends if end in stages for n in visit(end, [])} for lane, ends in LANES.items()
    }
    shared = set.intersection(*wanted.values())
    lanes = {lane: [n for n in order if n in names - shared] for lane, names in wanted.items()}
    return (
        [n for n in order if n in shared],
        lanes,
        [n for n in order if n not in set.union(*wanted.values())],
    )


def wall_seconds(seconds: dict[str, float]) -> float:
    """What stages of these seconds take when they run as planned: those of a lane beside those of the other."""
    lanes = [sum(seconds.get(name, 0.0) for name in names) for names in plan(graph())[1].values()]
    return sum(seconds.values()) - sum(lanes) + max(lanes)


def threads() -> int:
    """Threads of a stage that runs in a lane."""
    return max(1, (os.cpu_count() or 1) // len(LANES))


def repro(names: list[str], flags: list[str], environment: dict[str, str]) -> int:
    """`dvc repro` of single stages; its exit status."""
    command = [sys.executable, "-m", "dvc", "repro", "--single-item", *flags, *names]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment).returncode


def main(flags: list[str] | None = None) -> int:
    flags = sys.argv[1:] if flags is None else flags
    if {"-h", "--help"} & set(flags):
        print(__doc__)
        return 0
    if flags == ["--code"]:
        path = ROOT / "dvc.yaml"
        path.write_text(with_code(path.read_text(encoding="utf-8")), encoding="utf-8")
        return 0
    first, lanes, rest = plan(graph())
    if repro(first, flags, {}):
        return 1
    with ThreadPoolExecutor(len(lanes)) as pool:
        codes = pool.map(
            lambda names: repro(names, flags, {"OMP_NUM_THREADS": str(threads())}), lanes.values()
        )
    if failed := [lane for lane, code in zip(lanes, codes, strict=True) if code]:
        print(
            f"error: {' and '.join(failed)} did not end (see above); go on with: make retrain DVC_FLAGS=",
            file=sys.stderr,
        )
        return 1
    return 1 if repro(rest, flags, {}) else 0


if __name__ == "__main__":
    with in_one_line():
        raise SystemExit(main())
