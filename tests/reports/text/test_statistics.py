"""Holm's correction and curves at equal KL, by hand and by simulation."""

import numpy as np
import pytest

from reports.text.statistics import at_equal_kl, curve_of, differences, holm, value
from warp_core.world.studies import Comparison, Point


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_keeps_the_chance_of_any_false_claim():
    rng = np.random.default_rng(0)
    false = [min(holm(list(rng.uniform(size=6)))) < 0.05 for _ in range(4000)]
    assert np.mean(false) == pytest.approx(0.05, abs=0.012)


def curve(*points, of_sft=0.0):
    """Through policies of these (KL, value), and θ_sft."""
    rows = [{"kl": kl, "reward": value} for kl, value in points]
    return curve_of(rows, {"reward": of_sft})


def test_at_equal_kl_curves_of_one_line_in_the_root_do_not_differ():
    line = [(kl, 1 + 0.5 * kl**0.5) for kl in (1.0, 4.0, 9.0)]
    other = curve(*((kl, 1 + 0.5 * kl**0.5) for kl in (0.25, 2.0, 12.0)), of_sft=1.0)
    assert at_equal_kl(curve(*line, of_sft=1.0), other) == pytest.approx(0, abs=1e-9)
    above = curve(*((kl, value + 0.2) for kl, value in line), of_sft=1.0)
    assert at_equal_kl(above, other) == pytest.approx(0.2)
    assert at_equal_kl(other, above) == pytest.approx(-0.2)


def test_at_equal_kl_by_hand():
    line = curve((1, 1), (9, 3))
    # From √KL 1 to 2 both are there: 2 to 4 beside 1 to 2.
    assert at_equal_kl(curve((1, 2), (4, 4)), line) == pytest.approx(1.5)
    # A policy is met at its own KL.
    assert at_equal_kl(curve((4, 4.0)), line) == pytest.approx(2.0)
    assert at_equal_kl(line, curve((4, 4.0))) == pytest.approx(-2.0)
    # A policy that goes beyond the other's end, or begins before it, has no KL in common with it.
    assert at_equal_kl(curve((16, 4.0)), curve((1, 2), (4, 3))) is None
    assert at_equal_kl(curve((0.5, 4.0)), curve((1, 2), (4, 3))) is None
    assert at_equal_kl(curve((0, 1.0), of_sft=1.0), curve((4, 3), of_sft=1.0)) is None
    # What ends before the other begins has no KL in common with it.
    assert at_equal_kl(curve((0.25, 1), (1, 2)), curve((4, 3), (9, 4))) is None


def test_a_trajectory_that_comes_back_counts_its_best_policy_of_no_larger_kl():
    """KL goes to 9, then back to 4 with more reward; between them is no policy of 2."""
    back = curve((1, 1.0), (9, 2.0), (4, 3.0))
    assert (back.roots, back.values) == ([1, 2, 3], [1, 3, 3])
    assert at_equal_kl(back, curve((1, 1), (4, 3), (9, 3))) == pytest.approx(0)
    about = {"length": 18.0}
    rows = [about | {"kl": kl, "distinct_pairs": share} for kl, share in ((1, 0.9), (4, 0.8))]
    falls = curve_of(rows, about | {"distinct_pairs": 0.95}, "distinct_pairs")
    assert falls.values == [0.9, 0.8]  # which is no gain


def test_a_judges_curve_begins_at_its_score_of_sft_and_counts_the_best_so_far():
    rows = [
        {"kl": kl, "reward": 9.0, "judge": judge}
        for kl, judge in ((4.0, 0.3), (1.0, 0.5), (9.0, 0.7))
    ]
    judged = curve_of(rows, {"reward": 8.0, "judge": 0.1}, "judge")
    assert (judged.of_sft, judged.roots, judged.values) == (0.1, [1, 2, 3], [0.5, 0.5, 0.7])
    assert judged.at(0.5) == pytest.approx(0.3)


def test_empty_answers_are_compared_as_those_without_diversity():
    row = {"length": 0.1, "distinct_pairs": 1.0, "reward": {"mean": 0.5}}
    assert (value(row, "distinct_pairs"), value(row, "reward")) == (0.0, 0.5)
    assert value(row | {"length": 18.0}, "distinct_pairs") == 1.0


def test_differences_are_ours_less_theirs_of_the_same_seed():
    def row(seed, what, reward):
        keys = {"arm": what, "what": what, "iteration": 1, "m": 1, "t": 1, "eta": 1.0}
        of = {"reward": {"mean": reward}, "judge": {"mean": reward / 10}, "kl": {"mean": 1.0}}
        point = Point(**keys) if seed else Point()
        return {"seed": seed, "sft_reward": 0.0, **point.model_dump()} | of

    trained = {1: (3.0, 1.0), 2: (5.0, 4.0), 3: (2.0, 6.0)}  # ours, theirs
    rows = [row(None, "sft", 0.0) | {"kl": {"mean": 0.0}}]
    for seed, pair in trained.items():
        rows += [
            row(seed, what, reward) for what, reward in zip(("run", "slerp"), pair, strict=True)
        ]
    asked = [(row["seed"], Point(**{key: row[key] for key in Point.model_fields})) for row in rows]
    sides = {"ours": {"what": "run"}, "theirs": {"what": "slerp"}}
    for changes, wanted in (
        ({}, [2.0, 1.0, -4.0]),
        ({"share": 0.5}, [2.5, 3.0, -1.0]),
        ({"at": "equal_kl"}, [2.0, 1.0, -4.0]),
        ({"at": "equal_kl", "measure": "judge"}, [0.2, 0.1, -0.4]),
    ):
        found = differences(rows, Comparison(**sides, **changes), asked)
        assert found == pytest.approx(dict(zip(trained, wanted, strict=True)))
