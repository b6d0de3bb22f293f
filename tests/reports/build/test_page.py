"""The page: it stands on its own, and what models wrote stays text."""

import base64
import html
import re
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
from project import MODEL_TEXT

from reports.build.faults import ReportError, page_faults
from reports.build.page import About, Part, compile_page
from reports.build.references import Work

ABOUT = About("T", "now")


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
            assert attrs.get(key, "#").startswith(("#", "data:text/csv;charset=utf-8;base64,"))
    assert not re.search(r"https?://(?!www\.w3\.org/(?:1998/Math/MathML|2000/svg))", page)


def test_table_of_contents_resolves(page: str) -> None:
    elements = Elements(page).found
    ids = [attrs["id"] for _, attrs in elements if "id" in attrs]
    hrefs = [attrs["href"] or "" for tag, attrs in elements if tag == "a"]
    links = [href[1:] for href in hrefs if href.startswith("#")]
    assert len(ids) == len(set(ids))
    assert set(links) <= set(ids)
    contents = page.partition("<nav")[2].partition("</nav>")[0]
    assert re.findall('href="#([^"]+)"', contents) == ["summary", "method", "reward_model", "one"]
    assert "method-результаты" in ids
    main = page.partition("<main")[2]
    assert main.index('<section id="reward_model">') < main.index("<details class=appendix>")
    assert "<details><summary>Ещё</summary>" in main


def test_figures_and_tables_have_numbers_captions_and_their_data(page: str) -> None:
    figure = page.partition('id="figure-summary-line"')[2].partition("</figure>")[0]
    assert (
        "<strong>Рис.\u00a01.</strong> Прямая &lt;b&gt;линия&lt;/b&gt;; см. <a href="
    )  # summary">начало" in figure
    assert "notebooks/summary.ipynb" in figure
    (data,) = re.findall(r'download="summary-line.csv" href="data:text/csv[^,]*,([^"]+)"', figure)
    assert base64.b64decode(data) == b"x\n1.5\n"
    assert '<a href="#figure-summary-line">рис.\u00a01</a>' in page
    assert '<a href="#table-one-one">табл.\u00a01</a>' in page
    assert "<summary><strong>Табл.\u00a01.</strong> Таблица опыта.</summary>" in page


def written(folder: Path, text: str) -> list[Part]:
    (folder / "a.md").write_text(text, encoding="utf-8")
    return [Part("a", folder / "a.md")]


def test_a_reference_to_nothing_stops_the_build(tmp_path: Path) -> None:
    parts = written(tmp_path, "# A\n\nСм. [@b:c], [@a].")
    with pytest.raises(ReportError, match=r"\[@b:c\] refers to nothing"):
        compile_page(parts, ABOUT)
    page = compile_page(parts, ABOUT, left_out=["b"])
    assert "См. [нет в пробном запуске]" in page
    assert '<a href="#a">начало отчёта</a>' in page


def test_a_label_that_is_there_twice_stops_the_build(tmp_path: Path) -> None:
    (tmp_path / "d.svg").write_text("<svg></svg>")
    drawn = "![Рисунок](d.svg)"
    compile_page(written(tmp_path, f"# A\n\n{drawn}"), ABOUT)
    with pytest.raises(ReportError, match="is there twice"):
        compile_page(written(tmp_path, f"# A\n\n{drawn}\n\n{drawn}"), ABOUT)


def test_works_are_numbered_and_are_all_that_leads_outside(tmp_path: Path) -> None:
    works = {
        "x": Work("Икс.", "https://example.org/x"),
        "y": Work("Игрек.", "https://example.org/y"),
    }
    part = Part("bibliography", written(tmp_path, "# A\n\nКак у [@y].")[0].source)
    page = compile_page([part], ABOUT, works)
    assert '<a href="#work-y">[2]</a>' in page
    assert '<a href="https://example.org/x" rel="noreferrer">' in page
    with pytest.raises(ReportError, match="does not stand on its own"):
        compile_page(written(tmp_path, "# A\n\n[a](https://example.org/z)"), ABOUT, works)


def test_a_decimal_number_is_one_number(tmp_path: Path) -> None:
    page = compile_page(written(tmp_path, "# A\n\n$\\mu = 0{,}01$, $f(1, 2)$"), ABOUT)
    assert "<mn>0,01</mn>" in page
    assert "<mn>1</mn>" in page


def test_model_text_stays_text(page: str) -> None:
    elements = Elements(page)
    assert MODEL_TEXT in elements.cells
    assert "script" not in {tag for tag, _ in elements.found}
    assert html.escape("Опыт <b>$x$</b>", quote=False) in page  # a title is text, too
    assert "Заготовка" not in page


def test_outputs_are_kept_and_code_is_not(page: str) -> None:
    assert "img" not in {tag for tag, _ in Elements(page).found}
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
        '<a href="data:text/html;base64,AA" download="a">a</a>',
        '<a href="data:text/csv;charset=utf-8;base64,AA">a</a>',
        '<svg><use href="a.svg#b"/></svg>',
        '<svg><path fill="url(http://example.org)"/></svg>',
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
        compile_page([Part("a", tmp_path / "a.md")], ABOUT)


def test_markdown_left_open_does_not_swallow_outputs(tmp_path: Path) -> None:
    shown = nbformat.v4.new_output("display_data", {"text/html": "<p>shown</p>"})
    cells = [
        nbformat.v4.new_markdown_cell("# A\n\n```\nopen"),
        nbformat.v4.new_code_cell("1", outputs=[shown]),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "a.ipynb")
    with pytest.raises(ReportError, match="leaves something open"):
        compile_page([Part("a", tmp_path / "a.ipynb")], ABOUT)


def test_html_in_markdown_is_text(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# A\n\n<script>f()</script>\n\nb <img src=x onerror=f()>")
    page = compile_page([Part("a", tmp_path / "a.md")], ABOUT)
    assert "&lt;script&gt;" in page
    assert {"script", "img"}.isdisjoint(tag for tag, _ in Elements(page).found)
