"""Steps of fixed shape: the rows of the plain loop, and nothing in them that a CUDA graph could not record."""

from dataclasses import replace

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from omnilib import captured
from omnilib.errors import ConfigError, LimitError
from omnilib.mouth import decode, static_decode, static_step
from omnilib.mouth.chunking import ChunkMachine, ChunkRules, Kind, Layout
from omnilib.mouth.decode import (
    Decoder,
    DecodeSettings,
    StaticDecoder,
    decoder_of,
    generate,
    sampling_of,
    stream,
)
from omnilib.mouth.rows import layout_of, splice_voice
from omnilib.mouth.speechlm import SpeechLM, SpeechLMConfig
from omnilib.mouth.static_decode import Shelf
from omnilib.mouth.static_rows import StaticRows, rows_at_most, tables_of
from omnilib.mouth.static_step import StaticStep, cache_bytes, join_weights, slots_for, window_for
from tests.mouth.test_decode import SETTINGS, assert_same, requests

STATIC = replace(SETTINGS, static="on")
WARM = sampling_of(False, top_k=5, top_p=0.9)
GREEDY = sampling_of(True)


def trace(work):
    """Record as a CUDA graph does: every number that Python sees is fixed, tensors are read and written in place."""
    return make_fx(work)()


@pytest.fixture
def traced(monkeypatch):
    """Steps are recorded and replayed on the CPU; returns the recordings made."""
    made = []

    def record(work, reset):
        made.append(trace(work))
        reset()
        return made[-1]

    monkeypatch.setattr(decode, "recorder", lambda device, fuse: record)
    return made


def machine_of(layout: Layout, rules: ChunkRules, ids) -> ChunkMachine:
    """Every seventh id ends a sentence, every eleventh is blank."""
    return ChunkMachine(layout, rules, lambda i: "." if i % 7 == 0 else " " if i % 11 == 0 else "word", ids)


def step_of(model: SpeechLM, layout: Layout, lengths=(5, 9), capacity: int = 100) -> StaticStep:
    """A step that has read random prompts of these lengths."""
    g = torch.Generator().manual_seed(0)
    prompts = [torch.randint(11, (n, 1 + layout.streams), generator=g) for n in lengths]
    machines = [machine_of(layout, ChunkRules(3, 6), range(1, 20)) for _ in lengths]
    step = StaticStep(model, layout, len(lengths), capacity, 20)
    step.begin(prompts, machines, 0.7)
    step.refill(1 - torch.rand(len(lengths), static_step.NOISE_ROWS, layout.streams, generator=g))
    return step


# ---- the same rows --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streams", [1, 2, 4, 8])
def test_a_mixed_batch_and_each_text_alone_get_the_rows_of_the_plain_loop(tiny, tokenizer, streams):
    model = tiny(streams)
    for settings in (STATIC, replace(STATIC, temperature=0.7, top_k=5, top_p=0.9)):
        plain = generate(model, tokenizer, requests(), replace(settings, static="off"))
        together = generate(model, tokenizer, requests(), settings)
        assert len({len(r.rows) for r in together}) > 1, "they should end at different times"
        for request, one, other in zip(requests(), plain, together, strict=True):
            assert_same(one, other)
            assert_same(one, generate(model, tokenizer, [request], settings)[0])


def test_a_recording_made_at_the_first_row_serves_all_rows(tiny, tokenizer, traced):
    model = tiny(4)
    warm = replace(STATIC, temperature=0.7)
    for settings, most in ((warm, 3), (replace(warm, seed=3, temperature=0.2), 0)):
        known = len(traced)
        plain = generate(model, tokenizer, requests()[1:], replace(settings, static="off"))
        for one, other in zip(plain, generate(model, tokenizer, requests()[1:], settings), strict=True):
            assert_same(one, other)
        assert len(traced) - known <= most, "other texts, seeds and temperatures use the same recordings"
    assert traced


def test_windows_grow_without_a_trace(tiny, tokenizer, monkeypatch):
    model, long = tiny(4), replace(STATIC, temperature=0.5, rows_per_token=6.0)
    plain = generate(model, tokenizer, requests()[:2], replace(long, static="off"))
    assert max(len(r.rows) for r in plain) > 100
    monkeypatch.setattr(static_step.window_for, "__defaults__", (8,))
    monkeypatch.setattr(static_decode, "ROWS_PER_ID", 9)
    for one, other in zip(plain, generate(model, tokenizer, requests()[:2], long), strict=True):
        assert_same(one, other)
    windows = {window for step in Shelf.of(model).steps for _, window, _ in step.recorded}
    assert len(windows) >= 3, "several windows on one cache"


def test_greedy_steps_write_the_reference_grids(golden):
    meta, t = golden("tts_generate_greedy")
    model = t.load_into(SpeechLM(SpeechLMConfig(**meta["config"]))).eval()
    words = meta["tokenizer"]
    layout = model.config.layout(text_pad=words["pad_token_id"], text_eos=words["eos_token_id"])
    layout = replace(layout, reference_pad=meta["reference_text_pad_id"])
    for case, info in meta["cases"].items():
        conversation = t[f"in.{case}.input_ids"][0].tolist()
        voice = t[f"in.{case}.input_ids_refer"][0].tolist(), t[f"in.{case}.ref_tokens"][0]
        rows = splice_voice(layout, conversation, *voice)
        cut = int((rows[:, 0] == layout.audio_start).nonzero()[-1]) + 1
        settings = DecodeSettings(
            temperature=0.0,
            max_rows=info["max_new_tokens"],
            blank_codes=info["blank_speech_tokens"],
            reference_quirks=True,
            static="on",
        )
        piece, text = words["id_to_string"].__getitem__, rows[cut:-2, 0].tolist()
        machine = ChunkMachine(layout, settings.rules(), piece, text)
        decoder = decoder_of(model, layout, [rows[:cut]], [machine], settings)
        assert isinstance(decoder, StaticDecoder)
        while not decoder.done:
            decoder.step()
        assert torch.equal(decoder.rows(0), t[f"out.{case}.grid"][0]), case


@pytest.mark.parametrize("quirks", [False, True])
def test_the_chunk_machine_of_tensors_is_the_one_of_the_host(quirks):
    layout = Layout(text_size=40, speech_size=7, streams=3, pre_pad=2, text_pad=1, text_eos=2)
    g = torch.Generator().manual_seed(int(quirks))
    kinds = set()
    for trial in range(40):
        r = torch.randint(0, 6, (8,), generator=g).tolist()
        rules = ChunkRules(
            min_tokens=r[0],
            max_tokens=r[0] + r[1],
            rows_per_token=0.6 + 0.7 * r[2],
            blank_rows=r[3],
            blank_codes=frozenset({0, 1, 2}),
            eos_streams=None if r[4] else 1,
            reference_quirks=quirks,
            rows=30 if r[5] > 2 else None,
        )
        texts = [torch.randint(1, 36, (n,), generator=g).tolist() for n in (1 + r[6], 12, 25)]
        texts = [text if any(i % 11 for i in text) else [1, *text] for text in texts]
        machines = [machine_of(layout, rules, text) for text in texts]
        most = [rows_at_most(machine, 10**6) for machine in machines]
        rows = StaticRows(layout, 4, 64, torch.device("cpu"))
        rows.fill(machines)
        while not all(machine.done for machine in machines):
            sampled = torch.randint(0, 7, (4, 3), generator=g)
            sampled[torch.rand(4, generator=g) < 0.2] = layout.speech_eos
            got = rows.next(sampled)
            for slot, machine in enumerate(machines):
                if not machine.done:
                    row = machine.step(sampled[slot].tolist())
                    kinds.add((row.kind, machine.chunks[-1].error))
                    assert got[slot].tolist() == [row.text, *row.speech], (trial, slot, row)
                    assert bool(rows.done[slot]) == machine.done
        assert all(machine.rows_made <= bound for machine, bound in zip(machines, most, strict=True))
    assert {kind for kind, _ in kinds} >= {Kind.TEXT, Kind.PADDING, Kind.EOS, Kind.SEPARATOR, Kind.END}
    assert {error for _, error in kinds} >= {None, "blank", "long"}


def test_a_pass_leaves_the_same_text_over(tiny, tokenizer):
    model = tiny(4)
    settings = replace(STATIC, passes=True, max_rows=40, rows_per_token=1.5)

    def spoken(settings):
        tokens, source = [], stream(model, tokenizer, requests()[0], settings)
        while True:
            try:
                tokens += next(source)
            except StopIteration as end:
                return tokens, end.value.rest

    tokens, rest = spoken(settings)
    assert rest and (tokens, rest) == spoken(replace(settings, static="off"))


def test_an_endless_text_does_not_keep_the_others(tiny, tokenizer):
    model = tiny(4)
    settings = replace(STATIC, rows_per_token=1e300, eos_streams=9, max_rows=90)
    endless = generate(model, tokenizer, requests(), settings)
    assert all(r.errors[-1] == "truncated" and len(r.rows) == 90 for r in endless)
    mixed = replace(settings, rows_per_token=2.0)
    for one, other in zip(
        generate(model, tokenizer, requests(), mixed),
        generate(model, tokenizer, requests(), replace(mixed, static="off")),
        strict=True,
    ):
        assert_same(one, other)


def test_text_that_is_still_to_come_takes_the_plain_loop(tiny, tokenizer):
    model = tiny(4)
    layout = layout_of(model.config, tokenizer)
    prompt = torch.randint(11, (5, 5))
    for closed, kind in ((False, Decoder), (True, StaticDecoder)):
        machine = ChunkMachine(layout, ChunkRules(), lambda i: "word", [1, 2, 3], closed)
        assert type(decoder_of(model, layout, [prompt], [machine], STATIC)) is kind
    assert type(decoder_of(model, layout, [prompt], [machine], SETTINGS)) is Decoder, (
        "on a CPU only when asked"
    )


def test_each_step_serves_one_decoder_at_a_time_and_returns_to_the_shelf(tiny, tokenizer):
    model, request = tiny(4), requests()[0]
    expected = generate(model, tokenizer, [request], SETTINGS)[0].tokens.tolist()
    one, other = (stream(model, tokenizer, request, STATIC) for _ in range(2))
    pairs = list(zip(one, other, strict=True))  # in turns
    assert sum((a for a, _ in pairs), []) == sum((b for _, b in pairs), []) == expected
    shelf = Shelf.of(model)
    assert len(shelf.steps) == 2
    left = stream(model, tokenizer, request, STATIC)
    next(left)
    assert len(shelf.steps) == 1
    left.close()
    del left
    assert len(shelf.steps) == 2, "a stream that nobody reads to its end gives its step back"
    torch.nn.Module.to(model, torch.float64).to(torch.float32)  # the weights move
    assert generate(model, tokenizer, [request], STATIC)[0].tokens.tolist() == expected


# ---- fit for a graph ------------------------------------------------------------------------------------------------


class Watch(TorchDispatchMode):
    """Notes operations that read a value on the host, and tensors that are not on the device given."""

    READS = (
        "_local_scalar_dense",
        "is_nonzero",
        "item",
        "nonzero",
        "masked_select",
        "unique",
        "lift_fresh",
        "equal",
    )

    def __init__(self, device: str):
        super().__init__()
        self.device, self.reads, self.foreign, self.calls = device, [], [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.calls += 1
        name = func._schema.name.split("::")[1]
        if name in self.READS or (
            name == "index" and any(t.dtype == torch.bool for t in args[1] if t is not None)
        ):
            self.reads.append(name)
        for t in torch.utils._pytree.tree_leaves((args, kwargs, out)):
            if isinstance(t, torch.Tensor) and t.device.type != self.device:
                self.foreign.append(name)
        return out


@pytest.mark.parametrize("sampling", [GREEDY, WARM], ids=["greedy", "sampled"])
def test_a_step_reads_no_value_and_makes_no_tensor_on_the_host(tiny, sampling):
    """On the meta device a value cannot be read at all, and every host tensor stands out."""
    model = tiny(4)
    layout = model.config.layout(text_pad=1, text_eos=2)
    step = StaticStep(model.to("meta"), layout, 4, 100, 20)
    with torch.inference_mode(), Watch("meta") as watch:
        step.work(4, 128, sampling)
    assert watch.calls > 50 and not watch.reads and not watch.foreign
    step = step_of(tiny(4), layout)
    with torch.inference_mode(), Watch("cpu") as watch:
        step.work(2, 128, sampling)
    assert watch.calls > 50 and not watch.reads


def test_the_watch_sees_what_it_forbids():
    with Watch("meta") as watch:
        torch.ones(3).sum().item()
        torch.tensor([1.0])
        torch.ones(3)[torch.ones(3, dtype=torch.bool)]
    assert {"_local_scalar_dense", "lift_fresh", "index"} <= set(watch.reads) and watch.foreign


@pytest.mark.parametrize("sampling", [GREEDY, WARM], ids=["greedy", "sampled"])
def test_a_step_compiles_as_one_graph_that_serves_every_row(tiny, sampling):
    layout = tiny(4).config.layout(text_pad=1, text_eos=2)
    plain, compiled = step_of(tiny(4), layout), step_of(tiny(4), layout)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    work = torch.compile(compiled.work, fullgraph=True, backend=backend, dynamic=False)
    with torch.no_grad():
        for _ in range(6):
            plain.work(2, 128, sampling)
            work(2, 128, sampling)
            assert torch.equal(plain.sampled, compiled.sampled)
    assert len(graphs) == 1
    torch.testing.assert_close(plain.logits, compiled.logits)


def test_compiled_steps_are_one_graph_each_and_write_the_same_rows(tiny, tokenizer, monkeypatch):
    monkeypatch.setattr(captured, "BACKEND", "eager")
    monkeypatch.setattr(static_step.window_for, "__defaults__", (32,))
    model, settings = tiny(1), replace(SETTINGS, static="compiled", max_rows=40)
    torch._dynamo.reset()
    for one, other in zip(
        generate(model, tokenizer, requests()[:2], replace(settings, static="off")),
        generate(model, tokenizer, requests()[:2], settings),
        strict=True,
    ):
        assert_same(one, other)
    (step,) = Shelf.of(model).steps
    assert step.record is captured.compiled and len(step.recorded) > 1


def test_an_unknown_way_to_step_is_refused():
    with pytest.raises(ConfigError, match="static is 'fast': choose one of auto, on, off, compiled"):
        replace(SETTINGS, static="fast")


# ---- the parts ------------------------------------------------------------------------------------------------------


def test_no_prompt_and_no_row_is_masked_by_booleans(tiny, monkeypatch):
    masks, sdpa = [], torch.nn.functional.scaled_dot_product_attention

    def watched(*args, attn_mask=None, **more):
        masks.append(attn_mask)
        return sdpa(*args, attn_mask=attn_mask, **more)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    step = step_of(tiny(4), tiny(4).config.layout(text_pad=1, text_eos=2), lengths=(5, 9, 7))
    assert len(masks) == 3 and not any(mask is not None for mask in masks), "the prompt is plainly causal"
    step.step(4, 128, GREEDY)
    assert len({id(mask) for mask in masks[3:]}) == 1 and masks[3].dtype == torch.float32, (
        "one for all blocks"
    )


def test_stale_cache_rows_never_count(tiny):
    layout = tiny(4).config.layout(text_pad=1, text_eos=2)
    clean, dirty = step_of(tiny(4), layout), step_of(tiny(4), layout)
    for cache in dirty.cache:
        cache[:, :, :, 20:] = 1e4
    for _ in range(8):
        for step in (clean, dirty):
            step.step(2, 128, GREEDY)
        torch.testing.assert_close(clean.logits, dirty.logits)
    assert all(not torch.isnan(cache).any() for cache in clean.cache)


def test_bfloat16_steps_are_close_to_float32(tiny):
    layout = tiny(4).config.layout(text_pad=1, text_eos=2)
    whole, half = step_of(tiny(4), layout), step_of(tiny(4).to(torch.bfloat16), layout)
    assert half.cache[0].dtype == torch.bfloat16 and half.logits.dtype == torch.float32
    error = (whole.logits - half.logits).abs().mean() / whole.logits.std()
    assert 0 < error < 0.05


def test_joined_weights_are_views_and_change_nothing(tiny, tmp_path):
    model, rows = tiny(4), torch.randint(11, (1, 9, 5))
    with torch.no_grad():
        before = model(rows).speech_logits
        state = {name: value.clone() for name, value in model.state_dict().items()}
        join_weights(model)
        torch.testing.assert_close(model(rows).speech_logits, before)
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    attention = model.model.layers[0].self_attn
    joined = static_step.side_by_side([attention.q_proj, attention.k_proj, attention.v_proj])
    assert torch.equal(
        joined, torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
    )
    assert joined.data_ptr() == attention.q_proj.weight.data_ptr(), "no second copy"
    model.save_pretrained(tmp_path)
    again = SpeechLM.load(tmp_path)
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())
    layout = model.config.layout(text_pad=1, text_eos=2)
    fused, apart = step_of(model, layout), step_of(tiny(4), layout)
    fused.step(2, 128, GREEDY), apart.step(2, 128, GREEDY)
    torch.testing.assert_close(fused.logits, apart.logits)


def test_shapes_come_in_few_sizes():
    assert [slots_for(n) for n in (1, 2, 3, 5, 16, 17)] == [1, 2, 4, 8, 16, 32]
    assert [window_for(n) for n in (1, 128, 129, 192, 193, 1000, 1025)] == [
        128,
        128,
        192,
        192,
        256,
        1024,
        1536,
    ]
    assert all(n <= window_for(n) <= 1.5 * max(n, 128) for n in range(1, 5000))


def test_a_cache_beyond_the_memory_is_refused_in_one_line(tiny, tokenizer, monkeypatch):
    model = tiny(4)
    monkeypatch.setattr(static_step, "room", lambda device: cache_bytes(model, 1, 128))
    with pytest.raises(LimitError, match="GiB more for the cache") as error:
        generate(model, tokenizer, requests(), STATIC)
    assert "\n" not in str(error.value)
    short = replace(STATIC, max_rows=10)
    assert len(generate(model, tokenizer, requests()[1:2], short)[0].rows) == 10, "what fits is spoken"


def test_a_cache_that_is_too_small_grows_and_keeps_its_rows(tiny, tokenizer, monkeypatch, traced):
    monkeypatch.setattr(static_step.window_for, "__defaults__", (8,))
    monkeypatch.setattr(static_decode, "ROWS_PER_ID", 0)
    monkeypatch.setattr(static_decode, "ROOM", 2)
    model, settings = tiny(1), replace(STATIC, temperature=0.5)
    plain = generate(model, tokenizer, requests()[1:3], replace(settings, static="off"))
    for one, other in zip(plain, generate(model, tokenizer, requests()[1:3], settings), strict=True):
        assert_same(one, other)


def test_without_memory_to_grow_what_was_spoken_is_kept(tiny, tokenizer, monkeypatch):
    monkeypatch.setattr(static_step.window_for, "__defaults__", (8,))
    monkeypatch.setattr(static_decode, "ROWS_PER_ID", 0)
    monkeypatch.setattr(static_decode, "ROOM", 20)
    model, grow = tiny(4), StaticStep.grow

    def once(step, capacity):
        if step.capacity:
            raise LimitError("no more")
        grow(step, capacity)

    monkeypatch.setattr(StaticStep, "grow", once)
    whole = generate(model, tokenizer, requests(), replace(STATIC, static="off"))
    cut = generate(model, tokenizer, requests(), STATIC)
    assert {r.errors[-1] for r in cut} == {"long", "truncated"}, "short texts are through, long ones are cut"
    for one, other in zip(whole, cut, strict=True):
        assert torch.equal(one.rows[: len(other.rows)], other.rows)


def test_tables_name_the_last_id_of_every_chunk():
    layout = Layout(text_size=40, speech_size=7, streams=3)
    tables = tables_of(machine_of(layout, ChunkRules(2, 4, rows_per_token=1.5), [11, 1, 2, 3, 7, 22, 4, 5]))
    assert tables.ids == [1, 2, 3, 7, 4, 5], "blanks at chunk starts are left out"
    assert tables.limit == [-1, -1, -1, 6, -1, 3]
    assert [bool(room > 0) for room in tables.room] == [False, False, False, True, False, False]


@pytest.mark.gpu
def test_a_cuda_graph_writes_the_rows_of_the_plain_loop(tiny, tokenizer):
    model = tiny(4).to("cuda")
    for settings in (STATIC, replace(STATIC, temperature=0.7, top_k=5)):
        plain = generate(model, tokenizer, requests(), replace(settings, static="off"))
        for one, other in zip(plain, generate(model, tokenizer, requests(), settings), strict=True):
            assert_same(one, other)
    assert static_decode.fits([], "auto", torch.device("cuda"))
