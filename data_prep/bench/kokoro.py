"""Speed of Kokoro on one core, as shipped and with its convolutions as matrix products, and whether the sound is the same.

    python -m data_prep.bench.kokoro            # two minutes; writes reports/nano/curation/kokoro.json

Both speak the same sentences in turn, in one process; of the rounds the fastest counts.
"""

import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_prep import kokoro
from data_prep.integer_conv import as_products
from omnilib import options
from omnilib.errors import in_one_line
from omnilib.paths import REPORTS
from omnilib.provenance import stamp, write_json

SENTENCES = (
    "Hello, my name is Anna and I work at the hospital.",
    "The ferry leaves at half past seven, so we should be at the harbour a little earlier.",
    "What a day!",
)
VOICES = ("af_heart", "am_adam")


def main(argv: list[str] | None = None) -> dict:
    parser = options.Parser(description=__doc__)
    parser.add_argument("--rounds", type=options.count, default=3)
    parser.add_argument("--out", type=Path, default=REPORTS / "nano" / "curation" / "kokoro.json")
    args = parser.parse_args(argv)
    started = time.time()
    sessions = {
        "shipped": kokoro.started(kokoro.published()),
        "products": kokoro.started(as_products(kokoro.published())),
    }
    given = feeds()
    seconds, waves = {name: [] for name in sessions}, {}
    for _ in tqdm(range(args.rounds), desc="rounds", disable=None):
        for name, session in sessions.items():
            began = time.perf_counter()
            waves[name] = np.concatenate([session.run(["audio"], feed)[0].ravel() for feed in given])
            seconds[name].append(time.perf_counter() - began)
    length = len(waves["shipped"]) / kokoro.RATE
    speed = {name: round(length / min(times), 3) for name, times in seconds.items()}
    result = {
        "times_real_time": speed,
        "ratio": round(speed["products"] / speed["shipped"], 3),
        "same_samples": bool(np.array_equal(waves["shipped"], waves["products"])),
        "seconds_of_speech": round(length, 2),
        "rounds": args.rounds,
        "provenance": stamp(
            "nano", {}, {"sentences": SENTENCES, "voices": VOICES}, {}, time.time() - started
        ),
    }
    write_json(args.out, result)
    print(
        f"{speed['shipped']:.2f} -> {speed['products']:.2f} times real time, same samples: {result['same_samples']}"
    )
    return result


def feeds() -> list[dict[str, np.ndarray]]:
    """What the graph is given for every sentence in every voice."""
    known, given = kokoro.vocabulary(), []
    for voice in VOICES:
        for sentence in SENTENCES:
            ids = [known[c] for c in kokoro.english(sentence, False) if c in known]
            style = kokoro.style_table(voice)[len(ids) - 1]
            given.append(
                {"tokens": np.array([[0, *ids, 0]]), "style": style[None], "speed": np.ones(1, np.float32)}
            )
    return given


if __name__ == "__main__":
    with in_one_line():
        main()
