"""Reward models from disk, good and bad, and what they give for a text."""

import math

import pytest
import tiny
import torch

from warp_core.store.errors import ConfigError
from warp_core.world.models import load_classifier
from warp_core.world.reward import RewardModel, load_reward


def test_a_reward_model_without_a_tokenizer_is_refused(tmp_path):
    tiny.make_reward_model(30, ["reward"]).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"reward_model: .* cannot load a tokenizer"):
        load_reward(str(tmp_path))


def test_one_label_is_the_reward(tiny_reward_folder):
    texts = ["good film", "bad", "the plot was very dull and sad"]
    reward = load_reward(str(tiny_reward_folder))
    for text, score in zip(texts, reward(texts).tolist(), strict=True):
        ids = reward.tokenizer([text], return_tensors="pt")["input_ids"]
        assert score == pytest.approx(reward.model(ids).logits.item(), abs=1e-5)


@pytest.mark.parametrize(("positive", "sign"), [("GOOD", 1), ("BAD", -1)])
def test_two_labels_give_the_log_odds_of_the_positive_one(two_label_folder, positive, sign):
    texts = ["good film", "bad", "the plot was very dull"]
    reward = load_reward(str(two_label_folder), positive)
    batch = reward.tokenizer(texts, padding=True, return_tensors="pt")
    p = reward.model(**batch).logits.softmax(dim=-1)[:, 1]
    torch.testing.assert_close(reward(texts), sign * (p / (1 - p)).log(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("label", ["", "good", "LABEL_1"])
def test_two_labels_need_the_name_of_the_positive_one(two_label_folder, label):
    with pytest.raises(ConfigError, match=f"positive_label: '{label}' given; .* BAD, GOOD"):
        load_reward(str(two_label_folder), label)


def test_one_label_has_no_positive_one(tiny_reward_folder):
    with pytest.raises(ConfigError, match="positive_label: 'reward' given"):
        load_reward(str(tiny_reward_folder), "reward")


@pytest.mark.parametrize("label", ["", "B"])
def test_three_labels_are_no_reward(tmp_path, label):
    tokenizer = tiny.make_tokenizer(pad=True)
    model = tiny.make_reward_model(len(tokenizer), ["A", "B", "C"])
    with pytest.raises(ConfigError, match=r"A, B, C.*more cannot be a reward"):
        load_reward(str(tiny.save(model, tokenizer, tmp_path / "three")), label)


def test_a_reward_model_without_a_trained_head_is_refused(policy_folders):
    with pytest.raises(ConfigError, match=r"reward_model: .* weights are missing: score"):
        load_reward(str(policy_folders("llama")))


def test_a_reward_model_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"reward_model: .* there is no such folder"):
        load_reward(str(tmp_path / "absent"))
    with pytest.raises(ConfigError, match=r"reward_model: .* there is no such folder"):
        load_reward("runs/absent/model")


def test_a_reward_does_not_depend_on_the_texts_beside_it(tiny_reward_folder):
    texts = [" ".join(tiny.WORDS[: n % 9 + 1]) for n in range(150)]  # three batches
    reward = load_reward(str(tiny_reward_folder))
    together = reward(texts)
    assert together.shape == (150,)
    assert together.dtype == torch.float32
    alone = torch.cat([reward([text]) for text in texts])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("architecture", sorted(tiny.ARCHITECTURES.keys() - {"lfm2"}))
@pytest.mark.parametrize("pad", [True, False])
def test_a_reward_model_on_a_causal_lm_scores_the_last_word_of_each_text(
    architecture, pad, tmp_path
):
    """With a pad token that its config does not name, or without one."""
    tokenizer = tiny.make_tokenizer(pad=pad)
    if architecture == "qwen2":
        tokenizer = tiny.bytes_tokenizer()
    model = tiny.make_causal_reward_model(architecture, len(tokenizer))
    reward = load_reward(str(tiny.save(model, tokenizer, tmp_path)))
    texts = ["good film", "bad", "the plot was very dull and sad"]
    ids = [reward.tokenizer(text, return_tensors="pt")["input_ids"] for text in texts]
    alone = [model(of_text).logits.item() for of_text in ids]
    assert reward(texts).tolist() == pytest.approx(alone, abs=1e-4)


def test_a_text_that_is_too_long_is_cut_with_a_warning(tiny_reward_folder):
    reward = load_reward(str(tiny_reward_folder))
    words = [tiny.WORDS[n % 9] for n in range(100)]
    assert reward.max_tokens == tiny.CONTEXT
    with pytest.warns(UserWarning, match="reads 64 tokens; what stands behind"):
        empty, cut = reward(["", " ".join(words)]).tolist()
    assert math.isfinite(empty)
    assert cut == pytest.approx(reward([" ".join(words[:64])]).item(), abs=1e-5)


def test_the_length_that_a_reward_model_reads_is_the_smaller_of_both_limits(tiny_reward_folder):
    model, tokenizer = load_classifier(str(tiny_reward_folder))
    tokenizer.model_max_length = 10  # RoBERTa has 514 positions and reads 512 tokens
    assert RewardModel(model, tokenizer).max_tokens == 10


def test_reward_of_a_body_with_a_new_head_is_trainable(tiny_reward_folder):
    model, tokenizer = load_classifier(str(tiny_reward_folder), labels=1)
    RewardModel(model, tokenizer).score(["good"]).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
