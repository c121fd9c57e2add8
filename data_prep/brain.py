"""Samples for the brain whose answer is known: questions, pictures and videos, asked by voice.

    python -m data_prep.brain --out data/brain --count 500 --speak flite --voice rms
    python -m data_prep.brain --out data/brain --count 2000 --speak kokoro --hours 0.4 --then flite gcin --workers 2 \\
        --corpus data/ears/manifest.jsonl data/ears_zh/manifest.jsonl --transcribe 14000 --long 60

| task | asks | truth |
|---|---|---|
| arithmetic, spelling, capital, opposite, order, gloss | words alone | rules, `brain_facts`, HSK glosses |
| emoji, emoji_zh | a Noto emoji | its name in English or Chinese, from the package emoji |
| read, chart | a drawn word or number, bars | what was drawn |
| shapes | a picture of easy-vqa | its answer |
| describe | emoji in a row, bars, a shape | all that is there; not measured |
| video_count, video_last, video_move | emoji that appear or move | how they were placed |
| transcribe | a spoken question | its words |
| needle | a spoken secret in long speech (`brain_long`) | the secret |

Writes `<out>.jsonl`, the manifest of `omnilib.train.brain_samples`, with media below `<out>/`, and
`<out>_needles.jsonl`. A row also holds its `question` in words, so the same sample can be asked typed, or
without its media. What is missing (an engine, a font, a package) is said in one line, and the rest is
written.

The split is decided by a hash of what is asked, so no question stands in two, and no drawing of one task's test in
another's training. Names of emoji are all in
training: held out are drawings, with another size, place and ground. Everything is a function of the
arguments: two runs give equal bytes.
"""

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from data_prep.brain_long import long_plan, places, secret, write_long
from data_prep.brain_tasks import SEVERAL, Item, items
from data_prep.brain_voices import Clip, Voices, admit, pick, speak_all
from omnilib import options
from omnilib.data import read_manifest, write_manifest
from omnilib.errors import DataError, MissingTool, UserError

TYPED_EVERY = 4  # every fourth spoken question is also written typed
FRAME_MS = 500
LONGEST = 20.0  # seconds of a recording to transcribe
TRANSCRIBE = "Write down what is said."


def media_of(item: Item, out: Path) -> dict:
    """Write the picture or video of an item; its fields of the manifest."""
    folder = out.name
    if item.copy:
        shutil.copyfile(item.copy, out / f"{item.name}.png")
        return {"images": [f"{folder}/{item.name}.png"]}
    if not item.draw:
        return {}
    first, *others = item.draw()
    if not others:
        first.save(out / f"{item.name}.png", optimize=True)
        return {"images": [f"{folder}/{item.name}.png"]}
    moving = dict(save_all=True, append_images=others, duration=FRAME_MS, loop=0)
    first.save(out / f"{item.name}.gif", **moving)
    return {"video": [f"{folder}/{item.name}.gif"]}


def rows_of(item: Item, wave: str, out: Path) -> list[dict]:
    """Rows of an item, its media written.

    Args:
        wave: the recording of its question, relative to the folder of the manifest; "": it is asked typed.
    """
    media = media_of(item, out)
    row = {
        "split": item.split,
        "task": item.task,
        "language": item.language,
        "question": item.question,
        "answer": item.answer,
    }
    seen = "<image>" if "images" in media else "<video>" if "video" in media else ""
    typed = row | media | {"id": f"{item.name}-typed", "turns": turns(seen + item.question, item.answer)}
    if not wave:
        return [typed]
    spoken = row | media | {"id": item.name, "audio": [wave], "turns": turns(f"{seen}<speech>", item.answer)}
    said = row | {
        "id": f"{item.name}-said",
        "task": "transcribe",
        "question": TRANSCRIBE,
        "answer": item.question,
        "audio": [wave],
    }
    said["turns"] = turns(f"<speech>{TRANSCRIBE}", item.question)
    also = pick(item.name, TYPED_EVERY) == 0
    return [spoken, *([] if seen else [said]), *([typed] if also else [])]


def turns(question: str, answer: str) -> list[dict]:
    """A question and its answer."""
    return [{"role": "user", "text": question}, {"role": "assistant", "text": answer}]


def corpus_rows(manifests: Sequence[Path], root: Path, count: int) -> list[dict]:
    """Transcription of speech corpora: pieces of their files, their own splits; natural speech before raw, then
    by a hash of the id, so that a part holds all speakers.

    Raises:
        DataError: one does not lie below the folder of our manifest.
    """
    rows, taken, usable = [], {}, []
    for manifest in manifests:
        place = manifest.resolve().parent
        if not place.is_relative_to(root.resolve()):
            raise DataError(f"{manifest} does not lie below {root}: put --out beside the corpus")
        folder = place.relative_to(root.resolve())
        for record in read_manifest(manifest):
            if record.get("speed", 1.0) == 1.0 and record["duration"] <= LONGEST:
                usable.append(record | {"path": str(folder / record["path"])})
    plain = lambda r: (r.get("part") == "raw", hashlib.sha256(r["id"].encode()).digest())  # noqa: E731
    for record in sorted(usable, key=plain):
        key = record["split"], record["language"]
        taken[key] = taken.get(key, 0) + 1
        if taken[key] > count:
            continue
        piece = {k: record[k] for k in ("path", "start", "duration", "rate")}
        row = {"id": f"corpus-{record['id']}", "split": record["split"], "task": "transcribe"}
        row |= {"language": record["language"], "question": TRANSCRIBE, "answer": record["text"]}
        row["audio"] = [piece]
        rows.append(row | {"turns": turns(f"<speech>{TRANSCRIBE}", record["text"])})
    return rows


def in_order(made: list[Item]) -> list[Item]:
    """One of each task in turn: any budget of speech serves all tasks."""
    place: dict[str, int] = {}
    ranked = []
    for item in made:
        place[item.task] = place.get(item.task, 0) + 1
        ranked.append((place[item.task], item.task, item.name, item))
    return [entry[-1] for entry in sorted(ranked, key=lambda e: e[:-1])]


def speak_rest(
    left: list[Item], engine: str, out: Path, workers: int, spoken: dict[str, float]
) -> tuple[dict[str, Clip], str]:
    """Questions asked by all voices of a quick engine, added to `spoken`; their recordings, and a line about them."""
    try:
        voices = Voices(engine)
    except MissingTool as error:
        return {}, f"questions stay typed: {error}"
    given = ((i.name, voices.clip(i.question, i.language, i.split, i.name, out.name)) for i in left)
    clips = {name: clip for name, clip in given if clip}
    made = speak_all(list({clip.path: clip for clip in clips.values()}.values()), engine, out.parent, workers)
    spoken |= made
    return clips, f"spoken by {engine}: {len(made)} recordings, {sum(made.values()) / 3600:.2f} hours"


def build(
    out: Path,
    count: int,
    seed: int = 0,
    engine: str = "",
    voice: str = "rms",
    corpora: Sequence[Path] = (),
    hours: float = 1.5,
    long: int = 0,
    transcribe: int | None = None,
    workers: int = 1,
    held_out: float = 0.05,
    then: Sequence[str] = (),
) -> tuple[list[dict], list[str]]:
    """Write everything; the rows, and lines about what was spoken and what was missing.

    Args:
        count: items of each task.
        hours, held_out: of questions that are spoken, expected: to train on; development and test.
        long: training samples of long speech with a secret (need an engine and a corpus).
        then: engines that speak the training questions that are left, with all their voices.
        transcribe: recordings of the corpora, of each language and split; None: `count`.
    """
    out, notes, voices = Path(out), [], None
    out.mkdir(parents=True, exist_ok=True)
    if engine:
        try:
            voices = Voices(engine, voice)
        except MissingTool as error:
            notes.append(f"questions stay typed: {error}")
    made, missing = items(count, seed)
    heard = corpus_rows(corpora, out.parent, count if transcribe is None else transcribe)
    clips, secrets, spoken, plan = {}, {}, {}, long_plan(long if corpora else 0, seed)
    if voices:
        for item in plan:
            if item["answer"]:
                said = secret(item["answer"])
                secrets[item["answer"]] = voices.clip(said, "en", "train", item["answer"], out.name)
        for item in in_order([i for i in made if i.split == "train" or i.task not in SEVERAL]):
            if clip := voices.clip(item.question, item.language, item.split, item.name, out.name):
                clips[item.name] = clip
        train = {item.name for item in made if item.split == "train"}
        learnt = [*secrets.values(), *(clip for name, clip in clips.items() if name in train)]
        kept = [clip for name, clip in clips.items() if name not in train]
        (chosen, some), (more, rest) = (
            admit(filter(None, some), budget) for some, budget in ((learnt, hours), (kept, held_out))
        )
        chosen, expected = chosen + more, some + rest
        spoken = speak_all(chosen, engine, out.parent, workers)
        told = f"{len(spoken)} recordings, {sum(spoken.values()) / 3600:.2f} hours ({expected:.2f} expected)"
        notes.append(f"spoken by {engine}: {told}")
        if other := sum(not voices.speaks(item.language) for item in made):
            notes.append(f"{other} questions stay typed: {engine} does not speak their language")
    for cheap in then:
        left = [
            i
            for i in made
            if i.split == "train" and (i.name not in clips or clips[i.name].path not in spoken)
        ]
        more, note = speak_rest(left, cheap, out, workers, spoken)
        clips |= more
        notes.append(note)
    rows = []
    for item in made:
        clip = clips.get(item.name)
        rows += rows_of(item, clip.path if clip and clip.path in spoken else "", out)
    if plan:
        ready = {a: out.parent / c.path for a, c in secrets.items() if c and c.path in spoken}
        english = [row for row in heard if row["split"] == "train" and row["language"] == "en"]
        pieces = [row["audio"][0] | {"id": row["id"]} for row in english]
        rows += write_long(plan, ready, pieces, out.parent, out)
    rows += heard
    write_manifest(out.with_name(f"{out.name}.jsonl"), sorted(rows, key=lambda r: r["id"]))
    write_manifest(out.with_name(f"{out.name}_needles.jsonl"), places(seed))
    return rows, notes + missing


def main(argv: list[str] | None = None) -> None:
    parser = options.Parser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for media, beside the manifest")
    parser.add_argument("--count", type=options.count, default=200, help="items of each task")
    parser.add_argument("--seed", type=options.seed, default=0)
    parser.add_argument(
        "--speak",
        default="flite",
        metavar="ENGINE",
        help="who asks: kokoro, flite, piper or gcin; '' for typed questions",
    )
    parser.add_argument("--voice", default="rms", help="of an engine with one voice")
    parser.add_argument("--hours", type=float, default=1.5, help="of spoken questions to train on")
    parser.add_argument(
        "--then",
        nargs="+",
        default=[],
        metavar="ENGINE",
        help="who speaks the training questions that are left",
    )
    parser.add_argument("--held-out", type=float, default=0.05, help="hours of spoken questions to test with")
    parser.add_argument(
        "--corpus",
        type=Path,
        nargs="+",
        default=[],
        help="manifests of speech corpora below the folder of --out, to transcribe",
    )
    parser.add_argument(
        "--transcribe", type=options.count, help="recordings of a corpus language (default: --count)"
    )
    parser.add_argument(
        "--long", type=options.count_or_none, default=0, help="samples of long speech with a secret"
    )
    parser.add_argument("--workers", type=options.count, default=1, help="processes that speak")
    args = parser.parse_args(argv)
    if not min(args.hours, args.held_out) >= 0:
        parser.error("--hours and --held-out must be 0 or more")
    try:
        rows, notes = build(
            args.out,
            args.count,
            args.seed,
            args.speak,
            args.voice,
            args.corpus,
            args.hours,
            args.long,
            args.transcribe,
            args.workers,
            args.held_out,
            args.then,
        )
    except UserError as error:
        parser.error(str(error))
    print(*notes, f"{len(rows)} samples in {args.out.with_name(args.out.name + '.jsonl')}", sep="\n")


if __name__ == "__main__":
    main()
