"""The front page reports/index.html, reports/README.md and the results table of README.md."""

import html
import json
import re
from pathlib import Path

from omnilib.errors import UserError
from omnilib.paths import REPORTS
from omnilib.report.html import data_uri, html_table, markdown_table, page

HEADLINES = {
    "wer_en_gt": ("English word error, recordings", "%"),
    "wer_en_codec": ("English word error, codec only", "%"),
    "wer_en_tts": ("English word error, text to speech", "%"),
    "zh_gt": ("Mandarin pinyin error, recordings", "%"),
    "zh_codec": ("Mandarin pinyin error, codec only", "%"),
    "zh_tts": ("Mandarin pinyin error, text to speech", "%"),
    "zh_cer_gt": ("Mandarin character error, recordings", "%"),
    "zh_cer_tts": ("Mandarin character error, text to speech", "%"),
    "wer_en_gt_all": ("English word error on all test lines, recordings", "%"),
    "wer_en_codec_all": ("English word error on all test lines, codec only", "%"),
    "wer_en_tts_all": ("English word error on all test lines, text to speech", "%"),
    "zh_gt_all": ("Mandarin pinyin error on all test lines, recordings", "%"),
    "zh_codec_all": ("Mandarin pinyin error on all test lines, codec only", "%"),
    "zh_tts_all": ("Mandarin pinyin error on all test lines, text to speech", "%"),
    "long_wer_en": ("word error, 300-500 word texts", "%"),
    "long_similarity_first_last": ("voice similarity, first and last 15 s of long texts", ""),
    "long_flagged_texts": ("long texts with an error flag", ""),
    "sim_seen": ("voice similarity, speakers seen in training", ""),
    "sim_unseen": ("voice similarity, unseen speakers (known engines, other speeds)", ""),
    "sim_gt_pair": ("similarity of two recordings of one speaker", ""),
    "sim_threshold": ("same-speaker threshold of the judge", ""),
    "rtf_total": ("real-time factor, whole chain", ""),
    "rtf_mouth": ("  of which the mouth", ""),
    "rtf_flow": ("  of which flow matching", ""),
    "rtf_hift": ("  of which the vocoder", ""),
    "ttfs_stream_s": ("time to first sound, streaming", "s"),
    "retrain_hours": ("retraining everything", "h"),
    "params_total": ("parameters, all modules", ""),
    "curation_bad_kept": ("curation: bad items kept", "%"),
    "curation_good_dropped": ("curation: good items dropped", "%"),
    "curation_duplicate_recall": ("curation: duplicates found", "%"),
    "curation_wrong_transcript_recall": ("curation: wrong transcripts found", "%"),
    "curation_boundary_error_s": ("curation: boundaries, mean error", "s"),
    "curation_padding_waste": ("curation: padding in training batches", "%"),
    "curation_audio_hours_per_hour_no_asr": ("curation: audio-hours an hour, 2 cores, no recogniser", ""),
}


def load_summary(scale: str, reports: Path = REPORTS) -> dict[str, dict]:
    """The flat headline figures; {} when nothing was measured yet."""
    path = reports / scale / "summary.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def number(entry: dict, unit: str) -> str:
    """A value with its interval, as text."""
    if entry.get("value") is None:
        return "not measured"
    factor = 100 if unit == "%" else 1

    def form(v: float) -> str:
        return f"{v * factor:,.1f}" if unit == "%" else f"{v:,.0f}" if abs(v) >= 1000 else f"{v:.3g}"

    ci = entry.get("ci95")
    spread = f" ({form(ci[0])} to {form(ci[1])})" if isinstance(ci, list) and len(ci) == 2 else ""
    return f"{form(entry['value'])}{' ' + unit if unit else ''}{spread}"


def summary_rows(scale: str, reports: Path = REPORTS) -> list[tuple[str, str, str, str]]:
    """(measure, value, n, source) of every headline; a missing one says so."""
    summary, rows = load_summary(scale, reports), []
    extra = {k: (k.replace("_", " "), "") for k in summary if k not in HEADLINES}
    for key, (name, unit) in {**HEADLINES, **extra}.items():
        entry = summary.get(key, {})
        rows.append((name, number(entry, unit), str(entry.get("n") or "-"), entry.get("source", "-")))
    return rows


def update_markers(path: Path, text: str) -> None:
    """Replace what stands between the `results` markers of a Markdown file."""
    old = path.read_text(encoding="utf-8")
    pattern = r"(<!-- results:begin[^>]*-->\n).*?(<!-- results:end -->)"
    if not re.search(pattern, old, flags=re.S):
        raise UserError(f"{path.name} has no `<!-- results:begin -->` ... `<!-- results:end -->` markers: put them back")
    path.write_text(re.sub(pattern, lambda m: f"{m[1]}{text}\n{m[2]}", old, flags=re.S), encoding="utf-8")


def read_runs(scale: str, reports: Path) -> list[tuple[Path, dict, dict]]:
    """(folder, metrics, provenance) of every page of a scale."""
    result = []
    for path in sorted((reports / scale).glob("*/provenance.json")):
        if not path.with_name("report.html").exists():
            continue  # numbers that a chapter reads, no page of their own
        metrics = path.with_name("metrics.json")
        found = json.loads(metrics.read_text(encoding="utf-8")) if metrics.exists() else {}
        result.append((path.parent, found, json.loads(path.read_text(encoding="utf-8"))))
    return result


def command_of(name: str, scale: str) -> str:
    """What remakes a report."""
    return f"omni reproduce --only {name[:2]} --scale {scale}" if name[:1].isdigit() else f"python -m omnilib.eval.{scale}"


def build_index(reports: Path = REPORTS, scale: str = "nano", readme: Path | None = None) -> None:
    """Write reports/index.html (one page, sounds inside) and reports/README.md; refresh the table of README.md."""
    runs, rows = read_runs(scale, reports), summary_rows(scale, reports)
    sounds = [(folder, s) for folder, metrics, _ in runs for s in metrics.get("sounds", []) if s.get("demo")]
    players = "".join(
        f'<figure><audio controls preload="none" src="{data_uri("audio/mpeg", (folder / s["file"]).read_bytes())}"></audio>'
        f"<figcaption>{html.escape(s['caption'])}</figcaption></figure>"
        for folder, s in sounds
    )
    summary = load_summary(scale, reports)
    cards = "".join(
        f'<div class="card"><b>{number({**summary[key], "ci95": None}, HEADLINES[key][1])}</b><span>{HEADLINES[key][0]}</span></div>'
        for key in ("wer_en_tts", "wer_en_gt", "zh_tts", "zh_gt", "long_wer_en", "sim_unseen", "rtf_total", "ttfs_stream_s", "params_total")
        if key in summary
    )
    links = "".join(
        f'<li><a href="{scale}/{folder.name}/report.html">{html.escape(folder.name.replace("_", " "))}</a> '
        + (
            f'<span class="failed">failed: {html.escape(p["error"])}</span>'
            if p["status"] != "ok"
            else f'<span class="soft">{len(m.get("metrics", {}))} metrics, {p["wall_seconds"]:.0f} s, commit {p["commit"][:8]}</span>'
        )
        + "</li>"
        for folder, m, p in runs
    )
    body = f"""<h1>A nano MGM-Omni mouth</h1>
<p>Text goes in, cloned speech comes out: the talking half of <a href="https://arxiv.org/abs/2509.25131">MGM-Omni</a> (text, reference voice
→ speech tokens → mel → wave), every module trained by this repository's own scripts on a two-core machine, through the same classes that
load the published 2B weights. The numbers say what a model of this size can and cannot do.</p>
<h2>Listen</h2>{players or '<p class="soft">No demo was rendered yet: run <code>make reproduce</code>.</p>'}
<h2>Headline figures</h2><div class="cards">{cards}</div>{html_table(("measure", f"{scale}", "n", "source"), rows)}
<p class="soft">Brackets: 95 % interval. Every value is read from reports/{scale}/summary.json, which <code>make reproduce</code> writes;
judges and decoding settings stand in the file named as source.</p>
<h2>Reports</h2><ul>{links or '<li class="soft">none yet</li>'}</ul>
"""
    reports.mkdir(parents=True, exist_ok=True)
    (reports / "index.html").write_text(page("omnilib: a nano MGM-Omni mouth", body), encoding="utf-8")
    table = markdown_table(("measure", scale, "n", "source"), rows)
    lines = [
        (
            f"[{f.name}]({scale}/{f.name}/report.html)",
            p["status"],
            len(m.get("metrics", {})),
            f"{p['wall_seconds']:.0f} s",
            f"`{command_of(f.name, scale)}`",
            p["commit"][:8],
        )
        for f, m, p in runs
    ]
    (reports / "README.md").write_text(
        f"# Results\n\nWritten by `omni report index`; `make reproduce` evaluates the committed checkpoints again and runs every chapter; "
        f"what a training run or a bench measured is read from its file. Open `index.html` for sounds.\n\n{table}\n\n"
        f"## Notebooks\n\n{markdown_table(('report', 'status', 'metrics', 'wall time', 'command', 'commit'), lines)}\n\n"
        "Tried, expected, happened, kept or dropped: `LOG.md`.\n",
        encoding="utf-8",
    )
    if readme is not None:
        update_markers(readme, table)
