"""Small measurements that look inside the parts: what codes hold, which stream errs.

They need no judge: phonemes and timings come with the frozen recordings, and the tokenizer's own phoneme head reads tokens.
Chapters 02 and 04 to 07 show them; where errors fall along a text is in `long_tts_eval.py`.

Shapes: N codes (25 a second), K codes in all, P phonemes, k streams.
"""

from collections.abc import Sequence

import numpy as np
import torch
from rapidfuzz.distance import Levenshtein
from torch import Tensor

from omnilib import frozen
from omnilib.audio import TOKENIZER_RATE, fbank_80, log_mel_128
from omnilib.mouth.chunking import ChunkRules, Layout
from omnilib.mouth.decode import DecodeSettings, Request, Result, generate
from omnilib.mouth.rows import training_rows
from omnilib.mouth.speechlm import IGNORE, SpeechLM
from omnilib.voice.phonemes import PhonemeHead, intelligibility
from omnilib.voice.speaker import SpeakerEncoder
from omnilib.voice.tokenizer import SpeechTokenizer

CODE_SECONDS = 0.04

# ------------------------------------------------------------------------------------------------ what a code holds


def codes_of(tokenizer: SpeechTokenizer, record: dict, skip_ms: float = 0.0) -> Tensor:
    """Codes (N,) of a frozen recording, its first `skip_ms` milliseconds cut off."""
    wave = frozen.wave_of(record, TOKENIZER_RATE)[round(skip_ms * TOKENIZER_RATE / 1000) :]
    return tokenizer.encode(log_mel_128(wave)[None])[0][0].clone()


def phonemes_at_codes(record: dict, count: int) -> list[str]:
    """The phoneme that sounds in the middle of each of `count` codes."""
    middles = (np.arange(count) + 0.5) * CODE_SECONDS
    places = np.searchsorted(record["phoneme_ends"], middles)
    return [[*record["phonemes"], "pau"][i] for i in places]


def read_by_table(
    train: list[tuple[Tensor, list[str]]], test: list[tuple[Tensor, list[str]]]
) -> tuple[float, float]:
    """How often the phoneme a code meant most often in `train` is right in `test`, and how often the commonest phoneme is."""
    counts: dict[int, dict[str, int]] = {}
    totals: dict[str, int] = {}
    for codes, names in train:
        for code, name in zip(codes.tolist(), names, strict=True):
            counts.setdefault(code, {})[name] = counts.get(code, {}).get(name, 0) + 1
            totals[name] = totals.get(name, 0) + 1
    common = max(totals, key=totals.get)
    table = {code: max(found, key=found.get) for code, found in counts.items()}
    pairs = [
        (table.get(code, common), name)
        for codes, names in test
        for code, name in zip(codes.tolist(), names, strict=True)
    ]
    return float(np.mean([guess == name for guess, name in pairs])), float(
        np.mean([common == name for _, name in pairs])
    )


def speaker_accuracy(features: Sequence[np.ndarray], speakers: Sequence[str]) -> float:
    """Nearest-centroid speaker recognition, centroids from every other recording of a speaker, tested on the rest."""
    unit = np.stack([f / (np.linalg.norm(f) + 1e-9) for f in features])
    order: dict[str, int] = {}
    is_train = []
    for speaker in speakers:
        order[speaker] = order.get(speaker, -1) + 1
        is_train.append(order[speaker] % 2 == 0)
    names, mask = np.array(speakers), np.array(is_train)
    known = sorted(set(names[mask]))
    centroids = np.stack([unit[mask & (names == s)].mean(0) for s in known])
    guesses = np.array(known)[(unit[~mask] @ centroids.T).argmax(1)]
    return float((guesses == names[~mask]).mean())


def code_histogram(codes: Tensor, size: int) -> np.ndarray:
    """How often each code occurs, as square roots, so that rare codes stay visible: (K,)."""
    return torch.bincount(codes, minlength=size).double().sqrt().numpy()


@torch.no_grad()
def speaker_vector(encoder: SpeakerEncoder, record: dict) -> np.ndarray:
    """Speaker vector (E,) of a frozen recording."""
    return encoder(fbank_80(frozen.wave_of(record, TOKENIZER_RATE))[None])[0].numpy()


# ------------------------------------------------------------------------------------------------ the mouth


def references() -> dict[str, dict]:
    """speaker -> its frozen reference recording."""
    return {r["speaker"]: r for r in frozen.recordings("reference")}


def samples(
    tokenizer, layout: Layout, speech: SpeechTokenizer, records: list[dict], rules: ChunkRules
) -> list[tuple[Tensor, Tensor]]:
    """Rows and labels of one conversation a record, cloned from its speaker's reference."""
    reference = references()
    heard = {s: codes_of(speech, reference[s]) for s in {r["speaker"] for r in records}}
    return [
        training_rows(
            tokenizer,
            layout,
            reference[r["speaker"]]["text"],
            heard[r["speaker"]],
            [(r["text"], codes_of(speech, r))],
            rules,
        )
        for r in records
    ]


@torch.no_grad()
def stream_errors(
    model: SpeechLM, pairs: list[tuple[Tensor, Tensor]]
) -> tuple[np.ndarray, float, float, int]:
    """Teacher-forced share of wrong ids in each stream (k,), mean speech and text loss, labelled rows."""
    wrong, rows, speech, text = 0.0, 0, 0.0, 0.0
    for ids, labels in pairs:
        output = model(ids[None], labels=labels[None], return_logits=True)
        target = labels[1:, 1:]
        known = (target != IGNORE).all(-1)
        miss = output.speech_logits[0, :-1].argmax(-1)[known] != target[known]  # (n, k)
        wrong = wrong + miss.sum(0).double().numpy()
        rows += int(known.sum())
        speech, text = (
            speech + output.speech_loss.item() / len(pairs),
            text + output.text_loss.item() / len(pairs),
        )
    return wrong / rows, speech, text, rows


def speak_records(
    model: SpeechLM, tokenizer, speech: SpeechTokenizer, records: list[dict], settings: DecodeSettings
) -> list[Result]:
    """Decode the text of each record in the voice of its speaker's reference."""
    reference = references()
    heard = {s: codes_of(speech, reference[s]) for s in {r["speaker"] for r in records}}
    requests = [Request(r["text"], reference[r["speaker"]]["text"], heard[r["speaker"]]) for r in records]
    return generate(model.eval(), tokenizer, requests, settings)


def phoneme_errors(head: PhonemeHead, tokens: list[Tensor], records: list[dict]) -> tuple[float, list[float]]:
    """Phoneme error of spoken tokens against what the records say: over all, and of each."""
    wanted = [r["phonemes"] for r in records]
    return intelligibility(head, tokens, wanted), [
        intelligibility(head, [t], [w]) for t, w in zip(tokens, wanted, strict=True)
    ]


def phoneme_errors_along(
    head: PhonemeHead, tokens: list[Tensor], wanted: list[list[str]], parts: int = 10
) -> tuple[np.ndarray, np.ndarray]:
    """Errors by place in the text: share of wrong phonemes (parts,) and how many there are (parts,), over all texts."""
    errors, totals = np.zeros(parts), np.zeros(parts)
    for codes, names in zip(tokens, wanted, strict=True):
        got, want = head.read([codes])[0] if len(codes) else [], head.targets(names)
        totals += np.bincount(np.arange(len(want)) * parts // len(want), minlength=parts)
        for edit in Levenshtein.editops(want, got):
            errors[min(parts - 1, edit.src_pos * parts // len(want))] += 1
    return errors / np.maximum(totals, 1), totals
