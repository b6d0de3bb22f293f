"""Verdicts, tables, figures and first sentences of studies, from rows that nobody measured."""

import itertools
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from invented import summary

from reports.text import (
    claims,
    comparison,
    curves,
    forest,
    policies,
    readme,
    studies,
    study_figures,
    verdicts,
)
from reports.text.figures import figure_of
from reports.text.statistics import Curve, comparisons, fits, load_study
from reports.text.svg import svg_text
from warp_core.evaluate import between_trainings
from warp_core.store.files import read_jsonl, write_jsonl
from warp_core.study import digests, wanted
from warp_core.world.studies import Comparison, Study

ROOT = Path(__file__).resolve().parents[3]
GEOMETRY = {
    "angle": [80.0, 89.0, 91.0],
    "gram": [[4, 0, 2], [0, 4, 2], [2, 2, 2]],
    "cosine": 0.9999,
}


def rows_of(study, above):
    """On one line in √KL, but for the merged policies, which lie above it."""
    rng = np.random.default_rng(0)
    rows = []
    for k, ((seed, point), digest) in enumerate(zip(wanted(study), digests(study), strict=True)):
        size = (point.t if isinstance(point.t, int) else 40) * (point.eta or 1.0)
        size *= {"lerp": 0.7, "ema": 0.9, "average": 0.8}.get(point.what, 1.0)
        kl = 0.0 if seed is None else (size / 30) ** 2 + 0.001 * k
        reward = 0.3 + 0.2 * kl**0.5 + (above if point.arm == "merged" else 0.0)
        reward += 0.0 if seed is None else float(rng.normal(0, 0.02))
        row = {"version": 2, "study": study.name, "seed": seed, **point.model_dump()}
        row |= {
            key: {"mean": mean, "stderr": 0.1, "n": 256}
            for key, mean in (("reward", reward), ("kl", kl))
        }
        row |= {"judge": {"mean": reward / 4, "stderr": 0.01, "n": 256}, "length": 15.0}
        row |= {"repetition": 0.05, "distinct_pairs": 0.9, "seconds": {"all": 120.0, "chain": 60.0}}
        row |= {
            "digest": digest,
            "device": "a processor",
            "reward_model": "one",
            "sft_reward": 0.3,
            "precision": "fp32",
        }
        if point.what in ("slerp", "lerp") and point.m == 2 and point.eta == 1:
            row["geometry"] = GEOMETRY
        rows.append(row)
    return rows


@pytest.fixture
def project(tmp_path, monkeypatch):
    """All studies of the project, with rows: of all, or of those that are named."""
    shutil.copytree(ROOT / "params", tmp_path / "params")
    monkeypatch.chdir(tmp_path)

    def filled(above=0.0, names=None):
        every = verdicts.load_studies()
        for study in every:
            if names is None or study.name in names:
                write_jsonl(study.path, rows_of(study, above))
        return every

    return filled


def named(found):
    return {verdict.comparison.name: verdict for verdict in found}


@pytest.mark.parametrize(
    ("above", "word", "told"),
    [
        (0.3, verdicts.HOLDS, "Слияние окупается"),
        (-0.3, verdicts.REFUTED, "Слияние проигрывает"),
        (0.0, verdicts.ALIKE, "Слияние позволяет обучать параллельно"),
    ],
)
def test_a_verdict_follows_from_the_interval_and_the_first_sentence_from_it(
    above, word, told, project
):
    found = verdicts.of_studies(project(above))
    four = named(found)["four_against_one"]
    assert four.word == word
    assert four.between["mean"] == pytest.approx(above, abs=0.03)
    assert len(four.by_seed) == four.between["n"] == 5
    first, second, third = claims.headline(found)
    assert first.startswith(f"**{told}")
    assert "обучений" not in first  # five, as most have
    assert second.endswith(".")
    assert "при T = 30 и T = 10 награда неразличима" in third


def test_primary_comparisons_are_corrected_together_and_so_are_the_others(project):
    found = verdicts.of_studies(project(0.01))
    primary = [v for v in found if v.comparison.primary]
    assert len(primary) == 6
    assert max(v.p / v.between["p"] for v in primary) == pytest.approx(6)
    others = [v for v in found if not (v.comparison.primary or math.isnan(v.p))]
    ranked = sorted(others, key=lambda v: v.between["p"])
    assert ranked[-1].p == ranked[-1].between["p"]
    smallest = min(len(others) / k * v.between["p"] for k, v in enumerate(ranked, 1))
    assert ranked[0].p == pytest.approx(smallest)
    not_worse = [v for v in found if math.isnan(v.p)]
    assert {v.comparison.name for v in not_worse} == {"ema_as_output", "checkpoints_give_nothing"}
    assert {v.p_text for v in not_worse} == {"—"}


def test_what_has_not_been_computed_is_said_and_counts_among_the_primary(project):
    every = project(0.3, names=["iterations"])
    found = verdicts.of_studies(every)
    words = {v.study.name: v.word for v in found}
    assert words["liti"] == verdicts.NONE
    four = named(found)["four_against_one"]
    two = named(found)["two_against_one"]
    low, high = sorted(v.between["p"] for v in (four, two))
    assert sorted((four.p, two.p)) == pytest.approx([6 * low, max(6 * low, 5 * high)], rel=1e-9)
    assert "обучений: 0 из 5" in claims.headline(found)[1]
    study = next(study for study in every if study.name == "liti")
    assert verdicts.load_rows(study) == []
    assert "make study NAME=liti" in studies.question(study, [])
    assert len(policies.policies_table([])) == 0
    of_liti = [v for v in found if v.study == study]
    assert all("**Ещё не вычислено**" in line for line in verdicts.lead(of_liti))
    assert forest.table(of_liti).count("ещё не вычислено") == len(of_liti)
    assert study_figures.figures_of(study, []) == []
    assert study_figures.pareto({}) is None
    assert study_figures.agreement({}) is None


def test_a_training_counts_when_all_rows_of_a_curve_are_there_and_of_one_reward_model(project):
    every = project(0.3)
    study = next(study for study in every if study.name == "iterations")
    rows = verdicts.load_rows(study)
    of_four = [row for row in rows if row["arm"] == "merged" and row["m"] == 4 and row["seed"] == 3]
    write_jsonl(study.path, [row for row in rows if row is not of_four[1]])
    assert set(named(verdicts.of_studies(every))["four_against_one"].by_seed) == {1, 2, 4, 5}
    for of_other, counted in ((0.3001, 5), (0.35, 4)):  # θ_sft's reward by another reward model
        other = {"reward_model": "two", "sft_reward": of_other}
        write_jsonl(study.path, [row | (other if row is of_four[1] else {}) for row in rows])
        by_seed = named(verdicts.of_studies(every))["four_against_one"].by_seed
        assert len(by_seed) == counted
        assert (3 in by_seed) == (counted == 5)


def test_tables_are_the_rows(project):
    every = project()
    found = verdicts.of_studies(every)
    assert len(verdicts.claims_table(found)) == sum(len(comparisons(study)) for study in every)
    for study in every:
        rows = verdicts.load_rows(study)
        table = policies.policies_table(rows).set_index("Политика")
        assert table.loc["SFT-модель", "Обучений"] == "—"
        halves = sum(row["m"] == 2 and row["lam"] == 0.5 for row in rows)  # a second time
        assert table["Обучений"].drop("SFT-модель").sum() == len(rows) - 1 - halves
        for name, of_policy in policies.by_policy(rows).items():
            rewards = [row["reward"]["mean"] for row in of_policy]
            assert table.loc[name, "Награда"] == policies.mean_text(rewards, 2)
        few = any(each.get("seeds") for each in study.policies)
        said = studies.question(study, rows)
        assert f"Обучений: {'3–' * few}{len(study.seeds)}; отложенных промптов: " in said
    assert policies.mean_text([1.0, 2.0, 3.0], 2) == "2,00\u00a0±\u00a00,58"
    assert policies.mean_text([1.234], 2) == "1,23"
    assert policies.mean_text([0.0, 0.0], 2) == "0\u00a0±\u00a00"
    assert policies.mean_text([6.8660607570563226] * 5, 1) == "6,9\u00a0±\u00a00,0"


def test_readme_has_the_claims_that_the_report_begins_with_in_english(project):
    found = verdicts.of_studies(project(0.3))
    _, _, *lines = readme.claims_table(found).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len(cells) == len(verdicts.MAIN)
    four = named(found)["four_against_one"]
    mean, low, high = (f"{four.between[key]:.2f}" for key in ("mean", "low", "high"))
    kls = four.kls.replace(",", ".")
    assert re.fullmatch(r"\d\.\d–\d\.\d", kls)
    assert cells[1][2:] == [f"{mean} [{low} to {high}]", kls, "5", "holds"]
    assert cells[6][0] == "SLERP is above LERP at λ = 0.5, each at its own KL •"
    assert cells[6][3] == "—"
    assert [cell[0].endswith("•") for cell in cells].count(True) == 6
    assert not re.search("[а-яё]", "".join(lines), re.IGNORECASE)


def test_readme_says_how_many_trainings_are_missing(project):
    found = verdicts.of_studies(project(names=[]))
    for line in readme.claims_table(found).splitlines()[2:]:
        assert re.search(r"\| — \| — \| 0 of \d \| not computed yet \|$", line)


def test_the_lemmas_are_checked_on_the_weights_that_were_measured(project):
    """Two runs of norm 2 at a right angle, and a merge of norm √2: LERP's, not SLERP's."""
    merge = next(study for study in project() if study.name == "merge")
    table = studies.lemmas_table(verdicts.load_rows(merge)).set_index("Величина")
    assert table.loc["Угол между векторами задач двух запусков, °", "Измерено"] == "89,0"
    assert (
        table.loc["Угол между векторами задач двух запусков, °", "Верно"] == "5 из 5"
    )  # trainings
    assert table.loc["Норма LERP к формуле леммы", "Измерено"].endswith("–1,00")  # at λ = 0,5
    assert table.loc["Норма SLERP к средней норме запусков", "Верно"].startswith("0 из")


def test_figures_show_each_curve_with_its_trainings(project):
    every = project()
    for study in every:
        rows = verdicts.load_rows(study)
        labels = curves.plane(study, rows).get_legend_handles_labels()[1]
        assert len(labels) == len(study.curves) + 1, study.name
        shown = study_figures.figures_of(study, rows)
        assert bool(shown) == (study.name != "seed_report")
        assert len({figure.label for figure in shown}) == len(shown)
        for figure in shown:
            assert figure.data
            for panel in figure.panels:
                assert "<svg" in svg_text(figure_of(panel), figure.caption)


def test_a_drawn_policy_is_the_mean_of_its_trainings():
    about = {"arm": "merged", "what": "slerp", "iteration": 1, "m": 2, "t": None, "lam": None}
    about |= {"study": "text"}
    rows = [
        about | {"seed": seed, "eta": 1.0, "kl": {"mean": kl}, "reward": {"mean": reward}}
        for seed, kl, reward in ((1, 4.0, 1.0), (2, 6.0, 1.5))
    ]
    ax = curves.new_axes()
    axes = (lambda row: row["kl"]["mean"]), (lambda row: row["reward"]["mean"])
    curves.curve(ax, rows, *axes, "метод", (0.0, 0.0), **curves.style_of({"what": "slerp"}))
    told = re.findall('SLERP 2: [^<"]*', svg_text(figure_of(ax), "имя").replace("\xa0", " "))
    assert {*told} == {"SLERP 2: 1,25 при 5 (обучений: 2)"}


def test_the_forest_has_a_row_a_claim_and_a_dot_a_training(project):
    found = verdicts.of_studies(project(0.3))
    whole, short = forest.table(found), forest.table(found, short=True)
    assert whole.count("<tr>") == len(found) + 1
    assert short.count("<tr>") == len(verdicts.MAIN) + 1
    assert whole.count("<circle") == sum(len(v.by_seed) for v in found)
    assert 'href="#study_iterations"' in short
    assert {v.p_text for v in found} >= {"<\u00a00,001"}
    assert "&lt;\u00a00,001" in whole
    assert "<\u00a0" not in whole
    assert len(forest.data(found)) == sum(len(v.by_seed) for v in found)


def test_a_training_in_the_forest_is_in_the_unit_of_its_claim():
    v = verdict(-0.14, -0.25, -0.3, expected="less")
    v = replace(v, comparison=v.comparison.model_copy(update={"measure": "distinct_pairs"}))
    assert "<title>seed 1: −14,0</title>" in forest.table([v])
    (row, *_) = forest.data([v])
    assert (row["unit"], row["seed"]) == ("п. п.", 1)
    assert row["difference"] == pytest.approx(-14.0)
    assert row["mean"] == pytest.approx(-23.0)
    small = replace(v, by_seed={1: 4.6e-6, 2: 5e-6})
    assert "seed 1: 0,00046<" in forest.table([small])


def test_partial_rows_are_shown_and_said(project):
    every = project(0.3)
    for study in every:
        rows = [row for row in verdicts.load_rows(study) if row["seed"] in (None, 1)][:7]
        write_jsonl(study.path, rows)
        assert "Остальные вычисляет" in studies.question(study, rows)
        for figure in study_figures.figures_of(study, rows):
            for panel in figure.panels:
                svg_text(figure_of(panel), figure.caption)
    found = verdicts.of_studies(every)
    assert all(v.effect.startswith("готово обучений: ") for v in found if not v.between)
    paper = len(claims.of_paper(found))
    said = claims.counted(found)
    for n in (paper, len(found) - paper):
        assert f"({n}): подтверждено 0, опровергнуто 0" in said
        assert f"ещё не вычислено {n}." in said


def test_two_trainings_give_no_verdict_where_three_are_asked_for(project):
    every = project(0.3)
    for study in every:
        rows = [row for row in verdicts.load_rows(study) if row["seed"] in (None, 1, 2)]
        write_jsonl(study.path, rows)
    found = verdicts.of_studies(every)
    assert {(v.word, len(v.by_seed)) for v in found} == {(verdicts.NONE, 2)}
    assert all(v.effect == f"готово обучений: 2 из {v.of}" for v in found)


def test_differences_are_of_one_training_at_one_kl_and_not_beyond_the_front():
    """Two fronts that are straight over √KL, with slopes of their own in each training."""

    def row(what, seed, kl, slope):
        measured = {key: {"mean": mean} for key, mean in (("kl", kl), ("reward", slope * kl**0.5))}
        keys = {"arm": what, "what": what, "iteration": 1, "m": 1, "t": 3, "lam": None}
        return {"study": "mine", "seed": seed, "eta": kl, **keys, **measured}

    slopes = {1: 1.0, 2: 3.0}
    front = [row("run", seed, kl, a) for seed, a in slopes.items() for kl in (1.0, 4.0)]
    kls = (0.25, 1.0, 4.0, 9.0)
    other = [row("slerp", seed, kl, a + 0.5) for seed, a in slopes.items() for kl in kls]
    other += [row("slerp", 3, 1.0, 7.0)]  # of a training that the front does not have
    sft = {"kl": {"mean": 0.0}, "reward": {"mean": 0.0}}
    style = {"color": "k", "marker": "o", "linestyle": "-"}
    ax = study_figures.over_front([(style, other)], front, sft, "одного запуска")
    points = [line.get_xydata()[0] for line in ax.get_lines() if len(line.get_xydata()) == 1]
    assert [kl for kl, _ in points] == [0.25, 1.0, 4.0]
    assert [over for _, over in points] == pytest.approx([0.25, 0.5, 1.0])
    assert "одного запуска" in ax.get_ylabel()


# Verdicts, from trainings that nobody made


def verdict(*differences, primary=False, expected="more", p=None, of=5):
    study = Study(name="s", arms={"a": {}, "b": {}}, seeds=[1, 2])
    comparison = Comparison(claim="Утверждение", primary=primary, expected=expected)
    between = between_trainings(differences)
    by_seed = dict(enumerate(differences, 1))
    return verdicts.Verdict(study, comparison, by_seed, between, p or between["p"], of)


def of_each_word():
    return {
        verdicts.HOLDS: verdict(0.3, 0.32, 0.28),
        verdicts.LITTLE: verdict(0.05, 0.06, 0.04),
        verdicts.REFUTED: verdict(-0.3, -0.32, -0.28),
        verdicts.ALIKE: verdict(0.01, -0.01, 0.0),
        verdicts.UNKNOWN: verdict(1, -1, 0.2),
        verdicts.NONE: replace(verdict(0.3, 0.3), between={}),
    }


def test_the_word_of_a_verdict():
    for word, v in of_each_word().items():
        assert v.word == word
    clear, small, wide = (
        [0.3, 0.32, 0.28, 0.31, 0.3],
        [0.02, -0.03, 0.04, 0.0, -0.02],
        [1, -1, 0.5, -0.4, 0.1],
    )
    assert verdict(*clear).word == verdicts.HOLDS
    assert verdict(*clear, expected="less").word == verdicts.REFUTED
    assert verdict(*[-x for x in clear], expected="less").word == verdicts.HOLDS
    assert verdict(*small).word == verdicts.ALIKE
    assert verdict(*wide).word == verdicts.UNKNOWN
    corrected = verdict(
        *clear, primary=True, p=0.12
    )  # Holm's p decides, though its interval is beyond zero
    assert corrected.word == verdicts.UNKNOWN
    assert corrected.between["low"] > 0
    less = [-0.04, -0.05, -0.06, -0.05, -0.05]  # told from zero, and nothing to speak of
    assert verdict(*less).word == verdicts.REFUTED
    assert verdict(*less, expected="less").word == verdicts.LITTLE
    assert verdict(*clear, of=8).trainings == "готово обучений: 5 из 8"
    assert verdict(*clear, of=5).trainings == "обучений: 5"
    assert "обучений: 5 из 8" in verdict(*clear, of=8).sentence.replace("\u00a0", " ")


@pytest.mark.parametrize(
    ("expected", "low", "high", "p", "word"),
    [
        ("more", 0.2, 0.4, 0.049, verdicts.HOLDS),
        ("more", 0.2, 0.4, 0.051, verdicts.UNKNOWN),
        ("more", 0.01, 0.099, 0.01, verdicts.LITTLE),
        ("more", 0.01, 0.101, 0.01, verdicts.HOLDS),
        ("more", -0.099, 0.099, 0.5, verdicts.ALIKE),
        ("more", -0.101, 0.02, 0.5, verdicts.UNKNOWN),
        ("less", -0.101, -0.02, 0.01, verdicts.HOLDS),
        ("not_less", -0.099, 0.3, math.nan, verdicts.HOLDS),
        ("not_less", -0.101, 0.3, math.nan, verdicts.UNKNOWN),
        ("not_more", 0.101, 0.3, math.nan, verdicts.REFUTED),
    ],
)
def test_a_verdict_turns_at_a_p_of_five_percent_and_a_tenth_of_a_point(
    expected, low, high, p, word
):
    between = {"mean": (low + high) / 2, "low": low, "high": high, "p": p, "n": 5}
    assert replace(verdict(0, 0, expected=expected, p=p), between=between).word == word


def test_p_is_corrected_by_holm_among_the_primary_and_by_benjamini_and_hochberg_among_others():
    """One primary comparison is missing and counts; of the others one is, and does not."""

    def found(p, primary=False, expected="more"):
        v = verdict(0, 0, primary=primary, expected=expected, p=0.5)
        return replace(v, between={} if p is None else v.between | {"p": p})

    given = [
        found(0.04),
        found(0.01, primary=True),
        found(0.01),
        found(None, primary=True),
        found(None),
        found(0.02),
        found(0.001, expected="not_less"),
        found(0.001, primary=True, expected="not_less"),
    ]
    corrected = verdicts._corrected(given)
    assert corrected[:4] == pytest.approx([0.04, 0.02, 0.03, 1.0])
    assert corrected[5] == pytest.approx(0.03)
    assert all(map(math.isnan, corrected[6:]))


def test_a_primary_comparison_needs_five_trainings(project):
    every = project(0.3)
    for study in every:
        rows = [row for row in verdicts.load_rows(study) if row["seed"] in (None, 1, 2, 3)]
        write_jsonl(study.path, rows)
    for v in verdicts.of_studies(every):
        assert (v.word == verdicts.NONE) == v.comparison.primary


def test_each_first_sentence_tells_of_its_comparisons(project):
    """Each has an effect of its own, in the order of the sentences."""
    told = [
        ["four_against_one", "long_run_goes_on", "four_iterations_against_one"],
        [
            "liti_above_trajectory",
            "liti_above_sft_trajectory",
            "slerp_above_lerp_at_equal_kl",
            "ema_above_sft",
        ],
        ["fourth_is_worse", "t30_gains", "t100_gains"],
    ]
    names = [*itertools.chain(*told)]
    effects = {name: 1.11 * k for k, name in enumerate(names, 1)}
    found = [
        replace(v, between=between_trainings([effects[v.comparison.name]] * 2), p=0.001, curves={})
        if v.comparison.name in effects
        else v
        for v in verdicts.of_studies(project(0.3))
    ]
    for sentence, its in zip(claims.headline(found), told, strict=True):
        said = re.findall(r"(\d+,\d\d)\xa0балла", sentence)
        assert said == [f"{effects[name]:.2f}".replace(".", ",") for name in its]


def test_the_second_sentence_says_how_the_differences_of_liti_change(project):
    found = verdicts.of_studies(project(0.3))
    second = claims.headline(found)[1]
    for name in ("liti_above_trajectory", "liti_above_sft_trajectory"):
        along = named(found)[name].along
        assert len(along) > 1
        kl, first = next(iter(along.items()))
        assert f": {first.effect_alone.split(' [')[0]} при KL {kl} " in second


def test_the_paper_claims_are_counted_by_what_came_of_them():
    of_paper = [
        replace(v, comparison=v.comparison.model_copy(update={"source": "статья, рис. 1"}))
        for k, v in enumerate(of_each_word().values(), 1)
        for _ in range(k)
    ]
    assert claims.tally_of_paper([*of_paper, *of_each_word().values()]) == (
        "Утверждения статьи (21): подтверждено 3 (из них 2 с интервалом в пределах ±0,1 балла), "
        "опровергнуто 3, неразличимо 4, нельзя сказать 5, ещё не вычислено 6"
    )


def test_every_outcome_has_a_first_sentence(project):
    found = verdicts.of_studies(project(0.3))
    names = ("four_against_one", "liti_above_trajectory", "slerp_above_lerp_at_equal_kl")
    names += ("fourth_is_worse", "t30_gains")
    outcomes = of_each_word()
    said = set()
    for words in itertools.product(outcomes, repeat=len(names)):
        given = {
            name: replace(
                outcomes[word], comparison=v.comparison.model_copy(update={"expected": "more"})
            )
            for name, word in zip(names, words, strict=True)
            for v in [named(found)[name]]
        }
        sentences = claims.headline(
            [*(v for v in found if v.comparison.name not in names), *given.values()]
        )
        assert len(sentences) == 3
        said.add(tuple(sentences))
    assert len(said) == len(outcomes) ** len(names)


@pytest.mark.parametrize(
    ("expected", "differences", "word"),
    [
        ("not_less", (0.0, 0.02, -0.02, 0.01, 0.01), verdicts.HOLDS),
        ("not_less", (-0.05, -0.05, -0.06, -0.04, -0.05), verdicts.HOLDS),
        ("not_less", (-0.3, -0.3, -0.28, -0.31, -0.3), verdicts.REFUTED),
        ("not_less", (-0.3, 0.3, 0.1, -0.2, 0.0), verdicts.UNKNOWN),
        ("not_more", (0.05, 0.06, 0.05, 0.04, 0.05), verdicts.HOLDS),
        ("not_more", (-0.5, -0.4, -0.6, -0.5, -0.5), verdicts.HOLDS),
        ("not_more", (0.3, 0.3, 0.28, 0.31, 0.3), verdicts.REFUTED),
    ],
)
def test_not_less_and_not_more_are_but_for_a_small_difference(expected, differences, word):
    assert verdict(*differences, expected=expected, p=math.nan).word == word


def test_differences_along_the_curves_are_of_all_trainings():
    """Ours is above theirs by 0.5, 0.6 and 0.7 at each KL; one training's curve ends at 9 nats."""

    def line(above, to):
        kls = np.array([1.0, 4.0, to])
        return Curve(np.sqrt(kls).tolist(), (np.sqrt(kls) + above).tolist(), above)

    pairs = {k: (line(0.4 + 0.1 * k, 16.0 - 7 * (k == 3)), line(0, 16.0)) for k in (1, 2, 3)}
    v = replace(verdict(0.5, 0.6, 0.7), curves=pairs)
    assert {kl: each.effect_alone for kl, each in v.along.items()} == dict.fromkeys(
        (3, 6, 9), "0,60 [0,35; 0,85]"
    )
    assert v.kls == "1,0–13,4"  # the mean of 4, 4 and 3, squared
    table = verdicts.profile_table([v, verdict(0.5, 0.6, 0.7)])
    assert table.iloc[:, 4].tolist() == ["—"]
    assert list(table.columns)[1:3] == ["При KL 3 ната", "При KL 6 нат"]


def test_where_two_that_are_alike_on_average_are_not_is_said():
    """Ours is below theirs by 0.02 up to 6 nats, and by 0.2 at 9."""
    roots = np.sqrt([1.0, 4.0, 6.0, 9.0, 10.0]).tolist()

    def pair(k):
        theirs = np.array(roots)
        ours = theirs - [0.02, 0.02, 0.02, 0.2 + 0.001 * k, 0.2]
        return Curve(roots, ours.tolist(), 0.0), Curve(roots, theirs.tolist(), 0.0)

    v = verdict(-0.05, -0.05, -0.06, p=1.0)
    assert v.word == verdicts.ALIKE
    assert v.unlike == ""
    v = replace(v, curves={k: pair(k) for k in (1, 2, 3)})
    assert v.unlike == (", но при KL\u00a09 нат −0,20 [−0,20; −0,20]")
    assert v.sentence.endswith(f"{v.unlike}.")
    assert replace(v, p=0.01).unlike == ""  # told from zero, and of another word


def test_a_forest_has_a_scale_of_rewards_where_a_step_of_it_fits():
    ticks = ">−{0}<", ">0<", ">{0}<"
    for reach, step in ((0.53, "0,2"), (0.3, "0,2"), (0.12, "0,05"), (1.3, "1")):
        shown = forest.table([verdict(reach, reach, reach)])
        assert all(tick.format(step) in shown for tick in ticks), reach
        assert shown.count("<text") == 3
    assert forest.table([replace(verdict(0.1, 0.2), by_seed={}, between={})]).count("<text") == 0


def test_empty_answers_are_not_diverse():
    row = {
        "study": "seed_report",
        "what": "warp",
        "arm": "experiment_3",
        "seed": 1,
        "m": None,
        "iteration": None,
        "t": None,
    }
    row |= {"lam": None, "eta": None, "reward": {"mean": -0.04}, "kl": {"mean": 55.6}}
    shares = {"repetition": 0.0, "distinct_pairs": 1.0}
    for length, shown in ((0.023, ["0,0", "0,0"]), (24.0, ["0,0", "100,0"])):
        (cells,) = policies.policies_table([row | shares | {"length": length}]).to_dict("records")
        assert [cells["Повторы, %"], cells["Различных пар слов, %"]] == shown


def test_where_the_text_is_gone_it_is_said():
    def row(seed, reward, judge, repetition, length=20.0, pairs=0.9):
        row = {"what": "sft" if seed is None else "warp", "seed": seed, "repetition": repetition}
        row |= {"length": length, "distinct_pairs": pairs}
        return row | {"reward": {"mean": reward}, "judge": {"mean": judge}}

    whole = [row(None, 0.19, 0.15, 0.07), row(1, 1.1, 0.3, 0.08)]
    assert policies.collapse_sentence(whole) == policies.collapse_sentence([]) == []
    short, repeating = row(1, -0.04, 0.05, 0.0, 0.02, 1.0), row(1, 1.11, 0.06, 0.95, pairs=0.01)
    (said,) = policies.collapse_sentence([*whole, short])
    assert said.startswith(
        "Текст выродился у 1 политики из 2: у 1 — слов более чем втрое меньше, чем у "
    )
    assert (
        "При этом награда — −0,04 балла (у SFT-модели 0,19), оценка второго судьи — 0,05 (у "
        in said
    )
    (said,) = policies.collapse_sentence(
        [*whole, short, repeating, row(2, 1.0, 0.1, 0.1, pairs=0.2)]
    )
    assert said.startswith(
        "Текст выродился у 3 политик из 4: у 1 — слов более чем втрое меньше, чем у "
    )
    assert (
        "у 1 — больше половины слов повторяется, у 1 — доля различных пар слов более чем втрое"
        in said
    )
    assert "При этом награда — от −0,04 до 1,11 балла (у" in said
    assert said.endswith("(у SFT-модели 0,15).")  # no single policy deceives both
    (said,) = policies.collapse_sentence([*whole, short, row(2, 2.9, 1.0, 0.96)])
    assert said.endswith("; бывает, что обе выше, чем у SFT-модели.")


def test_every_word_has_its_sentence():
    told = (claims.WORTH, claims.WHOLE, claims.ABOVE, claims.BY_LERP, claims.BY_ANCHOR)
    for by_word in (*told, claims.FOURTH, claims.LONGER, claims.SAID, readme.WORDS):
        assert by_word.keys() == verdicts.MARKS.keys()
    assert readme.CLAIMS.keys() == verdicts.MAIN.keys()


def test_what_it_means_follows_from_the_verdicts(project):
    for above, said in (
        (0.3, "Запуски стоит сливать"),
        (0.0, "слитые запуски по награде заменяют один запуск"),
    ):
        lines = claims.advice(verdicts.of_studies(project(above)))
        assert sum(said in line for line in lines) == 1
        assert all(line.startswith("- ") and "[@study_" in line for line in lines)
    for study in verdicts.load_studies():
        study.path.unlink()
    assert claims.advice(verdicts.of_studies(verdicts.load_studies())) == [
        "Ещё ничего: обучений мало."
    ]


def test_the_cost_of_merging_is_told_in_time_too(project):
    iterations = next(study for study in project() if study.name == "iterations")
    rows = verdicts.load_rows(iterations)
    _, said = studies.remarks(iterations, rows)
    assert "занимает 1,0 мин" in said.replace("\u00a0", " ")
    assert studies.cost_sentence([row for row in rows if row["arm"] != "merged"]) == []


def test_curves_without_a_common_kl_are_not_called_uncomputed_trainings():
    v = verdict(0.1, 0.2, 0.3, of=3)
    low, high = (Curve([a, b], [0.0, 0.0], 0.0) for a, b in ((1.0, 2.0), (3.0, 4.0)))
    apart = replace(v, by_seed={}, between={}, curves=dict.fromkeys((1, 2, 3), (low, high)))
    assert apart.effect == "готово обучений: 0 из 3, без общей KL: 3"
    assert replace(v, by_seed={}, between={}).effect == "готово обучений: 0 из 3"


def test_a_study_of_ones_own_has_its_names_and_a_style_for_each_of_its_policies(project):
    """Names of arms are this project's in its studies alone; without curves all policies are drawn."""
    merge = next(study for study in project() if study.name == "merge")
    rows = [{**row, "study": "mine"} for row in verdicts.load_rows(merge)]
    runs = next(row for row in rows if row["what"] == "run" and row["arm"] == "five")
    assert policies.policy_name(runs) == "five: запуск, t = 30"
    assert policies.policy_name({**runs, "study": "merge"}) == "запуск, t = 30"
    mine = merge.model_copy(update={"name": "mine", "curves": []})
    ((ax,),) = (figure.panels for figure in study_figures.figures_of(mine, rows))
    lines, labels = ax.get_legend_handles_labels()
    kinds = {(row["arm"], row["what"]) for row in rows if row["arm"]}
    assert len(labels) == len(kinds) + 1  # θ_sft
    styles = {(line.get_color(), line.get_marker()) for line in lines}
    assert len(styles) == len(labels)


def test_a_study_says_where_its_policies_stand():
    """Over their trainings; without an arm that the sentence is not about, or has one training."""

    def warp(arm, seed, reward, kl):
        return {"arm": arm, "what": "warp", "seed": seed, "reward": reward, "kl": kl}

    rows = [warp("t10", 1, 1.0, 4.0), warp("t10", 2, 1.2, 5.0), warp("t30_warm", 1, 2.0, 9.0)]
    assert studies.seen_sentence("next_step", rows) == []
    rows += [warp("t100", 1, 2.0, 9.0), warp("t30", 1, 1.5, 8.0), warp("t30", 2, 1.5, 9.0)]
    (said,) = studies.seen_sentence("next_step", rows)
    assert said.replace("\xa0", " ") == (
        "WARP-модель без прогрева: T = 10 — награда 1,10 ± 0,10 балла, KL 4,5 ± 0,5 ната; T = 30 — награда "
        "1,50 ± 0,00 балла, KL 8,5 ± 0,5 ната (средние по обучениям ± стандартная ошибка)."
    )
    assert studies.seen_sentence("anchor", rows) == []


def test_policies_that_studies_are_read_off_at_are_asked_for():
    """Each of them is one policy a training, whose parameters the study's file has."""
    by_name = {study.name: study for study in verdicts.load_studies()}
    for name, (_, read) in studies.SEEN.items():
        for policy, keys in read.items():
            asked = [s for s, point in wanted(by_name[name]) if fits(point.model_dump(), keys)]
            assert len(asked) >= 3, policy
            assert sorted(asked) == by_name[name].seeds[: len(asked)], policy


def test_the_study_of_anchors_says_where_their_runs_stand_at_one_kl():
    """A run with the SFT anchor goes on learning where its KL stands still."""

    def run(arm, seed, *points):
        return [
            {"arm": arm, "what": "run", "seed": seed, "t": t, "kl": kl, "reward": reward}
            for t, kl, reward in points
        ]

    ema = [(15, 4.0, 1.0), (30, 8.0, 1.5), (60, 20.0, 2.5)]
    sft = [(15, 4.0, 1.0), (30, 8.0, 1.4), (60, 8.9, 1.8), (90, 9.6, 1.9)]
    rows = [*run("ema", 1, *ema), *run("ema", 2, *ema[:2], (45, 8.5, 1.6), (60, 24.4, 2.6))]
    assert studies.anchor_sentence(rows) == []
    rows += [*run("sft", 1, *sft), *run("sft", 2, *sft, (120, 8.7, 2.0))]
    (said,) = studies.anchor_sentence(rows)
    assert "до KL 20–24 нат, с якорем SFT — до 10. " in said
    assert "с KL не больше 9 нат у первого — после 30–45, у второго — после 60–120 (" in said


def test_the_seed_reports_questions_are_answered_by_one_training_and_by_many(project):
    found = verdicts.of_studies(project())
    rows = verdicts.load_rows(next(v.study for v in found if v.study.name == "seed_report"))
    summaries = {f"experiment_{k}": summary(difference=0.1 * k) for k in (3, 4)}
    _, rewards, *_, worse, further = comparison.questions(summaries, found, rows)
    gains = [
        row["reward"]["mean"] - row["sft_reward"] for row in rows if row["arm"] == "experiment_4"
    ]
    assert (
        f"в четвёртом эксперименте — {policies.mean_text(gains, 2)} балла (обучений: 5), "
        in rewards
    )
    assert "в третьем — от 0,22 до 0,27, в среднем 0,25" in rewards
    alone = comparison.questions(summaries, found, [])[1].replace("\xa0", " ")
    assert (
        "— 0,40 ± 0,10 балла в одном обучении (± ошибка оценки), в третьем — 0,30 ± 0,10" in alone
    )
    assert "просела (на 7,1·10⁻⁶)" in worse
    assert "обучений: 3" in further


def test_one_training_has_its_place_among_the_others():
    rows = [
        {"arm": arm, "sft_reward": 0.2, "reward": {"mean": 0.2 + gain}}
        for arm, gains in (("experiment_3", (0.1, 0.5)), ("experiment_4", (0.9, 1.0)))
        for gain in gains
    ]
    summaries = {
        name: summary(difference=0.3) for name in ("experiment_2", "experiment_3", "experiment_4")
    }
    (said,) = comparison.place_sentence(summaries, rows)
    assert "эксперимент 3 — среди них (0,30; у них от 0,10 до 0,50); 4 — ниже всех (0,30; " in said
    assert comparison.place_sentence(summaries, []) == []


def test_where_nothing_is_left_of_a_difference_it_is_said():
    """0.5 at 1 nat, 0.4 at 4, less than 0 at 9: above on average alone."""
    pairs = {
        seed: (Curve([1.0, 2.0, 3.5], [0.5 + off, 0.4 + off, -0.3 + off], 0.0), zero)
        for seed, off in enumerate((-0.01, 0.0, 0.01), 1)
        for zero in (Curve([1.0, 3.5], [0.0, 0.0], 0.0),)
    }
    above = replace(verdict(0.2, 0.25, 0.3, of=3), by_seed=dict.fromkeys(pairs, 0.25), curves=pairs)
    assert (above.word, list(above.along)) == (verdicts.HOLDS, [3, 6, 9, 12])
    assert above.unlike.startswith(", но при KL\xa09 нат −0,07 [")
    assert above.word_where == f"{verdicts.HOLDS}{above.unlike}"
    first_screen = claims._said(above, claims.ABOVE, along=True)  # says it as the end of the change
    assert first_screen.endswith(": 0,43 при KL 3 ната, −0,28 при 12")
    assert above.unlike not in first_screen
    assert above.unlike in claims._said(above, claims.ABOVE)
    not_less = above.comparison.model_copy(update={"expected": "not_less"})
    within = replace(above, comparison=not_less, p=math.nan)  # -0.07 is within the margin
    assert (within.word, within.unlike) == (
        verdicts.HOLDS,
        ", но при KL\xa012 нат −0,28 [−0,31; −0,26]",
    )


def test_an_interval_without_zero_that_cannot_be_told_has_its_corrected_p():
    open_ = replace(verdict(0.35, 0.53, 0.71, of=3), p=0.056)
    assert (open_.word, open_.corrected) == (verdicts.UNKNOWN, ", p с поправкой\xa00,056")
    assert replace(open_, p=0.01).corrected == ""
    assert replace(verdict(-0.1, 0.4, 0.9, of=3), p=0.3).corrected == ""


def test_an_interval_that_would_end_at_the_margin_is_written_further():
    """By its end it is told whether a difference is small."""
    inside, outside = verdict(0.068, 0.07, 0.072, of=3), verdict(0.0565, 0.0700, 0.0835, of=3)
    assert (inside.word, inside.effect_alone) == (verdicts.LITTLE, "0,07 [0,07; 0,07]")
    assert (outside.word, outside.effect_alone) == (verdicts.HOLDS, "0,070 [0,036; 0,104]")


def test_rows_of_other_parameters_are_not_shown(project):
    every = project(0.3)
    path = Path("params/studies.yaml")
    path.write_text(path.read_text() + "\nmax_new_tokens: 12\n")
    liti = next(study for study in every if study.name == "liti")
    assert verdicts.load_rows(liti) == []


def test_the_rows_of_the_repository_belong_to_its_parameters():
    for study in verdicts.load_studies(ROOT / "params"):
        rows = read_jsonl(ROOT / study.path)
        assert {row["digest"] for row in rows} <= set(digests(study)), study.name


def test_a_study_of_yours_changes_nothing_in_the_report(project):
    every = project(0.3)
    own = Path("params/study_mine.yaml")
    own.write_text(
        Path("params/study_iterations.yaml")
        .read_text()
        .replace("name: iterations", "name: mine", 1)
    )
    assert verdicts.load_studies() == every
    mine = load_study(own)
    assert verdicts.family(mine) == [mine]
    assert verdicts.family(every[0]) == every


@pytest.mark.parametrize(("expected", "sign"), [("more", 1), ("less", -1)])
def test_a_row_of_the_forest_lies_on_the_side_of_its_differences(expected, sign):
    differences = [sign * each for each in (0.2, 0.3, 0.25)]
    shown = forest.table([verdict(*differences, expected=expected)])
    dots = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', shown)]
    assert len(dots) == 3
    assert all(sign * (x - forest.WIDTH / 2) > 0 for x in dots)
    ((begin, wide),) = re.findall(r'<rect x="(\d+)" width="(\d+)"', shown)
    assert all(float(begin) <= x <= float(begin) + float(wide) for x in dots)
    ((low, high),) = re.findall(r'd="M([\d.]+) 11H([\d.]+)"', shown)
    assert float(low) < min(dots) < max(dots) < float(high)


def test_a_sentence_says_the_side_of_its_verdict():
    side = {verdicts.HOLDS: 1, verdicts.LITTLE: 1, verdicts.REFUTED: -1}
    upward = (
        claims.WORTH,
        claims.WHOLE,
        claims.ABOVE,
        claims.BY_LERP,
        claims.BY_ANCHOR,
        claims.LONGER,
    )
    for by_word, sign in (*((each, 1) for each in upward), (claims.FOURTH, -1)):
        for word, of_word in side.items():
            said, other = ("выше", "ниже") if sign * of_word > 0 else ("ниже", "выше")
            assert said in by_word[word]
            assert other not in by_word[word]
