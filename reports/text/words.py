"""How numbers, estimates and tables are written in Russian."""

import math
from collections.abc import Mapping

import pandas as pd

SMALLEST = 1e-4  # a smaller number or error is written with a power of ten
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
PLUS_MINUS = "\u00a0±\u00a0"  # with no-break spaces


def number(value: float, error: float | None = None) -> str:
    """A number with as many places as its error allows (two digits of it); decimal comma."""
    if 0 < abs(value) < SMALLEST and (error is None or 0 < error < SMALLEST):
        power = _power_of_ten(value)
        scaled = number(value / 10**power, 1 if error is None else error / 10**power)
        return f"{scaled}·{_ten_to_the(power)}"
    if error is None:
        places = 2 if abs(value) >= 1 else 4
    elif error == 0 or not math.isfinite(error):
        places = 0 if value == 0 else 4
    else:
        places = max(0, 1 - math.floor(math.log10(error)))
    value = round(value, places) + 0.0  # no «−0,00»
    return f"{value:.{places}f}".replace("-", "−").replace(".", ",")


def percent(share: float) -> str:
    """A share from 0 to 1 in percent, without the sign."""
    return number(100 * share, 1)


def estimate_text(estimate: Mapping[str, float]) -> str:
    """«1,86 ± 0,15» or «(1,81 ± 0,17)·10⁻⁶»: mean and standard error."""
    mean, error = estimate["mean"], estimate["stderr"]
    if 0 < error < SMALLEST and mean:
        power = _power_of_ten(mean)
        mean, error = mean / 10**power, error / 10**power
        return f"({number(mean, error)}{PLUS_MINUS}{number(error, error)})·{_ten_to_the(power)}"
    return f"{number(mean, error)}{PLUS_MINUS}{number(error, error)}"


def _power_of_ten(value: float) -> int:
    return math.floor(math.log10(abs(value)))


def _ten_to_the(power: int) -> str:
    return f"10{str(power).translate(SUPERSCRIPTS)}"


def eta_text(eta: float) -> str:
    """«η = 0,5», which does not break over lines."""
    return f"η\u00a0=\u00a0{eta:g}".replace(".", ",")


def table_html(table: pd.DataFrame) -> str:
    """The table as HTML; what its cells hold is shown as text."""
    with pd.option_context("display.max_colwidth", None):  # else what is longer than 50 is cut
        return table.to_html(index=False, border=0, escape=True)
