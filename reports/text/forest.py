"""The forest of claims: a row of HTML each, with its difference and interval drawn in it."""

import html
from collections.abc import Sequence
from typing import Any

from reports.text.statistics import SCALES
from reports.text.svg import COLORS, QUIET
from reports.text.verdicts import MAIN, MARKS, SMALL, UNITS, Verdict
from reports.text.words import NBSP, decimal, unbroken

# Of a row, in its units: height, width, margin beside what is drawn.
ROW, WIDTH, EDGE = 22, 160, 6
ENDS = "low", "mean", "high"
TINT = f"var(--c2, {COLORS[2]})"


def table(found: Sequence[Verdict], short: bool = False) -> str:
    """Differences with their intervals over trainings, a row a claim, as HTML.

    The side that a claim promises is shaded. Each measure has one scale, that of rewards is drawn. `short`:
    the main claims alone, with links to their sections.
    """
    by_name = {v.comparison.name: v for v in found}
    shown = [by_name[name] for name in MAIN if name in by_name] if short else found
    reaches: dict[str, float] = {"reward": 0.0}
    for v in shown:
        reaches[v.comparison.measure] = max(reaches.get(v.comparison.measure, 0.0), _reach(v))
    reach = reaches["reward"]
    fitting = [step for step in (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5) if step <= 0.8 * reach]
    axis = "".join(
        f'<text x="{_x(at, reach):.0f}" y="14" style="text-anchor: middle">{decimal(at)}</text>'
        for step in fitting[-1:]
        for at in (-step, 0, step)
    )
    scale = f'<svg class="row" viewBox="0 0 {WIDTH} 18" role="img" aria-label="шкала разности">'
    names = ["Утверждение", f"{scale}{axis}</svg>", "Разность [95\u00a0% ДИ]"]
    names += ["Вердикт"] if short else ["Обучений", "p", "Вердикт"]
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    rows = "".join(_row(v, reaches[v.comparison.measure], short) for v in shown)
    kind = "forest short" if short else "forest"
    return f'<table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


def _reach(v: Verdict) -> float:
    """How far from zero a row goes."""
    ends = [v.between[end] for end in ENDS] if v.between else []
    return max(map(abs, [*v.by_seed.values(), *ends]), default=0.0)


def _x(difference: float, reach: float) -> float:
    return WIDTH / 2 + (WIDTH / 2 - EDGE) * (difference / reach if reach else 0.0)


def _row(v: Verdict, reach: float, short: bool) -> str:
    zero, expected = WIDTH / 2, v.comparison.expected
    margin = min(SMALL, reach) if expected.startswith("not") else 0.0
    wide = WIDTH - _x(-margin, reach)
    begin = 0.0 if expected in ("less", "not_more") else WIDTH - wide
    side = f'x="{begin:.0f}" width="{wide:.0f}" height="{ROW}"'
    parts = [f'<rect {side} style="fill: {TINT}; fill-opacity: var(--tint, .09)"/>']
    parts.append(f'<path d="M{zero:.0f} 0V{ROW}" style="stroke: currentColor"/>')
    parts += _interval(v, reach)
    name = html.escape(unbroken(MAIN[v.comparison.name] if short else v.comparison.claim))
    name += "\u00a0•" if v.comparison.primary else ""
    if short:
        name = f'<a href="#study_{v.study.name}">{name}</a>'
    else:
        about = f"{v.comparison.source}; ожидание: «{v.comparison.hypothesis}»"
        name += f"<small>{html.escape(unbroken(about))}</small>"
    said = html.escape(v.effect)
    head = f'<svg class="row" viewBox="0 0 {WIDTH} {ROW}" role="img" aria-label="{said}">'
    effect = v.effect_alone if v.between or short else "—"
    cells = [f'<th scope="row">{name}</th>', f"<td>{head}{''.join(parts)}</svg></td>"]
    cells.append(f'<td class="n">{html.escape(effect)}</td>')
    if not short:
        cells.append(f'<td class="n" data-of="обучений">{v.n}</td>')
        cells.append(f'<td class="n" data-of="p">{html.escape(v.p_text)}</td>')
    said = v.word if short else html.escape(v.word_where)
    cells.append(f'<td class="verdict">{MARKS[v.word]}{NBSP}{said}</td>')
    return f"<tr>{''.join(cells)}</tr>"


def _interval(v: Verdict, reach: float) -> list[str]:
    """Dots are trainings, the line is the interval, the diamond the mean."""
    color = f"var(--c0, {COLORS[0]})" if v.comparison.primary else f"var(--quiet, {QUIET})"
    parts = [
        f'<circle cx="{_x(each, reach):.1f}" cy="11" r="3" style="fill: {color}; fill-opacity: 0.3">'
        f"<title>seed {seed}: {said}</title></circle>"
        for (seed, each), said in zip(v.by_seed.items(), v.told([*v.by_seed.values()]), strict=True)
    ]
    if v.between:
        low, mean, high = (_x(v.between[end], reach) for end in ENDS)
        line = f"stroke: {color}; stroke-width: 2.5"
        parts.append(f'<path d="M{low:.1f} 11H{high:.1f}" style="{line}"/>')
        told = f"<title>{html.escape(v.effect)}</title>"
        diamond = f"M{mean - 5:.1f} 11l5 -5 5 5 -5 5z"
        parts.append(f'<path d="{diamond}" style="fill: {color}">{told}</path>')
    return parts


def caption(found: Sequence[Verdict]) -> str:
    """What `table` of them shows."""
    said = "Ромб и черта — среднее и 95 % ДИ по обучениям (стороны сравнения взяты с одним seed), точки — "
    said += "обучения; закрашена область, где утверждение верно."
    if any(v.comparison.expected.startswith("not") for v in found):
        said += f" «Не ниже» и «не выше» — с допуском {decimal(SMALL)} балла."
    measures = {v.comparison.measure for v in found}
    if "reward" in measures:
        said += " Шкала над рисунком — для наград, баллы"
        said += "; у других величин она своя." if len(measures) > 1 else "."
    elif len(measures) > 1:
        said += " У каждой величины своя шкала."
    if any(v.comparison.primary for v in found):
        said += " • (синие) — основные сравнения."
    return f"{said} p — с поправкой на число сравнений ([@summary:claims])."


def data(found: Sequence[Verdict]) -> list[dict[str, Any]]:
    """Behind `table`: a row a claim and training."""
    rows = []
    for v in found:
        measure, scale = v.comparison.measure, SCALES.get(v.comparison.measure, 1)
        about = {"study": v.study.name, "claim": v.comparison.claim, "verdict": v.word}
        about |= {
            "measure": measure,
            "unit": UNITS[measure][0].replace(NBSP, " "),
            "primary": v.comparison.primary,
        }
        about |= {key: scale * v.between[key] if v.between else None for key in ENDS}
        about |= {"p": v.p if v.between else None}
        for seed, each in v.by_seed.items():
            rows.append(about | {"seed": seed, "difference": scale * each})
        if not v.by_seed:
            rows.append(about | {"seed": None, "difference": None})
    return rows
