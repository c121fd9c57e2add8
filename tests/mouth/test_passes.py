"""Long texts in passes: nothing is lost, whatever the limit, and what is too long is refused."""

from dataclasses import replace

import pytest
import torch

from omnilib.errors import ConfigError, UserError
from omnilib.mouth.chunking import ChunkMachine, split_text
from omnilib.mouth.decode import DecodeSettings, Request, generate, stream
from omnilib.mouth.passes import check_length, chunk_ids, duration, fit, left_over
from omnilib.mouth.rows import layout_of
from omnilib.text import encode, pieces

LONG = (
    "He maketh me to lie down in green pastures. Yes, I do! The lord is my shepherd; I shall not want. " * 4
)
UNMARKED = "the lord is my shepherd i shall not want " * 12
SETTINGS = DecodeSettings(temperature=0.0, rows_per_token=2.0, chunk_min_tokens=6, chunk_max_tokens=12)


def run(model, tokenizer, text: str, settings: DecodeSettings):
    """Machines and tokens of all passes, and the ids each began with."""
    voice = torch.arange(33) % 11
    request = Request(text, "I shall not want.", voice)
    ids, told = tuple(encode(tokenizer, text)), []
    while ids:
        tokens, steps = [], stream(model, tokenizer, replace(request, ids=ids), settings)
        while True:
            try:
                tokens += next(steps)
            except StopIteration as stop:
                told.append((ids, stop.value, tokens))
                ids = left_over(stop.value)
                break
    return told


@pytest.mark.parametrize("text", [LONG, UNMARKED], ids=["sentences", "no marks"])
@pytest.mark.parametrize("limit", [12, 40, 64, 150, 8192])
def test_passes_speak_every_text_id_once_and_in_order(tiny, tokenizer, text, limit):
    model = tiny(4)
    settings = fit(replace(SETTINGS, max_rows=limit), 4096, 30)
    told = run(model, tokenizer, text, settings)
    assert (len(told) > 1) == (limit < 1000)
    spoken = [i for ids, machine, _ in told for chunk in chunk_ids(ids, machine) for i in chunk]
    ids = encode(tokenizer, text)
    piece = pieces(tokenizer)
    assert spoken == [i for start, end in split_text(ids, piece, settings.rules()) for i in ids[start:end]]
    for _, machine, tokens in told:
        assert machine.rows_made <= limit, "a pass went over the limit"
        assert not any(chunk.error == "truncated" for chunk in machine.chunks)
        assert sum(chunk.tokens for chunk in machine.chunks) == len(tokens)


def test_a_text_that_fits_is_one_pass_and_the_same_as_without_passes(tiny, tokenizer):
    model, voice = tiny(4), torch.arange(33) % 11
    request = Request(LONG, "I shall not want.", voice)
    [plain] = generate(model, tokenizer, [request], SETTINGS)
    [(_, machine, tokens)] = run(model, tokenizer, LONG, fit(replace(SETTINGS, normalise=False), 4096, 30))
    assert (
        tokens == generate(model, tokenizer, [request], replace(SETTINGS, normalise=False))[0].tokens.tolist()
    )
    assert [c.text_tokens for c in machine.chunks] == [c.text_tokens for c in plain.chunks]


def test_a_pass_ends_where_a_sentence_ends(tiny, tokenizer):
    told = run(tiny(4), tokenizer, LONG, fit(replace(SETTINGS, max_rows=80), 4096, 30))
    piece = pieces(tokenizer)
    ends = [piece(chunk_ids(ids, machine)[-1][-1]) for ids, machine, _ in told]
    assert len(ends) > 2 and set(ends) <= {".", "!", ";"}


def test_a_row_limit_in_the_middle_of_a_chunk_leaves_the_rest_of_the_text(tiny, tokenizer):
    """Settings without `fit`, as a caller may have them: the first chunk alone goes over the limit."""
    settings = replace(SETTINGS, max_rows=10, passes=True)
    (_, first, _), *others = run(tiny(4), tokenizer, LONG, settings)
    assert first.chunks[-1].error == "truncated" and first.rows_made == 10
    fed = sum(
        machine.chunks[i].text_tokens
        for _, machine, _ in [(0, first, 0), *others]
        for i in range(len(machine.chunks))
    )
    assert fed == sum(
        end - start for start, end in split_text(encode(tokenizer, LONG), pieces(tokenizer), settings.rules())
    )


def test_the_position_limit_of_the_model_counts_with_the_prompt():
    settings = fit(DecodeSettings(), positions=8192, prompt=192)
    assert settings.max_rows == 8000 and settings.passes
    assert (settings.chunk_min_tokens, settings.chunk_max_tokens) == (50, 100), (
        "chunks are as trained where they fit"
    )
    assert fit(DecodeSettings(max_rows=400), 8192, 192).max_rows == 400
    assert fit(DecodeSettings(pass_rows=900), 8192, 192).max_rows == 900
    assert fit(DecodeSettings(max_rows=400), 8192, 192).chunk_max_tokens < 100


@pytest.mark.parametrize("positions", [8, 100, 110])
def test_no_room_for_a_word_is_one_line(positions):
    with pytest.raises(ConfigError, match="leaves no room to speak a word"):
        fit(DecodeSettings(), positions, prompt=100)


def test_more_than_an_hour_is_refused_with_its_length():
    assert check_length("a word or two " * 3600) == pytest.approx(3326, abs=1)
    assert check_length("早上好" * 6000) == pytest.approx(3420)
    with pytest.raises(
        UserError, match=r"about 65 minutes to speak: split it into parts of at most 60 minutes"
    ):
        check_length("a word or two " * 4200)
    with pytest.raises(UserError, match=r"about 9\.5 hours"):
        check_length("早上好" * 60_000)


def test_a_text_of_9600_words_is_an_hour_however_its_words_are_cut():
    text = "there was a man of the city who had no house and would not stay in any other place " * 506
    assert 2400 < check_length(text) < 3600


@pytest.mark.parametrize(
    ("seconds", "said"), [(3.2, "3 seconds"), (89, "89 seconds"), (90, "2 minutes"), (7200, "2.0 hours")]
)
def test_durations_read_as_people_say_them(seconds, said):
    assert duration(seconds) == said


def test_rules_without_a_row_limit_never_leave_text_over(tiny, tokenizer):
    layout = layout_of(tiny(4).config, tokenizer)
    machine = ChunkMachine(layout, SETTINGS.rules(), pieces(tokenizer), encode(tokenizer, LONG))
    while not machine.done:
        machine.step([layout.speech_eos] * 4)
    assert machine.rest == [] and left_over(machine) == ()
