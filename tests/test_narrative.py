"""The report's sentences follow from its numbers."""

import numpy as np
import pandas as pd
import pytest

from reports import comparison
from warp_core import narrative
from warp_core.config import WarpConfig
from warp_core.evaluate import front_summary


def estimate(mean, stderr=0.1, n=16):
    return {"mean": mean, "stderr": stderr, "n": n}


def summary(
    kl=5.0,
    difference=1.0,
    repetition=0.05,
    distinct=1.0,
    empty=0.0,
    pairs=0.9,
    angle=0.0,
    training=(1.0, 0.5),
):
    text = {"words": 15.0, "repetition": 0.05, "distinct": 1.0, "distinct_pairs": 0.9, "empty": 0.0}
    after = {"words": 15.0, "repetition": repetition, "distinct": distinct, "distinct_pairs": pairs,
             "empty": empty}  # fmt: skip
    return {
        "sft_reward": estimate(0.0),
        "warp_reward": estimate(difference),
        "reward_difference": estimate(difference),
        "kl_sft_warp": estimate(kl),
        "kl_warp_sft": estimate(kl),
        "text": {"sft": text, "warp": after},
        "angles": [{"layers.0": [[0.0, angle], [angle, 0.0]]}],
        "training_reward": list(training),
    }


def metrics(curves):
    """Rows of metrics.jsonl from {(iteration, run): objectives}."""
    return pd.DataFrame(
        {"iteration": i, "run": m, "step": t, "objective": value, "same": 0.1, "empty": 0.0}
        for (i, m), values in curves.items()
        for t, value in enumerate(values, start=1)
    )


SAME = {(i, m): [0.0, 1.0, 2.0] for i in (1, 2) for m in (1, 2)}
SHARED = WarpConfig(steps=3, shared_run_seed=True)


def said(s, curves=SAME, config=SHARED):
    return " ".join(narrative.conclusion(s, metrics(curves), config))


def test_a_run_that_was_stopped_or_collapsed_is_told():
    rows = metrics(SAME)
    assert narrative.health(rows, SHARED) == []
    of_run_2 = (rows["iteration"] == 2) & (rows["run"] == 2)
    rows.loc[of_run_2 & (rows["step"] >= 2), "same"] = 0.75
    rows.loc[of_run_2 & (rows["step"] == 3), "empty"] = 0.625
    (same, empty) = narrative.health(rows, SHARED)
    assert "Запуск 2 итерации 2: с шага 2 ответы одинаковы у 75,0\u00a0%" in same
    assert "с шага 3 ответы пусты у 62,5\u00a0%" in empty

    stopped = rows[~(of_run_2 & (rows["step"] == 3))].copy()
    last = stopped.index[-1]
    stopped["stopped"] = None
    stopped.loc[last, ["kl_anchor", "stopped"]] = [12.5, True]
    config = SHARED.model_copy(update={"max_kl": 10.0})
    (said_first, _) = narrative.health(stopped, config)
    conclusion = narrative.conclusion(summary(), stopped, config)
    assert (
        conclusion[-1] == "Вывод: обучение остановил max_kl; нужен меньший lr или больший предел."
    )
    assert "Запуск 2 итерации 2 остановлен на шаге 2: KL к якорю 12,50 нат" in said_first
    assert "max_kl = 10,00" in said_first
    assert narrative.conclusion(summary(), stopped, config)


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (1.8637, 0.1492, "1,86"),
        (-0.09, 0.19, "−0,09"),
        (89.02, 12.0, "89"),
        (0.0250, 0.0011, "0,0250"),
        (0.0, 0.0, "0"),
    ],
)
def test_places_fit_the_error(value, error, text):
    assert narrative.number(value, error) == text


def test_small_estimates_share_a_power_of_ten():
    assert narrative.estimate_text(estimate(1.81e-6, 1.74e-7)) == "(1,81\u00a0±\u00a00,17)·10⁻⁶"
    assert narrative.estimate_text(estimate(1.8637, 0.1492)) == "1,86\u00a0±\u00a00,15"
    assert narrative.estimate_text(estimate(0.0, 0.0)) == "0\u00a0±\u00a00"


def test_conclusion_says_whether_the_policy_moved():
    assert "практически не сдвинулась" in said(summary(kl=1e-6, difference=0.0))
    assert "едва заметно" in said(summary(kl=7e-4, difference=0.0))
    assert "Модель сдвинулась" in said(summary(kl=5.0))
    assert "очень далеко" in said(summary(kl=70.0))


def test_conclusion_says_whether_the_reward_changed_beyond_its_error():
    assert "не изменилась" in said(summary(difference=0.19))
    assert "выросла" in said(summary(difference=0.21))
    assert "упала" in said(summary(difference=-0.21))


@pytest.mark.parametrize("broken", [{"repetition": 0.9}, {"distinct": 0.1}, {"empty": 0.8}])
def test_conclusion_does_not_trust_the_reward_of_collapsed_text(broken):
    text = said(summary(difference=2.0, **broken))
    assert "выродился, награде здесь верить нельзя" in text
    assert "lr нужно уменьшить" in text


@pytest.mark.parametrize("poorer", [{"repetition": 0.12}, {"pairs": 0.7}])
def test_conclusion_does_not_call_text_whole_that_repeats_itself(poorer):
    text = said(summary(difference=2.0, **poorer))
    assert "стал заметно однообразнее" in text
    assert "lr нужно уменьшить" in text
    assert "не выродился" not in text
    assert "не выродился" in said(summary(difference=2.0, repetition=0.09, pairs=0.8))


def test_conclusion_says_whether_the_curves_coincide():
    assert "это один и тот же расчёт: он выполнен один раз" in said(summary())
    assert "Кривые разных итераций почти совпали" in said(summary())
    apart = SAME | {(1, 2): [0.0, 1.0, 2.5]}
    own = WarpConfig(steps=3)
    assert "наибольшее расхождение 0,50 балла: у каждого запуска своё" in said(
        summary(), apart, own
    )
    assert "совпали полностью." in said(summary(), SAME, own)
    one_step = {key: values[:1] for key, values in SAME.items()}
    assert "почти совпали" in said(summary(), one_step, WarpConfig(steps=1, shared_run_seed=True))
    later = SAME | {(2, 1): [2.0, 3.0, 4.0], (2, 2): [2.0, 3.0, 4.0]}
    assert "Кривые разных итераций различаются" in said(summary(), later)


def test_what_a_policy_wrote_is_shown_as_text():
    sample = {"prompt": "<b>", "sft": "<script>x</script> $a$ | [b](c)", "warp": "&amp; <img>",
              "sft_reward": 1.0, "warp_reward": -1.0}  # fmt: skip
    table = narrative.samples_html([sample])
    assert "<script>" not in table
    assert "<img>" not in table
    assert "&lt;script&gt;x&lt;/script&gt; $a$ | [b](c)" in table
    assert "&amp;amp; &lt;img&gt;" in table


def test_a_run_that_hardly_moved_is_told_what_to_change():
    still = summary(kl=1e-6, difference=0.0)
    warmed = WarpConfig(steps=3, warmup_steps=30, shared_run_seed=True)
    assert "lr дошёл лишь до 10\u00a0% заданного" in said(still, config=warmed)
    assert "без прогрева" in said(still, config=warmed)
    assert "нужен больший lr" in said(still)


def test_seed_verdicts_name_what_disagrees():
    kls = {"1": 1e-6, "2": 0.02, "3": 90.0, "4": 10.0}
    summaries = {f"experiment_{k}": summary(kl=v, difference=0.0) for k, v in kls.items()}
    disagree = [line for line in comparison.seed_verdicts(summaries) if "Расходится" in line]
    assert len(disagree) == 1
    assert "хуже SFT-модели" in disagree[0]  # ours did not change
    summaries["experiment_1"] |= {"angles": [{"layers.0": [[0.0, 80.0], [80.0, 0.0]]}]}
    summaries["experiment_3"] |= {"training_reward": [0.5, 1.0]}
    summaries["experiment_4"] = summary(kl=95.0, difference=0.8)
    disagree = [line for line in comparison.seed_verdicts(summaries) if "Расходится" in line]
    for claim in ("проходят одинаково", "уходит дальше всего", "первой итерации больше",
                  "между вторым и третьим", "хуже SFT-модели", "на тысячную балла"):  # fmt: skip
        assert sum(claim in line for line in disagree) == 1
    assert len(disagree) == 6


def test_a_trial_without_all_experiments_claims_only_what_it_can_check():
    summaries = {f"experiment_{k}": summary(kl=1e-6, difference=0.0) for k in "14"}
    first, fourth = comparison.seed_verdicts(summaries)
    assert "В первом эксперименте" in first
    assert "В четвёртом эксперименте" in fourth
    assert comparison.control_verdicts(summaries) == ["Контрольных экспериментов здесь нет."]


def test_front_conclusion_says_when_the_runs_are_one_policy():
    def point(key, value, kl, **more):
        gain = {"reward": estimate(kl / 10), "gain": estimate(kl / 10, 0.02)}
        return {key: value, "kl": estimate(kl)} | gain | more

    front = [point("eta", e, 10 * e) for e in (0.0, 0.5, 1.0)]
    same = {"front": front, "front_runs": [point("run", m, 12.0) for m in (1, 2)]}
    said = " ".join(narrative.front_conclusion(same))
    assert "одна и та же политика" in said
    assert "награда меняется на 1,000\u00a0±\u00a00,020 балла." in said
    runs = [point("run", 1, 5.0, front_above=estimate(0.3, 0.1)), point("run", 2, 13.0, front_above=None),
            point("run", 3, 4.0, front_above=estimate(-0.1, 0.1))]  # fmt: skip
    *_, first, second, third = narrative.front_conclusion({"front": front, "front_runs": runs})
    assert first.endswith("Запуск 1: награда фронта при том же KL минус его награда – "
                          "0,30\u00a0±\u00a00,10 балла.")  # fmt: skip
    assert "за концами фронта" in second
    assert "в пределах двух ошибок" in third
    alone = {"front": front, "front_runs": [point("run", 1, 10.0, front_above=estimate(0.0, 0.0))]}
    assert "совпадают друг с другом" not in " ".join(narrative.front_conclusion(alone))


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_front_is_compared_with_a_run_by_prompt_at_the_runs_kl(share):
    rng = np.random.default_rng(0)
    low, high, run = rng.normal(size=(3, 50))
    points = [
        {"eta": 0.0, "rewards": list(low), "kls": [0.0] * 50},
        {"eta": 1.0, "rewards": list(high), "kls": [4.0] * 50},
        {"run": 1, "rewards": list(run), "kls": [4.0 * share] * 50},
        {"run": 2, "rewards": list(run), "kls": [4.1] * 50},
    ]
    summary = front_summary(points, list(low))
    difference = (1 - share) * low + share * high - run
    above = summary["front_runs"][0]["front_above"]
    assert above["mean"] == pytest.approx(difference.mean())
    assert above["stderr"] == pytest.approx(difference.std(ddof=1) / 50**0.5)
    assert summary["front_runs"][1]["front_above"] is None
    assert summary["front"][0]["gain"] == {"mean": 0.0, "stderr": 0.0, "n": 50}
    gain = high - low
    assert summary["front"][1]["gain"]["stderr"] == pytest.approx(gain.std(ddof=1) / 50**0.5)
