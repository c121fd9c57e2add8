"""Probes of chapter 12: a brain that writes a given text, the released rules, a slower machine."""

from dataclasses import replace

import pytest
import torch

from omnilib.brain.ask import Brain
from omnilib.brain.config import smoke_config
from omnilib.brain.inputs import BrainProcessor
from omnilib.brain.mllm import Brain as BrainModel
from omnilib.eval import talk_probes as probes
from omnilib.omni import Omni
from omnilib.pacing import Span, underruns
from omnilib.speak import TextToSpeech
from tests.brain import reference
from tests.tiny import write_checkpoints


@pytest.fixture(scope="module")
def omni(tmp_path_factory):
    words = reference.longest_match(reference.WORDS, eos="<|im_end|>", pad="<|endoftext|>")
    torch.manual_seed(0)
    model = BrainModel(smoke_config(len(reference.WORDS), pad_token_id=0, eos_token_id=2)).eval()
    speech = TextToSpeech.load(write_checkpoints(tmp_path_factory.mktemp("tiny")))
    speech.settings = replace(speech.settings, rows_per_token=2.0)
    return Omni(Brain(model, BrainProcessor(words, model.config), weights=""), speech)


def test_the_brain_writes_what_it_is_given_and_then_its_own_again(omni):
    talk = omni.conversation("ann")
    own = talk.ask("hi", max_new_tokens=6, speak=False).text
    with probes.writes(omni, "all is good"):
        assert omni.conversation("ann").ask("hi", speak=False).text == "all is good"
    assert omni.conversation("ann").ask("hi", max_new_tokens=6, speak=False).text == own != "all is good"


@pytest.mark.parametrize("text", ["", "  \n\n ", "the light. \n\n ", "\n\nthe light."])
def test_our_rules_make_no_chunk_of_nothing_and_the_released_ones_do(omni, text):
    rows, mouth = probes.rows_of(omni, text, released=False)
    assert all(chunk.text_tokens for chunk in mouth.chunks if rows) and bool(rows) == bool(text.strip())
    if not text.strip():
        rows, mouth = probes.rows_of(omni, text, released=True)
        assert rows and not mouth.chunks[0].text_tokens


def test_the_wait_that_is_needed_is_the_shortest_after_which_nothing_starves():
    pieces = [(1.0, 0.3), (1.5, 0.3), (2.5, 0.3), (2.6, 2.0)]
    for slower in (1.0, 3.0):
        times = [(now * slower, seconds) for now, seconds in pieces]
        wait = probes.wait_needed(pieces, slower)
        assert wait > 0

        def after(seconds, own=times):
            return [(max(now, own[0][0] + seconds), length) for now, length in own]

        assert underruns(after(wait)) == [] and underruns(after(wait - 0.01)) != []
    assert probes.wait_needed([]) == 0.0 and probes.wait_needed([(5.0, 1.0), (5.5, 1.0)]) == 0.0


def test_the_released_first_hop_is_counted_from_mean_times():
    spans = [Span("read", 0, 0.1), Span("first", 0, 0.2), Span("brain", 0, 0.01), Span("brain", 0, 0.03)]
    spans += [Span("row", 0, 0.01), Span("hop", 0, 0.1)]
    assert probes.first_sound_released(spans, streams=4, pre_pad=4) == pytest.approx(0.3 + 54 * 0.03 + 0.8)
