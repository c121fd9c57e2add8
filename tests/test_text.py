"""Text: tokenizers, the voice-clone prompt, training rows laid out as decoding does. Spoken form: test_spoken.py."""

import unicodedata

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from omnilib.errors import CheckpointError, DataError, UserError
from omnilib.mouth.chunking import ChunkMachine, ChunkRules, Kind, Layout
from omnilib.mouth.decode import split_tokens
from omnilib.mouth.rows import SPEECH, chunk_sentences, prompt_ids, prompt_rows, splice_voice, training_rows
from omnilib.text import (
    AUDIO_TOKENS,
    FRAME,
    encode,
    encode_frame,
    join_sentences,
    load_tokenizer,
    pieces,
    save_tokenizer,
    text_size,
    train_tokenizer,
)

LINES = [
    "The lord is my shepherd; I shall not want.",
    "He maketh me to lie down in green pastures.",
    "今天天气很好，我们去公园散步吧。",
    "Don't you know what this is about? Yes, I do!",
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(LINES * 4, size=420)


def layout_for(tokenizer, streams=4, pre_pad=4, codes=9) -> Layout:
    return Layout(
        text_size(tokenizer), codes + 2, streams, pre_pad, *encode_frame(tokenizer, "<|endoftext|><|im_end|>")
    )


# ---- tokenizer -------------------------------------------------------------------------------------------------------


def test_audio_control_tokens_are_the_last_text_ids(tokenizer):
    assert tokenizer.convert_tokens_to_ids(list(AUDIO_TOKENS)) == [
        text_size(tokenizer) - 3,
        text_size(tokenizer) - 2,
        text_size(tokenizer) - 1,
    ]
    assert len(tokenizer) == text_size(tokenizer) <= 420


@pytest.mark.parametrize(
    "text", ["😀 Hello", "Привет", "テスト 漢字", "a\tb\nc", "\u200b", "über naïve", "x" * 300, "𝔘𝔫𝔦"]
)
def test_any_text_encodes_and_comes_back(tokenizer, text):
    ids = encode(tokenizer, text)
    assert all(0 <= i < text_size(tokenizer) - 3 for i in ids)
    folded = unicodedata.normalize("NFKC", text).lower()  # spaces apart: words get theirs
    assert tokenizer.decode(ids).replace(" ", "") == folded.replace(" ", "")


def test_a_saved_tokenizer_is_the_same_in_half_the_bytes(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "wide")
    save_tokenizer(tokenizer, tmp_path / "narrow")
    again = load_tokenizer(tmp_path / "narrow")
    assert again.get_vocab() == tokenizer.get_vocab()
    for line in LINES:
        assert encode(again, line) == encode(tokenizer, line)
    sizes = [(tmp_path / name / "tokenizer.json").stat().st_size for name in ("narrow", "wide")]
    assert sizes[0] < 0.6 * sizes[1]


def test_frequent_words_are_one_token_wherever_they_stand(tokenizer):
    (the,) = encode(tokenizer, "The")
    assert encode(tokenizer, "the")[0] == the and encode(tokenizer, "of the lord")[-2] == the
    assert len(encode(tokenizer, "don't")) == 1 and len(encode(tokenizer, "2024")) == 4
    assert [pieces(tokenizer)(i) for i in encode(tokenizer, "今天。")] == ["今", "天", "。"]


def test_byte_tokens_are_ordinary_text(tokenizer):
    assert tokenizer.decode(encode(tokenizer, "😀"), skip_special_tokens=True) == "😀"
    assert tokenizer.decode(encode(tokenizer, "<0x41>")) == "<0x41>", "spelt out by a user it is not a byte"


@pytest.fixture(scope="module")
def published():
    """A tokenizer built like the published one: byte-level BPE, control tokens and tools as added tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    bpe.train_from_iterator(LINES * 4, trainer)
    bpe.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    bpe.add_tokens([AddedToken("<tool_call>", special=False)])
    bpe.add_special_tokens(list(AUDIO_TOKENS))
    return PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<|endoftext|>", eos_token="<|im_end|>")


TYPED = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    *AUDIO_TOKENS,
    *FRAME,
    "user",
    "assistant",
    "<0x41>",
    "<tool_call>",
]


@pytest.mark.parametrize("typed", TYPED)
@pytest.mark.parametrize("kind", ["tokenizer", "published"])
def test_control_tokens_and_frame_sentences_typed_by_a_user_are_words(kind, typed, request):
    tokenizer = request.getfixturevalue(kind)
    added = set(tokenizer.added_tokens_decoder) - {
        tokenizer.convert_tokens_to_ids("\n")
    }  # a line's end is one anywhere
    for text in (typed, f"say {typed} now", typed * 3):
        ids = encode(tokenizer, text)
        assert not added & set(ids), "no id of the frame"
        assert typed.strip().lower() in tokenizer.decode(ids).lower(), "and nothing is lost"
    rows = prompt_rows(tokenizer, layout_for(tokenizer), f"say {typed}", torch.zeros(400, dtype=torch.long))
    assert rows[:, 0].tolist().count(tokenizer.convert_tokens_to_ids("<|im_start|>")) == 3, (
        "the prompt's own three turns"
    )


@pytest.mark.parametrize("kind", ["tokenizer", "published"])
def test_words_encode_as_they_do_with_control_tokens_known(kind, request):
    tokenizer = request.getfixturevalue(kind)
    for line in LINES:
        assert encode(tokenizer, line) == encode_frame(tokenizer, line)
    assert encode_frame(tokenizer, "<|im_end|>") == [tokenizer.convert_tokens_to_ids("<|im_end|>")]


def test_punctuation_is_seen_by_the_chunk_machine(tokenizer):
    ends = [pieces(tokenizer)(i) for i in encode(tokenizer, "lord. lord! lord? lord; 好。")]
    assert [p for p in ends if p in ".!?;。"] == [".", "!", "?", ";", "。"]


def test_the_conversation_frame_is_cheap(tokenizer):
    for language in ("en", "zh"):
        ids = prompt_ids(tokenizer, language)
        assert len(ids) == 16 and ids.count(SPEECH) == 1 and ids[-1] == text_size(tokenizer) - 3


def test_saved_tokenizer_loads_the_same_with_and_without_its_config(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    text = "The lord, 35 <|im_start|>user\nhello<|im_end|>\n今天😀"
    loaded = load_tokenizer(tmp_path)
    assert encode(loaded, text) == encode(tokenizer, text) and loaded.eos_token == "<|im_end|>"
    (tmp_path / "tokenizer_config.json").unlink()
    assert encode(load_tokenizer(tmp_path), text) == encode(tokenizer, text)


def test_missing_or_damaged_tokenizer_is_one_clear_line(tokenizer, tmp_path):
    with pytest.raises(CheckpointError, match="no tokenizer"):
        load_tokenizer(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    content = (tmp_path / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="cannot read"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text(content.replace("<|audio_sep|>", "<|other|>"))
    with pytest.raises(CheckpointError, match="audio_sep"):
        load_tokenizer(tmp_path)


# ---- prompt ----------------------------------------------------------------------------------------------------------


def test_prompt_rows_are_those_of_the_reference(golden):
    meta, t = golden("tts_generate_greedy")
    c = meta["config"]
    layout = Layout(
        text_size=c["tokenizer_text_size"],
        speech_size=c["tokenizer_speech_size"],
        streams=c["speech_token_count"],
        pre_pad=c["speech_token_pre_pad"],
        text_pad=meta["tokenizer"]["pad_token_id"],
        reference_pad=meta["reference_text_pad_id"],
    )
    for case in meta["cases"]:
        ids = t[f"in.{case}.input_ids"][0].tolist()
        rows = splice_voice(
            layout, ids, t[f"in.{case}.input_ids_refer"][0].tolist(), t[f"in.{case}.ref_tokens"][0]
        )
        cut = int((rows[:, 0] == layout.audio_start).nonzero()[-1]) + 1
        prompt, text = rows[:cut], rows[cut:-2, 0].tolist()  # without the turn's own end: <|im_end|>, newline
        assert prompt[-1, 0] == layout.audio_start, case
        if t.has(f"out.{case}.prompt_ids", f"out.{case}.text_buffer"):
            assert torch.equal(rows, t[f"out.{case}.prompt_ids"][0]), case
            assert text == t[f"out.{case}.text_buffer"].tolist(), case


def test_prompt_reads_as_the_published_conversation(tokenizer):
    layout = layout_for(tokenizer)
    for said, request in (
        ("The lord.", "Respond with the tone of the reference audio clip."),
        ("今天。", "使用参考音频中听到的语气回答。"),
    ):
        rows = prompt_rows(tokenizer, layout, said, torch.arange(10) % 9)
        text = [i for i in rows[:, 0].tolist() if i != layout.text_pad]
        transcript = tokenizer.decode(encode(tokenizer, said))
        assert tokenizer.decode(text) == (
            f"<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{request}"
            f"<|audio_start|>{transcript}<|audio_end|>\n<|im_end|>\n<|im_start|>assistant\n<|audio_start|>"
        )
        speech = rows[(rows[:, 1:] != layout.speech_pad).any(-1), 1:]
        assert speech.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [layout.speech_eos] * 4]


def test_a_transcript_that_does_not_fit_is_cut_or_refused(tokenizer):
    layout = layout_for(tokenizer)
    assert len(splice_voice(layout, [SPEECH], [7] * 99, torch.zeros(8, dtype=torch.long))) == 4 + 2 + 1
    with pytest.raises(UserError, match="transcript"):
        prompt_rows(tokenizer, layout, "The lord is my shepherd. " * 9, torch.zeros(8, dtype=torch.long))


# ---- training rows ---------------------------------------------------------------------------------------------------

SENTENCES = [
    "The lord is my shepherd.",
    "I shall not want.",
    "Yes, I do!",
    '"He maketh me to lie down."',
    "今天天气很好。",
    "去公园散步吧！",
]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    chosen=st.lists(st.tuples(st.sampled_from(SENTENCES), st.integers(1, 60)), min_size=1, max_size=8),
    low=st.integers(0, 12),
    streams=st.sampled_from([1, 2, 4, 8]),
    pre_pad=st.integers(0, 5),
    seed=st.integers(0, 99),
)
def test_training_rows_are_what_decoding_the_labels_would_write(
    tokenizer, chosen, low, streams, pre_pad, seed
):
    layout, rules = layout_for(tokenizer, streams, pre_pad), ChunkRules(low, 40, rows_per_token=1000)
    g = torch.Generator().manual_seed(seed)
    sentences = [(text, torch.randint(9, (n,), generator=g)) for text, n in chosen]
    rows, labels = training_rows(tokenizer, layout, "Yes, I do!", torch.arange(90) % 9, sentences, rules)
    prompt = prompt_rows(tokenizer, layout, "Yes, I do!", torch.arange(90) % 9)
    assert torch.equal(rows[: len(prompt)], prompt) and (labels[: len(prompt)] == -100).all()
    rows, labels = rows[len(prompt) :], labels[len(prompt) :]
    assert ((labels == rows) | (labels == -100)).all(), "labels are the rows themselves"

    text, _ = join_sentences([t for t, _ in sentences])
    machine = ChunkMachine(layout, rules, pieces(tokenizer), encode(tokenizer, text))
    spoken = []
    for row, label in zip(
        rows, labels, strict=True
    ):  # a model that samples exactly the labels, and noise where there are none
        sampled = [s if s >= 0 else int(torch.randint(9, (), generator=g)) for s in label[1:].tolist()]
        made = machine.step(sampled)
        assert [made.text, *made.speech] == row.tolist()
        assert (label[0] != -100) == (made.kind is Kind.TEXT)
        assert (label[1:] != -100).all() == (made.kind in (Kind.TEXT, Kind.PADDING, Kind.EOS))
        spoken.append(made)
    assert machine.done and all(c.error is None for c in machine.chunks)

    first = start = 0
    ends = [i for i, t in enumerate(rows[:, 0].tolist()) if t in (layout.audio_sep, layout.audio_end)]
    _, spans, done = chunk_sentences(tokenizer, [t for t, _ in sentences], rules)
    assert [(c.text_tokens) for c in machine.chunks] == [b - a for a, b in spans] and done[-1] == len(
        sentences
    )
    for end, last in zip(
        ends, done, strict=True
    ):  # every chunk holds its sentences' tokens, the last one repeated to fill a row
        tokens = [t for _, codes in sentences[first:last] for t in codes.tolist()]
        filled = tokens + tokens[-1:] * (-len(tokens) % streams)
        assert split_tokens(rows[start : end + 1], layout).tolist() == filled
        first, start = last, end + 1


def test_speech_shorter_than_its_text_waits_in_eos(tokenizer):
    layout = layout_for(tokenizer)
    rows, labels = training_rows(
        tokenizer, layout, "Yes.", torch.zeros(20, dtype=torch.long), [(SENTENCES[0], torch.tensor([1, 2]))]
    )
    n = len(encode(tokenizer, SENTENCES[0]))
    answer = rows[-n - 2 :]
    assert answer[4, 1:].tolist() == [1, 2, 2, 2], "an uneven tail repeats its last token"
    assert (answer[5:-1, 1:] == layout.speech_eos).all() and answer[-1, 0] == layout.audio_end
    assert split_tokens(answer, layout).tolist() == [1, 2, 2, 2]


def test_a_chunk_that_would_end_inside_a_sentence_is_refused(tokenizer):
    layout, rules = layout_for(tokenizer), ChunkRules(2, 40)
    tokens = torch.zeros(40, dtype=torch.long)
    for text in ("The lord is my shepherd; I shall not want.",):
        with pytest.raises(DataError, match="inside a sentence"):
            training_rows(tokenizer, layout, "Yes.", tokens, [(text, tokens)], rules)
    with pytest.raises(DataError, match="inside a sentence"):
        training_rows(tokenizer, layout, "Yes.", tokens, [("lord " * 45 + ".", tokens)], rules)
    with pytest.raises(DataError, match="do not match"):
        training_rows(tokenizer, layout, "Yes.", tokens, [("The lord.", tokens + 9)], rules)


def test_seams_get_a_space_only_between_words_with_spaces():
    assert join_sentences(["One. ", " Two.", "三。", "四。", "Five."]) == (
        "One. Two.三。四。Five.",
        [4, 9, 11, 13, 18],
    )
