"""A figure as SVG: text is text, colours are the page's, marks tell their values, bytes repeat."""

from xml.etree import ElementTree as ET

from reports.text import figures
from reports.text.svg import COLORS, svg_text, tells

SVG = "{http://www.w3.org/2000/svg}"


def drawn() -> str:
    ax = figures.new_axes()
    (mark,) = ax.plot(0.5, 1.5, "o", color=COLORS[1])
    tells(mark, "0,5 & <b>")
    ax.set_xlabel("KL, <нат> $x$")
    return svg_text(figures.figure_of(ax), 'имя "и" <b>')


def test_text_is_text_and_a_mark_tells_its_value():
    svg = ET.fromstring(drawn().replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))
    assert svg.get("aria-label") == 'имя "и" <b>'
    texts = [each.text for each in svg.iter(f"{SVG}text")]
    assert "KL, <нат> $x$" in texts
    (told,) = [each for each in svg.iter(f"{SVG}g") if each.get("class") == "told"]
    assert told.get("tabindex") == "0"
    assert told.findtext(f"{SVG}title") == told.findtext(f"{SVG}text") == "0,5 & <b>"


def test_colours_are_the_pages_and_nothing_else_is_brought_along():
    text = drawn()
    assert f"var(--c1, {COLORS[1]})" in text
    assert "currentColor" in text
    for absent in ("font-family", "<style", "metadata", "matplotlib", "#000000", "xlink"):
        assert absent not in text, absent


def test_the_same_figure_gives_the_same_bytes():
    assert drawn() == drawn()
    ax = figures.new_axes()
    ax.plot([0, 1], [0, 1])
    assert figures.png(figures.figure_of(ax)) == figures.png(figures.figure_of(ax))
