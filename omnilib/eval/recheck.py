"""Are the committed figures true? What `omni verify` asks of the evaluation.

Three questions, cheapest first:
  1. do all figures follow from the committed records (arithmetic, exact: `recount.py`)?
  2. does the judge still hear in 48 frozen recordings what was written down?
  3. do the checkpoints still speak a few sentences as intelligibly and in as similar a voice as recorded?
The last two have tolerances. Another CPU's eight-bit arithmetic lets the judge hear some 2 % of the words differently (two machines,
220 recordings; up to 4 % in a sample of 24), and it may round a sampling near-tie the other way, so that a sentence comes out differently.
"""

from collections.abc import Callable
from pathlib import Path

from omnilib.eval.evaluation import Evaluation
from omnilib.eval.frozen import Frozen
from omnilib.eval.judges import SpeakerJudge, Whisper
from omnilib.eval.recount import Check, read_json, read_jsonl, recount
from omnilib.eval.short_lines import MEASURES, corpus_figure, judge_wave, speak_lines
from omnilib.eval.wer import line_rates
from omnilib.paths import REPORTS
from omnilib.speak import TextToSpeech

HEARD_TOLERANCE = 0.08  # error of a fresh transcript against the committed one, all sampled lines together
ERROR_TOLERANCE = 0.15  # corpus error of a few re-spoken sentences
VOICE_TOLERANCE = 0.05  # their mean similarity


def check_ears(frozen: Frozen, records: list[dict], judge: Whisper, count: int) -> Check:
    """Fresh transcripts of a few recordings against the committed ones."""
    known = {r["id"]: r["transcript"] for r in records if r["system"] == "gt"}
    lines = [x for x in frozen.of("eval") if known.get(x.id, "").strip()]
    lines = lines[:: max(1, len(lines) // count)][:count]
    fresh = [wait() for wait in [judge.submit(x.wave(16_000), 16_000, x.language) for x in lines]]
    errors = [
        next(iter(line_rates(known[x.id], text, x.language).values()))
        for x, text in zip(lines, fresh, strict=True)
    ]
    return Check(
        f"judge re-heard {len(lines)} recordings: difference",
        0.0,
        sum(e.error * e.words for e in errors) / max(1, sum(e.words for e in errors)),
        HEARD_TOLERANCE,
    )


def check_speech(bench: Evaluation, records: list[dict], count: int) -> list[Check]:
    """A few sentences spoken and judged again, against their committed records."""
    known = {r["id"]: r for r in records if r["system"] == "tts" and r["role"] == "eval"}
    checks = []
    for language, measures in MEASURES.items():
        lines = [x for x in bench.frozen.of("eval", language=language) if x.id in known]
        lines = lines[:: max(1, len(lines) // count)][:count]
        if not lines:
            continue
        waiting = []
        for line, result in zip(lines, speak_lines(bench, lines, bench.settings), strict=True):
            wave = (
                bench.speaker.codec.decode(result.tokens, bench.reference(line).voice)
                if len(result.tokens)
                else None
            )
            waiting.append(judge_wave(bench, line, "tts", wave, flags=[]))
        fresh, old = [record() for record in waiting], [known[x.id] for x in lines]
        measure, name = next(iter(measures.items()))
        errors = [corpus_figure(group, measure)["value"] for group in (old, fresh)]
        voices = [sum(r["similarity"] for r in group) / len(group) for group in (old, fresh)]
        checks.append(Check(f"{name}_tts of {len(lines)} sentences spoken again", *errors, ERROR_TOLERANCE))
        checks.append(Check(f"similarity of the same {len(lines)}", *voices, VOICE_TOLERANCE))
    return checks


def recheck(
    scale: str = "nano",
    reports: Path = REPORTS,
    count: int = 8,
    heard: int = 48,
    frozen: Frozen | None = None,
    judge: Callable[[], Whisper] = Whisper,
    voices: Callable[[], SpeakerJudge] = SpeakerJudge,
    speaker: TextToSpeech | None = None,
) -> list[Check]:
    """All checks of a scale's committed evaluation, about three minutes on 2 cores.

    Args:
        count: sentences of each language that are spoken again.
        heard: recordings that are listened to again.

    Raises:
        DataError: nothing committed to check.
    """
    folder = reports / scale
    records, metrics = (
        read_jsonl(folder / "eval" / "utterances.jsonl"),
        read_json(folder / "eval" / "metrics.json"),
    )
    speaker = speaker or TextToSpeech.load(scale)
    arithmetic = recount(reports, scale, speaker.folder.parent)
    bench = Evaluation(speaker, frozen or Frozen(), seed=metrics["settings"]["decode"]["seed"])
    bench.listen(judge(), voices())
    return [
        *arithmetic,
        check_ears(bench.frozen, records, bench.judge, heard),
        *check_speech(bench, records, count),
    ]
