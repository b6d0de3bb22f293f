"""What notebooks show, for themselves and for the report."""

import pytest

from reports.text import show
from reports.text.figures import new_axes


@pytest.fixture
def shown(monkeypatch):
    """What was displayed, by media type."""
    found = []
    monkeypatch.setattr(show, "_display", lambda given, _: found.append(given))
    return found


def test_a_figure_is_spoken_of_without_references_and_the_report_has_them(shown):
    ax = new_axes()
    ax.plot([0, 1])
    show.figure([ax], "plane", "Награда — [@study_liti:plane].", [{"seed": 1, "reward": 0.5}])
    (given,) = shown
    of_report = given[show.MIME]
    assert of_report["caption"] == "Награда\u00a0— [@study_liti:plane]."
    assert of_report["csv"] == "seed,reward\n1,0.5\n"
    (svg,) = of_report["panels"]
    assert 'aria-label="Награда."' in svg
    assert "[@" not in given["text/html"]
    assert "image/png" not in given


def test_a_tables_caption_and_note_lead_nowhere_in_a_notebook(shown):
    show.table("<table></table>", "t", "Таблица [@a]", "сноска <b> [@b]")
    (given,) = shown
    assert given["text/html"].endswith("Таблица сноска &lt;b&gt;</figcaption></figure>")
