"""The page: executed notebooks and texts as one HTML file that needs nothing outside itself.

Code is dropped; its figures, tables and Markdown are kept. HTML outputs pass through as they are
(notebooks escape what models wrote), Markdown may hold no HTML, titles are text. pandoc converts,
and the page is checked: no address, no script, every id once, every link leads somewhere.
"""

import html
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nbformat
import pypandoc

TEMPLATE = Path(__file__).resolve().with_name("template.html")  # takes style.css in beside it
MARKDOWN = "commonmark+pipe_tables+tex_math_dollars+footnotes+gfm_auto_identifiers"
FORBIDDEN = {"script", "link", "iframe", "object", "embed", "base", "form"}  # elements
ADDRESSES = {"src", "srcset", "poster", "data", "action", "formaction", "background", "xlink:href"}
INSERTED = {"injected-parameters", "papermill-error-cell-tag"}  # cells that papermill adds


class ReportError(RuntimeError):
    """The report cannot be made; the message is for the person who asked for it."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code  # exit status


@dataclass(frozen=True)
class Part:
    """A section of the page. Its text begins with `# …`, which `title` replaces if it is given."""

    id: str
    source: Path  # an executed notebook or a Markdown file
    title: str | None = None


def compile_page(parts: Sequence[Part], title: str, provenance: str, trial: bool) -> str:
    """One HTML5 document with a table of contents.

    Args:
        provenance: the line at the foot: when, from what, in how long.
        trial: whether the page says on top that its numbers mean nothing.

    Raises:
        ReportError: a part has no heading or leaves a block open, pandoc cannot convert something (a
            formula, say), or the page would refer to anything outside itself.
    """
    document: dict[str, Any] = {}
    blocks: list[Any] = []
    for part in parts:
        if part.source.suffix == ".ipynb":
            text, outputs = notebook_text(nbformat.read(part.source, as_version=4))
        else:
            text, outputs = part.source.read_text(encoding="utf-8"), {}
        document = json.loads(_pandoc(text, MARKDOWN, "json"))
        blocks += _finished(part, _html_as_text(document["blocks"]), outputs)
    document["blocks"] = blocks
    document["meta"] = {
        "title": {"t": "MetaString", "c": title},
        "provenance": {"t": "MetaString", "c": provenance},
        "trial": {"t": "MetaBool", "c": trial},
        "lang": {"t": "MetaString", "c": "ru"},
    }
    page = _pandoc(
        json.dumps(document),
        "json",
        "html5",
        "--standalone",
        "--toc",
        "--toc-depth=2",
        "--wrap=none",
        "--mathml",
        f"--template={TEMPLATE}",
    )
    if faults := page_faults(page):
        raise ReportError("\n".join(["the page does not stand on its own:", *faults]))
    return page


def notebook_text(notebook: nbformat.NotebookNode) -> tuple[str, dict[str, str]]:
    """Markdown cells and outputs as one Markdown text, and the HTML for each mark in it."""
    texts: list[str] = []
    outputs: dict[str, str] = {}
    heading = ""
    for cell in notebook.cells:
        if INSERTED & set(cell.metadata.get("tags", [])):
            continue
        if cell.cell_type == "markdown":
            texts.append(cell.source)
            heading = [heading, *re.findall(r"^#+ +(.+)$", cell.source, re.MULTILINE)][-1]
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                shown = _figure(data["image/png"], output.metadata, heading)
            elif "text/html" in data:
                shown = f'<div class="output">\n{data["text/html"]}\n</div>'
            else:
                texts.append(data.get("text/markdown", ""))
                continue
            mark = f"output{secrets.token_hex(16)}"  # which no text can hold by chance
            outputs[mark] = shown
            texts.append(mark)
    return "\n\n".join(texts), outputs


def _figure(png: str, metadata: Mapping[str, Any], heading: str) -> str:
    """A notebook names its figure by display(figure, metadata={"image/png": {"alt": "…"}})."""
    alt = metadata.get("image/png", {}).get("alt") or f"Рисунок: {heading}"
    source = f"data:image/png;base64,{''.join(png.split())}"
    return f'<figure><img src="{source}" alt="{html.escape(alt)}"></figure>'


def _html_as_text(node: Any) -> Any:
    """Markdown's blocks with the HTML in them turned into characters."""
    match node:
        case {"t": "RawInline", "c": [_, text]}:
            return {"t": "Str", "c": text}
        case {"t": "RawBlock", "c": [_, text]}:
            return {"t": "Para", "c": [{"t": "Str", "c": text}]}
        case dict():
            return {key: _html_as_text(value) for key, value in node.items()}
        case list():
            return [_html_as_text(value) for value in node]
    return node


def _finished(part: Part, blocks: list[Any], outputs: Mapping[str, str]) -> list[Any]:
    """The part's blocks with its outputs in place and its id in the ids of its headings."""
    if not blocks or blocks[0]["t"] != "Header" or blocks[0]["c"][0] != 1:
        raise ReportError(f"{part.id}: its first line must be its heading, `# …`")
    placed = 0
    for i, block in enumerate(blocks):
        if block["t"] == "Header":
            block["c"][1][0] = f"{part.id}-{block['c'][1][0]}" if i else part.id
        if block["t"] == "Para" and block["c"][0]["t"] == "Str" and block["c"][0]["c"] in outputs:
            blocks[i] = {"t": "RawBlock", "c": ["html", outputs[block["c"][0]["c"]]]}
            placed += 1
    if placed != len(outputs):
        raise ReportError(f"{part.id}: a Markdown cell leaves something open (``` or $$, say)")
    if part.title is not None:
        blocks[0]["c"][2] = [{"t": "Str", "c": part.title}]
    return blocks


def _pandoc(text: str, source: str, target: str, *options: str) -> str:
    options = ("--fail-if-warnings", *options)  # a formula that MathML cannot hold only warns
    try:
        return pypandoc.convert_text(text, target, format=source, extra_args=options)
    except RuntimeError as error:
        raise ReportError(f"pandoc: {error}") from None


class _Reader(HTMLParser):
    """Collects ids, links and whatever would make the page depend on something outside it."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.faults: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in FORBIDDEN:
            self.faults.append(f"{self.get_starttag_text():.200}")
        for key, given in attrs:
            value = (given or "").strip()
            if key == "id":
                self.ids.append(value)
            elif key == "href" and value.startswith("#"):
                self.links.append(value[1:])
            elif key == "style":
                self.check_style(value)
            elif (
                key == "href"
                or (key in ADDRESSES and not value.startswith("data:image/"))
                or key.startswith("on")
                or (key == "http-equiv" and value.lower() == "refresh")
            ):
                self.faults.append(f'<{tag} {key}="{value:.200}">')

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "style":
            self.check_style(data)

    def check_style(self, style: str) -> None:
        self.faults += re.findall(r"(?:url\(|@import).{0,200}", style)


def page_faults(page: str) -> list[str]:
    """What a page that stands on its own must not have; empty for a good page."""
    reader = _Reader()
    reader.feed(page)
    twice = sorted({i for i in reader.ids if reader.ids.count(i) > 1})
    nowhere = sorted(set(reader.links) - set(reader.ids))
    return [
        *reader.faults,
        *(f"id {i!r} is there more than once" for i in twice),
        *(f"a link leads to #{link}, which is nowhere" for link in nowhere),
    ]
