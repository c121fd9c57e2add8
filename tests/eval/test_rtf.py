"""Speed figures: arithmetic on a clockwork speaker, and the real chain on tiny random weights."""

from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from omnilib.eval.rtf import MODULES, ratio, real_time_factor, streaming_matches, time_to_first_sound
from omnilib.speak import TextToSpeech
from tests.tiny import write_checkpoints

SENTENCES = ["The light of the morning.", "The water was on the morning light."]


@dataclass
class Clockwork:
    """Speaks two seconds a sentence in known times."""

    spoken: list[str] = field(default_factory=list)

    def speak(self, text, voice, said, seed=0, temperature=None):
        self.spoken.append(text)
        return self

    seconds = 2.0
    timings = {
        "voice": 9.0,
        "mouth": 0.2,
        "flow": 0.3,
        "hift": 0.1,
    }  # enrolling the voice is no part of speaking


def test_shares_add_up_to_the_total_and_warm_up_is_not_counted():
    speaker = Clockwork()
    found = real_time_factor(speaker, [(text, "ref.wav", "") for text in SENTENCES])
    assert len(speaker.spoken) == 3
    assert found["rtf_total"]["value"] == pytest.approx(0.3)
    assert {m: found[f"rtf_{m}"]["value"] for m in MODULES} == pytest.approx(
        {"mouth": 0.1, "flow": 0.15, "hift": 0.05}
    )
    assert (found["rtf_total"]["n"], found["rtf_total"]["batch"], found["rtf_total"]["speech_seconds"]) == (
        2,
        1,
        4.0,
    )


def test_ratio_is_total_work_over_total_speech():
    assert ratio([1.0, 1.0], [1.0, 9.0])["value"] == pytest.approx(0.2)


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    folder = write_checkpoints(tmp_path_factory.mktemp("tiny"))
    (folder / "decode.yaml").write_text("max_rows: 24\n")
    return TextToSpeech.load(folder), [
        (text, folder / "voices" / "ann.wav", "the light of the morning") for text in SENTENCES
    ]


def test_real_chain_is_timed_module_by_module(chain):
    speaker, sentences = chain
    found = real_time_factor(speaker, sentences, seed=1)
    assert all(entry["value"] > 0 and entry["n"] == 2 for entry in found.values())
    assert sum(found[f"rtf_{m}"]["value"] for m in MODULES) == pytest.approx(found["rtf_total"]["value"])


def test_first_sound_comes_before_the_whole_sentence(chain):
    speaker, sentences = chain
    found = time_to_first_sound(speaker, sentences, seed=1)
    assert 0 < found["median"] <= found["slowest"]
    assert found["n"] == 2
    assert all(low <= high for low, high in pairwise(found["ci95"]))


def test_streaming_gives_the_tokens_and_the_wave_of_chunked_decoding(chain):
    speaker, sentences = chain
    found = streaming_matches(speaker, sentences, seed=1)
    assert found["stream_tokens_equal"]["value"] == 1.0
    assert found["stream_wave_gap"]["value"] < 1e-3
