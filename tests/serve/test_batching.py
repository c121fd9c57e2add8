"""Many requests in one mouth: each sounds as it would alone, and leaves without a trace."""

import time
from dataclasses import replace

import pytest
import torch

from omnilib.errors import UserError
from omnilib.mouth.step import Stepper
from omnilib.serve.batching import SPARE, Batcher, Busy, join, trim
from omnilib.speak import TextToSpeech
from tests.tiny import write_checkpoints

TEXT = "The light of the morning was on the water. The morning was the light."


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    speech = TextToSpeech.load(write_checkpoints(tmp_path_factory.mktemp("tiny")))
    speech.settings = replace(speech.settings, rows_per_token=2.0)
    return speech


@pytest.fixture
def batcher(speech):
    batcher = Batcher(speech, slots=4, waiting=8)
    yield batcher
    batcher.close()


def job(speech, number, text=TEXT):
    voice = ("ann", "bo")[number % 2]
    return speech.job(text[: 20 + 7 * number], voice, None, None, number, 0.5 + number / 10)


def alone(speech, one):
    ids, tokens = one.request.ids, []
    while ids:
        steps = speech.decode(one, ids)
        while True:
            try:
                tokens += next(steps)
            except StopIteration as stop:
                ids = stop.value[1]
                break
    return tokens


def settle(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()


def test_requests_that_come_and_go_have_the_tokens_they_have_alone(speech, batcher):
    jobs = [job(speech, number) for number in range(7)]  # more than slots, of different lengths and voices
    spoken = []
    for one in jobs:
        spoken.append(batcher.submit(one))
        time.sleep(0.01)
    found = [[token for row in utterance for token in row] for utterance in spoken]
    assert found == [alone(speech, one) for one in jobs]
    assert len(set(map(tuple, found))) == len(jobs)


def test_a_text_of_several_passes_goes_on_in_the_batch(speech, batcher):
    kept = speech.settings
    speech.settings = replace(kept, pass_rows=40)
    try:
        long = speech.job(TEXT * 3, "ann", None, None, 1, None)
    finally:
        speech.settings = kept
    other = batcher.submit(job(speech, 3))
    found = [token for row in batcher.submit(long) for token in row]
    assert found == alone(speech, long)
    assert list(other)


def test_joined_and_trimmed_caches_give_the_logits_of_each_alone(speech):
    torch.manual_seed(0)
    config = speech.model.config
    draw = lambda rows: torch.randint(0, config.tokenizer_speech_size, (rows, 1 + config.speech_token_count))  # noqa: E731
    first, second, more = draw(SPARE + 30), draw(20), draw(2)
    batch = Stepper(speech.model, [first])
    join(batch, Stepper(speech.model, [second]))
    batch.advance(more[:1].repeat(2, 1)[:, None])
    batch.keep([1])
    assert int(batch.start[0]) >= SPARE
    trim(batch)
    assert int(batch.start[0]) == 0 and batch.length == 21
    logits = batch.advance(more[1:][:, None])
    single = Stepper(speech.model, [torch.cat([second, more])])
    torch.testing.assert_close(logits, single.logits, atol=1e-4, rtol=1e-4)


def test_a_cancelled_request_frees_its_slot_and_the_others_do_not_notice(speech, batcher):
    gone, stays = batcher.submit(job(speech, 5)), batcher.submit(job(speech, 6))
    next(iter(gone))
    gone.cancel()
    assert [t for row in stays for t in row] == alone(speech, job(speech, 6))
    assert settle(lambda: not batcher.active and not batcher.waiting)
    assert batcher.stepper is None
    list(gone)  # ends


def test_a_full_queue_is_said_and_not_waited_for(speech):
    batcher = Batcher(speech, slots=1, waiting=1)
    try:
        kept = [batcher.submit(job(speech, 6, TEXT * 4)) for _ in range(2)]
        with pytest.raises(Busy, match="try again"):
            batcher.submit(job(speech, 0))
        assert [list(u) for u in kept]
        list(batcher.submit(job(speech, 0)))
    finally:
        batcher.close()


def test_closing_ends_whoever_listens(speech):
    batcher = Batcher(speech, slots=1, waiting=4)
    spoken = [batcher.submit(job(speech, 6, TEXT * 4)) for _ in range(3)]
    batcher.close()
    for utterance in spoken[1:]:
        with pytest.raises(UserError, match="stopping"):
            list(utterance)
    with pytest.raises(Busy):
        batcher.submit(job(speech, 0))


def test_a_fault_in_the_model_ends_its_requests_and_not_the_server(speech, batcher, monkeypatch):
    monkeypatch.setattr(Stepper, "advance", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(batcher.submit(job(speech, 1)))
    monkeypatch.undo()
    assert [t for row in batcher.submit(job(speech, 1)) for t in row] == alone(speech, job(speech, 1))
