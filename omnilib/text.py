"""Text on its way into the mouth: tokenizers, control tokens, the voice-clone prompt and training rows.

Spoken-form normalisation (numbers, emoji, Markdown) is in `spoken.py`. Control tokens and the frame of the conversation come from
here alone: `encode` takes a user's text as words, so `<|im_end|>` or a sentence of the frame typed by a user is spelt.

A conversation as the mouth sees it (paper section 3.2; `streams` speech ids beside every text id, pad where nothing sounds):

    <|im_start|> system ... <|im_end|> \\n <|im_start|> user \\n PRE_PROMPT <|audio_start|>
        [reference transcript beside reference speech]            pre_pad rows of pad, N // k rows of codes, one row of eos
    <|audio_end|> \\n <|im_end|> \\n <|im_start|> assistant \\n <|audio_start|>
        [chunks, see `mouth/chunking.py`] <|audio_end|>

Shapes: R rows, k streams.
"""

import json
import re
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from omnilib.errors import CheckpointError, DataError, UserError
from omnilib.mouth.chunking import ChunkRules, Layout, split_text
from omnilib.spoken import clean_text, detect_language

__all__ = [
    "clean_text",
    "detect_language",
    "load_tokenizer",
    "save_tokenizer",
    "train_tokenizer",
    "prompt_rows",
    "training_rows",
]

IGNORE = -100
SPEECH = -500  # stands for the reference recording in a list of text ids
TEXT_PAD, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
AUDIO_TOKENS = ("<|audio_start|>", "<|audio_end|>", "<|audio_sep|>")  # the last three text ids, in this order
SYSTEM = "system\nYou are a helpful assistant."
PRE_PROMPT = {
    "en": "Respond with the tone of the reference audio clip.",
    "zh": "使用参考音频中听到的语气回答。",
}
# The conversation frame never varies, so the nano tokenizer holds it in a few ids: 15 rows a prompt instead of ~45.
FRAME = (SYSTEM, "user\n", "assistant\n", *PRE_PROMPT.values(), "\n")


# ---- tokenizers ------------------------------------------------------------------------------------------------------


def load_tokenizer(folder: Path | str) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint folder: our nano BPE or a published Qwen one.

    Raises:
        CheckpointError: missing or unreadable files, or no audio control tokens.
    """
    folder = Path(folder)
    if not (folder / "tokenizer.json").is_file() and not (folder / "vocab.json").is_file():
        raise CheckpointError(
            f"no tokenizer in {folder}: restore tokenizer.json or train one with `omni train text`"
        )
    try:
        if (folder / "tokenizer_config.json").is_file():
            tokenizer = AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
        else:
            tokenizer = wrap(Tokenizer.from_file(str(folder / "tokenizer.json")))
    except Exception as error:  # the Rust reader raises plain Exception on a damaged file
        raise CheckpointError(f"cannot read the tokenizer in {folder}: {error}; restore the files") from error
    if any(tokenizer.convert_tokens_to_ids(t) in (None, tokenizer.unk_token_id) for t in AUDIO_TOKENS):
        raise CheckpointError(
            f"the tokenizer in {folder} lacks {', '.join(AUDIO_TOKENS)}: it is not one of a speech model"
        )
    return tokenizer


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """`save_pretrained` without the indentation of tokenizer.json, which is more than half of that file."""
    tokenizer.save_pretrained(folder)
    path = Path(folder) / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


def wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """A bare tokenizer with the names transformers wants."""
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=TEXT_PAD, eos_token=IM_END)


def text_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Size of the text range: everything up to and including the audio control tokens (published vocabularies go on
    with speech tokens)."""
    return tokenizer.convert_tokens_to_ids(AUDIO_TOKENS[-1]) + 1


def train_tokenizer(texts: Iterable[str], size: int = 4096, alphabet: int = 2500) -> PreTrainedTokenizerFast:
    """Learn the nano BPE: any text encodes (byte fallback), case is folded, every word begins with its space.

    For a small speech model a token should sound the same wherever it stands: "The", " the" and "the" are one id, digits
    and Han characters stand alone, frequent words are whole. `alphabet` bounds the single characters kept; rarer ones
    are spelt in bytes.

    Args:
        texts: the training text, already in spoken form.
        size: text ids in all, control tokens included.
    """
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=False))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Prepend(" "),
            normalizers.Replace(Regex(r"^ (?=[^\p{L}]|\p{Han})"), ""),  # only a word gets the space
        ]
    )
    pieces = r" ?[\p{L}&&[^\p{Han}]][\p{L}\p{M}'’&&[^\p{Han}]]*|\p{Han}|\p{N}| ?[^\s\p{L}\p{N}]+\n*|\s+"
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pieces), behavior="isolated")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    special = [TEXT_PAD, IM_START, IM_END, *FRAME, *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(AUDIO_TOKENS),
        special_tokens=special,
        limit_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(list(AUDIO_TOKENS))
    state = json.loads(
        tokenizer.to_str()
    )  # the trainer needed the bytes as special tokens; they are ordinary ones
    state["added_tokens"] = [t for t in state["added_tokens"] if not re.fullmatch("<0x..>", t["content"])]
    return wrap(Tokenizer.from_str(json.dumps(state)))


@lru_cache(maxsize=8)
def pieces(tokenizer: PreTrainedTokenizerBase):
    """`id -> text of that id alone`, remembered: what the chunk machine looks at."""

    @cache
    def piece(token: int) -> str:
        return tokenizer.decode([token])

    return piece


@lru_cache(maxsize=8)
def plain(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """The same tokenizer without its added tokens (control, frame, tools): it knows words and bytes only."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["added_tokens"] = []
    return Tokenizer.from_str(json.dumps(state))


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text to speak; what looks like a control token in it is spelt like other words."""
    return plain(tokenizer).encode(text, add_special_tokens=False).ids  # the wrapper's call is 10x slower


def encode_frame(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of our own frame, control tokens included; never for a text that a user gave."""
    return tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids


def layout_of(config, tokenizer: PreTrainedTokenizerBase) -> Layout:
    """The row layout of a model and its tokenizer.

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


# ---- rows ------------------------------------------------------------------------------------------------------------


def text_rows(layout: Layout, ids: Sequence[int]) -> Tensor:
    """Rows that only carry text, speech pad: (R, 1 + k)."""
    rows = torch.full((len(ids), 1 + layout.streams), layout.speech_pad)
    rows[:, 0] = torch.as_tensor(ids, dtype=torch.long)
    return rows


def speech_rows(layout: Layout, tokens: Tensor, repeat_tail: bool) -> Tensor:
    """25 Hz tokens, k to a row: (T,) -> (T // k, k); an uneven tail is cut, or filled with the last token."""
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
    """Put the reference recording in place of the first `SPEECH` id: rows (R, 1 + k).

    Beside its speech (pre_pad rows of pad, codes, one row of eos) stands its transcript, from the first row on.

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
    """
    ids = prompt_ids(tokenizer, detect_language(voice_text))
    return splice_voice(layout, ids, encode(tokenizer, voice_text), voice_tokens, truncate)


def join_sentences(texts: Sequence[str]) -> tuple[str, list[int]]:
    """One text and the offset where each sentence ends; a space between sentences unless Han script touches the seam."""
    joined, ends = "", []
    for text in texts:
        text = text.strip()
        if joined and text and not (joined[-1] > "\u2e7f" or text[0] > "\u2e7f"):
            joined += " "
        joined += text
        ends.append(len(joined))
    return joined, ends


def chunk_sentences(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], rules: ChunkRules
) -> tuple[list[int], list[tuple[int, int]], list[int]]:
    """Where the chunk machine will split the joined sentences.

    Returns:
        token ids; (start, end) of the ids each chunk feeds; for each chunk how many sentences are complete at its end.

    Raises:
        DataError: a chunk would end inside a sentence, whose speech cannot be split: leave the sample out.
    """
    joined, ends = join_sentences(texts)
    encoded = plain(tokenizer).encode(joined, add_special_tokens=False)
    ids, offsets = encoded.ids, encoded.offsets
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
) -> tuple[Tensor, Tensor]:
    """One training sample: rows and labels, both (R, 1 + k), laid out as the decoding loop would have produced them.

    Speech that is over before its text is followed by eos in all streams until the chunk's text is through. A chunk
    whose token count is not a multiple of k repeats its last token.

    Args:
        sentences: (text, its 25 Hz tokens) in order; a chunk may only end where a sentence ends.
        rules: where chunks end (the decoder must use the same); the published numbers by default.

    Returns:
        rows without vocabulary offset; labels in the same numbering, -100 ignored: speech labels on all assistant rows
        but the forced separator and end rows, text labels on the rows that feed text.

    Raises:
        DataError: a chunk would end inside a sentence, or a token is out of range.
    """
    prompt = prompt_rows(tokenizer, layout, voice_text, voice_tokens, truncate=True)
    ids, spans, done = chunk_sentences(tokenizer, [text for text, _ in sentences], rules or ChunkRules())
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
