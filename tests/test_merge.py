"""EMA, LERP, SLERP, LITI and angles: by hand, by properties, against the formula in NumPy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from warp_core.merge import MergeError, ema_update_, lerp, liti, slerp, task_angles
from warp_core.store import tensors

ROOT_HALF = math.sqrt(0.5)


def one(values, dtype=torch.float64):
    """Weights of one tensor, "w"."""
    return {"w": torch.tensor(values, dtype=dtype)}


def random_weights(shapes, seed, scale=1.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)
        for name, shape in shapes.items()
    }


def moved(theta, seed, scale=1.0):
    """θ + a random task vector."""
    return {
        name: tensor
        + scale
        * torch.randn(
            tensor.shape,
            generator=torch.Generator().manual_seed(seed + len(name)),
            dtype=tensor.dtype,
        )
        for name, tensor in theta.items()
    }


def formula(a, b, lam):
    """SLERP of two float64 vectors as the paper prints it."""
    omega = np.arccos(np.clip(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)), -1, 1))
    return (np.sin((1 - lam) * omega) * a + np.sin(lam * omega) * b) / np.sin(omega)


def recursion(deltas):
    """Eq. 26: slerp_m = slerp(slerp_{m−1}, δ_m, λ = 1/m)."""
    merged = deltas[0]
    for m, delta in enumerate(deltas[1:], start=2):
        merged = formula(merged, delta, 1 / m)
    return merged


def flat(theta, names):
    return np.concatenate([theta[name].double().numpy().ravel() for name in names])


def expect(theta_init, thetas, merged, groups):
    """The merge is θ_init + the recursion over each group's concatenated task vectors."""
    for names in groups:
        start = flat(theta_init, names)
        wanted = start + recursion([flat(theta, names) - start for theta in thetas])
        np.testing.assert_allclose(flat(merged, names), wanted, atol=2e-6)


# SLERP by hand


def test_slerp_of_orthogonal_equal_norms_is_their_sum_over_root_two():
    start = one([10.0, 20.0])
    merged = slerp(start, [one([13.0, 20.0]), one([10.0, 23.0])])
    torch.testing.assert_close(
        merged["w"], torch.tensor([10 + 3 * ROOT_HALF, 20 + 3 * ROOT_HALF], dtype=torch.float64)
    )


def test_slerp_a_third_of_a_right_angle():
    merged = slerp(one([0.0, 0.0]), [one([1.0, 0.0]), one([0.0, 1.0])], lam=1 / 3)
    assert merged["w"].tolist() == pytest.approx([math.cos(math.pi / 6), math.sin(math.pi / 6)])


def test_slerp_of_sixty_degrees_and_different_norms():
    # sin 30° / sin 60° = 1/√3 of each.
    other = [4 * math.cos(math.pi / 3), 4 * math.sin(math.pi / 3)]
    merged = slerp(one([0.0, 0.0]), [one([2.0, 0.0]), one(other)])
    assert merged["w"].tolist() == pytest.approx([4 / math.sqrt(3), 2.0])


def test_third_run_is_merged_with_a_third():
    # 45° between the first two, then a third of the right angle to the third.
    thetas = [one(row) for row in torch.eye(3).tolist()]
    merged = slerp(one([0.0] * 3), thetas)["w"]
    both = math.cos(math.pi / 6) * ROOT_HALF
    assert merged.tolist() == pytest.approx([both, both, math.sin(math.pi / 6)])


@pytest.mark.parametrize("lam", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("merge_two", [slerp, lerp])
def test_lam_weighs_the_second_of_two(merge_two, lam):
    first, second = one([1.0, 0.0]), one([0.0, 1.0])
    x, y = merge_two(one([0.0, 0.0]), [first, second], lam=lam)["w"].tolist()
    weight = math.sin(lam * math.pi / 2) if merge_two is slerp else lam
    other = math.cos(lam * math.pi / 2) if merge_two is slerp else 1 - lam
    assert (x, y) == pytest.approx((other, weight), abs=1e-15)


@pytest.mark.parametrize("merge_many", [slerp, lerp])
def test_one_run_is_merged_to_itself(merge_many):
    start = random_weights({"a": (4, 3), "b": (5,)}, 0)
    only = moved(start, 1)
    torch.testing.assert_close(merge_many(start, [only]), only)


# SLERP against the formula


@pytest.mark.parametrize("m", [2, 3, 4, 5])
def test_slerp_is_the_recursion_applied_to_task_vectors(m):
    start = random_weights({"w": (6, 7)}, 0)
    thetas = [moved(start, seed, scale=seed / 2) for seed in range(1, m + 1)]
    expect(start, thetas, slerp(start, thetas), [["w"]])


def test_slerp_acts_on_task_vectors_and_not_on_weights():
    start = random_weights({"w": (50,)}, 0, scale=100.0, dtype=torch.float64)
    thetas = [moved(start, 1), moved(start, 2)]
    merged = slerp(start, thetas)["w"].numpy()
    of_weights = formula(*(theta["w"].numpy() for theta in thetas), 0.5)
    mean = lerp(start, thetas)["w"].numpy()
    # SLERP of the weights is LERP; the norm of ours is far from LERP's.
    assert np.linalg.norm(of_weights - mean) < 0.1
    assert np.linalg.norm(merged - mean) > 1.0


@given(
    shape=st.lists(st.integers(1, 5), max_size=3),
    m=st.integers(1, 5),
    exponents=st.lists(st.floats(-20, 15), min_size=5, max_size=5),
    seed=st.integers(0, 10**6),
)
@settings(deadline=None, max_examples=80)
def test_slerp_is_the_formula_for_any_shape_number_and_norm(shape, m, exponents, seed):
    rng = np.random.default_rng(seed)
    deltas = []
    for exponent in exponents[:m]:
        direction = rng.normal(size=shape)
        norm = np.linalg.norm(direction)
        assume(norm > 1e-3)
        deltas.append(torch.tensor(direction / norm * 10**exponent, dtype=torch.float32))
    vectors = [delta.double().numpy().ravel() for delta in deltas]
    merged = vectors[0]
    for k, vector in enumerate(vectors[1:], start=2):
        cos = merged @ vector / (np.linalg.norm(merged) * np.linalg.norm(vector))
        assume(abs(cos) < 0.99)  # parallel and opposite have tests of their own
        merged = formula(merged, vector, 1 / k)
    got = slerp({"w": torch.zeros(shape)}, [{"w": delta} for delta in deltas])["w"]
    assert got.shape == tuple(shape)
    tolerance = 1e-5 * max(np.linalg.norm(v) for v in [*vectors, merged])
    np.testing.assert_allclose(got.double().numpy().ravel(), merged, rtol=0, atol=tolerance)


@given(
    size=st.integers(2, 30),
    exponent=st.floats(-20, 15),
    lam=st.floats(0, 1),
    seed=st.integers(0, 10**6),
)
@settings(deadline=None, max_examples=80)
def test_equal_norms_keep_their_norm_in_slerp_and_lose_it_in_lerp_by_the_formula(
    size, exponent, lam, seed
):
    rng = np.random.default_rng(seed)
    a, b = (v / np.linalg.norm(v) for v in rng.normal(size=(2, size)))
    cos = float(a @ b)
    assume(abs(cos) < 0.999)
    norm = 10**exponent
    start = {"w": torch.zeros(size, dtype=torch.float64)}
    thetas = [{"w": torch.tensor(norm * v)} for v in (a, b)]
    assert slerp(start, thetas, lam)["w"].norm().item() == pytest.approx(norm, rel=1e-9)
    shortened = norm * math.sqrt(1 - 2 * (1 - cos) * (lam - lam**2))
    assert lerp(start, thetas, lam)["w"].norm().item() == pytest.approx(shortened, rel=1e-9)


# Groups

LAYERED = {
    "model.embed_tokens.weight": (7, 4),
    "model.layers.0.self_attn.q_proj.weight": (4, 4),
    "model.layers.0.mlp.up_proj.weight": (8, 4),
    "model.layers.1.self_attn.q_proj.weight": (4, 4),
    "model.layers.10.self_attn.q_proj.weight": (4, 4),
    "model.norm.weight": (4,),
    "lm_head.weight": (7, 4),
}


def three_moved():
    start = random_weights(LAYERED, 0)
    return start, [moved(start, seed) for seed in (1, 2, 3)]


def test_a_layer_shares_an_angle_and_tensors_outside_have_their_own():
    start, thetas = three_moved()
    layer_0 = [name for name in LAYERED if ".layers.0." in name]
    others = [[name] for name in LAYERED if name not in layer_0]
    expect(start, thetas, slerp(start, thetas), [layer_0, *others])
    assert set(task_angles(start, thetas)) == {
        "model.embed_tokens.weight",
        "model.layers.0",
        "model.layers.1",
        "model.layers.10",
        "model.norm.weight",
        "lm_head.weight",
    }


def test_tensor_granularity_gives_every_tensor_an_angle():
    start, thetas = three_moved()
    expect(start, thetas, slerp(start, thetas, granularity="tensor"), [[n] for n in LAYERED])
    assert set(task_angles(start, thetas, "tensor")) == set(LAYERED)


def test_model_granularity_gives_all_tensors_one_angle():
    start, thetas = three_moved()
    expect(start, thetas, slerp(start, thetas, granularity="model"), [list(LAYERED)])
    assert len(task_angles(start, thetas, "model")) == 1


def test_unknown_granularity_is_refused():
    with pytest.raises(MergeError, match="granularity 'block'"):
        slerp(one([0.0]), [one([1.0])], granularity="block")


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("transformer.h.11.attn.c_attn.weight", "transformer.h.11"),
        ("gpt_neox.layers.3.attention.dense.bias", "gpt_neox.layers.3"),
        ("model.decoder.layers.5.fc1.weight", "model.decoder.layers.5"),
        ("encoder.block.7.layer.0.SelfAttention.q.weight", "encoder.block.7"),
        ("transformer.ln_f.weight", "transformer.ln_f.weight"),
        ("model.layer2.weight", "model.layer2.weight"),
    ],
)
def test_group_of_a_name(name, group):
    assert list(task_angles({name: torch.zeros(2)}, [{name: torch.ones(2)}])) == [group]


def test_tensors_longer_than_a_piece_are_summed_over_all_pieces(monkeypatch):
    start, thetas = three_moved()
    whole = task_angles(start, thetas)
    monkeypatch.setattr(tensors, "PIECE", 5)
    pieces = task_angles(start, thetas)
    for group in whole:
        torch.testing.assert_close(pieces[group], whole[group], rtol=1e-12, atol=1e-12)


# Angles


def test_angles_are_in_radians_between_every_pair():
    start = one([5.0, 5.0])
    thetas = [one([6.0, 5.0]), one([5.0, 7.0]), one([8.0, 8.0])]
    quarter, eighth = math.pi / 2, math.pi / 4
    wanted = [[0, quarter, eighth], [quarter, 0, eighth], [eighth, eighth, 0]]
    torch.testing.assert_close(
        task_angles(start, thetas)["w"],
        torch.tensor(wanted, dtype=torch.float64),
        rtol=0,
        atol=1e-7,
    )


def test_a_run_that_did_not_move_has_no_angle():
    angles = task_angles(one([1.0, 2.0]), [one([1.0, 2.0]), one([2.0, 2.0])])["w"]
    assert angles.isnan().tolist() == [[True, True], [True, False]]
    assert angles[1, 1] == 0


# Degenerate cases


@pytest.mark.parametrize(("a", "b"), [(1.0, 3.0), (2.0, 2.0), (1e-12, 1e-3)])
def test_parallel_task_vectors_are_interpolated_linearly(a, b):
    direction = torch.tensor([3.0, -1.0, 2.0], dtype=torch.float64)
    start = one([0.0] * 3)
    merged = slerp(start, [{"w": a * direction}, {"w": b * direction}], lam=0.25)["w"]
    torch.testing.assert_close(merged, (0.75 * a + 0.25 * b) * direction)


def test_almost_parallel_task_vectors_are_as_in_the_limit():
    for omega in (1e-9, 1e-7, 1e-6, 1e-5, 1e-4, 5e-3):
        thetas = [one([1.0, 0.0]), one([math.cos(omega), math.sin(omega)])]
        x, y = slerp(one([0.0, 0.0]), thetas, lam=0.25)["w"].tolist()
        assert x == pytest.approx(math.cos(omega / 4), rel=1e-11)
        assert y == pytest.approx(math.sin(omega / 4), rel=1e-9)


@pytest.mark.parametrize("zeros", [[0], [1], [2], [0, 1], [1, 2], [0, 1, 2]])
def test_runs_that_did_not_move_are_interpolated_linearly(zeros):
    start = random_weights({"w": (5,)}, 0)
    thetas = [start if m in zeros else moved(start, m) for m in range(3)]
    merged = start
    for m, theta in enumerate(thetas, start=1):
        a, b = ({"w": t["w"] - start["w"]} for t in (merged, theta))
        zero = not (a["w"].any() and b["w"].any())
        pair = lerp if zero else slerp
        delta = pair({"w": torch.zeros(5)}, [a, b], lam=1 / m)["w"]
        merged = {"w": start["w"] + delta}
    torch.testing.assert_close(slerp(start, thetas), merged)


def test_opposite_task_vectors_are_refused_with_the_groups_name():
    start = random_weights(LAYERED, 0, dtype=torch.float64)
    first = moved(start, 1)
    second = moved(start, 2)
    name = "model.layers.1.self_attn.q_proj.weight"
    second[name] = start[name] - 2.5 * (first[name] - start[name])
    with pytest.raises(MergeError, match=r"model\.layers\.1'.*opposite.*lerp") as caught:
        slerp(start, [first, second])
    assert "layers.10" not in str(caught.value)


def test_opposite_to_the_merge_of_the_runs_before_names_the_run():
    thetas = [one([1.0, 0.0]), one([0.0, 1.0]), one([-1.0, -1.0])]
    with pytest.raises(MergeError, match="'w', run 3"):
        slerp(one([0.0, 0.0]), thetas)


def test_lerp_of_opposite_task_vectors_is_the_start():
    assert lerp(one([7.0]), [one([9.0]), one([5.0])])["w"].item() == 7.0


# Weights that cannot be merged

ALL_MERGES = {
    "slerp": slerp,
    "lerp": lerp,
    "task_angles": task_angles,
    "liti": lambda start, thetas: liti(start, thetas[0], 0.5),
}
each_merge = pytest.mark.parametrize("name", ALL_MERGES)


def refused(name, start, thetas):
    with pytest.raises(MergeError) as caught:
        ALL_MERGES[name](start, thetas)
    return str(caught.value)


@each_merge
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("in_start", [True, False])
def test_weights_that_are_not_finite_are_named(name, bad, in_start):
    start = {"fine": torch.zeros(3), "broken": torch.zeros(3)}
    theta = {"fine": torch.ones(3), "broken": torch.ones(3)}
    (start if in_start else theta)["broken"][1] = bad
    message = refused(name, start, [theta])
    assert message.startswith("θ_init has NaN" if in_start else "θ^1 has NaN")
    assert "broken" in message
    assert "fine" not in message


@each_merge
def test_different_names_are_named(name):
    start = {"a": torch.zeros(2), "b": torch.zeros(2)}
    message = refused(name, start, [{"a": torch.zeros(2), "c": torch.zeros(2)}])
    assert message.endswith("different tensors: b, c")


@each_merge
def test_different_shapes_are_named(name):
    message = refused(name, {"a": torch.zeros(2, 3)}, [{"a": torch.zeros(3, 2)}])
    assert message.endswith("different shapes: a")


@each_merge
@pytest.mark.parametrize("integer_in_start", [True, False])
def test_a_float_against_an_integer_is_named(name, integer_in_start):
    pair = [
        {"fine": torch.zeros(2), "a": torch.zeros(2, dtype=t)} for t in (torch.int8, torch.half)
    ]
    start, theta = pair if integer_in_start else reversed(pair)
    assert refused(name, start, [theta]).endswith(
        "θ^1 and θ_init have tensors of different types: a"
    )


@each_merge
def test_different_integer_types_are_named(name):
    start, theta = ({"n": torch.zeros(2, dtype=t)} for t in (torch.int32, torch.int64))
    assert refused(name, start, [theta]).endswith("different types: n")


@each_merge
def test_different_integer_buffers_are_named(name):
    message = refused(name, {"steps": torch.tensor([1])}, [{"steps": torch.tensor([2])}])
    assert message == "the integers of steps differ between the weights"


def test_the_second_run_is_checked_too():
    assert refused("slerp", one([0.0]), [one([1.0]), one([math.nan])]).startswith("θ^2")


@pytest.mark.parametrize("merge_many", [slerp, lerp])
def test_lam_is_for_two_runs_alone(merge_many):
    for m in (1, 3):
        with pytest.raises(MergeError, match="lam weighs the second of two"):
            merge_many(one([0.0]), [one([1.0])] * m, lam=0.5)


@pytest.mark.parametrize("merge_many", [slerp, lerp, task_angles])
def test_nothing_to_merge_is_refused(merge_many):
    with pytest.raises(MergeError, match="at least 1"):
        merge_many(one([0.0]), [])


def test_a_merge_error_is_a_value_error():
    assert issubclass(MergeError, ValueError)


# Tied weights, buffers, types, inputs


def tied(theta):
    """The same weights with a second name for "a"."""
    return theta | {"z": theta["a"]}


def test_tied_weights_count_once():
    shapes = {"a": (4, 3), "b": (6,)}
    start = random_weights(shapes, 0)
    thetas = [moved(start, 1), moved(start, 2)]
    alone = task_angles(start, thetas, "model")
    with_copy = task_angles(tied(start), [tied(t) for t in thetas], "model")
    torch.testing.assert_close(with_copy["model"], alone["model"], rtol=0, atol=0)
    merged = slerp(tied(start), [tied(t) for t in thetas], granularity="model")
    assert merged["z"] is merged["a"]
    plain = slerp(start, thetas, granularity="model")
    assert all(torch.equal(merged[name], plain[name]) for name in plain)


def test_equal_but_separate_tensors_are_not_tied():
    start = random_weights({"a": (4, 3)}, 0)
    copies = {"a": start["a"], "z": start["a"].clone()}
    merged = slerp(copies, [moved(copies, 1)])
    assert merged["a"] is not merged["z"]


def test_views_of_one_memory_are_not_tied():
    def with_view(memory):
        return {"whole": memory, "row": memory[0], "turned": memory.T}

    start = with_view(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))
    theta = with_view(start["whole"] + torch.arange(4.0))
    torch.testing.assert_close(slerp(start, [theta]), theta)


def test_integer_buffers_and_empty_tensors_are_passed_through():
    start = {
        "w": torch.zeros(2),
        "ids": torch.arange(4),
        "flags": torch.tensor([True, False]),
        "none": torch.zeros(0, 3),
        "none_too": torch.zeros(0, 3),
    }
    theta = start | {"w": torch.ones(2)}
    for merged in (slerp(start, [theta, theta]), lerp(start, [theta]), liti(start, theta, 0.5)):
        assert list(merged) == list(start)
        for name in ("ids", "flags", "none", "none_too"):
            assert torch.equal(merged[name], start[name])
            assert merged[name].dtype == start[name].dtype
        assert merged["ids"] is not start["ids"]
        assert merged["none"] is not merged["none_too"]


FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@pytest.mark.parametrize("of_the_runs", FLOATS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_float_types_may_differ_and_the_result_is_the_exact_one_rounded_to_that_of_theta_init(
    dtype, of_the_runs
):
    start = random_weights({"w": (40,)}, 0, dtype=dtype)
    ends = [moved({"w": start["w"].to(of_the_runs)}, seed) for seed in (1, 2)]
    exact = slerp({"w": start["w"].double()}, [{"w": end["w"].double()} for end in ends])["w"]
    merged = slerp(start, ends)["w"]
    assert merged.dtype == dtype
    # As if computed exactly and rounded once, up to float32's own rounding.
    rounding = 0.51 * torch.finfo(dtype).eps * exact.abs()
    of_the_arithmetic = 1e-14 if dtype == torch.float64 else 1e-6
    assert ((merged.double() - exact).abs() <= rounding + of_the_arithmetic).all()


def test_inputs_are_never_changed():
    weight = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    start = {"w": weight.T, "z": weight.T, "b": torch.randn(3).bfloat16(), "n": torch.arange(2)}
    thetas = [
        {"w": weight.T + m, "z": weight.T + m, "b": start["b"] + m, "n": torch.arange(2)}
        for m in (1, 2)
    ]
    copies = [{name: t.clone() for name, t in theta.items()} for theta in (start, *thetas)]
    for merged in (slerp(start, thetas), lerp(start, thetas), liti(start, thetas[0], 0.3)):
        for tensor in merged.values():
            tensor.zero_()  # the result shares no memory with the inputs either
    task_angles(start, thetas)
    for theta, copy in zip((start, *thetas), copies, strict=True):
        assert all(torch.equal(theta[name], copy[name]) for name in copy)


# LERP, LITI, EMA


def test_lerp_is_the_mean_for_any_number_of_runs():
    thetas = [one([float(m), 1.0]) for m in range(1, 5)]
    assert lerp(one([100.0, 1.0]), thetas)["w"].tolist() == pytest.approx([2.5, 1.0])


@pytest.mark.parametrize(("eta", "wanted"), [(0.0, 2.0), (0.25, 4.0), (0.5, 6.0), (1.0, 10.0)])
def test_liti_goes_from_theta_init_to_theta_slerp(eta, wanted):
    assert liti(one([2.0]), one([10.0]), eta)["w"].item() == wanted


def test_liti_at_zero_is_theta_init_bit_for_bit():
    start = random_weights(LAYERED, 0)
    merged = liti(start, moved(start, 1), 0.0)
    assert all(torch.equal(merged[name], start[name]) for name in start)


def test_ema_forgets_by_one_minus_mu_a_step():
    mu, ema = 0.3, one([1.0])
    for step in range(1, 8):
        ema_update_(ema, one([0.0]), mu)
        assert ema["w"].item() == pytest.approx((1 - mu) ** step)


def test_ema_moves_towards_theta_by_mu():
    ema = one([1.0, 2.0])
    assert ema_update_(ema, one([11.0, 2.0]), 0.01) is None
    assert ema["w"].tolist() == pytest.approx([1.1, 2.0])


@pytest.mark.parametrize(("mu", "wanted"), [(0.0, 0), (1.0, 1)])
def test_ema_endpoints_are_exact(mu, wanted):
    pair = [random_weights({"w": (9,)}, seed) for seed in (0, 1)]
    ema = {"w": pair[0]["w"].clone()}
    ema_update_(ema, pair[1], mu)
    assert torch.equal(ema["w"], pair[wanted]["w"])


def test_ema_changes_the_given_memory_and_leaves_theta_alone():
    ema, theta = one([0.0]), one([2.0])
    memory = ema["w"]
    ema_update_(ema, theta, 0.5)
    assert memory.item() == 1.0
    assert theta["w"].item() == 2.0


def test_ema_copies_integer_buffers():
    ema = {"n": torch.tensor([1, 2])}
    ema_update_(ema, {"n": torch.tensor([3, 4])}, 0.1)
    assert ema["n"].tolist() == [3, 4]


def test_ema_of_parameters_with_gradients_changes_them_in_place():
    layer = torch.nn.Linear(2, 1)
    target = {name: torch.zeros_like(p) for name, p in layer.named_parameters()}
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    ema_update_(dict(layer.named_parameters()), target, 0.5)
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] / 2)
