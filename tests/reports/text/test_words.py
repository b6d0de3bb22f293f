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
