"""Text: tokenizers, the voice-clone prompt, training rows laid out as decoding does, spoken form."""

import time
import unicodedata
from contextlib import suppress

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from omnilib.errors import CheckpointError, DataError, UserError
from omnilib.mouth.chunking import ChunkMachine, ChunkRules, Kind, Layout
from omnilib.mouth.decode import split_tokens
from omnilib.text import (
    AUDIO_TOKENS,
    SPEECH,
    chunk_sentences,
    clean_text,
    detect_language,
    encode,
    join_sentences,
    load_tokenizer,
    pieces,
    prompt_ids,
    prompt_rows,
    save_tokenizer,
    splice_voice,
    split_prompt,
    text_size,
    train_tokenizer,
    training_rows,
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
    return Layout(text_size(tokenizer), codes + 2, streams, pre_pad, *encode(tokenizer, "<|endoftext|><|im_end|>"))


# ---- tokenizer -------------------------------------------------------------------------------------------------------


def test_audio_control_tokens_are_the_last_text_ids(tokenizer):
    assert tokenizer.convert_tokens_to_ids(list(AUDIO_TOKENS)) == [
        text_size(tokenizer) - 3,
        text_size(tokenizer) - 2,
        text_size(tokenizer) - 1,
    ]
    assert len(tokenizer) == text_size(tokenizer) <= 420


@pytest.mark.parametrize("text", ["😀 Hello", "Привет", "テスト 漢字", "a\tb\nc", "\u200b", "über naïve", "x" * 300, "𝔘𝔫𝔦"])
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
        rows = splice_voice(layout, ids, t[f"in.{case}.input_ids_refer"][0].tolist(), t[f"in.{case}.ref_tokens"][0])
        prompt, text = split_prompt(layout, rows)
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
def test_training_rows_are_what_decoding_the_labels_would_write(tokenizer, chosen, low, streams, pre_pad, seed):
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
    for row, label in zip(rows, labels, strict=True):  # a model that samples exactly the labels, and noise where there are none
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
    assert [(c.text_tokens) for c in machine.chunks] == [b - a for a, b in spans] and done[-1] == len(sentences)
    for end, last in zip(ends, done, strict=True):  # every chunk holds its sentences' tokens, the last one repeated to fill a row
        tokens = [t for _, codes in sentences[first:last] for t in codes.tolist()]
        filled = tokens + tokens[-1:] * (-len(tokens) % streams)
        assert split_tokens(rows[start : end + 1], layout).tolist() == filled
        first, start = last, end + 1


def test_speech_shorter_than_its_text_waits_in_eos(tokenizer):
    layout = layout_for(tokenizer)
    rows, labels = training_rows(tokenizer, layout, "Yes.", torch.zeros(20, dtype=torch.long), [(SENTENCES[0], torch.tensor([1, 2]))])
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
    assert join_sentences(["One. ", " Two.", "三。", "四。", "Five."]) == ("One. Two.三。四。Five.", [4, 9, 11, 13, 18])


# ---- spoken form -----------------------------------------------------------------------------------------------------

SPOKEN_EN = {
    "Dr. Smith paid $5.20 on May 1st, 1984 for 12,345 things (about 50%)!": "doctor Smith paid five dollars and twenty cents on May first, nineteen eighty four "
    "for twelve thousand three hundred and forty five things, about fifty percent!",
    'He said "don\'t go" -- and left...': "He said don't go, and left.",
    "# Title\n\n* one\n* two **bold** [link](http://x.com/a) `code`": "Title. one. two bold link code.",
    "Call 555-1234 at 3:05 or 4:00 pm": "Call five five five one two three four at three oh five or four pm.",
    "Pi is 3.14; -5 degrees; 5-10 cats; B2B; v1.2.3": "Pi is three point one four; minus five degrees; five to ten cats; B two B; v one point two point three.",
    "Mail a.b@c.org or https://www.example.com/x-y": "Mail a dot b at c dot org or www dot example dot com slash x y.",
    "😀 hello 🎉 world": "hello world.",
    "Mr. Jones vs. Dr. No. The answer is no. Yes.": "mister Jones versus doctor No. The answer is no. Yes.",
    "The 1990s, 3/4 of it, 007, 1,000,000": "The nineteen nineties, three quarters of it, zero zero seven, one million.",
    "Hello<|audio_start|>world <b>x</b>": "Hello world x.",
    "€3 million & more": "three million euros and more.",
    "ＡＢＣ": "ABC.",
}
SPOKEN_ZH = {
    "2024年5月1日我买了2个苹果，花了12.5元，占30%。": "二零二四年五月一日我买了两个苹果，花了十二点五元，占百分之三十。",
    "电话13812345678，时间12:30，温度-5°": "电话一三八一二三四五六七八，时间十二点三十分，温度负五度。",
    "他说：“你好！”然后走了（真的）": "他说：你好！然后走了，真的。",
    "第2名，3/4，2024-05-01，$20": "第二名，四分之三，二零二四年五月一日，二十美元。",
    "你好 OK": "你好 OK。",
}
NUMBERS_ZH = {0: "零", 7: "七", 10: "十", 15: "十五", 20: "二十", 105: "一百零五", 110: "一百一十", 1001: "一千零一", 1010: "一千零一十"} | {
    10500: "一万零五百", 100010: "十万零一十", 1001000: "一百万一千", 100000000: "一亿", 100000001: "一亿零一", 20003000: "二千万三千"
}  # fmt: skip


@pytest.mark.parametrize("text, spoken", [*SPOKEN_EN.items(), *SPOKEN_ZH.items()])
def test_spoken_form(text, spoken):
    assert clean_text(text) == spoken


@pytest.mark.parametrize("number, spoken", NUMBERS_ZH.items())
def test_chinese_numbers(number, spoken):
    assert clean_text(f"{number}", "zh") == spoken + "。"


def test_language_is_read_from_the_script_or_given():
    assert detect_language("Hello 好") == "zh" and detect_language("Hello") == "en"
    assert clean_text("12", "zh") == "十二。" and clean_text("12", "en") == "twelve."


@pytest.mark.parametrize("text", ["", " \n\t", "🎉🎊", "***", "...", "<|im_end|>", "()", "\u200b"])
def test_a_text_without_words_is_refused(text):
    with pytest.raises(UserError, match="nothing to speak"):
        clean_text(text)


def test_an_unknown_language_is_refused():
    with pytest.raises(UserError, match="'fr'.*en, zh"):
        clean_text("bonjour", "fr")


@settings(max_examples=200, deadline=None)
@example("SR\x1e0")
@example("He met Mr\nSmith")
@example("apples etc\nThen he went")
@given(st.text(max_size=60) | st.text(alphabet="ab12.,-/:$%()'\"你好年。，！ \n*#@", max_size=60))
def test_spoken_form_is_stable_plain_and_without_digits(text):
    try:
        spoken = clean_text(text)
    except UserError:
        return
    assert clean_text(spoken) == spoken
    assert not any("0" <= c <= "9" for c in spoken) and not set('*#<>|[](){}\n"') & set(spoken)
    assert spoken[-1] in ".?!。！？" and "  " not in spoken and spoken == spoken.strip()


@pytest.mark.parametrize(
    "unit", ["12 ", "a", "<", "[", "1", "a.b@", "1,", "('", "a\n", "http://", "-1", "[a](", "$1 ", " ", "\n", ", ", "。"]
)
def test_a_hundred_thousand_characters_take_seconds(unit):
    start = time.process_time()
    with suppress(UserError):
        clean_text(unit * (100_000 // len(unit)) + "a")
    assert time.process_time() - start < 5
