"""What a brain makes of a recording: its surprise at the right words, with parts of its hearing taken away.

    pairs = [(wave, text), ...]                            # (T,) at 16 kHz, and what is said
    loss = mean_loss(brain, processor, pairs)              # both encoders
    deaf = mean_loss(brain, processor, pairs, silence("auxiliary"))

The loss is teacher-forced: the right words are given one by one, and each next one is asked for. It moves long
before answers become right, so it shows early whether a training hears at all.

Shapes: W windows, N main frames, D1, D2 widths of the encoders.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from omnilib.brain.decode import AnswerSettings, stream
from omnilib.brain.encoders import mel_windows
from omnilib.brain.inputs import BrainProcessor
from omnilib.brain.mllm import Brain
from omnilib.data import write_manifest
from omnilib.errors import ConfigError

RATE = 16_000
ASK = "Write down what is said."  # as in training, see data_prep/brain.py
TONES = {"l": 200, "h": 1500}  # letter -> Hz of the smallest corpus that needs ears
Change = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def both(main: Tensor, aux: Tensor) -> tuple[Tensor, Tensor]:
    """Frames as they are."""
    return main, aux


def silence(encoder: str) -> Change:
    """A change that sets the frames of one encoder to zero.

    Args:
        encoder: "main", "auxiliary" or "both".

    Raises:
        ConfigError: no such encoder.
    """
    if encoder not in ("main", "auxiliary", "both"):
        raise ConfigError(f"no encoder '{encoder}': use main, auxiliary or both")
    return lambda main, aux: (main * (encoder == "auxiliary"), aux * (encoder == "main"))


def transcription(processor: BrainProcessor, wave: Tensor, text: str) -> dict[str, Tensor]:
    """A batch that asks for the words of a recording, with labels on `text`."""
    heard = {"type": "audio", "audio": (wave, RATE)}
    turns = [{"role": "user", "content": [heard, ASK]}, {"role": "assistant", "content": text}]
    return dict(processor.chat(turns, answer=False, labels=True))


@torch.no_grad()
def text_loss(
    brain: Brain, processor: BrainProcessor, wave: Tensor, text: str, change: Change = both
) -> float:
    """Mean teacher-forced loss of the words of a recording, its frames changed by `change` first."""
    batch = transcription(processor, wave, text)
    windows, positions = batch.pop("input_features"), batch["feature_positions"]
    main, aux = change(*brain.model.encode_speech(windows, positions))  # (W, N, D1), (W, 2 N, D2)
    return float(brain(**batch, speech_features=brain.model.fuse(main, aux, positions)).loss)


def losses(
    brain: Brain, processor: BrainProcessor, pairs: Sequence[tuple[Tensor, str]], change: Change = both
) -> list[float]:
    """The loss of each (wave, text)."""
    return [text_loss(brain, processor, wave, text, change) for wave, text in pairs]


def swapped(pairs: Sequence[tuple[Tensor, str]]) -> list[tuple[Tensor, str]]:
    """Every text with the recording of its neighbour: what a model that does not listen cannot notice."""
    waves = [wave for wave, _ in pairs]
    return [(wave, text) for wave, (_, text) in zip(waves[1:] + waves[:1], pairs, strict=True)]


def tone(letter: str, seconds: float) -> Tensor:
    """The tone that stands for a letter: (T,)."""
    time = np.arange(round(seconds * RATE)) / RATE
    return torch.from_numpy((0.3 * np.sin(2 * np.pi * TONES[letter] * time)).astype(np.float32))


def tone_corpus(folder: Path) -> Path:
    """Write eight recordings whose answer is a letter: low or high. Returns the manifest.

    Who does not hear can learn to answer with one of two letters, and never which: a loss below that level
    is proof of listening.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for letter in TONES:
        for split, lengths in (("train", (0.6, 0.9, 1.2)), ("dev", (0.8,))):
            for seconds in lengths:
                name = f"{letter}-{seconds:g}"
                soundfile.write(folder / f"{name}.wav", tone(letter, seconds).numpy(), RATE)
                asked = {"role": "user", "text": f"<speech>\n{ASK}"}
                turns = [asked, {"role": "assistant", "text": letter}]
                row = {"id": name, "split": split, "task": "transcribe", "turns": turns}
                rows.append(row | {"audio": [f"{name}.wav"]})
    write_manifest(folder / "tones.jsonl", rows)
    return folder / "tones.jsonl"


def hidden_tone(letter: str, seconds: float, depth: float, seed: int = 0) -> Tensor:
    """The tone of a letter, 0.6 s long, somewhere in quiet noise: (T,).

    Args:
        seconds: of the whole recording, at least 0.6.
        depth: where the tone lies, 0 at the beginning, 1 at the end.
    """
    needle, count = tone(letter, 0.6), round(seconds * RATE)
    noise = np.random.default_rng(seed).standard_normal(count).astype(np.float32)
    wave, start = torch.from_numpy(0.01 * noise), round(depth * (count - len(needle)))
    wave[start : start + len(needle)] += needle
    return wave


@torch.no_grad()
def cost(brain: Brain, processor: BrainProcessor, seconds: float, new: int = 8) -> dict[str, float]:
    """Processor seconds of each step from a recording of noise to an answer of `new` words, and its positions."""
    wave, config = 0.01 * torch.randn(round(seconds * RATE)), brain.config
    clock = [time.process_time()]
    windows = mel_windows(wave, config.window_samples, config.mel_bins)
    clock.append(time.process_time())
    heard = brain.model.hear(windows, torch.tensor(processor.speech_positions(len(wave))))
    clock.append(time.process_time())
    batch = dict(processor.chat([{"role": "user", "content": [{"type": "audio", "audio": (wave, RATE)}]}]))
    for name in ("input_features", "feature_positions"):
        batch.pop(name)
    skipped = time.process_time() - clock[-1]  # the same spectra once more
    settings = AnswerSettings(max_new_tokens=new, eos=())
    for number, _ in enumerate(stream(brain, batch | {"speech_features": heard}, settings)):
        if number in (0, new - 1):
            clock.append(time.process_time() - skipped)
    names = ("spectrum", "encoders", "prompt", "answer")
    steps = {name: max(b - a, 1e-6) for name, a, b in zip(names, clock, clock[1:], strict=False)}
    return {"seconds": seconds, "positions": batch["input_ids"].shape[1], **steps}
