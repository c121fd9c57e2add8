"""From notebooks to reports/<scale>/<notebook>/: report.html, metrics.json, provenance.json, figures/, audio/.

Two halves. Inside a notebook, `run = report.start(...)` collects numbers, figures and sounds. Outside, `run_notebook` executes
one headless and stamps it; a failing notebook or killed kernel is reported by name and the others go on.

    python -m omnilib.report index      rebuild reports/index.html, reports/README.md and README's results table
"""

import base64
import html
import io
import json
import re
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omnilib.errors import UserError
from omnilib.paths import NOTEBOOKS, REPORTS, ROOT
from omnilib.provenance import scrub, stamp, write_json

VERDICTS = ("reproduced", "trend holds", "differs", "not attempted")
AUDIO_RATE = 24000


# ---------------------------------------------------------------------------------------------------- inside a notebook
def start(name: str, scale: str, seed: int = 0, out_dir: str = "", **parameters: Any) -> "Run":
    """Begin a report: seeds everything, prints commit, device and versions, returns the collector.

    Args:
        name: notebook file name without .ipynb.
        out_dir: report folder; "" means runs/notebooks/<scale>/<name>, so that exploring does not touch `reports/`.
    """
    from omnilib.environment import device_model, versions
    from omnilib.provenance import git_state
    from omnilib.train.common import seed_everything

    seed_everything(seed)
    folder = ROOT / (out_dir or f"runs/notebooks/{scale}/{name}")  # an absolute out_dir wins
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(name, scale, folder, {"scale": scale, "seed": seed, **parameters})
    git, version = git_state(), versions()
    print(f"{name} · scale {scale} · seed {seed} · commit {git['commit'][:8]}{' + local changes' if git['dirty'] else ''}")
    print(f"{device_model()} · " + " · ".join(f"{k} {version[k]}" for k in ("python", "torch", "transformers")))
    run.write()
    return run


@dataclass
class Run:
    """What one notebook found; written to metrics.json at every addition."""

    name: str
    scale: str
    folder: Path
    parameters: dict
    settings: dict = field(default_factory=dict)
    metrics: dict[str, dict] = field(default_factory=dict)
    figures: list[dict] = field(default_factory=list)
    sounds: list[dict] = field(default_factory=list)
    paper: list[dict] = field(default_factory=list)
    started: float = field(default_factory=time.time)

    def write(self) -> None:
        keys = ("name", "scale", "settings", "metrics", "figures", "sounds", "paper")
        write_json(self.folder / "metrics.json", {k: getattr(self, k) for k in keys})

    def set(self, **settings: Any) -> None:
        """Record decoding, retry and judge settings: they are part of every number."""
        self.settings.update(settings)
        self.write()

    def metric(self, name: str, value: float, n: int, ci95: tuple[float, float] | None = None, unit: str = "", source: str = "") -> float:
        """Record one measured number with its sample count and 95 % interval; returns the value."""
        self.metrics[name] = {"value": float(value), "n": int(n), "ci95": [float(c) for c in ci95] if ci95 else None, "unit": unit}
        if source:
            self.metrics[name]["source"] = source
        self.write()
        return value

    def from_summary(self, *names: str) -> dict[str, float]:
        """Take headline figures that `make reproduce` measured (reports/<scale>/summary.json); absent ones are left out."""
        summary, found = load_summary(self.scale), {}
        for name in names:
            entry = summary.get(name)
            if entry and entry.get("value") is not None:
                ci95 = entry["ci95"] if isinstance(entry.get("ci95"), list) else None
                found[name] = self.metric(name, entry["value"], entry["n"] or 0, ci95, source=entry["source"])
        return found

    def figure(self, figure: Any, name: str, caption: str = "") -> None:
        """Save a matplotlib figure as figures/<name>.png and show it."""
        from matplotlib import pyplot

        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=100, bbox_inches="tight")
        pyplot.close(figure)
        self.keep("figures", f"{name}.png", buffer.getvalue(), caption)
        show(f'<figure><img alt="{html.escape(caption or name)}" src="{data_uri("image/png", buffer.getvalue())}">', caption)

    def audio(self, wave: Any, rate: int, name: str, caption: str = "", demo: bool = False) -> None:
        """Save a wave (T,) as audio/<name>.mp3 and show a player; `demo` puts it on the front page too."""
        data = encode_mp3(wave, rate)
        self.keep("sounds", f"{name}.mp3", data, caption, demo=demo)
        show(f'<figure><audio controls preload="none" src="{data_uri("audio/mpeg", data)}"></audio>', caption or name)

    def keep(self, kind: str, file: str, data: bytes, caption: str, **more: Any) -> None:
        """Write a file of the report and list it once."""
        folder = {"figures": "figures", "sounds": "audio"}[kind]
        path = self.folder / folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        items = [i for i in getattr(self, kind) if i["file"] != f"{folder}/{file}"]
        setattr(self, kind, [*items, {"file": f"{folder}/{file}", "caption": caption, **more}])
        self.write()

    def paper_table(self, rows: list[dict]) -> None:
        """Draw "what the paper says vs what we measured".

        Each row: claim, ref (table or section), paper (their value), metric (a name in metrics.json, or None), verdict, and
        optionally judge (judge and decoding) and why (required for `not attempted`). A number never comes from the row itself:
        without a recorded metric the row reads `not attempted`.
        """
        recorded = json.loads((self.folder / "metrics.json").read_text(encoding="utf-8"))["metrics"]
        self.paper = [paper_row(row, recorded, self.scale) for row in rows]
        self.write()
        head = ("claim (paper ref)", "paper", "measured", "scale · n", "judge / decoding", "verdict")
        cells = [
            (
                f"{r['claim']} ({r['ref']})",
                r["paper"],
                r["measured"],
                r["scale_n"],
                r["judge"],
                r["verdict"] + (f": {r['why']}" if r["why"] else ""),
            )
            for r in self.paper
        ]
        show(html_table(head, cells))

    def finish(self) -> None:
        """Write provenance.json and print what was recorded."""
        notebook = NOTEBOOKS / f"{self.name}.ipynb"
        files = {"notebook": notebook} if notebook.exists() else {}
        record = stamp(self.scale, self.parameters, self.settings, files, time.time() - self.started)
        write_json(self.folder / "provenance.json", {"status": "ok", **record})
        print(f"{len(self.metrics)} metrics, {len(self.figures)} figures, {len(self.sounds)} sounds")


def holds(trend: bool) -> str:
    """Verdict on a trend that a run below paper scale was looked at for."""
    return "trend holds" if trend else "differs"


def paper_row(row: dict, recorded: dict[str, dict], scale: str) -> dict:
    """Check one row and fill in its measured value.

    Raises:
        UserError: a verdict outside the list, `reproduced` below paper scale, or `not attempted` without a reason.
    """
    name, verdict, why = row.get("metric"), row["verdict"], row.get("why", "")
    if verdict not in VERDICTS:
        raise UserError(f"verdict '{verdict}' of '{row['claim']}' is not one of: {', '.join(VERDICTS)}")
    if verdict == "reproduced" and scale != "paper":
        raise UserError(f"'{row['claim']}': a {scale} run never earns `reproduced`; say `trend holds` or `differs`")
    entry = recorded.get(name) if name else None
    if entry is None and verdict != "not attempted":
        verdict, why = "not attempted", f"no metric '{name}' was recorded in this run"
    if verdict == "not attempted" and not why:
        raise UserError(f"'{row['claim']}': `not attempted` needs a reason in `why`")
    measured, count = "-", "-"
    if entry is not None:
        ci = entry.get("ci95")
        measured = (
            f"{entry['value']:.4g}" + (f" ({ci[0]:.3g} to {ci[1]:.3g})" if ci else "") + (f" {entry['unit']}" if entry.get("unit") else "")
        )
        count = f"{scale} · {entry['n']}"
    keep = {k: str(row.get(k, "")) for k in ("claim", "ref", "paper", "judge")}
    return {**keep, "metric": name, "measured": measured, "scale_n": count, "verdict": verdict, "why": why}


def encode_mp3(wave: Any, rate: int) -> bytes:
    """A mono wave (T,) as MP3 at 24 kHz: every browser plays it, and it is 8 times smaller than WAV."""
    import numpy
    import soundfile
    import soxr

    samples = numpy.asarray(wave, dtype=numpy.float32).reshape(-1)
    if rate != AUDIO_RATE:
        samples = soxr.resample(samples, rate, AUDIO_RATE)
    buffer = io.BytesIO()
    soundfile.write(buffer, samples.clip(-1, 1), AUDIO_RATE, format="MP3", subtype="MPEG_LAYER_III")
    return buffer.getvalue()


def data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def show(markup: str, caption: str = "") -> None:
    """Display HTML in a notebook, with a caption."""
    from IPython.display import HTML, display

    if markup.startswith("<figure>"):
        markup += f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    display(HTML(markup))


def html_table(head: tuple[str, ...], rows: list[tuple]) -> str:
    """A plain HTML table."""
    cells = "".join("<tr>" + "".join(f"<td>{html.escape(str(c))}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{''.join(f'<th>{html.escape(h)}</th>' for h in head)}</tr></thead><tbody>{cells}</tbody></table>"


# ---------------------------------------------------------------------------------------------------- running notebooks
def list_notebooks(only: str | None = None, folder: Path = NOTEBOOKS) -> list[Path]:
    """Notebooks in order, or those whose name starts with `only`.

    Raises:
        UserError: nothing matches.
    """
    every = sorted(folder.glob("[0-9]*.ipynb"))
    chosen = [p for p in every if p.name.startswith(only or "")]
    if not chosen:
        raise UserError(f"no notebook starts with '{only}'; there are: {', '.join(p.stem for p in every)}")
    return chosen


def check_parameters(notebook: Path, parameters: dict) -> None:
    """Papermill only warns on an unknown parameter; we stop.

    Raises:
        UserError: no parameters cell, or a name it does not have.
    """
    import papermill

    known = papermill.inspect_notebook(str(notebook))
    unknown = sorted(set(parameters) - set(known))
    if not known:
        raise UserError(f"{notebook.name} has no cell tagged `parameters`: tag the first code cell")
    if unknown:
        raise UserError(f"{notebook.name} has no parameter {', '.join(unknown)}; it has: {', '.join(sorted(known))}")


@dataclass
class Outcome:
    """How one notebook went."""

    name: str
    ok: bool
    seconds: float
    error: str = ""


def run_notebook(notebook: Path, scale: str, reports: Path = REPORTS, parameters: dict | None = None, timeout: int = 1500) -> Outcome:
    """Execute one notebook headless into `reports/<scale>/<name>/`; what it had made before a failure is kept.

    Raises:
        UserError: unknown parameter (checked before anything runs).
    """
    import nbformat
    import papermill

    target = (reports / scale / notebook.stem).resolve()
    out_dir = target.relative_to(ROOT).as_posix() if target.is_relative_to(ROOT) else str(target)
    values = {"scale": scale, "out_dir": out_dir, **(parameters or {})}
    check_parameters(notebook, values)
    shutil.rmtree(target, ignore_errors=True)  # an old number must not survive beside a new failure
    target.mkdir(parents=True)
    executed = target / "executed.ipynb"
    started, error = time.time(), ""
    try:
        papermill.execute_notebook(
            str(notebook), str(executed), values, cwd=str(ROOT), kernel_name="python3", progress_bar=False, execution_timeout=timeout
        )
    except Exception as problem:  # whatever stopped this notebook, the others go on
        error = first_words(problem)
    seconds = time.time() - started
    node = nbformat.read(executed if executed.exists() else notebook, as_version=4)
    (target / "report.html").write_text(render(node, notebook.stem, error), encoding="utf-8")
    executed.unlink(missing_ok=True)
    metrics = target / "metrics.json"
    settings = json.loads(metrics.read_text(encoding="utf-8"))["settings"] if metrics.exists() else {}
    record = stamp(scale, values, settings, {"notebook": notebook}, seconds)
    write_json(target / "provenance.json", {"status": "failed" if error else "ok", "error": scrub(error), **record})
    return Outcome(notebook.stem, not error, seconds, scrub(error))


def first_words(problem: Exception) -> str:
    """One line: the error a cell raised, or what stopped the kernel."""
    name = getattr(problem, "ename", type(problem).__name__)
    lines = str(getattr(problem, "evalue", problem)).strip().splitlines()
    return f"{name}: {lines[0] if lines else ''}"


def run_notebooks(notebooks: list[Path], scale: str, reports: Path = REPORTS, parameters: dict | None = None) -> list[Outcome]:
    """Execute notebooks one after another, showing progress; failures do not stop the rest."""
    for notebook in notebooks:
        check_parameters(notebook, {"scale": scale, "out_dir": "", **(parameters or {})})
    outcomes = []
    for number, notebook in enumerate(notebooks, 1):
        print(f"[{number}/{len(notebooks)}] {notebook.stem} ...", end=" ", flush=True)
        outcomes.append(run_notebook(notebook, scale, reports, parameters))
        last = outcomes[-1]
        print(f"{'ok' if last.ok else 'FAILED'} in {last.seconds:.0f} s {last.error}", flush=True)
    return outcomes


# ---------------------------------------------------------------------------------------------------- HTML
STYLE = """
:root{--ink:#1c2430;--soft:#5b6675;--line:#e3e7ec;--paper:#fff;--tint:#f6f8fa;--accent:#0b6e6e}
@media(prefers-color-scheme:dark){:root{--ink:#e6eaf0;--soft:#9aa6b5;--line:#2c3440;--paper:#14181e;--tint:#1b2129;--accent:#5cc8c0}img{background:#fff}}
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.6 system-ui,sans-serif}
main{max-width:880px;margin:0 auto;padding:2.5rem 1.2rem 5rem}h1{font-size:2rem;line-height:1.2;margin:.2em 0}h2{margin-top:2.2em}
a{color:var(--accent)}a.anchor-link{display:none}code,pre{font:13px/1.5 ui-monospace,Menlo,Consolas,monospace}p code,li code,td code{background:var(--tint);padding:.1em .3em}
pre{background:var(--tint);border:1px solid var(--line);border-radius:6px;padding:.7em 1em;overflow-x:auto;margin:.6em 0}
.prompt{display:none}.output_subarea pre{background:none;border:0;border-left:3px solid var(--line);border-radius:0;color:var(--soft)}.output_stderr pre{opacity:.7}
blockquote{margin:1em 0;padding:.1em 1.1em;border-left:4px solid var(--accent);background:var(--tint)}
table{border-collapse:collapse;margin:1em 0;font-size:14px;display:block;overflow-x:auto}th,td{border-bottom:1px solid var(--line);padding:.4em .8em;text-align:left;vertical-align:top}th{color:var(--soft);font-weight:600}
img{max-width:100%;height:auto}figure{margin:1.2em 0}figcaption{color:var(--soft);font-size:14px}audio{width:100%;max-width:560px}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(190px,1fr));gap:.8rem}.card{background:var(--tint);border:1px solid var(--line);border-radius:10px;padding:.8em 1em}
.card b{display:block;font-size:1.5rem}.card span{color:var(--soft);font-size:13px}.failed{color:#c0392b;font-weight:600}.soft{color:var(--soft);font-size:14px}
"""


def page(title: str, body: str, css: str = "") -> str:
    """One self-contained page: no script, no network."""
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1"><title>{html.escape(title)}</title>'
    return f'<!doctype html><html lang="en"><head>{head}<style>{STYLE}{css}</style></head><body><main>{body}</main></body></html>\n'


def render(node: Any, title: str, error: str = "") -> str:
    """A notebook with its outputs as a page; equations become MathML, paths of this machine disappear."""
    from nbconvert import HTMLExporter
    from pygments.formatters import HtmlFormatter

    for cell in node.cells:
        if cell.cell_type == "markdown":
            cell.source = math_to_mathml(cell.source)
    body, _ = HTMLExporter(template_name="basic").from_notebook_node(node)
    note = f'<p class="failed">This run failed: {html.escape(error)}. What it made before is below.</p>' if error else ""
    light, dark = (HtmlFormatter(style=s).get_style_defs(".highlight") for s in ("friendly", "native"))
    css = f"{light}\n@media(prefers-color-scheme:dark){{{dark}}}\n.highlight{{background:none}}"
    return scrub(page(title, f'<p class="soft"><a href="../../index.html">all reports</a></p>{note}{body}', css))


def math_to_mathml(source: str) -> str:
    """Turn $..$ and $$..$$ outside code into MathML, so that reports need no script and no network."""
    from latex2mathml.converter import convert

    def replace(match: re.Match) -> str:
        if match["code"]:
            return match["code"]
        if match["block"]:
            return convert(match["block"].strip(), display="block").replace("\n", "")
        return convert(match["inline"])

    pattern = r"(?P<code>```.*?```|`[^`\n]*`)|\$\$(?P<block>.+?)\$\$|(?<![\\$\w])\$(?P<inline>[^\s$`](?:[^$\n`]*[^\s$`])?)\$(?!\d)"
    return re.sub(pattern, replace, source, flags=re.S)


# ---------------------------------------------------------------------------------------------------- index and tables
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


def markdown_table(head: tuple[str, ...], rows: list[tuple]) -> str:
    """A GitHub table."""
    lines = ["| " + " | ".join(str(c).replace("|", "\\|") for c in row) + " |" for row in [head, ("---",) * len(head), *rows]]
    return "\n".join(lines)


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
        f"# Results\n\nWritten by `omni report index`; `make reproduce` measures everything anew. Open `index.html` for sounds.\n\n{table}\n\n"
        f"## Notebooks\n\n{markdown_table(('report', 'status', 'metrics', 'wall time', 'command', 'commit'), lines)}\n\n"
        "Tried, expected, happened, kept or dropped: `LOG.md`.\n",
        encoding="utf-8",
    )
    if readme is not None:
        update_markers(readme, table)


if __name__ == "__main__":
    if sys.argv[1:] != ["index"]:
        raise SystemExit(__doc__)
    build_index(readme=ROOT / "README.md")
