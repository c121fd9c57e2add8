"""How a text ends: babble behind the last word, and sound that does not fall to silence, for each mark one can type there.

    python -m omnilib.eval.ends            # 40 sentences x 8 ends, about 3 minutes; writes reports/nano/ends/

Each sentence of the frozen set is spoken by its speaker with each end,
  as typed   decoded from the text in spoken form, once: what the model itself makes of the mark
  spoken     by `TextToSpeech.speak`: marks that the tokenizer has never seen are replaced, loud ends are decoded again
and the judge listens. Babble: the transcript goes on after the last word of the text. Loud end: `voice/ending.py`. Both are
shares of sentences with Wilson's 95 % interval.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from scipy.stats import binomtest
from tqdm import tqdm

from omnilib import options
from omnilib.audio import VOICE_RATE
from omnilib.errors import UserError, in_one_line
from omnilib.eval.frozen import FOLDER, Frozen, Line
from omnilib.eval.judges import Whisper
from omnilib.eval.normalize import normalize
from omnilib.eval.wer import toneless_pinyin
from omnilib.mouth import decode
from omnilib.mouth.decode import Request
from omnilib.paths import REPORTS
from omnilib.provenance import stamp, write_json
from omnilib.report import sources
from omnilib.speak import TextToSpeech
from omnilib.text import clean_text
from omnilib.voice.ending import Levels, ends_loud

ENDS = {
    "full stop": ".",
    "!": "!",
    "?": "?",
    "ellipsis": "…",
    "none": "",
    "quotation": '."',
    "comma": ",",
    "semicolon": ";",
}
WIDE = str.maketrans('.!?,;"', "。！？，；”")


def words_behind(text: str, transcript: str, language: str) -> int:
    """Words that the judge hears after the last word of the text; of zh toneless syllables."""
    import jiwer

    clean = toneless_pinyin if language == "zh" else lambda words: normalize(words, language)
    truth, heard = clean(text), clean(transcript)
    if not truth or not heard:
        return 0
    last = jiwer.process_words(truth, heard).alignments[0][-1]
    return last.hyp_end_idx - last.hyp_start_idx if last.type == "insert" else 0


def loud(wave: torch.Tensor) -> bool:
    levels = Levels()
    levels.push(wave)
    return ends_loud(levels.decibels)


def share(found: Sequence[bool]) -> dict:
    """{"value", "n", "ci95"} of a yes-or-no measure."""
    low, high = binomtest(sum(found), len(found)).proportion_ci(method="wilson")
    return {
        "value": sum(found) / len(found),
        "n": len(found),
        "ci95": [float(low), float(high)],
        "unit": "rate",
    }


def choose(frozen: Frozen, language: str, count: int) -> list[Line]:
    """Lines spread over the speakers."""
    lines = frozen.of("eval", language=language)
    return lines[:: max(1, len(lines) // max(1, count))][:count]


def texts_of(line: Line) -> dict[str, str]:
    """The line with each end: {name: text}."""
    body = line.text.rstrip(".。")
    return {
        name: body + (mark.translate(WIDE) if line.language == "zh" else mark) for name, mark in ENDS.items()
    }


def measure(
    speaker: TextToSpeech, lines: Sequence[Line], references: dict[str, Line], judge: Whisper
) -> dict[str, dict]:
    """Figures: {"babble_as_typed_!": ..., "loud_end_spoken_!": ..., ...}. One text is spoken once, however it was typed."""
    kinds = ("babble", "loud_end")
    found = {f"{kind}_{way}_{name}": [] for kind in kinds for way in ("as_typed", "spoken") for name in ENDS}
    for line in tqdm(lines, desc="ends", unit="sentence", disable=None):
        other, known = references[line.speaker], {}
        voice = speaker.reference(other.path, other.text, other.language)
        for name, text in texts_of(line).items():
            as_typed = "as_typed", clean_text(text)
            if as_typed not in known:
                request = Request(as_typed[1], voice.text, voice.voice.tokens)
                result = decode.generate(speaker.model, speaker.tokenizer, [request], speaker.settings)[0]
                known[as_typed] = heard(speaker.codec.decode(result.tokens, voice.voice), line, judge)
            _, request, _ = speaker.prepare(text, other.path, other.text, None, speaker.settings.seed, None)
            spoken = "spoken", request.text
            if spoken not in known:
                known[spoken] = heard(
                    speaker.speak(text, other.path, other.text, seed=speaker.settings.seed).wave, line, judge
                )
            for key in (as_typed, spoken):
                for kind, value in zip(kinds, known[key], strict=True):
                    found[f"{kind}_{key[0]}_{name}"].append(value)
    return {name: share(values) for name, values in found.items()}


def heard(wave: torch.Tensor, line: Line, judge: Whisper) -> tuple[bool, bool]:
    """(babble behind the last word, loud end) of one wave."""
    return words_behind(
        line.text, judge.transcribe(wave, VOICE_RATE, line.language), line.language
    ) > 0, loud(wave)


def main(argv: Sequence[str] | None = None) -> int:
    parser = options.Parser(description=__doc__)
    parser.add_argument("--scale", type=options.scale, default="nano")
    parser.add_argument("--frozen", type=Path, default=FOLDER)
    parser.add_argument("--reports", type=Path, default=REPORTS)
    parser.add_argument("--english", type=options.count_or_none, default=28, help="sentences")
    parser.add_argument("--chinese", type=options.count_or_none, default=12, help="sentences")
    args = parser.parse_args(argv)
    try:
        speaker, frozen, judge = TextToSpeech.load(args.scale), Frozen(args.frozen), Whisper()
        lines = choose(frozen, "en", args.english) + choose(frozen, "zh", args.chinese)
        figures = measure(speaker, lines, frozen.references, judge)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    settings = {
        "decode": asdict(speaker.settings),
        "codec": asdict(speaker.codec.settings),
        "judges": {"speech": judge.id},
    }
    folder = args.reports / args.scale / "ends"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(
        folder / "metrics.json",
        {"name": "ends", "scale": args.scale, "settings": settings, "metrics": figures},
    )
    parameters = {"english": args.english, "chinese": args.chinese}
    write_json(
        folder / "provenance.json",
        stamp(args.scale, parameters, settings, {"frozen": args.frozen / "manifest.jsonl"}),
    )
    sources.record(folder, "ends", args.scale)
    for name, entry in figures.items():
        low, high = entry["ci95"]
        print(
            f"{name:32} {100 * entry['value']:5.1f} % ({100 * low:.1f} to {100 * high:.1f})  n={entry['n']}"
        )
    return 0


if __name__ == "__main__":
    with in_one_line():
        raise SystemExit(main())
