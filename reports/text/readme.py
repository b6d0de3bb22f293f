"""README's tables, in English, each between its two marks."""

from collections.abc import Mapping, Sequence

import pandas as pd

from reports.text.studies import ALIKE, HOLDS, MAIN, NONE, REFUTED, UNKNOWN, Verdict
from reports.text.words import NBSP
from warp_core.config import ConfigError

EXPERIMENTS = {  # columns of `experiments_table`
    "Опыт": "experiment",
    "Прирост награды": "gain in reward",
    "KL(sft‖warp)": "KL(sft‖warp)",
    "KL(warp‖sft)": "KL(warp‖sft)",
    "Прирост по обучениям (их число)": "gain over trainings (how many)",
}
CLAIMS = {  # comparisons that the report begins with: what is claimed, and by whom
    "four_against_one": (
        "four merged runs are above one run of four times the steps with its LITI",
        "asked by the paper's reviewers",
    ),
    "two_against_one": (
        "two merged runs are above one run of twice the steps with its LITI",
        "asked by the paper's reviewers",
    ),
    "liti_above_trajectory": ("a run's LITI is above its own trajectory", "Fig. 4a"),
    "slerp_above_lerp": ("SLERP is above LERP at λ = 0.5, whatever the KL", "Fig. 3c"),
    "slerp_above_lerp_at_equal_kl": (
        "SLERP of four runs is above their LERP beyond η = 1",
        "our question",
    ),
    "merge_above_run": ("the merge of four runs is above one of them", "Fig. 4b"),
    "ema_above_sft": ("a KL to the EMA of the policy is above one to SFT", "Fig. 3b"),
    "second_iteration": ("the second iteration is above the first", "Fig. 4c"),
    "t30_gains": ("T = 30 gains more than T = 10, whatever the KL", "the seed's next step"),
    "fourth_is_worse": ("WARP is below SFT in experiment 4, whatever the KL", "the seed report"),
}
WORDS = {
    HOLDS: "holds",
    REFUTED: "the opposite holds",
    ALIKE: "alike: within 0.15",
    UNKNOWN: "cannot be told",
    NONE: "too few trainings",
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
    """The claims that the report begins with: effect, interval between trainings, verdict."""
    by_name = {v.comparison.name: v for v in found}
    rows = []
    for name in MAIN:
        v, (claim, source) = by_name[name], CLAIMS[name]
        effect = _pointed(v.effect_alone).replace("; ", " to ") if v.between else "—"
        n = v.trainings.removeprefix("обучений: ").replace("из", "of")
        mark = f"{NBSP}•" if v.comparison.primary else ""
        rows.append([claim + mark, source, effect, n, WORDS[v.word]])
    return _markdown(["claim", "from", "difference", "trainings", "verdict"], rows)


def _pointed(cell: str) -> str:
    """Numbers with decimal points."""
    return cell.replace(",", ".")


def _markdown(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines).replace(NBSP, " ")
