"""One RL run: the gradient against the exact one, Adam, the anchor, the metrics, what stops it.

The exact gradients come from a policy of four tokens, of which every completion can be listed.
"""

import copy
import gc
import itertools
import math
from contextlib import contextmanager
from functools import partial

import psutil
import pytest
import tiny
import torch

from warp_core import folders, train
from warp_core.config import Training
from warp_core.engine.loop import to_the_end
from warp_core.engine.tape import taped
from warp_core.rollout import Rollout, sample
from warp_core.store.checkpoint import Checkpoint
from warp_core.store.errors import TrainingError
from warp_core.store.files import read_jsonl, seal_json
from warp_core.train import Run, loo_baseline, warmed_up
from warp_core.world.inputs import TEXTS
from warp_core.world.models import encode_prompts, load_policy, weights_of
from warp_core.world.prompts import prompt_batches

PROMPT = "a b"
BETA = 0.3


def settings(**changes):
    return Training(**{"steps": 1, "batch_size": 1, "max_new_tokens": 2, "lr": 1e-3} | changes)


@pytest.fixture(scope="module")
def letters():
    """A policy and another one, their tokenizer, and all 13 completions of up to two tokens."""
    tokenizer = tiny.letters_tokenizer()
    policy = tiny.make_policy("gpt2", 4, spread=0.15).double()
    anchor = tiny.make_policy("gpt2", 4, seed=1, spread=0.15).double()
    return policy, anchor, tokenizer, tiny.all_completions(4, 2, end=0)


def letters_reward(texts):
    """Some reward of every completion, none like another."""
    values = {"": 0.5, "a": 2.0, "b": -1.0, "c": 0.3}
    answers = [["", *text.removeprefix(PROMPT).split()] for text in texts]
    return torch.tensor([sum(k * values[w] for k, w in enumerate(a, start=1)) for a in answers])


def letters_run(letters, batch_size, **changes):
    """A run of copies of the two policies, which answers one prompt again and again."""
    policy, anchor, tokenizer, _ = letters
    policy, anchor = copy.deepcopy(policy), copy.deepcopy(anchor)
    training = settings(beta=BETA, batch_size=batch_size, anchor="sft", **changes)
    return Run(policy, anchor, tokenizer, letters_reward, [PROMPT] * batch_size, training, 0)


def exact_gradient(policy, anchor, tokenizer, completions, beta):
    """∇(E[r] − β·KL(π‖anchor)), from every completion and its probability."""
    policy = copy.deepcopy(policy)
    ids = tokenizer(PROMPT)["input_ids"]
    logp = tiny.exact_logprobs(policy, ids, completions)
    assert logp.exp().sum().item() == pytest.approx(1)
    with torch.no_grad():
        logq = tiny.exact_logprobs(anchor, ids, completions)
    texts = [PROMPT + tokenizer.decode(c).replace(tiny.END, "") for c in completions]
    expected = (logp.exp() * (letters_reward(texts) - beta * (logp - logq))).sum()
    return torch.autograd.grad(expected, list(policy.parameters())), logp.detach().exp()


def ascended(run):
    """The gradient that the run goes along."""
    return [-p.grad for p in run.policy.parameters()]


def step_gradient(monkeypatch, letters, batch, **changes):
    """The same, where the policy answers with these completions."""
    run = letters_run(letters, len(batch), **changes)
    y = tiny.rollout_of(run.tokenizer(PROMPT)["input_ids"], batch, end=0)
    monkeypatch.setattr(train, "sample", lambda *_, **__: y)
    run.gradient()
    return ascended(run)


def assert_gradients_close(got, wanted, rtol=1e-5):
    got, wanted = (torch.cat([g.flatten() for g in gradients]) for gradients in (got, wanted))
    assert wanted.norm() > 0.01
    assert (got - wanted).norm() < rtol * wanted.norm()


# The gradient


def test_expected_gradient_is_the_derivative_of_reward_minus_beta_kl(letters, monkeypatch):
    wanted, probabilities = exact_gradient(*letters, BETA)
    expected = [torch.zeros_like(g) for g in wanted]
    for completion, probability in zip(letters[3], probabilities, strict=True):
        gradient = step_gradient(monkeypatch, letters, [completion])
        for total, g in zip(expected, gradient, strict=True):
            total += probability * g
    assert_gradients_close(expected, wanted)


def test_leave_one_out_is_unbiased(letters, monkeypatch):
    """Over every pair of completions that a batch of two can hold; their order is the same."""
    wanted, probabilities = exact_gradient(*letters, BETA)
    expected = [torch.zeros_like(g) for g in wanted]
    for i, j in itertools.combinations_with_replacement(range(len(letters[3])), 2):
        pair = [letters[3][i], letters[3][j]]
        gradient = step_gradient(monkeypatch, letters, pair, baseline="loo")
        for total, g in zip(expected, gradient, strict=True):
            total += probabilities[i] * probabilities[j] * (1 if i == j else 2) * g
    assert_gradients_close(expected, wanted)


@pytest.mark.parametrize("baseline", ["none", "loo"])
def test_a_large_batch_of_its_own_samples_has_that_gradient(letters, baseline):
    wanted, _ = exact_gradient(*letters, BETA)
    run = letters_run(letters, 6000, baseline=baseline)
    run.gradient()
    assert_gradients_close(ascended(run), wanted, rtol=0.15)


def test_a_pair_of_equal_completions_has_no_leave_one_out_gradient(letters, monkeypatch):
    for g in step_gradient(monkeypatch, letters, [[1, 2], [1, 2]], baseline="loo"):
        assert g.abs().max() < 1e-12


def test_a_steps_gradient_is_its_own_and_not_added_to_the_last(letters, monkeypatch):
    batch = [[1, 2], [3, 0]]
    first = step_gradient(monkeypatch, letters, batch)
    run = letters_run(letters, 2, lr=1e-9, mu=0)
    for _ in range(3):
        run.step()
    assert_gradients_close(ascended(run), first)


def test_tokens_are_counted_up_to_the_end(letters, monkeypatch):
    run = letters_run(letters, 3)
    y = tiny.rollout_of(run.tokenizer(PROMPT)["input_ids"], [[1, 2], [3, 0], [0]], end=0)
    monkeypatch.setattr(train, "sample", lambda *_, **__: y)
    assert run.gradient()["tokens"] == 5


def test_loo_baseline_is_the_mean_of_the_others():
    assert loo_baseline(torch.tensor([1.0, 2.0, 6.0])).tolist() == [4.0, 3.5, 1.5]


def test_temperature_is_that_of_the_policy_which_is_trained(letters, monkeypatch):
    """log π and KL of softmax(logits / τ): the gradient of one completion by hand."""
    policy, anchor, tokenizer, _ = letters
    completion, ids = [1, 3], tokenizer(PROMPT)["input_ids"]

    def logprob(model):
        logits = model(input_ids=torch.tensor([[*ids, *completion]])).logits[0, 1:3]
        return (logits / 0.5).log_softmax(-1)[[0, 1], completion].sum()

    reference = copy.deepcopy(policy)
    logp = logprob(reference)
    reward = letters_reward([f"{PROMPT} a c"])[0]
    r_beta = (reward - BETA * (logp - logprob(anchor))).detach()
    wanted = torch.autograd.grad(r_beta * logp, list(reference.parameters()))
    got = step_gradient(monkeypatch, letters, [completion], temperature=0.5)
    assert_gradients_close(got, wanted)


# The optimiser, the anchor, the trajectory


@pytest.fixture
def gpt2(policy_folders):
    return load_policy(str(policy_folders("gpt2")))


def count_good(texts):
    return torch.tensor([float(text.split().count("good")) for text in texts])


def words_and_good(texts):
    """Never zero, so that every step moves the policy."""
    return count_good(texts) + torch.tensor([float(len(text.split())) for text in texts])


WORLD = ["good film", "the plot was dull", "very sad story", "this music is nice", "poor cast"]


def run_of(policy, tokenizer, seed=0, reward=count_good, prompts=WORLD, anchor=None, training=None):
    """A run of copies of the policy and its anchor; without one, that is the policy."""
    policy, anchor = (copy.deepcopy(m) for m in (policy, policy if anchor is None else anchor))
    four = {"steps": 4, "batch_size": 4, "max_new_tokens": 5, "lr": 1e-2}
    return Run(
        policy, anchor, tokenizer, reward, prompts, settings(**four | (training or {})), seed
    )


def trained(policy, tokenizer, seed=0, reward=count_good, prompts=WORLD, anchor=None, **training):
    """The rows of a run, and θ, θ_ema and the gradient after every step."""
    run = run_of(policy, tokenizer, seed, reward, prompts, anchor, training)
    rows, history = [], []
    while run.t < run.training.steps:
        rows.append(run.step())
        gradient = {name: p.grad for name, p in run.policy.named_parameters()}
        each = weights_of(run.policy), weights_of(run.anchor), gradient
        history.append([{name: w.clone() for name, w in weights.items()} for weights in each])
    return rows, history


def flat(weights):
    return torch.cat([tensor.flatten() for tensor in weights.values()])


@pytest.mark.parametrize("warmup_steps", [0, 3, 8])
def test_every_step_is_adams_with_its_state_and_warm_up(gpt2, warmup_steps):
    """Kingma and Ba (2015), written out, on the gradients that the run had."""
    _, history = trained(*gpt2, warmup_steps=warmup_steps)
    theta = flat(weights_of(gpt2[0])).double()
    m, v = torch.zeros_like(theta), torch.zeros_like(theta)
    for t, (after, _, gradient) in enumerate(history, start=1):
        g = flat(gradient).double()
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        lr = 1e-2 * (min(1, t / warmup_steps) if warmup_steps else 1)
        theta = theta - lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        torch.testing.assert_close(flat(after).double(), theta, rtol=1e-4, atol=1e-6)


def test_warm_up_is_linear_and_may_be_longer_than_the_run(gpt2):
    rows, _ = trained(*gpt2, warmup_steps=8)
    assert [row["lr"] for row in rows] == pytest.approx([1.25e-3, 2.5e-3, 3.75e-3, 5e-3])
    assert [warmed_up(1.0, t, 2) for t in (1, 2, 3)] == [0.5, 1.0, 1.0]
    assert warmed_up(1.0, 1, 0) == 1.0


def test_ema_anchor_starts_at_theta_init_and_follows_every_step(gpt2):
    mu = 0.2
    _, history = trained(*gpt2, mu=mu)
    wanted = flat(weights_of(gpt2[0]))
    for theta, ema, _ in history:
        assert (flat(theta) - wanted).norm() > 0.05
        wanted = (1 - mu) * wanted + mu * flat(theta)
        torch.testing.assert_close(flat(ema), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("training", [{"mu": 0.0}, {"anchor": "sft", "mu": 0.5}])
def test_anchor_that_must_not_move_does_not(gpt2, training):
    sft = tiny.make_policy("gpt2", len(gpt2[1]), seed=1) if "anchor" in training else gpt2[0]
    run = run_of(*gpt2, anchor=sft, training=training)
    for _ in range(4):
        run.step()
        assert torch.equal(flat(weights_of(run.anchor)), flat(weights_of(sft)))


def test_same_seed_same_run_bit_for_bit_and_other_seed_another(gpt2):
    (first, a), (again, b), (other, c) = (trained(*gpt2, seed=seed) for seed in (5, 5, 6))
    assert first == again
    assert torch.equal(flat(a[-1][0]), flat(b[-1][0]))
    assert all(a["objective"] != b["objective"] for a, b in zip(first[1:], other[1:], strict=True))
    assert not torch.equal(flat(a[-1][0]), flat(c[-1][0]))


def test_the_seed_is_that_of_the_sampling_and_of_the_prompts(gpt2):
    seen = {}
    for seed in (5, 6):
        for name, prompts in (("one", ["good film"]), ("many", WORLD * 10)):
            texts = seen[seed, name] = []

            def reward(batch, texts=texts):
                texts.extend(batch)
                return torch.zeros(len(batch))

            trained(*gpt2, seed=seed, reward=reward, prompts=prompts, steps=2, batch_size=8)
    assert seen[5, "one"] != seen[6, "one"]
    order = [[text.split()[0] for text in seen[seed, "many"]] for seed in (5, 6)]
    assert order[0] != order[1]


def test_bf16_is_of_the_training_alone(gpt2):
    (half, history), (full, _) = (trained(*gpt2, precision=p) for p in ("bf16", "fp32"))
    assert {tensor.dtype for tensor in history[-1][0].values()} == {torch.float32}
    assert half[0]["kl_anchor"] == pytest.approx(0, abs=0.01)
    assert half[0]["grad_norm"] == pytest.approx(full[0]["grad_norm"], rel=0.05)
    assert half[0]["grad_norm"] != full[0]["grad_norm"]


def test_the_global_random_state_changes_nothing(gpt2):
    torch.manual_seed(1)
    first, _ = trained(*gpt2)
    torch.manual_seed(2)
    again, _ = trained(*gpt2)
    assert first == again


def test_dropout_of_the_config_is_never_used(tmp_path, gpt2):
    model, tokenizer = gpt2
    half = {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5}
    with_dropout = tiny.make_policy("gpt2", len(tokenizer), **half)
    with_dropout.load_state_dict(model.state_dict())
    loaded = load_policy(str(tiny.save(with_dropout, tokenizer, tmp_path / "dropout")))
    none = tiny.make_policy("gpt2", len(tokenizer), resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
    none.load_state_dict(model.state_dict())
    (dropped, _), (plain, _) = trained(*loaded), trained(none, tokenizer)
    assert dropped == plain


def test_the_reward_that_is_asked_for_rises(gpt2):
    many = {"steps": 50, "batch_size": 16, "baseline": "loo", "beta": 0.01, "lr": 3e-3}
    rows, _ = trained(*gpt2, reward=count_good, **many)
    rewards = [row["reward"] for row in rows]
    assert sum(rewards[:5]) / 5 < 1
    assert sum(rewards[-5:]) / 5 > 3  # of five words


def test_beta_holds_the_policy_at_its_anchor(gpt2):
    many = {"steps": 25, "batch_size": 16, "baseline": "loo", "mu": 0.0}
    free, held = (trained(*gpt2, reward=count_good, beta=b, **many)[0] for b in (0.0, 3.0))
    drift = [sum(row["kl_anchor"] for row in rows[-5:]) / 5 for rows in (free, held)]
    assert drift[1] < drift[0] / 4


# Metrics


def test_metrics_have_their_keys_types_and_relations(gpt2):
    rows, history = trained(*gpt2, beta=0.2)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row, (_, _, gradient) in zip(rows, history, strict=True):
        whole = dict.fromkeys(("step", "tokens"), int)
        real = (
            "objective",
            "reward",
            "kl_anchor",
            "lr",
            "grad_norm",
            "same",
            "empty",
            "unfinished",
        )
        assert {key: type(value) for key, value in row.items()} == whole | dict.fromkeys(
            real, float
        )
        assert row["objective"] == pytest.approx(row["reward"] - 0.2 * row["kl_anchor"], abs=1e-5)
        assert row["grad_norm"] == pytest.approx(flat(gradient).norm().item(), rel=1e-5)
        assert 4 <= row["tokens"] <= 4 * 5
    assert abs(rows[0]["kl_anchor"]) < 1e-5 < abs(rows[-1]["kl_anchor"])  # both start at θ_init


def test_leave_one_out_is_of_a_prompts_own_completions_by_hand():
    r_beta = torch.tensor([1.0, 3.0, 5.0, 0.0, 0.0, 6.0])
    assert loo_baseline(r_beta, 3).tolist() == [4.0, 3.0, 2.0, 3.0, 3.0, 0.0]
    assert loo_baseline(r_beta, 2).tolist() == [3.0, 1.0, 0.0, 5.0, 6.0, 0.0]
    assert loo_baseline(r_beta).tolist() == pytest.approx([(15 - r) / 5 for r in r_beta.tolist()])


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "mixtral"])
def test_several_completions_of_a_prompt_are_what_each_is_by_itself(architecture, policy_folders):
    """With the prompts' pass shared, and taped, and neither."""
    model, tokenizer = load_policy(str(policy_folders(architecture)))
    scored = []

    def reward(texts):
        scored.append(list(texts))
        return count_good(texts)

    asked = {"batch_size": 6, "completions_per_prompt": 3, "baseline": "loo"}
    runs = [run_of(model, tokenizer, reward=reward, training=asked) for _ in range(2)]
    plain, tape = runs[0].gradient(), None
    with taped(runs[1].policy, 5):
        tape = runs[1].gradient()
    assert scored[0] == scored[1]
    starts = [" ".join(text.split()[:2]) for text in scored[0]]
    assert starts[0] == starts[1] == starts[2] != starts[3] == starts[4] == starts[5]
    assert len({*scored[0]}) > 3
    assert tape["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-4)
    assert abs(plain["kl_anchor"]) < 1e-5


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_gradient_of_small_parts_is_that_of_the_batch(gpt2, size):
    """Three does not divide four."""
    asked = {"baseline": "loo", "anchor": "sft"}
    other = tiny.make_policy("gpt2", len(gpt2[1]), seed=1)
    runs = [run_of(*gpt2, anchor=other, training=asked | {"micro_batch": m}) for m in (0, size)]
    whole, parts = (run.gradient() for run in runs)
    for key in whole.keys() - {"grad_norm"}:
        assert parts[key] == pytest.approx(whole[key], abs=1e-5), key
    gradients = [[p.grad for p in run.policy.parameters()] for run in runs]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_long_gradient_is_shortened_and_its_own_norm_is_logged(gpt2):
    free = run_of(*gpt2, training={"baseline": "loo"})
    norm = free.gradient()["grad_norm"]
    held = run_of(*gpt2, training={"baseline": "loo", "max_grad_norm": norm / 4})
    assert held.gradient()["grad_norm"] == norm
    loose = run_of(*gpt2, training={"baseline": "loo", "max_grad_norm": 4 * norm})
    loose.gradient()
    whole, short, same = ([p.grad for p in run.policy.parameters()] for run in (free, held, loose))
    for a, b, c in zip(whole, short, same, strict=True):
        torch.testing.assert_close(b, a / 4, rtol=1e-4, atol=1e-7)
        assert torch.equal(a, c)


def test_a_completion_without_a_stop_token_loses_points_in_training(gpt2):
    plain, _ = trained(*gpt2)
    rows, _ = trained(*gpt2, missing_eos_penalty=0.5)
    assert rows[0]["reward"] == plain[0]["reward"]
    assert any(row["unfinished"] > 0 for row in rows)
    for row in rows:
        assert 4 * row["unfinished"] == int(4 * row["unfinished"])
        r_beta = row["reward"] - 0.1 * row["kl_anchor"] - 0.5 * row["unfinished"]
        assert row["objective"] == pytest.approx(r_beta, abs=1e-5)


def test_an_ema_anchor_that_is_no_copy_at_the_first_step_stops_the_run(gpt2):
    other = tiny.make_policy("gpt2", len(gpt2[1]), seed=1)
    with pytest.raises(
        TrainingError, match=r"step 1: the KL to the anchor is .* and not 0 as that"
    ):
        run_of(*gpt2, anchor=other).step()
    run_of(*gpt2, anchor=other, training={"anchor": "sft"}).step()


def test_kl_to_the_anchor_is_the_sampled_log_ratio(letters):
    policy, anchor, tokenizer, completions = letters
    ids = tokenizer(PROMPT)["input_ids"]
    logp, logq = (tiny.exact_logprobs(m, ids, completions).detach() for m in (policy, anchor))
    exact = (logp.exp() * (logp - logq)).sum().item()
    spread = (logp.exp() * (logp - logq - exact) ** 2).sum().sqrt().item()
    row = letters_run(letters, 6400).gradient()
    assert row["kl_anchor"] == pytest.approx(exact, abs=4 * spread / 80)


def test_reward_sees_prompt_and_completion_as_one_text(gpt2):
    seen = []

    def reward(texts):
        seen.extend(texts)
        return torch.zeros(len(texts))

    trained(*gpt2, reward=reward, steps=5)
    assert len(seen) == 20
    assert {next(p for p in WORLD if text.startswith(p)) for text in seen} == set(WORLD)
    words = {word for text in seen for word in text.replace(tiny.PAD, "").split()}
    assert words <= set(tiny.WORDS)  # a space stands between prompt and completion
    assert any(len(text.split()) > 6 for text in seen)


# What stops a run


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_not_finite_stops_the_run_which_can_go_on_behind_its_last_step(
    gpt2, bad, tmp_path
):
    """The state is that of step 2: what has been drawn since is drawn again."""
    undisturbed, history = trained(*gpt2, reward=words_and_good)
    rewards = iter([words_and_good, words_and_good, lambda texts: torch.tensor([0, bad, 2, 3])])
    run = run_of(*gpt2, reward=lambda texts: next(rewards)(texts))
    run.step()
    run.step()
    with pytest.raises(TrainingError, match=rf"^step 3: the reward is not finite \({bad}\)"):
        run.step()
    assert (run.t, run.whole) == (2, True)
    assert torch.equal(flat(weights_of(run.policy)), flat(history[1][0]))
    assert torch.equal(flat(weights_of(run.anchor)), flat(history[1][1]))
    mended = run_of(*gpt2, reward=words_and_good)
    mended.restore(stored(run, tmp_path))
    assert [mended.step(), mended.step()] == undisturbed[2:]
    assert torch.equal(flat(weights_of(mended.policy)), flat(history[3][0]))


@pytest.mark.parametrize(("reward", "what"), [(3e38, "loss"), (1e25, "gradient")])
def test_overflow_stops_the_run_before_a_weight_is_changed(gpt2, reward, what):
    run = run_of(*gpt2, reward=lambda t: torch.full([len(t)], reward))
    with pytest.raises(TrainingError, match=f"step 1: the {what} is not finite"):
        run.step()
    assert (run.t, run.whole) == (0, True)
    assert torch.equal(flat(weights_of(run.policy)), flat(weights_of(gpt2[0])))


def test_a_weight_that_is_not_finite_stops_the_run_which_is_whole_no_more(gpt2, monkeypatch):
    """Adam's own steps stay finite; a broken one must not reach the anchor or a checkpoint."""

    class Broken(torch.optim.SGD):
        def step(self):
            next(iter(self.param_groups[0]["params"])).data[0, 0] = math.inf

    monkeypatch.setattr(train.torch.optim, "Adam", Broken)
    run = run_of(*gpt2)
    with pytest.raises(TrainingError, match="step 1: the weight norm is not finite"):
        run.step()
    assert (run.t, run.whole) == (0, False)
    assert torch.equal(flat(weights_of(run.anchor)), flat(weights_of(gpt2[0])))


def test_logits_that_are_not_finite_stop_the_run(gpt2):
    policy, tokenizer = gpt2
    with torch.no_grad():
        policy.transformer.ln_f.weight[0] = math.nan
    with pytest.raises(TrainingError, match="step 1: the policy's logits are not finite"):
        trained(policy, tokenizer)


LOUD = {"steps": 12, "batch_size": 16, "max_new_tokens": 5, "lr": 1e-2, "mu": 0.0, "beta": 0.0}


def test_a_run_goes_back_to_the_weights_before_its_last_update(gpt2):
    """What the KL of step t is measured with is θ_{t−1}; back from it lies θ_{t−2}."""
    _, history = trained(*gpt2, **LOUD)
    run = run_of(*gpt2, training=LOUD | {"max_kl": 1e9})
    run.gradient()
    run.undo()  # nothing was updated
    assert torch.equal(flat(weights_of(run.policy)), flat(weights_of(gpt2[0])))
    run = run_of(*gpt2, training=LOUD | {"max_kl": 1e9})
    for _ in range(3):
        run.step()
    run.gradient()
    assert torch.equal(flat(weights_of(run.policy)), flat(history[2][0]))
    run.undo()
    assert torch.equal(flat(weights_of(run.policy)), flat(history[1][0]))


@pytest.mark.parametrize("last", [False, True])
def test_a_run_beyond_max_kl_ends_with_the_weights_before_its_last_update(
    gpt2, policy_folders, tmp_path, monkeypatch, last
):
    """Also where the last step of all is the one beyond it."""
    free, limit, history = run_of(*gpt2, training=LOUD), 2.0, []
    with taped(free.policy, 5):
        kls = [0.0]
        while kls[-1] <= limit:
            history.append(flat(weights_of(free.policy)).clone())
            kls.append(free.step()["kl_anchor"])
    beyond = free.t
    assert 2 < beyond < 12
    steps = beyond if last else 12
    rl_run(policy_folders("gpt2"), tmp_path, monkeypatch, LOUD | {"steps": steps, "max_kl": limit})
    rows = read_jsonl(tmp_path / "out" / "steps.jsonl")
    assert [row["step"] for row in rows] == list(range(1, beyond + 1))
    assert [row.get("stopped") for row in rows] == [None] * (beyond - 1) + [True]
    assert [row["kl_anchor"] for row in rows] == kls[1:]
    ended, _ = load_policy(str(tmp_path / "out" / "weights"))
    assert torch.equal(flat(weights_of(ended)), history[beyond - 2])


def test_what_lies_behind_max_kl_has_its_weights_too(gpt2, policy_folders, tmp_path, monkeypatch):
    passed = []

    @contextmanager
    def context(t):
        passed.append(t)
        (tmp_path / f"{t}").mkdir()
        yield tmp_path / f"{t}"

    def result(folder):
        names = "weights/model.safetensors", "steps.jsonl"
        return [(folder / name).read_bytes() for name in names]

    asked = [({"training": {"steps": t}}, partial(context, t)) for t in range(1, 12)]
    stopped = LOUD | {"steps": 12, "max_kl": 2.0}
    rl_run(policy_folders("gpt2"), tmp_path, monkeypatch, stopped, passing=asked)
    assert passed == list(range(1, 12))
    beyond, end = len(read_jsonl(tmp_path / "out" / "steps.jsonl")), result(tmp_path / "out")
    assert 2 < beyond < 12
    same = [result(tmp_path / f"{t}") == end for t in passed]
    assert same == [t >= beyond for t in passed]


def rl_run(policy, folder, monkeypatch, training, **options):
    """What the engine computes, with the reward and the prompts of this file."""
    monkeypatch.setattr(folders, "stored_rewards", lambda *_: count_good)
    prompts = folder / "prompts"
    prompts.mkdir()
    seal_json(prompts / TEXTS, WORLD)
    (folder / "out").mkdir()
    asked = {"theta_init": policy, "rewards": [folder], "prompts": prompts, "scored": [{}]}
    asked |= {"training": settings(**training).model_dump(), "seed": 0, "checkpoint_every": 0}
    folders.rl_run(folder / "out", folder / "work", **asked | options)


def test_equal_and_empty_completions_are_counted(gpt2, monkeypatch):
    answers = iter([["a", "a", "a", "b"], [" ", "", "c", "d"]])
    monkeypatch.setattr(Rollout, "texts", lambda *_: next(answers))
    rows, _ = trained(*gpt2, reward=lambda texts: torch.zeros(len(texts)), steps=2, batch_size=4)
    assert [(row["same"], row["empty"]) for row in rows] == [(0.75, 0.0), (0.25, 0.5)]


# The state


def stored(run, folder):
    """Its state, as a checkpoint's file gives it back."""
    checkpoint = Checkpoint(folder / f"behind_{run.t}", steps=100, every=1)
    checkpoint.t = run.t
    checkpoint.save(run.state())
    return checkpoint.restore()


def flat_state(state):
    """All that is in it, by name."""
    each = ((key, part if isinstance(part, dict) else {"": part}) for key, part in state.items())
    inner = ((f"{key}.{name}", of) for key, part in each for name, of in part.items())
    pairs = ((name, of if isinstance(of, dict) else {"": of}) for name, of in inner)
    return {f"{name}.{key}": tensor for name, of in pairs for key, tensor in of.items()}


def assert_same_state(ours, theirs):
    ours, theirs = flat_state(ours), flat_state(theirs)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


STATES = {
    "as printed": {},
    "anchor sft": {"anchor": "sft", "warmup_steps": 3},
    "max_kl": {"max_kl": 1e9, "baseline": "loo", "precision": "bf16"},
}


@pytest.mark.parametrize("training", STATES.values(), ids=STATES)
def test_restored_behind_any_step_a_run_goes_on_bit_for_bit(gpt2, training, tmp_path):
    """Into a second round of the prompts, too, and with what `max_kl` goes back to."""
    sft = tiny.make_policy("gpt2", len(gpt2[1]), seed=1) if "anchor" in training else None
    asked = {"reward": words_and_good, "anchor": sft, "training": training}
    run = run_of(*gpt2, **asked)
    states, rows = [stored(run, tmp_path)], []
    for _ in range(4):
        rows.append(run.step())
        states.append(stored(run, tmp_path))
        assert_same_state(run.state(), states[-1])
    assert bool(run.before) == ("max_kl" in training)
    for t in range(5):
        again = run_of(*gpt2, **asked)
        again.restore(states[t])
        assert again.t == t
        assert_same_state(again.state(), states[t])
        assert [again.step() for _ in range(t, 4)] == rows[t:]
        assert_same_state(again.state(), states[4])
        again.undo()
        wanted = states[3] if again.before else states[4]
        torch.testing.assert_close(weights_of(again.policy), dict(wanted["policy"]), rtol=0, atol=0)


def test_a_state_of_another_kind_of_device_is_refused_with_its_folder(gpt2, tmp_path):
    """CUDA's generators have a state of 16 bytes."""
    run = run_of(*gpt2, reward=words_and_good)
    checkpoint = Checkpoint(tmp_path, steps=100, every=1)
    checkpoint.t = 3
    checkpoint.save(run.state() | {"random": torch.zeros(16, dtype=torch.uint8)})
    said = f"{tmp_path}: begun on another kind of device.* go on there, or delete it"
    with pytest.raises(TrainingError, match=said):
        to_the_end(run, Checkpoint(tmp_path, 100, 1), 0.0)


@pytest.mark.parametrize("training", STATES.values(), ids=STATES)
def test_the_gradient_changes_nothing_that_a_checkpoint_holds(gpt2, training, tmp_path):
    run = run_of(*gpt2, reward=words_and_good, training=training)
    run.step()
    before = stored(run, tmp_path)
    run.gradient()
    assert_same_state(run.state(), before)
    run.update()
    assert (run.t, int(run.state()["t"])) == (2, 2)
    after = flat_state(run.state())
    changed = {n.partition(".")[0] for n, w in flat_state(before).items() if not w.equal(after[n])}
    ema = {"ema"} if run.training.anchor == "ema" else set()
    assert changed >= {"policy", "adam", "random", "t"} | ema


def test_five_hundred_steps_take_no_more_memory_or_files_than_one_hundred(tmp_path, monkeypatch):
    """A hundredth of the weights kept by each step would be seen, and one object of any size."""
    tokenizer = tiny.make_tokenizer()
    policy = tiny.save(
        tiny.make_policy("gpt2", len(tokenizer), n_embd=128), tokenizer, tmp_path / "p"
    )
    process, at, update = psutil.Process(), {}, Run.update

    def measured(run):
        update(run)
        if run.t in (100, 500):
            gc.collect()
            files = len(list((tmp_path / "work").rglob("*")))
            handles = process.num_fds(), process.num_threads(), files
            at[run.t] = process.memory_info().rss, len(gc.get_objects()), handles
            at["weights"] = sum(weight.nbytes for weight in weights_of(run.policy).values())

    monkeypatch.setattr(Run, "update", measured)
    training = {"steps": 500, "batch_size": 2, "max_new_tokens": 2, "lr": 1e-5, "max_kl": 1e9}
    rl_run(policy, tmp_path, monkeypatch, training, checkpoint_every=99)
    (rss, objects, handles), (rss_later, objects_later, handles_later) = at[100], at[500]
    assert rss_later - rss < 400 * at["weights"] / 100
    assert objects_later - objects < 100
    assert handles_later == handles


# Prompts


def test_all_prompts_come_before_one_comes_again():
    batches = prompt_batches([str(k) for k in range(10)], 4, seed=0)
    drawn = [prompt for _ in range(5) for prompt in next(batches)]
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == [str(k) for k in range(10)]
    assert drawn[:10] != drawn[10:]


def test_batches_larger_than_the_prompts_are_filled():
    batch = next(prompt_batches(["a", "b", "c"], 8, seed=0))
    assert len(batch) == 8
    assert min(map(batch.count, "abc")) == 2


def test_prompt_order_is_that_of_the_seed():
    prompts = [str(k) for k in range(50)]
    first, again, other = (next(prompt_batches(prompts, 50, seed)) for seed in (1, 1, 2))
    assert first == again != other


def test_the_penalty_is_of_completions_that_did_not_end(gpt2, monkeypatch):
    run = run_of(*gpt2, training={"missing_eos_penalty": 0.5})
    good, end = run.tokenizer("good")["input_ids"][0], run.tokenizer.eos_token_id
    y = tiny.rollout_of([good], [[good, end], [end], [good] * 5, [good, good, end]], end)
    monkeypatch.setattr(train, "sample", lambda *_, **__: y)
    row = run.gradient()
    assert row["unfinished"] == 0.25
    wanted = row["reward"] - 0.5 * 0.25 - 0.1 * row["kl_anchor"]
    assert row["objective"] == pytest.approx(wanted, abs=1e-5)


def test_the_baseline_is_of_the_same_prompts_completions(monkeypatch, letters):
    batch = [[1, 2], [3, 0], [2, 2], [0]]
    got = step_gradient(monkeypatch, letters, batch, completions_per_prompt=2, baseline="loo")
    whole = step_gradient(monkeypatch, letters, batch, baseline="loo")
    pairs = (batch[:2], batch[2:])
    each = [step_gradient(monkeypatch, letters, pair, baseline="loo") for pair in pairs]
    wanted = [(a + b) / 2 for a, b in zip(*each, strict=True)]
    assert_gradients_close(got, wanted)
    assert sum((a - b).abs().sum() for a, b in zip(whole, wanted, strict=True)) > 0.01


def test_completions_are_sampled_at_the_temperature(letters):
    run, seen = letters_run(letters, 64, temperature=0.5), []

    def reward(texts):
        seen.extend(texts)
        return letters_reward(texts)

    run.reward = reward
    run.gradient()
    batch = encode_prompts(letters[2], [PROMPT] * 64, torch.device("cpu"))
    y = sample(letters[0], *batch, 2, [0], torch.Generator().manual_seed(0), 0.5)
    assert seen == [PROMPT + text for text in y.texts(letters[2])]
