"""Report pages: every chapter runs at `smoke`, and its page is whole, still, and fits a phone and a laptop."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import numpy as np
import pytest

from omnilib import diagrams, report
from omnilib.paths import NOTEBOOKS
from omnilib.report import html as pages
from tests import browser

CHAPTERS = sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))
WIDTHS = (390, 1366)
NETWORK = re.compile(
    r"""(?:src|srcset|poster|data|action)\s*=\s*["'](?:https?:)?//|url\(\s*["']?(?:https?:)?//|@import"""
)


class Reader(HTMLParser):
    """Tags of a page with their attributes."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def every(self, name: str) -> list[dict]:
        return [attributes for tag, attributes in self.tags if tag == name]


def check(text: str) -> Reader:
    """What holds for every page, without a browser."""
    reader = Reader(text)
    assert not reader.every("script") and not reader.every("iframe") and not reader.every("link")
    markup = re.sub(r"<pre.*?</pre>", "", re.sub(r"base64,[A-Za-z0-9+/=]+", "base64,", text), flags=re.S)
    assert not NETWORK.search(markup), NETWORK.search(markup)
    assert any(
        m.get("name") == "viewport" and "width=device-width" in m["content"] for m in reader.every("meta")
    )
    assert all(image.get("alt", "").strip() for image in reader.every("img")), "a picture without words"
    assert all(i["src"].startswith("data:") for kind in ("img", "audio") for i in reader.every(kind))
    ids = [a["id"] for _, a in reader.tags if "id" in a]
    assert len(ids) == len(set(ids)), "an id is used twice"
    targets = [a["href"][1:] for a in reader.every("a") if a.get("href", "").startswith("#")]
    assert set(targets) <= set(ids), "a link inside the page leads nowhere"
    return reader


def rendered(*cells, **more) -> str:
    notebook = nbformat.v4.new_notebook()
    notebook.cells = list(cells)
    return report.render(notebook, more.pop("title", "01_data_curation"), **more)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    if browser.executable() is None:
        pytest.skip(browser.MISSING)
    with browser.Browser(tmp_path_factory.mktemp("chromium")) as found:
        yield found


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    return tmp_path_factory.mktemp("reports")


@pytest.fixture(scope="module")
def chapter(reports):
    """`chapter(path)` -> report folder of a chapter at `smoke`; each runs once."""
    done: dict[Path, report.Outcome] = {}

    def run(path: Path) -> Path:
        if path not in done:
            done[path] = report.run_notebook(path, "smoke", reports, timeout=300)
        assert done[path].ok, done[path].error
        return reports / "smoke" / path.stem

    return run


def look(chromium: browser.Browser, page: Path) -> None:
    """A reader opens the page at both widths and nothing goes wrong."""
    for width in WIDTHS:
        visit = chromium.visit(page, width)
        assert visit.errors == [], f"{page} at {width} px"
        assert visit.requests == [], f"{page} at {width} px"
        assert visit.broken == [], f"{page} at {width} px"
        assert visit.overflow <= 0, f"{page} is {visit.overflow} px wider than a window of {width} px"


@pytest.mark.slow
@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_chapter_runs_at_smoke(path, chapter):
    folder = chapter(path)
    found = json.loads((folder / "metrics.json").read_text())
    assert found["paper"], "a chapter ends in the table `what the paper says vs what we measured`"
    assert json.loads((folder / "provenance.json").read_text())["status"] == "ok"


@pytest.mark.slow
@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_page_of_a_chapter_needs_no_script_and_no_network(path, chapter):
    text = (chapter(path) / "report.html").read_text(encoding="utf-8")
    reader = check(text)
    sections = [c.source for c in nbformat.read(path, 4).cells if c.cell_type == "markdown"]
    wanted = sum(len(re.findall(r"^## ", re.sub(r"```.*?```", "", s, flags=re.S), re.M)) for s in sections)
    listed = re.search(r'<details class="contents">.*?</details>', text, re.S)[0]
    assert listed.count("<li>") == wanted, "the list of contents names every section"
    folds = [d for d in reader.every("details") if d.get("class") == "code" and "open" in d]
    assert len(folds) >= sum(c.cell_type == "code" for c in nbformat.read(path, 4).cells), (
        "every code cell folds"
    )
    assert any("image/svg+xml" in i["src"] for i in reader.every("img")), "a chapter has a diagram"
    number = CHAPTERS.index(path)
    links = [a.get("href", "") for a in reader.every("a")]
    for neighbour in (*CHAPTERS[max(0, number - 1) : number], *CHAPTERS[number + 1 : number + 2]):
        assert f"../{neighbour.stem}/report.html" in links
    assert "Javascript Error" not in text and "jupyter.widget" not in text


@pytest.mark.slow
@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_chapter_opens_in_a_browser(path, chapter, chromium):
    look(chromium, chapter(path) / "report.html")


@pytest.mark.slow
def test_front_page_opens_in_a_browser(reports, chapter, chromium):
    chapter(CHAPTERS[0])  # so that there is a sound and a link
    report.build_index(reports, "smoke")
    check((reports / "index.html").read_text(encoding="utf-8"))
    look(chromium, reports / "index.html")


def test_wide_things_scroll_inside_the_page(tmp_path, chromium):
    wide = "$$ " + " + ".join(f"x_{{{i}}}" for i in range(80)) + " $$"
    table = report.html_table(tuple("abcdefghijkl"), [tuple(f"word{i}" * 4 for i in range(12))])
    code = nbformat.v4.new_code_cell("x = '" + "y" * 400 + "'")
    code.outputs = [nbformat.v4.new_output("stream", text="z" * 500)]
    drawing = nbformat.v4.new_markdown_cell(
        f"# {'word' * 60}\n`{'c' * 200}`\n\n{wide}\n\n{table}\n\n![m](diagrams/04_mouth.svg)"
    )
    page = tmp_path / "page.html"
    page.write_text(rendered(drawing, code), encoding="utf-8")
    look(chromium, page)


def test_browser_finds_what_is_wrong_with_a_page(tmp_path, chromium):
    page = tmp_path / "bad.html"
    body = '<div style="width:3000px">x</div><script>console.error("no");throw 1</script><img alt="gone" src="http://127.0.0.1:9/x.png">'
    page.write_text(pages.page("bad", body), encoding="utf-8")
    visit = chromium.visit(page, 390)
    assert visit.overflow > 2000 and len(visit.errors) >= 2
    assert visit.requests == ["http://127.0.0.1:9/x.png"] and visit.broken == ["gone"]


@pytest.mark.parametrize("name", diagrams.DRAWINGS)
def test_words_of_a_diagram_lie_inside_it(name, tmp_path, chromium):
    page = tmp_path / "diagram.html"
    page.write_text(f"<!doctype html><body>{diagrams.DRAWINGS[name]().svg()}</body>", encoding="utf-8")
    chromium.visit(page, 1366)
    boxes = chromium.ask(
        "[...document.querySelectorAll('text')].map(t => {let b = t.getBBox(); return [t.textContent, b.x, b.x + b.width, b.y + b.height]})"
    )
    height = diagrams.DRAWINGS[name]().height
    for words, left, right, bottom in boxes:
        assert left >= 4 and right <= diagrams.WIDTH - 4 and bottom <= height - 2, words


def test_diagram_files_are_those_of_the_code(tmp_path):
    for path in diagrams.write(tmp_path):
        assert path.read_text() == (diagrams.FOLDER / path.name).read_text(), (
            f"run `python -m omnilib.diagrams`: {path.name}"
        )
    assert {p.name for p in diagrams.FOLDER.iterdir()} == {p.name for p in tmp_path.iterdir()}


def test_diagrams_know_light_and_dark_and_have_a_title():
    for draw in diagrams.DRAWINGS.values():
        svg = draw().svg()
        assert "prefers-color-scheme:dark" in svg and "<title>" in svg and 'viewBox="0 0 420 ' in svg


def test_a_widget_becomes_a_sentence():
    cell = nbformat.v4.new_code_cell("box")
    view = {
        "application/vnd.jupyter.widget-view+json": {"model_id": "1"},
        "text/plain": "VBox(children=(Text(...),))",
    }
    cell.outputs = [nbformat.v4.new_output("display_data", data=view)]
    text = rendered(cell)
    check(text)
    assert "when the notebook is open" in text and "VBox" not in text


def test_headings_that_are_alike_get_links_of_their_own():
    text = rendered(nbformat.v4.new_markdown_cell("## Same & `code` $x$\n\n## Same & `code` $x$\n\n## 中文"))
    check(text)
    assert len(re.findall(r'<h2 id="', text)) == 3


def test_a_picture_from_elsewhere_is_not_fetched(tmp_path):
    markdown = "![far](http://example.org/a.png) ![out](../../README.md) ![other](../omnilib/x.svg)"
    text = rendered(nbformat.v4.new_markdown_cell(markdown))
    check(text)
    assert "[far]" in text and "[out]" in text and "<img" not in text


def test_progress_bars_leave_their_last_state_only():
    cell = nbformat.v4.new_code_cell("bar")
    cell.outputs = [
        nbformat.v4.new_output("stream", name="stderr", text=f"\rdone {n} %") for n in (1, 50, 100)
    ]
    text = rendered(cell)
    assert "done 100 %" in text and "done 1 %" not in text and "done 50 %" not in text


def test_first_and_last_chapter_have_one_neighbour():
    names = [p.stem for p in CHAPTERS]
    assert pages.neighbours_of(names[0]) == ("", names[1])
    assert pages.neighbours_of(names[-1]) == (names[-2], "")
    assert pages.neighbours_of("99_elsewhere") == ("", "")


def test_told_numbers_carry_their_range():
    assert report.told({"value": 0.132, "ci95": [0.119, 0.148]}, "%") == "13.2 % (yours may be 11.9 to 14.8)"
    assert report.told({"value": 0.132, "ci95": None}, "%") == "13.2 %"
    assert report.told({"value": 2.5, "ci95": [2, 3], "unit": "s"}) == "2.5 s (yours may be 2 to 3)"


def test_ranges_hold_the_value_and_narrow_with_more_samples():
    few, many = report.range_of_share(0.2, 20), report.range_of_share(0.2, 2000)
    assert few[0] < many[0] < 0.2 < many[1] < few[1]
    low, high = report.range_of_items([0.0, 1.0] * 50)
    assert low < 0.5 < high
    assert report.range_of_items([0.5]) is None, "one sentence says nothing about others"
    assert report.range_of_items([0.0, 1.0] * 50, [9.0, 1.0] * 50)[1] < 0.2, "heavy items count for more"


class FakeSpeaker:
    """Speaks a tone; a text `bad` is refused. Remembers whether the controls were off while it worked."""

    voices = {"a": {}, "b": {}}
    rate = 24000

    def __init__(self):
        self.said, self.busy = [], []

    def speak(self, text, voice, seed):
        from types import SimpleNamespace

        import torch

        from omnilib.errors import UserError

        self.busy.append((self.ui.button.disabled, self.ui.box.disabled, self.ui.button.description))
        if text == "bad":
            raise UserError("this cannot be spoken")
        if text == "crash":
            raise RuntimeError("broken")
        self.said.append((text, voice, seed))
        return SimpleNamespace(
            wave=torch.from_numpy(np.linspace(-1, 1, 2400, dtype=np.float32)),
            rate=24000,
            seconds=0.1,
            flagged=[],
        )


@pytest.fixture
def speakbox():
    speaker = FakeSpeaker()
    speaker.ui = report.SpeakBox(speaker, "hello", "a", seed=3)
    return speaker


def test_enter_and_the_button_both_speak(speakbox):
    ui = speakbox.ui
    ui.typed(ui.box, {"event": "submit"}, [])
    ui.typed(ui.box, {"event": "other"}, [])
    ui.menu.value = "b"
    ui.button.click()
    assert speakbox.said == [("hello", "a", 3), ("hello", "b", 3)]


def test_enter_reaches_the_box_as_a_message_of_the_text_field(speakbox):
    speakbox.ui.box._handle_custom_msg({"event": "submit"}, [])  # what the browser's Enter key arrives as
    assert len(speakbox.said) == 1


@pytest.mark.parametrize("text", ["hello", "bad", "crash"])
def test_controls_are_off_while_it_works_and_on_again_after(speakbox, text):
    ui = speakbox.ui
    ui.box.value = text
    try:
        ui.say()
    except RuntimeError:
        assert text == "crash"
    assert speakbox.busy == [(True, True, "speaking ...")]
    assert (ui.button.disabled, ui.box.disabled, ui.menu.disabled, ui.button.description) == (
        False,
        False,
        False,
        "speak",
    )
