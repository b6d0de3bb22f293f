"""KL against its exact value, evaluation by prompts, errors and text statistics by hand."""

import copy
import math

import numpy as np
import pytest
import tiny
import torch

from warp_core.config import WarpConfig
from warp_core.evaluate import (
    BATCH,
    complete,
    estimate,
    evaluate_pair,
    policy_kl,
    sequence_kl,
    text_statistics,
)
from warp_core.models import load_policy
from warp_core.rollout import completion_logits

PROMPT = "a b"
CONFIG = WarpConfig(max_new_tokens=5)


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
    done = complete(model, tokenizer, words, ["good film", "bad"], CONFIG)
    assert policy_kl(model, copy.deepcopy(model), done, CONFIG) == [0.0, 0.0]
    assert min(policy_kl(model, other, done, CONFIG)) > 0


def test_kl_from_the_logits_of_sampling_is_that_of_full_forward_passes(gpt2, other):
    model, tokenizer = gpt2
    prompts = ["good film", "bad", "the plot was dull", "so nice"] * 20
    warm = CONFIG.model_copy(update={"temperature": 0.7})
    done = complete(model, tokenizer, words, prompts, warm, reference=other)
    assert done.kls == pytest.approx(policy_kl(model, other, done, warm), rel=1e-4)
    itself = complete(model, tokenizer, words, prompts, warm, reference=model)
    assert itself.texts == done.texts
    assert max(map(abs, itself.kls)) < 1e-8
    with torch.no_grad():
        other.transformer.ln_f.weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="KL is not finite"):
        complete(model, tokenizer, words, prompts, warm, reference=other)


def test_kl_is_that_of_the_temperature(letters):
    p, q, _, _ = letters
    tokenizer = tiny.letters_tokenizer()
    hot, cold = CONFIG.model_copy(update={"temperature": 100.0}), CONFIG
    done = complete(p, tokenizer, words, [PROMPT] * 8, cold)
    assert max(policy_kl(p, q, done, hot)) < 1e-3 < min(policy_kl(p, q, done, cold))


def test_a_kl_that_is_not_finite_is_an_error(gpt2, other):
    model, tokenizer = gpt2
    done = complete(model, tokenizer, words, ["good film", "bad"], CONFIG)
    with torch.no_grad():
        other.transformer.ln_f.weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="KL is not finite"):
        policy_kl(model, other, done, CONFIG)


# Completions


def test_every_prompt_is_answered_and_rewarded_as_one_text(gpt2):
    prompts = [f"good {word}" for word in tiny.WORDS] * 3  # more than a batch
    assert len(prompts) > BATCH
    seen = []

    def reward(texts):
        seen.extend(texts)
        return words(texts)

    done = complete(*gpt2, reward, prompts, CONFIG)
    assert seen == [p + t for p, t in zip(prompts, done.texts, strict=True)]
    assert done.rewards == words(seen).tolist()
    assert sum(len(rollout.tokens) for rollout in done.rollouts) == len(prompts)


def test_equal_policies_give_equal_completions_and_seeds_decide(gpt2):
    model, tokenizer = gpt2
    prompts = ["good film", "bad", "the plot was dull", "so nice"] * 3
    first = complete(model, tokenizer, words, prompts, CONFIG)
    again = complete(copy.deepcopy(model), tokenizer, words, prompts, CONFIG)
    other_seed = complete(model, tokenizer, words, prompts, CONFIG.model_copy(update={"seed": 1}))
    assert first.texts == again.texts
    assert first.texts != other_seed.texts


def test_batches_draw_different_numbers(gpt2):
    done = complete(*gpt2, words, ["good film"] * (2 * BATCH), CONFIG)
    assert done.texts[:BATCH] != done.texts[BATCH:]


def test_a_reward_that_is_not_finite_is_an_error(gpt2):
    with pytest.raises(FloatingPointError, match="reward is not finite"):
        complete(*gpt2, lambda texts: words(texts) / 0, ["good", "bad"], CONFIG)


def test_pair_takes_each_kl_along_its_own_policys_completions(gpt2, other):
    model, tokenizer = gpt2
    prompts = ["good film", "bad", "the plot was dull", "so nice"]
    of_sft = complete(model, tokenizer, words, prompts, CONFIG)
    of_warp = complete(other, tokenizer, words, prompts, CONFIG, reference=model)
    assert of_sft.kls == []
    pair = evaluate_pair(model, other, of_sft, of_warp, CONFIG)
    assert pair["kl_sft_warp"] == estimate(policy_kl(model, other, of_sft, CONFIG))
    along_warp = estimate(policy_kl(other, model, of_warp, CONFIG))
    assert pair["kl_warp_sft"] == pytest.approx(along_warp, rel=1e-4)
    assert pair["sft_reward"] == estimate(of_sft.rewards)
    assert pair["warp_reward"] == estimate(of_warp.rewards)
    differences = [w - s for s, w in zip(of_sft.rewards, of_warp.rewards, strict=True)]
    assert pair["reward_difference"] == pytest.approx(estimate(differences))
    assert pair["text"]["warp"] == text_statistics(of_warp.texts)
    assert pair["kl_sft_warp"] != pair["kl_warp_sft"]


# Errors and text statistics


def test_estimate_by_hand():
    # mean 3, squared deviations 4 + 0 + 4, variance 4, error 2/√3
    assert estimate([1.0, 3.0, 5.0]) == {"mean": 3.0, "stderr": pytest.approx(2 / 3**0.5), "n": 3}


def test_error_is_that_of_the_mean():
    draws = np.random.default_rng(0).normal(size=(4000, 10))
    means, errors = zip(*((e["mean"], e["stderr"]) for e in map(estimate, draws)), strict=True)
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(means), rel=0.05)


def test_text_statistics_by_hand():
    texts = [" good Good film good", "bad plot", "bad plot", " "]
    assert text_statistics(texts) == {
        "words": pytest.approx((4 + 2 + 2 + 0) / 4),
        "repetition": pytest.approx((1 / 2 + 0 + 0) / 3),
        "distinct": pytest.approx(3 / 4),
        "distinct_pairs": pytest.approx(4 / 5),  # "bad plot" is there twice
        "empty": pytest.approx(1 / 4),
    }


def test_texts_without_a_word_repeat_nothing():
    assert text_statistics(["", ""]) == {
        "words": 0.0, "repetition": 0.0, "distinct": 0.5, "distinct_pairs": 1.0, "empty": 1.0,
    }  # fmt: skip
