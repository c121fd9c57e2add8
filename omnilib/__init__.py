"""omnilib: MGM-Omni (arXiv 2509.25131) to read, train, re-run and trust.

    from omnilib import TextToSpeech
    TextToSpeech.load("nano").speak("the light of the morning").save("hello.wav")

The public names load at first use, so `import omnilib` itself takes milliseconds; everything else is imported by its full path.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omnilib.brain.ask import Brain
    from omnilib.mouth.speechlm import SpeechLM
    from omnilib.omni import Omni
    from omnilib.speak import TextToSpeech
    from omnilib.voice.codec import Codec

__version__ = "0.1.0"
__all__ = ["Brain", "Codec", "Omni", "SpeechLM", "TextToSpeech"]

HOMES = {  # public name -> module
    "Brain": "omnilib.brain.ask",
    "Codec": "omnilib.voice.codec",
    "Omni": "omnilib.omni",
    "SpeechLM": "omnilib.mouth.speechlm",
    "TextToSpeech": "omnilib.speak",
}


def __getattr__(name: str) -> object:
    if name not in HOMES:
        raise AttributeError(f"module 'omnilib' has no attribute '{name}'")
    value = globals()[name] = getattr(import_module(HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
