"""Rows back to 25 Hz tokens."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omnilib.mouth.chunking import ChunkMachine, ChunkRules, Layout
from omnilib.mouth.decode import row_tokens, split_tokens

LAYOUT = Layout(text_size=10, speech_size=7, streams=2, pre_pad=2, text_pad=6, text_eos=5)


def test_reference_grids_split_as_in_the_reference(golden):
    meta, t = golden("token2audio_split")
    c = meta["config"]
    layout = Layout(
        c["tokenizer_text_size"],
        c["tokenizer_speech_size"],
        c["speech_token_count"],
        c["speech_token_pre_pad"],
    )
    assert (layout.audio_sep, layout.audio_end) == (c["audio_sep"], c["audio_end"])
    for case in meta["cases"]:
        if not t.has(f"in.{case}.grid", f"out.{case}.tokens"):
            continue
        grid = t[f"in.{case}.grid"][0]
        before = grid.clone()
        tokens = split_tokens(grid, layout, c["audio_blank"], quirks=True)
        assert torch.equal(grid, before), "the caller's grid must not change"
        assert torch.equal(tokens, t[f"out.{case}.tokens"][0].long()), case
        if t.has(f"out.{case}.call_lengths"):
            calls = [len(b) for b in tokens.split(6000)] if len(tokens) else []  # 4 minutes each
            assert calls == t[f"out.{case}.call_lengths"].tolist(), case


def test_reference_decodings_split_as_in_the_reference(golden):
    meta, t = golden("tts_generate_greedy")
    c, split = meta["config"], golden("token2audio_split")[0]["config"]
    layout = Layout(
        c["tokenizer_text_size"],
        c["tokenizer_speech_size"],
        c["speech_token_count"],
        c["speech_token_pre_pad"],
    )
    for case in meta["cases"]:
        if not t.has(f"out.{case}.grid", f"out.{case}.cosyvoice_tokens"):
            continue
        tokens = split_tokens(t[f"out.{case}.grid"][0], layout, split["audio_blank"], quirks=True)
        assert torch.equal(tokens, t[f"out.{case}.cosyvoice_tokens"][0].long()), case


def test_a_text_cut_by_the_row_limit_keeps_its_last_speech():
    grid = torch.tensor([[1, 6, 6], [1, 6, 6], [1, 0, 1], [1, 2, 3], [6, 4, 0]])
    assert split_tokens(grid, LAYOUT).tolist() == [0, 1, 2, 3, 4, 0]
    assert split_tokens(grid, LAYOUT, blank=0, quirks=True).tolist() == [], "the reference loses it"


def test_stray_ids_become_the_blank_or_go_and_rows_without_codes_go():
    grid = torch.tensor(
        [[1, 6, 6], [1, 6, 6], [1, 0, 5], [1, 6, 3], [1, 5, 5], [6, 6, 5], [6, 5, 5], [8, 6, 6]]
    )
    assert split_tokens(grid, LAYOUT).tolist() == [0, 3]
    assert split_tokens(grid, LAYOUT, blank=4).tolist() == [0, 4, 4, 3]


def test_nothing_decoded_is_no_speech():
    assert split_tokens(torch.empty(0, 3, dtype=torch.long), LAYOUT).tolist() == []
    assert split_tokens(torch.tensor([[1, 6, 6]]), LAYOUT, blank=0, quirks=True).tolist() == []


@settings(max_examples=200, deadline=None)
@given(
    text=st.lists(st.integers(0, 1), min_size=1, max_size=20),
    sampled=st.lists(st.lists(st.integers(0, 6), min_size=2, max_size=2), min_size=1, max_size=30),
    limit=st.integers(1, 60),
    blank=st.sampled_from([None, 3]),
)
def test_row_by_row_and_all_at_once_hear_the_same(text, sampled, limit, blank):
    rules = ChunkRules(2, 4, rows_per_token=3)
    machine, rows, streamed = ChunkMachine(LAYOUT, rules, ["w", "."].__getitem__, text), [], []
    while not machine.done and len(rows) < limit:
        rows.append(machine.step(sampled[len(rows) % len(sampled)]))
        streamed += row_tokens(rows[-1], LAYOUT, blank)
    grid = torch.tensor([(r.text, *r.speech) for r in rows])
    assert split_tokens(grid, LAYOUT, blank).tolist() == streamed
