"""The page: executed notebooks and texts as one HTML file that needs nothing outside itself.

Code is dropped; its figures, tables and Markdown are kept. What `reports.text.show` has shown gets its
number, its caption and its links; other HTML outputs pass through as they are (notebooks escape what
models wrote). Markdown may hold no HTML, titles are text, `### …` folds what follows it. pandoc
converts, and the page is checked: no address, no script, every id once, every link leads somewhere.
"""

import base64
import html
import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pypandoc

from reports.build.faults import CSV, ReportError, page_faults
from reports.build.references import References, Work, bibliography_html
from reports.text.words import unbroken

TEMPLATE = Path(__file__).resolve().with_name("template.html")  # takes style.css in beside it
MARKDOWN = "commonmark+pipe_tables+tex_math_dollars+footnotes+gfm_auto_identifiers"
INSERTED = {"injected-parameters", "papermill-error-cell-tag"}  # cells that papermill adds
LITERAL = re.compile(r"(```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$]*\$)", re.DOTALL)  # code, formulas
SHOWN = "application/vnd.warp.shown+json"  # what reports.text.show writes
WORKS = "bibliography"  # the part that holds the list of works
Shown = Mapping[str, Any]


@dataclass(frozen=True)
class Part:
    """A section of the page. Its text begins with `# …`, which `title` replaces if it is given."""

    id: str
    source: Path  # an executed notebook or a Markdown file
    title: str | None = None
    appendix: bool = False  # folded, behind the others
    made_by: str = ""  # the notebook and its params, as a reader looks for them


@dataclass(frozen=True)
class About:
    """What the page says of itself."""

    title: str
    byline: str  # under the title: when, from what, in how long
    provenance: str = ""  # at the foot
    description: str = ""  # for those who list pages
    picture: bytes = b""  # a PNG, for the same
    trial: bool = False  # whether it says on top that its numbers mean nothing


def compile_page(
    parts: Sequence[Part],
    about: About,
    works: Mapping[str, Work] | None = None,
    left_out: Sequence[str] = (),
) -> str:
    """One HTML5 document with a table of contents.

    Args:
        works: the bibliography, by key.
        left_out: sections that this page does not have, though texts may refer to them.

    Raises:
        ReportError: a part has no heading or leaves a block open, a reference leads to nothing, pandoc
            cannot convert something (a formula, say), or the page would refer to anything outside it.
    """
    works = works or {}
    references = References(left_out=frozenset(left_out))
    references.add_works(works)
    read = [_read(part) for part in parts]
    numbers = []
    for k, (part, (_, blocks, outputs)) in enumerate(zip(parts, read, strict=True)):
        numbers.append(references.add_section(part.id, part.appendix, numbered=k > 0))
        for mark in _marks(blocks, outputs):
            if (shown := outputs[mark]).get("label"):
                shown |= dict(
                    zip(
                        ("where", "number"),
                        references.add_shown(part.id, shown["label"], shown["kind"]),
                        strict=True,
                    )
                )
    document, blocks, contents = read[0][0] if read else {}, list[Any](), list[Any]()
    for part, number, (_, own, outputs) in zip(parts, numbers, read, strict=True):
        outputs = {mark: _html_of(shown, part, references) for mark, shown in outputs.items()}
        own, title = _finished(part, own, outputs, references, number)
        blocks += own
        if part.id == WORKS:
            blocks.append(_raw(bibliography_html(works)))
        blocks.append(_raw("</section></details>" if part.appendix else "</section>"))
        contents.append((part, number, title))
    document["blocks"] = blocks
    picture = base64.b64encode(about.picture).decode()
    # As HTML: pandoc leaves quotes in a string, and two of them stand in attributes.
    texts = {key: getattr(about, key) for key in ("title", "byline", "provenance", "description")}
    document["meta"] = {
        key: {"t": "MetaInlines", "c": [_raw(html.escape(text), "RawInline")]}
        for key, text in texts.items()
    } | {
        "trial": {"t": "MetaBool", "c": about.trial},
        "picture": {"t": "MetaString", "c": picture},
        "contents": {"t": "MetaBlocks", "c": [_raw(_contents(contents))]},
        "lang": {"t": "MetaString", "c": "ru"},
    }
    options = ("--standalone", "--wrap=none", "--mathml", f"--template={TEMPLATE}")
    page = _refined(_pandoc(json.dumps(document), "json", "html5", *options))
    if faults := page_faults(page, {work.url for work in works.values()}):
        raise ReportError("\n".join(["the page does not stand on its own:", *faults]))
    return page


# Reading


def _read(part: Part) -> tuple[dict[str, Any], list[Any], dict[str, dict[str, Any]]]:
    """pandoc's document of a part, its blocks, and what stands for each mark in them."""
    if part.source.suffix == ".ipynb":
        text, outputs = notebook_text(nbformat.read(part.source, as_version=4))
    else:
        text, outputs = _with_drawings(part.source)
    document = json.loads(_pandoc(_unbroken(text), MARKDOWN, "json"))
    return document, _html_as_text(document["blocks"]), outputs


def notebook_text(notebook: nbformat.NotebookNode) -> tuple[str, dict[str, dict[str, Any]]]:
    """Markdown cells and outputs as one Markdown text, and what is shown for each mark in it."""
    texts: list[str] = []
    outputs: dict[str, dict[str, Any]] = {}
    for cell in notebook.cells:
        if INSERTED & set(cell.metadata.get("tags", [])):
            continue
        if cell.cell_type == "markdown":
            texts.append(cell.source)
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if SHOWN in data:
                shown = dict(data[SHOWN])
            elif "text/html" in data:
                shown = {"kind": "html", "html": data["text/html"]}
            else:
                texts.append(data.get("text/markdown", ""))
                continue
            texts.append(_mark(outputs, shown))
    return "\n\n".join(texts), outputs


def _with_drawings(source: Path) -> tuple[str, dict[str, dict[str, Any]]]:
    """A Markdown text, and the SVG files beside it that it shows: `![caption](label.svg)`."""
    outputs: dict[str, dict[str, Any]] = {}

    def shown(found: re.Match[str]) -> str:
        caption, label = found.groups()
        drawing = source.with_name(f"{label}.svg").read_text(encoding="utf-8")
        about = {"kind": "figure", "label": label, "caption": caption, "panels": [drawing]}
        return _mark(outputs, about)

    text = source.read_text(encoding="utf-8")
    return re.sub(r"^!\[(.+)\]\(([\w-]+)\.svg\)$", shown, text, flags=re.MULTILINE), outputs


def _unbroken(text: str) -> str:
    """Markdown whose prose does not break where Russian does not; code and formulas stay."""
    return "".join(each if k % 2 else unbroken(each) for k, each in enumerate(LITERAL.split(text)))


def _mark(outputs: dict[str, dict[str, Any]], shown: dict[str, Any]) -> str:
    mark = f"output{secrets.token_hex(16)}"  # which no text can hold by chance
    outputs[mark] = shown
    return mark


def _marks(blocks: Sequence[Any], outputs: Mapping[str, Any]) -> Iterator[str]:
    for block in blocks:
        if (mark := _mark_of(block)) in outputs:
            yield mark


def _mark_of(block: Any) -> str:
    alone = block["t"] == "Para" and len(block["c"]) == 1 and block["c"][0]["t"] == "Str"
    return block["c"][0]["c"] if alone else ""


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


# Putting together


def _finished(
    part: Part, blocks: list[Any], outputs: Mapping[str, str], references: References, number: str
) -> tuple[list[Any], str]:
    """The part's blocks, outputs in place, as a section that its heading begins; and its title."""
    if not blocks or blocks[0]["t"] != "Header" or blocks[0]["c"][0] != 1:
        raise ReportError(f"{part.id}: its first line must be its heading, `# …`")
    title = part.title if part.title is not None else _text_of(blocks[0]["c"][2])
    if set(_marks(blocks, outputs)) != outputs.keys():
        raise ReportError(f"{part.id}: a Markdown cell leaves something open (``` or $$, say)")
    shown = html.escape(title, quote=False)
    numbered = f'<span class="number">{number}</span> {shown}' if number else shown
    if part.appendix:
        begin = f"<details class=appendix><summary><h2>{numbered}</h2></summary>"
        finished = [_raw(f'{begin}<section id="{part.id}">')]
    else:
        finished = [_raw(f'<section id="{part.id}"><h2>{numbered}</h2>')]
    folded, pair = False, False
    for block in blocks[1:]:
        mark = _mark_of(block)
        half = mark in outputs and 'class="half"' in outputs[mark][:40]
        if half != pair:
            finished.append(_raw('<div class="pair">' if half else "</div>"))
            pair = half
        if block["t"] == "Header":
            level, (name, *_), inlines = block["c"]
            finished += [_raw("</details>")] if folded else []
            if folded := level >= 3:
                said = html.escape(_text_of(inlines), quote=False)
                finished.append(_raw(f"<details><summary>{said}</summary>"))
            else:
                block["c"][0], block["c"][1][0] = level + 1, f"{part.id}-{name}"
                finished.append(block)
        elif mark in outputs:
            finished.append(_raw(outputs[mark]))
        else:
            finished.append(_with_links(block, references))
    finished += [_raw("</div>")] if pair else []
    return [*finished, *([_raw("</details>")] if folded else [])], title


def _with_links(node: Any, references: References) -> Any:
    """Blocks with their references as links, and decimal numbers as MathML can hold them."""
    match node:
        case list():
            found: list[Any] = []
            for each in node:
                linked = _with_links(each, references)
                found += linked if isinstance(linked, list) and isinstance(each, dict) else [linked]
            return found
        case {"t": "Str", "c": str(text)} if "[@" in text:
            return [
                {"t": "Str", "c": piece}
                if isinstance(piece, str)
                else {
                    "t": "Link",
                    "c": [["", [], []], [{"t": "Str", "c": piece[1]}], [f"#{piece[0]}", ""]],
                }
                for piece in references.pieces(text)
            ]
        case {"t": "Math", "c": [kind, text]}:  # 0{,}01 would be three elements, 0.01 is one number
            return {"t": "Math", "c": [kind, re.sub(r"(?<=\d)\{,\}(?=\d)", ".", text)]}
        case dict():
            return {key: _with_links(value, references) for key, value in node.items()}
    return node


def _html_of(shown: Shown, part: Part, references: References) -> str:
    """A figure, a table or another output as the page has it."""
    if shown["kind"] == "html":
        return f'<div class="scroll" tabindex="0" role="region" aria-label="Таблица">{shown["html"]}</div>'
    where, number = shown["where"], shown["number"]
    caption = f"<strong>{number}.</strong> {references.html(shown['caption'])}"
    if shown["kind"] == "table":
        note = f'<p class="note">{references.html(shown["note"])}</p>' if shown.get("note") else ""
        table = (
            f'<div class="scroll" tabindex="0" role="region" aria-label="{number}">'
            f"{_only_links_that_lead(shown['html'], references)}</div>{note}"
        )
        if shown.get("fold"):
            return (
                f'<details><summary>{caption}</summary><figure class="table" id="{where}">{table}'
                "</figure></details>"
            )
        return (
            f'<figure class="table" id="{where}"><figcaption>{caption}</figcaption>{table}</figure>'
        )
    panels = "".join(
        f'<div class="panel">{_own_ids(_only_links_that_lead(panel, references), f"{where}-{k}-")}</div>'
        for k, panel in enumerate(shown["panels"])
    )
    file = f"{where.removeprefix('figure-')}.csv"
    links = [f'<a href="#zoom-{where}">Увеличить</a>'] if "<svg" in panels else []
    if csv := shown.get("csv"):
        data = base64.b64encode(csv.encode()).decode()
        links.append(f'<a download="{file}" href="{CSV}{data}">Данные, CSV</a>')
    made = ", ".join(each for each in (part.made_by, shown.get("made_by", "")) if each)
    links += [f"<code>{html.escape(made)}</code>"] if made else []
    return (
        f'<figure class="{"half" if shown.get("half") else "full"}" id="{where}">'
        f'<div class="zoom" id="zoom-{where}"><a class="close" href="#{where}">Закрыть</a>'
        f'<div class="panels {_layout(shown["panels"])}">{panels}</div></div>'
        f'<figcaption>{caption}</figcaption><p class="links">{" · ".join(links)}</p></figure>'
    )


def _layout(panels: Sequence[str]) -> str:
    """Small panels stand three or four in a row; of four larger ones two."""
    widths = [
        float(width) for p in panels for width in re.findall(r'viewBox="0 0 ([\d.]+)', p[:99])
    ]
    large = len(panels) == 4 and max(widths, default=0) > 300
    return f"of{2 if large else len(panels)}"


def _own_ids(svg: str, prefix: str) -> str:
    """The ids of a drawing, which may be another's as well, as ids of the page."""
    svg = re.sub(r'(<[^<>]* id=")', rf"\1{prefix}", svg)
    return re.sub(r'(href="#|url\(#)(?=[mp][0-9a-f]{8})', rf"\1{prefix}", svg)


def _only_links_that_lead(given: str, references: References) -> str:
    """Links to sections that this page has not are text."""

    def kept(found: re.Match[str]) -> str:
        return "" if found[1] in references.left_out else found[0]

    return re.sub(r' href="#([\w-]+)"', kept, given)


def _contents(sections: Sequence[tuple[Part, str, str]]) -> str:
    """The table of contents: sections, and one line that opens for the appendices."""

    def items(chosen: Sequence[tuple[Part, str, str]]) -> str:
        return "".join(
            f'<li><a href="#{part.id}"><span class="number">{number}</span> '
            f"{html.escape(title, quote=False)}</a></li>"
            for part, number, title in chosen
        )

    main = items([each for each in sections if not each[0].appendix])
    behind = items([each for each in sections if each[0].appendix])
    if behind:
        behind = f"<li><details><summary>Приложения</summary><ul>{behind}</ul></details></li>"
    return f"<ul>{main}{behind}</ul>"


def _text_of(inlines: Any) -> str:
    match inlines:
        case list():
            return "".join(map(_text_of, inlines))
        case {"t": "Space"} | {"t": "SoftBreak"}:
            return " "
        case {"t": "Str" | "Code" | "Math", "c": str(text)} | {"c": [_, str(text)]}:
            return text
        case {"c": list(inner)}:
            return _text_of(inner[-1] if inner and isinstance(inner[-1], list) else inner)
    return ""


def _raw(text: str, kind: str = "RawBlock") -> dict[str, Any]:
    return {"t": kind, "c": ["html", text]}


def _refined(page: str) -> str:
    """Decimal commas in formulas; and what scrolls by itself on a phone can be reached by keyboard."""
    page = re.sub(r"<mn>(\d+)\.(\d+)</mn>", r"<mn>\1,\2</mn>", page)
    return page.replace('<math display="block"', '<math tabindex="0" display="block"').replace(
        "<pre><code>", '<pre tabindex="0"><code>'
    )


def _pandoc(text: str, source: str, target: str, *options: str) -> str:
    options = ("--fail-if-warnings", *options)  # a formula that MathML cannot hold only warns
    try:
        return pypandoc.convert_text(text, target, format=source, extra_args=options)
    except RuntimeError as error:
        raise ReportError(f"pandoc: {error}") from None
