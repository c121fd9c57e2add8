"""Streams in company have the sound that they have alone, whatever their ages; one's fault is not the others'."""

import copy
import threading
import time

import pytest
import torch

from omnilib.voice.codec import Codec, CodecSettings, Voice
from omnilib.voice.company import Company, Guest
from omnilib.voice.flow import EncoderConfig, EstimatorConfig, Flow, FlowConfig
from omnilib.voice.flow_batch import chunks
from omnilib.voice.hift import HiFT, HiFTConfig, sounds

CONFIG = FlowConfig(
    vocab=40,
    encoder=EncoderConfig(width=16, heads=2, linear_units=32, blocks=2, up_blocks=2),
    estimator=EstimatorConfig(channels=[16], heads=2, head_dim=8, blocks=1, mid_blocks=1),
)


def a_codec(**settings) -> Codec:
    torch.manual_seed(0)
    flow, hift = Flow(CONFIG).eval(), HiFT(HiFTConfig(base_channels=16, f0_cond_channels=16)).eval()
    torch.nn.init.normal_(flow.decoder.estimator.final_proj.weight, std=0.1)
    nothing = torch.nn.Identity()
    return Codec(nothing, nothing, flow, hift.fold_weight_norm(), CodecSettings(steps=3, **settings))


def a_voice(number: int) -> Voice:
    draw, prompt = torch.Generator().manual_seed(number), 40 + 13 * number
    tokens = torch.randint(40, (prompt,), generator=draw)
    return Voice(tokens, torch.randn(2 * prompt, 80, generator=draw), torch.randn(192, generator=draw))


def speech_of(number: int) -> torch.Tensor:
    return torch.randint(40, (60 + 30 * number,), generator=torch.Generator().manual_seed(100 + number))


def at_once(company: Company, works: list) -> None:
    """Each work in a thread of its own; nobody is served before all wait."""
    threads = [threading.Thread(target=work) for work in works]
    company.busy = True
    for thread in threads:
        thread.start()
    while len(company.waiting) < len(works):
        time.sleep(0.01)
    with company.news:
        company.busy = False
        company.news.notify_all()
    for thread in threads:
        thread.join()


def spoken(codec: Codec, number: int) -> torch.Tensor:
    pieces = speech_of(number).split(1 + number)  # comes at another pace than the others'
    return torch.cat(list(codec.stream(pieces, a_voice(number))))


@pytest.mark.parametrize("guidance", [0.0, 0.7])
def test_chunks_of_streams_of_different_ages_are_those_of_each_alone(guidance):
    codec = a_codec()
    codec.flow.decoder.guidance = guidance
    given = [(speech_of(n + 1), a_voice(n)) for n in range(3)]
    alone, many = ([codec.warm(voice).flow for _, voice in given] for _ in range(2))
    assert len({stream.past for stream in many}) > 1
    for stream, (tokens, _) in zip(many, given, strict=True):
        stream.pending = torch.cat([stream.pending, tokens[None]], 1)
    rounds = [chunks(many) for _ in range(2)]
    for i, (stream, (tokens, _)) in enumerate(zip(alone, given, strict=True)):
        mel, own = torch.cat([mels[i] for mels in rounds], -1), stream.push(tokens[None])
        torch.testing.assert_close(mel, own[..., : mel.shape[-1]], atol=2e-5, rtol=1e-4)


def test_speeches_at_once_sound_as_they_do_alone():
    codec = a_codec(block=50)  # long ones begin new blocks meanwhile
    alone = [spoken(codec, n) for n in range(4)]
    sizes: dict[str, list[int]] = {"flow": [], "hift": []}
    codec.meet()
    for name, own in sizes.items():
        company = getattr(codec, name).company

        def noted(streams, work=company.work, own=own):
            own.append(len(streams))
            return work(streams)

        company.work = noted
    found: dict[int, torch.Tensor] = {}
    at_once(codec.flow.company, [lambda n=n: found.update({n: spoken(codec, n)}) for n in range(4)])
    assert max(sizes["flow"]) == 4 and sizes["hift"]
    for number, wave in enumerate(alone):
        torch.testing.assert_close(found[number], wave, atol=1e-4, rtol=1e-3)


def test_pieces_of_sound_of_several_streams_are_those_of_each_alone():
    hift = a_codec().hift
    mels = torch.randn(3, 80, 120, generator=torch.Generator().manual_seed(1))
    alone, many = ([hift.stream() for _ in range(3)] for _ in range(2))
    for part in mels.split(60, -1):
        own = [stream.push(mel[None]) for stream, mel in zip(alone, part, strict=True)]
        for stream, mel in zip(many, part, strict=True):
            stream.mel = torch.cat([stream.mel, mel[None]], -1)
            stream.size = (
                stream.mel.shape[-1],
                stream.spoken - stream.first,
                stream.mel.shape[-1] - stream.context,
            )
        for mine, theirs in zip(own, sounds(many), strict=True):
            torch.testing.assert_close(theirs, mine, atol=1e-5, rtol=1e-4)


def test_those_of_one_kind_work_together_and_the_others_wait_for_their_turn():
    rounds: list[list] = []

    def work(streams):
        rounds.append(streams)
        return [torch.tensor([float(s)]) for s in streams]

    company, found = Company(work), {}
    at_once(company, [lambda n=n: found.update({n: float(company.piece(n, n % 2))}) for n in range(6)])
    assert found == {n: float(n) for n in range(6)}
    assert sorted(sorted(streams) for streams in rounds) == [[0, 2, 4], [1, 3, 5]]


def test_the_fault_of_one_stream_is_not_that_of_the_others():
    def work(streams):
        if "bad" in streams:
            raise MemoryError("no room")
        return [torch.zeros(1) for _ in streams]

    good, bad = Guest("good", None), Guest("bad", None)
    Company(work).serve([good, bad])
    assert isinstance(bad.error, MemoryError) and good.error is None and good.piece is not None


def test_a_stream_alone_in_company_is_served_and_errors_come_back():
    codec = a_codec()
    wave = spoken(codec, 1)
    codec.meet()
    torch.testing.assert_close(spoken(codec, 1), wave, atol=1e-5, rtol=1e-4)
    assert copy.deepcopy(codec.flow).company is None
    codec.flow.company.work = lambda streams: 1 / 0
    with pytest.raises(ZeroDivisionError):
        spoken(codec, 1)
    assert not codec.flow.company.busy, "the next one can work"
