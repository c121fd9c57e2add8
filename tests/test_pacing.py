"""Speech never starves once it began: the meter on made-up clocks, the plan on made-up machines."""

import random
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import omnilib.omni as omni_module
from omnilib import tracks
from omnilib.brain.ask import Brain
from omnilib.brain.config import smoke_config
from omnilib.brain.inputs import BrainProcessor
from omnilib.brain.mllm import Brain as BrainModel
from omnilib.omni import Omni
from omnilib.pacing import Listener, Pace, Span, underruns
from omnilib.plan import Plan
from omnilib.speak import TextToSpeech
from tests.brain import reference
from tests.tiny import write_checkpoints

# ---- the meter ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pieces", "waits"),
    [
        ([], []),
        ([(5.0, 1.0)], []),  # the listener starts with the first piece, whenever it comes
        ([(5.0, 1.0), (6.0, 1.0)], []),  # just in time
        ([(5.0, 1.0), (6.5, 1.0)], [(6.5, 0.5)]),
        ([(0.0, 1.0), (0.1, 5.0), (5.9, 1.0)], []),  # what came early lasts
        (
            [(0.0, 1.0), (2.0, 1.0), (3.5, 1.0)],
            [(2.0, 1.0), (3.5, 0.5)],
        ),  # after a wait it goes on from there
        ([(0.0, 1.0), (0.5, 0.0), (9.0, 0.0)], []),  # pieces of text alone are no sound
        ([(9.0, 0.0), (10.0, 1.0), (10.9, 1.0)], []),
    ],
)
def test_underruns_are_counted_from_recorded_times(pieces, waits):
    found = underruns(pieces)
    assert len(found) == len(waits)
    assert sum(found, ()) == pytest.approx(sum(waits, ()))


def test_a_listener_knows_what_is_left_to_hear():
    listener = Listener()
    assert listener.lead(3.0) == 0.0
    assert listener.give(3.0, 2.0) == 0.0 and listener.lead(4.5) == 0.5
    assert listener.give(6.0, 1.0) == 1.0 and listener.lead(6.0) == 1.0 and listener.lead(8.0) == 0.0


# ---- what a pace decides -----------------------------------------------------------------------------------


def pace_of(brain: float, row: float, hop: float) -> Pace:
    pace = Pace(0.16, clock=lambda: 0.0)
    pace.mean = {"brain": brain, "row": row, "hop": hop}
    return pace


def test_times_are_running_means_and_every_step_is_kept():
    now, spans = [0.0], []
    pace = Pace(0.16, clock=lambda: now[0])
    for seconds in (1.0, 2.0):
        with pace.timed("row", spans):
            now[0] += seconds
    assert spans == [Span("row", 0.0, 1.0), Span("row", 1.0, 2.0)] and spans[1].end == 3.0
    assert pace.mean["row"] == pytest.approx(1.2) and not pace.known


def test_the_first_hop_grows_with_what_a_machine_takes_and_is_long_where_nothing_is_known():
    choices, seconds = (9, 17, 25), lambda count: (2 * count - 14) / 50
    assert Pace(0.16).first_hop(choices, seconds) == 25
    hops = [
        pace_of(*c).first_hop(choices, seconds)
        for c in ((0, 1e-3, 0.02), (5e-3, 5e-3, 0.1), (5e-3, 0.02, 0.4))
    ]
    assert hops == [9, 17, 25]


def test_sound_begins_when_it_lasts_until_the_next_piece():
    pace = pace_of(0.01, 0.01, 0.1)
    assert not pace.may_begin(0.2, rows=7, left=None) and pace.may_begin(0.3, rows=7, left=None)


def test_a_machine_whose_steps_vary_more_starts_later():
    now, pace = [0.0], Pace(0.16, clock=lambda: now[0])
    for kind, costs in {"brain": [0.01] * 8, "row": [0.01] * 8, "hop": [0.1, 0.1, 0.1, 0.5, 0.1]}.items():
        for seconds in costs:
            with pace.timed(kind, []):
                now[0] += seconds
    steady = pace_of(0.01, 0.01, pace.mean["hop"])
    assert pace.safely(7, 0) > 1.5 * steady.safely(7, 0)
    assert steady.may_begin(0.35, rows=7, left=None) and not pace.may_begin(0.35, rows=7, left=None)


def test_a_machine_slower_than_speech_begins_when_the_rest_can_be_made_meanwhile():
    pace = pace_of(0.01, 0.2, 0.6)
    assert pace.rate > 2
    assert not pace.may_begin(9.0, 7, left=None), "the text is not known yet"
    assert not pace.may_begin(4.0, 7, left=4.0) and pace.may_begin(9.0, 7, left=4.0)


def test_the_brain_waits_while_a_row_is_more_urgent():
    pace = pace_of(0.01, 0.01, 0.1)
    assert not pace.brain_next(None, 7, 7) and not pace.brain_next(0.3, 7, 7) and pace.brain_next(0.5, 7, 7)
    assert pace_of(0.01, 0.2, 0.6).brain_next(None, 7, 7), (
        "where sound waits for the text, the text comes first"
    )


# ---- whole answers on machines of many speeds --------------------------------------------------------------

STORY = "The light of the morning was on the water and on the hills. We met at 5 pm, as we said. Then all was good. "
MACHINES = {  # seconds of an id, a row, a hop
    "a GPU": (0.006, 0.006, 0.03),
    "a laptop": (0.01, 0.003, 0.08),
    "a slow brain": (0.06, 0.01, 0.1),
    "a slow codec": (0.01, 0.01, 0.6),
    "a slow mouth": (0.01, 0.1, 0.1),
    "just slower than speech": (0.03, 0.12, 0.35),
    "half as fast as speech": (0.05, 0.2, 0.7),
}


class Machine(Pace):
    """A pace whose steps take made-up times, some longer and some shorter."""

    def __init__(self, costs: tuple[float, float, float], jitter: float):
        super().__init__(0.16, clock=lambda: self.now)
        self.now, self.random, self.jitter = 100.0, random.Random(1), jitter
        self.costs = dict(zip(("brain", "row", "hop"), costs, strict=True)) | {"read": 0.1, "first": 0.3}

    @contextmanager
    def timed(self, kind, spans):
        with super().timed(kind, spans):
            yield
            self.now += self.costs[kind] * self.random.uniform(1 - self.jitter, 1 + self.jitter)


class QuickSound(tracks.Sound):
    """As much sound as the real one at the same moments, all of it silent."""

    def step(self, last=False):
        first = self.goal if not hasattr(self, "first") else self.first  # look-ahead included
        self.first, self.waiting = first, []
        chunks = (self.given - first) // 25
        tokens = self.given if last else first - self.mels.ahead + 25 * chunks
        frames = 2 * tokens - (0 if last else self.vocoder.context)
        new, self.spoken = frames - getattr(self, "spoken", 0), frames
        self.goal = max(self.goal, first + 25 * (chunks + 1))
        return torch.zeros(480 * new)


class Scripted(Brain):
    """A brain whose words are given."""

    script = STORY * 3

    def steps(self, batch, settings):
        ids = self.processor.tokenizer.encode(self.script, add_special_tokens=False)
        yield from (torch.tensor([i]) for i in [*ids, 2])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    words = reference.longest_match(reference.WORDS, eos="<|im_end|>", pad="<|endoftext|>")
    model = BrainModel(smoke_config(len(reference.WORDS), pad_token_id=0, eos_token_id=2)).eval()
    speech = TextToSpeech.load(write_checkpoints(tmp_path_factory.mktemp("tiny")))
    rules = dict(rows_per_token=2.0, chunk_min_tokens=20, chunk_max_tokens=60, temperature=0.7)
    speech.settings = replace(speech.settings, **rules)
    return Omni(Scripted(model, BrainProcessor(words, model.config), weights=""), speech, first_hop=None)


def answer_on(made, monkeypatch, costs, jitter=0.3):
    """An answer on a machine, after one before it that showed what steps take."""
    monkeypatch.setattr(omni_module, "Sound", QuickSound)
    made.pace = Machine(costs, jitter)
    talk = made.conversation("ann")
    talk.ask("hi", max_new_tokens=4000)
    began = made.pace.now
    answer, text = talk.stream("hi", max_new_tokens=4000), 0
    for piece in answer:
        text += len(piece.text)
        if not answer.plan.times[1:] and len(piece.wave):
            answer.at_first_sound = text
    return answer, answer.plan.times[0][0] - began


@pytest.mark.parametrize("name", MACHINES)
def test_speech_never_starves_once_it_began(made, monkeypatch, name):
    answer, first = answer_on(made, monkeypatch, MACHINES[name])
    assert underruns(answer.plan.times) == []
    assert sum(seconds for _, seconds in answer.plan.times) > 10
    if "than speech" not in name and "as speech" not in name:
        assert answer.at_first_sound < len(Scripted.script) / 2, (
            "and sound leaves before the text is complete"
        )


def test_without_the_plan_it_would(made, monkeypatch):
    """The same machines, everything handed out as soon as it is there: the simulation can fail."""
    starved = []

    def at_once(plan, sound, last):
        wave, plan.held = plan.held, plan.held[:0]
        return wave

    monkeypatch.setattr(Plan, "let_out", at_once)
    monkeypatch.setattr(made, "first_hop", made.speech.codec.first_hop)
    for name in ("a slow codec", "half as fast as speech"):
        answer, _ = answer_on(made, monkeypatch, MACHINES[name])
        starved += [name] * bool(underruns(answer.plan.times))
    assert len(starved) == 2


def test_a_plan_of_an_answer_without_speech_lets_the_brain_write():
    plan = Plan(pace_of(0.1, 0.1, 0.1), SimpleNamespace(over=False), None, None, 24000)
    assert plan.brain_next(None) and len(plan.let_out(None, last=False)) == 0 and plan.tokens_heard() == 0
