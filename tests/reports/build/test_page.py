"""The page: it stands on its own, and what models wrote stays text."""

import html
import re
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
from project import MODEL_TEXT

from reports.build.page import Part, ReportError, compile_page, page_faults


class Elements(HTMLParser):
    """Elements with their attributes, and the text inside <td>."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag == "td":
            self.in_cell, self.cells = True, [*self.cells, ""]

    def handle_endtag(self, tag: str) -> None:
        self.in_cell = self.in_cell and tag != "td"

    def handle_data(self, data: str) -> None:
        if self.in_cell:
            self.cells[-1] += data


def test_page_stands_on_its_own(page: str) -> None:
    assert page_faults(page) == []
    elements = Elements(page).found
    assert ("html", {"lang": "ru"}) in elements
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert ("meta", {"http-equiv": "Content-Security-Policy", "content": policy}) in elements
    for _, attrs in elements:
        for key in ("src", "href"):
            assert attrs.get(key, "#").startswith(("#", "data:image/png;base64,"))
    assert not re.search(r"https?://(?!www\.w3\.org/1998/Math/MathML)", page)


def test_table_of_contents_resolves(page: str) -> None:
    elements = Elements(page).found
    ids = [attrs["id"] for _, attrs in elements if "id" in attrs]
    links = [attrs["href"][1:] for tag, attrs in elements if tag == "a"]
    assert len(ids) == len(set(ids))
    assert set(links) <= set(ids)
    top = [link for link in links if "-" not in link]
    assert top == ["summary", "method", "reward_model", "one"]
    assert "one-результаты" in links
    assert "method-результаты" in links


def test_model_text_stays_text(page: str) -> None:
    elements = Elements(page)
    assert MODEL_TEXT in elements.cells
    assert "script" not in {tag for tag, _ in elements.found}
    assert html.escape("Опыт <b>$x$</b>", quote=False) in page  # a title is text, too
    assert "Заготовка" not in page


def test_outputs_are_kept_and_code_is_not(page: str) -> None:
    images = [attrs for tag, attrs in Elements(page).found if tag == "img"]
    assert [image["alt"] for image in images] == ["Рисунок: Результаты", 'a "curve"']
    assert "reward from runs/reward_model/model" in page
    assert "<math" in page
    for absent in ("import html", "printed by the cell", "reward_model = "):
        assert absent not in page


@pytest.mark.parametrize(
    "fault",
    [
        '<img src="http://example.org/a.png">',
        '<a href="https://example.org">a</a>',
        '<a href="local.html">a</a>',
        "<script>1</script>",
        '<link rel="stylesheet" href="a.css">',
        "<style>p {background: url(a.png)}</style>",
        '<p style="background: url(//a)">',
        "<style>@import 'a.css';</style>",
        '<img src="data:image/png;base64,AA" onload="f()">',
        '<meta http-equiv="refresh" content="0; url=a">',
        '<p id="a"></p><p id="a"></p>',
        '<a href="#nowhere">a</a>',
        '<iframe src="data:text/html,a"></iframe>',
    ],
)
def test_faults_of_a_page_are_found(fault: str) -> None:
    assert len(page_faults(f"<html><body>{fault}</body></html>")) >= 1


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("No heading.", "its first line must be its heading"),
        ("# A\n\n[a](https://example.org)", "does not stand on its own"),
        ("# A\n\n$\\unknowncommand{x}$", "pandoc"),
    ],
)
def test_texts_that_make_no_page(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "a.md").write_text(text)
    with pytest.raises(ReportError, match=complaint):
        compile_page([Part("a", tmp_path / "a.md")], "T", "now", trial=False)


def test_markdown_left_open_does_not_swallow_outputs(tmp_path: Path) -> None:
    shown = nbformat.v4.new_output("display_data", {"text/html": "<p>shown</p>"})
    cells = [
        nbformat.v4.new_markdown_cell("# A\n\n```\nopen"),
        nbformat.v4.new_code_cell("1", outputs=[shown]),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "a.ipynb")
    with pytest.raises(ReportError, match="leaves something open"):
        compile_page([Part("a", tmp_path / "a.ipynb")], "T", "now", trial=False)


def test_html_in_markdown_is_text(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# A\n\n<script>f()</script>\n\nb <img src=x onerror=f()>")
    page = compile_page([Part("a", tmp_path / "a.md")], "T", "now", trial=False)
    assert "&lt;script&gt;" in page
    assert {"script", "img"}.isdisjoint(tag for tag, _ in Elements(page).found)
