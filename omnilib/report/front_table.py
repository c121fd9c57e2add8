"""The results of README.md: figures that belong together in one row, in a table for each subject.

The complete list, one figure a row, is in reports/README.md and reports/index.html (`headlines.summary_rows`).
"""

from pathlib import Path

from omnilib.paths import REPORTS
from omnilib.report.headlines import EVERYDAY, HEADLINES, OPTIONAL, load_summary, number, unit_of
from omnilib.report.html import markdown_table

Row = tuple[str, tuple[str, ...]]  # what is measured, and the headlines of its cells


def row(label: str, key: str, *endings: str) -> Row:
    """Cells are `key` with each ending."""
    return label, tuple(key + ending for ending in endings)


SYSTEMS, ASKED = ("_gt", "_codec", "_tts"), ("", "_typed", "_blind")
LONG = ("_wer", "_drift", "_similarity", "_similarity_drift", "_flagged")

SECTIONS: tuple[tuple[str, tuple[str, ...], tuple[Row, ...]], ...] = (  # title, names of the cells, rows
    (
        "Speaking: how much of it is understood, and how natural it sounds",
        ("recordings", "codec only", "text to speech"),
        (
            row("English word error, everyday sentences", "wer_everyday_en", *SYSTEMS),
            row("Mandarin pinyin error, everyday sentences", "zh_everyday", *SYSTEMS),
            row("English word error, voices heard in training", "wer_en_seen", *SYSTEMS),
            row("Mandarin pinyin error, voices heard in training", "zh_seen", *SYSTEMS),
            row("English word error, a cloned human voice", "wer_en_human_voice", *SYSTEMS),
            row("English word error", "wer_en", *SYSTEMS),
            row("English word error, sentences with unseen words", "wer_en_open", *SYSTEMS),
            row("Mandarin pinyin error", "zh", *SYSTEMS),
            row("Mandarin pinyin error, sentences with unseen words", "zh_open", *SYSTEMS),
            row("Mandarin character error", "zh_cer", *SYSTEMS),
            ("English word error, all test lines", ("wer_en_gt_all", "wer_en_codec_all", "wer_en_tts_all")),
            ("Mandarin pinyin error, all test lines", ("zh_gt_all", "zh_codec_all", "zh_tts_all")),
            row("DNSMOS (1 to 5), English", "dnsmos_en", *SYSTEMS),
            row("DNSMOS (1 to 5), Mandarin", "dnsmos_zh", *SYSTEMS),
        ),
    ),
    (
        "Cloning: whose voice is it?",
        ("similarity to its reference", "to the nearest stranger of the gallery", "the reference is the nearest"),
        (
            row("a voice not heard in training", "clone", "_similarity", "_impostor", "_nearest"),
            row("a human voice", "clone_human", "_similarity", "_impostor", "_nearest"),
        ),
    ),
    (
        "Long speech in one go",
        ("word error", "its change in 10 minutes", "similarity to the voice", "its change in 10 minutes", "chunks flagged"),
        (row("10 minutes", "long10", *LONG), row("60 minutes", "long60", *LONG)),
    ),
    (
        "Listening: words understood wrong",
        ("the brain", "Whisper base"),
        tuple(
            (label, (f"brain_asr_{key}", f"whisper_asr_{key}"))
            for label, key in (
                ("English, unseen voices, words", "en"),
                ("Mandarin, unseen voices, pinyin", "zh"),
                ("English, human voices, words", "human_en"),
            )
        ),
    ),
    (
        "Questions answered right",
        ("asked by voice", "typed", "without the sound or picture"),
        (
            row("a spoken question", "brain_sqa", *ASKED),
            row("emoji, named in English", "brain_see_emoji", *ASKED),
            row("emoji, named in Chinese", "brain_see_emoji_zh", *ASKED),
            row("shapes", "brain_see_shapes", *ASKED),
            row("rendered words", "brain_see_text", *ASKED),
            row("charts", "brain_see_chart", *ASKED),
            row("videos", "brain_see_video", *ASKED),
        ),
    ),
)  # fmt: skip


def front_tables(scale: str, reports: Path = REPORTS) -> str:
    """Markdown: a table for each section that has a figure, then all other headlines; a missing one says so."""
    summary = load_summary(scale, reports)
    shown = {key: entry for key, entry in summary.items() if EVERYDAY.get(key) not in summary}
    parts = []
    for title, cells, rows in SECTIONS:
        filled = [
            (label, *(cell(shown, key) for key in keys), *of_cells(shown, keys))
            for label, keys in rows
            if any(key in shown for key in keys)
        ]
        if filled:
            parts.append(f"**{title}**\n\n" + markdown_table(("", *cells, "n", "source"), filled))
    placed = {key for _, _, rows in SECTIONS for _, keys in rows for key in keys}
    rest = [key for key in HEADLINES if key not in placed and (key in shown or not OPTIONAL.match(key))]
    rest += sorted(shown.keys() - HEADLINES.keys())
    named = {key: HEADLINES.get(key, (key.replace("_", " "), unit_of(key), "-")) for key in rest}
    rows = [
        (name, cell(summary, key), counted, *of_cells(summary, (key,)))
        for key, (name, _, counted) in named.items()
    ]
    parts.append(
        "**Length, speed, size, curation**\n\n"
        + markdown_table(("", scale, "counted in", "n", "source"), rows)
    )
    return "\n\n".join(parts)


def cell(summary: dict[str, dict], key: str) -> str:
    """A figure with its interval; "" where there is none of this kind."""
    if key not in summary:
        return "" if OPTIONAL.match(key) or key not in HEADLINES else "not measured"
    return number(summary[key], HEADLINES[key][1] if key in HEADLINES else unit_of(key))


def of_cells(summary: dict[str, dict], keys: tuple[str, ...]) -> tuple[str, str]:
    """(n, source) of figures in a row."""
    entries = [summary[key] for key in keys if key in summary]
    found = [dict.fromkeys(str(e.get(name) or "-") for e in entries) for name in ("n", "source")]
    return tuple(", ".join(names) or "-" for names in found)
