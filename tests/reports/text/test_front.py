"""What is said of a front, with its runs and without."""

import numpy as np
import pytest
from invented import FRONT, estimate, front_point

from reports.text import front
from warp_core.summary import front_summary


def test_front_conclusion_says_when_the_runs_are_one_policy():
    same = {"front": FRONT, "front_runs": [front_point("run", m, 12.0) for m in (1, 2)]}
    said = " ".join(front.front_conclusion(same))
    assert "совпадают по построению: при общем seed это одна и та же политика" in said
    assert (
        "награда меняется на 1,000\u00a0±\u00a00,020 (баллы; ошибка оценки, одно обучение)." in said
    )
    alone = front_point("run", 1, 10.0, front_above=estimate(0.0, 0.0))
    said = " ".join(front.front_conclusion({"front": FRONT, "front_runs": [alone]}))
    assert "по построению" not in said


def test_front_conclusion_compares_each_run_with_the_front_at_its_kl():
    runs = [
        front_point("run", 1, 5.0, front_above=estimate(0.3, 0.1)),
        front_point("run", 2, 13.0, front_above=None),
        front_point("run", 3, 4.0, front_above=estimate(-0.1, 0.1)),
    ]
    *_, first, second, third = front.front_conclusion({"front": FRONT, "front_runs": runs})
    assert first.endswith(
        "Запуск 1: награда фронта при той же KL минус его награда — 0,30\u00a0±\u00a00,10 "
        "(баллы; ошибка оценки, одно обучение)."
    )
    assert "вне отрезка KL фронта" in second
    assert "−0,10\u00a0±\u00a00,10 (баллы; ошибка оценки, одно обучение)" in third


def test_a_front_without_runs_says_nothing_of_them():
    summary = {"front": FRONT, "front_runs": []}
    said = front.front_conclusion(summary)
    assert len(said) == 2
    assert "апуск" not in " ".join(said)
    assert list(front.front_table(summary)["Точка"]) == [
        "η\u00a0=\u00a00",
        "η\u00a0=\u00a00,5",
        "η\u00a0=\u00a01",
    ]


def test_the_table_has_a_row_a_point_and_a_run():
    runs = [front_point("run", 1, 5.0, front_above=None)]
    table = front.front_table({"front": FRONT, "front_runs": runs})
    assert len(table) == 4
    assert list(table.iloc[-1]) == [
        "запуск 1",
        "0,50\u00a0±\u00a00,10",
        "0,500\u00a0±\u00a00,020",
        "5,00\u00a0±\u00a00,10",
        16,
    ]


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


def test_what_the_judge_says_is_a_column_where_there_is_one():
    judged = [point | {"judge": estimate(0.25, 0.02)} for point in FRONT]
    table = front.front_table({"front": judged, "front_runs": []})
    assert set(table["Оценка второго судьи"]) == {"0,250\u00a0±\u00a00,020"}
    assert front.front_rows({"front": judged, "front_runs": []})[0]["judge_mean"] == 0.25
    plain = {"front": FRONT, "front_runs": []}
    assert "Оценка второго судьи" not in front.front_table(plain)
    assert "judge_mean" not in front.front_rows(plain)[0]
