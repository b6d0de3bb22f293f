"""KL against its exact value, evaluation by prompts, errors by hand."""

import copy
import math

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file

from warp_core import evaluate
from warp_core.evaluate import BATCH, between_trainings, estimate, policy_kl, sequence_kl
from warp_core.folders import read_completions, write_completions
from warp_core.rollout import completion_logits
from warp_core.store.errors import DamagedError, EvaluationError
from warp_core.store.files import appearing
from warp_core.world.models import load_policy

PROMPT = "a b"


def complete(*args, temperature=1.0, seed=0, reference=None):
    return evaluate.complete(*args, 5, temperature, seed, reference)


def words(texts):
    return torch.tensor([float(len(text.split())) for text in texts])


@pytest.fixture(scope="module")
def letters():
    """Two policies of four tokens, their prompt's tokens, and all completions of up to three."""
    p, q = (tiny.make_policy("gpt2", 4, seed=seed, spread=0.15) for seed in (0, 1))
    return p, q, tiny.letters_tokenizer()(PROMPT)["input_ids"], tiny.all_completions(4, 3, end=0)


@pytest.fixture
def gpt2(policy_folders):
    return load_policy(str(policy_folders("gpt2")))


@pytest.fixture
def other(gpt2):
    return tiny.make_policy("gpt2", len(gpt2[1]), seed=1)


# KL


@torch.no_grad()
def test_expected_sequence_kl_is_the_exact_kl_of_the_policies(letters):
    p, q, prompt, completions = letters
    logp, logq = (tiny.exact_logprobs(model, prompt, completions) for model in (p, q))
    exact = (logp.exp() * (logp - logq)).sum().item()
    assert exact > 0.05
    y = tiny.rollout_of(prompt, completions, end=0)
    kl = sequence_kl(completion_logits(p, y), completion_logits(q, y), y.completion_mask)
    assert kl.shape == (len(completions),)
    assert (logp.exp() * kl).sum().item() == pytest.approx(exact, rel=1e-5)


@torch.no_grad()
def test_exact_token_kl_is_far_less_noisy_than_the_sampled_log_ratio(letters):
    p, q, prompt, completions = letters
    logp, logq = (tiny.exact_logprobs(model, prompt, completions) for model in (p, q))
    y = tiny.rollout_of(prompt, completions, end=0)
    kl = sequence_kl(completion_logits(p, y), completion_logits(q, y), y.completion_mask)
    variances = [(logp.exp() * (x - (logp.exp() * x).sum()) ** 2).sum() for x in (kl, logp - logq)]
    assert variances[0] < variances[1] / 4


def test_sequence_kl_by_hand():
    p, q = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.25, 0.5])
    both = torch.stack([p, q, p])[None].log() + 3.0  # logits need not be normalised
    reference = torch.stack([q, q, q])[None].log()
    of_a_token = 0.5 * math.log(2) - 0.25 * math.log(2)
    for mask, wanted in (([1, 1, 1], 2 * of_a_token), ([1, 1, 0], of_a_token), ([0, 1, 0], 0.0)):
        kl = sequence_kl(both, reference, torch.tensor([mask], dtype=torch.bool))
        assert kl.tolist() == pytest.approx([wanted], abs=1e-6)


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_sequence_kl_is_never_negative(scale):
    generator = torch.Generator().manual_seed(0)
    a, b = (scale * torch.randn(50, 4, 7, generator=generator) for _ in range(2))
    assert (sequence_kl(a, b, torch.ones(50, 4, dtype=torch.bool)) >= 0).all()


def test_the_kl_of_policies_that_hardly_differ_is_not_rounding_noise():
    """δ of variance σ² on every logit: KL = σ²/2 a token, for a large vocabulary."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 6, 20_000, generator=generator)
    delta = 1e-4 * torch.randn(logits.shape, generator=generator)
    kl = sequence_kl(logits, logits + delta, torch.ones(4, 6, dtype=torch.bool))
    assert kl.tolist() == pytest.approx([6 * 1e-8 / 2] * 4, rel=0.1)


def test_sequence_kl_is_float64_whatever_the_logits_are():
    logits = torch.randn(2, 3, 5).bfloat16()
    assert sequence_kl(logits, logits, torch.ones(2, 3, dtype=torch.bool)).dtype == torch.float64


def test_kl_of_a_policy_to_itself_is_zero_and_to_another_is_not(gpt2, other):
    model, tokenizer = gpt2
    done = complete(model, tokenizer, words, ["good film", "bad"])
    assert done.kls == [0.0, 0.0]
    assert policy_kl(model, copy.deepcopy(model), done.rollouts, 1.0) == [0.0, 0.0]
    assert min(policy_kl(model, other, done.rollouts, 1.0)) > 0


def test_kl_from_the_logits_of_sampling_is_that_of_full_forward_passes(gpt2, other):
    model, tokenizer = gpt2
    prompts = ["good film", "bad", "the plot was dull", "so nice"] * 20
    asked = model, tokenizer, words, prompts
    done = complete(*asked, temperature=0.7, reference=other)
    assert done.kls == pytest.approx(policy_kl(model, other, done.rollouts, 0.7), rel=1e-4)
    itself = complete(*asked, temperature=0.7, reference=model)
    assert itself.texts == done.texts
    assert max(map(abs, itself.kls)) < 1e-8
    with torch.no_grad():
        other.transformer.ln_f.weight.fill_(math.nan)
    with pytest.raises(EvaluationError, match="KL is not finite"):
        complete(*asked, temperature=0.7, reference=other)


def test_kl_is_that_of_the_temperature(letters):
    p, q, _, _ = letters
    tokenizer = tiny.letters_tokenizer()
    y = complete(p, tokenizer, words, [PROMPT] * 8).rollouts
    assert max(policy_kl(p, q, y, 100.0)) < 1e-3 < min(policy_kl(p, q, y, 1.0))


def test_a_kl_that_is_not_finite_is_an_error(gpt2, other):
    model, tokenizer = gpt2
    done = complete(model, tokenizer, words, ["good film", "bad"])
    with torch.no_grad():
        other.transformer.ln_f.weight.fill_(math.nan)
    with pytest.raises(EvaluationError, match="KL is not finite"):
        policy_kl(model, other, done.rollouts, 1.0)


def test_words_that_neither_policy_can_say_add_nothing():
    logits = torch.tensor([[[0.3, -0.2, 1.0], [0.1, 0.0, -1.0]]])  # (B, N, V)
    other = logits.flip(-1)
    mask = torch.ones(1, 2, dtype=torch.bool)
    never = torch.full((1, 2, 1), -math.inf)
    both = sequence_kl(torch.cat([logits, never], -1), torch.cat([other, never], -1), mask)
    assert both.item() == pytest.approx(sequence_kl(logits, other, mask).item(), rel=1e-12)
    # p does not say it, q does: −log of the share that q gives to the rest.
    said = torch.cat([other, torch.zeros(1, 2, 1)], -1)
    rest = -said.softmax(-1)[..., :3].sum(-1).log().sum()
    of_p = sequence_kl(torch.cat([logits, never], -1), said, mask)
    assert of_p.item() == pytest.approx((both + rest).item(), rel=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_stands_behind_the_end_is_not_in_the_kl(bad):
    logits, other = torch.randn(2, 1, 3, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True, True, False]])
    whole = sequence_kl(logits, other, mask)
    other[0, 2] = bad
    assert torch.equal(sequence_kl(logits, other, mask), whole)


def never_says(model, word):
    """Its logit is −∞ from now on."""
    fill = -math.inf
    model.lm_head.register_forward_hook(
        lambda _, __, y: y.index_fill(-1, torch.tensor([word]), fill)
    )


def test_a_word_that_p_alone_can_say_is_an_error_with_a_sentence(gpt2, other):
    model, tokenizer = gpt2
    asked = model, tokenizer, words, ["good film", "bad"]
    done = complete(*asked, reference=other)
    never_says(other, 5)
    for call in (
        lambda: policy_kl(model, other, done.rollouts, 1.0),
        lambda: complete(*asked, reference=other),
    ):
        with pytest.raises(EvaluationError, match=r"^a KL is not finite: "):
            call()
    never_says(model, 5)
    again = complete(*asked, reference=other)
    assert 0 < min(again.kls) <= max(again.kls) < math.inf
    assert again.kls == pytest.approx(policy_kl(model, other, again.rollouts, 1.0), rel=1e-4)


# Completions


def test_every_prompt_is_answered_and_rewarded_as_one_text(gpt2):
    prompts = [f"good {word}" for word in tiny.WORDS] * 3  # more than a batch
    assert len(prompts) > BATCH
    seen = []

    def reward(texts):
        seen.extend(texts)
        return words(texts)

    done = complete(*gpt2, reward, prompts)
    assert seen == [p + t for p, t in zip(prompts, done.texts, strict=True)]
    assert done.rewards == words(seen).tolist()
    assert sum(len(rollout.tokens) for rollout in done.rollouts) == len(prompts)


def test_equal_policies_give_equal_completions_and_seeds_decide(gpt2):
    model, tokenizer = gpt2
    prompts = ["good film", "bad", "the plot was dull", "so nice"] * 3
    first = complete(model, tokenizer, words, prompts)
    again = complete(copy.deepcopy(model), tokenizer, words, prompts)
    other_seed = complete(model, tokenizer, words, prompts, seed=1)
    assert first.texts == again.texts
    assert first.texts != other_seed.texts


def test_batches_draw_different_numbers(gpt2):
    done = complete(*gpt2, words, ["good film"] * (2 * BATCH))
    assert done.texts[:BATCH] != done.texts[BATCH:]


def test_a_reward_that_is_not_finite_is_an_error(gpt2):
    with pytest.raises(EvaluationError, match="reward is not finite"):
        complete(*gpt2, lambda texts: words(texts) / 0, ["good", "bad"])


def test_logits_that_are_not_finite_are_an_error_of_the_evaluation(gpt2):
    model, tokenizer = gpt2
    with torch.no_grad():
        model.transformer.ln_f.weight.fill_(math.nan)
    with pytest.raises(EvaluationError, match="the policy's logits are not finite"):
        complete(model, tokenizer, words, ["good film", "bad"])


def test_completions_come_back_from_their_folder_as_they_were(gpt2, other, tmp_path):
    model, tokenizer = gpt2
    prompts = [f"good {word}" for word in tiny.WORDS] * 3  # more than a batch
    done = complete(model, tokenizer, words, prompts, reference=other)
    with appearing(tmp_path / "answers", 0) as folder:
        write_completions(folder, done)
    again = read_completions(tmp_path / "answers")
    assert (again.texts, again.rewards, again.kls) == (done.texts, done.rewards, done.kls)
    for ours, theirs in zip(again.rollouts, done.rollouts, strict=True):
        for a, b in zip(vars(ours).values(), vars(theirs).values(), strict=True):
            assert torch.equal(a, b)
    assert len(load_file(tmp_path / "answers" / "rollouts.safetensors")) == 3 * len(done.rollouts)
    for path in sorted((tmp_path / "answers").glob("[ar]*")):
        before = path.read_bytes()
        path.write_bytes(before[:-2] + bytes([before[-2] ^ 1]) + before[-1:])
        with pytest.raises(DamagedError, match=f"delete the folder {tmp_path / 'answers'}"):
            read_completions(tmp_path / "answers")
        path.write_bytes(before)
    assert len(read_completions(tmp_path / "answers").texts) == len(prompts)


# Errors


def test_estimate_by_hand():
    # mean 3, squared deviations 4 + 0 + 4, variance 4, error 2/√3
    assert estimate([1.0, 3.0, 5.0]) == {"mean": 3.0, "stderr": pytest.approx(2 / 3**0.5), "n": 3}


def test_error_is_that_of_the_mean():
    draws = np.random.default_rng(0).normal(size=(4000, 10))
    means, errors = zip(*((e["mean"], e["stderr"]) for e in map(estimate, draws)), strict=True)
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(means), rel=0.05)


# Between trainings


def test_an_interval_over_trainings_by_hand():
    """Mean 2, standard error 1/√3; t with two degrees of freedom has 0.975 at 4.302653."""
    found = between_trainings([1.0, 2.0, 3.0])
    half = 4.302653 / 3**0.5
    assert found == pytest.approx(
        {"mean": 2, "low": 2 - half, "high": 2 + half, "p": 0.0741799, "n": 3}
    )
    assert between_trainings([0.5, 0.5])["p"] == 0.0
    assert between_trainings([0.0, 0.0, 0.0])["p"] == 1.0
    with pytest.raises(EvaluationError, match="one training has no error between trainings"):
        between_trainings([1.0])


@pytest.mark.parametrize("n", [3, 5, 8])
def test_the_interval_covers_a_mean_of_nothing_19_times_in_20(n):
    values = np.random.default_rng(n).normal(0, 0.1, size=(4000, n))
    found = [between_trainings(row) for row in values]
    covered = np.mean([each["low"] <= 0 <= each["high"] for each in found])
    assert covered == pytest.approx(0.95, abs=0.012)
    told = np.mean([each["p"] < 0.05 for each in found])
    assert covered == pytest.approx(1 - told)


@pytest.mark.parametrize(("n", "effect"), [(3, 0.314), (5, 0.166), (8, 0.115)])
def test_the_planned_effects_are_told_four_times_in_five(n, effect):
    """LOG.md, 2026-11-24: a spread between trainings of 0.1."""
    values = np.random.default_rng(n).normal(effect, 0.1, size=(3000, n))
    assert np.mean([between_trainings(row)["p"] < 0.05 for row in values]) == pytest.approx(
        0.8, abs=0.05
    )


def test_a_batch_draws_the_same_however_long_the_one_before_was(gpt2, monkeypatch):
    asked = *gpt2, words, ["good film"] * BATCH + ["bad"] * 8
    whole, sample, lengths = complete(*asked), evaluate.sample, iter([1, 5])

    def cut(policy, tokens, mask, _, *more):
        return sample(policy, tokens, mask, next(lengths), *more)

    monkeypatch.setattr(evaluate, "sample", cut)
    other = complete(*asked)
    assert other.texts[:BATCH] != whole.texts[:BATCH]
    assert other.texts[BATCH:] == whole.texts[BATCH:]


def test_kls_do_not_depend_on_how_many_are_compared_at_once(gpt2, monkeypatch):
    model, tokenizer = gpt2
    other = tiny.make_policy("gpt2", len(tokenizer), seed=1)
    asked = model, tokenizer, words, ["good film", "bad", "so nice", "dull", "poor"]
    whole = complete(*asked, reference=other).kls
    assert len(set(whole)) > 1
    monkeypatch.setattr(evaluate, "LOGITS", 2 * 5 * len(tokenizer))
    assert complete(*asked, reference=other).kls == pytest.approx(whole, rel=1e-9)
