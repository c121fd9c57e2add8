"""Parity with the released code, through the public classes, at the tolerances that the fixtures
recommend."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from omnilib.brain.config import BrainConfig
from omnilib.brain.decode import AnswerSettings, stream
from omnilib.brain.fusion import make_projector
from omnilib.brain.inputs import BrainProcessor
from omnilib.brain.layout import collate, grow
from omnilib.brain.media import Video, load_audio
from omnilib.brain.mllm import MEDIA, Brain
from tests.brain import reference
from tests.conftest import GOLDEN, load_golden


def near(ours, theirs, tolerance, message=None):
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0, msg=message)


def near_if_stored(t: dict, key: str, ours, tolerance):
    """Instances of a fixture differ in which of the lesser outputs they store."""
    if key in t:
        near(ours, t[key], tolerance, key)


def cases(name: str, having: str = "") -> list[str]:
    """Cases of a fixture, of which a tensor `out.<case>.<having>` is stored."""
    meta = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    return [case for case in meta["cases"] if not having or f"out.{case}.{having}" in meta["tensors"]]


# ---- mm_inputs: splicing, positions, labels, logits, loss, greedy continuation -----------------------------


def mm_brain(meta: dict, t: dict, **fields) -> Brain:
    config = BrainConfig(
        **reference.text_fields(meta["config"]),
        pad_token_id=None,
        mm_speech_projector_type="identity",
        **fields,
    )
    return reference.load(Brain(config), t)


def mm_batch(meta: dict, t: dict, name: str, side: str | None = None) -> tuple[dict, torch.Tensor, list]:
    """Rows of a case, padded, with the features that they use, in order; an entry of a row that has no such
    medium is left out."""
    ids, mask = t[f"in.{name}.input_ids"], t[f"in.{name}.attention_mask"].bool()
    labels = t.get(f"in.{name}.labels")
    rows, pictures, speech = [], [], []
    taken = {"image": 0, "speech": 0}
    for b in range(len(ids)):
        live = ids[b][mask[b]]
        grids, clips = [], []
        for kind, marker in (("image", -200), ("speech", -500)):
            count = int((live == marker).sum())
            for _ in range(count):
                i = taken[kind]
                taken[kind] += 1
                if kind == "image":
                    grids.append(tuple(t[f"in.{name}.grid_thw.{i}"].flatten().tolist()))
                    pictures.append(t[f"in.{name}.image_features.{i}"])
                else:
                    features = t[f"in.{name}.speech_features.{i}"].flatten(0, 1)  # chunks one after the other
                    clips.append(len(features))
                    speech.append(features)
            if count == 0 and f"in.{name}.{kind}_features.{taken[kind]}" in t:
                taken[kind] += 1  # the dummy of a row without it
        rows.append(
            grow(live.tolist(), grids, clips, None if labels is None else labels[b][mask[b]].tolist()),
        )
    batch = collate(rows, side=side or meta["config"].get("tokenizer_padding_side", "right"))
    norm = meta["cases"][name].get("speech_norm")
    if pictures:
        batch["picture_features"] = torch.cat(pictures)
    if speech:
        joined = torch.cat(speech)
        batch["speech_features"] = torch.nn.functional.normalize(joined, dim=-1) if norm else joined
    return batch, t.get(f"out.{name}.rope_deltas"), rows


@pytest.mark.parametrize("name", cases("mm_inputs"))
def test_spliced_inputs_logits_and_loss_match_the_reference(golden, name):
    meta, t = golden("mm_inputs")
    model, tolerance = mm_brain(meta, t), meta["tolerance"]
    batch, deltas, rows = mm_batch(meta, t, name)
    mask = t[f"out.{name}.attention_mask"].bool()
    assert torch.equal(batch["attention_mask"].bool(), mask)
    assert torch.equal(batch["position_ids"], t[f"out.{name}.position_ids"])
    if f"out.{name}.labels" in t:
        assert torch.equal(batch["labels"], t[f"out.{name}.labels"])
    with_media = [row.rope_delta for row in rows if (row.ids < 0).any()]
    if deltas is not None:
        assert with_media == deltas.flatten().tolist()
    embeds = model.model.embed(
        batch["input_ids"],
        batch.get("picture_features"),
        batch.get("speech_features"),
    )
    near(embeds[mask], t[f"out.{name}.inputs_embeds"][mask], tolerance["inputs_embeds abs"])
    out = model(**batch, return_logits=True)
    near(out.logits[mask], t[f"out.{name}.logits"][mask], tolerance["logits abs"])
    if out.loss is not None:
        near_if_stored(t, f"out.{name}.loss", out.loss, tolerance["loss abs"])


@pytest.mark.parametrize("name", cases("mm_inputs", having="greedy_ids"))
def test_spliced_inputs_go_on_as_the_reference_does(golden, name):
    meta, t = golden("mm_inputs")
    model = mm_brain(meta, t)
    batch, _, _ = mm_batch(meta, t, name, side="left")
    batch.pop("labels", None)
    theirs = t[f"out.{name}.greedy_ids"]
    assert torch.equal(model.generate(**batch, max_new_tokens=theirs.shape[1], do_sample=False), theirs)
    streamed = torch.stack(list(stream(model, batch, AnswerSettings(max_new_tokens=theirs.shape[1]))), 1)
    assert torch.equal(streamed, theirs)


# ---- projector ---------------------------------------------------------------------------------------------


def from_recipe(seed: int, shapes: dict) -> dict[str, torch.Tensor]:
    """Weights of the recipe: keys in ASCII order from one generator."""
    rs, made = np.random.RandomState(seed), {}  # noqa: NPY002  the recipe's generator
    for key in sorted(shapes):
        r = rs.standard_normal(shapes[key])
        gain = key.endswith(".0.weight") and len(shapes[key]) == 1
        value = 1 + 0.1 * r if gain else (0.05 if len(shapes[key]) == 1 else 0.04) * r
        made[key] = torch.from_numpy(value.astype(np.float32))
    return made


def recipe_input(entry: dict, seed: str = "input_seed") -> torch.Tensor:
    values = np.random.RandomState(entry[seed]).standard_normal(entry["shape"]) * 1.5  # noqa: NPY002
    return torch.from_numpy(values.astype(np.float32))


@pytest.mark.parametrize("kind", ["dual_mlp", "dual_mlp_attn"])
def test_information_mining_matches_the_reference(golden, kind):
    meta, t = golden("projector")
    c, recipe = meta["config"]["dual"], meta["recipe"]["dual"]
    model = make_projector(
        kind,
        c["dim1"],
        c["dim2"],
        c["speech_encoder_ds_rate"],
        c["hidden_size"],
        c["mid"],
    )
    weights = from_recipe(recipe["weight_seed"], {k: tuple(v.shape) for k, v in model.state_dict().items()})
    assert sorted(weights) == sorted(recipe["keys"])
    for key, check in recipe["checksums"].items():
        assert weights[key].double().sum().item() == pytest.approx(check["sum"], abs=1e-2)
    model.load_state_dict(weights)
    main = recipe_input(recipe["in_main"])
    near(model(main, recipe_input(recipe["in_aux"])), t["out.dual"], meta["tolerance"]["abs"])
    if "out.dual_rate1" in t:
        near(model(main, recipe_input(recipe["in_aux_rate1"])), t["out.dual_rate1"], meta["tolerance"]["abs"])


def test_simple_projector_matches_the_reference(golden):
    meta, t = golden("projector")
    c, recipe = meta["config"]["simple"], meta["recipe"]["simple"]
    model = make_projector(
        "simple_mlp",
        c["speech_encoder_hidden_size"],
        1,
        c["speech_encoder_ds_rate"],
        c["hidden_size"],
        c["mid"],
    )
    model.load_state_dict(
        from_recipe(recipe["weight_seed"], {k: tuple(v.shape) for k, v in model.state_dict().items()}),
    )
    near(model(t["in.simple.x"]), t["out.simple"], meta["tolerance"]["abs"])


# ---- brain_audio -------------------------------------------------------------------------------------------


def audio_case(meta: dict, t: dict, name: str) -> torch.Tensor:
    """The wave of a case, 16 kHz; the released code reads channel 0 only, so that is what is given here."""
    case = meta["cases"][name]
    if case["samples"] == 0:
        return torch.zeros(0)
    stored = t.get(f"in.{name}.int16")
    recipe = lambda: reference.wave(case["seconds"], case["seed"], case["rate"])  # noqa: E731
    samples = stored.numpy() if stored is not None else recipe()
    if "int16_sum" in case and samples.ndim == 1:
        assert int(samples.sum(dtype=np.int64)) == case["int16_sum"], "the recipe gives another wave here"
    return load_audio((samples[:, 0] if samples.ndim == 2 else samples, case["rate"]))


def strided(t: dict, stem: str):
    """(tensor, stride) of `stem`, `stem_every3`, ..."""
    for key, value in t.items():
        if key == stem or key.startswith(f"{stem}_every"):
            return value, int(key.rpartition("_every")[2]) if "_every" in key else 1
    return None, None


@pytest.mark.parametrize("name", cases("brain_audio"))
def test_audio_encoders_and_features_match_the_reference(golden, name):
    meta, t = golden("brain_audio")
    brain_meta, brain_tensors = golden("brain_generate_greedy")
    case, tolerance = meta["cases"][name], meta["tolerance"]
    rate, norm = meta["config"]["speech_encoder_ds_rate"], meta["config"]["speech_norm"]
    model = reference.brain(brain_meta, brain_tensors, speech_encoder_ds_rate=rate, speech_norm=norm)
    processor = BrainProcessor(None, model.config)
    wave = audio_case(meta, t, name)
    resampled, stride = strided(t, f"out.{name}.resampled_16k")
    if resampled is not None:
        near(wave[::stride], resampled, tolerance["resampled abs"])
    windows, counts = processor.windows(wave), processor.speech_positions(len(wave))
    assert len(windows) == case["chunks"] and counts == [case["tokens_per_chunk"]] * case["chunks"]
    first = t.get(f"out.{name}.mel_first400")
    if first is not None:
        near(windows[0, :, :400], first, tolerance["mel abs"])
    mel, stride = strided(t, f"out.{name}.mel")
    if mel is not None:
        near(windows[..., ::stride], mel, tolerance["mel abs"])
    positions = torch.tensor(counts)
    with torch.no_grad():
        main, aux = model.model.encode_speech(windows, positions)
        for ours, stem in ((main, "main"), (aux, "aux")):
            theirs, stride = strided(t, f"out.{name}.{stem}")
            if theirs is not None:
                near(ours[:, ::stride], theirs, tolerance["main, aux, boundary abs"], stem)
        key = "speech_features with speech_norm abs" if norm else "speech_features abs"
        other = "speech_features abs" if norm else "speech_features with speech_norm abs"
        features = model.model.hear(windows, positions)
        theirs, stride = strided(t, f"out.{name}.speech_features")
        near(features[::stride], theirs, tolerance[key])
        model.config.speech_norm = not norm
        theirs = t.get(f"out.{name}.speech_features_other_norm")
        if theirs is not None:
            near(model.model.hear(windows, positions)[::5], theirs, tolerance[other])


@pytest.mark.parametrize("name", cases("brain_audio", having="variant_ds.speech_features"))
def test_another_rate_of_positions_matches_the_reference(golden, name):
    meta, t = golden("brain_audio")
    theirs = t[f"out.{name}.variant_ds.speech_features"]
    c = meta["config"]
    model = reference.brain(*golden("brain_generate_greedy"))
    config = reference.brain_config(
        golden("brain_generate_greedy")[0],
        speech_encoder_ds_rate=c["variant_ds_rate"],
        speech_norm=c["speech_norm"],
    )
    model.config = model.model.config = config
    model.model.mm_speech_projector = make_projector(
        "dual_mlp",
        c["dim_main"],
        c["dim_aux"],
        c["variant_ds_rate"],
        c["hidden_size"],
        c["mid"],
    )
    model.model.mm_speech_projector.load_state_dict(
        {k[10:]: v for k, v in t.items() if k.startswith("w.variant.")},
    )
    processor, wave = BrainProcessor(None, config), audio_case(meta, t, name)
    with torch.no_grad():
        features = model.model.hear(
            processor.windows(wave),
            torch.tensor(processor.speech_positions(len(wave))),
        )
    key = "speech_features with speech_norm abs" if c["speech_norm"] else "speech_features abs"
    near(features[::5], theirs, meta["tolerance"][key])


def test_inner_boundaries_of_encoders_and_mining_match_the_reference(golden):
    meta, t = golden("brain_audio")
    names = sorted({k.split(".")[1] for k in t if ".boundary." in k})
    model = reference.brain(*golden("brain_generate_greedy"))
    processor, near_enough = BrainProcessor(None, model.config), meta["tolerance"]["main, aux, boundary abs"]
    seen, tower, mining = {}, model.model.speech_tower, model.model.mm_speech_projector

    def keep(name):
        return lambda module, inputs, output: seen.update({name: output, f"{name}_in": inputs[0]})

    hooks = {
        "main.conv1": tower.speech_tower.conv1,
        "main.conv2": tower.speech_tower.conv2,
        "main.layer_last": tower.speech_tower.layers[-1],
        "main.avg_pool": tower.speech_tower.avg_pooler,
        "aux.conv1": tower.speech_tower_aux.conv1,
        "aux.conv2": tower.speech_tower_aux.conv2,
        "aux.layer_last": tower.speech_tower_aux.layers[-1],
        "proj.query": mining.dual_query,
        "proj.key": mining.dual_aux,
        "proj.value": mining.dual_val,
        "proj.linear1": mining.linear1,
    }
    for name, module in hooks.items():
        module.register_forward_hook(keep(name))
    for name in names:
        wave = audio_case(meta, t, name)
        with torch.no_grad():
            model.model.hear(
                processor.windows(wave)[:1],
                torch.tensor(processor.speech_positions(len(wave))[:1]),
            )
        pairs = {k: seen[k][0].unflatten(0, (-1, 2)) for k in ("proj.key", "proj.value")}
        ours = {
            **{k: seen[k][0][:, ::25] for k in ("main.conv1", "main.conv2", "aux.conv1", "aux.conv2")},
            **{k: seen[k][0][::25] for k in ("main.layer_last", "aux.layer_last", "proj.query")},
            **{k: v[::25] for k, v in pairs.items()},
            "main.avg_pool": seen["main.avg_pool"][0][:1],
            "proj.linear1": seen["proj.linear1"][0][::5],
            "proj.linear1_in": seen["proj.linear1_in"][0][::5],
        }
        for key, value in ours.items():
            theirs = t.get(f"out.{name}.boundary.{key}")
            if theirs is not None:
                near(value, theirs, near_enough, key)
    assert seen, "the fixture has no boundaries"


# ---- brain_generate_greedy ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole():
    """Brain, processor, json and tensors of the generation fixture."""
    meta, t = load_golden("brain_generate_greedy")
    model = reference.brain(meta, t)
    model.config.eos_token_id = model.generation_config.eos_token_id = meta["tokenizer"]["eos_token_id"]
    model.config.pad_token_id = model.generation_config.pad_token_id = meta["tokenizer"]["pad_token_id"]
    limits = meta["image_processor"]
    processor = BrainProcessor(
        reference.tokenizer(meta),
        model.config,
        limits["min_pixels"],
        limits["max_pixels"],
    )
    return model, processor, meta, t


def request(meta: dict, t: dict, name: str) -> tuple[str, list, list, list]:
    """Prompt, images, videos and waves of a case; the released prompt marks a video as an image."""
    case = meta["cases"][name]
    pictures, waves = reference.media_of(meta, t, case)
    films = [isinstance(picture, Video) for picture in pictures]
    head, *rest = case["prompt"].split("<image>")
    marks = ["<video>" if film else "<image>" for film in films]
    prompt = head + "".join(mark + piece for mark, piece in zip(marks, rest, strict=True))
    return (
        prompt,
        [p for p, film in zip(pictures, films) if not film],
        [p.source for p, film in zip(pictures, films) if film],
        waves,
    )


def split(processor: BrainProcessor, features: torch.Tensor, waves: list) -> list[torch.Tensor]:
    """Features of each recording."""
    return list(features.split([sum(processor.speech_positions(len(load_audio(wave)))) for wave in waves]))


def prepared(processor: BrainProcessor, meta: dict, t: dict, name: str) -> dict:
    prompt, images, videos, waves = request(meta, t, name)
    return processor(prompt, images=images, videos=videos, audio=waves)


@pytest.mark.parametrize("name", cases("brain_generate_greedy"))
def test_a_whole_sample_matches_the_reference(whole, name):
    model, processor, meta, t = whole
    tolerance, case = meta["tolerance"], meta["cases"][name]
    batch = prepared(processor, meta, t, name)
    prompt, images, videos, waves = request(meta, t, name)
    ungrown, _ = processor.prompt(prompt, images, videos, waves).ids(processor.tokenizer)
    assert ungrown == t[f"in.{name}.input_ids"][0].tolist()
    assert batch["input_ids"].shape == (1, case["sequence_length"])
    assert torch.equal(batch["position_ids"], t[f"out.{name}.position_ids"])
    assert batch["rope_deltas"].tolist() == [case["rope_delta"]]
    with torch.no_grad():
        if case["media"]:
            features = model.model.see(batch["pixel_values"], batch["image_grid_thw"])
            for medium, grid in zip(case["media"], batch["image_grid_thw"], strict=True):
                assert torch.equal(grid[None], t[f"out.media.{medium}.grid_thw"])
                size = int(grid.prod()) // model.config.merge**2
                near_if_stored(
                    t,
                    f"out.media.{medium}.features",
                    features[:size],
                    tolerance["media features abs"],
                )
                features = features[size:]
        if case["waves"]:
            features = model.model.hear(batch["input_features"], batch["feature_positions"])
            for name_of_wave, own in zip(case["waves"], split(processor, features, waves), strict=True):
                near_if_stored(t, f"out.wave.{name_of_wave}.features", own, tolerance["wave features abs"])
        inputs = {k: v for k, v in batch.items() if k == "input_ids" or k in MEDIA}
        embeds, theirs = model.embed_inputs(**inputs)[0], t[f"out.{name}.inputs_embeds"]
        ours = embeds if len(embeds) <= 64 else torch.cat((embeds[:32], embeds[-32:]))
        near(ours, theirs, tolerance["inputs_embeds abs"])
        logits = model(**batch).logits[0, -12:]
        near_if_stored(t, f"out.{name}.prefill_logits", logits, tolerance["logits abs"])
    greedy = t[f"out.{name}.greedy_ids"]
    settings = AnswerSettings(max_new_tokens=meta["max_new_tokens"])
    assert torch.equal(torch.stack(list(stream(model, batch, settings)), 1), greedy)
    record = model.generate(
        **batch,
        max_new_tokens=meta["max_new_tokens"],
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    assert torch.equal(record.sequences, greedy)
    near_if_stored(t, f"out.{name}.step_logits", torch.cat(record.logits), tolerance["logits abs"])


@pytest.mark.parametrize("name", cases("brain_generate_greedy"))
def test_decoding_feeds_the_reference_positions(whole, name, monkeypatch):
    model, processor, meta, t = whole
    batch, fed = prepared(processor, meta, t, name), []
    forward = model.model.forward

    def spy(*args, **kwargs):
        fed.append(kwargs["position_ids"])
        return forward(*args, **kwargs)

    monkeypatch.setattr(model.model, "forward", spy)
    for run in (
        lambda: list(stream(model, batch, AnswerSettings(max_new_tokens=meta["max_new_tokens"]))),
        lambda: model.generate(**batch, max_new_tokens=meta["max_new_tokens"], do_sample=False),
    ):
        fed.clear()
        run()
        assert torch.equal(torch.cat(fed[1:], -1)[:, 0].T, t[f"out.{name}.decode_positions"])


def media_names() -> list[str]:
    names = json.loads((GOLDEN / "brain_generate_greedy.json").read_text(encoding="utf-8"))["tensors"]
    return [name.split(".")[2] for name in names if name.startswith("in.media.")]


@pytest.mark.parametrize("medium", media_names())
def test_pixels_match_the_reference(whole, medium):
    _, processor, meta, t = whole
    still = t.get(f"in.media.{medium}.rgb")
    source = Video(t[f"in.media.{medium}.frames"].numpy()) if still is None else still.numpy()
    pixels, grid = processor.picture(source)
    assert list(grid) == t[f"out.media.{medium}.grid_thw"][0].tolist()
    theirs, stride = strided(t, f"out.media.{medium}.pixel_values")
    key = "pixel_values of VID abs" if still is None else "pixel_values abs"
    near(pixels[::stride], theirs, meta["tolerance"][key])


def test_rows_of_a_padded_batch_decode_as_alone(whole):
    """The released code misaligns rope deltas behind a text-only row; here each row has its own."""
    model, processor, meta, t = whole
    names = meta["batch"]["samples"]
    media = [reference.media_of(meta, t, meta["cases"][name]) for name in names]
    batch = processor(
        [meta["cases"][name]["prompt"] for name in names],
        images=[m[0] for m in media],
        audio=[m[1] for m in media],
    )
    assert torch.equal(batch["attention_mask"], t["out.batch.attention_mask"])
    live = batch["attention_mask"].bool().expand(3, -1, -1)
    assert torch.equal(batch["position_ids"][live], t["out.batch.position_ids"][live])
    theirs, count = t["out.batch.greedy_ids"], meta["max_new_tokens"]
    for ours in (
        torch.stack(list(stream(model, batch, AnswerSettings(max_new_tokens=count)))[:count], 1),
        model.generate(**batch, max_new_tokens=count, do_sample=False),
    ):
        assert torch.equal(ours, theirs[:, : ours.shape[1]])
        assert (theirs[:, ours.shape[1] :] == meta["tokenizer"]["pad_token_id"]).all()


# ---- brain_training_loss -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", cases("brain_training_loss"))
def test_training_loss_and_gradients_match_the_reference(whole, golden, name):
    _, processor, brain_meta, brain_tensors = whole
    meta, t = golden("brain_training_loss")
    case, tolerance = meta["cases"][name], meta["tolerance"]
    model = reference.brain(brain_meta, brain_tensors).train()
    ids, mask, labels = (t[f"in.{name}.{key}"] for key in ("input_ids", "attention_mask", "labels"))
    mask = mask.bool()
    short = brain_meta["waves"]["short"]
    wave = load_audio((reference.wave(short["seconds"], short["seed"], short["rate"]), short["rate"]))
    windows, counts = processor.windows(wave), processor.speech_positions(len(wave))
    rows, pixels, grids, sound, taken = [], [], [], [], []
    for b in range(len(ids)):
        live = ids[b][mask[b]].tolist()
        shown = [case["images"][b]] * live.count(-200) if -200 in live else []
        own = [processor.picture(brain_tensors[f"in.media.{name}.rgb"].numpy()) for name in shown]
        clips = live.count(-500)
        rows.append(grow(live, [g for _, g in own], [sum(counts)] * clips, labels[b][mask[b]].tolist()))
        pixels, grids = pixels + [p for p, _ in own], grids + [g for _, g in own]
        sound, taken = sound + [windows] * clips, taken + counts * clips
    batch = collate(rows)
    if pixels:
        batch |= {"pixel_values": torch.cat(pixels), "image_grid_thw": torch.tensor(grids)}
    if sound:
        batch |= {"input_features": torch.cat(sound), "feature_positions": torch.tensor(taken)}
    assert torch.equal(batch["labels"], t[f"out.{name}.labels"])
    assert torch.equal(batch["attention_mask"].bool(), t[f"out.{name}.mask"].bool())
    if f"out.{name}.position_ids" in t:
        assert torch.equal(batch["position_ids"], t[f"out.{name}.position_ids"])
    loss = model(**batch).loss
    near(loss, t[f"out.{name}.loss"], tolerance["loss abs"])
    loss.backward()
    named = dict(model.named_parameters())
    near_zero = tolerance["gradient norms abs floor"]
    for key, norm in zip(case["grad_names"], t[f"out.{name}.grad_norms"].double(), strict=True):
        if key == "lm_head.weight" and model.config.tie_word_embeddings:
            key = "model.embed_tokens.weight"
        ours = named[key].grad.double().norm()
        torch.testing.assert_close(ours, norm, rtol=tolerance["gradient norms rel"], atol=near_zero, msg=key)
    for key, value in t.items():
        if key.startswith(f"out.{name}.grad."):
            near(named[key.removeprefix(f"out.{name}.grad.")].grad, value, tolerance["gradients abs"], key)
    for stem in case["parameters_without_gradient"]:
        grads = [p.grad for k, p in named.items() if k.startswith(stem)]
        assert all(g is None or not g.any() for g in grads), stem


def test_weights_of_the_fixture_have_no_other_names(golden):
    meta, _ = golden("brain_generate_greedy")
    held = {k[2:] for k in load_file(str(GOLDEN / "brain_generate_greedy.safetensors")) if k.startswith("w.")}
    config = reference.brain_config(meta)
    model = Brain(config)
    lacking = set(model.state_dict()) - held
    assert not held - set(model.state_dict())
    assert not lacking or (config.tie_word_embeddings and lacking == {"lm_head.weight"})
