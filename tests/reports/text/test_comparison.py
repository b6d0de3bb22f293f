"""Verdicts about the seed report's claims follow from the numbers, never from the construction."""

from invented import summary

from reports.text import comparison, experiment


def reproduced():
    """Summaries of the four experiments as the seed report describes them, but for the reward."""
    kls = {"1": 1e-6, "2": 0.02, "3": 90.0, "4": 10.0}
    return {f"experiment_{k}": summary(kl=kl, difference=0.0) for k, kl in kls.items()}


def verdicts(summaries):
    """Claim -> what came, and whether it agrees."""
    rows = comparison.seed_verdicts(summaries).itertuples(index=False)
    return {claim: (ours, word) for claim, ours, word in rows}


def disagreements(summaries):
    return [claim for claim, (_, word) in verdicts(summaries).items() if word == "расходится"]


def test_seed_verdicts_name_what_disagrees():
    summaries = reproduced() | {"experiment_1_control": summary(kl=1e-6, angle=0.0)}
    assert not disagreements(summaries)
    summaries["experiment_1_control"] = summary(kl=1e-6, angle=80.0)
    summaries["experiment_3"] |= {"training_reward": [0.5, 1.0]}
    summaries["experiment_4"] = summary(kl=95.0, difference=0.8)
    disagree = disagreements(summaries)
    for claim in (
        "проходят одинаково",
        "уходит дальше всего",
        "первой итерации больше",
        "между вторым и третьим",
        "даже на 0,001",
    ):
        assert sum(claim in line for line in disagree) == 1
    assert len(disagree) == 5


def test_that_runs_of_one_seed_coincide_is_no_verdict():
    without = verdicts(reproduced())
    assert not any("проходят одинаково" in claim for claim in without)
    control = {"experiment_1_control": summary(kl=1e-6, angle=89.1)}
    (claim,) = set(verdicts(reproduced() | control)) - set(without)
    ours, word = verdicts(reproduced() | control)[claim]
    assert (claim.partition(",")[0], word) == (
        "Запуски одной итерации проходят одинаково",
        "расходится",
    )
    assert "средний угол между векторами задач — 89,1°" in ours


def test_a_trial_without_all_experiments_claims_only_what_it_can_check():
    summaries = {f"experiment_{k}": summary(kl=1e-6, difference=0.0) for k in "14"}
    (first,) = verdicts(summaries)
    assert "В первом эксперименте" in first
    assert comparison.control_verdicts(summaries) == [
        "Эксперимента вместе с его контролем здесь нет."
    ]


def test_controls_are_set_beside_their_experiments():
    controls = {
        "experiment_1_control": summary(kl=2e-6, difference=0.0, angle=None),
        "experiment_4_control": summary(kl=3.0, difference=0.5, angle=85.25),
    }
    (said,) = comparison.control_verdicts(reproduced() | controls)
    assert "равен нулю по построению, при любых T и lr" in said
    assert "первой итерации — не определён (эксперимент 1), 85,2° (эксперимент 4)" in said
    apart = {"experiment_4": summary(angle=80.0)}  # not of one seed: nothing is by construction
    own_seeds = comparison.control_verdicts(controls | apart)
    assert len(own_seeds) == 1
    assert "по построению" not in own_seeds[0]


def test_labels_are_short():
    names = ["experiment_2", "experiment_1_control", "experiment_4_control", "my_run"]
    labels = ["2", "1, контроль", "4, контроль", "my_run"]
    assert [experiment.label(name) for name in names] == labels


def test_a_row_of_the_table_says_what_differs_and_what_came():
    params = {
        "experiment_1": {"lr": 1e-6, "warmup_steps": 100, "shared_run_seed": True},
        "experiment_4_control": {"lr": 5e-5, "warmup_steps": 0, "shared_run_seed": False},
    }
    summaries = {
        "experiment_1": summary(kl=1e-6, difference=0.0),
        "experiment_4_control": summary(),
    }
    about = {"what": "warp", "arm": "experiment_1", "sft_reward": 0.5}
    rows = [about | {"reward": {"mean": mean}} for mean in (0.7, 0.9)]
    first, fourth = comparison.experiments_table(summaries, params, rows).to_dict("records")
    assert (first["№"], first["lr"], first["Прогрев"], first["Seed"]) == (
        "1",
        "10⁻⁶",
        "100",
        "один",
    )
    assert (fourth["lr"], fourth["Прогрев"], fourth["Seed"]) == ("5·10⁻⁵", "нет", "свои")
    gain, other = (row["Прирост по обучениям (их число)"] for row in (first, fourth))
    assert (gain, other) == ("0,30\u00a0±\u00a00,10 (2)", "—")


def test_ours_stand_beside_the_seeds_figures():
    row = dict(comparison.seed_comparison({"experiment_3": summary(kl=90.0)}).iloc[0])
    assert row["Награда WARP − SFT, баллы: исходный отчёт"] == "−7·10⁻⁷"
    assert row["KL(sft‖warp), нат: исходный отчёт"] == "89,02149"
    assert row["KL(warp‖sft), нат: у нас"] == "90,00\u00a0±\u00a00,10"


def test_what_reproduces_the_report_is_named():
    meta = {
        "commit": "abc",
        "python": "3.11.7",
        "versions": {"torch": "2.13.0"},
        "device": "Some CPU",
        "cores": 2,
    }
    origins = [{"commit": "abc", "seconds": 60.0}, {"commit": "abc", "seconds": 0.0}]
    table = comparison.reproduction_table(meta, origins, 3000.0)
    assert list(table["Значение"]) == ["abc", "3.11.7", "2.13.0", "Some CPU, ядер: 2", "51 мин"]
