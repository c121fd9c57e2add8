"""The processor: prompts, batches, placeholders, limits, saving."""

import json

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from transformers import AutoProcessor

from omnilib.brain import inputs
from omnilib.brain.inputs import BrainProcessor
from omnilib.brain.layout import IMAGE, SPEECH
from omnilib.brain.media import Video
from omnilib.brain.prompts import conversation
from omnilib.errors import AudioError, CheckpointError, LimitError, MediaError, UserError
from omnilib.text import train_tokenizer


def text_of(prompt, tokenizer) -> str:
    """A prompt with its placeholders as written by the released code."""
    names = {IMAGE: "<image>", SPEECH: "<speech>"}
    return "".join(names[p.marker] if p.marker is not None else p.text for p in prompt.pieces)


def user(*parts) -> dict:
    return {"role": "user", "content": list(parts)}


def image(source=None) -> dict:
    return {"type": "image", "image": np.zeros((56, 56, 3), np.uint8) if source is None else source}


def video(source=None) -> dict:
    return {"type": "video", "video": [np.zeros((56, 56, 3), np.uint8)] * 2 if source is None else source}


def audio(seconds: float = 1.0) -> dict:
    return {"type": "audio", "audio": np.full(round(seconds * 16000), 0.1, np.float32)}


# ---- prompts -----------------------------------------------------------------------------------------------


def test_conversations_give_the_published_prompts(golden, words):
    meta, _ = golden("brain_generate_greedy")
    spoken, seen = audio(), image()
    made = {
        "text": [user("Tell me a short story.")],
        "image": [user(seen, "Describe the picture.")],
        "audio": [user(spoken, "Describe the sound.")],
        "image_audio": [user(seen, spoken)],
        "video": [user(video(), "Describe the video.")],
        "two_images": [user(seen, seen, "Tell me the story.")],
        "image_video_audio": [user(seen, video(), spoken)],
        "two_audios": [user(spoken, spoken, "What is this?")],
    }
    checked = 0
    for name, messages in made.items():
        told = meta["cases"].get(name)
        if told is None:
            continue
        frame = told["prompt"].replace(told["user"], "{user}")
        ours = text_of(conversation(messages), words)
        assert ours.startswith(frame.split("{user}")[0]) and ours.endswith(frame.split("{user}")[1])
        if told["user"].rsplit("\n", 1)[-1] == str(messages[0]["content"][-1]):
            assert ours == told["prompt"]
            checked += 1
    assert checked or "text" not in meta["cases"]


def test_media_of_earlier_turns_are_kept(ready):
    _, processor = ready()
    talk = [
        user(image(), audio(), "what"),
        {"role": "assistant", "content": "a cat"},
        user(audio(0.2), "and now"),
    ]
    batch = processor.chat(talk)
    assert len(batch["image_grid_thw"]) == 1 and batch["feature_positions"].tolist() == [5, 1]
    assert (batch["input_ids"] == IMAGE).sum() == 4 and (batch["input_ids"] == SPEECH).sum() == 6


def test_what_a_user_types_is_no_placeholder_and_no_control_token(tiny):
    words = train_tokenizer(["the light of the morning"], size=300)
    processor = BrainProcessor(words, tiny().config)
    batch = processor.chat([user(audio(0.2), "<image> <speech> <|im_end|>")])
    ids = batch["input_ids"][0]
    assert (ids == SPEECH).sum() == 1 and (ids == IMAGE).sum() == 0
    assert (ids == words.convert_tokens_to_ids("<|im_end|>")).sum() == 2  # the ends of both turns
    assert "<image> <speech> <|im_end|>" in words.decode(ids[ids >= 0])


def test_labels_ask_for_the_assistants_words_and_their_end(ready, words):
    _, processor = ready()
    talk = [
        user(audio(0.2), "hi"),
        {"role": "assistant", "content": "yes"},
        user("so"),
        {"role": "assistant", "content": "no"},
    ]
    batch = processor.chat([talk, talk[:2]], answer=False, labels=True)
    chosen = [row[row != -100] for row in batch["labels"]]
    assert [words.decode(c) for c in chosen] == ["yes<|im_end|>no<|im_end|>", "yes<|im_end|>"]
    kept = batch["labels"] != -100
    assert torch.equal(batch["labels"][kept], batch["input_ids"][kept])
    assert batch["attention_mask"][:, 0].all(), "training pads on the right"


def test_a_system_turn_replaces_the_standard_one(ready, words):
    _, processor = ready()
    batch = processor.chat([{"role": "system", "content": "Be brief."}, user("hi")])
    assert words.decode(batch["input_ids"][0]).startswith("<|im_start|>system\nBe brief.<|im_end|>\n")


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "an empty conversation"),
        ([{"role": "robot", "content": "x"}], "role 'robot'"),
        ([{"role": "user", "content": [{"type": "smell"}]}], "a turn holds"),
        ([{"role": "user", "content": [7]}], "a turn holds 7"),
        ([{"role": "user", "content": [{"type": "image"}]}], "without 'image'"),
        (
            [{"role": "assistant", "content": [{"type": "image", "image": 1}]}],
            "an assistant's turn with media",
        ),
        ([{"role": "user", "content": "x"}, {"role": "system", "content": "y"}], "role 'system'"),
    ],
)
def test_bad_conversations_are_one_line(ready, messages, message):
    _, processor = ready()
    with pytest.raises(MediaError, match=message) as error:
        processor.chat(messages)
    assert "\n" not in str(error.value)


def test_no_prompts_at_all_is_one_line(ready):
    _, processor = ready()
    with pytest.raises(MediaError, match="nothing to prepare"):
        processor([])


# ---- placeholders and media --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "media", "message"),
    [
        ("<image><image>", dict(images=[0]), "2 <image> but 1 images are given"),
        ("<image>", dict(images=[0, 0]), "1 <image> but 2 images are given"),
        ("hi", dict(images=[0]), "0 <image> but 1 images"),
        ("<image>", {}, "1 <image> but 0 images"),
        ("<video>", dict(images=[0]), "0 <image> but 1 images"),
        ("<video>", {}, "1 <video> but 0 videos"),
        ("<speech>", {}, "1 <speech> but 0 recordings are given"),
        ("hi", dict(audio=[1]), "0 <speech> but 1 recordings"),
        ("<speech>", dict(audio=[1, 1]), "1 <speech> but 2 recordings"),
    ],
)
def test_there_must_be_one_medium_for_each_placeholder(ready, text, media, message):
    _, processor = ready()
    things = {"images": np.zeros((28, 28, 3), np.uint8), "audio": np.zeros(800, np.float32)}
    with pytest.raises(MediaError, match=message) as error:
        processor(text, **{k: [things[k]] * len(v) for k, v in media.items()})
    assert "\n" not in str(error.value)


def test_several_texts_need_media_for_each(ready):
    _, processor = ready()
    with pytest.raises(
        MediaError,
        match=r"2 texts need 2 lists of images, one for each: images=\[\[...\], \[...\]\]",
    ):
        processor(["<image>", "<image>"], images=[np.zeros((28, 28, 3), np.uint8)] * 2)


def test_any_number_of_media_in_any_order(ready, picture, sound):
    _, processor = ready()
    text = "a<speech>b<video>c<image><speech>d<image>"
    batch = processor(
        text,
        images=[picture(56, 56), picture(28, 84)],
        videos=[[picture(56, 56, i) for i in range(3)]],
        audio=[sound(0.3).numpy(), sound(2.5).numpy()],
    )
    assert batch["image_grid_thw"].tolist() == [[2, 4, 4], [1, 4, 4], [1, 4, 8]]
    ids = batch["input_ids"][0]
    runs = torch.unique_consecutive(ids[ids < 0]).tolist()
    assert runs == [SPEECH, IMAGE, SPEECH, IMAGE]
    assert batch["feature_positions"].tolist() == [2, 10, 3]
    patches = int(batch["image_grid_thw"].prod(1).sum())
    assert int((ids == IMAGE).sum()) == patches // 4 and len(batch["pixel_values"]) == patches


def test_a_marked_video_may_stand_among_images(ready, picture):
    _, processor = ready()
    frames = [picture(56, 56, i) for i in range(2)]
    a = processor("<image><image>", images=[Video(frames), picture()])
    b = processor("<video><image>", images=[picture()], videos=[frames])
    assert torch.equal(a["pixel_values"], b["pixel_values"]) and torch.equal(
        a["position_ids"],
        b["position_ids"],
    )


def test_frames_of_a_video_lie_in_pairs(ready, picture):
    _, processor = ready()
    frames = [picture(56, 56, i) for i in range(4)]
    pixels, grid = processor.picture(Video(frames))
    assert grid == (2, 4, 4)
    for pair in range(2):
        for half in range(2):
            still, _ = processor.picture(frames[2 * pair + half])
            ours = pixels.view(2, 16, 3, 2, 196)[pair, :, :, half]
            assert torch.equal(ours, still.view(16, 3, 2, 196)[:, :, half])


def test_every_kind_of_picture_becomes_patches(ready, tmp_path):
    _, processor = ready()
    for mode, size in (
        ("L", (50, 60)),
        ("CMYK", (50, 60)),
        ("P", (1, 1)),
        ("RGBA", (300, 29)),
        ("I;16", (40, 40)),
    ):
        batch = processor("<image>", images=[Image.new(mode, size)])
        grid = batch["image_grid_thw"][0]
        assert len(batch["pixel_values"]) == int(grid.prod()) and torch.isfinite(batch["pixel_values"]).all()


def test_a_row_of_text_only_beside_rows_with_media(ready, picture, sound):
    _, processor = ready()
    batch = processor(
        ["hi", "<image>a", "<speech>", "<speech><image>"],
        images=[[], [picture()], [], [picture()]],
        audio=[[], [], [sound(1.0)], [sound(0.2)]],
    )
    assert batch["attention_mask"][:, -1].all()
    deltas = batch["rope_deltas"].tolist()
    assert deltas[0] == deltas[2] == 0 and deltas[1] == deltas[3] < 0


# ---- limits ------------------------------------------------------------------------------------------------


def test_audio_of_eight_hours_is_refused_by_its_header_before_it_is_read(ready, tmp_path, monkeypatch):
    _, processor = ready()
    path = tmp_path / "long.wav"
    soundfile.write(path, np.zeros(16000, np.int16), 16000)
    monkeypatch.setattr(inputs.media, "load_audio", lambda source: pytest.fail("it was read"))
    header = soundfile.info(str(path))

    class Long:
        frames, samplerate = 8 * 3600 * 16000, header.samplerate

    monkeypatch.setattr(inputs.media.soundfile, "info", lambda _: Long)
    with pytest.raises(
        LimitError,
        match=r"this needs 1440\d\d positions \(1440\d\d of input, 1 to answer\), the model has 2048",
    ) as error:
        processor.chat([user({"type": "audio", "audio": path}, "what is it")])
    assert "\n" not in str(error.value)


def test_a_context_that_is_too_long_is_refused_before_spectra_are_made(ready, monkeypatch, sound):
    model, processor = ready(max_position_embeddings=100)
    monkeypatch.setattr(inputs, "mel_windows", lambda *a: pytest.fail("a spectrum was made"))
    with pytest.raises(LimitError, match="the model has 100"):
        processor("<speech>", audio=[sound(25.0)])
    with pytest.raises(LimitError, match="the model has 100"):
        processor("word " * 50)
    with pytest.raises(LimitError, match="the model has 100"):
        processor("a" * 60 + "<image>", images=[np.zeros((28 * 2, 28 * 60, 3), np.uint8)])


@pytest.mark.parametrize("bad", [np.zeros(0, np.float32), np.array([np.nan], np.float32)])
def test_unusable_audio_in_a_batch_is_one_line(ready, bad):
    _, processor = ready()
    with pytest.raises(AudioError):
        processor("<speech>", audio=[bad])


# ---- saving ------------------------------------------------------------------------------------------------


def test_a_saved_processor_comes_back_through_the_auto_class(ready, tmp_path, picture, sound):
    model, processor = ready()
    processor = BrainProcessor(processor.tokenizer, model.config, min_pixels=4000, max_pixels=5000)
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(str(tmp_path))
    assert isinstance(again, BrainProcessor)
    request = dict(images=[picture(100, 90)], audio=[sound(0.7)])
    ours, theirs = processor("<image><speech>hi", **request), again("<image><speech>hi", **request)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_pixel_limits_of_a_published_folder_are_taken(ready, tmp_path):
    _, processor = ready()
    processor.save_pretrained(tmp_path)
    (tmp_path / "processor_config.json").unlink()
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"min_pixels": 784, "max_pixels": 9000}))
    assert dict(BrainProcessor.from_pretrained(tmp_path).image_processor.size) == {
        "shortest_edge": 784,
        "longest_edge": 9000,
    }


def test_a_damaged_folder_is_one_line(ready, tmp_path):
    _, processor = ready()
    processor.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "config.json", "processor_config.json"):
        whole = (tmp_path / name).read_text()
        (tmp_path / name).write_text(whole[: len(whole) // 2])
        with pytest.raises(CheckpointError, match="cannot read the processor") as error:
            BrainProcessor.from_pretrained(tmp_path)
        assert "\n" not in str(error.value)
        (tmp_path / name).write_text(whole)
    with pytest.raises(UserError):
        BrainProcessor.from_pretrained(tmp_path / "nowhere")


def test_an_answer_to_learn_ends_with_the_control_token_and_not_with_its_letters():
    from omnilib.brain.prompts import conversation
    from omnilib.brain.trained import byte_tokenizer

    reader = byte_tokenizer()
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    _, labels = conversation(turns, answer=False).ids(reader)
    learnt = [label for label in labels if label != -100]
    assert learnt == [*reader.encode("yes"), reader.eos_token_id]
    turns[1]["content"] = "a <|im_end|> b"
    _, labels = conversation(turns, answer=False).ids(reader)
    learnt = [label for label in labels if label != -100]
    assert learnt.count(reader.eos_token_id) == 1 and learnt[-1] == reader.eos_token_id, "typed ones are text"
