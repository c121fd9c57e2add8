"""Text on its way into the mouth: tokenizers and their control tokens.

Spoken-form normalisation (numbers, emoji, Markdown) is in `spoken.py`, rows and prompts in `mouth/rows.py`.
Control tokens and the frame of the conversation come from here alone: `encode` takes a user's text as
words, so `<|im_end|>` or a sentence of the frame typed by a user is spelt.
"""

import json
import re
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from omnilib.errors import CheckpointError
from omnilib.spoken import clean_text, detect_language

__all__ = [
    "clean_text",
    "detect_language",
    "load_tokenizer",
    "save_tokenizer",
    "train_tokenizer",
]

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
    """Size of the text range: everything up to and including the audio control tokens (published
    vocabularies go on with speech tokens)."""
    return tokenizer.convert_tokens_to_ids(AUDIO_TOKENS[-1]) + 1


def train_tokenizer(
    texts: Iterable[str], size: int = 4096, alphabet: int = 2500, longest: int | None = None
) -> PreTrainedTokenizerFast:
    """Learn the nano BPE: any text encodes (byte fallback), case is folded, every word begins with its space.

    For a small speech model a token should sound the same wherever it stands: "The", " the" and "the" are
    one id, digits and Han characters stand alone, frequent words are whole. `alphabet` bounds the single
    characters kept; rarer ones are spelt in bytes.

    Args:
        texts: the training text, already in spoken form.
        size: text ids in all, control tokens included.
        longest: letters of a piece at most, its space included; unbounded by default.
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
        max_token_length=longest,
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


def join_sentences(texts: Sequence[str]) -> tuple[str, list[int]]:
    """One text and the offset where each sentence ends; a space between sentences unless Han script touches
    the seam."""
    joined, ends = "", []
    for text in texts:
        text = text.strip()
        if joined and text and not (joined[-1] > "\u2e7f" or text[0] > "\u2e7f"):
            joined += " "
        joined += text
        ends.append(len(joined))
    return joined, ends
