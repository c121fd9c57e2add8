"""The decoding loop: parity with the reference, and the equalities a user relies on."""

from dataclasses import replace

import pytest
import torch

from omnilib import config as configs
from omnilib.errors import CheckpointError, ConfigError, LimitError, UserError
from omnilib.mouth.chunking import ChunkMachine, ChunkRules, Kind, Layout
from omnilib.mouth.decode import Decoder, DecodeSettings, Request, choose, generate, split_tokens, stream
from omnilib.mouth.rows import layout_of, prompt_rows, splice_voice
from omnilib.mouth.speechlm import SpeechLM, SpeechLMConfig
from omnilib.mouth.step import Stepper
from omnilib.text import encode

SETTINGS = DecodeSettings(temperature=0.0, rows_per_token=2.0, chunk_min_tokens=6, chunk_max_tokens=12)
TEXTS = [
    "He maketh me to lie down in green pastures. Yes, I do! The lord is my shepherd; I shall not want.",
    "The lord is my shepherd.",
    "今天天气很好，我们去公园散步吧。",
    "Don't you know what this is about? Yes.",
]


def requests(seed: int = 0) -> list[Request]:
    """Texts in voices of different lengths."""
    g = torch.Generator().manual_seed(seed)
    voices = [
        ("I shall not want.", 50),
        ("今天天气很好。", 61),
        ("Yes, I do!", 40),
        ("I shall not want.", 33),
    ]
    return [
        Request(text, said, torch.randint(11, (n,), generator=g))
        for text, (said, n) in zip(TEXTS, voices, strict=True)
    ]


def assert_same(one, other) -> None:
    assert torch.equal(one.rows, other.rows) and torch.equal(one.tokens, other.tokens)
    assert one.chunks == other.chunks


def test_greedy_decoding_writes_the_reference_grids(golden):
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
        prompt, text = rows[:cut], rows[cut:-2, 0].tolist()  # without the turn's own end: <|im_end|>, newline
        if t.has(f"out.{case}.prompt_ids"):
            assert torch.equal(rows, t[f"out.{case}.prompt_ids"][0]), case
        if t.has(f"out.{case}.text_buffer"):
            assert text == t[f"out.{case}.text_buffer"].tolist(), case
        settings = DecodeSettings(
            temperature=0.0,
            max_rows=info["max_new_tokens"],
            blank_codes=info["blank_speech_tokens"],
            reference_quirks=True,
        )
        machine = ChunkMachine(layout, settings.rules(), words["id_to_string"].__getitem__, text)
        decoder = Decoder(model, layout, [prompt], [machine], settings)
        logits = []
        while not decoder.done:
            decoder.step()
            logits.append(decoder.stepper.logits[0])
        grid = decoder.rows(0)
        assert torch.equal(grid, t[f"out.{case}.grid"][0]), case
        if t.has(f"out.{case}.step_speech_logits"):
            expected = t[f"out.{case}.step_speech_logits"]
            tolerance = meta["tolerance"]["step_speech_logits abs"]
            torch.testing.assert_close(torch.stack(logits[: len(expected)]), expected, atol=tolerance, rtol=0)
        if t.has(f"out.{case}.tts_error"):
            guards = [c.error for c in machine.chunks if c.error in ("blank", "long")]
            assert bool(guards) == bool(t[f"out.{case}.tts_error"]), case


@pytest.mark.parametrize("streams", [1, 2, 4, 8])
def test_a_batch_of_texts_and_voices_decodes_as_each_alone(tiny, tokenizer, streams):
    model = tiny(streams)
    for settings in (SETTINGS, replace(SETTINGS, temperature=0.7, top_k=5)):
        together = generate(model, tokenizer, requests(), settings)
        assert len({len(r.rows) for r in together}) > 1, "they should end at different times"
        for request, result in zip(requests(), together, strict=True):
            assert_same(generate(model, tokenizer, [request], settings)[0], result)


def test_small_batches_keep_the_order(tiny, tokenizer):
    model = tiny(4)
    for one, other in zip(
        generate(model, tokenizer, requests(), SETTINGS, batch=2),
        generate(model, tokenizer, requests(), SETTINGS),
        strict=True,
    ):
        assert_same(one, other)


def test_streaming_speaks_the_same_tokens(tiny, tokenizer):
    model = tiny(4)
    for settings in (SETTINGS, replace(SETTINGS, temperature=0.5, top_p=0.9), replace(SETTINGS, max_rows=20)):
        for request in requests():
            pieces = list(stream(model, tokenizer, request, settings))
            assert sum(pieces, []) == generate(model, tokenizer, [request], settings)[0].tokens.tolist()
            assert len(pieces) > 1 and all(1 <= len(p) <= 4 for p in pieces)


def test_cached_steps_equal_one_long_forward(tiny, tokenizer):
    model = tiny(4)
    request = requests()[0]
    result = generate(model, tokenizer, [request], SETTINGS)[0]
    prompt = prompt_rows(
        tokenizer, layout_of(model.config, tokenizer), request.voice_text, request.voice_tokens
    )
    with torch.no_grad():
        logits = model(torch.cat([prompt, result.rows])[None]).speech_logits[0, len(prompt) - 1 : -1]
    choice = logits.argmax(-1)
    layout = layout_of(model.config, tokenizer)
    sampled = (result.rows[:, 0] < layout.audio_start) & (result.rows[:, 1:] != layout.speech_eos).any(-1)
    assert sampled.sum() > 20 and torch.equal(choice[sampled], result.rows[sampled, 1:])


def test_the_cache_grows_without_a_trace(tiny):
    model = tiny(4)
    prompts = [torch.randint(11, (n, 5)) for n in (5, 9)]
    small, large = Stepper(model, prompts, capacity=1), Stepper(model, prompts, capacity=100)
    for _ in range(30):
        rows = torch.randint(11, (2, 1, 5))
        torch.testing.assert_close(small.advance(rows), large.advance(rows), atol=1e-4, rtol=1e-4)
    small.keep([1])
    torch.testing.assert_close(small.advance(rows[1:]), large.advance(rows)[1:], atol=1e-4, rtol=1e-4)


def test_the_seed_decides_and_changes_the_sample(tiny, tokenizer):
    model, request = tiny(4), requests()[1]
    warm = replace(SETTINGS, temperature=1.0)
    first = generate(model, tokenizer, [request], warm)[0]
    assert_same(generate(model, tokenizer, [request], warm)[0], first)
    assert not torch.equal(generate(model, tokenizer, [request], replace(warm, seed=1))[0].rows, first.rows)


def test_samples_follow_the_softmax():
    logits = torch.tensor([[[0.0, 1.0, 2.0, -1.0]]]).expand(20000, 1, 4)
    noise = 1 - torch.rand(20000, 1, generator=torch.Generator().manual_seed(0))
    for temperature in (0.5, 1.0, 2.0):
        counts = (
            torch.bincount(choose(logits, DecodeSettings(), temperature, noise).flatten(), minlength=4)
            / 20000
        )
        assert (counts - (logits[0, 0] / temperature).softmax(-1)).abs().max() < 0.015


def test_top_k_and_top_p_cut_the_tail():
    logits = torch.tensor([[[0.0, 1.0, 2.0, -1.0]]]).expand(5000, 1, 4)  # probabilities .09 .24 .64 .03
    noise = 1 - torch.rand(5000, 1, generator=torch.Generator().manual_seed(0))
    for settings, allowed in (
        (DecodeSettings(top_k=1), {2}),
        (DecodeSettings(top_k=2), {1, 2}),
        (DecodeSettings(top_p=0.6), {2}),
        (DecodeSettings(top_p=0.7), {1, 2}),
        (DecodeSettings(top_p=0.95), {0, 1, 2}),
        (DecodeSettings(), {0, 1, 2, 3}),
    ):
        assert set(choose(logits, settings, 1.0, noise).flatten().tolist()) == allowed, settings
    assert choose(logits, DecodeSettings(), 0.0, None).unique().tolist() == [2]


def test_every_chunk_has_a_flag_and_nothing_is_retried_by_default(tiny, tokenizer):
    result = generate(tiny(4), tokenizer, requests()[:1], SETTINGS)[0]
    assert len(result.chunks) > 1 and result.errors == ["long"] * len(result.chunks), (
        "a random mouth never says eos"
    )
    assert result.failed and result.trials == 1 and result.temperature == 0.0


def test_retries_are_counted_and_warm_up(tiny, tokenizer):
    model = tiny(4)
    settings = replace(SETTINGS, temperature=0.4, retries=2, retry_step=0.3)
    result = generate(model, tokenizer, requests()[:1], settings)[0]
    assert result.trials == 3 and result.temperature == 0.4, "all failed: the first is returned"
    easy = replace(settings, rows_per_token=1000.0, eos_streams=0)  # every padding row ends the chunk
    result = generate(model, tokenizer, requests()[:1], easy)[0]
    assert result.trials == 1 and not result.failed


def test_the_row_limit_flags_the_chunk_and_keeps_its_speech(tiny, tokenizer):
    model, request = tiny(4), requests()[0]
    whole = generate(model, tokenizer, [request], SETTINGS)[0]
    for limit in (1, 7, 13, 30):
        cut = generate(model, tokenizer, [request], replace(SETTINGS, max_rows=limit))[0]
        assert torch.equal(cut.rows, whole.rows[:limit]) and cut.errors[-1] == "truncated"
        assert torch.equal(cut.tokens, whole.tokens[: len(cut.tokens)])
        layout = layout_of(model.config, tokenizer)
        spoken = split_tokens(whole.rows[:limit], layout)
        assert torch.equal(cut.tokens, spoken)


def test_one_endless_text_costs_the_others_nothing(tiny, tokenizer):
    model, settings = tiny(4), replace(SETTINGS, rows_per_token=1e6, eos_streams=4, max_rows=60)
    layout, rules = layout_of(model.config, tokenizer), SETTINGS.rules()
    texts = [encode(tokenizer, r.text) for r in requests()]
    prompts = [prompt_rows(tokenizer, layout, r.voice_text, r.voice_tokens) for r in requests()]
    make = lambda i: ChunkMachine(  # noqa: E731
        layout, settings.rules() if i == 0 else rules, lambda id: tokenizer.decode([id]), texts[i]
    )
    machines = [make(i) for i in range(4)]
    together = Decoder(model, layout, prompts, machines, settings)
    while not together.done:
        together.step()
    assert machines[0].chunks[-1].error == "truncated" and len(together.rows(0)) == 60
    for i in (1, 2, 3):
        alone = Decoder(model, layout, [prompts[i]], [make(i)], settings)
        while not alone.done:
            alone.step()
        assert torch.equal(together.rows(i), alone.rows(0)) and len(alone.rows(0)) < 60


def test_where_memory_ends_unfinished_texts_are_flagged_and_finished_ones_are_kept(
    tiny, tokenizer, monkeypatch
):
    model, settings = tiny(4), replace(SETTINGS, rows_per_token=8.0)
    whole = generate(model, tokenizer, requests(), settings)
    reserve, grown = Stepper.reserve, []

    def full(self, capacity):
        if self.length:
            grown.append(self.length)
            raise LimitError("no memory")
        reserve(self, max(map(len, prompts)) + 60)

    layout = layout_of(model.config, tokenizer)
    prompts = [prompt_rows(tokenizer, layout, r.voice_text, r.voice_tokens) for r in requests()]
    monkeypatch.setattr(Stepper, "reserve", full)
    found = generate(model, tokenizer, requests(), settings)
    assert grown and {r.errors[-1] for r in found} >= {"truncated", "long"}
    for one, other in zip(found, whole, strict=True):
        assert torch.equal(one.rows, other.rows[: len(one.rows)])
        assert (len(one.rows) == len(other.rows)) == (one.errors[-1] != "truncated")


def test_blank_codes_come_from_settings_or_from_the_model(tiny, tokenizer):
    every = list(range(13))
    by_setting = generate(
        tiny(4), tokenizer, requests()[1:2], replace(SETTINGS, blank_codes=every, blank_rows=3)
    )[0]
    by_model = generate(
        tiny(4, speech_blank_codes=every), tokenizer, requests()[1:2], replace(SETTINGS, blank_rows=3)
    )[0]
    assert by_setting.errors == by_model.errors == ["blank"]
    assert_same(by_setting, by_model)
    off = generate(
        tiny(4, speech_blank_codes=every), tokenizer, requests()[1:2], replace(SETTINGS, blank_codes=[])
    )[0]
    assert off.errors == ["long"]


def test_text_may_arrive_while_it_is_spoken(tiny, tokenizer):
    model, request = tiny(4), requests()[0]
    whole = generate(model, tokenizer, [request], replace(SETTINGS, normalise=False))[0]
    layout = layout_of(model.config, tokenizer)
    prompt = prompt_rows(tokenizer, layout, request.voice_text, request.voice_tokens)
    arriving = encode(tokenizer, request.text)
    machine = ChunkMachine(layout, SETTINGS.rules(), lambda i: tokenizer.decode([i]), closed=False)
    decoder = Decoder(model, layout, [prompt], [machine], SETTINGS)
    while not decoder.done:
        if not machine.ready:
            machine.push([arriving.pop(0)])
            if not arriving:
                machine.close()
            continue
        decoder.step()
    assert torch.equal(decoder.rows(0), whole.rows)


@pytest.mark.parametrize("text", ["", "   \n", "🎉🎉", "**", "..."])
def test_nothing_to_speak_is_one_clear_line(tiny, tokenizer, text):
    with pytest.raises(UserError, match="nothing to speak"):
        generate(tiny(4), tokenizer, [replace(requests()[0], text=text)], SETTINGS)


def test_nothing_to_speak_is_noticed_without_normalising_too(tiny, tokenizer):
    with pytest.raises(UserError, match="nothing to speak"):
        generate(tiny(4), tokenizer, [replace(requests()[0], text=" \n")], replace(SETTINGS, normalise=False))


def test_a_transcript_longer_than_its_recording_is_refused(tiny, tokenizer):
    with pytest.raises(UserError, match="transcript"):
        generate(
            tiny(4),
            tokenizer,
            [replace(requests()[0], voice_text="The lord is my shepherd. " * 20)],
            SETTINGS,
        )


def test_foreign_tokens_and_tokenizers_are_refused(tiny, tokenizer):
    with pytest.raises(UserError, match="do not match"):
        generate(tiny(4), tokenizer, [replace(requests()[0], voice_tokens=torch.full((30,), 11))], SETTINGS)
    config = SpeechLMConfig(vocab_size=999 + 4 * 13, tokenizer_speech_size=13)
    with pytest.raises(CheckpointError, match="trained together"):
        layout_of(config, tokenizer)


@pytest.mark.parametrize(
    "wrong",
    [
        *(dict(temperature=x) for x in (-1, float("nan"), float("inf"), -float("inf"))),
        *(dict(top_p=x) for x in (0, 1.5, float("nan"), float("inf"))),
        *(dict(seed=x) for x in (2**64, 10**20, -(2**63) - 1)),
        *(dict(rows_per_token=x) for x in (0, -1, float("nan"), float("inf"))),
        *(dict(retry_step=x) for x in (-0.1, float("nan"))),
        *({name: -1} for name in ("retries", "speak_retries", "blank_rows", "top_k")),
        dict(max_rows=0),
        dict(pass_rows=0),
        dict(chunk_min_tokens=9, chunk_max_tokens=3),
    ],
    ids=str,
)
def test_impossible_settings_are_refused_in_one_line(wrong):
    with pytest.raises(ConfigError) as error:
        DecodeSettings(**wrong)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("seed", [0, 2**63, 2**64 - 1000, -(2**63), -1])
def test_every_seed_that_is_accepted_can_be_decoded_with(tiny, tokenizer, seed):
    settings = replace(SETTINGS, seed=seed, temperature=1.0, retries=2, max_rows=6)
    assert generate(tiny(4), tokenizer, requests()[1:2], settings)[0].trials == 3


def test_settings_are_a_strict_config():
    settings = configs.load(
        DecodeSettings, None, ["temperature=0.2", "blank_codes=[1,2]", "chunk_min_tokens=20"]
    )
    assert settings == DecodeSettings(temperature=0.2, blank_codes=[1, 2], chunk_min_tokens=20)
    assert settings.rules().blank_codes == {1, 2} and settings.rules().min_tokens == 20
    with pytest.raises(ConfigError):
        configs.load(DecodeSettings, None, ["temprature=0.2"])


def test_rows_know_what_they_are(tiny, tokenizer):
    model, request = tiny(4), requests()[1]
    layout = layout_of(model.config, tokenizer)
    prompt = prompt_rows(tokenizer, layout, request.voice_text, request.voice_tokens)
    machine = ChunkMachine(
        layout, ChunkRules(rows_per_token=2), lambda i: tokenizer.decode([i]), encode(tokenizer, request.text)
    )
    decoder = Decoder(model, layout, [prompt], [machine], SETTINGS)
    while not decoder.done:
        decoder.step()
    kinds = [row.kind for row in decoder.grids[0]]
    n = len(encode(tokenizer, request.text))
    assert (
        kinds[:n] == [Kind.TEXT] * n
        and kinds[-2:] == [Kind.EOS, Kind.END]
        and set(kinds[n:-2]) == {Kind.PADDING}
    )
    assert isinstance(layout, Layout)
