"""Speed of the whole chain at batch 1: real-time factor with each module's share, time to first sound, streaming = offline.

    real-time factor = seconds of work / seconds of speech made (below 1: faster than speech)

The voice is enrolled beforehand (a reference is analysed once, not at every sentence); a first sentence warms up and is not
counted. Nothing else may run on the machine: `nano.py` measures speed before the judges start.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from omnilib.eval.wer import bootstrap
from omnilib.mouth import decode
from omnilib.speak import TextToSpeech

MODULES = ("mouth", "flow", "hift")
Sentence = tuple[str, Path, str]  # text, reference recording, its transcript


def ratio(work: Sequence[float], speech: Sequence[float]) -> dict:
    """Sum of work over sum of speech, with ci95 over sentences."""
    value, interval = bootstrap(np.asarray(work) / np.asarray(speech), speech)
    return {"value": value, "n": len(work), "ci95": interval}


def real_time_factor(
    speaker: TextToSpeech, sentences: Sequence[Sentence], temperature: float | None = None, seed: int = 0
) -> dict[str, dict]:
    """{"rtf_total", "rtf_mouth", "rtf_flow", "rtf_hift"} of sentences spoken one by one."""
    first = sentences[0]
    speaker.speak(first[0], first[1], first[2], seed=seed, temperature=temperature)
    results = [
        speaker.speak(text, voice, said, seed=seed, temperature=temperature)
        for text, voice, said in sentences
    ]
    speech = [result.seconds for result in results]
    work = {name: [result.timings.get(name, 0.0) for result in results] for name in MODULES}
    total = [sum(parts) for parts in zip(*work.values(), strict=True)]
    measured = {"rtf_total": ratio(total, speech)} | {
        f"rtf_{name}": ratio(work[name], speech) for name in MODULES
    }
    for entry in measured.values():
        entry |= {"speech_seconds": round(sum(speech), 2), "batch": 1, "threads": torch.get_num_threads()}
    return measured


def time_to_first_sound(
    speaker: TextToSpeech, sentences: Sequence[Sentence], temperature: float | None = None, seed: int = 0
) -> dict:
    """Seconds from the call to the first samples of `TextToSpeech.stream`."""
    seconds = []
    for text, voice, said in [sentences[0], *sentences]:
        started = time.perf_counter()
        pieces = speaker.stream(text, voice, said, seed=seed, temperature=temperature)
        next(pieces)
        seconds.append(time.perf_counter() - started)
        pieces.close()
    seconds = seconds[1:]  # the first warmed up
    value, interval = bootstrap(seconds)
    return {
        "value": value,
        "n": len(seconds),
        "ci95": interval,
        "median": float(np.median(seconds)),
        "slowest": max(seconds),
        "threads": torch.get_num_threads(),
    }


def streaming_matches(
    speaker: TextToSpeech, sentences: Sequence[Sentence], temperature: float | None = None, seed: int = 0
) -> dict[str, dict]:
    """Share of sentences whose streamed tokens equal the offline ones; greatest difference of streamed and chunked waves."""
    equal, gaps = [], []
    for text, path, said in sentences:
        reference, request, settings = speaker.prepare(text, path, said, None, seed, temperature)
        offline = decode.generate(speaker.model, speaker.tokenizer, [request], settings)[0].tokens.tolist()
        streamed = [
            t for piece in decode.stream(speaker.model, speaker.tokenizer, request, settings) for t in piece
        ]
        equal.append(float(streamed == offline))
        if offline:
            rows = [offline[i : i + 4] for i in range(0, len(offline), 4)]
            wave = torch.cat(list(speaker.codec.stream(rows, reference.voice)))
            whole = speaker.codec.decode(torch.tensor(offline), reference.voice, streaming=True)
            gaps.append(float((wave - whole).abs().max()))
    value, interval = bootstrap(equal)
    return {
        "stream_tokens_equal": {"value": value, "n": len(equal), "ci95": interval},
        "stream_wave_gap": {"value": max(gaps, default=0.0), "n": len(gaps), "ci95": None},
    }
