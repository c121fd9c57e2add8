"""From notebooks to reports/<scale>/<notebook>/: report.html, metrics.json, provenance.json, timings.json, figures/, audio/.

run.py        inside a notebook: `run = report.start(...)` collects numbers, figures and sounds
notebooks.py  outside: execute one headless (papermill) and stamp it
html.py       pages                 index.py   front page and README tables
headlines.py  names, units, speed   parameters.py  of a notebook, given as name=value
folders.py    replaced as a whole   compare.py     two runs side by side; one table and plot of a sweep
ranges.py     numbers with ranges   speakbox.py  the box of chapter 00      recorder.py  its microphone
askbox.py     the box of chapter 11   talkbox.py   the box of chapter 12

python -m omnilib.report index      rebuild reports/index.html, reports/README.md and README's results table
"""

from omnilib.report.askbox import AskBox
from omnilib.report.html import html_table, markdown_table, math_to_mathml, page, render, show
from omnilib.report.index import (
    HEADLINES,
    build_index,
    command_of,
    load_summary,
    number,
    summary_rows,
    update_markers,
)
from omnilib.report.notebooks import (
    Outcome,
    check_parameters,
    check_scale,
    first_words,
    list_notebooks,
    parts_needed,
    run_notebook,
    run_notebooks,
    with_parts,
)
from omnilib.report.ranges import range_of_items, range_of_share, told
from omnilib.report.run import AUDIO_RATE, VERDICTS, Run, encode_mp3, holds, paper_row, start
from omnilib.report.speakbox import SpeakBox
from omnilib.report.talkbox import TalkBox

__all__ = [
    "AUDIO_RATE",
    "AskBox",
    "HEADLINES",
    "Outcome",
    "Run",
    "SpeakBox",
    "TalkBox",
    "VERDICTS",
    "build_index",
    "check_parameters",
    "check_scale",
    "command_of",
    "encode_mp3",
    "first_words",
    "holds",
    "html_table",
    "list_notebooks",
    "load_summary",
    "markdown_table",
    "math_to_mathml",
    "number",
    "page",
    "paper_row",
    "parts_needed",
    "range_of_items",
    "range_of_share",
    "render",
    "run_notebook",
    "run_notebooks",
    "show",
    "start",
    "summary_rows",
    "told",
    "update_markers",
    "with_parts",
]
