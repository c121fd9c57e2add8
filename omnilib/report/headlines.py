"""The headline figures: their names, what each is counted in, and how a figure is shown.

A share is kept as a fraction (0.043) and always shown in percent with one decimal (4.3 %), so that no fraction stands
beside a percent. Figures that measure speed differ from machine to machine: they live in timings.json.
"""

import re
from pathlib import Path

from omnilib.paths import REPORTS
from omnilib.provenance import read_json

WORDS, SYLLABLES, CHARACTERS = "% of words", "% of syllables, pinyin without tones", "% of characters"
OPINION = "opinion score, 1 to 5"
COSINE, SPEED, TIMES = "cosine, 0 to 1", "s of work for 1 s of speech", "median (slowest to fastest round)"
QUESTIONS, RECORDINGS = "% of questions", "% of recordings"

HEADLINES = {  # name -> (what it is, unit, what it is counted in)
    "wer_everyday_en_gt": ("English word error, everyday sentences, recordings", "%", WORDS),
    "wer_everyday_en_codec": ("English word error, everyday sentences, codec only", "%", WORDS),
    "wer_everyday_en_tts": ("English word error, everyday sentences, text to speech", "%", WORDS),
    "zh_everyday_gt": ("Mandarin pinyin error, everyday sentences, recordings", "%", SYLLABLES),
    "zh_everyday_codec": ("Mandarin pinyin error, everyday sentences, codec only", "%", SYLLABLES),
    "zh_everyday_tts": ("Mandarin pinyin error, everyday sentences, text to speech", "%", SYLLABLES),
    "wer_en_seen_gt": ("English word error, voices heard in training, recordings", "%", WORDS),
    "wer_en_seen_tts": ("English word error, voices heard in training, text to speech", "%", WORDS),
    "zh_seen_gt": ("Mandarin pinyin error, voices heard in training, recordings", "%", SYLLABLES),
    "zh_seen_tts": ("Mandarin pinyin error, voices heard in training, text to speech", "%", SYLLABLES),
    "wer_en_human_voice_tts": ("English word error in a cloned human voice", "%", WORDS),
    "clone_similarity": ("cloned voice: similarity to its reference", "", COSINE),
    "clone_impostor": ("cloned voice: similarity to the nearest stranger in the gallery", "", COSINE),
    "clone_nearest": ("cloned voice: its reference is the nearest", "%", "% of sentences"),
    "clone_human_similarity": ("cloned human voice: similarity to its reference", "", COSINE),
    "clone_human_impostor": (
        "cloned human voice: similarity to the nearest stranger in the gallery",
        "",
        COSINE,
    ),
    "clone_human_nearest": ("cloned human voice: its reference is the nearest", "%", "% of sentences"),
    "dnsmos_en_gt": ("naturalness (DNSMOS), English recordings", "", OPINION),
    "dnsmos_en_codec": ("naturalness (DNSMOS), English codec only", "", OPINION),
    "dnsmos_en_tts": ("naturalness (DNSMOS), English text to speech", "", OPINION),
    "dnsmos_zh_gt": ("naturalness (DNSMOS), Mandarin recordings", "", OPINION),
    "dnsmos_zh_codec": ("naturalness (DNSMOS), Mandarin codec only", "", OPINION),
    "dnsmos_zh_tts": ("naturalness (DNSMOS), Mandarin text to speech", "", OPINION),
    "wer_en_gt": ("English word error, recordings", "%", WORDS),
    "wer_en_codec": ("English word error, codec only", "%", WORDS),
    "wer_en_tts": ("English word error, text to speech", "%", WORDS),
    "wer_en_open_gt": ("English word error, sentences with unseen words, recordings", "%", WORDS),
    "wer_en_open_tts": ("English word error, sentences with unseen words, text to speech", "%", WORDS),
    "zh_gt": ("Mandarin pinyin error, recordings", "%", SYLLABLES),
    "zh_codec": ("Mandarin pinyin error, codec only", "%", SYLLABLES),
    "zh_tts": ("Mandarin pinyin error, text to speech", "%", SYLLABLES),
    "zh_open_gt": ("Mandarin pinyin error, sentences with unseen words, recordings", "%", SYLLABLES),
    "zh_open_tts": ("Mandarin pinyin error, sentences with unseen words, text to speech", "%", SYLLABLES),
    "zh_cer_gt": ("Mandarin character error, recordings", "%", CHARACTERS),
    "zh_cer_tts": ("Mandarin character error, text to speech", "%", CHARACTERS),
    "wer_en_gt_all": ("English word error on all test lines, recordings", "%", WORDS),
    "wer_en_codec_all": ("English word error on all test lines, codec only", "%", WORDS),
    "wer_en_tts_all": ("English word error on all test lines, text to speech", "%", WORDS),
    "zh_gt_all": ("Mandarin pinyin error on all test lines, recordings", "%", SYLLABLES),
    "zh_codec_all": ("Mandarin pinyin error on all test lines, codec only", "%", SYLLABLES),
    "zh_tts_all": ("Mandarin pinyin error on all test lines, text to speech", "%", SYLLABLES),
    "long_wer_en": ("word error, 300-500 word texts", "%", WORDS),
    "long_similarity_first_last": ("voice similarity, first and last 15 s of long texts", "", COSINE),
    "long_flagged_texts": ("long texts with an error flag", "", "texts"),
    "long10_wer": ("word error, 10 minutes in one go", "%", WORDS),
    "long10_drift": ("change of word error in 10 minutes, 10 minutes in one go", "%", WORDS),
    "long10_similarity": ("voice similarity to the reference, 10 minutes in one go", "", COSINE),
    "long10_similarity_drift": ("change of similarity in 10 minutes, 10 minutes in one go", "", COSINE),
    "long10_flagged": ("chunks with an error flag, 10 minutes in one go", "%", "% of chunks"),
    "long60_wer": ("word error, 60 minutes in one go", "%", WORDS),
    "long60_drift": ("change of word error in 10 minutes, 60 minutes in one go", "%", WORDS),
    "long60_similarity": ("voice similarity to the reference, 60 minutes in one go", "", COSINE),
    "long60_similarity_drift": ("change of similarity in 10 minutes, 60 minutes in one go", "", COSINE),
    "long60_flagged": ("chunks with an error flag, 60 minutes in one go", "%", "% of chunks"),
    "sim_seen": ("voice similarity, speakers seen in training", "", COSINE),
    "sim_unseen": ("voice similarity, unseen speakers", "", COSINE),
    "sim_gt_pair": ("similarity of two recordings of one speaker", "", COSINE),
    "sim_threshold": ("same-speaker threshold of the judge", "", COSINE),
    "brain_asr_en": ("listening: English word error, unseen voices", "%", WORDS),
    "whisper_asr_en": ("Whisper base on these English recordings", "%", WORDS),
    "brain_asr_zh": ("listening: Mandarin pinyin error, unseen voices", "%", SYLLABLES),
    "whisper_asr_zh": ("Whisper base on these Mandarin recordings", "%", SYLLABLES),
    "brain_asr_human_en": ("listening: English word error, human voices", "%", WORDS),
    "whisper_asr_human_en": ("Whisper base on these human voices", "%", WORDS),
    "brain_sqa": ("spoken questions answered right", "%", QUESTIONS),
    "brain_sqa_typed": ("spoken questions, typed instead: answered right", "%", QUESTIONS),
    "brain_sqa_blind": ("spoken questions, silence instead: answered right", "%", QUESTIONS),
    **{
        key: entry
        for task, what in (
            ("emoji", "emoji named in English"),
            ("emoji_zh", "emoji named in Chinese"),
            ("shapes", "questions on shapes"),
            ("text", "rendered words read"),
            ("chart", "questions on charts"),
            ("video", "questions on videos"),
        )
        for key, entry in (
            (f"brain_see_{task}", (f"asked by voice: {what}", "%", QUESTIONS)),
            (f"brain_see_{task}_typed", (f"asked in writing: {what}", "%", QUESTIONS)),
            (f"brain_see_{task}_blind", (f"asked without the picture: {what}", "%", QUESTIONS)),
        )
    },
    "needle_success_trained": ("a secret in long speech found, lengths seen in training", "%", RECORDINGS),
    "needle_success_75min": ("a secret in 75 minutes of speech found", "%", RECORDINGS),
    "needle_false": ("a secret named that was not said", "%", RECORDINGS),
    "brain_seconds_per_audio_hour": ("listening to an hour of speech and answering", "s", "seconds"),
    "brain_memory_75min_gib": ("memory to listen to 75 minutes", "GiB", "GiB"),
    "brain_tokens_per_s": ("writing speed of the brain", "tokens/s", "tokens a second"),
    "brain_speedup": ("writing speed of the brain against transformers' generate", "x", "times"),
    "omni_first_sound_s": ("spoken question to the first sound of the answer", "s", "seconds"),
    **{
        f"omni_first_{part}_s": (f"  of which {what}", "s", "seconds")
        for part, what in (
            ("read", "reading the recording"),
            ("encoder", "the encoders"),
            ("prefill", "the prompt, to its first id"),
            ("wait", "ids until the mouth may begin"),
            ("text", "ids written later"),
            ("rows", "rows of the mouth"),
            ("hop", "flow and vocoder"),
            ("other", "the rest"),
        )
    },
    "omni_underruns": ("gaps in answers played while they are made", "", "gaps in all answers"),
    "omni_stop_s": ("interrupted: until it is silent", "s", "seconds"),
    "omni_stop_ended_s": ("interrupted: until both tracks have ended", "s", "seconds"),
    "omni_speech_wer": ("word error of spoken answers against their text", "%", WORDS),
    "omni_mouth_wer": ("word error of the mouth alone on these texts", "%", WORDS),
    "omni_sqa_spoken": ("spoken questions whose spoken answer is right", "%", QUESTIONS),
    "omni_sqa_text": ("spoken questions whose written answer is right", "%", QUESTIONS),
    "rtf_total": ("real-time factor, whole chain", "", SPEED),
    "rtf_mouth": ("  of which the mouth", "", SPEED),
    "rtf_flow": ("  of which flow matching", "", SPEED),
    "rtf_hift": ("  of which the vocoder", "", SPEED),
    "ttfs_stream_s": ("time to first sound, streaming", "s", "seconds"),
    "prepare_voice_s": (
        "preparing a new voice, once, from 10 s of it",
        "s",
        "seconds, median (quickest to slowest round)",
    ),
    **{
        f"{kind}_{key}_{clients}": (f"{what}, {clients} client{'s' * (clients > 1)}", unit, words)
        for kind, what_of in (("serve", "server"), ("chat", "server, spoken chats"))
        for clients in (1, 4, 16)
        for key, what, unit, words in (
            ("audio_s_per_s", f"{what_of}: speech made in a second", "s/s", "s of speech a second"),
            ("first_sound_p50_s", f"{what_of}: time to first sound, median", "s", "seconds"),
            ("first_sound_p95_s", f"{what_of}: time to first sound, 19 of 20 requests", "s", "seconds"),
        )
    },
    "serve_memory_growth_mb": ("server: memory grown while 200 requests came and went", "MB", "MB"),
    "speed_mouth_nano": ("mouth, nano: faster than the plain loop, one text", "x", TIMES),
    "speed_mouth_06b": (
        "mouth, 0.6B, precision auto: faster than the plain float32 loop, one text",
        "x",
        TIMES,
    ),
    "speed_batch16": ("mouth, nano: rows a second with 16 texts over one", "x", TIMES),
    "speed_codec_full": (
        "codec, published size, precision auto: faster than the plain float32 loop",
        "x",
        TIMES,
    ),
    "speed_codec_full_fp32": (
        "codec, published size, float32: faster than the plain float32 loop",
        "x",
        TIMES,
    ),
    "speed_stream_10s": (
        "codec streaming 10 s, precision auto: faster than the plain float32 loop",
        "x",
        TIMES,
    ),
    "speed_stream_40s": (
        "codec streaming 40 s, precision auto: faster than the plain float32 loop",
        "x",
        TIMES,
    ),
    "speed_stream_exponent": ("streaming cost grows with length to the power of", "", "1 is linear"),
    "speed_first_tokens": ("tokens needed for the first sound, published size", "", "tokens"),
    "retrain_hours": ("retraining everything", "h", "hours on 2 cores"),
    "params_total": ("parameters, all modules", "", "numbers"),
    "curation_bad_kept": ("curation: bad items kept", "%", "% of bad items"),
    "curation_good_dropped": ("curation: good items dropped", "%", "% of good items"),
    "curation_duplicate_recall": ("curation: duplicates found", "%", "% of duplicates"),
    "curation_wrong_transcript_recall": ("curation: wrong transcripts found", "%", "% of wrong transcripts"),
    "curation_boundary_error_s": ("curation: boundaries, mean error", "s", "seconds"),
    "curation_padding_waste": ("curation: padding in training batches", "%", "% of a batch"),
    "curation_audio_hours_per_hour_no_asr": (
        "curation: audio-hours an hour, 2 cores, no recogniser",
        "",
        "h of sound in 1 h",
    ),
}
# not of every frozen set or checkpoint
OPTIONAL = re.compile(
    r"(wer|zh)_everyday|(wer_en|zh)_(seen|human_voice)_|clone_|dnsmos_|long\d+_|brain_|whisper_|needle_|omni_|serve_|speed_|prepare_"
)
# figure of all test sentences -> that of the everyday ones; where both are the same sentences, one is shown
EVERYDAY = {f"{a}_{system}": f"{b}_{system}" for a, b in (("wer_en", "wer_everyday_en"), ("zh", "zh_everyday"))
            for system in ("gt", "codec", "tts")}  # fmt: skip
TIMING = re.compile(
    r"(^|_)(rtf|ttfs|first_sound|speedup|underruns|tokens_per_s|audio_hour)(_|$)|^omni_(first|stop)|^(serve|chat|speed|prepare)_"
)
SHARE = re.compile(r"(^|_)(error|wer|cer|recall|share|waste|accuracy|baseline|agreement|dropped|kept)(_|$)")
NO_SHARE = re.compile(r"_(over|change|spread|loss|s|ratio)(_|$)")


def is_timing(name: str, entry: dict) -> bool:
    """Whether a figure measures speed on this machine (told by `timing`, or by its unit or name)."""
    return entry.get("timing", entry.get("unit") in ("s/s", "x") or bool(TIMING.search(name)))


def unit_of(name: str, unit: str = "") -> str:
    """Unit a figure is shown in: a share (an error rate, an accuracy) is shown in percent."""
    if unit == "rate" or (not unit and HEADLINES.get(name, ("", ""))[1] == "%"):
        return "%"
    if not unit and name not in HEADLINES and SHARE.search(name) and not NO_SHARE.search(name):
        return "%"
    return unit or HEADLINES.get(name, ("", ""))[1]


def measure_of(name: str) -> str:
    """A figure's name in words."""
    return HEADLINES[name][0].strip() if name in HEADLINES else name.replace("_", " ")


def number(entry: dict, unit: str) -> str:
    """A value with its interval, as text; "%" and "rate" show a share in percent with one decimal."""
    if entry.get("value") is None:
        return "not measured"
    percent = unit in ("%", "rate")

    def form(v: float) -> str:
        return f"{v * 100:,.1f}" if percent else f"{v:,.0f}" if abs(v) >= 1000 else f"{v:.3g}"

    ci, unit = entry.get("ci95"), "%" if percent else unit
    spread = f" ({form(ci[0])} to {form(ci[1])})" if isinstance(ci, (list, tuple)) and len(ci) == 2 else ""
    return f"{form(entry['value'])}{' ' + unit if unit else ''}{spread}"


def load_summary(scale: str, reports: Path = REPORTS) -> dict[str, dict]:
    """The flat headline figures, those of speed among them; {} when nothing was measured yet.

    Raises:
        DataError: damaged file.
    """
    folder = reports / scale
    summary = read_json(folder / "summary.json") | read_json(folder / "timings.json")
    if summary:  # a headline that an earlier evaluation measured and did not list
        source = f"reports/{scale}/eval/metrics.json"
        measured = read_json(folder / "eval" / "metrics.json").get("metrics", {})
        for name in HEADLINES.keys() & measured.keys() - summary.keys():
            summary[name] = {k: measured[name].get(k) for k in ("value", "n", "ci95")} | {"source": source}
    return summary


def read_metrics(folder: Path) -> dict:
    """metrics.json of a report, with the figures and rows of speed that stand in timings.json.

    Raises:
        DataError: damaged file.
    """
    found, speed = read_json(folder / "metrics.json"), read_json(folder / "timings.json")
    metrics = found.get("metrics", {}) | speed.get("metrics", {})
    return found | {"metrics": metrics, "paper": [*found.get("paper", []), *speed.get("paper", [])]}


def split_timings(metrics: dict[str, dict]) -> tuple[dict[str, dict], dict[str, dict]]:
    """(figures that any machine repeats, figures of speed)."""
    speed = {name: entry for name, entry in metrics.items() if is_timing(name, entry)}
    return {name: entry for name, entry in metrics.items() if name not in speed}, speed


def summary_rows(scale: str, reports: Path = REPORTS) -> list[tuple[str, str, str, str, str]]:
    """(measure, value, what it is counted in, n, source) of every headline; a missing one says so."""
    summary, rows = load_summary(scale, reports), []
    extra = {k: (k.replace("_", " "), unit_of(k), "-") for k in sorted(summary.keys() - HEADLINES.keys())}
    for key, (name, unit, counted) in {**HEADLINES, **extra}.items():
        if key not in summary and OPTIONAL.match(key):
            continue
        if key in EVERYDAY and summary.get(EVERYDAY[key], {}).get("value") is not None:
            continue
        entry = summary.get(key, {})
        rows.append(
            (name, number(entry, unit), counted, str(entry.get("n") or "-"), entry.get("source", "-"))
        )
    return rows
