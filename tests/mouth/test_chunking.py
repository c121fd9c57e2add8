"""The chunk machine: enumerated exhaustively at small sizes, at random at larger ones, and against the reference's grids."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnilib.mouth.chunking import (
    ChunkMachine,
    ChunkRules,
    Kind,
    Layout,
    is_blank_text,
    is_sentence_end,
    split_text,
)

PIECES = ["w", ".", " ", " .", "\n\n", "word\n"]
LAYOUT = Layout(text_size=10, speech_size=7, streams=2, pre_pad=1, text_pad=6, text_eos=5)
EOS, PAD = 5, 6


def machine(text, rules=None, layout=LAYOUT, **kwargs) -> ChunkMachine:
    return ChunkMachine(layout, rules or ChunkRules(), PIECES.__getitem__, text, **kwargs)


def speak(m: ChunkMachine, durations, layout=LAYOUT):
    """Run to the end; chunk c says eos in all streams from its row `durations[c]` on."""
    rows = []
    while not m.done:
        chunk = len(m.chunks) - 1
        over = m.row_in_chunk >= durations[min(chunk, len(durations) - 1)]
        rows.append(m.step([layout.speech_eos if over else 1] * layout.streams))
    return rows


def reference_split(text, rules):
    """The chunking rule written a second time, from the paper's words."""
    chunks, rest = [], list(text)
    while True:
        while rest and PIECES[rest[0]].strip(" \n*#") == "":
            rest.pop(0)
        if not rest:
            return chunks
        chunk = []
        while rest:
            token = rest.pop(0)
            chunk.append(token)
            end = PIECES[token][0] in ".\n" or PIECES[token].endswith("\n")
            if (end and len(chunk) > rules.min_tokens) or len(chunk) > rules.max_tokens:
                break
        chunks.append(chunk)


def test_published_numbers_are_the_defaults():
    rules = ChunkRules()
    assert (rules.min_tokens, rules.max_tokens, rules.rows_per_token, rules.blank_rows) == (50, 100, 8.0, 8)
    assert rules.blank_codes == frozenset() and rules.eos_streams is None and not rules.reference_quirks


@pytest.mark.parametrize(
    "piece, ends, blank",
    [
        (".", True, False),
        (" .", False, False),
        (".5", True, False),
        ("a\n", True, False),
        ("。", True, False),
        (",", False, False),
    ]
    + [
        ("", False, False),
        (" \n", True, True),
        ("**", False, True),
        ("# ", False, True),
        (" a", False, False),
        ("...", True, False),
    ],
)
def test_pieces_are_judged_by_their_first_or_last_character(piece, ends, blank):
    assert is_sentence_end(piece) is ends and is_blank_text(piece) is blank


def test_every_short_text_is_laid_out_by_the_rule():
    for low, high in ((0, 0), (0, 2), (1, 3), (2, 2)):
        rules = ChunkRules(min_tokens=low, max_tokens=high, rows_per_token=100)
        for size in range(1, 6):
            for text in product(range(len(PIECES) if size < 5 else 4), repeat=size):
                chunks = reference_split(text, rules)
                assert [list(text[a:b]) for a, b in split_text(text, PIECES.__getitem__, rules)] == chunks
                if not chunks:
                    continue
                rows = speak(machine(text, rules), [3])
                expected = []
                for i, chunk in enumerate(chunks):
                    for t, token in enumerate(chunk):
                        expected.append((token, (1, 1) if t < 3 else (EOS, EOS)))
                    expected += [(6, (1, 1))] * (3 - len(chunk)) + [(6, (EOS, EOS))]
                    expected.append((8 if i == len(chunks) - 1 else 9, (PAD, PAD)))
                assert [(r.text, r.speech) for r in rows] == expected, (text, low, high)


def test_text_arriving_late_gives_the_same_rows():
    rules = ChunkRules(min_tokens=1, max_tokens=3, rows_per_token=100)
    for size in range(1, 6):
        for text in product(range(4), repeat=size):
            if not reference_split(text, rules):
                continue
            whole = speak(machine(text, rules), [2, 5, 1])
            for at_a_time in (1, 2):
                m, arriving, rows = machine((), rules, closed=False), list(text), []
                while not m.done:
                    while not m.ready:
                        m.push(arriving[:at_a_time])
                        del arriving[:at_a_time]
                        if not arriving:
                            m.close()
                    over = m.row_in_chunk >= [2, 5, 1][min(len(m.chunks) - 1, 2)]
                    rows.append(m.step([EOS if over else 1] * 2))
                assert rows == whole, text


def test_speech_starts_with_the_first_text_row_and_eos_before_the_text_ends_is_not_an_end():
    rows = speak(machine([0, 0, 0, 0]), [1])
    assert [r.kind for r in rows] == [Kind.TEXT] * 4 + [Kind.EOS, Kind.END]
    assert rows[1].speech == (EOS, EOS)


def test_one_stream_alone_cannot_end_a_chunk_unless_allowed():
    m = machine([0])
    m.step([1, 1])
    assert m.step([EOS, 1]).kind is Kind.PADDING
    assert m.step([EOS, EOS]).kind is Kind.EOS
    m = machine([0], ChunkRules(eos_streams=1))
    m.step([1, 1])
    assert m.step([EOS, 1]).speech == (EOS, EOS)


def test_length_guard_counts_rows_against_text():
    for count in (1, 2, 5):
        m = machine([0] * count, ChunkRules(rows_per_token=3))
        rows = speak(m, [10**6])
        assert rows[-2].kind is Kind.EOS and rows[-2].index == 3 * count + 1, "strictly more than the ratio"
        assert m.chunks[0].error == "long"


def test_blank_guard_counts_rows_in_a_run():
    rules = ChunkRules(blank_codes=frozenset({1}), blank_rows=3, rows_per_token=100)
    m = machine([0], rules)
    sampled = [2, 1, 1, 1, 2, 1, 1, 1, 1]
    kinds = [m.step([s, s]).kind for s in sampled]
    assert kinds == [Kind.TEXT] + [Kind.PADDING] * 7 + [Kind.EOS] and m.chunks[0].error == "blank"


@pytest.mark.parametrize("streams, needed", [(1, 1), (2, 2), (4, 3), (8, 6)])
def test_three_of_four_streams_make_a_row_blank(streams, needed):
    layout = Layout(text_size=10, speech_size=7, streams=streams, text_pad=6, text_eos=5)
    for blanks in range(streams + 1):
        m = machine([0], ChunkRules(blank_codes=frozenset({1})), layout)
        m.step([1] * blanks + [2] * (streams - blanks))
        assert (m.blank_run == 1) is (blanks >= needed)


def test_a_natural_end_is_no_error_but_the_reference_flags_it():
    for quirks, error in ((False, None), (True, "long")):
        m = machine([0], ChunkRules(rows_per_token=1, reference_quirks=quirks))
        speak(m, [2])
        assert m.chunks[0].error == error


def test_guards_start_afresh_in_every_chunk_but_not_in_the_reference():
    for quirks, length in ((False, 3 * 1 + 1), (True, 3 * 1)):
        m = machine([0, 0], ChunkRules(min_tokens=0, max_tokens=0, rows_per_token=3, reference_quirks=quirks))
        rows = speak(m, [10**6])
        assert [r.index for r in rows if r.kind is Kind.EOS] == [4, length]


def test_trailing_blanks_end_the_text_instead_of_crashing():
    m = machine([0, 2, 4], ChunkRules(min_tokens=0, max_tokens=0))
    assert [r.kind for r in speak(m, [1])] == [Kind.TEXT, Kind.EOS, Kind.END]


def test_the_reference_emits_one_row_after_the_end():
    rows = speak(machine([0], ChunkRules(reference_quirks=True)), [1])
    assert rows[-1].kind is Kind.TAIL and rows[-1].text == 5


def test_truncation_is_an_error_of_the_unfinished_chunk():
    m = machine([0, 0])
    m.step([1, 1])
    m.truncate()
    assert m.done and m.chunks[0].error == "truncated"


@settings(max_examples=300, deadline=None)
@given(
    text=st.lists(st.integers(0, 5), min_size=1, max_size=60).filter(
        lambda t: any(i in (0, 1, 3, 5) for i in t)
    ),
    low=st.integers(0, 10),
    more=st.integers(0, 10),
    sampled=st.lists(st.lists(st.integers(0, 6), min_size=2, max_size=2), min_size=1, max_size=20),
    blanks=st.frozensets(st.integers(0, 4)),
    quirks=st.booleans(),
)
def test_whatever_is_sampled_the_text_is_fed_once_and_it_ends(text, low, more, sampled, blanks, quirks):
    rules = ChunkRules(
        low, low + more, rows_per_token=3, blank_rows=4, blank_codes=blanks, reference_quirks=quirks
    )
    spans = split_text(text, PIECES.__getitem__, rules)
    if not spans:
        return
    m, rows = machine(text, rules), []
    while not m.done:
        rows.append(m.step(sampled[len(rows) % len(sampled)]))
        assert len(rows) <= 6 * len(text) + 10 * len(spans) + 1, "a guard must end every chunk"
    assert [r.text for r in rows if r.kind is Kind.TEXT] == [t for a, b in spans for t in text[a:b]]
    assert [c.text_tokens for c in m.chunks] == [b - a for a, b in spans]
    assert all(c.finished for c in m.chunks)
    for r in rows:
        if r.kind in (Kind.SEPARATOR, Kind.END):
            assert r.speech == (PAD, PAD)
        if r.kind is Kind.EOS:
            assert r.speech == (EOS, EOS) and r.text == 6


def test_fed_with_the_reference_samples_it_writes_the_reference_grid(golden):
    meta, t = golden("tts_generate_greedy")
    config, words = meta["config"], meta["tokenizer"]
    layout = Layout(
        text_size=config["tokenizer_text_size"],
        speech_size=config["tokenizer_speech_size"],
        streams=config["speech_token_count"],
        pre_pad=config["speech_token_pre_pad"],
        text_pad=words["pad_token_id"],
        text_eos=words["eos_token_id"],
    )
    for case, info in meta["cases"].items():
        if not t.has(f"out.{case}.text_buffer", f"out.{case}.grid", f"out.{case}.tts_error"):
            continue
        blanks = frozenset(info["blank_speech_tokens"])
        rules = ChunkRules(blank_codes=blanks, reference_quirks=True)
        m = ChunkMachine(
            layout, rules, words["id_to_string"].__getitem__, t[f"out.{case}.text_buffer"].tolist()
        )
        grid = t[f"out.{case}.grid"][0].tolist()
        for number, (text, *speech) in enumerate(grid):
            # a row the machine forced hides what was sampled there; a silent sample is what sets the blank guard off
            forced = info["tts_error"] and blanks and set(speech) == {layout.speech_eos}
            row = m.step([min(blanks)] * layout.streams if forced else speech)
            assert (row.text, *row.speech) == (text, *speech), (case, number)
        assert m.done or len(grid) == info["max_new_tokens"] + 1, case
        assert any(c.error for c in m.chunks) == bool(t[f"out.{case}.tts_error"]) == info["tts_error"], case
