"""A matplotlib figure as SVG that belongs to the page: text is text in the page's font, colours are the
page's variables, so that they follow light and dark, and a mark tells its value on hover and on focus.

The same figure gives the same bytes.
"""

import io
import re
from typing import Any
from xml.etree import ElementTree as ET

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.figure import Figure

# In Okabe and Ito's order, which the colour-blind tell apart; dark enough for lines on white. The page
# has lighter ones for the dark.
COLORS = ("#0072b2", "#c84e00", "#00795a", "#a8478a", "#96690a", "#2f86bd", "#555555")
BLACK, QUIET, GRID, WHITE = "#000000", "#666666", "#dddddd", "#ffffff"
VARIABLES = {color: f"var(--c{k}, {color})" for k, color in enumerate(COLORS)} | {
    BLACK: "currentColor",
    QUIET: f"var(--quiet, {QUIET})",
    GRID: f"var(--line, {GRID})",
    WHITE: f"var(--paper, {WHITE})",
}
TOLD = "told:"  # an artist's gid begins with it, if its mark tells something
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "text.parse_math": False,  # a name with $ in it is a name
    "font.size": 11.0,
    "axes.titlesize": 11.0,
    "axes.labelsize": 11.0,
    "legend.fontsize": 10.0,
    "xtick.labelsize": 10.0,
    "ytick.labelsize": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": QUIET,
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
    "xtick.minor.size": 0.0,
    "ytick.minor.size": 0.0,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
}
XML = "http://www.w3.org/2000/svg"
HREF = "{http://www.w3.org/1999/xlink}href"
KEPT = {"fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-dashoffset", "opacity",
        "fill-opacity", "stroke-opacity", "font-size", "text-anchor", "font-weight"}  # fmt: skip
CLOSE = 60.0  # units: a mark nearer to the right edge has its value to the left of it


def tells(artist: Artist, text: str) -> None:
    """Its mark says this on hover and on focus."""
    artist.set_gid(TOLD + text)


def svg_text(figure: Figure, name: str) -> str:
    """The figure as an `<svg>` element that is called `name`. Its ids are unique among figures that
    differ; whatever stands in a label or a name is text."""
    file = io.StringIO()
    with mpl.rc_context(STYLE):
        nothing = {"Date": None, "Creator": None, "Type": None, "Format": None}
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    given = ET.fromstring(file.getvalue())
    box = given.get("viewBox", "")
    references = set(re.findall(r'(?:href="#|url\(#)([\w-]+)', file.getvalue()))
    svg = ET.Element("svg", {"viewBox": box, "role": "group", "aria-label": name})
    width = float(box.split()[2])
    svg.set("class", "plot")
    svg.set(
        "style", f"fill: currentColor; width: 100%; max-width: {1.3 * width:.0f}px"
    )  # of a notebook, too
    for child in given:
        svg.extend(_own(child, references, width))
    return ET.tostring(svg, encoding="unicode")


def _own(element: ET.Element, references: set[str], width: float) -> list[ET.Element]:
    """The element as the page wants it; groups that say nothing are left out, their children stay."""
    tag = element.tag.removeprefix(f"{{{XML}}}")
    if tag in ("metadata", "style"):
        return []
    children = [own for child in element for own in _own(child, references, width)]
    gid = element.get("id", "")
    if tag == "g" and gid.startswith(TOLD):
        return [_told(gid.removeprefix(TOLD), children, width)]
    attributes = _attributes(element, references)
    if (tag == "g" and not attributes.keys() - {"clip-path"}) or (tag == "defs" and not children):
        return children
    own = ET.Element(tag, attributes)
    own.text = element.text if tag == "text" else None
    own.extend(children)
    return [own]


def _attributes(element: ET.Element, references: set[str]) -> dict[str, str]:
    kept = {}
    for key, value in element.attrib.items():
        if key == "id":
            kept |= {key: value} if value in references else {}
        elif key == "style":
            pairs = (part.partition(": ") for part in value.split("; "))
            found = {k: VARIABLES.get(v.lower(), v) for k, _, v in pairs if k in KEPT}
            kept |= {key: "; ".join(f"{k}: {v}" for k, v in found.items())} if found else {}
        elif key == HREF:
            kept["href"] = value
        elif key == "clip-path":
            kept[key] = value
        elif not (key == "transform" and value.startswith("rotate(-0")):
            kept[key] = re.sub(
                r"-?\d+\.\d+", lambda n: f"{float(n[0]):.2f}".rstrip("0").rstrip("."), value
            )
            kept[key] = " ".join(kept[key].split())
    return kept


def _told(text: str, children: list[ET.Element], width: float) -> ET.Element:
    """A mark that can be pointed at and be reached by keyboard, and its value beside it."""
    group = ET.Element("g", {"class": "told", "tabindex": "0", "role": "img", "aria-label": text})
    ET.SubElement(group, "title").text = text
    group.extend(children)
    place = next((e for child in children for e in child.iter() if e.get("x")), None)
    if place is not None:
        x, y = float(place.get("x", 0)), float(place.get("y", 0))
        side = "end" if x > width / 2 else "start"
        at = {"x": f"{x + (-8 if side == 'end' else 8):.1f}", "y": f"{y - 8:.1f}"}
        style = f"font-size: 10.5px; text-anchor: {side}"
        shown = ET.SubElement(group, "text", at | {"visibility": "hidden", "style": style})
        shown.text = text
    return group
