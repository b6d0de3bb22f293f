"""The report's sentences follow from its numbers."""

import pandas as pd
import pytest

from warp_core import narrative
from warp_core.config import WarpConfig


def estimate(mean, stderr=0.1, n=16):
    return {"mean": mean, "stderr": stderr, "n": n}


def summary(kl=5.0, difference=1.0, repetition=0.05, distinct=1.0, empty=0.0):
    text = {"words": 15.0, "repetition": 0.05, "distinct": 1.0, "empty": 0.0}
    after = {"words": 15.0, "repetition": repetition, "distinct": distinct, "empty": empty}
    return {
        "sft_reward": estimate(0.0),
        "warp_reward": estimate(difference),
        "reward_difference": estimate(difference),
        "kl_sft_warp": estimate(kl),
        "kl_warp_sft": estimate(kl),
        "text": {"sft": text, "warp": after},
    }


def metrics(curves):
    """Rows of metrics.jsonl from {(iteration, run): objectives}."""
    return pd.DataFrame(
        {"iteration": i, "run": m, "step": t, "objective": value}
        for (i, m), values in curves.items()
        for t, value in enumerate(values, start=1)
    )


SAME = {(i, m): [0.0, 1.0, 2.0] for i in (1, 2) for m in (1, 2)}
SHARED = WarpConfig(steps=3, shared_run_seed=True)


def said(s, curves=SAME, config=SHARED):
    return " ".join(narrative.conclusion(s, metrics(curves), config))


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


def test_conclusion_says_whether_the_curves_coincide():
    assert "совпали полностью: зерно у запусков одно" in said(summary())
    assert "Кривые разных итераций почти совпали" in said(summary())
    apart = SAME | {(1, 2): [0.0, 1.0, 2.5]}
    assert "наибольшее расхождение 0,5000 балла" in said(summary(), apart)
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


def test_seed_verdicts_name_what_disagrees():
    kls = {"1": 1e-6, "2": 0.02, "3": 90.0, "4": 10.0}
    summaries = {f"experiment_{k}": summary(kl=v, difference=0.0) for k, v in kls.items()}
    assert all("**Совпадает.**" in line for line in narrative.seed_verdicts(summaries))
    summaries["experiment_4"] = summary(kl=95.0, difference=0.8)
    verdicts = narrative.seed_verdicts(summaries)
    assert [("Расходится" in line) for line in verdicts] == [False, False, True, True, True]


def test_a_trial_without_all_experiments_claims_only_what_it_can_check():
    summaries = {f"experiment_{k}": summary(kl=1e-6, difference=0.0) for k in "14"}
    (verdict,) = narrative.seed_verdicts(summaries)
    assert "В первом эксперименте" in verdict
    assert narrative.control_verdicts(summaries) == ["Контрольных экспериментов здесь нет."]


def test_front_conclusion_says_when_the_runs_are_one_policy():
    def point(key, value, kl):
        return {key: value, "reward": estimate(kl / 10), "kl": estimate(kl)}

    front = [point("eta", e, 10 * e) for e in (0.0, 0.5, 1.0)]
    same = {"front": front, "front_runs": [point("run", m, 12.0) for m in (1, 2)]}
    assert "одна и та же политика" in " ".join(narrative.front_conclusion(same))
    other = same | {"front_runs": [point("run", 1, 12.0), point("run", 2, 13.0)]}
    sentences = narrative.front_conclusion(other)
    assert "одна и та же политика" not in " ".join(sentences)
    # At a KL of 5 the front of this test has the reward 0.5, and no point to the right of 10.
    low = same | {
        "front_runs": [point("run", 1, 5.0) | {"reward": estimate(0.2)}, point("run", 2, 13.0)]
    }
    assert "на 0,30" in narrative.front_conclusion(low)[-1]
    assert "; −0,30" in narrative.front_conclusion(low)[-1]
