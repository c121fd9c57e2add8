"""How well the brain hears, answers and sees: files, answers and figures.

    python -m omnilib.eval.brain                       # checkpoints/nano/brain -> reports/nano/brain/
    python -m omnilib.eval.brain --part see --most 20  # a look at some answers; writes below runs/ alone

| measure | asked of | compared with |
|---|---|---|
| `brain_asr_en`, `_zh`, `_human_en` | recordings of the frozen set | `whisper_asr_*`: Whisper base's own decoder on the same files |
| `brain_sqa` | spoken questions | `_typed`: the same in words; `_blind`: silence instead of the question |
| `brain_see_emoji`, `_emoji_zh`, `_shapes`, `_text`, `_chart`, `_video` | a picture or video, asked by voice | `_typed`; `_blind`: without the picture |

Whisper base's encoder is also the brain's ear: the comparison tells what is lost behind the encoder. An answer is
right if it equals the truth after lower case, without punctuation, articles and a full stop; letters of a spelling may
be joined. Rates have exact binomial intervals, error rates bootstrap ones over recordings. Greedy answers: two
runs on one machine give the same file. A stopped run goes on where it was (`runs/brain_eval/`).
"""

import json
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from omnilib import options
from omnilib.brain.ask import Brain, folder_of, turn
from omnilib.data import sha256
from omnilib.errors import DataError, UserError, in_one_line
from omnilib.eval import needle
from omnilib.eval.frozen import FOLDER as FROZEN
from omnilib.eval.frozen import Frozen, Heard
from omnilib.eval.judges import Whisper
from omnilib.eval.normalize import plain
from omnilib.eval.results import add_to_summary, write_jsonl
from omnilib.eval.wer import bootstrap, line_rates
from omnilib.intervals import share
from omnilib.paths import REPORTS, ROOT, RUNS
from omnilib.provenance import stamp, write_json
from omnilib.report import sources
from omnilib.train.brain_samples import read_samples

SAMPLES = ROOT / "data_prep" / "frozen_brain" / "brain.jsonl"
TRANSCRIBE = "Write down what is said."
SPOKEN = ("arithmetic", "spelling", "capital", "opposite", "order", "gloss")  # tasks of spoken questions
SEEN = {  # measure -> tasks
    "emoji": ("emoji",),
    "emoji_zh": ("emoji_zh",),
    "shapes": ("shapes",),
    "text": ("read",),
    "chart": ("chart",),
    "video": ("video_count", "video_last", "video_move"),
}
MODES = ("spoken", "typed", "blind")
SILENCE = np.zeros(16_000, np.float32)  # in place of a question that is not heard
LENGTHS = {"asr": 96, "sqa": 24, "see": 16}  # new tokens at most
BATCH = 16


@dataclass(frozen=True)
class Item:
    """One question in one mode, with what is asked and what is right."""

    id: str
    measure: str
    mode: str
    task: str
    language: str
    question: str
    truth: str
    asked: dict = field(repr=False, compare=False)  # a turn for the brain
    size: float = 0.0  # for batches of similar length

    @property
    def key(self) -> str:
        """Unique among all answers."""
        return f"{self.measure}|{self.id}|{self.mode}"


# ---- what is asked -----------------------------------------------------------------------------------------


def asr_items(frozen: Frozen) -> list[Item]:
    """Recordings to write down: the evaluation sentences, and prompts read by a person."""
    measures = {("eval", "en"): "asr_en", ("eval", "zh"): "asr_zh", ("human", "en"): "asr_human_en"}
    items = []
    for line in frozen.lines:
        if measure := measures.get((line.role, line.language)):
            asked = turn(TRANSCRIBE, audio=[str(line.path)])
            own = (line.id, measure, "spoken", "transcribe", line.language, TRANSCRIBE, line.text, asked)
            items.append(Item(*own, size=line.path.stat().st_size))
    return items


def question_items(path: Path = SAMPLES) -> list[Item]:
    """Held-out questions in three modes; a sample counts once it was spoken.

    Raises:
        DataError: no samples: build and freeze them.
    """
    root, items = path.parent, []
    measures = dict.fromkeys(SPOKEN, "sqa")
    measures |= {task: f"see_{name}" for name, tasks in SEEN.items() for task in tasks}
    for sample in read_samples(path):
        measure = measures.get(sample["task"])
        if not measure or sample["split"] != "test" or not sample.get("audio"):
            continue
        where = {
            "audio": [str(root / p) for p in sample["audio"]],
            "images": [str(root / p) for p in sample.get("images", [])],
            "videos": [str(root / p) for p in sample.get("video", [])],
        }
        heard, seen = {"audio": where["audio"]}, {k: where[k] for k in ("images", "videos")}
        without = {"audio": [SILENCE]} if measure == "sqa" else heard
        turns = {
            "spoken": turn(**heard, **seen),
            "typed": turn(sample["question"], **seen),
            "blind": turn(**without),
        }
        for mode, asked in turns.items():
            own = (sample["id"], measure, mode, sample["task"], sample["language"])
            items.append(Item(*own, sample["question"], sample["answer"], asked))
    if not items:
        raise DataError(
            f"{path} has no spoken test questions: make them with `python -m data_prep.brain_frozen`"
        )
    return items


# ---- what is right -----------------------------------------------------------------------------------------


def right(truth: str, answer: str, task: str) -> bool:
    """Whether an answer is the truth."""
    if task == "spelling":
        return plain(truth).replace(" ", "") == plain(answer).replace(" ", "")
    return plain(truth) == plain(answer)


def scored(item: Item, answer: str, mode: str | None = None) -> dict:
    """The record of an answer."""
    row = {"id": item.id, "measure": item.measure, "mode": mode or item.mode, "task": item.task}
    row |= {"language": item.language, "question": item.question, "truth": item.truth, "answer": answer}
    return row | score_of(row)


def score_of(row: dict) -> dict:
    """`right`, or `error` and `words` of a transcript: a function of the texts of a record."""
    if row["task"] != "transcribe":
        return {"right": right(row["truth"], row["answer"], row["task"])}
    rate = next(iter(line_rates(row["truth"], row["answer"], row["language"]).values()))
    return {"error": rate.error, "words": rate.words}


def figures(rows: Iterable[dict]) -> dict[str, dict]:
    """Figures under their keys, from the records alone."""
    groups: dict[str, list[dict]] = {}
    for row in rows:
        groups.setdefault(key_of(row), []).append(row)
    found = {}
    for key, own in sorted(groups.items()):
        if own[0]["task"] == "transcribe":
            value, ci95 = bootstrap([r["error"] for r in own], [r["words"] for r in own])
        else:
            value, ci95 = share([r["right"] for r in own])
        found[key] = {
            "value": value,
            "n": len(own),
            "ci95": ci95,
            "unit": "rate",
            "temperature": 0,
            "judge": None,
        }
    return found


def key_of(row: dict) -> str:
    """The key of a record's figure."""
    if row["mode"] == "whisper":
        return f"whisper_{row['measure']}"
    return f"brain_{row['measure']}" + ("" if row["mode"] == "spoken" else f"_{row['mode']}")


def rescored(rows: Iterable[dict]) -> list[dict]:
    """Records with their scores computed anew from their texts (for `omni verify --arithmetic`)."""
    return [row | score_of(row) for row in rows]


def recounted(folder: Path) -> tuple[dict[str, dict], dict[str, dict]]:
    """Committed figures of reports/<scale>/brain, and the same from its records; needles too where they were measured.

    Raises:
        DataError: a file is missing or damaged.
    """
    try:
        committed = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["metrics"]
        rows = [json.loads(r) for r in (folder / "items.jsonl").read_text(encoding="utf-8").splitlines()]
        anew = figures(rescored(rows))
        if (folder / "needle.json").is_file():
            committed |= json.loads((folder / "needle.json").read_text(encoding="utf-8"))["metrics"]
            anew |= needle.figures(needle.read_kept(folder / "needle.jsonl"))["metrics"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"cannot recount {folder.name} ({error}): restore it with `git checkout`") from None
    return committed, anew


# ---- asking ------------------------------------------------------------------------------------------------


def ask_all(brain: Brain, items: list[Item], kept: Path) -> list[dict]:
    """Records of all items, in their order; answers are kept batch by batch.

    Args:
        kept: JSONL of {"key", "answer"}, grown as answers come.
    """
    known = {}
    if kept.is_file():
        lines = kept.read_text(encoding="utf-8").splitlines()
        known = dict(filter(None, map(read_line, lines)))
    waiting = sorted(
        (i for i in items if i.key not in known), key=lambda i: (i.measure, i.mode, i.task, i.size)
    )
    kept.parent.mkdir(parents=True, exist_ok=True)
    with kept.open("a", encoding="utf-8") as file:
        for group in in_batches(waiting):
            longest = LENGTHS[group[0].measure.split("_")[0]]
            answers = brain.ask_many([i.asked for i in group], max_new_tokens=longest)
            for item, answer in zip(group, answers, strict=True):
                known[item.key] = answer
                file.write(json.dumps({"key": item.key, "answer": answer}, ensure_ascii=False) + "\n")
            file.flush()
            show(len(known), len(items))
    return [scored(item, known[item.key]) for item in items]


def read_line(line: str) -> tuple[str, str] | None:
    """Key and answer of a kept line; None of one that a stop cut off."""
    try:
        row = json.loads(line)
        return row["key"], row["answer"]
    except (ValueError, KeyError):
        return None


def in_batches(items: list[Item]) -> Iterable[list[Item]]:
    """Neighbours of one measure and mode, BATCH at a time."""
    group: list[Item] = []
    for item in items:
        if group and (len(group) == BATCH or (group[0].measure, group[0].mode) != (item.measure, item.mode)):
            yield group
            group = []
        group.append(item)
    if group:
        yield group


def show(done: int, total: int) -> None:
    """Progress on a terminal."""
    if sys.stderr is not None and sys.stderr.isatty():
        print(f"\r{done} of {total} answers", end="" if done < total else "\n", file=sys.stderr, flush=True)


def whisper_rows(frozen: Frozen, items: list[Item], judge: Whisper) -> list[dict]:
    """What Whisper base writes down of the same recordings (kept transcripts cost nothing)."""
    lines = {line.id: line for line in frozen.lines}
    heard = Heard(frozen.folder / "heard.json", judge)
    texts = heard.texts([lines[i.id] for i in items])
    return [scored(item, text, "whisper") for item, text in zip(items, texts, strict=True)]


def choose(items: list[Item], most: int | None) -> list[Item]:
    """At most so many samples of each measure, all modes of each."""
    if most is None:
        return items
    ids: dict[str, dict[str, None]] = {}
    for item in items:
        own = ids.setdefault(item.measure, {})
        if len(own) < most:
            own[item.id] = None
    return [i for i in items if i.id in ids[i.measure]]


def measure(
    scale: str, brain_folder: Path, parts: Sequence[str], most: int | None, samples: Path, frozen_folder: Path
) -> tuple[list[dict], dict]:
    """Records of all parts, and the settings they depend on."""
    frozen, items = Frozen(frozen_folder), []
    heard = choose(asr_items(frozen), most) if "asr" in parts else []
    if {"sqa", "see"} & set(parts):
        items = [i for i in choose(question_items(samples), most) if i.measure.split("_")[0] in parts]
    brain = Brain.load(brain_folder)
    mark = sha256(brain_folder / "model.safetensors")[:12]
    kept = RUNS / "brain_eval" / f"{scale}-{mark}.jsonl"
    rows = ask_all(brain, heard + items, kept)
    settings = {"weights": mark, "greedy": True, "batch": BATCH, "max_new_tokens": LENGTHS}
    settings |= {"long_positions": brain.model.config.long_positions, "parts": list(parts)}
    if heard:
        judge = Whisper()
        rows += whisper_rows(frozen, heard, judge)
        settings["whisper"] = judge.id
    return rows, settings


def main(argv: Sequence[str] | None = None) -> int:
    parser = options.Parser(description=__doc__)
    parser.add_argument("--scale", type=options.scale, default="nano")
    parser.add_argument("--brain", type=Path, help="its folder (default: checkpoints/<scale>/brain)")
    parser.add_argument("--part", action="append", choices=("asr", "sqa", "see"), help="(default: all)")
    parser.add_argument(
        "--most",
        type=options.count,
        help="samples of each measure, for a look: nothing is written to reports/",
    )
    parser.add_argument("--samples", type=Path, default=SAMPLES)
    parser.add_argument("--frozen", type=Path, default=FROZEN)
    parser.add_argument("--reports", type=Path, default=REPORTS)
    args = parser.parse_args(argv)
    started, parts = time.time(), args.part or ["asr", "sqa", "see"]
    try:
        folder = args.brain or folder_of(args.scale)
        rows, settings = measure(args.scale, folder, parts, args.most, args.samples, args.frozen)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    found = figures(rows)
    for name, entry in found.items():
        low, high = entry["ci95"]
        print(
            f"{name:32} {100 * entry['value']:5.1f} % ({100 * low:.1f} to {100 * high:.1f})  n={entry['n']}"
        )
    if args.most is not None or args.part:
        place = RUNS / "brain_eval" / "look"
        place.mkdir(parents=True, exist_ok=True)
        write_jsonl(place / "items.jsonl", rows)
        print(f"answers: {place / 'items.jsonl'}")
        return 0
    write(args.reports, args.scale, rows, found, settings, args.samples, time.time() - started)
    return 0


def write(
    reports: Path, scale: str, rows: list[dict], found: dict, settings: dict, samples: Path, seconds: float
) -> None:
    """reports/<scale>/brain/{metrics.json, items.jsonl, provenance.json} and the headline figures."""
    place = reports / scale / "brain"
    place.mkdir(parents=True, exist_ok=True)
    write_jsonl(place / "items.jsonl", rows)
    whole = {"name": "brain", "scale": scale, "settings": settings, "metrics": found}
    write_json(place / "metrics.json", whole | {"figures": [], "sounds": [], "paper": []})
    write_json(place / "provenance.json", stamp(scale, {}, settings, {"samples": samples}, seconds))
    sources.record(place, "brain", scale)
    add_to_summary(reports / scale / "summary.json", found, f"reports/{scale}/brain/metrics.json")


if __name__ == "__main__":
    with in_one_line():
        raise SystemExit(main())
