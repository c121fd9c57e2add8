"""Reports as pages: self-contained HTML without scripts, equations as MathML, diagrams and sounds inside, tables."""

import base64
import html
import re
from pathlib import Path
from typing import Any

from omnilib.paths import NOTEBOOKS
from omnilib.provenance import scrub

STYLE = """
:root{--ink:#1c2430;--soft:#5b6675;--line:#e3e7ec;--paper:#fff;--tint:#f6f8fa;--accent:#0b6e6e}
@media(prefers-color-scheme:dark){:root{--ink:#e6eaf0;--soft:#9aa6b5;--line:#2c3440;--paper:#14181e;--tint:#1b2129;--accent:#5cc8c0}img[src^="data:image/png"]{background:#fff}}
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.6 system-ui,sans-serif}
main{max-width:880px;margin:0 auto;padding:2.5rem 1.2rem 5rem}h1{font-size:2rem;line-height:1.2;margin:.2em 0}h2{margin-top:2.2em}
a{color:var(--accent)}a.anchor-link{display:none}code,pre{font:13px/1.5 ui-monospace,Menlo,Consolas,monospace}p code,li code,td code{background:var(--tint);padding:.1em .3em}
pre{background:var(--tint);border:1px solid var(--line);border-radius:6px;padding:.7em 1em;overflow-x:auto;margin:.6em 0}
.prompt{display:none}.output_subarea pre{background:none;border:0;border-left:3px solid var(--line);border-radius:0;color:var(--soft)}.output_stderr pre{opacity:.7}
blockquote{margin:1em 0;padding:.1em 1.1em;border-left:4px solid var(--accent);background:var(--tint)}
table{border-collapse:collapse;margin:1em 0;font-size:14px;display:block;overflow-x:auto}th,td{border-bottom:1px solid var(--line);padding:.4em .8em;text-align:left;vertical-align:top}th{color:var(--soft);font-weight:600}
img{max-width:100%;height:auto}figure{margin:1.2em 0}figcaption{color:var(--soft);font-size:14px}audio{width:100%;max-width:560px}
figure{overflow-x:auto}@media(max-width:700px){figure>img{max-width:none}.output_stdout pre{white-space:pre-wrap;overflow-wrap:anywhere}}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(190px,1fr));gap:.8rem}.card{background:var(--tint);border:1px solid var(--line);border-radius:10px;padding:.8em 1em}
math[display=block]{display:block;overflow-x:auto;overflow-y:hidden;max-width:100%;padding:.3em 0}math{max-width:100%}
p,li,h1,h2,h3,figcaption,code{overflow-wrap:anywhere}th,td{overflow-wrap:normal}td code{overflow-wrap:break-word}img.diagram{display:block;width:100%;max-width:560px}
details{margin:.6em 0}summary{cursor:pointer;color:var(--soft);font-size:13px}details>ul{margin:.4em 0}nav.steps{display:flex;gap:1rem;flex-wrap:wrap;justify-content:space-between;font-size:14px;margin:.4em 0}
.card b{display:block;font-size:1.5rem}.card span{color:var(--soft);font-size:13px}.failed{color:#c0392b;font-weight:600}.soft{color:var(--soft);font-size:14px}
"""


def page(title: str, body: str, css: str = "") -> str:
    """One self-contained page: no script, no network."""
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1"><title>{html.escape(title)}</title>'
    return f'<!doctype html><html lang="en"><head>{head}<style>{STYLE}{css}</style></head><body><main>{body}</main></body></html>\n'


# nbconvert's page, with each code cell behind a line that opens and closes it (HTML alone, no script).
TEMPLATE = """{%- extends 'basic/index.html.j2' -%}
{% block input %}<details open class="code"><summary>code</summary>{{ super() }}</details>{% endblock input %}
"""
WIDGET = "application/vnd.jupyter.widget-view+json"
STATIC = (
    '<p class="soft">A control for typing stands here when the notebook is open (<code>make lab</code>).</p>'
)


def render(node: Any, title: str, error: str = "", neighbours: tuple[str, str] | None = None) -> str:
    """A notebook with its outputs as a page: no script, no network, no path of this machine.

    Equations become MathML, diagrams are put inside, widgets (they need a script) become a sentence.

    Args:
        node: the executed notebook; it is changed.
        neighbours: names of the previous and the next chapter, "" where there is none; None: those of `notebooks/`.
    """
    from nbconvert import HTMLExporter
    from nbconvert.preprocessors import CoalesceStreamsPreprocessor
    from pygments.formatters import HtmlFormatter

    for cell in node.cells:
        if cell.cell_type == "markdown":
            cell.source = math_to_mathml(cell.source)
        for output in cell.get("outputs", []):
            if WIDGET in output.get("data", {}):
                output["data"] = {"text/html": STATIC}
    node.metadata.pop("widgets", None)
    exporter = HTMLExporter(template_name="basic", raw_template=TEMPLATE)
    exporter.register_preprocessor(
        CoalesceStreamsPreprocessor(), enabled=True
    )  # of a progress bar its last state only
    body = inline_diagrams(name_ids(exporter.from_notebook_node(node)[0]))
    note = (
        f'<p class="failed">This run failed: {html.escape(error)}. What it made before is below.</p>'
        if error
        else ""
    )
    light, dark = (HtmlFormatter(style=s).get_style_defs(".highlight") for s in ("friendly", "native"))
    css = f"{light}\n@media(prefers-color-scheme:dark){{{dark}}}\n.highlight{{background:none}}"
    steps = steps_of(*(neighbours_of(title) if neighbours is None else neighbours))
    return scrub(page(title, f"{steps}{note}{contents(body)}{body}{steps}", css))


def neighbours_of(name: str, folder: Path = NOTEBOOKS) -> tuple[str, str]:
    """The chapters before and after one, "" where there is none."""
    names = sorted(p.stem for p in folder.glob("[0-9]*.ipynb"))
    if name not in names:
        return "", ""
    place = names.index(name)
    return names[place - 1] if place else "", names[place + 1] if place + 1 < len(names) else ""


def steps_of(before: str, after: str) -> str:
    """Links to the previous chapter, all reports and the next chapter."""

    def link(name: str, words: str) -> str:
        return (
            f'<a href="../{html.escape(name)}/report.html">{html.escape(words)}</a>'
            if name
            else "<span></span>"
        )

    first, last = link(before, f"← {before.replace('_', ' ')}"), link(after, f"{after.replace('_', ' ')} →")
    return f'<nav class="steps">{first}<a href="../../index.html">all reports</a>{last}</nav>'


def name_ids(body: str) -> str:
    """Headings get ids of plain letters, each used once, so that links to them work in every browser."""
    used: dict[str, int] = {}

    def rename(match: re.Match) -> str:
        words = html.unescape(re.sub(r"<[^>]+>", "", match[3])).rstrip("¶")
        name = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-") or "part"
        used[name] = used.get(name, 0) + 1
        name += f"-{used[name]}" if used[name] > 1 else ""
        return (
            f'<h{match[1]} id="{name}">{re.sub(r"<a class=.anchor-link.*?</a>", "", match[3])}</h{match[1]}>'
        )

    body = re.sub(
        r"(</?)ns0:|\sxmlns:ns0=\"[^\"]*\"", r"\1", body
    )  # nbconvert's prefix of equations in headings
    return re.sub(r'<h([1-6]) id="([^"]*)"[^>]*>(.*?)</h\1>', rename, body, flags=re.S)


def contents(body: str) -> str:
    """The list of a page's sections, behind a line that opens it; "" for a page without sections."""
    found = re.findall(r'<h2 id="([^"]+)">(.*?)</h2>', body, flags=re.S)
    links = "".join(f'<li><a href="#{name}">{words}</a></li>' for name, words in found)
    return f'<details class="contents"><summary>contents</summary><ul>{links}</ul></details>' if found else ""


def inline_diagrams(body: str, folder: Path = NOTEBOOKS) -> str:
    """Pictures that a chapter names (`![words](diagrams/x.svg)`) become part of the page; others are left out.

    A page fetches nothing: a picture outside `folder`, or on the network, is replaced by its words.
    """

    def replace(match: re.Match) -> str:
        alt, source = (re.search(rf'{key}="([^"]*)"', match[0]) for key in ("alt", "src"))
        words, source = alt[1] if alt else "", html.unescape(source[1]) if source else ""
        if source.startswith("data:"):
            return match[0]
        path = (folder / source).resolve()
        if path.suffix != ".svg" or not path.is_relative_to(folder.resolve()) or not path.is_file():
            return f'<em class="soft">[{words}]</em>'
        return f'<img class="diagram" alt="{words}" src="{data_uri("image/svg+xml", path.read_bytes())}">'

    return re.sub(r"<img\b[^>]*>", replace, body)


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
    cells = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(c))}</td>" for c in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{''.join(f'<th>{html.escape(h)}</th>' for h in head)}</tr></thead><tbody>{cells}</tbody></table>"


def markdown_table(head: tuple[str, ...], rows: list[tuple]) -> str:
    """A GitHub table."""
    lines = [
        "| " + " | ".join(str(c).replace("|", "\\|") for c in row) + " |"
        for row in [head, ("---",) * len(head), *rows]
    ]
    return "\n".join(lines)
