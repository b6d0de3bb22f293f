"""What a summary says of a front and of the runs beside it."""

import pytest

from warp_core.summary import front_summary

FRONT = [
    {"eta": 1.0, "rewards": [4.0, 8.0], "kls": [2.0, 6.0]},
    {"eta": 0.0, "rewards": [0.0, 2.0], "kls": [0.0, 0.0]},
    {"eta": 0.5, "rewards": [2.0, 3.0], "kls": [1.0, 1.0]},
]


def test_a_front_by_hand():
    summary = front_summary(FRONT, of_sft=[0.0, 2.0])
    assert [point["eta"] for point in summary["front"]] == [0.0, 0.5, 1.0]
    assert summary["front"][1] == {
        "eta": 0.5,
        "reward": {"mean": 2.5, "stderr": 0.5, "n": 2},
        "kl": {"mean": 1.0, "stderr": 0.0, "n": 2},
        "gain": {"mean": 1.5, "stderr": 0.5, "n": 2},  # 2 − 0 and 3 − 2
    }
    assert summary["front_runs"] == []


@pytest.mark.parametrize(
    ("kls", "above"),
    [
        # At 2.5 nats, halfway from (2, 3) at 1 to (4, 8) at 4: (3, 5.5), which is (1, 2.5) more.
        ([2.0, 3.0], {"mean": 1.75, "stderr": 0.75, "n": 2}),
        ([1.0, 1.0], {"mean": 0.0, "stderr": 0.0, "n": 2}),
        ([0.0, 8.0], {"mean": 3.5, "stderr": 1.5, "n": 2}),  # an end belongs to the front
        ([4.0, 8.0], None),  # beyond it
    ],
)
def test_a_run_beside_the_front_is_compared_at_its_kl(kls, above):
    runs = [{"run": m, "rewards": [2.0, 3.0], "kls": kls} for m in (2, 1)]
    # Whatever the η of its points: the KL need not grow with it.
    for etas in ((1.0, 0.0, 0.5), (0.5, 0.0, 1.0)):
        swept = [point | {"eta": eta} for point, eta in zip(FRONT, etas, strict=True)]
        first, second = front_summary([*runs, *swept], of_sft=[0.0, 2.0])["front_runs"]
        assert (first["run"], second["run"]) == (1, 2)
        assert first["gain"] == {"mean": 1.5, "stderr": 0.5, "n": 2}
        assert first["front_above"] == (above and pytest.approx(above))
