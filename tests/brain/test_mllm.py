"""The whole brain: batches, saving, learning, decoding, limits."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from omnilib.brain import limits
from omnilib.brain.config import BrainConfig, smoke_config
from omnilib.brain.decode import AnswerSettings, stream, stream_text
from omnilib.brain.inputs import BrainProcessor
from omnilib.brain.layout import IMAGE, SPEECH
from omnilib.brain.mllm import MEDIA, Brain
from omnilib.errors import CheckpointError, ConfigError, LimitError, MediaError

NO_TOWERS = dict(vision_tower_config=None, speech_tower_config=None, speech_tower_aux_config=None)


@pytest.fixture
def requests(picture, sound):
    """Prompts of every make: text only, picture, short and long sound, video, all together; one list a
    keyword."""
    film = [picture(56, 56, i) for i in range(3)]
    texts = [
        "tell me",
        "see <image> it",
        "<speech>",
        "<speech> and <speech>",
        "<video><image> then <speech>what",
        "no media at all",
    ]
    images = [[], [picture(84, 56)], [], [], [picture(56, 112)], []]
    videos = [[], [], [], [], [film], []]
    audio = [[], [], [sound(0.3)], [sound(4.0), sound(0.7, 1)], [sound(2.1)], []]
    return dict(text=texts, images=images, videos=videos, audio=audio)


def single(requests: dict, i: int) -> dict:
    return {k: v[i] for k, v in requests.items()}


# ---- batches -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_mixed_batch_gives_each_row_what_it_gets_alone(ready, requests, side, attention):
    model, processor = ready(attn_implementation=attention)
    batch = processor(**requests, padding_side=side)
    logits = model(**batch).logits
    for i in range(len(requests["text"])):
        alone = model(**processor(**single(requests, i))).logits[0]
        torch.testing.assert_close(logits[i][batch["attention_mask"][i].bool()], alone, atol=2e-3, rtol=2e-3)


def test_a_mixed_batch_decodes_as_its_rows_alone(ready, requests):
    model, processor = ready()
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    batch = processor(**requests)
    together = model.generate(**batch, max_new_tokens=8, do_sample=False)
    streamed = torch.stack(list(stream(model, batch, AnswerSettings(max_new_tokens=8))), 1)
    rows = [processor(**single(requests, i)) for i in range(len(together))]
    alone = [model.generate(**row, max_new_tokens=8, do_sample=False) for row in rows]
    assert torch.equal(together, torch.cat(alone)) and torch.equal(streamed, together)
    assert len(set(map(tuple, together.tolist()))) > 1, "all rows say the same: the test shows nothing"


def test_cached_decoding_equals_the_whole_sequence_computed_again(ready, requests):
    """Logits of a step are those of prompt and answer so far without cache, at the layout's positions."""
    model, processor = ready()
    batch = processor(**single(requests, 4))
    options = dict(max_new_tokens=6, do_sample=False, eos_token_id=-1, output_logits=True)
    made = model.generate(**batch, **options, return_dict_in_generate=True)
    ids, grown = made.sequences[0], dict(batch)
    for step, logits in enumerate(made.logits):
        torch.testing.assert_close(model(**grown).logits[:, -1], logits, atol=1e-3, rtol=1e-3)
        place = int(batch["position_ids"].max()) + 1 + step
        grown["input_ids"] = torch.cat((grown["input_ids"], ids[None, step : step + 1]), 1)
        grown["attention_mask"] = torch.ones_like(grown["input_ids"])
        grown["position_ids"] = torch.cat((grown["position_ids"], torch.full((3, 1, 1), place)), -1)
    assert torch.equal(torch.cat(list(stream(model, batch, AnswerSettings(max_new_tokens=6, eos=())))), ids)


def test_each_row_of_a_batch_decodes_at_its_own_positions(ready, requests, monkeypatch):
    model, processor = ready()
    batch, fed = processor(**requests), []
    forward = model.model.forward
    spy = lambda *a, **k: fed.append(k["position_ids"]) or forward(*a, **k)  # noqa: E731
    monkeypatch.setattr(model.model, "forward", spy)
    last = batch["position_ids"].amax((0, 2))
    assert len(set((last - batch["attention_mask"].sum(1)).tolist())) > 1, "all rows have one delta"
    for run in (
        lambda: list(stream(model, batch, AnswerSettings(max_new_tokens=4, eos=()))),
        lambda: model.generate(**batch, max_new_tokens=4, do_sample=False, eos_token_id=-1),
    ):
        fed.clear()
        run()
        for step, positions in enumerate(fed[-3:], 1):
            assert torch.equal(positions, (last + step)[None, :, None].expand(3, -1, -1))


def test_logits_of_the_last_positions_alone_can_be_asked_for(ready, requests):
    model, processor = ready()
    batch = processor(**requests)
    assert torch.equal(model(**batch, logits_to_keep=2).logits, model(**batch).logits[:, -2:])


@pytest.mark.parametrize("prefill", [1, 3, 7, 1000])
def test_the_size_of_the_prefill_changes_nothing(ready, requests, prefill):
    model, processor = ready()
    batch = processor(**requests)
    ours = torch.stack(
        list(stream(model, batch, AnswerSettings(max_new_tokens=5, eos=(), prefill=prefill))),
        1,
    )
    assert torch.equal(
        ours,
        torch.stack(list(stream(model, batch, AnswerSettings(max_new_tokens=5, eos=()))), 1),
    )


def test_order_of_media_matters_to_the_model(ready, picture, sound):
    model, processor = ready()
    a = model(**processor("<image><speech>x", images=[picture()], audio=[sound(1.0)])).logits[0, -1]
    b = model(**processor("<speech><image>x", images=[picture()], audio=[sound(1.0)])).logits[0, -1]
    assert not torch.allclose(a, b, atol=1e-3)


def test_padding_of_short_sound_beside_long_sound_is_not_heard(ready, sound):
    model, processor = ready()
    alone = processor("<speech>", audio=[sound(0.3)])
    both = processor(["<speech>", "<speech>"], audio=[[sound(0.3)], [sound(1.9)]])
    hear = lambda batch: model.model.hear(batch["input_features"], batch["feature_positions"])  # noqa: E731
    assert len(hear(alone)) == 2
    torch.testing.assert_close(hear(both)[:2], hear(alone), atol=1e-4, rtol=1e-4)


def test_features_that_were_computed_before_take_the_place_of_media(ready, requests):
    model, processor = ready()
    batch = processor(**requests)
    kept = {k: v for k, v in batch.items() if k not in MEDIA}
    kept["picture_features"] = model.model.see(batch["pixel_values"], batch["image_grid_thw"])
    kept["speech_features"] = model.model.hear(batch["input_features"], batch["feature_positions"])
    assert torch.equal(model(**kept).logits, model(**batch).logits)
    without = Brain(BrainConfig(**(model.config.to_dict() | NO_TOWERS)))
    with pytest.raises(ConfigError, match="no vision tower"):
        without(**batch)
    batch.pop("pixel_values")
    with pytest.raises(ConfigError, match="no audio encoder"):
        without(**batch)


def test_features_must_fill_their_places(ready, sound):
    model, processor = ready()
    batch = processor("<speech>", audio=[sound(1.0)])
    batch["feature_positions"] = batch["feature_positions"] - 1
    with pytest.raises(MediaError, match="5 places for speech features but 4 features"):
        model(**batch)
    batch.pop("input_features")
    with pytest.raises(MediaError, match="5 places for speech features but 0 features"):
        model(**batch)


# ---- decoding ----------------------------------------------------------------------------------------------


def test_rows_end_by_themselves_and_go_on_with_pad(ready, requests):
    model, processor = ready()
    batch = processor(**requests)
    free = torch.stack(list(stream(model, batch, AnswerSettings(max_new_tokens=8, eos=()))), 1)
    stop = int(free[0, 2])
    ended = torch.stack(list(stream(model, batch, AnswerSettings(max_new_tokens=8, eos=(stop,)))), 1)
    for row, whole in zip(ended, free, strict=True):
        at = (whole == stop).nonzero()
        length = int(at[0]) + 1 if len(at) else 8
        assert torch.equal(row[:length], whole[:length]) and (row[length:] == model.config.pad_token_id).all()
    model.generation_config.eos_token_id = stop
    theirs = model.generate(**batch, max_new_tokens=8, do_sample=False)
    assert torch.equal(theirs, ended[:, : theirs.shape[1]])


def test_sampling_repeats_with_its_seed_and_obeys_top_k(ready, requests):
    model, processor = ready()
    batch = processor(**single(requests, 1))

    def run(**options) -> list[int]:
        settings = AnswerSettings(max_new_tokens=12, eos=(), **options)
        return torch.cat(list(stream(model, batch, settings))).tolist()

    assert run(temperature=2.0, seed=1) == run(temperature=2.0, seed=1)
    assert run(temperature=9.0, seed=1) != run(temperature=9.0, seed=2)
    assert run(temperature=9.0, seed=3, top_k=1) == run() == run(temperature=9.0, seed=4, top_p=1e-6)


@pytest.mark.parametrize(
    "options",
    [dict(num_beams=3, do_sample=False), dict(do_sample=True, num_return_sequences=2, top_k=3)],
)
def test_beams_and_several_answers_keep_the_positions_of_their_row(ready, requests, options):
    model, processor = ready()
    model.generation_config.eos_token_id = None
    torch.manual_seed(0)
    together = model.generate(**processor(**requests), max_new_tokens=5, **options)
    assert together.shape == (len(requests["text"]) * options.get("num_return_sequences", 1), 5)
    if "num_beams" in options:
        rows = [processor(**single(requests, i)) for i in range(len(together))]
        alone = [model.generate(**row, max_new_tokens=5, **options) for row in rows]
        assert torch.equal(together, torch.cat(alone))


def test_words_come_as_they_are_born(ready, requests):
    model, processor = ready()
    batch = processor(**single(requests, 1))
    settings = AnswerSettings(max_new_tokens=10, eos=())
    words = list(stream_text(model, processor, batch, settings))
    ids = torch.cat(list(stream(model, batch, settings)))
    assert "".join(words) == processor.decode(ids) and len(words) > 1


def test_a_stream_may_be_left_after_any_step(ready, requests):
    model, processor = ready()
    steps = stream(model, processor(**single(requests, 0)), AnswerSettings(max_new_tokens=500))
    first = next(steps)
    steps.close()
    assert first.shape == (1,)


def test_right_padding_is_refused_where_it_would_decode_wrongly(ready, requests):
    model, processor = ready()
    batch = processor(**requests, padding_side="right")
    for run in (lambda: model.generate(**batch, max_new_tokens=2), lambda: next(stream(model, batch))):
        with pytest.raises(MediaError, match="padding_side='left'"):
            run()


def test_pictures_without_positions_are_refused(ready, picture):
    model, processor = ready()
    batch = processor("<image>", images=[picture()])
    batch.pop("position_ids")
    for run in (lambda: model(**batch), lambda: model.generate(**batch, max_new_tokens=2)):
        with pytest.raises(MediaError, match="needs position_ids"):
            run()


@pytest.mark.parametrize(
    "bad",
    [
        dict(temperature=-1),
        dict(top_p=0.0),
        dict(top_p=1.1),
        dict(top_k=-1),
        dict(max_new_tokens=0),
        dict(prefill=0),
    ],
)
def test_impossible_settings_are_one_line(bad):
    with pytest.raises(ConfigError, match="answer settings: need"):
        AnswerSettings(**bad)


# ---- limits ------------------------------------------------------------------------------------------------


def test_an_answer_that_would_leave_the_context_is_refused(ready):
    model, processor = ready(max_position_embeddings=100)
    batch = processor("a" * 60)
    assert len(list(stream(model, batch, AnswerSettings(max_new_tokens=40, eos=())))) == 40
    message = r"this needs 101 positions \(60 of input, 41 to answer\), the model has 100"
    for run in (
        lambda: model.generate(**batch, max_new_tokens=41),
        lambda: next(stream(model, batch, AnswerSettings(max_new_tokens=41))),
    ):
        with pytest.raises(LimitError, match=message):
            run()


def test_memory_is_predicted_before_anything_is_computed(ready, requests, monkeypatch):
    model, processor = ready()
    batch = processor(**requests)
    need = limits.memory_needed(model, *batch["input_ids"].shape, 10, batch["pixel_values"])
    monkeypatch.setattr(model.model, "embed", lambda *a: pytest.fail("it was computed"))
    monkeypatch.setattr(limits, "free_memory", lambda device: need - 1)
    for run in (
        lambda: model.generate(**batch, max_new_tokens=10),
        lambda: next(stream(model, batch, AnswerSettings(max_new_tokens=10))),
    ):
        with pytest.raises(
            LimitError,
            match=r"needs about .* GiB of memory \(6 x \d+ positions\), .* GiB are free: shorten",
        ) as error:
            run()
        assert "\n" not in str(error.value)


def test_the_prediction_of_the_cache_is_its_size(ready, requests):
    model, processor = ready()
    batch = processor(**requests)
    rows, length = batch["input_ids"].shape
    cache = model(**batch, use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    grow = lambda n: limits.memory_needed(model, rows, length, n)  # noqa: E731
    assert held * 10 == (grow(11) - grow(1)) * length
    assert limits.memory_needed(model, rows, length, 1) > held


def test_free_memory_is_known_here():
    assert limits.free_memory(torch.device("cpu")) > 2**20
    assert limits.free_memory(torch.device("meta")) is None


# ---- saving ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
def test_a_saved_brain_comes_back_through_the_auto_classes(ready, requests, tmp_path, tied):
    model, processor = ready(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(str(tmp_path))
    assert isinstance(config, BrainConfig) and config.architectures == ["MGMOmniForCausalLM"]
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "MGMOmni"
    batch = BrainProcessor.from_pretrained(tmp_path)(**requests)
    for again in (
        AutoModelForCausalLM.from_pretrained(str(tmp_path)),
        Brain.load(tmp_path),
        Brain.from_pretrained(tmp_path),
    ):
        assert isinstance(again, Brain)
        assert (again.lm_head.weight is again.model.embed_tokens.weight) is tied
        assert torch.equal(again.eval()(**batch).logits, model(**batch).logits)


def test_a_brain_without_towers_is_saved_too(tmp_path):
    model = Brain(smoke_config(20, **NO_TOWERS))
    model.save_pretrained(tmp_path)
    again = Brain.load(tmp_path)
    assert again.config.vision_tower_config is None and again.model.speech_tower is None
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(again(ids).logits, model.eval()(ids).logits)


def test_a_damaged_folder_is_one_line(ready, tmp_path):
    model, _ = ready()
    model.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="cannot load the brain") as error:
        Brain.load(tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(CheckpointError, match="no config.json"):
        Brain.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(speech_encoder_ds_rate=0), "at least 1"),
        (dict(speech_batch=0), "at least 1"),
        (dict(video_max_frames=0), "video_max_frames"),
        (dict(video_fps=0.0), "video_fps"),
        (dict(hidden_size=64), "the vision tower gives 32"),
        (dict(mm_speech_projector_type="x"), "is unknown"),
    ],
)
def test_a_config_that_contradicts_itself_is_one_line(tiny, fields, message):
    with pytest.raises(ConfigError, match=message) as error:
        tiny(**fields)
    assert "\n" not in str(error.value)


# ---- learning ----------------------------------------------------------------------------------------------


def lessons(processor, picture, sound) -> dict:
    """A batch of every modality with answers to learn."""
    part = lambda kind, value: {"type": kind, kind: value}  # noqa: E731
    asked = [
        ([part("audio", sound(0.5))], "one"),
        ([part("audio", sound(0.5, 7))], "two"),
        ([part("image", picture(56, 56, 1)), "what"], "cat"),
        ([part("image", picture(56, 56, 2)), "what"], "dog"),
        ([part("video", [picture(56, 56, i) for i in (3, 4)]), part("audio", sound(2.5))], "runs"),
        (["hello"], "yes"),
    ]
    talks = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in asked]
    return (
        processor.chat(talks, answer=False, labels=True),
        [talk[:1] for talk in talks],
        [a for _, a in asked],
    )


def test_one_batch_of_every_modality_is_learned_by_heart(ready, picture, sound):
    model, processor = ready(unfreeze_mm_vision_tower=True, unfreeze_mm_speech_tower=True)
    batch, questions, answers = lessons(processor, picture, sound)
    optimiser = torch.optim.AdamW(model.parameters(), 1e-2)
    model.train()
    for _ in range(120):
        loss = model(**batch).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    assert loss.item() < 0.05
    told = model.eval().generate(**processor.chat(questions), max_new_tokens=6, do_sample=False)
    assert processor.batch_decode(told) == answers


def test_frozen_towers_stay_as_they_are(ready, picture, sound):
    model, processor = ready()
    batch, _, _ = lessons(processor, picture, sound)
    model.train()
    model(**batch).loss.backward()
    towers = [*model.model.vision_tower.parameters(), *model.model.speech_tower.parameters()]
    assert all(p.grad is None and not p.requires_grad for p in towers)
    assert model.training and not model.model.vision_tower.training and not model.model.speech_tower.training
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_loss_is_the_mean_over_all_labels_and_zero_without_any(ready, requests):
    model, processor = ready()
    batch = processor(**requests, padding_side="right")
    silent = (batch["input_ids"] < 0) | (batch["attention_mask"] == 0)
    batch["labels"] = batch["input_ids"].masked_fill(silent, -100)
    out = model(**batch, return_logits=True)
    plain = torch.nn.functional.cross_entropy(
        out.logits[:, :-1].flatten(0, 1),
        batch["labels"][:, 1:].flatten(),
    )
    torch.testing.assert_close(out.loss, plain)
    assert model(**batch).logits is None, "training must not build logits nobody asked for"
    batch["labels"] = torch.full_like(batch["labels"], -100)
    assert model(**batch).loss.item() == 0.0


def test_gradient_checkpointing_gives_the_same_gradients(ready, picture, sound):
    gradients = []
    for checkpointing in (False, True):
        model, processor = ready(unfreeze_mm_speech_tower=True, unfreeze_mm_vision_tower=True)
        batch, _, _ = lessons(processor, picture, sound)
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(**batch).loss.backward()
        gradients.append({k: p.grad for k, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-4, rtol=1e-3, msg=name)


def test_half_precision_runs_through_every_modality(ready, requests):
    model, processor = ready()
    batch = processor(**requests)
    whole = model(**batch).logits
    half = model.to(torch.bfloat16)(**batch).logits
    assert half.dtype == torch.float32 and torch.isfinite(half).all()
    live = batch["attention_mask"].bool()
    assert torch.nn.functional.cosine_similarity(half[live], whole[live]).mean() > 0.98
    model.generate(**batch, max_new_tokens=3)


def test_ids_of_media_are_negative_and_never_answered(ready, requests):
    model, processor = ready()
    assert int(model.generate(**processor(**requests), max_new_tokens=4).min()) >= 0 > IMAGE > SPEECH
