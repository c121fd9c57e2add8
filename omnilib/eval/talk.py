"""How well brain and mouth talk together: sooner or later, without gaps, as written, and right.

    python -m omnilib.eval.talk                     # checkpoints/nano -> reports/nano/talk/
    python -m omnilib.eval.talk --most 5            # a look; writes below runs/ alone

| measure | what it is | beside it |
|---|---|---|
| `omni_first_sound_s` | from the question's last sample to the first sound | its parts, `omni_first_*_s`, which add up to it |
| `omni_underruns` | waits of a listener at 1x, in all answers together | |
| `omni_stop_s` | from a stop at a random moment until no more sound comes | `omni_stop_ended_s`: both tracks ended |
| `omni_speech_wer` | what a judge hears against what the brain wrote | `omni_mouth_wer`: the mouth alone on the same texts |
| `omni_sqa_spoken` | spoken questions whose spoken answer is right, as the judge hears it | `omni_sqa_text`: the same answers as written |

Questions are the spoken test questions of the frozen set (`omnilib.eval.brain`), and a few open ones in words, whose
answers are longer. Every answer leaves a row of times and one of texts, every stop a row: `recounted` computes all
figures from them alone. Figures of speed belong to the machine that measured them and go to timings.json.
"""

import json
import random
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from omnilib import options
from omnilib.brain.ask import Brain, folder_of
from omnilib.data import sha256
from omnilib.errors import DataError, UserError
from omnilib.eval.brain import LENGTHS, SAMPLES, question_items, right
from omnilib.eval.judges import Whisper
from omnilib.eval.results import add_to_summary, write_jsonl
from omnilib.eval.wer import Rates, bootstrap, line_rates, min_rule
from omnilib.intervals import share
from omnilib.omni import Answer, Omni
from omnilib.pacing import underruns
from omnilib.paths import REPORTS, RUNS
from omnilib.provenance import stamp, write_json, write_stamp
from omnilib.report import sources
from omnilib.report.headlines import split_timings
from omnilib.speak import TextToSpeech
from omnilib.text import clean_text, detect_language

FILES = "answers", "times", "stops"  # .jsonl, a row each
PARTS = {  # of the time to the first sound, in order
    "read": "the recording is read, its spectrum computed",
    "encoder": "sound and pictures go through the encoders",
    "prefill": "the prompt goes through the brain; its first id",
    "wait": "ids of the brain until the mouth may speak a word",
    "text": "ids of the brain written later",
    "rows": "rows of the mouth",
    "hop": "flow and vocoder",
    "other": "the rest",
}
OPEN = (  # questions whose answers are longer
    "Tell me about the sea.",
    "What can one do on a rainy day?",
    "How does a tree grow?",
    "Describe a morning in a small town.",
    "Why do people like music?",
    "Tell me a story about a dog and a bridge.",
    "What is a library for?",
    "How do you make tea?",
    "What is the difference between summer and winter?",
    "Tell me what a good friend does.",
)
LONGEST = {"sqa": LENGTHS["sqa"], "open": 96}  # new tokens at most
TIMED = 20  # answers whose underruns are counted, and stops


@dataclass(frozen=True)
class Question:
    """What is asked."""

    id: str
    kind: str  # sqa, open
    task: str
    language: str
    truth: str
    given: dict = field(repr=False)  # arguments of `Conversation.stream`

    @property
    def longest(self) -> int:
        return LONGEST[self.kind]


# ---- what is asked -----------------------------------------------------------------------------------------


def questions(samples: Path = SAMPLES, most: int | None = None) -> list[Question]:
    """Spoken test questions, at most so many, and the open ones between the first of them.

    Raises:
        DataError: no samples: build and freeze them.
    """
    items = [i for i in question_items(samples) if (i.measure, i.mode) == ("sqa", "spoken")]
    spoken = [
        Question(
            i.id, "sqa", i.task, i.language, i.truth, {"audio": [p["audio"] for p in i.asked["content"]]}
        )
        for i in items[:most]
    ]
    if not spoken:
        raise DataError(
            f"{samples} has no spoken questions: make them with `python -m data_prep.brain_frozen`"
        )
    typed = [Question(f"open-{n}", "open", "open", "en", "", {"text": t}) for n, t in enumerate(OPEN[:most])]
    mixed = [q for pair in zip(spoken, typed, strict=False) for q in pair]
    return mixed + spoken[len(typed) :] + typed[len(spoken) :]


# ---- asking ------------------------------------------------------------------------------------------------


@contextmanager
def encoder_seconds(brain: Brain, clock) -> Iterator[list[float]]:
    """Times that the encoders take meanwhile, one for each prompt."""
    prepare, spent = brain.model.prepare, []

    def timed(*args, **more):
        start = clock()
        try:
            return prepare(*args, **more)
        finally:
            spent.append(clock() - start)

    brain.model.prepare = timed
    try:
        yield spent
    finally:
        del brain.model.prepare


def answered(omni: Omni, question: Question) -> tuple[Answer, torch.Tensor, dict]:
    """The answer to a question, its wave (T,), and its row of times, in seconds after the question's last sample."""
    talk, clock = omni.conversation(language=question.language), omni.pace.clock
    talk.warm()
    with encoder_seconds(omni.brain, clock) as encoders:
        asked = clock()
        answer = talk.stream(**question.given, max_new_tokens=question.longest)
        waves = [piece.wave for piece in answer]
        total = clock() - asked
    times = [[round(at - asked, 6), round(seconds, 6)] for at, seconds in answer.plan.times]
    first = times[0][0] if times else total
    spans = [[s.kind, round(s.start - asked, 6), round(s.seconds, 6)] for s in answer.spans]
    row = {"id": question.id, "kind": question.kind, "total": round(total, 6)}
    row |= {"encoder": round(sum(encoders), 6), "pieces": times}
    return answer, torch.cat([torch.empty(0), *waves]), row | {"spans": [s for s in spans if s[1] < first]}


def ask_all(omni: Omni, asked: Sequence[Question], judge: Whisper) -> tuple[list[dict], list[dict]]:
    """Rows of texts and of times of all questions; the judge listens in the end, so that nothing else runs meanwhile."""
    rows, times, waiting = [], [], []
    for number, question in enumerate(asked, 1):
        answer, wave, row = answered(omni, question)
        text = answer.brain.text.strip()
        language = detect_language(text) if text else question.language
        own = {"id": question.id, "kind": question.kind, "task": question.task, "language": language}
        rows.append(own | {"truth": question.truth, "text": text})
        times.append(row)
        waiting.append((wave, alone(omni.speech, text, question.language)))
        show(number, len(asked))
    for row, (wave, other) in zip(rows, waiting, strict=True):
        for name, sound in (("heard", wave), ("mouth", other)):
            row[name] = judge.transcribe(sound, omni.speech.rate, row["language"]) if len(sound) else ""
    return [row | score_of(row) for row in rows], times


def alone(speech: TextToSpeech, text: str, language: str) -> torch.Tensor:
    """The same text spoken by the mouth alone, known as a whole: (T,); nothing where there is nothing to say."""
    try:
        return torch.cat([torch.empty(0), *speech.stream(text, language=language)])
    except UserError:
        return torch.empty(0)


def stop_all(omni: Omni, asked: Sequence[Question], times: Sequence[dict], seed: int) -> list[dict]:
    """Each answer once more, stopped from another thread at a random moment of it."""
    chance, rows = random.Random(seed), []
    for question, known in zip(asked, times, strict=True):
        talk = omni.conversation(language=question.language)
        talk.warm()
        answer = talk.stream(**question.given, max_new_tokens=question.longest)
        last: list[float] = []
        listener = threading.Thread(target=listen, args=(answer, last), daemon=True)
        listener.start()
        time.sleep(after := chance.uniform(0.0, known["total"]))
        called, running = time.perf_counter(), not answer.done
        answer.stop()
        returned = time.perf_counter()
        listener.join()
        ended, silent = time.perf_counter(), max([returned, *last])
        own = {"seconds": round(silent - called, 6), "ended": round(ended - called, 6)}
        rows.append({"id": question.id, "after": round(after, 6), "running": running} | own)
    return rows


def listen(answer: Answer, last: list[float]) -> None:
    """Take all pieces; `last` holds when the newest one with sound came."""
    for piece in answer:
        if len(piece.wave):
            last[:] = [time.perf_counter()]


def show(done: int, total: int) -> None:
    """Progress on a terminal."""
    if sys.stderr is not None and sys.stderr.isatty():
        print(f"\r{done} of {total} answers", end="" if done < total else "\n", file=sys.stderr, flush=True)


# ---- figures -----------------------------------------------------------------------------------------------


def spoken_error(text: str, heard: str, language: str) -> Rates | None:
    """Error of a transcript against the text or its spoken form; None where there is nothing to say."""
    try:
        if language == "zh":
            return line_rates(text, heard, "zh")["pinyin"]
        return min_rule(text, clean_text(text, language), heard, language)
    except (ValueError, UserError):
        return None


def right_aloud(truth: str, heard: str, task: str, language: str) -> bool:
    """Whether a transcript is the truth, in digits or in words."""
    forms = [(truth, heard)]
    if truth.strip() and heard.strip():
        forms.append(tuple(clean_text(s, language) for s in (truth, heard)))
    return any(right(a, b, task) for a, b in forms)


def score_of(row: dict) -> dict:
    """Scores of a row of texts: a function of its texts."""
    found = {name: spoken_error(row["text"], row[name], row["language"]) for name in ("heard", "mouth")}
    scores = {f"{name}_error": None if e is None else e.error for name, e in found.items()}
    scores["words"] = 0 if found["heard"] is None else found["heard"].words
    if row["kind"] == "sqa":
        scores["right_text"] = right(row["truth"], row["text"], row["task"])
        scores["right_spoken"] = right_aloud(row["truth"], row["heard"], row["task"], row["language"])
    return scores


def parts_of(row: dict) -> dict[str, float]:
    """Seconds of each part of the time to the first sound of an answer, and their sum as `sound`; {} without sound."""
    if not row["pieces"]:
        return {}
    first = row["pieces"][0][0]
    spans = [(kind, start, seconds) for kind, start, seconds in row["spans"] if start < first]
    begin = min((start for kind, start, _ in spans if kind == "row"), default=first)

    def total(kind: str, low: float = float("-inf"), high: float = float("inf")) -> float:
        return sum(seconds for k, start, seconds in spans if k == kind and low <= start < high)

    parts = {"read": total("read"), "encoder": row["encoder"], "prefill": total("first") - row["encoder"]}
    parts |= {"wait": total("brain", high=begin), "text": total("brain", low=begin)}
    parts |= {"rows": total("row"), "hop": total("hop")}
    return parts | {"other": first - sum(parts.values()), "sound": first}


def figures(answers: list[dict], times: list[dict], stops: list[dict]) -> dict[str, dict]:
    """All figures, from the rows alone; a measure nobody gave a row for is left out."""
    found: dict[str, dict] = {}

    def note(name: str, value: float, n: int, ci95: list | None, unit: str, **more) -> None:
        found[name] = {"value": value, "n": n, "ci95": ci95, "unit": unit} | more

    def mean(name: str, values: list[float]) -> None:
        if values:
            value, ci95 = bootstrap(values)
            note(name, value, len(values), ci95, "s", timing=True)

    spoken = [parts for row in times if row["kind"] == "sqa" and (parts := parts_of(row))]
    mean("omni_first_sound_s", [p["sound"] for p in spoken])
    for part in PARTS:
        mean(f"omni_first_{part}_s", [p[part] for p in spoken])
    heard = [row for row in times if row["pieces"]][:TIMED]
    if heard:
        waits = [len(underruns([tuple(piece) for piece in row["pieces"]])) for row in heard]
        note("omni_underruns", float(sum(waits)), len(heard), None, "", timing=True)
    mean("omni_stop_s", [row["seconds"] for row in stops if row["running"]])
    mean("omni_stop_ended_s", [row["ended"] for row in stops if row["running"]])
    said = [row for row in answers if row["words"]]
    for name, column in (("omni_speech_wer", "heard_error"), ("omni_mouth_wer", "mouth_error")):
        if said:
            value, ci95 = bootstrap([row[column] for row in said], [row["words"] for row in said])
            note(name, value, len(said), ci95, "rate")
    asked = [row for row in answers if row["kind"] == "sqa"]
    for name, column in (("omni_sqa_spoken", "right_spoken"), ("omni_sqa_text", "right_text")):
        if asked:
            value, ci95 = share([row[column] for row in asked])
            note(name, value, len(asked), ci95, "rate")
    return found


def recounted(folder: Path) -> tuple[dict[str, dict], dict[str, dict]]:
    """Committed figures of reports/<scale>/talk, and the same from its rows, scores computed anew from the texts.

    Raises:
        DataError: a file is missing or damaged.
    """
    try:
        committed = {}
        for name in ("metrics.json", "timings.json"):
            committed |= json.loads((folder / name).read_text(encoding="utf-8"))["metrics"]
        rows = {
            name: [json.loads(r) for r in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
            for name in FILES
        }
        answers = [row | score_of(row) for row in rows["answers"]]
        return committed, figures(answers, rows["times"], rows["stops"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"cannot recount {folder.name} ({error}): restore it with `git checkout`") from None


# ---- the program -------------------------------------------------------------------------------------------


def measure(omni: Omni, asked: Sequence[Question], judge: Whisper, seed: int = 0) -> tuple[list[dict], ...]:
    """Rows of texts, times and stops; the first answer warms up and is not counted."""
    answered(omni, asked[0])
    answers, times = ask_all(omni, asked, judge)
    return answers, times, stop_all(omni, asked[:TIMED], times[:TIMED], seed)


def write(
    place: Path, scale: str, rows: Sequence[list[dict]], settings: dict, files: dict, seconds: float
) -> dict:
    """A folder of rows and figures; returns the figures."""
    place.mkdir(parents=True, exist_ok=True)
    for name, own in zip(FILES, rows, strict=True):
        write_jsonl(place / f"{name}.jsonl", own)
    found = figures(*rows)
    kept, speed = split_timings(found)
    whole = {"name": "talk", "scale": scale, "settings": settings, "metrics": kept}
    write_json(place / "metrics.json", whole | {"figures": [], "sounds": [], "paper": []})
    write_stamp(place, stamp(scale, {}, settings, files, seconds), {"metrics": speed})
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = options.Parser(description=__doc__)
    parser.add_argument("--scale", default="nano")
    parser.add_argument(
        "--most", type=options.count, help="questions, for a look: nothing is written to reports/"
    )
    parser.add_argument("--samples", type=Path, default=SAMPLES)
    parser.add_argument("--reports", type=Path, default=REPORTS)
    parser.add_argument("--seed", type=options.seed, default=0, help="of the moments of the stops")
    args = parser.parse_args(argv)
    started = time.time()
    try:
        asked, weights = questions(args.samples, args.most), folder_of(args.scale) / "model.safetensors"
        omni, judge = Omni.load(args.scale), Whisper()
        rows = measure(omni, asked, judge, args.seed)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    settings = {"brain": sha256(weights)[:12], "judge": judge.id, "max_new_tokens": LONGEST, "greedy": True}
    settings |= {"threads": torch.get_num_threads(), "seed": args.seed}
    reports = RUNS / "talk_eval" if args.most is not None else args.reports
    place = reports / args.scale / "talk"
    found = write(place, args.scale, rows, settings, {"samples": args.samples}, time.time() - started)
    for name, entry in found.items():
        percent = entry["unit"] == "rate"
        shown = f"{100 * entry['value']:8.1f} %" if percent else f"{entry['value']:8.3f} {entry['unit']}"
        print(f"{name:24} {shown:12} n={entry['n']}")
    print(f"rows: {place}")
    if args.most is None:
        sources.record(place, "talk", args.scale)
        kept, speed = split_timings(found)
        folder = f"reports/{args.scale}/talk"
        add_to_summary(reports / args.scale / "summary.json", kept, f"{folder}/metrics.json")
        add_to_summary(reports / args.scale / "timings.json", speed, f"{folder}/timings.json")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
