"""Holm's correction and curves at equal KL, by hand and by simulation."""

import numpy as np
import pytest

from reports.text.statistics import at_equal_kl, holm


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_keeps_the_chance_of_any_false_claim():
    rng = np.random.default_rng(0)
    false = [min(holm(list(rng.uniform(size=6)))) < 0.05 for _ in range(4000)]
    assert np.mean(false) == pytest.approx(0.05, abs=0.012)


def test_at_equal_kl_curves_of_one_line_in_the_root_do_not_differ():
    line = [(kl, 1 + 0.5 * kl**0.5) for kl in (1.0, 4.0, 9.0)]
    other = [(kl, 1 + 0.5 * kl**0.5) for kl in (0.25, 2.0, 12.0)]
    assert at_equal_kl(line, other, 1.0) == pytest.approx(0, abs=1e-9)
    above = [(kl, value + 0.2) for kl, value in line]
    assert at_equal_kl(above, other, 1.0) == pytest.approx(0.2)
    assert at_equal_kl(other, above, 1.0) == pytest.approx(-0.2)


def test_at_equal_kl_by_hand():
    # From √KL 1 to 2 both are there: 2 to 4 beside 1 to 2.
    assert at_equal_kl([(1, 2), (4, 4)], [(1, 1), (9, 3)], 0.0) == pytest.approx(1.5)
    # A policy is met at its own KL.
    assert at_equal_kl([(4, 4.0)], [(1, 1), (9, 3)], 0.0) == pytest.approx(2.0)
    assert at_equal_kl([(1, 1), (9, 3)], [(4, 4.0)], 0.0) == pytest.approx(-2.0)
    # Below its first point a curve comes from θ_sft.
    assert at_equal_kl([(16, 4.0)], [(1, 2), (4, 3)], 0.0) == pytest.approx(2 - 3.0)
    assert at_equal_kl([(0, 1.0)], [(4, 3)], 1.0) is None
