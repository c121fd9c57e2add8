"""The public names: what `from omnilib import ...` promises to users."""

import subprocess
import sys

import pytest

import omnilib


def test_the_public_names_are_these():
    """A new name is a promise: add it here when it is meant."""
    assert omnilib.__all__ == ["Brain", "Codec", "Omni", "SpeechLM", "TextToSpeech"]
    assert set(omnilib.HOMES) == set(omnilib.__all__) <= set(dir(omnilib))


@pytest.mark.parametrize("name", omnilib.__all__)
def test_a_public_name_is_the_class_of_its_module(name):
    scope = {}
    exec(f"from omnilib import {name}", scope)
    assert isinstance(scope[name], type) and scope[name].__name__ == name
    assert scope[name] is getattr(sys.modules[omnilib.HOMES[name]], name)


def test_a_star_import_brings_the_public_names_alone():
    scope = {}
    exec("from omnilib import *", scope)
    assert set(scope) - {"__builtins__"} == set(omnilib.__all__)


def test_a_name_that_is_not_there_is_an_ordinary_import_error():
    with pytest.raises(ImportError, match="cannot import name 'Speker'"):
        from omnilib import Speker  # noqa: F401
    assert not hasattr(omnilib, "Speker")


def test_importing_the_package_loads_no_torch():
    code = "import omnilib, sys; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_former_name_of_the_speaking_class_still_works():
    from omnilib.speak import Speaker

    assert Speaker is omnilib.TextToSpeech
