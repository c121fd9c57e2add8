"""Options of a command line: a mistake is one line, and a value is checked where it is read.

parser = options.Parser(description=__doc__)
parser.add_argument("--workers", type=options.count, default=1)
"""

import argparse
import math
import sys


class Parser(argparse.ArgumentParser):
    """An argument parser whose mistakes are one line on standard error, exit code 2."""

    def error(self, message: str) -> None:
        words = " ".join(message.splitlines())
        print(f"{self.prog.split()[0]}: {words} (see `{self.prog} --help`)", file=sys.stderr)
        raise SystemExit(2)


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


for whole in (seed, count):
    whole.__name__ = "whole number"  # argparse: "invalid whole number value: 'x'"
for real in (temperature, number, positive):
    real.__name__ = "number"
