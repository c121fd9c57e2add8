"""Test sentences: the recording, its tokens spoken again, its text spoken; what the judges make of them (see `nano`)."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace

import torch
from tqdm import tqdm

from omnilib.audio import TOKENIZER_RATE, VOICE_RATE
from omnilib.eval import cloning, naturalness, similarity
from omnilib.eval.evaluation import Evaluation, normaliser_of
from omnilib.eval.frozen import Line
from omnilib.eval.wer import Rates, bootstrap, corpus, line_rates
from omnilib.mouth import decode
from omnilib.mouth.decode import DecodeSettings, Result

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
