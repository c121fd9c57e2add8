"""Reports as pages: self-contained HTML, equations as MathML, tables."""

import base64
import html
import re
from typing import Any

from omnilib.provenance import scrub

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


def markdown_table(head: tuple[str, ...], rows: list[tuple]) -> str:
    """A GitHub table."""
    lines = ["| " + " | ".join(str(c).replace("|", "\\|") for c in row) + " |" for row in [head, ("---",) * len(head), *rows]]
    return "\n".join(lines)
