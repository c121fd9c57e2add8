"""Does the brain find a sentence in an hour of speech? Needle in a haystack, by length and depth.

    python -m data_prep.needle --minutes 0.5,1,2,5                                  # half an hour on two cores
    python -m data_prep.needle --minutes 0.5,1,2,5 --coarse 15,30,60,75             # an hour more
    python -m data_prep.needle --minutes 0.5,1,2,5 --coarse 15,30,60,75 --once 240  # 52 minutes more, 9 GB of memory

The paper gives neither text nor rule, so this is our own:

    haystack    English test sentences, one behind the other, of `--corpus`: the committed recordings, a quarter of an
                hour that is repeated, or data/nano/manifest.jsonl; five recordings a length, of other orders, one of
                the lengths of `--coarse` and `--once`
    needle      "The secret code is red river 41.", a held-out code, spoken by a held-out voice, at the pause
                nearest to 0, 10, ... 100 % of the length (`--coarse`: 0, 50, 100; `--once`: 50)
    question    "What is the secret code?", in words, behind the sound
    found       every key token of the code (colour, thing, number) is a word of the answer
    control     the same recordings without the needle, asked for each code: how often it is "found" all the
                same; none at the lengths of `--once`

Intervals are exact (Clopper and Pearson). Each answer is kept as it comes (`needle.jsonl`), so a stopped run goes on
and `needle.json` may be made again from it. A recording is encoded once a depth: what stands before and behind the
needle moves by its length.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from data_prep.brain_long import haystack, places, sentences
from data_prep.brain_voices import Clip, Voices, speak
from omnilib import options
from omnilib.brain.ask import Brain, folder_of
from omnilib.data import read_manifest, sha256
from omnilib.errors import DataError, UserError
from omnilib.eval.frozen import FOLDER as FROZEN
from omnilib.eval.needle import TRAINED_MINUTES, figures, found, read_kept
from omnilib.eval.results import add_to_summary, write_jsonl
from omnilib.paths import DATA, REPORTS
from omnilib.provenance import peak_memory_gb, stamp, write_json

NEW_TOKENS = 24


def spoken_codes(voices: Voices, folder: Path, texts: dict[str, str]) -> dict[str, np.ndarray]:
    """The wave of each secret: code -> (T,) at 16 kHz, by held-out voices."""
    import soundfile

    folder.mkdir(parents=True, exist_ok=True)
    waves = {}
    for code, text in texts.items():
        clip: Clip = voices.clip(text, "en", "test", code, folder.name)
        path, seconds = speak(clip, voices.engine, folder.parent)
        if not seconds:
            raise DataError(f"'{text}' cannot be spoken by {voices.engine}: take another engine")
        waves[code] = soundfile.read(folder.parent / path, dtype="float32")[0]
    return waves


def planned(
    minutes: Sequence[float], coarse: Sequence[float], once: Sequence[float], depths: int, recordings: int
) -> list[dict]:
    """Rows of `places`, each once: the full grid of `minutes`, three depths of one recording, one in the middle."""
    rows = places(0, minutes, depths, recordings) + places(0, coarse, 3, 1) + places(0, once, 1, 1)
    return list({row["id"]: row for row in rows}.values())


def asked(rows: Sequence[dict], known: set[str]) -> Iterator[dict]:
    """Needles and controls that have no answer yet; a control stands for all depths of its recording."""
    for row in rows:
        if f"{row['id']}|needle" not in known:
            yield row | {"mode": "needle"}
        if row["depth"] == 0 and f"{row['id']}|control" not in known:
            yield row | {"mode": "control"}


def run(
    brain: Brain,
    rows: Sequence[dict],
    speech: Callable[[dict], Callable[[int], np.ndarray]],
    codes: dict[str, np.ndarray],
    kept: Path,
    mark: str = "",
    tell: Callable[[str], None] = lambda line: None,
) -> list[dict]:
    """Ask everything that has no answer yet; all records.

    Args:
        rows: of `places`.
        speech: the sentences of a row's recording.
        codes: code -> its wave.
        kept: JSONL of records, grown as answers come.
        mark: of the weights; records of others are dropped.
    """
    records = [r for r in read_kept(kept) if r.get("weights", "") == mark]
    known = {f"{r['id']}|{r['mode']}" for r in records}
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(kept, records)
    with kept.open("a", encoding="utf-8") as file:
        for row in asked(rows, known):
            needle = codes[row["answer"]] if row["mode"] == "needle" else None
            wave = haystack(speech(row), row["minutes"] * 60, needle, row["depth"])
            started = time.perf_counter()
            reply = brain.ask(row["question"], audio=[wave], max_new_tokens=NEW_TOKENS)
            record = {k: row[k] for k in ("id", "minutes", "depth", "recording", "mode")}
            record |= {
                "secret": row["answer"],
                "answer": reply.text,
                "found": found(row["answer"], reply.text),
            }
            record |= {"positions": reply.positions, "rope_factor": reply.rope_factor}
            record["weights"] = mark
            record["seconds"] = round(time.perf_counter() - started, 2)
            records.append(record)
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            file.flush()
            tell(f"{row['minutes']:g} min, depth {row['depth']:.0%}, {row['mode']}: {reply.text!r}")
    return records


def main(argv: Sequence[str] | None = None) -> int:
    parser = options.Parser(description=__doc__)
    parser.add_argument("--scale", type=options.scale, default="nano")
    parser.add_argument("--brain", type=Path, help="its folder (default: checkpoints/<scale>/brain)")
    parser.add_argument("--corpus", type=Path, default=FROZEN / "manifest.jsonl")
    parser.add_argument("--minutes", default="1,5", help="lengths, for example 1,5,15,30,60,75")
    parser.add_argument("--coarse", default="", help="lengths with three depths of one recording alone")
    parser.add_argument("--once", default="", help="lengths with one secret in the middle, without a control")
    parser.add_argument("--depths", type=options.count, default=11)
    parser.add_argument("--recordings", type=options.count, default=5)
    parser.add_argument("--engine", default="kokoro", help="who speaks the secrets")
    parser.add_argument("--voice", default="rms", help="of an engine with one voice")
    parser.add_argument("--reports", type=Path, default=REPORTS)
    args = parser.parse_args(argv)
    started = time.time()
    try:
        given = [args.minutes, args.coarse, args.once]
        lengths = [[float(m) for m in x.split(",")] if x else [] for x in given]
        if not all(0 < m < 1000 for m in sum(lengths, [])):
            raise ValueError(given)
    except ValueError:
        parser.error(
            f"--minutes {args.minutes} --coarse {args.coarse} --once {args.once}: "
            "give lengths in minutes, above 0 and below 1000, for example 1,5,15"
        )
    try:
        folder = args.brain or folder_of(args.scale)
        records = [r for r in read_manifest(args.corpus) if r["split"] == "test" and r["language"] == "en"]
        if not records:
            raise DataError(f"{args.corpus} has no English test sentences: build the corpus first")
        rows = planned(*lengths, args.depths, args.recordings)
        place = args.reports / args.scale / "brain"
        codes = spoken_codes(
            Voices(args.engine, args.voice), DATA / "needles", {r["answer"]: r["secret"] for r in rows}
        )
        brain, mark = Brain.load(folder), sha256(folder / "model.safetensors")[:12]
        order = lambda row: sentences(records, args.corpus.parent, f"{row['minutes']} {row['recording']}")  # noqa: E731
        kept = run(
            brain, rows, order, codes, place / "needle.jsonl", mark, lambda line: print(line, flush=True)
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    config = brain.model.config
    settings = {
        "weights": mark,
        "decoder": brain.decoder.weights if brain.decoder else "plain",
        "greedy": True,
    }
    settings |= {"long_positions": config.long_positions, "ds_rate": config.speech_encoder_ds_rate}
    settings |= {
        "trained_minutes": TRAINED_MINUTES,
        "engine": args.engine,
        "corpus_sha256": sha256(args.corpus),
        "peak_memory_gb": peak_memory_gb(),
    }
    found_all = {"name": "needle", "scale": args.scale, "settings": settings} | figures(kept)
    write_json(place / "needle.json", found_all)
    source = f"reports/{args.scale}/brain/needle.json"
    add_to_summary(args.reports / args.scale / "summary.json", found_all["metrics"], source)
    write_json(place / "needle_provenance.json", stamp(args.scale, {}, settings, {}, time.time() - started))
    for name, entry in (found_all["metrics"] | found_all["by_minutes"]).items():
        low, high = entry["ci95"]
        print(
            f"{name:24} {100 * entry['value']:5.1f} % ({100 * low:.1f} to {100 * high:.1f})  n={entry['n']}"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
