"""What figures show beyond the rows' own values, by hand."""

import pytest

from reports.text.series import above_front, at_one_kl, between_two

KEYS = {"arm": "five", "what": "run", "seed": 1, "m": 1, "iteration": 1, "t": 30, "lam": None}


def row(reward, kl, **keys):
    measured = {"reward": {"mean": reward}, "kl": {"mean": kl}}
    return KEYS | measured | keys


SFT = row(0.0, 0.0, what="sft", seed=None)


def test_what_lies_above_a_front_is_of_one_training_and_not_beyond_its_end():
    front = [row(1.0, 1.0), row(3.0, 9.0), row(2.0, 4.0, seed=2)]
    rows = [
        row(2.5, 4.0),  # √KL 2, halfway between 1 and 3
        row(9.0, 9.5),
        row(0.4, 0.25),  # between θ_sft and the first
        row(2.0, 4.0, seed=2),
        row(2.0, 4.0, seed=3),
    ]
    found = above_front(rows, front, SFT)
    told = [(each["seed"], each["kl"]["mean"], each["over"]) for each in found]
    assert told == [(1, 4.0, pytest.approx(0.5)), (1, 0.25, pytest.approx(-0.1)), (2, 4.0, 0.0)]


def test_reward_at_one_kl_over_the_steps_of_all_runs_of_the_fronts_that_get_there():
    rows = [
        row(1.0, 1.0, arm="merged", what="slerp", m=4),
        row(3.0, 9.0, arm="merged", what="slerp", m=4),
        row(1.0, 3.9, arm="merged", what="slerp", m=2),  # ends before 4 nats
        row(5.0, 4.0, arm="merged", what="lerp", m=2),
        row(1.5, 4.0, arm="iterated", what="slerp", m=2, iteration=3),
        row(1.2, 4.0, arm="single", t=120),
        row(1.4, 4.0, arm="single", t=120, seed=2),
    ]
    told = [tuple(each.values()) for each in at_one_kl(rows, SFT)]
    assert told == [
        ("SLERP запусков с одного начала", 1, 120, pytest.approx(2.0)),
        ("итерации по два запуска", 1, 180, 1.5),
        ("один запуск", 1, 120, 1.2),
        ("один запуск", 2, 120, 1.4),
    ]


def test_between_two_runs_the_ends_are_the_runs_and_slerp_is_set_against_lerp_of_its_training():
    rows = [
        row(2.0, 5.0, m=2),
        row(1.0, 4.0),
        row(9.0, 9.0, m=3),
        row(7.0, 7.0, seed=3),
        row(1.9, 3.0, what="slerp", m=2, lam=0.5),
        row(1.2, 2.0, what="lerp", m=2, lam=0.5),
        row(9.0, 9.0, what="slerp", m=2),  # of a front
        row(1.8, 3.0, what="slerp", m=2, lam=0.5, seed=2),  # whose LERP is not there yet
    ]
    found = between_two(rows)
    slerp, of_second, lerp = found[:3], found[3:4], found[4:]
    assert [(each["lam"], each["kl"], each["reward"]) for each in slerp] == [
        (0.0, 4.0, 1.0),
        (0.5, 3.0, 1.9),
        (1.0, 5.0, 2.0),
    ]
    assert {each["what"] for each in [*slerp, *of_second]} == {"slerp"}
    assert [each["reward"] for each in lerp] == [1.0, 1.2, 2.0]
    over = [each["slerp_over_lerp"] for each in found if "slerp_over_lerp" in each]
    assert over == pytest.approx([0.7])
