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
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from omnilib import options, report
from omnilib.audio import VOICE_RATE
from omnilib.errors import AudioError, UserError, in_one_line
from omnilib.eval import results as files
from omnilib.eval import rtf, similarity
from omnilib.eval.evaluation import Evaluation, normaliser_of
from omnilib.eval.frozen import FOLDER, Frozen
from omnilib.eval.judges import SpeakerJudge, Whisper
from omnilib.eval.long_tts_eval import errors_along, voice_drift
from omnilib.eval.naturalness import Naturalness
from omnilib.eval.short_lines import measure_short
from omnilib.eval.wer import Rates, bootstrap, corpus, line_rates
from omnilib.mouth import decode
from omnilib.paths import REPORTS, RUNS
from omnilib.report.folders import check_writable
from omnilib.speak import TextToSpeech

PARTS = ("speed", "voices", "short", "long")
SPEED_LINES = 10


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
