"""Long speech with a spoken secret in it ("needle in a haystack"): recordings joined one behind the other.

    places   where each secret of the measured grid stands: lengths x depths x turns, texts alone
    long_rows   training samples: some tens of seconds to minutes, a fifth of them without any secret
    haystack    the wave of one place: corpus speech, the secret at a pause between two sentences

The secret of a place depends on its own key alone, and no code of the grid occurs in training: those end in
an even number, these in an odd one.
"""

import random
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile

from data_prep.brain_facts import COLOURS, WORDS
from omnilib.audio import load_wave
from omnilib.brain.media import to_16k
from omnilib.data import load_segment

RATE = 16_000
PAUSE = 0.35  # seconds between sentences
QUESTION = "What is the secret code?"
NONE = "There is no secret code."
TRAIN_SECONDS = (15, 30, 45, 60, 90, 120)  # of a training sample
WITHOUT = 5  # every fifth training sample has no secret


def code(rng: random.Random, odd: bool) -> str:
    """A colour, a thing and a number."""
    number = rng.randrange(10, 100, 2) + odd
    return f"{rng.choice(sorted(COLOURS))} {rng.choice(WORDS)} {number}"


def secret(answer: str) -> str:
    """The sentence that is hidden."""
    return f"The secret code is {answer}."


def places(
    seed: int = 0,
    minutes: Sequence[float] = (1, 5, 15, 30, 60, 75),
    depths: int = 11,
    each: int = 5,
) -> list[dict]:
    """Where a secret stands in long speech: texts and places, no audio."""
    rows = []
    for length in minutes:
        for depth in range(depths):
            for turn in range(each):
                share = depth / (depths - 1) if depths > 1 else 0.5
                place = f"{length:g}-{100 * share:.0f}-{turn}"  # the same in a coarser grid
                answer = code(random.Random(f"{seed} {place}"), odd=True)
                row = {"id": f"needle-{place}", "minutes": length, "depth": share}
                row |= {"recording": turn, "seconds": round(share * length * 60, 1)}
                rows.append(row | {"secret": secret(answer), "question": QUESTION, "answer": answer})
    return rows


def haystack(
    speech: Callable[[int], np.ndarray], seconds: float, needle: np.ndarray | None, share: float
) -> np.ndarray:
    """Sentences one behind the other, the needle at the pause nearest to `share` of the whole: (T,) at 16 kHz.

    Args:
        speech: the i-th sentence.
        seconds: of the whole; the last sentence is cut.
        needle: None for the control.
    """
    pause = np.zeros(round(PAUSE * RATE), np.float32)
    wanted = round(seconds * RATE) - (0 if needle is None else len(needle) + len(pause))
    pieces, ends, total, index = [], [0], 0, 0
    while total < wanted:
        pieces.append(np.concatenate([speech(index), pause])[: wanted - total])
        total += len(pieces[-1])
        ends.append(total)
        index += 1
    if needle is not None:
        at = min(range(len(ends)), key=lambda i: abs(ends[i] - share * wanted))
        pieces.insert(at, np.concatenate([needle, pause]))
    return np.concatenate(pieces) if pieces else np.zeros(0, np.float32)


@lru_cache(maxsize=512)
def frozen_sentence(path: Path) -> np.ndarray:
    """A frozen recording at 16 kHz; the same few hundred stand in every haystack."""
    return load_wave(path, RATE).numpy()


def sentences(records: Sequence[dict], root: Path, seed: str) -> Callable[[int], np.ndarray]:
    """Endless sentences of a corpus or of the frozen recordings, mono at 16 kHz, in an order of their own."""
    order = random.Random(seed).sample(range(len(records)), len(records))

    def speech(index: int) -> np.ndarray:
        record = records[order[index % len(order)]]
        if record["path"].endswith(".ogg"):  # frozen: a file of its own
            return frozen_sentence(root / record["path"])
        return to_16k(load_segment(record, root), record["rate"]).numpy()

    return speech


def long_plan(count: int, seed: int) -> list[dict]:
    """What the training samples hide, before anything is spoken."""
    plan = []
    for i in range(count):
        rng = random.Random(f"{seed} long {i}")
        hidden = i % WITHOUT != WITHOUT - 1
        own = {
            "seconds": rng.choice(TRAIN_SECONDS),
            "share": rng.random(),
            "split": "dev" if i % 20 == 0 else "train",
        }
        answer = code(random.Random(f"{seed} code {i // 2}"), odd=False)  # two samples share a code
        plan.append(own | {"name": f"needle-train-{i:04d}", "answer": answer if hidden else ""})
    return plan


def write_long(
    plan: Sequence[dict], spoken: dict[str, Path], records: Sequence[dict], root: Path, out: Path
) -> list[dict]:
    """Write the waves (FLAC) of a plan; rows of the manifest.

    Args:
        spoken: code -> its recording.
        records, root: sentences of a speech corpus, and the folder that their paths start from.
    """
    rows = []
    for item in plan:
        if item["answer"] and item["answer"] not in spoken:
            continue
        path = out / f"{item['name']}.flac"
        if not path.is_file():
            needle = soundfile.read(spoken[item["answer"]], dtype="float32")[0] if item["answer"] else None
            wave = haystack(sentences(records, root, item["name"]), item["seconds"], needle, item["share"])
            temporary = path.with_suffix(".tmp")
            soundfile.write(temporary, wave, RATE, subtype="PCM_16", format="FLAC")
            temporary.replace(path)
        answer = f"{item['answer'][0].upper()}{item['answer'][1:]}." if item["answer"] else NONE
        row = {"id": item["name"], "split": item["split"], "task": "needle", "language": "en"}
        row |= {"question": QUESTION, "answer": item["answer"], "audio": [f"{out.name}/{path.name}"]}
        talk = [{"role": "user", "text": f"<speech>{QUESTION}"}, {"role": "assistant", "text": answer}]
        rows.append(row | {"turns": talk})
    return rows
