"""How numbers, estimates and tables are written in Russian."""

import html
import math
import re
from collections.abc import Mapping, Sequence

import pandas as pd

SMALLEST = 1e-4  # a smaller number or error is written with a power of ten
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
NBSP = "\u00a0"  # no line breaks there
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


def decimal(value: float) -> str:
    """«0,25», «−3», «150»: as short as it is exact; for axes."""
    return f"{value:.10g}".replace("-", "−").replace(".", ",")


def power_text(lr: float) -> str:
    """«10⁻⁴», «5·10⁻⁵»."""
    digits, _, power = f"{lr:e}".partition("e")
    digit = decimal(float(digits))
    return f"{'' if digit == '1' else f'{digit}·'}10{str(int(power)).translate(SUPERSCRIPTS)}"


def nats(n: int) -> str:
    """What a whole number of them is followed by: «3 ната», «16 нат»."""
    return "ната" if n % 10 in (2, 3, 4) and n % 100 not in (12, 13, 14) else "нат"


def lowered(text: str) -> str:
    """A sentence within another: «при…», but «KL…»."""
    return text if text[1:2].isupper() else text[:1].lower() + text[1:]


def unbroken(text: str) -> str:
    """Equations and units that do not break over lines, nor does a line begin with a dash."""
    text = re.sub(r"(?<=[\wα-ωΑ-Ω]) ([=<>±]) (?=[\d−(\w])", "\u00a0\\1\u00a0", text)
    text = re.sub(r"(?<=\d) (?=[а-яё%]|[КМГТ]Б\b)", "\u00a0", text)  # 16 ответов, 24 ГБ
    text = re.sub(r"(\b(?:из|рис\.|KL|шаг)) (?=\d)", "\\1\u00a0", text)  # 2 из 5, рис. 4b
    text = text.replace("п. п.", "п.\u00a0п.")
    return text.replace(" — ", "\u00a0— ").replace("обучений: ", "обучений:\u00a0")


def eta_text(eta: float) -> str:
    """«η = 0,5», which does not break over lines."""
    return f"η\u00a0=\u00a0{eta:g}".replace(".", ",")


NUMBER = re.compile(r"\(?[−-]?\d[\d\u00a0]*")  # what a cell of numbers begins with


def table_html(table: pd.DataFrame, english: Sequence[str] = ()) -> str:
    """The table as HTML; what its cells hold is shown as text. Columns of numbers stand at their
    decimal comma; `english` ones are marked as such. One without rows says so."""
    columns = [list(table.iloc[:, k].map(str)) for k in range(table.shape[1])]
    numeric = [k > 0 and _are_numbers(cells) for k, cells in enumerate(columns)]
    after = [max(map(_after_comma, cells), default=0.0) for cells in columns]
    names = [
        f'<th scope="col"{_class(n)}>{html.escape(str(name))}</th>'
        for name, n in zip(table.columns, numeric, strict=True)
    ]
    rows = []
    for row in zip(*columns, strict=True):
        cells = []
        for k, cell in enumerate(row):
            tag = "th" if k == 0 else "td"
            about = ' scope="row"' if k == 0 else _class(numeric[k])
            about += ' lang="en"' if table.columns[k] in english else ""
            room = after[k] - _after_comma(cell)
            if numeric[k] and room > 0.05:
                about += f' style="padding-right: calc(var(--cell, 0.6rem) + {room:.1f}ch)"'
            said = cell if numeric[k] or table.columns[k] in english else unbroken(cell)
            cells.append(f"<{tag}{about}>{html.escape(said)}</{tag}>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    if not rows:
        rows = [f'<tr><td colspan="{len(names)}">здесь этого не вычисляли</td></tr>']
    return f"<table><thead><tr>{''.join(names)}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _class(numeric: bool) -> str:
    return ' class="n"' if numeric else ""


def _are_numbers(cells: Sequence[str]) -> bool:
    """Short ones, at least one a number; a dash stands where there is none."""
    begin = [bool(NUMBER.match(cell)) for cell in cells if cell not in ("", "—")]
    return bool(begin) and all(begin) and max(map(len, cells)) < 40


def _after_comma(cell: str) -> float:
    """Width, in digits, of what stands behind a number's whole part."""
    whole = NUMBER.match(cell)
    rest = cell[whole.end() :] if whole else ""
    return sum(1.0 if c.isdigit() else 0.55 for c in rest)
