"""Values of options are checked where they are read."""

import argparse

import pytest

from omnilib import options

ACCEPTED = {
    "seed": {"0": 0, "9223372036854775807": 2**63 - 1},
    "temperature": {"0": 0.0, "0.3": 0.3, "1e9": 1e9},
    "count": {"1": 1, "64": 64},
    "count_or_none": {"0": 0, "64": 64},
    "number": {"-1.5": -1.5, "1e3": 1000.0},
    "positive": {"0.01": 0.01, "45": 45.0},
    "scale": {"nano": "nano", "my-own_2": "my-own_2"},
}
REFUSED = {
    "seed": ["-1", "9223372036854775808", "99999999999999999999", "1.5", "one", ""],
    "temperature": ["-0.1", "nan", "inf", "-inf", "warm", ""],
    "count": ["0", "-2", "1.5", "many"],
    "count_or_none": ["-1", "0.5", "none"],
    "number": ["nan", "inf", "-inf", "x"],
    "positive": ["0", "-1", "nan", "inf", "x"],
    "scale": ["", ".", "..", "../nano", "/tmp/nano", "a b"],
}


@pytest.mark.parametrize(
    ("kind", "text"), [(kind, text) for kind, texts in ACCEPTED.items() for text in texts]
)
def test_a_fitting_value_is_read(kind, text):
    assert getattr(options, kind)(text) == ACCEPTED[kind][text]


@pytest.mark.parametrize(
    ("kind", "text"), [(kind, text) for kind, texts in REFUSED.items() for text in texts]
)
def test_another_value_is_one_line_and_exit_code_2(kind, text, capsys):
    parser = options.Parser(prog="omni speak")
    parser.add_argument("--value", type=getattr(options, kind))
    with pytest.raises(SystemExit) as stop:
        parser.parse_args([f"--value={text}"])
    line = capsys.readouterr().err
    assert stop.value.code == 2 and line.count("\n") == 1
    assert line.startswith("omni: argument --value: ") and line.endswith("(see `omni speak --help`)\n")


def test_a_line_end_within_a_value_keeps_the_message_on_one_line(capsys):
    parser = options.Parser(prog="omni")
    parser.add_argument("--value", choices=["a"])
    with pytest.raises(SystemExit):
        parser.parse_args(["--value", "b", "c\nd"])
    assert capsys.readouterr().err.count("\n") == 1


def test_parsers_of_commands_within_commands_are_of_the_same_kind():
    commands = options.Parser(prog="omni").add_subparsers()
    assert isinstance(commands.add_parser("speak"), options.Parser) and issubclass(
        options.Parser, argparse.ArgumentParser
    )


def test_a_module_of_ours_is_named_as_it_was_started(monkeypatch):
    import sys
    from importlib.machinery import ModuleSpec
    from types import SimpleNamespace

    started = SimpleNamespace(__spec__=ModuleSpec("omnilib.serve.__main__", None))
    monkeypatch.setitem(sys.modules, "__main__", started)
    assert options.Parser().prog == "python -m omnilib.serve"
    assert options.Parser(prog="omni").prog == "omni"
    started.__spec__ = ModuleSpec("pytest.__main__", None)
    assert not options.Parser().prog.startswith("python -m")
