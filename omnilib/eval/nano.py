"""The evaluation behind the headline figures: the frozen set, the committed checkpoints, two judges, one command.

    python -m omnilib.eval.nano                                   # everything, about 12 minutes on 2 cores
    python -m omnilib.eval.nano --parts short --limit 8           # a look: writes to runs/, never to reports/

Every test sentence is judged three times on the same words: the recording (gt), its tokens spoken again in the voice of
another recording of that speaker (codec), and the text spoken in that voice (tts). Speed is measured first, alone at batch 1;
after that the judges listen in the background while the model goes on speaking, at batch 16.

Writes under reports/<scale>/: eval/metrics.json, eval/utterances.jsonl, eval/long.jsonl, eval/audio/*.mp3, eval/report.html,
eval/provenance.json, eval/timings.json, summary.json and timings.json (see `results.py`).
"""

import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from omnilib import options, report
from omnilib.audio import TOKENIZER_RATE, VOICE_RATE, save_wave
from omnilib.errors import AudioError, UserError, in_one_line
from omnilib.eval import cloning, naturalness, rtf, similarity
from omnilib.eval import results as files
from omnilib.eval.frozen import FOLDER, Frozen, Heard, Line
from omnilib.eval.judges import SpeakerJudge, Whisper
from omnilib.eval.long_tts_eval import errors_along, voice_drift
from omnilib.eval.naturalness import Naturalness
from omnilib.eval.wer import Rates, bootstrap, corpus, line_rates
from omnilib.mouth import decode
from omnilib.mouth.decode import DecodeSettings, Request, Result
from omnilib.paths import REPORTS, RUNS
from omnilib.report.folders import check_writable
from omnilib.speak import TextToSpeech
from omnilib.spoken import clean_text

PARTS = ("speed", "voices", "short", "long")
SHORT = {  # role of the lines -> systems that are measured on them
    "eval": ("gt", "codec", "tts"),
    "open": ("gt", "tts"),
    "seen": ("gt", "tts"),
    "human": ("gt", "codec", "tts"),
    "human_voice": ("tts",),
}
MEASURES = {
    "en": {"wer": "wer_en"},
    "zh": {"pinyin": "zh", "cer": "zh_cer"},
}  # measure of a line -> name of its corpus figure
EVERYDAY = {
    "wer_en": "wer_everyday_en",
    "zh": "zh_everyday",
    "zh_cer": "zh_everyday_cer",
}  # on everyday sentences
BATCH = 16
HUMAN_VOICE_LINES = 100  # everyday sentences spoken in the voice of a person
RETRIES = 5  # of the comparison with retries; the headline figures use none
SPEED_LINES = 10


class Evaluation:
    """What every part of the evaluation works with.

    Args:
        limit: lines a language and role, for a quick look; None takes all.
        waves: folder that keeps every wave made, or None.
    """

    def __init__(
        self,
        speaker: TextToSpeech,
        frozen: Frozen,
        limit: int | None = None,
        seed: int = 0,
        waves: Path | None = None,
    ):
        self.speaker, self.frozen, self.limit, self.seed, self.waves = speaker, frozen, limit, seed, waves
        self.settings: DecodeSettings = replace(speaker.settings, seed=seed)
        self.metrics: dict[str, dict] = {}
        self.records: list[dict] = []
        self.long_records: list[dict] = []
        self.demos: list[tuple[str, str, torch.Tensor, int]] = []  # name, caption, wave, rate
        self.judge: Whisper | None = None
        self.voices: SpeakerJudge | None = None
        self.ears: Naturalness | None = None

    def listen(self, judge: Whisper, voices: SpeakerJudge, ears: Naturalness | None = None) -> None:
        """Bring in the judges (after the speed measurements)."""
        self.judge, self.voices, self.ears = judge, voices, ears
        self.gallery = cloning.Gallery(self.frozen, voices)
        self.heard = Heard(self.frozen.folder / "heard.json", judge)
        self.vectors: dict[str, np.ndarray] = {}

    def lines(self, role: str, language: str) -> list[Line]:
        """Lines of a role, spread over the speakers when limited."""
        found = self.frozen.of(role, language=language)
        return found if self.limit is None else found[:: max(1, len(found) // self.limit)][: self.limit]

    def reference(self, line: Line):
        """The voice of a line's speaker, from another recording."""
        other = self.frozen.references[line.speaker]
        return self.speaker.reference(other.path, other.text, other.language)

    def request(self, line: Line) -> Request:
        """The line's text in the voice of its speaker, through the door that a user's text takes."""
        reference, read = self.reference(line), self.speaker.reader.read
        said, spoken = clean_text(reference.text), clean_text(line.text, line.language)
        return Request(read(spoken).text, read(said).text, reference.voice.tokens)

    def vector(self, line: Line) -> np.ndarray:
        """Speaker vector of a recording, computed once."""
        if line.id not in self.vectors:
            self.vectors[line.id] = self.voices.embed(line.wave(TOKENIZER_RATE), TOKENIZER_RATE)
        return self.vectors[line.id]

    def sound(self, wave: torch.Tensor, line: Line) -> dict:
        """What can be said of a made wave without its words: whose voice it is, how natural it sounds."""
        reference = self.vector(self.frozen.references[line.speaker])
        facts = self.gallery.compare(wave, VOICE_RATE, line.speaker, reference, line.language)
        return facts | self.opinion(wave, line)

    def opinion(self, wave: torch.Tensor, line: Line) -> dict:
        """Naturalness of a test sentence."""
        if self.ears is None or line.role != "eval":
            return {}
        return {"dnsmos": round(self.ears.score(wave, VOICE_RATE), 4)}

    def keep(self, name: str, wave: torch.Tensor) -> None:
        """Store a wave when asked to."""
        if self.waves is not None:
            self.waves.mkdir(parents=True, exist_ok=True)
            save_wave(self.waves / f"{name}.wav", wave, VOICE_RATE)

    def note(
        self,
        name: str,
        entry: dict,
        unit: str = "",
        judged: bool = False,
        decoded: bool = False,
        normaliser: str | None = None,
    ) -> None:
        """Record a figure with everything that could have moved it."""
        s = self.settings
        entry = {
            "unit": unit,
            "seed": self.seed,
            "temperature": None,
            "retries": None,
            "judge": None,
            "normaliser": normaliser,
        } | entry
        if decoded:
            entry |= {
                "temperature": s.temperature,
                "top_k": s.top_k,
                "top_p": s.top_p,
                "retries": entry["retries"] or s.retries,
            }
        if judged:
            entry["judge"] = self.judge.id if normaliser else self.voices.id
        self.metrics[name] = entry


def normaliser_of(language: str) -> str:
    """What was done to both texts before they were compared."""
    if language == "zh":
        return f"Long-TTS-Eval rules, simplified (zhconv {version('zhconv')}), toneless pinyin (pypinyin {version('pypinyin')}) or characters"
    return f"Long-TTS-Eval rules (num2words {version('num2words')})"


# ---- speed -----------------------------------------------------------------------------------------------------------


def measure_speed(bench: Evaluation) -> None:
    """Real-time factor, first sound, streaming = offline; before any judge runs."""
    lines = bench.frozen.of("eval", language="en") or bench.frozen.of("eval")
    chosen = lines[:: max(1, len(lines) // SPEED_LINES)][: bench.limit or SPEED_LINES]
    sentences = [
        (x.text, bench.frozen.references[x.speaker].path, bench.frozen.references[x.speaker].text)
        for x in chosen
    ]
    for name, entry in rtf.real_time_factor(bench.speaker, sentences, seed=bench.seed).items():
        bench.note(name, entry, decoded=True)
    bench.note(
        "ttfs_stream_s", rtf.time_to_first_sound(bench.speaker, sentences, seed=bench.seed), "s", decoded=True
    )
    for name, entry in rtf.streaming_matches(bench.speaker, sentences[:4], seed=bench.seed).items():
        bench.note(name, entry, decoded=True)


# ---- voices of the recordings ----------------------------------------------------------------------------------------


def measure_voices(bench: Evaluation) -> None:
    """What the speaker judge makes of the recordings themselves: threshold from held-out speakers, same-speaker pairs."""
    lines = bench.frozen.of("reference", "pair", "eval", "open", "seen", "human")
    held_out = [x for x in lines if not x.seen]
    if len({x.speaker for x in held_out}) < 2:
        held_out = lines
    for name, group in (("sim_threshold", held_out), ("sim_threshold_all", lines)):
        found, speakers = [], []
        for line in tqdm(group, desc=name, unit="file", disable=None):
            try:
                found.append(bench.vector(line))
            except AudioError:  # half a second of speech is too little for the judge
                continue
            speakers.append(line.speaker)
        bench.note(name, similarity.threshold_of(found, speakers), judged=True)
    pairs = [(bench.frozen.references[x.speaker], x) for x in bench.frozen.of("pair")]
    scores = [similarity.cosine(bench.vector(a), bench.vector(b)) for a, b in pairs]
    bench.note(
        "sim_gt_pair", similarity.summary(scores, bench.metrics["sim_threshold"]["value"]), judged=True
    )


# ---- short lines -----------------------------------------------------------------------------------------------------


def speak_lines(bench: Evaluation, lines: Sequence[Line], settings: DecodeSettings) -> list[Result]:
    """Tokens of every line, decoded in batches."""
    return decode.generate(
        bench.speaker.model, bench.speaker.tokenizer, [bench.request(x) for x in lines], settings, batch=BATCH
    )


def record_of(line: Line, system: str, transcript: str, **more) -> dict:
    """One line of utterances.jsonl."""
    measures = {name: asdict(r) for name, r in line_rates(line.text, transcript, line.language).items()}
    fields = {
        "id": line.id,
        "role": line.role,
        "system": system,
        "language": line.language,
        "speaker": line.speaker,
        "seen": line.seen,
        "set": line.set,
    }
    return {**fields, "text": line.text, "transcript": transcript, **measures, **more}


def judge_wave(
    bench: Evaluation, line: Line, system: str, wave: torch.Tensor | None, **more
) -> Callable[[], dict]:
    """Start judging a made wave; call the result for its record. A wave without samples is judged as silence."""
    if wave is None:
        return lambda: record_of(line, system, "", similarity=0.0, seconds=0.0, **more)
    bench.keep(f"{line.id}-{system}", wave)
    heard = bench.judge.submit(wave, VOICE_RATE, line.language)
    sound, seconds = bench.sound(wave, line), len(wave) / VOICE_RATE
    return lambda: record_of(line, system, heard(), seconds=round(seconds, 3), **sound, **more)


def say(bench: Evaluation, line: Line, result: Result, system: str) -> Callable[[], dict]:
    """Wave of decoded tokens, on its way to the judges."""
    wave = (
        bench.speaker.codec.decode(result.tokens, bench.reference(line).voice) if len(result.tokens) else None
    )
    if wave is not None and system == "tts":
        offer_demo(bench, line, "tts", wave)
    return judge_wave(
        bench,
        line,
        system,
        wave,
        flags=[e for e in result.errors if e],
        trials=result.trials,
        tokens=len(result.tokens),
    )


def offer_demo(bench: Evaluation, line: Line, system: str, wave: torch.Tensor) -> None:
    """Keep the first line of one seen and one unseen speaker of each language to listen to."""
    kind = f"{line.language}-{'seen' if line.seen else 'unseen'}"
    known = {name: caption for name, caption, _, _ in bench.demos}
    if f"{kind}-{system}" not in known:
        words = {"gt": "recording", "codec": "codec re-synthesis", "tts": "text to speech"}[system]
        bench.demos.append(
            (
                f"{kind}-{system}",
                f"{words}, {line.speaker} ({'seen' if line.seen else 'unseen'}): {line.text}",
                wave,
                VOICE_RATE,
            )
        )


def measure_short(bench: Evaluation) -> None:
    """The systems on the test sentences of every role of SHORT."""
    for language in ("en", "zh"):
        for role, systems in SHORT.items():
            lines = human_lines(bench, role, language) if "human" in role else bench.lines(role, language)
            if lines:
                bench.records += judge_lines(bench, lines, systems, f"{language} {role}")
    bench.heard.save()
    for language in ("en", "zh"):
        figures_of_language(bench, language)
    figures_of_voice(bench)


def human_lines(bench: Evaluation, role: str, language: str) -> list[Line]:
    """The prompts that a person reads, less the longest, which is the reference (`human`); the first everyday sentences
    to be spoken in that person's voice (`human_voice`)."""
    lines = bench.lines("human", language)
    if not lines:
        return []
    speaker = lines[0].speaker
    reference = bench.frozen.references.setdefault(speaker, longest(lines))
    if role == "human":
        return [line for line in lines if line != reference]
    everyday = bench.lines("eval", language)[:HUMAN_VOICE_LINES]
    return [replace(x, id=f"{speaker}-{x.id}", role=role, speaker=speaker, seen=False) for x in everyday]


def longest(lines: Sequence[Line]) -> Line:
    """The longest recording: the best reference."""
    return max(lines, key=lambda line: len(line.wave(TOKENIZER_RATE)))


def judge_lines(bench: Evaluation, lines: Sequence[Line], systems: Sequence[str], title: str) -> list[dict]:
    """Records of all systems on the same lines."""
    waiting: list[Callable[[], dict]] = []
    made = [s for s in systems if s != "gt"]
    with tqdm(total=len(lines) * len(made), desc=title, unit="wave", disable=None) as bar:
        for first in range(0, len(lines), 2 * BATCH):
            group = lines[first : first + 2 * BATCH]
            if "tts" in systems:
                results = speak_lines(bench, group, bench.settings)
                for line, result in zip(group, results, strict=True):
                    waiting.append(say(bench, line, result, "tts"))
                    bar.update()
                failed = [x for x, r in zip(group, results, strict=True) if r.failed]
                again = speak_lines(bench, failed, replace(bench.settings, retries=RETRIES)) if failed else []
                waiting += [
                    say(bench, line, result, "tts_retry") for line, result in zip(failed, again, strict=True)
                ]
            if "codec" in systems:
                for line in group:
                    tokens = bench.speaker.codec.tokenize(line.wave(TOKENIZER_RATE))
                    wave = bench.speaker.codec.decode(tokens, bench.reference(line).voice)
                    offer_demo(bench, line, "codec", wave)
                    waiting.append(judge_wave(bench, line, "codec", wave))
                    bar.update()
    records = []
    recorded = list(lines) if "gt" in systems else []
    for line, text in zip(recorded, bench.heard.texts(recorded), strict=True):
        wave = line.wave(VOICE_RATE)
        offer_demo(bench, line, "gt", wave)
        records.append(record_of(line, "gt", text, similarity=None, **bench.opinion(wave, line)))
    return records + [record() for record in waiting]


def pick(
    records: Iterable[dict], system: str, language: str, role: str = "eval", seen: bool | None = None
) -> list[dict]:
    """Records of one system; `tts_retry` takes the retried record where there is one."""
    own = {
        r["id"]: r
        for r in records
        if r["language"] == language and r["role"] == role and seen in (None, r["seen"])
    }.keys()
    wanted = ("tts", "tts_retry") if system == "tts_retry" else (system,)
    return list(
        {r["id"]: r for name in wanted for r in records if r["id"] in own and r["system"] == name}.values()
    )


def corpus_figure(records: Sequence[dict], measure: str) -> dict:
    """Corpus figure of a measure over records."""
    return corpus([Rates(**r[measure]) for r in records])


def figures_of_language(bench: Evaluation, language: str) -> None:
    """Error rates of every system, role and group of speakers."""
    for measure, name in MEASURES[language].items():
        for role in SHORT:
            suffix = "" if role == "eval" else f"_{role}"
            for system in ("gt", "codec", "tts", "tts_retry"):
                for seen, group in ((None, ""), (True, "_seen"), (False, "_unseen")):
                    found = pick(bench.records, system, language, role, seen)
                    if not found or (group and (role, system) != ("eval", "tts")):
                        continue
                    entry = corpus_figure(found, measure) | {"speakers": len({r["speaker"] for r in found})}
                    if system == "tts_retry":
                        entry["retries"] = RETRIES
                    decoded = system.startswith("tts")
                    names = [f"{name}{suffix}_{system}{group}"]
                    if role == "eval" and all(r.get("set") == "everyday" for r in found):
                        names.append(f"{EVERYDAY[name]}_{system}{group}")
                    for each in names:
                        bench.note(each, entry, "rate", True, decoded, normaliser_of(language))
    short = pick(bench.records, "tts", language)
    if short:
        value, interval = bootstrap([float(bool(r["flags"])) for r in short])
        bench.note(
            f"flagged_{language}_tts",
            {"value": value, "n": len(short), "ci95": interval},
            "rate",
            decoded=True,
        )


def figures_of_voice(bench: Evaluation) -> None:
    """Similarity of output to the reference, by system and by whether the speaker was heard in training."""
    threshold = bench.metrics.get("sim_threshold", {}).get("value")
    for system, suffix in (("tts", ""), ("codec", "_codec")):
        for seen, name in ((True, "sim_seen"), (False, "sim_unseen")):
            scores = [
                r["similarity"]
                for r in bench.records
                if r["role"] in ("eval", "seen") and r["system"] == system and r["seen"] is seen
            ]
            if scores:
                bench.note(
                    name + suffix, similarity.summary(scores, threshold), judged=True, decoded=system == "tts"
                )
    for name, entry in cloning.figures(bench.records, threshold).items():
        bench.note(name, entry, "rate" if name.endswith("nearest") else "", judged=True, decoded=True)
    for name, entry in naturalness.figures(bench.records).items():
        bench.note(
            name,
            entry | {"judge": bench.ears.id if bench.ears else None},
            "1 to 5",
            decoded=name.endswith("tts"),
        )
    human = [r["similarity"] for r in bench.records if r["role"] == "human" and r["system"] == "codec"]
    if human:
        bench.note("sim_human_codec", similarity.summary(human, threshold), judged=True)


# ---- long texts ------------------------------------------------------------------------------------------------------


def measure_long(bench: Evaluation) -> None:
    """Texts of 300-500 words in one go: error, where it falls, voice drift, chunk flags."""
    rows = bench.frozen.long_texts[: bench.limit]  # of 10 and 60 minutes: see longform.py
    if not rows:
        return
    speakers = [bench.frozen.references[row["speaker"]] for row in rows]
    requests = [
        bench.request(replace(line, text=row["text"])) for row, line in zip(rows, speakers, strict=True)
    ]
    results = decode.generate(
        bench.speaker.model, bench.speaker.tokenizer, requests, bench.settings, batch=len(rows)
    )
    waiting = []
    for row, line, result in zip(
        rows, speakers, tqdm(results, desc="long", unit="text", disable=None), strict=True
    ):
        wave = (
            bench.speaker.codec.decode(result.tokens, bench.reference(line).voice)
            if len(result.tokens)
            else torch.zeros(VOICE_RATE)
        )
        bench.keep(row["id"], wave)
        if not waiting:
            bench.demos.append(
                (
                    "long-start",
                    f"first 30 s of {len(row['text'].split())} words in one go",
                    wave[: 30 * VOICE_RATE],
                    VOICE_RATE,
                )
            )
        try:
            drift = voice_drift(wave, VOICE_RATE, bench.voices, bench.vector(line))
        except AudioError:
            drift = {"first_last": 0.0, "first": 0.0, "last": 0.0}
        heard = bench.judge.submit(wave, VOICE_RATE, row["language"])
        facts = {
            "seconds": round(len(wave) / VOICE_RATE, 2),
            "chunks": len(result.chunks),
            "flags": result.errors,
            **drift,
        }
        waiting.append((row, heard, facts))
    for row, heard, facts in waiting:
        transcript = heard()
        rates = next(iter(line_rates(row["text"], transcript, row["language"]).values()))
        along = errors_along(row["text"], transcript, row["language"])
        bench.long_records.append({**row, "transcript": transcript, **asdict(rates), "along": along, **facts})
    figures_of_long(bench)


def figures_of_long(bench: Evaluation) -> None:
    """Headline figures of the long English texts."""
    rows = [r for r in bench.long_records if r["language"] == "en"]
    fields = ("error", "substitutions", "deletions", "insertions", "words")
    entry = corpus([Rates(**{f: r[f] for f in fields}) for r in rows])
    entry |= {
        "error_along": np.mean([r["along"] for r in rows], axis=0).round(4).tolist(),
        "fewest_chunks": min(r["chunks"] for r in rows),
    }
    bench.note(
        "long_wer_en",
        entry | {"speech_minutes": round(sum(r["seconds"] for r in rows) / 60, 2)},
        "rate",
        True,
        True,
        normaliser_of("en"),
    )
    threshold = bench.metrics.get("sim_threshold", {}).get("value")
    for name, key in (
        ("long_similarity_first_last", "first_last"),
        ("long_similarity_first", "first"),
        ("long_similarity_last", "last"),
    ):
        bench.note(name, similarity.summary([r[key] for r in rows], threshold), judged=True, decoded=True)
    flagged = [float(any(r["flags"])) for r in rows]
    _, (low, high) = bootstrap(flagged)
    bench.note(
        "long_flagged_texts",
        {"value": sum(flagged), "n": len(rows), "ci95": [low * len(rows), high * len(rows)]},
        "texts",
        decoded=True,
    )


# ---- the run -------------------------------------------------------------------------------------------------------


def evaluate(
    bench: Evaluation,
    parts: Sequence[str],
    judge: Callable[[], Whisper] = Whisper,
    voices: Callable[[], SpeakerJudge] = SpeakerJudge,
    ears: Callable[[], Naturalness] = Naturalness,
) -> dict[str, float]:
    """Run the parts in order; returns the wall time of each. The judges are made only after speed was measured."""
    walls = {}
    steps = {"speed": measure_speed, "voices": measure_voices, "short": measure_short, "long": measure_long}
    for part in PARTS:
        if part not in parts:
            continue
        started = time.perf_counter()
        if part != "speed" and bench.judge is None:
            bench.listen(judge(), voices(), ears())
            torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))  # the judges take the other cores
        steps[part](bench)
        walls[part] = round(time.perf_counter() - started, 1)
        print(f"{part}: {walls[part]:.0f} s", flush=True)
    return walls


def write(
    bench: Evaluation, reports: Path, scale: str, parts: Sequence[str], walls: dict[str, float]
) -> None:
    """Hand over to `results.write`."""
    settings = {
        "decode": asdict(bench.settings),
        "codec": asdict(bench.speaker.codec.settings),
        "wall_seconds": walls,
    }
    flow = bench.speaker.codec.flow.config
    settings["flow"] = {"temperature": flow.temperature, "guidance": flow.guidance}
    if bench.judge is not None:
        settings["judges"] = {"speech": bench.judge.id, "speaker": bench.voices.id}
        if bench.ears is not None:
            settings["judges"]["naturalness"] = bench.ears.id
    parameters = {"parts": list(parts), "limit": bench.limit, "seed": bench.seed}
    manifest = bench.frozen.folder / "manifest.jsonl"
    seconds = sum(walls.values())
    files.write(
        reports,
        scale,
        bench.metrics,
        settings,
        parameters,
        manifest,
        bench.records,
        bench.long_records,
        bench.demos,
        seconds,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; a full run with the plain settings writes reports/, any other one runs/."""
    parser = options.Parser(description=__doc__)
    parser.add_argument("--scale", type=options.scale, default="nano", help="checkpoints/<scale>")
    parser.add_argument("--frozen", type=Path, default=FOLDER)
    parser.add_argument(
        "--reports", type=Path, help="default: reports/, or runs/reports/ with any other flag given"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--limit", type=options.count, help="lines a language and role")
    parser.add_argument("--temperature", type=float, help="default: the checkpoint's")
    parser.add_argument("--seed", type=options.seed, default=0)
    parser.add_argument("--waves", type=Path, help="keep every wave made in this folder")
    args = parser.parse_args(argv)
    partial = args.limit is not None or set(args.parts) != set(PARTS)
    partial = (
        partial or args.temperature is not None or args.seed != 0 or args.frozen.resolve() != FOLDER.resolve()
    )
    reports = args.reports or (RUNS / "reports" if partial else REPORTS)
    try:
        speaker = TextToSpeech.load(args.scale)
        check_writable(reports)  # before the minutes of work
        if args.temperature is not None:
            speaker.settings = replace(speaker.settings, temperature=args.temperature)
        bench = Evaluation(speaker, Frozen(args.frozen), args.limit, args.seed, args.waves)
        bench.note("params_total", files.parameters_of(speaker.folder.parent))
        bench.note("retrain_hours", files.training_hours(speaker.folder.parent), "h")
        walls = evaluate(bench, args.parts)
        write(bench, reports, args.scale, args.parts, walls)
    except (UserError, OSError) as error:  # OSError: reports/ is not writable or the disk is full
        print(f"evaluation: {error}", file=sys.stderr)
        return 2
    for name in files.SUMMARY:
        entry = bench.metrics.get(name)
        if entry and entry["value"] is not None:
            print(f"{name:<28} {report.number(entry, files.unit_of(entry)):<28} n={entry['n']}")
    return 0


if __name__ == "__main__":
    with in_one_line():
        raise SystemExit(main())
