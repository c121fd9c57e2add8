"""The front page reports/index.html, reports/README.md and the results table of README.md."""

import html
import re
from pathlib import Path

from omnilib.errors import UserError
from omnilib.paths import REPORTS
from omnilib.provenance import commit_of, read_stamp, scrub, write_text
from omnilib.report import sources
from omnilib.report.folders import restore
from omnilib.report.front_table import front_tables
from omnilib.report.headlines import (
    EVERYDAY,
    HEADLINES,
    is_timing,
    load_summary,
    measure_of,
    number,
    read_metrics,
    summary_rows,
    unit_of,
)
from omnilib.report.html import data_uri, html_table, markdown_table, page

__all__ = [
    "HEADLINES",
    "build_index",
    "command_of",
    "load_summary",
    "number",
    "summary_rows",
    "update_markers",
]

HEAD = ("counted in", "n", "source")
PAPER_HEAD = ("claim (paper ref)", "paper", "measured", "scale · n", "verdict", "holds when")
CARDS = (
    *("wer_everyday_en_tts", "wer_everyday_en_gt", "zh_everyday_tts", "zh_everyday_gt", "clone_nearest"),
    *("wer_en_tts", "wer_en_gt", "wer_en_open_tts", "zh_tts", "zh_gt", "zh_open_tts", "long_wer_en"),
    *("sim_unseen", "rtf_total", "ttfs_stream_s", "params_total"),
)
MAY_CHANGE = """`make reproduce` on another machine, or on another day, may change these lines and no other:

- every `timings.json` (date, device, wall seconds, figures of speed), and what is drawn from it: {speed};
- `commit` and `dirty` of every `provenance.json`, and `versions` where other packages are installed;
- on a notebook's page: the two lines under its first cell of code (commit, device), its last line, what it measures or draws of speed;
- here and in `README.md`: rows counted in seconds of work or seconds, wall time, commit.

A processor of another family adds in another order: the last bits of a sound or picture may change. With eight-bit arithmetic the judge
of the evaluation may then hear some 2 % of the words otherwise (`omni verify` knows the tolerance), and `eval/` changes too.
"""


def update_markers(path: Path, text: str) -> None:
    """Replace what stands between the `results` markers of a Markdown file.

    Raises:
        UserError: no markers.
    """
    write_text(path, with_markers(path, text))


def with_markers(path: Path, text: str) -> str:
    """The Markdown file with `text` between its `results` markers."""
    old = path.read_text(encoding="utf-8")
    pattern = r"(<!-- results:begin[^>]*-->\n).*?(<!-- results:end -->)"
    if not re.search(pattern, old, flags=re.S):
        raise UserError(
            f"{path.name} has no `<!-- results:begin -->` ... `<!-- results:end -->` markers: put them back"
        )
    return re.sub(pattern, lambda m: f"{m[1]}{text}\n{m[2]}", old, flags=re.S)


def read_runs(scale: str, reports: Path) -> list[tuple[Path, dict, dict]]:
    """(folder, metrics, stamp) of every page of a scale.

    Raises:
        DataError: damaged file.
    """
    restore(reports / scale)
    folders = [p.parent for p in sorted((reports / scale).glob("[!.]*/provenance.json"))]
    # without a page: numbers that a chapter reads
    return [
        (folder, read_metrics(folder), read_stamp(folder))
        for folder in folders
        if (folder / "report.html").exists()
    ]


def command_of(name: str, scale: str) -> str:
    """What remakes a report."""
    return (
        f"omni reproduce --only {name[:2]} --scale {scale}"
        if name[:1].isdigit()
        else f"python -m omnilib.eval.{scale}"
    )


def claim_rows(runs: list[tuple[Path, dict, dict]], scale: str) -> list[tuple[str, ...]]:
    """Every claim of the paper that a chapter looked at, with the rule of its verdict."""
    rows = []
    for _, metrics, _ in runs:
        for row in metrics["paper"]:
            entry = metrics["metrics"].get(row["metric"])
            shown = measured(row, entry) if entry else "-"
            count = f"{scale} · {entry['n']}" if entry else "-"
            verdict = row["verdict"] + (f": {row['why']}" if row.get("why") else "")
            rows.append(
                (
                    f"{row['claim']} ({row['ref']})",
                    row["paper"],
                    shown,
                    count,
                    verdict,
                    row.get("rule") or rule_of(row),
                )
            )
    return rows


def measured(row: dict, entry: dict) -> str:
    """A measured figure as a cell: value, unit, interval, and which measure it is."""
    return f"{number(entry, unit_of(row['metric'], row.get('unit') or entry.get('unit', '')))}: {measure_of(row['metric'])}"


def rule_of(row: dict) -> str:
    """The rule behind a verdict where its row states none: our aim, or the code that decides it."""
    if row["verdict"] == "not attempted":
        return "-"
    aim = str(row["paper"]).removeprefix("our aim ")
    return aim if aim != row["paper"] else f"as the last cells of the chapter decide: {row['claim']}"


def build_index(reports: Path = REPORTS, scale: str = "nano", readme: Path | None = None) -> None:
    """Write reports/index.html (one page, sounds inside) and reports/README.md; refresh the table of README.md.

    Everything is read and drawn first; then each file is replaced as a whole.

    Raises:
        UserError: nothing was measured at this scale, a damaged file, a README without markers, or a folder that cannot be written.
    """
    try:
        for path, text in front_pages(reports, scale, readme).items():
            write_text(path, text)
    except OSError as error:
        raise UserError(
            f"cannot write {scrub(str(error.filename or reports))}: {error.strerror}; the pages stay as they were"
        ) from None


def front_pages(reports: Path, scale: str, readme: Path | None = None) -> dict[Path, str]:
    """{path: text} of everything that `build_index` writes."""
    from omnilib.report import artifact

    runs, summary = read_runs(scale, reports), load_summary(scale, reports)
    if not runs and not summary:
        where = scrub(str(reports / scale))
        raise UserError(
            f"nothing was measured at scale '{scale}': {where} has no report; run `omni reproduce --scale {scale}` first"
        )
    if readme is not None and (scale == "smoke" or not summary):
        raise UserError(
            f"README's table shows measured figures, and {scrub(str(reports))}/{scale}/summary.json has none"
        )
    rows = summary_rows(scale, reports)
    table = markdown_table(("measure", scale, *HEAD), rows)
    pages = {
        reports / "index.html": index_page(scale, reports, runs, summary, rows),
        reports / "README.md": readme_page(scale, reports, runs, summary, table),
    }
    if readme:
        pages[readme] = with_markers(readme, front_tables(scale, reports))
        if (claims := readme.with_name("ARTIFACT.md")).is_file():
            pages[claims] = with_markers(claims, artifact.table(scale, reports))
    return pages


def index_page(
    scale: str,
    reports: Path,
    runs: list[tuple[Path, dict, dict]],
    summary: dict[str, dict],
    rows: list[tuple],
) -> str:
    """The front page: sounds, headline figures, claims, links."""
    sounds = [(folder, s) for folder, metrics, _ in runs for s in metrics.get("sounds", []) if s.get("demo")]
    players = "".join(
        f'<figure><audio controls preload="none" src="{data_uri("audio/mpeg", (folder / s["file"]).read_bytes())}"></audio>'
        f"<figcaption>{html.escape(s['caption'])}</figcaption></figure>"
        for folder, s in sounds
    )
    cards = "".join(
        f'<div class="card"><b>{number({**summary[key], "ci95": None}, HEADLINES[key][1])}</b>'
        f"<span>{HEADLINES[key][0]}, {HEADLINES[key][2]}</span></div>"
        for key in CARDS
        if key in summary and EVERYDAY.get(key) not in summary
    )
    links = "".join(
        f'<li><a href="{scale}/{folder.name}/report.html">{html.escape(folder.name.replace("_", " "))}</a> '
        + (
            f'<span class="failed">failed: {html.escape(p.get("error", ""))}</span>'
            if p.get("status") != "ok"
            else f'<span class="soft">{len(m["metrics"])} metrics, {p.get("wall_seconds", 0):.0f} s, commit {commit_of(p)}</span>'
        )
        + "</li>"
        for folder, m, p in runs
    )
    claims = claim_rows(runs, scale)
    body = f"""<h1>A nano MGM-Omni mouth</h1>
<p>Text goes in, cloned speech comes out: the talking half of <a href="https://arxiv.org/abs/2509.25131">MGM-Omni</a> (text, reference voice
→ speech tokens → mel → wave), every module trained by this repository's own scripts on a two-core machine, through the same classes that
load the published 2B weights. The numbers say what a model of this size can and cannot do.</p>
<h2>Listen</h2>{players or '<p class="soft">No demo was rendered yet: run <code>make reproduce</code>.</p>'}
<h2>Headline figures</h2><div class="cards">{cards}</div>{html_table(("measure", scale, *HEAD), rows)}
<p class="soft">Brackets: 95 % interval. Shares are in percent, lower is better for errors; a similarity is a cosine between 0 and 1 of the
speaker judge, higher is closer. Every value is read from reports/{scale}/summary.json and timings.json, which <code>make reproduce</code>
writes; judges and decoding settings stand in the file named as source.</p>
<h2>What the paper says, what we measured</h2>{html_table(PAPER_HEAD, claims) if claims else '<p class="soft">none yet</p>'}
<p class="soft">Trend holds: a smaller setting, and the rule in the last column is met. Differs: it is not. Another test set, another
judge and a model of another size stand behind the two values of a row; only the direction is compared.</p>
{older_section(scale, reports)}<h2>Reports</h2><ul>{links or '<li class="soft">none yet</li>'}</ul>
"""
    return page("omnilib: a nano MGM-Omni mouth", body)


OLDER = "Figures older than their code"
OLDER_HEAD = ("figures", "since", "why they are kept")


def older_section(scale: str, reports: Path) -> str:
    """Results that are kept although their code or data changed, as HTML; "" when there are none."""
    rows = sources.notes(reports, scale)
    return f"<h2>{OLDER}</h2>{html_table(OLDER_HEAD, rows)}\n" if rows else ""


def older_text(scale: str, reports: Path) -> str:
    """The same as Markdown."""
    rows = sources.notes(reports, scale)
    return f"## {OLDER}\n\n{markdown_table(OLDER_HEAD, rows)}\n\n" if rows else ""


def readme_page(
    scale: str, reports: Path, runs: list[tuple[Path, dict, dict]], summary: dict[str, dict], table: str
) -> str:
    """reports/README.md: the table, the notebooks, and which lines another machine may change."""
    lines = [
        (
            f"[{f.name}]({scale}/{f.name}/report.html)",
            p.get("status", "-"),
            len(m["metrics"]),
            f"{p.get('wall_seconds', 0):.0f} s",
            f"`{command_of(f.name, scale)}`",
            commit_of(p),
        )
        for f, m, p in runs
    ]
    figures = {name: entry for _, m, _ in runs for name, entry in m["metrics"].items()} | summary
    speed = sorted(f"`{name}`" for name, entry in figures.items() if is_timing(name, entry))
    drawn = [f"`{f.name}/{i['file']}`" for f, m, _ in runs for i in m.get("figures", []) if i.get("timing")]
    return (
        "# Results\n\nWritten by `omni report`; `make reproduce` evaluates the committed checkpoints again and runs every chapter; what a "
        f"training run or a bench measured is read from its file. Open `index.html` for sounds.\n\n{table}\n\n"
        "Brackets: 95 % interval. Shares are in percent; a similarity is a cosine between 0 and 1.\n\n"
        f"## Notebooks\n\n{markdown_table(('report', 'status', 'metrics', 'wall time', 'command', 'commit'), lines)}\n\n"
        f"{older_text(scale, reports)}"
        f"## What may change\n\n{MAY_CHANGE.format(speed=', '.join(speed + drawn) or 'nothing')}\n"
        "Tried, expected, happened, kept or dropped: `LOG.md`.\n"
    )
