"""How many written forms are read aloud with their value, sign and unit: ours beside well-kept libraries.

    python -m omnilib.bench.spoken                                      # ours and wetext, reports/nano/spoken/
    python -m omnilib.bench.spoken --python nemo=other/bin/python       # nemo-text-processing too, from its own environment
    python -m omnilib.bench.spoken --former old_spoken.py               # an earlier spoken.py beside them

The table (`omnilib/eval/spoken_forms.jsonl`) has one form a line: language, kind, text and what may be said for it, where
`[x]` may be left out and `(a|b)` is a choice. An answer is right when its words are one of the accepted readings; case,
punctuation and hyphens do not count, nor does 幺 for 一. `omnilib/eval/spoken_forms_fresh.jsonl` was written after
the rules were finished and is never used to improve them.

Every system runs in a process of its own, so its start (imports and grammars, until the first sentence is
through) is timed alone (times are CPU seconds); nemo-text-processing builds its grammars at the first start, in a folder that is deleted afterwards.
`plain_changed` counts the frozen evaluation sentences, which hold words only, whose words a system changes.
"""

import argparse
import importlib.metadata
import importlib.util
import itertools
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist

from omnilib import options
from omnilib.errors import UserError
from omnilib.paths import ROOT

TABLES = {"table": "spoken_forms.jsonl", "fresh": "spoken_forms_fresh.jsonl"}
PACKAGES = {
    "ours": ["wetext", "kaldifst", "num2words"],
    "former": ["num2words"],
    "wetext": ["wetext", "kaldifst"],
    "nemo": ["nemo_text_processing", "pynini"],
}
VARIANTS = str.maketrans("幺〇", "一零")


# ---- scoring ---------------------------------------------------------------------------------------------------------


def words(text: str) -> str:
    """What counts of a reading: letters in lower case, one space between words, none between Han characters."""
    text = re.sub("['’]", "", unicodedata.normalize("NFKC", text).casefold()).translate(VARIANTS)
    text = " ".join("".join(c if c.isalnum() else " " for c in text).split())
    return re.sub(r" (?=[\u4e00-\u9fff])|(?<=[\u4e00-\u9fff]) ", "", text)


def readings(pattern: str) -> list[str]:
    """All readings that a pattern stands for: "two [and] (a|b)" is four."""
    parts, at = [[]], 0  # alternatives of the present group, each a list of lists of strings
    stack = []
    for token in re.findall(r"[\[\]()|]|[^\[\]()|]+", pattern):
        at += len(token)
        if token in "[(":
            stack.append((parts, token))
            parts = [[]]
        elif token == "|":
            parts.append([])
        elif token in "])":
            choices = [choice for part in parts for choice in expand(part)]
            if not stack or stack[-1][1] + token not in ("[]", "()"):
                raise ValueError(f"brackets do not match at character {at} of '{pattern}'")
            parts, _ = stack.pop()
            parts[-1].append(choices + [""] * (token == "]"))
        else:
            parts[-1].append([token])
    if stack:
        raise ValueError(f"a bracket stays open in '{pattern}'")
    return [choice for part in parts for choice in expand(part)]


def expand(part: list[list[str]]) -> list[str]:
    return ["".join(choice) for choice in itertools.product(*part)]


def right(answer: str, pattern: str) -> bool:
    return words(answer) in {words(reading) for reading in readings(pattern)}


def interval(correct: int, n: int, level: float = 0.95) -> list[float]:
    """Wilson's interval of a share."""
    z, share = NormalDist().inv_cdf(0.5 + level / 2), correct / n
    centre, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return [round((centre + s * half) / (1 + z * z / n), 4) for s in (-1, 1)]


def accuracy(hits: list[bool]) -> dict:
    return {
        "n": len(hits),
        "correct": sum(hits),
        "accuracy": round(sum(hits) / len(hits), 4),
        "interval_95": interval(sum(hits), len(hits)),
    }


# ---- systems ---------------------------------------------------------------------------------------------------------


def build(system: str, former: str | None) -> Callable[[str, str], str]:
    """A function (text, language) -> spoken form."""
    if system == "ours":
        from omnilib.spoken import clean_text

        return clean_text
    if system == "former":
        spec = importlib.util.spec_from_file_location("former_spoken", former)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.clean_text
    if system == "wetext":
        from wetext import Normalizer

        made = {language: Normalizer(lang=language, operator="tn") for language in ("en", "zh")}
    else:
        from nemo_text_processing.text_normalization.normalize import Normalizer

        cache = os.environ["SPOKEN_CACHE"]
        made = {
            k: Normalizer(input_case="cased", lang=k, cache_dir=cache, overwrite_cache=False)
            for k in ("en", "zh")
        }
    return lambda text, language: made[language].normalize(text)


def answer(system: str, former: str | None) -> None:
    """The child process: sentences from standard input, answers and times to standard output."""
    output, sys.stdout = sys.stdout, sys.stderr  # libraries may print
    lists = json.load(sys.stdin)
    start = time.process_time()
    normalise = build(system, former)
    for text, language in (("It is 5.", "en"), ("有5个。", "zh")):
        normalise(text, language)
    result = {"start_s": round(time.process_time() - start, 3), "answers": {}, "ms": {}}
    for name, items in lists.items():
        start = time.process_time()
        result["answers"][name] = [attempt(normalise, *item) for item in items]
        result["ms"][name] = round(1000 * (time.process_time() - start) / len(items), 3)
    result["versions"] = {p: importlib.metadata.version(p) for p in PACKAGES[system]}
    json.dump(result, output, ensure_ascii=False)


def attempt(normalise: Callable[[str, str], str], text: str, language: str) -> str:
    try:
        return normalise(text, language)
    except Exception as error:  # a crash of a library is an answer too: a wrong one
        return f"error {type(error).__name__}"


def ask(system: str, python: str, former: str | None, lists: dict) -> dict:
    """Answers of a system, with the first start (empty cache) and a later one."""
    command = [
        python,
        "-m",
        "omnilib.bench.spoken",
        "--answer",
        system,
        *(["--former", former] if former else []),
    ]
    with tempfile.TemporaryDirectory() as cache:
        env = os.environ | {"PYTHONPATH": str(ROOT), "SPOKEN_CACHE": cache, "PYTHONHASHSEED": "0"}
        runs = []
        for _ in range(2):
            done = subprocess.run(
                command, input=json.dumps(lists), capture_output=True, text=True, env=env, encoding="utf-8"
            )
            if done.returncode:
                last = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no message"
                raise UserError(
                    f"{system} does not run in {python}: {last}; install it there or leave it out with --systems"
                )
            runs.append(json.loads(done.stdout))
    return runs[1] | {"first_start_s": runs[0]["start_s"]}


# ---- the command -----------------------------------------------------------------------------------------------------


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def measure(
    system: str, tables: dict[str, list[dict]], plain: list[dict], python: str, former: str | None
) -> tuple[dict, dict]:
    """Figures and answers of one system."""
    lists = {
        name: [(r["text"], r["language"]) for r in rows] for name, rows in (tables | {"plain": plain}).items()
    }
    got = ask(system, python, former, lists)
    figures = {
        "versions": got["versions"],
        "first_start_s": got["first_start_s"],
        "start_s": got["start_s"],
        "ms_per_form": got["ms"][next(iter(tables))],
        "ms_per_plain_sentence": got["ms"]["plain"],
        "plain_changed": sum(
            words(a) != words(r["text"]) for a, r in zip(got["answers"]["plain"], plain, strict=True)
        ),
        "plain_n": len(plain),
    }
    for name, rows in tables.items():
        hits = [right(a, r["spoken"]) for a, r in zip(got["answers"][name], rows, strict=True)]
        figures[name] = accuracy(hits)
        for field in ("language", "kind"):
            groups = {
                r[field]: [h for h, other in zip(hits, rows, strict=True) if other[field] == r[field]]
                for r in rows
            }
            figures[name][f"by_{field}"] = {
                group: f"{sum(found)}/{len(found)}" if field == "kind" else accuracy(found)
                for group, found in groups.items()
            }
    return figures, {name: got["answers"][name] for name in tables}


def main(arguments: list[str] | None = None) -> None:
    parser = options.Parser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--systems", default="ours,wetext", help="comma-separated: ours, wetext, nemo, former"
    )
    parser.add_argument(
        "--python",
        action="append",
        default=[],
        metavar="SYSTEM=PYTHON",
        help="run a system in another environment",
    )
    parser.add_argument("--former", metavar="FILE", help="an earlier spoken.py, measured as 'former'")
    parser.add_argument("--tables", default="table,fresh", help="comma-separated: table, fresh")
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "nano" / "spoken")
    parser.add_argument("--answer", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.answer:
        return answer(args.answer, args.former)
    pythons = dict(pair.split("=", 1) for pair in args.python)
    systems = list(dict.fromkeys([*args.systems.split(","), *pythons, *(["former"] if args.former else [])]))
    if unknown := set(systems) - set(PACKAGES):
        raise UserError(f"unknown system {', '.join(sorted(unknown))}: use some of {', '.join(PACKAGES)}")
    tables = {name: read(ROOT / "omnilib" / "eval" / TABLES[name]) for name in args.tables.split(",")}
    frozen = ROOT / "data_prep" / "frozen"
    plain = [r for name in ("manifest", "longform") for r in read(frozen / f"{name}.jsonl")]
    figures, answers = {}, {}
    for system in systems:
        former = str(Path(args.former).resolve()) if system == "former" and args.former else None
        figures[system], answers[system] = measure(
            system, tables, plain, pythons.get(system, sys.executable), former
        )
        print(
            f"{system:8s}",
            *(
                f"{t} {100 * figures[system][t]['accuracy']:.1f} % of {figures[system][t]['n']}"
                for t in tables
            ),
            sep="  ",
        )
    args.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(
        {"command": "python -m omnilib.bench.spoken", "systems": figures}, ensure_ascii=False, indent=1
    )
    (args.out / "metrics.json").write_text(text + "\n", encoding="utf-8")
    from omnilib.report import (
        sources,
    )  # not at the top: a system's own environment has none of what it imports

    sources.record(args.out, "spoken")
    with (args.out / "answers.jsonl").open("w", encoding="utf-8") as file:
        for name, rows in tables.items():
            for i, row in enumerate(rows):
                said = {s: answers[s][name][i] for s in systems}
                wrong = [s for s in systems if not right(said[s], row["spoken"])]
                file.write(
                    json.dumps({"table": name} | row | {"answers": said, "wrong": wrong}, ensure_ascii=False)
                    + "\n"
                )


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
