"""Options of a command line: a mistake is one line, and a value is checked where it is read.

parser = options.Parser(description=__doc__)
parser.add_argument("--workers", type=options.count, default=1)
"""

import argparse
import math
import sys


class Parser(argparse.ArgumentParser):
    """An argument parser whose mistakes are one line on standard error, exit code 2. The description keeps its lines."""

    def __init__(self, *args, **kwargs):
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        kwargs.setdefault("prog", program())
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> None:
        words, who = " ".join(message.splitlines()), self.prog.split()[0]
        name = "error" if who == "python" else who
        print(f"{name}: {words} (see `{self.prog} --help`)", file=sys.stderr)
        raise SystemExit(2)


def program() -> str | None:
    """How this process was started, where it was by `python -m` of ours."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    ours = spec is not None and spec.name.startswith(("omnilib.", "data_prep."))
    return f"python -m {spec.name.removesuffix('.__main__')}" if ours else None


def seed(text: str) -> int:
    """A seed: what torch's generators take."""
    value = int(text)
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"{text} is no seed: give a whole number from 0 to 2**63 - 1")
    return value


def temperature(text: str) -> float:
    """A sampling temperature: finite, from 0 on."""
    value = float(text)
    if not math.isfinite(value) or value < 0:
        raise argparse.ArgumentTypeError(
            f"{text} is no temperature: give 0 (greedy) or a little more, 0.3 say"
        )
    return value


def count(text: str) -> int:
    """How many: at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is too few: give at least 1")
    return value


def count_or_none(text: str) -> int:
    """How many: 0 is allowed."""
    return int(text) if text == "0" else count(text)


def number(text: str) -> float:
    """Neither nan nor infinite."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} is no number to reckon with: give a finite one")
    return value


def positive(text: str) -> float:
    """A length, say: finite and more than 0."""
    value = number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is too little: give more than 0")
    return value


def scale(text: str) -> str:
    """A folder of checkpoints/ by its name: what is measured and its reports carry the same."""
    if not text.replace("-", "").replace("_", "").isalnum():
        raise argparse.ArgumentTypeError(
            f"{text} is no name of a scale: give smoke, nano, paper or a folder of checkpoints/ by its name"
        )
    return text


for whole in (seed, count, count_or_none):
    whole.__name__ = "whole number"  # argparse: "invalid whole number value: 'x'"
for real in (temperature, number, positive):
    real.__name__ = "number"
