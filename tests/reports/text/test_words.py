"""Numbers, estimates and tables as the reader sees them."""

import pandas as pd
import pytest
from invented import estimate

from reports.text import words


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (1.8637, 0.1492, "1,86"),
        (-0.09, 0.19, "−0,09"),
        (89.02, 12.0, "89"),
        (0.0250, 0.0011, "0,0250"),
        (0.0, 0.0, "0"),
        (0.0, 0.0001, "0,00000"),
        (9.54e-7, 9.54e-7, "9,5·10⁻⁷"),
        (1.0, None, "1,00"),
        (0.5, None, "0,5000"),
        (-2e-7, None, "−2,0·10⁻⁷"),
    ],
)
def test_places_fit_the_error(value, error, text):
    assert words.number(value, error) == text


def test_small_estimates_share_a_power_of_ten():
    assert words.estimate_text(estimate(1.81e-6, 1.74e-7)) == "(1,81\u00a0±\u00a00,17)·10⁻⁶"
    assert words.estimate_text(estimate(1.8637, 0.1492)) == "1,86\u00a0±\u00a00,15"
    assert words.estimate_text(estimate(0.0, 0.0)) == "0\u00a0±\u00a00"


def test_shares_and_etas_have_a_decimal_comma():
    assert words.percent(0.0725) == "7,2"
    assert words.eta_text(0.5) == "η\u00a0=\u00a00,5"


def test_what_a_table_holds_is_shown_as_text():
    table = words.table_html(pd.DataFrame({"<i>": ["<script>x</script>"]}))
    assert "&lt;i&gt;" in table
    assert "&lt;script&gt;x&lt;/script&gt;" in table


def test_a_table_without_rows_says_so():
    table = words.table_html(pd.DataFrame(columns=["А", "Б"]))
    assert '<td colspan="2">здесь этого не вычисляли</td>' in table


def test_numbers_stand_at_their_comma_and_text_stays_text():
    table = pd.DataFrame({"А <i>": ["x", "y"], "Б": ["1,25", "10,5 ± 0,1"], "В": ["<b>", "сл."]})
    text = words.table_html(table, english=["В"])
    assert '<th scope="col">А &lt;i&gt;</th><th scope="col" class="n">Б</th>' in text
    assert '<th scope="row">x</th><td class="n" style="padding-right:' in text
    assert '<td class="n">10,5 ± 0,1</td>' in text  # the longest needs no room behind it
    assert '<td lang="en">&lt;b&gt;</td>' in text


def test_equations_do_not_break_over_lines():
    assert words.unbroken("при T = 30 — 5 баллов") == "при T\u00a0=\u00a030\u00a0— 5\u00a0баллов"
    assert words.unbroken("2 из 5, рис. 4b, 24 ГБ: KL 9, шаг 2, п. п.") == (
        "2\u00a0из\u00a05, рис.\u00a04b, 24\u00a0ГБ: KL\u00a09, шаг\u00a02, п.\u00a0п."
    )
    assert words.lowered("При равной KL") == "при равной KL"
    assert words.lowered("KL выпукла") == "KL выпукла"
    assert [words.power_text(lr) for lr in (1e-4, 5e-5)] == ["10⁻⁴", "5·10⁻⁵"]
