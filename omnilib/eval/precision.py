"""Does a quicker precision sound the same? The same sentences in each, heard by the same judges.

    python -m omnilib.eval.precision            # 60 sentences x 4, about 8 minutes; reports/nano/precision/

| variant | mouth | U-Net of the flow |
|---|---|---|
| fp32 | float32 | float32 |
| flow_bf16 | float32 | bfloat16 |
| bf16 | bfloat16 | bfloat16 |
| int8 | eight bits | bfloat16 |

Figures: word error (Mandarin: pinyin error) and similarity to the reference of each variant, and their difference to fp32 on the
same sentences, with a bootstrap interval over sentences. The rule, fixed before a figure was looked at: a precision may be a
default where the interval of neither difference lies wholly on the worse side of 0. Decoding is that of decode.yaml with no
chunk repeated.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from tqdm import tqdm

from omnilib import options
from omnilib.audio import TOKENIZER_RATE
from omnilib.errors import AudioError, UserError, in_one_line
from omnilib.eval.ends import choose
from omnilib.eval.frozen import FOLDER, Frozen, Line
from omnilib.eval.judges import SpeakerJudge, Whisper
from omnilib.eval.results import write_jsonl
from omnilib.eval.similarity import cosine
from omnilib.eval.wer import bootstrap, line_rates
from omnilib.mouth import fast_weights
from omnilib.paths import REPORTS
from omnilib.provenance import stamp, write_json
from omnilib.report import sources
from omnilib.speak import NoSound, TextToSpeech

VARIANTS = {  # name -> (precision of the mouth, of the flow's U-Net)
    "fp32": ("fp32", "fp32"),
    "flow_bf16": ("fp32", "bf16"),
    "bf16": ("bf16", "bf16"),
    "int8": ("int8", "bf16"),
}


def speakers(scale: str) -> Iterator[tuple[str, TextToSpeech]]:
    """The voice in each precision that this processor has, one after the other."""
    for name, (mouth, flow) in VARIANTS.items():
        try:
            fast_weights.choose_precision(mouth, 0, torch.device("cpu"))
            speech = TextToSpeech.load(scale, precision=mouth)
            speech.codec.flow.set_precision(flow)
            speech.settings = replace(speech.settings, speak_retries=0)
        except UserError as error:
            print(f"{name}: left out: {error}", file=sys.stderr)
            continue
        yield name, speech


def measure(
    voices: Iterator[tuple[str, TextToSpeech]],
    lines: Sequence[Line],
    frozen: Frozen,
    judge: Whisper,
    ear: SpeakerJudge,
) -> list[dict]:
    """A row for each sentence and variant."""
    voices_of = {line.speaker: frozen.references[line.speaker] for line in lines}
    known = {name: ear.embed(line.wave(TOKENIZER_RATE), TOKENIZER_RATE) for name, line in voices_of.items()}
    rows = []
    for name, speech in voices:
        for line in tqdm(lines, desc=name, unit="sentence", disable=None):
            other = voices_of[line.speaker]
            try:
                wave = speech.speak(line.text, other.path, other.text, seed=speech.settings.seed).wave
                heard = judge.transcribe(wave, speech.rate, line.language)
                alike = cosine(ear.embed(wave, speech.rate), known[line.speaker])
            except (NoSound, AudioError):  # silence
                heard, alike = "", 0.0
            row = {"id": line.id, "language": line.language, "variant": name}
            row |= {"text": line.text, "transcript": heard, "similarity": round(float(alike), 6)}
            rows.append(row | score_of(row))
    return rows


def score_of(row: dict) -> dict:
    """`error` and `words` of a row: a function of its texts."""
    rate = next(iter(line_rates(row["text"], row["transcript"], row["language"]).values()))
    return {"error": rate.error, "words": rate.words}


def figures(rows: Sequence[dict]) -> dict[str, dict]:
    """All figures from the rows alone."""
    found, by = {}, {}
    for row in rows:
        by.setdefault((row["variant"], row["language"]), []).append(row)
    for (name, language), own in by.items():
        base = {row["id"]: row for row in by.get(("fp32", language), [])}
        words = [row["words"] for row in own]
        measures = {
            "error": ([row["error"] for row in own], words),
            "similarity": ([row["similarity"] for row in own], None),
        }
        if name != "fp32" and base:
            apart = lambda key, own=own, base=base: [row[key] - base[row["id"]][key] for row in own]  # noqa: E731
            measures |= {
                "error_change": (apart("error"), words),
                "similarity_change": (apart("similarity"), None),
            }
        for measure_name, (values, weights) in measures.items():
            value, ci95 = bootstrap(values, weights) if weights else bootstrap(values)
            unit = "rate" if measure_name == "error" else ""
            found[f"{name}_{language}_{measure_name}"] = {
                "value": value,
                "n": len(own),
                "ci95": ci95,
                "unit": unit,
            }
    return found


def allowed(found: dict[str, dict]) -> dict[str, bool]:
    """Whether each variant may be a default, by the rule of the module docstring."""
    answer = {}
    for name in VARIANTS:
        worse = [
            entry["ci95"][0] > 0
            for key, entry in found.items()
            if key.startswith(f"{name}_") and key.endswith("_error_change")
        ]
        less = [
            entry["ci95"][1] < 0
            for key, entry in found.items()
            if key.startswith(f"{name}_") and key.endswith("_similarity_change")
        ]
        if worse and name != "fp32":
            answer[name] = not any(worse + less)
    return answer


def main(argv: Sequence[str] | None = None) -> int:
    parser = options.Parser(description=__doc__)
    parser.add_argument("--scale", default="nano")
    parser.add_argument("--frozen", type=Path, default=FOLDER)
    parser.add_argument("--reports", type=Path, default=REPORTS)
    parser.add_argument("--english", type=options.count_or_none, default=40, help="sentences")
    parser.add_argument("--chinese", type=options.count_or_none, default=20, help="sentences")
    args = parser.parse_args(argv)
    started = time.time()
    try:
        frozen, judge = Frozen(args.frozen), Whisper()
        lines = choose(frozen, "en", args.english) + choose(frozen, "zh", args.chinese)
        rows = measure(speakers(args.scale), lines, frozen, judge, SpeakerJudge())
        decoding = asdict(TextToSpeech.load(args.scale).settings) | {"speak_retries": 0}
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    found, folder = figures(rows), args.reports / args.scale / "precision"
    folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / "rows.jsonl", rows)
    settings = {"decode": decoding, "judges": {"speech": judge.id}, "variants": VARIANTS}
    whole = {"name": "precision", "scale": args.scale, "settings": settings, "metrics": found}
    write_json(folder / "metrics.json", whole | {"may_be_default": allowed(found)})
    parameters = {"english": args.english, "chinese": args.chinese}
    inputs = {"frozen": args.frozen / "manifest.jsonl"}
    write_json(
        folder / "provenance.json", stamp(args.scale, parameters, settings, inputs, time.time() - started)
    )
    sources.record(folder, "precision", args.scale)
    for name, entry in found.items():
        low, high = entry["ci95"]
        print(f"{name:32} {entry['value']:8.4f} ({low:.4f} to {high:.4f})  n={entry['n']}")
    print("may be a default:", allowed(found))
    return 0


if __name__ == "__main__":
    with in_one_line():
        raise SystemExit(main())
