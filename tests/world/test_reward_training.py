"""The training of a reward model: its loss, its order, its run folder."""

import math
import random
import shutil

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from warp_core.store.errors import ConfigError, TrainingError
from warp_core.world import reward_training
from warp_core.world.models import fingerprint
from warp_core.world.prompts import Rated
from warp_core.world.reward import load_reward
from warp_core.world.reward_training import (
    RewardConfig,
    _batches,
    bootstrap_stderr,
    bradley_terry_loss,
    pairwise_accuracy,
    run_reward_model,
    train_reward_model,
)


def test_bradley_terry_loss_by_hand():
    scores = torch.tensor([2.0, 0.0, 1.0])
    ratings = torch.tensor([3.0, -1.0, -1.0])  # the last two have no order
    wanted = (math.log1p(math.exp(-2)) + math.log1p(math.exp(-1))) / 2
    assert bradley_terry_loss(scores, ratings).item() == pytest.approx(wanted)
    assert bradley_terry_loss(-scores, ratings).item() == pytest.approx(wanted + 1.5)


def test_pairwise_accuracy_by_hand():
    ratings, scores = np.array([3.0, 1.0, 0.8, -2.0]), np.array([0.5, 0.9, 0.1, 0.2])
    # right of all six pairs: 0-2, 0-3, 1-2, 1-3; the pair 1-2 is too close at a margin of 0.5
    assert pairwise_accuracy(scores, ratings) == pytest.approx(4 / 6)
    assert pairwise_accuracy(scores, ratings, 0.5) == pytest.approx(3 / 5)
    assert pairwise_accuracy(ratings, ratings) == 1
    assert pairwise_accuracy(np.zeros(4), ratings) == 0


def test_bootstrap_error_of_a_mean_is_its_standard_error():
    scores = np.random.default_rng(1).normal(size=400)
    error = bootstrap_stderr(lambda s, _: float(s.mean()), scores, scores, draws=2000)
    assert error == pytest.approx(scores.std() / 20, rel=0.1)


def synthetic(n=400):
    """Texts of random words; "good" and "bad" decide the rating."""
    rng = random.Random(0)
    neutral = [word for word in tiny.WORDS if word not in ("good", "bad")]
    texts = [
        [*rng.choices(neutral, k=rng.randint(1, 5)), rng.choice(["good", "bad"])] for _ in range(n)
    ]
    return [
        Rated(" ".join(rng.sample(words, len(words))), 2.0 if "good" in words else -2.0)
        for words in texts
    ]


def test_training_separates_two_words_and_fixes_the_scale(tiny_reward_folder):
    reward = load_reward(str(tiny_reward_folder))
    rated = synthetic()
    train, held_out = rated[:320], rated[320:]
    rows = list(train_reward_model(reward, train, RewardConfig(epochs=6, lr=1e-2)))
    scores = reward([text for text, _ in held_out]).numpy()
    ratings = np.array([rating for _, rating in held_out])
    assert pairwise_accuracy(scores, ratings) > 0.95
    assert np.abs(scores - ratings).mean() < 1
    assert [row["step"] for row in rows] == list(range(1, 61))
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    assert not reward.model.training


def test_learning_rate_warms_up_and_falls_to_zero(tiny_reward_folder):
    reward = load_reward(str(tiny_reward_folder))
    config = RewardConfig(epochs=5, lr=1e-3, batch_size=16)
    rates = [row["lr"] for row in train_reward_model(reward, synthetic(160), config)]
    assert len(rates) == 50
    assert rates[:3] == pytest.approx([5e-5, 1e-4, 1.5e-4])
    assert rates[-1] == pytest.approx(1e-3 / 50)
    assert max(rates) <= 1e-3


def test_same_seed_trains_the_same_reward_model(tiny_reward_folder):
    prints = []
    for seed in (0, 0, 1):
        reward = load_reward(str(tiny_reward_folder))
        list(train_reward_model(reward, synthetic(96), RewardConfig(seed=seed)))
        prints.append(fingerprint(reward.model))
    assert prints[0] == prints[1] != prints[2]


def test_a_loss_that_is_not_finite_stops_the_training(tiny_reward_folder):
    reward = load_reward(str(tiny_reward_folder))
    rated = [*synthetic(64), *[Rated("good", math.nan)] * 64]
    with pytest.raises(TrainingError, match=r"reward model, step \d+: loss is nan"):
        list(train_reward_model(reward, rated, RewardConfig()))


def test_a_batch_without_an_ordered_pair_leaves_the_squared_error_alone(tiny_reward_folder):
    """In batches of two, many have equal ratings."""
    scores = torch.tensor([2.0, -1.0], requires_grad=True)
    loss = bradley_terry_loss(scores, torch.tensor([3.0, 3.0]))
    assert loss.item() == 0
    assert torch.autograd.grad(loss, scores)[0].tolist() == [0, 0]
    reward = load_reward(str(tiny_reward_folder))
    rows = list(train_reward_model(reward, synthetic(40), RewardConfig(batch_size=2)))
    assert len(rows) == 20
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert all(weight.isfinite().all() for weight in reward.model.parameters())


@pytest.fixture
def little_data(monkeypatch):
    rated = synthetic(80)
    monkeypatch.setattr(reward_training, "rated_texts", lambda: (rated[:64], rated[64:]))


def test_a_reward_model_is_the_same_whatever_was_drawn_before(
    policy_folders, little_data, tmp_path
):
    """The head that its body does not have is drawn too."""
    prints = []
    for start in (1, 2):
        torch.manual_seed(start)
        body, run_dir = str(policy_folders("llama")), str(tmp_path / str(start))
        config = RewardConfig(reward_body=body, batch_size=16, run_dir=run_dir)
        summary = run_reward_model(config)
        assert summary["train_sentences"] == 64
        prints.append(fingerprint(load_reward(str(config.folder / "model")).model))
    assert prints[0] == prints[1]


def test_fewer_sentences_than_a_batch_are_refused(tiny_reward_folder, little_data, tmp_path):
    body, run_dir = str(tiny_reward_folder), str(tmp_path / "run")
    config = RewardConfig(reward_body=body, batch_size=65, run_dir=run_dir)
    with pytest.raises(ConfigError, match="batch_size: 65 given; there are only 64 training"):
        run_reward_model(config)
    assert not (tmp_path / "run").exists()


def test_another_body_in_the_same_run_folder_is_refused(policy_folders, little_data, tmp_path):
    body = shutil.copytree(policy_folders("gpt2"), tmp_path / "body")
    config = RewardConfig(reward_body=str(body), batch_size=16, run_dir=str(tmp_path / "run"))
    run_reward_model(config)
    weights = load_file(body / "model.safetensors")
    weights["transformer.ln_f.bias"][0] += 1
    save_file(weights, body / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="body_sha256"):
        run_reward_model(config)


def test_an_epoch_meets_every_text_once_in_batches_of_about_one_length():
    rated = [Rated("x" * n, float(n)) for n in range(512)]
    batches = list(_batches(rated, 8, random.Random(0)))
    assert {len(batch) for batch in batches} == {8}
    assert sorted(rating for batch in batches for _, rating in batch) == list(range(512))
    spans = [max(r) - min(r) for r in ([rating for _, rating in b] for b in batches)]
    assert np.mean(spans) < 512 / 8
    means = [sum(rating for _, rating in batch) for batch in batches]
    assert means != sorted(means)
    assert [*_batches(rated, 8, random.Random(1))] != batches
