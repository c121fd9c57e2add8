"""Euler steps of fixed shape: the mel of the plain steps, and nothing in them that a CUDA graph could not record."""

import copy

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from omnilib.errors import UserError
from omnilib.voice import captured_flow, captured_stream, flow
from omnilib.voice.captured_flow import CapturedSteps, padded
from omnilib.voice.captured_stream import ChunkSteps
from omnilib.voice.causal import Cache
from omnilib.voice.codec import Codec, CodecSettings
from omnilib.voice.flow import EncoderConfig, EstimatorConfig, Flow, FlowConfig
from omnilib.voice.hift import HiFT, HiFTConfig
from tests.mouth.test_static_step import Watch


def small(channels=(16,), guidance: float = 0.7, variance: float = 0.0, encoder_chunk: int = 25) -> Flow:
    """A flow with random weights that speaks; the same at every call."""
    torch.manual_seed(0)
    model = Flow(
        FlowConfig(
            vocab=27,
            mels=8,
            speaker_dim=24,
            guidance=guidance,
            prior_variance=variance,
            encoder=EncoderConfig(
                width=16, heads=2, linear_units=32, blocks=1, up_blocks=1, chunk=encoder_chunk
            ),
            estimator=EstimatorConfig(list(channels), heads=2, head_dim=8, blocks=1, mid_blocks=1, chunk=10),
        )
    ).eval()
    torch.nn.init.normal_(model.decoder.estimator.final_proj.weight, std=0.3)
    return model


def spoken(model: Flow, static: bool, lengths=(37,), steps: int = 3, **more) -> torch.Tensor:
    """Mel of random tokens, one row for each of `lengths`."""
    model.decoder.static = "on" if static else "off"
    g = torch.Generator().manual_seed(1)
    batch, prompt = len(lengths), 11
    return model.inference(
        torch.randint(27, (batch, max(lengths)), generator=g),
        torch.randint(27, (batch, prompt), generator=g),
        torch.randn(batch, 2 * prompt, 8, generator=g),
        torch.randn(batch, 24, generator=g),
        n_timesteps=steps,
        token_lengths=torch.tensor(lengths) if len(set(lengths)) > 1 else None,
        **more,
    )


def trace(work):
    """Record as a CUDA graph does: every number that Python sees is fixed."""
    return make_fx(lambda: work())()


@pytest.mark.parametrize("channels", [(16,), (16, 16)], ids=["one level", "two levels"])
@pytest.mark.parametrize("variance", [0.0, 0.3])
@pytest.mark.parametrize("guidance", [0.0, 0.7])
def test_static_steps_give_the_mel_of_the_plain_steps(channels, guidance, variance):
    model = small(channels, guidance, variance)
    for lengths in ((37,), (37, 20, 29), (53,)):  # one short of the size, uneven, and as long as the size
        plain, static = (spoken(model, on, lengths) for on in (False, True))
        assert plain.std() > 0.1
        torch.testing.assert_close(static, plain, atol=1e-4, rtol=1e-4)
    assert padded(128) == 128 and padded(129) == 256


def test_chunk_masks_are_kept():
    model = small()
    plain, static = (spoken(model, on, streaming=True) for on in (False, True))
    torch.testing.assert_close(static, plain, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(static, spoken(model, True), atol=1e-2)


def test_a_recording_made_at_the_first_step_serves_all_steps_and_texts(monkeypatch):
    model, made = small(), []

    def record(work, reset):
        made.append(trace(work))
        reset()
        return made[-1]

    monkeypatch.setattr(flow, "recorder", lambda device, fuse: record)
    for lengths, steps in (((37,), 3), ((30,), 5), ((37,), 2)):
        plain, static = (spoken(model, on, lengths, steps) for on in (False, True))
        torch.testing.assert_close(static, plain, atol=1e-4, rtol=1e-4)
    assert len(made) == 1
    spoken(model, True, (90,))
    assert len(made) == 2, "longer speech needs another"
    with torch.no_grad():
        model.decoder.estimator.final_proj.weight.mul_(2)
    torch.testing.assert_close(spoken(model, True), spoken(model, False), atol=1e-3, rtol=1e-3)
    assert len(made) == 2, "weights that change in place are read anew"
    model.set_precision("bf16")
    spoken(model, True)
    assert len(made) == 3, "converted weights need another"


def test_recordings_are_few_and_stay_behind_when_a_model_is_copied(monkeypatch):
    monkeypatch.setattr(captured_flow, "FRAMES", 8)
    monkeypatch.setattr(captured_flow, "KEPT", 3)
    model = small()
    for tokens in range(5, 15):
        spoken(model, True, (tokens,), steps=1)
    assert len(model.decoder.recordings.made) == 3
    assert not copy.deepcopy(model).decoder.recordings.made


@pytest.mark.parametrize("masked", [False, True])
def test_a_step_reads_no_value_and_makes_no_tensor_on_the_host(masked):
    model = small(variance=0.3).to("meta")
    like = torch.empty(2, 5, 8, device="meta")
    steps = CapturedSteps(model.decoder, 2, 128, like, masked, True, None)
    with torch.inference_mode(), Watch("meta") as watch:
        steps.work()
    assert watch.calls > 100 and not watch.reads and not watch.foreign


def test_a_step_compiles_as_one_graph():
    model, graphs = small(), []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    steps = CapturedSteps(model.decoder, 1, 128, torch.empty(1, 5, 8), True, False, None)
    steps.times[:3] = torch.tensor([0.0, 0.4, 1.0])
    steps.x.normal_(generator=torch.Generator().manual_seed(2))
    torch._dynamo.reset()
    work = torch.compile(steps.work, fullgraph=True, backend=backend, dynamic=False)
    before = steps.x.clone()
    with torch.no_grad():
        work(), work()
    after = steps.x.clone()
    steps.x.copy_(before), steps.at.zero_()
    with torch.no_grad():
        steps.work(), steps.work()
    assert len(graphs) == 1
    torch.testing.assert_close(steps.x, after)


def test_the_codec_says_how_to_step(monkeypatch):
    fused = []
    monkeypatch.setattr(flow, "recorder", lambda device, fuse: fused.append(fuse))
    assert small().decoder.static == "auto"
    codec = Codec(
        torch.nn.Identity(),
        torch.nn.Identity(),
        small(),
        HiFT(HiFTConfig(base_channels=16, f0_cond_channels=16)),
    )
    assert codec.flow.decoder.static == "auto"
    parts = codec.tokenizer, codec.speaker, codec.flow, codec.hift
    assert Codec(*parts, CodecSettings(static="compiled")).flow.decoder.static == "compiled"
    for static, expected in (("auto", []), ("off", []), ("on", [False]), ("compiled", [False, True])):
        codec.flow.decoder.static = static
        codec.flow.decoder.solve(
            torch.zeros(1, 20, 8), torch.zeros(1, 20, 8), torch.zeros(1, 8), torch.zeros(1, 20, 8), 1
        )
        assert fused == expected, static
    with pytest.raises(UserError, match="static is 'fast': choose one of auto, on, off, compiled"):
        Codec(*parts, CodecSettings(static="fast"))


def test_attention_is_masked_once_a_step_and_by_numbers(monkeypatch):
    seen, sdpa = [], torch.nn.functional.scaled_dot_product_attention

    def watched(*args, attn_mask=None, **more):
        seen.append(attn_mask)
        return sdpa(*args, attn_mask=attn_mask, **more)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    model = small()
    spoken(model, True, steps=1)
    masks = seen[2:]  # without the encoder's
    assert len(masks) == 3 and len({id(m) for m in masks}) == 1 and masks[0].dtype == torch.float32
    seen.clear()
    spoken(model, True, (53,), steps=1)  # 53 + 11 tokens are 128 frames
    assert seen[2:] == [None] * 3, "speech that fills the size takes the fastest kernel"


def test_training_in_mixed_precision_takes_masks_of_numbers():
    model = small().train()
    tokens, lengths = torch.randint(27, (2, 20)), torch.tensor([20, 13])
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(tokens, lengths, torch.randn(2, 8, 40), torch.randn(2, 24), streaming=True)
    loss.backward()
    assert loss.isfinite()


def test_tf32_is_refused_where_the_device_has_not_got_it():
    with pytest.raises(UserError, match=r"this device \(cpu\) has no tf32: choose fp32 or bf16"):
        small().set_precision("tf32")


def test_tf32_is_on_only_meanwhile(monkeypatch):
    model, seen = small(), []
    model.decoder.precision = "tf32"
    monkeypatch.setattr(
        model.decoder,
        "euler",
        lambda x, *rest: seen.append(torch.backends.cuda.matmul.allow_tf32) or x,
    )
    before = torch.backends.cuda.matmul.allow_tf32
    spoken(model, False)
    assert all(seen) and seen and torch.backends.cuda.matmul.allow_tf32 == before


@pytest.mark.gpu
def test_a_cuda_graph_gives_the_mel_of_the_plain_steps():
    model = small().to("cuda")
    g = torch.Generator().manual_seed(1)
    given = [torch.randint(27, (1, 40), generator=g), torch.randint(27, (1, 11), generator=g)]
    given += [torch.randn(1, 22, 8, generator=g), torch.randn(1, 24, generator=g)]
    mels = []
    for static in ("off", "auto", "auto"):
        model.decoder.static = static
        mels.append(model.inference(*(t.to("cuda") for t in given)))
    torch.testing.assert_close(mels[1], mels[0], atol=1e-3, rtol=1e-3)
    assert torch.equal(mels[1], mels[2])


# ---- streams --------------------------------------------------------------------------------------------------------


def streaming(guidance: float = 0.7, **more) -> Flow:
    """A flow whose chunks are 5 tokens, 10 frames."""
    return small(guidance=guidance, encoder_chunk=5, **more)


def streamed(model: Flow, static: str, tokens: int = 43, steps: int = 3, piece: int = 4) -> torch.Tensor:
    """Mel of random tokens that come a few at a time."""
    model.decoder.static = static
    g = torch.Generator().manual_seed(1)
    given = torch.randint(27, (1, 11), generator=g), torch.randn(1, 22, 8, generator=g)
    stream = model.stream(*given, torch.randn(1, 24, generator=g), steps)
    parts = list(torch.randint(27, (1, tokens), generator=g).split(piece, 1))
    return torch.cat([stream.push(part, last=part is parts[-1]) for part in parts], -1)


@pytest.mark.parametrize("guidance", [0.0, 0.7])
def test_a_stream_of_static_steps_is_the_plain_stream(guidance):
    model = streaming(guidance)
    for piece in (1, 4, 13):  # 13: two chunks at once now and then, by plain steps
        plain, static = (streamed(model, on, piece=piece) for on in ("off", "on"))
        torch.testing.assert_close(static, plain, atol=1e-4, rtol=1e-4)
        assert plain.shape == (1, 8, 86) and plain.std() > 0.1
    assert len(model.decoder.streams.idle) == 1, "the tensors are given back and used again"


def test_one_recording_serves_all_chunks_steps_and_streams(monkeypatch):
    model, made = streaming(variance=0.3), []

    def record(work, reset):
        made.append(trace(work))
        reset()
        return made[-1]

    monkeypatch.setattr(flow, "recorder", lambda device, fuse: record)
    for tokens in (43, 28):
        plain, static = (streamed(model, on, tokens) for on in ("off", "on"))
        torch.testing.assert_close(static, plain, atol=1e-4, rtol=1e-4)
    assert len(made) == 1


def test_streams_and_their_forks_do_not_disturb_each_other():
    model = streaming()
    model.decoder.static = "on"
    g = torch.Generator().manual_seed(3)
    given = torch.randint(27, (1, 11), generator=g), torch.randn(1, 22, 8, generator=g)
    speaker, tokens = torch.randn(1, 24, generator=g), torch.randint(27, (1, 40), generator=g)
    other = torch.randint(27, (1, 40), generator=g)

    def fresh():
        return model.stream(*given, speaker, 3)

    def whole(*parts):
        stream = fresh()
        return torch.cat([stream.push(p) for part in parts for p in part.split(5, 1)], -1)

    one, two = fresh(), fresh()
    mels = [[], []]
    for a, b in zip(tokens.split(5, 1), other.split(5, 1), strict=True):
        mels[0].append(one.push(a))
        mels[1].append(two.push(b))
    torch.testing.assert_close(torch.cat(mels[0], -1), whole(tokens), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(torch.cat(mels[1], -1), whole(other), atol=1e-4, rtol=1e-4)
    assert one.fixed is not None
    twin = one.fork()
    rest = [twin.push(p) for p in other.split(5, 1)], [one.push(p) for p in tokens.split(5, 1)]
    for mel, parts in zip(rest, ((tokens, other), (tokens, tokens)), strict=True):
        mel = torch.cat(mel, -1)
        torch.testing.assert_close(mel, whole(*parts)[..., -mel.shape[-1] :], atol=1e-4, rtol=1e-4)


def test_a_stream_beyond_the_room_or_the_memory_goes_on_with_plain_steps(monkeypatch):
    model = streaming()
    plain = streamed(model, "off")
    monkeypatch.setattr(flow, "CAPACITY", 60)
    monkeypatch.setattr(captured_stream, "CAPACITY", 60)
    torch.testing.assert_close(streamed(model, "on"), plain, atol=1e-4, rtol=1e-4)
    assert model.decoder.streams.idle
    model.decoder.streams.idle.clear()
    monkeypatch.setattr(captured_stream, "room", lambda device: 1000)
    torch.testing.assert_close(streamed(model, "on"), plain, atol=1e-4, rtol=1e-4)
    assert not model.decoder.streams.idle


def test_a_step_of_a_stream_reads_no_value_and_makes_no_tensor_on_the_host():
    model = streaming()
    streamed(model, "on")
    (entry,) = model.decoder.streams.idle
    with torch.inference_mode(), Watch("cpu") as watch:
        entry[1].at.zero_()
        entry[1].work()
    assert watch.calls > 100 and not watch.reads
    meta = streaming().to("meta")
    like = Cache()
    like.slots = [slot[0].to("meta") for slot in entry[1].slots]
    steps = ChunkSteps(meta.decoder, like, torch.empty(1, 10, 8, device="meta"), 3, 60, None)
    with torch.inference_mode(), Watch("meta") as watch:
        steps.work()
    assert watch.calls > 100 and not watch.reads and not watch.foreign
