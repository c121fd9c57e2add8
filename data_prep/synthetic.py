"""Synthetic long-form speech: conversations -> a sample uniform over length -> speech in a random voice -> manifest.

    python -m data_prep.synthetic --conversations lamini.jsonl belle.jsonl --out data/synthetic --hours 2
    ... --rewrite http://localhost:8000/v1 --model Qwen2.5-72B-Instruct                    # answers retold for the ear, off by default
    ... --references manifest.jsonl --command "omni speak {text} --voice {reference} --voice-text {reference_text} -o {output}"
    ... --references ... --command "python tts/infer_cli.py --input_wav {reference} --input_text {text} --output_dir {folder}"
    ... --references ... --http http://localhost:9000/v1/audio/speech

As in the paper (section 3.3): the answers of Belle (zh) and LaMini-Instruct (en), sampled uniformly by length, rewritten, spoken
by MegaTTS3 with a random reference voice. Here the engines of the nano corpus speak unless --command or --http names another.
The sample and the voices depend on the texts, the seed and the settings only. Every finished text and clip is appended to a file,
so a stopped run goes on where it was. The manifest then takes the same way as recordings: `python -m data_prep.curate`.

Units: seconds; waves (T,) float32 in [-1, 1].
"""

import base64
import hashlib
import io
import json
import os
import re
import shlex
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import TextIO

import numpy as np
import soundfile
from tqdm import tqdm

from data_prep import speakers
from data_prep.corpora import lines, parse
from data_prep.engines import ENGINES, RATE, render
from omnilib import options
from omnilib.data import read_manifest, sha256, write_manifest
from omnilib.errors import ConfigError, DataError, UserError
from omnilib.spoken import clean_text, detect_language

ANSWERS = ("response", "output", "answer", "text")  # LaMini, Belle's instructions, others
CHARACTERS_PER_SECOND = {"en": 14.0, "zh": 4.2}  # only to sort texts by length before they are spoken
SHARES = {"zh": 9 / 16, "en": 7 / 16}  # 900k and 700k conversations in the paper
REFERENCE_SECONDS = (3.0, 20.0)
GIVE_UP = 10  # failures of the program or server in a row that stop a run
FAILED = ("rewrite_failed", "synthesiser_failed")  # may work another time; other reasons lie in the text
PROMPT = {
    "en": "Retell this answer as one would say it aloud: plain sentences, no lists, no markup, nothing left out or added.\n\n",
    "zh": "请把下面的回答改写成适合朗读的口语：完整的句子，不用列表和标记，不增不减内容。\n\n",
}


def number(*parts: object) -> int:
    """A stable random number of some values."""
    return int.from_bytes(hashlib.sha256("\x00".join(map(str, parts)).encode()).digest()[:8], "big")


# ---- texts -----------------------------------------------------------------------------------------------------------


def answers(path: Path) -> Iterator[dict]:
    """{"id", "text", "language"} of each answer in a JSONL file of conversations or instructions; markup is removed.

    A line is `{"conversations": [{"from": "human", "value": ..}, {"from": "assistant", ..}]}` (the assistant's turns are joined)
    or holds the answer under one of ANSWERS.

    Raises:
        DataError: the file is missing, not UTF-8, not JSON, or a line holds no answer.
    """
    if not path.is_file():
        raise DataError(f"no conversations {path}: give a JSONL file")
    for where, line in lines(path):
        row = parse(line, where)
        turns = [
            t.get("value", "")
            for t in row.get("conversations", [])
            if t.get("from") not in ("human", "user", "system")
        ]
        raw = "\n".join(turns) or next((row[k] for k in ANSWERS if isinstance(row.get(k), str)), None)
        if raw is None:
            raise DataError(f"{where}: no answer; expected `conversations` or one of {', '.join(ANSWERS)}")
        language = detect_language(raw)
        try:
            text = clean_text(raw, language)
        except UserError:  # nothing in it can be spoken
            continue
        yield {"id": f"{path.stem}-{number(text):016x}", "text": text, "language": language}


def seconds(text: str, language: str) -> float:
    """About how long a text takes to say."""
    return len(text) / CHARACTERS_PER_SECOND[language]


def sample(
    texts: Iterable[dict], hours: float, span: tuple[float, float], bins: int, seed: int
) -> tuple[list[dict], list[dict]]:
    """So many hours of texts, equally many from each length bin of each language, and how the bins were filled.

    A bin with too few texts gives all it has; the others do not make up for it, so what is there stays uniform.

    Returns: texts in id order; per bin {"language", "from", "to", "available", "wanted", "taken"}.
    """
    edges = np.linspace(*span, bins + 1)
    each = hours * 3600 / (bins * sum(span) / 2)  # texts a bin, were there one language only
    shelves: dict[
        tuple[str, int], dict[int, dict]
    ] = {}  # the texts that may be taken, by their random number
    seen: dict[tuple[str, int], set[str]] = {}
    for text in texts:
        length = seconds(text["text"], text["language"])
        if span[0] <= length < span[1]:
            key = text["language"], int(np.searchsorted(edges, length, "right")) - 1
            seen.setdefault(key, set()).add(text["id"])  # equal texts have one id
            shelf = shelves.setdefault(key, {})
            shelf[number(seed, text["id"])] = text
            if len(shelf) > 2 * each + 100:  # memory stays flat
                shelves[key] = {n: shelf[n] for n in sorted(shelf)[: round(each) + 1]}
    spoken = {language for language, _ in shelves}
    whole = sum(SHARES[language] for language in spoken)
    chosen, filled = [], []
    for language in sorted(spoken):
        wanted = max(1, round(each * SHARES[language] / whole))
        for index, (low, high) in enumerate(pairwise(edges)):
            shelf = shelves.get((language, index), {})
            taken = [shelf[n] for n in sorted(shelf)[:wanted]]
            chosen += taken
            about = {"available": len(seen.get((language, index), ())), "wanted": wanted, "taken": len(taken)}
            filled.append(
                {"language": language, "from": round(float(low), 1), "to": round(float(high), 1)} | about
            )
    return sorted(chosen, key=lambda t: t["id"]), filled


@dataclass(frozen=True)
class Rewriter:
    """Answers rewritten as spoken language by an OpenAI-compatible endpoint; the key comes from OPENAI_API_KEY."""

    endpoint: str
    model: str
    tries: int = 3
    wait: float = 2.0  # seconds before the second try, doubled for each further one

    def __call__(self, text: dict) -> dict:
        import httpx

        message = {"role": "user", "content": PROMPT[text["language"]] + text["text"]}
        head = (
            {"Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}"}
            if "OPENAI_API_KEY" in os.environ
            else {}
        )
        for attempt in range(self.tries):
            try:
                body = {
                    "model": self.model,
                    "messages": [message],
                    "temperature": 0.7,
                    "seed": number(text["id"]) % 2**31,
                }
                reply = httpx.post(
                    f"{self.endpoint.rstrip('/')}/chat/completions", json=body, headers=head, timeout=300
                )
                said = clean_text(
                    reply.raise_for_status().json()["choices"][0]["message"]["content"], text["language"]
                )
                return text | {"text": said, "written": text["text"]}
            except (httpx.HTTPError, KeyError, IndexError, TypeError, ValueError) as error:
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                time.sleep(self.wait * 2**attempt if attempt + 1 < self.tries else 0)
        return drop(text, "rewrite", "rewrite_failed", reason)


def drop(record: dict, step: str, reason: str, detail: str = "") -> dict:
    return record | {"dropped": {"step": step, "reason": reason} | ({"detail": detail} if detail else {})}


# ---- synthesisers: say(text, language, voice) -> (wave, rate); ValueError: not this text, RuntimeError: not now -----------


@dataclass(frozen=True)
class Voice:
    """A reference voice: a clip with its text, or (engines) a name only."""

    name: str
    language: str
    clip: str = ""  # the WAV file it is cut to when first needed
    text: str = ""
    source: tuple[str, float, float] = ("", 0.0, 0.0)  # recording, start and length of the piece

    def cut(self) -> None:
        """Write the clip, unless it is there."""
        if self.clip and not Path(self.clip).is_file():
            path, start, length = self.source
            rate = soundfile.info(path).samplerate
            wave, _ = soundfile.read(
                path, start=round(start * rate), frames=round(length * rate), dtype="float32"
            )
            write_audio(Path(self.clip), wave, rate)


ENGINE_CACHE: dict[str, object] = {}  # engine and voice -> engine, opened once a process


@dataclass(frozen=True)
class Engines:
    """The engines of the nano corpus; their training speakers are the voices."""

    name = "engines"

    def voices(self, language: str) -> list[Voice]:
        return [Voice(s.name, language) for s in speakers.SPEAKERS if s.language == language and s.lines]

    def say(self, text: str, language: str, voice: Voice) -> tuple[np.ndarray, int]:
        if language == "zh" and re.search("[A-Za-z]", text):
            raise ValueError("the syllable engine speaks Chinese only")
        speaker = next(s for s in speakers.SPEAKERS if s.name == voice.name)
        engine = ENGINE_CACHE.setdefault(
            f"{speaker.engine}-{speaker.voice}", ENGINES[speaker.engine](speaker.voice)
        )
        rng, pieces = np.random.default_rng(number(text, voice.name)), []
        for sentence in re.findall(r"[^.!?;。！？；\n]+[.!?;。！？；\n]*", text):
            if re.search(r"\w", sentence):
                pieces += [render(engine.say(sentence.strip()), speaker.factor)[0] / np.float32(32768)]
                pieces += [np.zeros(int(rng.uniform(0.15, 0.6) * RATE), np.float32)]
        return np.concatenate(pieces[:-1]), RATE


@dataclass(frozen=True)
class Command:
    """Any program. In the template: {text} {language} {reference} {reference_text}, and {output} (a WAV to write) or {folder}
    (an empty folder to write one WAV into)."""

    template: str
    timeout: float = 1800.0
    name = "command"

    def __post_init__(self) -> None:
        if "{text}" not in self.template or not ("{output}" in self.template or "{folder}" in self.template):
            raise ConfigError("--command needs {text} and one of {output} and {folder}")

    def say(self, text: str, language: str, voice: Voice) -> tuple[np.ndarray, int]:
        with tempfile.TemporaryDirectory() as folder:
            values = {
                "text": text,
                "language": language,
                "reference": voice.clip,
                "reference_text": voice.text,
            }
            values |= {"folder": folder, "output": str(Path(folder) / "out.wav")}
            arguments = [part.format(**values) for part in shlex.split(self.template)]
            done = subprocess.run(arguments, capture_output=True, text=True, timeout=self.timeout)
            if done.returncode:
                said = done.stderr.strip() or done.stdout.strip() or "no message"
                raise RuntimeError(f"exit {done.returncode}: {said.splitlines()[-1]}")
            made = sorted(Path(folder).glob("*.wav"))
            if len(made) != 1:
                raise RuntimeError(f"wrote {len(made)} WAV files instead of one")
            return soundfile.read(made[0], dtype="float32")


@dataclass(frozen=True)
class Http:
    """A server that speaks like OpenAI's /v1/audio/speech and also takes `reference_audio` (base64 WAV) and `reference_text`."""

    url: str
    model: str = "tts"
    timeout: float = 1800.0
    name = "http"

    def say(self, text: str, language: str, voice: Voice) -> tuple[np.ndarray, int]:
        import httpx

        clip = base64.b64encode(Path(voice.clip).read_bytes()).decode()
        body = {
            "model": self.model,
            "input": text,
            "language": language,
            "voice": voice.name,
            "response_format": "wav",
        }
        body |= {"reference_audio": clip, "reference_text": voice.text}
        try:
            reply = httpx.post(self.url, json=body, timeout=self.timeout)
        except httpx.HTTPError as error:
            raise RuntimeError(f"{type(error).__name__}: {error}") from None
        if reply.status_code != 200:
            raise (ValueError if reply.status_code in (400, 413, 422) else RuntimeError)(
                f"the server answers {reply.status_code}"
            )
        return soundfile.read(io.BytesIO(reply.content), dtype="float32")


def references(manifest: Path, out: Path, language: str, seed: int, count: int = 200) -> list[Voice]:
    """Up to `count` reference clips of a language, one speaker after the other; their clips will lie below `out`.

    Raises:
        DataError: the manifest has no record of the language with text, speaker and a length within REFERENCE_SECONDS.
    """
    records = read_manifest(manifest)
    low, high = REFERENCE_SECONDS
    usable = [
        r
        for r in records
        if r["language"] == language and r["text"] and r["speaker"] and r["split"] != "test"
    ]
    usable = [r for r in usable if low <= r["duration"] <= high]
    if not usable:
        raise DataError(
            f"no {language} reference of {low:g}-{high:g} s with text and speaker in {manifest}: use another"
        )
    turns: dict[str, int] = {}
    order = []
    for record in sorted(usable, key=lambda r: number(seed, r["id"])):
        turn = turns[record["speaker"]] = turns.get(record["speaker"], 0) + 1
        order.append((turn, len(order), record))
    voices = []
    for _, _, record in sorted(order)[:count]:
        clip = out / "references" / f"{number(record['id']):016x}.wav"
        source = str(manifest.parent / record["path"]), record["start"], record["duration"]
        voices.append(Voice(record["speaker"], language, str(clip), record["text"], source))
    return voices


# ---- speech ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Speak:
    """A text in, a record of its clip out."""

    synthesiser: object
    voices: dict[str, list[Voice]]
    out: Path
    licence: str
    seed: int

    def __call__(self, text: dict) -> dict:
        choice = self.voices[text["language"]]
        voice = choice[number(self.seed, "voice", text["id"]) % len(choice)]
        record = text | {
            "speaker": f"synthetic-{voice.name}",
            "reference": voice.clip and Path(voice.clip).stem,
        }
        try:
            voice.cut()
            wave, rate = self.synthesiser.say(text["text"], text["language"], voice)
        except UserError:  # a missing tool concerns every text
            raise
        except ValueError as error:
            return drop(record, "speak", "cannot_say", str(error))
        except (
            RuntimeError,
            OSError,
            subprocess.SubprocessError,
        ) as error:  # soundfile's errors are RuntimeErrors
            return drop(
                record, "speak", "synthesiser_failed", (str(error) or type(error).__name__).splitlines()[0]
            )
        wave = wave.mean(axis=1) if wave.ndim == 2 else wave
        if not len(wave) or not np.isfinite(wave).all() or np.abs(wave).max() < 1e-3:
            return drop(record, "speak", "no_sound")
        path = Path("audio") / f"{text['id']}.flac"
        write_audio(self.out / path, wave, rate)
        about = {"path": path.as_posix(), "start": 0.0, "duration": round(len(wave) / rate, 4), "rate": rate}
        return (
            record
            | about
            | {
                "source": "synthetic",
                "licence": self.licence,
                "split": None,
                "synthesiser": self.synthesiser.name,
            }
        )


def write_audio(path: Path, wave: np.ndarray, rate: int) -> None:
    """16-bit WAV or FLAC under a temporary name, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.stem}.{os.getpid()}-{threading.get_ident()}.tmp{path.suffix}")
    soundfile.write(temporary, wave, rate, subtype="PCM_16")
    temporary.replace(path)


def finished(path: Path) -> dict[str, dict]:
    """Records appended so far, by id; half a last line (a killed run) is cut off the file."""
    if not path.is_file():
        return {}
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(path, whole)
    return {r["id"]: r for r in (parse(line, where) for where, line in lines(path))}


def append(file: TextIO, results: list[dict]) -> None:
    """One line each, on its way to the disk when this returns."""
    file.writelines(json.dumps(r, ensure_ascii=False, sort_keys=True) + "\n" for r in results)
    file.flush()


def run(
    work: Callable[[dict], dict],
    items: list[dict],
    path: Path,
    pool: Executor | None,
    workers: int,
    name: str,
) -> list[dict]:
    """`work` on each item not yet in `path`, results appended there; all results in item order.

    Raises:
        DataError: GIVE_UP failures in a row; they are not written, so the next run tries these items again.
    """
    done = finished(path)
    left = [item for item in items if item["id"] not in done]
    with (
        path.open("a", encoding="utf-8") as file,
        tqdm(total=len(items), initial=len(done), desc=name, unit=" texts") as bar,
    ):
        audio, waiting = 0.0, []  # waiting: failures since the last item that went well
        for start in range(0, len(left), 8 * workers):
            batch = left[start : start + 8 * workers]
            for result in map(work, batch) if pool is None else pool.map(work, batch):
                waiting.append(result)
                done[result["id"]] = result
                audio += result.get("duration", 0.0) / 3600
                bar.update()
                bar.set_postfix(audio_hours=f"{audio:.2f}")
                if result.get("dropped", {}).get("reason") not in FAILED:
                    append(file, waiting)
                    waiting = []
                elif len(waiting) >= GIVE_UP:
                    raise DataError(
                        f"{name}: {GIVE_UP} texts in a row failed ({result['dropped']['detail']}); mend it and run again"
                    )
        append(file, waiting)
    return [done[item["id"]] for item in items]


def pool_of(workers: int, processes: bool = False) -> AbstractContextManager[Executor | None]:
    """A pool, or none for one worker."""
    if workers <= 1:
        return nullcontext()
    return (
        ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
        if processes
        else ThreadPoolExecutor(workers)
    )


def build(
    conversations: list[Path],
    out: Path,
    hours: float,
    synthesiser: object | None = None,
    references_manifest: Path | None = None,
    rewriter: Rewriter | None = None,
    span: tuple[float, float] = (20.0, 600.0),
    bins: int = 20,
    seed: int = 0,
    workers: int = 1,
    licence: str = "unknown: state it in the data card",
) -> str:
    """Build or continue a synthetic corpus in `out`; returns the manifest's sha256.

    Raises:
        DataError: unusable conversations or references, other settings in `out`, or a synthesiser that only fails.
    """
    out, synthesiser = Path(out), synthesiser or Engines()
    if references_manifest is None and not isinstance(synthesiser, Engines):
        raise DataError(
            "--command and --http need --references, a manifest of recordings to take voices from"
        )
    out.mkdir(parents=True, exist_ok=True)
    chosen, bins_filled = sample(
        (t for p in conversations for t in answers(Path(p))), hours, span, bins, seed
    )
    if not chosen:
        raise DataError(
            f"no answer of {span[0]:g}-{span[1]:g} s in {', '.join(map(str, conversations))}: widen --seconds"
        )
    settings = {
        "texts": number(*(t["id"] for t in chosen)),
        "seed": seed,
        "synthesiser": [synthesiser.name, asdict(synthesiser)],
    }
    settings |= {
        "rewriter": rewriter and asdict(rewriter),
        "references": references_manifest and sha256(references_manifest),
    }
    settings = json.dumps(settings, sort_keys=True, indent=1) + "\n"
    note = out / "settings.json"
    if note.is_file() and note.read_text(encoding="utf-8") != settings:
        raise DataError(f"{out} holds a corpus of other texts or settings: choose another --out or delete it")
    note.write_text(settings, encoding="utf-8")
    write_manifest(out / "lengths.jsonl", bins_filled)
    languages = sorted({t["language"] for t in chosen})
    if isinstance(synthesiser, Engines):
        voices = {language: synthesiser.voices(language) for language in languages}
    else:
        voices = {language: references(references_manifest, out, language, seed) for language in languages}
    if rewriter:
        with pool_of(workers) as pool:
            chosen = run(rewriter, chosen, out / "rewritten.jsonl", pool, workers, "rewriting")
    speak = Speak(synthesiser, voices, out, licence, seed)
    with pool_of(workers, processes=isinstance(synthesiser, Engines)) as pool:  # flite keeps global state
        spoken = run(
            speak, [t for t in chosen if "dropped" not in t], out / "spoken.jsonl", pool, workers, "speaking"
        )
    lost = [r for r in chosen + spoken if "dropped" in r]
    write_manifest(out / "dropped.jsonl", lost)
    return write_manifest(out / "manifest.jsonl", [r for r in spoken if "dropped" not in r])


def main(argv: list[str] | None = None) -> None:
    parser = options.Parser(description=__doc__)
    parser.add_argument("--conversations", type=Path, nargs="+", required=True, help="JSONL files")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--hours", type=options.positive, required=True, help="about so much speech")
    parser.add_argument(
        "--seconds",
        type=options.positive,
        nargs=2,
        default=(20.0, 600.0),
        metavar=("FROM", "TO"),
        help="lengths to sample",
    )
    parser.add_argument("--bins", type=options.count, default=20)
    parser.add_argument(
        "--rewrite",
        metavar="URL",
        help="OpenAI-compatible endpoint, e.g. http://localhost:8000/v1 (default: off)",
    )
    parser.add_argument("--model", default="Qwen2.5-72B-Instruct", help="model of --rewrite")
    parser.add_argument(
        "--references", type=Path, help="manifest to take voices from, for --command and --http"
    )
    speaker = parser.add_mutually_exclusive_group()
    speaker.add_argument("--command", help="program that speaks; see above")
    speaker.add_argument("--http", metavar="URL", help="server that speaks; see above")
    parser.add_argument("--licence", default="unknown: state it in the data card")
    parser.add_argument("--seed", type=options.seed, default=0)
    parser.add_argument("--workers", type=options.count, default=1)
    args = parser.parse_args(argv)
    try:
        synthesiser = Command(args.command) if args.command else Http(args.http) if args.http else None
        rewriter = Rewriter(args.rewrite, args.model) if args.rewrite else None
        settings = {
            "span": tuple(args.seconds),
            "bins": args.bins,
            "seed": args.seed,
            "workers": args.workers,
            "licence": args.licence,
        }
        print(
            "manifest sha256",
            build(
                args.conversations, args.out, args.hours, synthesiser, args.references, rewriter, **settings
            ),
        )
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    except (OSError, soundfile.SoundFileError) as error:
        reason = str(error).splitlines()[0]
        raise SystemExit(
            f"error: cannot write to {args.out} ({reason}): free some space, then run again"
        ) from None


if __name__ == "__main__":
    main()
