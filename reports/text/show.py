"""How a notebook shows a figure or a table: as HTML there, and for the report with what it is called,
what it says and the data behind it.

The page gives it its number, its links and its place.
"""

import base64
import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.text import words
from reports.text.figures import figure_of, png
from reports.text.svg import svg_text

REFERENCE = re.compile(r"[\s\u00a0]*—?[\s\u00a0]*\[@[^\]]+\]")  # which a notebook leads nowhere
MIME = "application/vnd.warp.shown+json"  # of a notebook's output that is for the report


def figure(
    panels: Axes | Figure | str | Sequence[Axes | Figure | str],
    label: str,
    caption: str,
    data: pd.DataFrame | Sequence[Mapping[str, Any]] = (),
    made_by: str = "",
    half: bool = False,
    picture: bool = False,
    live: Any = None,
) -> None:
    """Panels beside each other, under one caption.

    Args:
        panels: what matplotlib drew, or HTML.
        label: how texts refer to it: [@section:label].
        caption: plain text, understood without the text around it.
        data: a row a mark; the report has it as CSV.
        made_by: the params file of it, if it has one.
        half: two of them that follow each other stand side by side on a wide page.
        picture: whether a PNG of the first panel goes along, for places that take no SVG.
        live: a display handle whose output it replaces.
    """
    caption = words.unbroken(caption)
    panels = [panels] if isinstance(panels, Axes | Figure | str) else panels
    figures = [figure_of(panel) if isinstance(panel, Axes) else panel for panel in panels]
    name = REFERENCE.sub("", caption)
    drawn = [each if isinstance(each, str) else svg_text(each, name) for each in figures]
    about = {"kind": "figure", "label": label, "caption": caption, "panels": drawn}
    about |= {"csv": csv_text(data), "made_by": made_by, "half": half}
    shown = {MIME: about, "text/html": _html("".join(drawn), caption), "text/plain": caption}
    if picture:
        of_first = png(next(each for each in figures if isinstance(each, Figure)))
        shown["image/png"] = base64.b64encode(of_first).decode()
    _display(shown, live)


def table(
    rows: pd.DataFrame | str,
    label: str,
    caption: str,
    note: str = "",
    english: Sequence[str] = (),
    fold: bool = False,
) -> None:
    """A table under its caption; `rows` may be HTML. `english`: columns of English text."""
    caption, note = words.unbroken(caption), words.unbroken(note)
    given = rows if isinstance(rows, str) else words.table_html(rows, english)
    about = {"kind": "table", "label": label, "caption": caption, "html": given, "note": note}
    shown = {MIME: about | {"fold": fold}, "text/plain": caption}
    _display(shown | {"text/html": _html(given, caption, note)}, None)


def text(lines: str | Sequence[str]) -> None:
    """Markdown; several are paragraphs, or items where they begin so."""
    joined = words.unbroken(lines if isinstance(lines, str) else "\n\n".join(lines))
    display({"text/markdown": joined, "text/plain": joined}, raw=True)


def csv_text(data: pd.DataFrame | Sequence[Mapping[str, Any]]) -> str:
    """Six significant digits; empty without rows."""
    frame = data if isinstance(data, pd.DataFrame) else pd.DataFrame(list(data))
    return (
        "" if frame.empty else frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    )


def _html(inner: str, caption: str, note: str = "") -> str:
    said = html.escape(REFERENCE.sub("", f"{caption} {note}").strip())
    return f"<figure>{inner}<figcaption>{said}</figcaption></figure>"


def _display(shown: dict[str, Any], live: Any) -> None:
    if live is None:
        display(shown, raw=True)
    else:
        live.update(shown, raw=True)
