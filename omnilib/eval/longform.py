"""Ten minutes or an hour in one go: does the speech get worse with time?

    python -m omnilib.eval.longform --minutes 10          # two texts
    python -m omnilib.eval.longform --minutes 60          # one text; stopped, it goes on where it was

Needs the frozen set's long texts (`minutes10-*`, `minutes60-*` in longform.jsonl). The text is spoken pass by pass, as
`TextToSpeech.speak` does it; after each pass the judges listen to it, piece by piece of 28 s, and what they heard is kept in
runs/longform/, so a stopped hour loses one pass at most. Writes reports/<scale>/long<minutes>/:

    metrics.json      long60_wer, long60_drift, long60_similarity, long60_similarity_drift, long60_flagged
    minutes.jsonl     a row a text: every piece heard, every flag, the errors of every minute; the figures follow from it

The figures go to summary.json too. `figures` makes them from those rows alone, so they can be counted again without a model.
"""

import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from rapidfuzz.distance import Levenshtein
from tqdm import tqdm

from omnilib import options
from omnilib.audio import TOKENIZER_RATE, resample
from omnilib.errors import AudioError, DataError, UserError, in_one_line
from omnilib.eval.frozen import FOLDER, Frozen
from omnilib.eval.judges import RATE, SpeakerJudge, Whisper, pieces
from omnilib.eval.normalize import normalize
from omnilib.eval.results import add_to_summary
from omnilib.eval.similarity import cosine
from omnilib.intervals import bootstrap
from omnilib.paths import REPORTS, RUNS
from omnilib.provenance import fingerprints, peak_memory_gb, read_json, stamp, write_json, write_stamp
from omnilib.report import sources
from omnilib.report.folders import check_writable, fresh_folder, replace_folder
from omnilib.speak import TextToSpeech

LENGTHS = (10, 60)  # minutes
PER = 10.0  # drift is the change in this many minutes
DRAWS = 2000  # of the bootstrap over minutes


# ---- speaking and listening, pass by pass ----------------------------------------------------------------------------


def hear(wave: torch.Tensor, rate: int, start: float, reference: np.ndarray, judge, voices) -> list[dict]:
    """What the judges make of the wave (T,) of a pass that begins at `start` seconds: a row a piece.

    A piece with too little speech for the speaker judge has no similarity.
    """
    if not len(wave):
        return []
    cuts = pieces(resample(wave, rate, RATE).numpy())
    waiting = [judge.submit(cut, RATE, "en") for cut in cuts]
    rows = []
    for cut, text in zip(cuts, waiting, strict=True):
        try:
            alike = round(cosine(voices.embed(cut, RATE), reference), 5)
        except AudioError:
            alike = None
        seconds = len(cut) / RATE
        rows.append(
            {"start": round(start, 2), "seconds": round(seconds, 2), "text": text(), "similarity": alike}
        )
        start += seconds
    return rows


def folder_of(scale: str, row: dict, voice: Path, judges: Sequence[str], settings: dict, root: Path) -> Path:
    """Where the passes of a text are kept: another text, voice, checkpoint, judge or setting has another folder."""
    facts = [fingerprints(scale), row, hashlib.sha256(voice.read_bytes()).hexdigest(), *judges, settings]
    mark = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:12]
    return root / f"{row['id']}-{mark}"


@torch.inference_mode()
def speak_and_hear(tts: TextToSpeech, row: dict, line, judge, voices, kept: Path, seed: int = 0) -> dict:
    """The record of one text; passes found in the folder `kept` are taken as they are.

    Args:
        row: {"id", "text", "speaker"} of longform.jsonl.
        line: the reference recording of its speaker.
        judge, voices: `Whisper` and `SpeakerJudge`.
    """
    job = tts.job(row["text"], line.path, line.text, "en", seed, None)
    reference = voices.embed(line.wave(TOKENIZER_RATE), TOKENIZER_RATE)
    kept.mkdir(parents=True, exist_ok=True)
    heard, flags, start, ids, number = [], [], 0.0, job.request.ids, 0
    form = "{l_bar}{bar}| {n:.0f} s of speech [{elapsed}<{remaining}]"
    with tqdm(desc=row["id"], total=job.seconds, bar_format=form, disable=None) as bar:
        while ids:
            path = kept / f"pass-{number:03d}.json"
            done = read_json(path)
            if not done:
                timings = {"mouth": 0.0, "flow": 0.0, "hift": 0.0}
                part = tts.speak_pass(job, ids, timings, bar)
                done = {
                    "seconds": len(part.wave) / tts.rate,
                    "pieces": hear(part.wave, tts.rate, start, reference, judge, voices),
                    "flags": [chunk.error for chunk in part.chunks],
                    "rest": list(part.rest),
                }
                write_json(path, done)
            else:
                bar.update(done["seconds"])
            heard += done["pieces"]
            flags += done["flags"]
            start, ids, number = start + done["seconds"], tuple(done["rest"]), number + 1
    record = {key: row[key] for key in ("id", "text", "speaker")}
    record |= {"seconds": round(start, 2), "passes": number, "flags": flags, "pieces": heard}
    return record | {"minutes": by_minute(row["text"], heard)}


# ---- figures ---------------------------------------------------------------------------------------------------------


def by_minute(text: str, heard: Sequence[dict]) -> list[dict]:
    """Errors, words and similarity in each minute of speech, from one alignment of the whole text.

    A heard word stands where its place in its piece puts it. A word of the text stands in the minute of the heard word it is
    aligned with; one that was not heard, in the minute of the one before it.

    Args:
        heard: rows of `hear`, in order.
    """
    truth, said, when = normalize(text, "en").split(), [], []
    for piece in heard:
        words = normalize(piece["text"], "en").split()
        said += words
        when += [piece["start"] + piece["seconds"] * (i + 0.5) / len(words) for i in range(len(words))]
    last = max((piece["start"] + piece["seconds"] for piece in heard), default=0.0)
    count = max(1, int(np.ceil(last / 60)))
    minute_of = [min(count - 1, int(t // 60)) for t in when]
    errors, words, alike = [0] * count, [0] * count, [[] for _ in range(count)]
    now = 0
    for step in Levenshtein.opcodes(truth, said):
        for i in range(max(step.src_end - step.src_start, step.dest_end - step.dest_start)):
            if step.dest_start + i < step.dest_end:
                now = minute_of[step.dest_start + i]
            words[now] += step.src_start + i < step.src_end
            errors[now] += step.tag != "equal"
    for piece in heard:
        if piece["similarity"] is not None:
            middle = piece["start"] + piece["seconds"] / 2
            alike[min(count - 1, int(middle // 60))].append(piece["similarity"])
    return [
        {"minute": m, "errors": errors[m], "words": words[m], "similarity": mean_of(alike[m])}
        for m in range(count)
    ]


def mean_of(values: Sequence[float]) -> float | None:
    return round(float(np.mean(values)), 5) if values else None


def slope(minutes: Sequence[float], values: Sequence[float], weights: Sequence[float], seed: int = 0) -> dict:
    """Change of a value in PER minutes: the slope of a weighted straight line, ci95 by resampling the minutes.

    The value is None where fewer than three minutes were spoken: a line through two points proves nothing.
    """
    x, y, w = (np.asarray(v, float) for v in (minutes, values, weights))
    if len(set(minutes)) < 3:
        return {"value": None, "n": len(x), "ci95": None}

    def line(i: np.ndarray) -> float:
        away = x[i] - np.average(x[i], weights=w[i])
        spread = float((w[i] * away**2).sum())
        return PER * float((w[i] * away * y[i]).sum()) / spread if spread else np.nan

    rng = np.random.default_rng(seed)
    draws = [line(rng.integers(0, len(x), len(x))) for _ in range(DRAWS)]
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return {"value": line(np.arange(len(x))), "n": len(x), "ci95": [float(low), float(high)]}


def figures(records: Sequence[dict], length: int) -> dict[str, dict]:
    """`long<length>_*` from the records of the texts; nothing is read but what was heard.

    Raises:
        DataError: there are none.
    """
    if not records:
        raise DataError(f"no records of {length} minutes")
    rows = [row for r in records for row in by_minute(r["text"], r["pieces"])]
    spoken = [row for row in rows if row["words"]]
    rates, weights = [r["errors"] / r["words"] for r in spoken], [r["words"] for r in spoken]
    value, interval = bootstrap(rates, weights)
    found = {"wer": {"value": value, "n": len(spoken), "ci95": interval, "words": sum(weights)}}
    found["drift"] = slope([r["minute"] for r in spoken], rates, weights)
    voiced = [row for row in rows if row["similarity"] is not None]
    if voiced:
        alike = [r["similarity"] for r in voiced]
        value, interval = bootstrap(alike)
        found["similarity"] = {"value": value, "n": len(alike), "ci95": interval}
        found["similarity_drift"] = slope([r["minute"] for r in voiced], alike, [1.0] * len(alike))
    flags = [float(bool(flag)) for r in records for flag in r["flags"]]
    if flags:
        value, interval = bootstrap(flags)
        found["flagged"] = {"value": value, "n": len(flags), "ci95": interval}
    units = {"wer": "rate", "drift": "rate", "flagged": "rate"}
    return {f"long{length}_{name}": e | {"unit": units.get(name, "")} for name, e in found.items()}


def anew(folder: Path) -> tuple[dict[str, dict], dict[str, dict]]:
    """(committed, recomputed) figures of a report folder, from its records: arithmetic alone.

    Raises:
        DataError: a file is missing or damaged.
    """
    try:
        whole = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        records = [json.loads(r) for r in (folder / "minutes.jsonl").read_text(encoding="utf-8").splitlines()]
        return whole["metrics"], figures(records, int(whole["minutes"]))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder.name} is damaged ({error}): restore it with `git checkout`") from None


# ---- the run ---------------------------------------------------------------------------------------------------------


def texts_of(frozen: Frozen, length: int) -> list[dict]:
    """The long texts of `length` minutes.

    Raises:
        DataError: the frozen set has none.
    """
    rows = frozen.texts(f"minutes{length}-")
    if not rows:
        raise DataError(
            f"{frozen.folder} has no text of {length} minutes: freeze a corpus of the open plan with `python -m data_prep.frozen`"
        )
    return rows


def write(
    folder: Path, scale: str, length: int, records: Sequence[dict], settings: dict, stamped: dict
) -> None:
    """metrics.json, minutes.jsonl and the provenance, replaced as a whole; then the headlines."""
    measured = figures(records, length)
    with fresh_folder(folder) as new:
        lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records)
        (new / "minutes.jsonl").write_text(lines, encoding="utf-8")
        found = {"name": folder.name, "scale": scale, "minutes": length, "settings": settings}
        write_json(new / "metrics.json", found | {"metrics": measured})
        sources.record(new, folder.name, scale)
        write_stamp(new, stamped)
        replace_folder(new, folder)
    place = f"reports/{scale}/{folder.name}/metrics.json"
    add_to_summary(folder.parent / "summary.json", measured, place)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = options.Parser(description=__doc__)
    parser.add_argument("--minutes", type=int, choices=LENGTHS, default=LENGTHS[0])
    parser.add_argument("--scale", type=options.scale, default="nano", help="checkpoints/<scale>")
    parser.add_argument("--frozen", type=Path, default=FOLDER)
    parser.add_argument("--reports", type=Path, default=REPORTS)
    parser.add_argument("--seed", type=options.seed, default=0)
    args = parser.parse_args(argv)
    started = time.perf_counter()
    try:
        check_writable(args.reports)
        frozen = Frozen(args.frozen)
        rows = texts_of(frozen, args.minutes)
        tts, judge, voices = TextToSpeech.load(args.scale), Whisper(), SpeakerJudge()
        ids = {"speech": judge.id, "speaker": voices.id}
        settings = {"decode": asdict(tts.settings), "codec": asdict(tts.codec.settings), "seed": args.seed}
        records = []
        for row in rows:
            line = frozen.references[row["speaker"]]
            kept = folder_of(args.scale, row, line.path, list(ids.values()), settings, RUNS / "longform")
            records.append(speak_and_hear(tts, row, line, judge, voices, kept, args.seed))
        stamped = stamp(
            args.scale,
            {"minutes": args.minutes, "seed": args.seed},
            settings | {"judges": ids},
            {"frozen": args.frozen / "manifest.jsonl"},
            time.perf_counter() - started,
        ) | {"status": "ok", "error": "", "peak_memory_gb": peak_memory_gb()}
        target = args.reports / args.scale / f"long{args.minutes}"
        write(target, args.scale, args.minutes, records, settings | {"judges": ids}, stamped)
    except (UserError, OSError) as error:
        print(f"long form: {error}", file=sys.stderr)
        return 2
    for name, entry in figures(records, args.minutes).items():
        shown = "not measured" if entry["value"] is None else f"{entry['value']:.4f} {entry['ci95']}"
        print(f"{name:<28} {shown} n={entry['n']}")
    return 0


if __name__ == "__main__":
    with in_one_line():
        raise SystemExit(main())
