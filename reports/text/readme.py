"""README's tables, in English, each between its two marks."""

from collections.abc import Mapping, Sequence

import pandas as pd

from reports.text.verdicts import ALIKE, HOLDS, LITTLE, MAIN, NONE, REFUTED, SMALL, UNKNOWN, Verdict
from reports.text.words import NBSP
from warp_core.config import ConfigError

EXPERIMENTS = {  # columns of `experiments_table`
    "№": "experiment",
    "Прирост по обучениям (их число)": "gain in reward over trainings (how many)",
    "Прирост, одно обучение": "gain, one training",
    "KL(warp‖sft)": "KL(warp‖sft), one training",
}
CLAIMS = {  # comparisons that the report begins with: what is claimed, and by whom
    "four_iterations_against_one": (
        "WARP (four iterations of two runs) is above one run of eight times the steps with its LITI",
        "our question",
    ),
    "four_against_one": (
        "four merged runs are above one run of four times the steps with its LITI",
        "our question",
    ),
    "two_against_one": (
        "two merged runs are above one run of twice the steps with its LITI",
        "our question",
    ),
    "front_above_runs": (
        "four merged runs are above one of them, of a quarter of the steps, with its LITI",
        "Fig. 4b",
    ),
    "second_iteration": ("the second iteration is above the first, of half the steps", "Fig. 4c"),
    "liti_above_trajectory": ("a run's LITI is above its own trajectory", "Fig. 4a"),
    "slerp_above_lerp": ("SLERP is above LERP at λ = 0.5, each at its own KL", "Fig. 3c"),
    "slerp_above_lerp_at_equal_kl": (
        "SLERP of four runs is above their LERP, taken on to η = 2",
        "our question",
    ),
    "ema_above_sft": ("a KL to the EMA of the policy is above one to SFT", "Fig. 3b"),
}
WORDS = {
    HOLDS: "holds",
    LITTLE: f"holds, but below {SMALL}",
    REFUTED: "the opposite holds",
    ALIKE: f"alike: within {SMALL}",
    UNKNOWN: "cannot be told",
    NONE: "not computed yet",
}


def marks(name: str) -> tuple[str, str]:
    """Between which README has a table."""
    return f"<!-- {name}, by `make publish` -->", f"<!-- end of {name} -->"


def with_tables(readme: str, tables: Mapping[str, str]) -> str:
    """README with its tables made anew, by name. Raises ConfigError where one has no place in it."""
    for name, table in tables.items():
        mark, end = marks(name)
        if not 0 <= readme.find(mark) < readme.find(end):
            raise ConfigError(f"README.md: {mark} and {end} are needed around its table")
        before, _, rest = readme.partition(mark)
        readme = f"{before}{mark}\n{table}\n{end}{rest.partition(end)[2]}"
    return readme


def experiments_table(table: pd.DataFrame) -> str:
    """`comparison.experiments_table`: some of its columns."""
    rows = []
    for name, *cells in table[[*EXPERIMENTS]].itertuples(index=False):
        rows.append([name.replace(", контроль", " control"), *map(_pointed, cells)])
    return _markdown([*EXPERIMENTS.values()], rows)


def claims_table(found: Sequence[Verdict]) -> str:
    """The claims that the report begins with: effect, interval between trainings, where, verdict."""
    by_name = {v.comparison.name: v for v in found}
    rows = []
    for name in MAIN:
        v, (claim, source) = by_name[name], CLAIMS[name]
        effect = _pointed(v.effect_alone).replace("; ", " to ") if v.between else "—"
        mark = f"{NBSP}•" if v.comparison.primary else ""
        kls = _pointed(v.kls) or "—"
        n = v.n.replace("из", "of")
        rows.append([claim + mark, source, effect, kls, n, WORDS[v.word]])
    return _markdown(["claim", "from", "difference", "KL, nats", "trainings", "verdict"], rows)


def _pointed(cell: str) -> str:
    """Numbers with decimal points."""
    return cell.replace(",", ".")


def _markdown(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines).replace(NBSP, " ")
