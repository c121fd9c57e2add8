"""Rows: the layout of the mouth's input, the voice-clone prompt and training samples (paper section 3.2,
eqs. 2, 3).

A conversation as the mouth sees it (`streams` speech ids beside every text id, pad where nothing sounds):

    <|im_start|> system ... <|im_end|> \\n <|im_start|> user \\n PRE_PROMPT <|audio_start|>
        [reference transcript beside reference speech]            pre_pad rows of pad, N // k rows of codes, one row of eos
    <|audio_end|> \\n <|im_end|> \\n <|im_start|> assistant \\n <|audio_start|>
        [chunks, see `mouth/chunking.py`] <|audio_end|>

Shapes: R rows, k streams.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from omnilib.errors import CheckpointError, DataError, UserError
from omnilib.mouth.chunking import ChunkRules, Layout, split_text
from omnilib.text import (
    AUDIO_TOKENS,
    IM_END,
    IM_START,
    PRE_PROMPT,
    SYSTEM,
    TEXT_PAD,
    detect_language,
    encode,
    encode_frame,
    join_sentences,
    pieces,
    plain,
    text_size,
)

IGNORE = -100
SPEECH = -500  # stands for the reference recording in a list of text ids


def layout_of(config, tokenizer: PreTrainedTokenizerBase) -> Layout:
    """The row layout of a model and its tokenizer (paper eq. 2).

    Raises:
        CheckpointError: they do not belong together.
    """
    if text_size(tokenizer) != config.tokenizer_text_size:
        raise CheckpointError(
            f"the tokenizer has {text_size(tokenizer)} text ids, the speech model {config.tokenizer_text_size}: use the pair that was trained together"
        )
    return config.layout(
        text_pad=tokenizer.convert_tokens_to_ids(TEXT_PAD), text_eos=tokenizer.convert_tokens_to_ids(IM_END)
    )


def text_rows(layout: Layout, ids: Sequence[int]) -> Tensor:
    """Rows that only carry text, speech pad: (R, 1 + k) (paper section 3.2)."""
    rows = torch.full((len(ids), 1 + layout.streams), layout.speech_pad)
    rows[:, 0] = torch.as_tensor(ids, dtype=torch.long)
    return rows


def speech_rows(layout: Layout, tokens: Tensor, repeat_tail: bool) -> Tensor:
    """25 Hz tokens, k to a row: (T,) -> (T // k, k); an uneven tail is cut, or filled with the last token.

    Source: paper section 3.2.
    """
    tokens = torch.as_tensor(tokens, dtype=torch.long).flatten()
    if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < layout.speech_eos:
        raise DataError(
            f"speech tokens must lie in [0, {layout.speech_eos}): the speech tokenizer and the model do not match"
        )
    over = len(tokens) % layout.streams
    if over and repeat_tail:
        tokens = torch.cat([tokens, tokens[-1:].expand(layout.streams - over)])
    elif over:
        tokens = tokens[:-over]
    return tokens.view(-1, layout.streams)


def splice_voice(
    layout: Layout, ids: Sequence[int], voice_ids: Sequence[int], voice_tokens: Tensor, truncate: bool = True
) -> Tensor:
    """Put the reference recording in place of the first `SPEECH` id: rows (R, 1 + k) (paper section 3.2).

    Beside its speech (pre_pad rows of pad, codes, one row of eos) stands its transcript, from the first row
    on.

    Args:
        truncate: cut a transcript that has more ids than the speech has rows (as the reference does), else raise.

    Raises:
        UserError: the transcript does not fit.
    """
    codes = speech_rows(layout, voice_tokens, repeat_tail=False)
    pad = codes.new_full((layout.pre_pad, layout.streams), layout.speech_pad)
    speech = torch.cat([pad, codes, torch.full_like(pad[:1], layout.speech_eos)])  # (pre_pad + N // k + 1, k)
    if len(voice_ids) > len(speech) and not truncate:
        seconds = len(voice_tokens) / 25
        raise UserError(
            f"the reference transcript is too long for its recording ({len(voice_ids)} text tokens for {seconds:.1f} s): "
            "give exactly what is said in it, or a longer recording"
        )
    text = speech.new_full(
        (len(speech),), layout.text_pad if layout.reference_pad is None else layout.reference_pad
    )
    size = min(len(voice_ids), len(speech))
    text[:size] = torch.as_tensor(voice_ids[:size], dtype=torch.long)
    at = list(ids).index(SPEECH)
    voice = torch.cat([text[:, None], speech], dim=1)
    return torch.cat([text_rows(layout, ids[:at]), voice, text_rows(layout, ids[at + 1 :])])


@lru_cache(maxsize=64)
def prompt_ids(tokenizer: PreTrainedTokenizerBase, language: str) -> tuple[int, ...]:
    """The conversation up to where speech begins, `SPEECH` standing for the reference recording."""
    start, end, _ = AUDIO_TOKENS
    before = f"{IM_START}{SYSTEM}{IM_END}\n{IM_START}user\n{PRE_PROMPT[language]}{start}"
    after = f"{end}\n{IM_END}\n{IM_START}assistant\n{start}"
    return (*encode_frame(tokenizer, before), SPEECH, *encode_frame(tokenizer, after))


def prompt_rows(
    tokenizer: PreTrainedTokenizerBase,
    layout: Layout,
    voice_text: str,
    voice_tokens: Tensor,
    truncate: bool = False,
) -> Tensor:
    """The voice-clone prompt: (R, 1 + k), up to and including the audio_start after which decoding begins.

    Args:
        voice_text: what is said in the reference recording; its script chooses the pre-prompt's language.
        voice_tokens: 25 Hz tokens of the recording, (T,); T % k tokens at the end are not used.

    Source: paper section 3.2.
    """
    ids = prompt_ids(tokenizer, detect_language(voice_text))
    return splice_voice(layout, ids, encode(tokenizer, voice_text), voice_tokens, truncate)


def chunk_sentences(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    rules: ChunkRules,
    split: Callable[[int], list[int]] | None = None,
) -> tuple[list[int], list[tuple[int, int]], list[int]]:
    """Where the chunk machine will split the joined sentences (paper section 3.2).

    Args:
        split: id -> ids that spell the same, see `train.spelling`.

    Returns:
        token ids; (start, end) of the ids each chunk feeds; for each chunk how many sentences are complete at its end.

    Raises:
        DataError: a chunk would end inside a sentence, whose speech cannot be split: leave the sample out.
    """
    joined, ends = join_sentences(texts)
    encoded = plain(tokenizer).encode(joined, add_special_tokens=False)
    ids, offsets = encoded.ids, encoded.offsets
    if split:
        parts = [split(i) for i in ids]
        offsets = [
            place
            for (a, b), some in zip(offsets, parts, strict=True)
            for place in [(a, a)] * (len(some) - 1) + [(a, b)]
        ]  # a chunk that ends within a piece ends before it
        ids = [i for some in parts for i in some]
    piece = pieces(tokenizer)
    spans = split_text(ids, piece, rules)
    done = []
    for _, end in spans:
        position = offsets[end - 1][1] if end < len(ids) else len(joined)
        complete = sum(e <= position for e in ends)
        rest = joined[position : ends[complete]] if complete < len(ends) else ""
        began = complete < len(ends) and any(
            map(str.isalnum, joined[(ends[complete - 1] if complete else 0) : position])
        )
        if began and any(map(str.isalnum, rest)):
            raise DataError(
                f"a chunk would end inside a sentence, before '{rest.strip()[:40]}': leave this sample out"
            )
        done.append(complete + bool(began))  # only closing quotes are left of it
    return ids, spans, done


def training_rows(
    tokenizer: PreTrainedTokenizerBase,
    layout: Layout,
    voice_text: str,
    voice_tokens: Tensor,
    sentences: Sequence[tuple[str, Tensor]],
    rules: ChunkRules | None = None,
    split: Callable[[int], list[int]] | None = None,
) -> tuple[Tensor, Tensor]:
    """One training sample: rows and labels, both (R, 1 + k), laid out as the decoding loop would have produced them.

    Speech that is over before its text is followed by eos in all streams until the chunk's text is through. A chunk
    whose token count is not a multiple of k repeats its last token.

    Args:
        sentences: (text, its 25 Hz tokens) in order; a chunk may only end where a sentence ends.
        rules: where chunks end (the decoder must use the same); the published numbers by default.
        split: id -> ids that spell the same, for the text to be spoken (`train.spelling`).

    Returns:
        rows without vocabulary offset; labels in the same numbering, -100 ignored: speech labels on all assistant rows
        but the forced separator and end rows, text labels on the rows that feed text.

    Raises:
        DataError: a chunk would end inside a sentence, or a token is out of range.
    """
    prompt = prompt_rows(tokenizer, layout, voice_text, voice_tokens, truncate=True)
    ids, spans, done = chunk_sentences(
        tokenizer, [text for text, _ in sentences], rules or ChunkRules(), split
    )
    rows, labels = [prompt], [torch.full_like(prompt, IGNORE)]
    first = 0
    for number, ((start, end), last) in enumerate(zip(spans, done, strict=True)):
        tokens = [torch.as_tensor(t, dtype=torch.long).flatten() for _, t in sentences[first:last]]
        codes = speech_rows(
            layout, torch.cat(tokens) if tokens else torch.empty(0, dtype=torch.long), repeat_tail=True
        )
        chunk, label = chunk_rows(layout, ids[start:end], codes, final=number + 1 == len(spans))
        rows.append(chunk)
        labels.append(label)
        first = last
    return torch.cat(rows), torch.cat(labels)


def chunk_rows(layout: Layout, ids: Sequence[int], codes: Tensor, final: bool) -> tuple[Tensor, Tensor]:
    """Rows and labels of one chunk and its separator: n text ids beside (N, k) codes."""
    n, spoken = len(ids), layout.pre_pad + len(codes)
    size = max(n, spoken) + 2  # the eos row stands in the padding phase; then separator or end
    rows = torch.full((size, 1 + layout.streams), layout.speech_eos)
    rows[:, 0] = layout.text_pad
    rows[:n, 0] = torch.as_tensor(ids, dtype=torch.long)
    rows[: layout.pre_pad, 1:] = layout.speech_pad
    rows[layout.pre_pad : spoken, 1:] = codes
    rows[-1, 0] = layout.audio_end if final else layout.audio_sep
    rows[-1, 1:] = layout.speech_pad
    labels = rows.clone()
    labels[n:, 0] = IGNORE
    labels[-1] = IGNORE
    return rows, labels
