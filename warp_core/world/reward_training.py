"""Training of the reward model on human ratings, with its run folder.

It minimises the Bradley-Terry loss (1952) over all pairs of a batch, −log σ(r_i − r_j) where i is
rated above j, plus a small squared error to the ratings, which fixes the scale: a reward is then
read as a rating from −4 to 4.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor

from warp_core.store.errors import ConfigError, TrainingError
from warp_core.store.files import make_room, seal_json, seal_jsonl
from warp_core.store.parameters import Integer, LearningRate, Name, RunParameters, Seed, Text
from warp_core.store.run_folder import computed_once
from warp_core.world.models import fingerprint, load_classifier, save_policy, total_bytes
from warp_core.world.prompts import Rated, rated_texts
from warp_core.world.reward import RewardModel

Row = dict[str, Any]
Ratings = Sequence[Rated]
Statistic = Callable[[np.ndarray, np.ndarray], float]  # of scores and ratings
RESULTS = ("summary.json", "training.jsonl", "learning_curve.jsonl", "held_out.jsonl")
BUCKET = 16  # batches sorted by length together, so that little is spent on padding
WARMUP_STEPS = 20
SQUARED_ERROR_WEIGHT = 0.1
CLOSE = 0.5  # points; a mean rating has an error of 0.22, so closer texts have no sure order
CURVE_TEXTS, CURVE_STEPS = 300, 40  # of the learning curve: held-out texts, steps between points


class RewardConfig(RunParameters):
    """The training of a reward model on the rated texts."""

    name: Name = "reward_model"
    """Name of the run folder."""
    reward_body: Text = "asset:minilm-l6"
    """What gets a linear head: `asset:NAME`, a local folder or a hub id."""
    epochs: Annotated[Integer, Field(ge=1, le=1000)] = 1
    """Passes over the training sentences."""
    lr: LearningRate = 2e-4
    """AdamW's highest learning rate."""
    batch_size: Annotated[Integer, Field(ge=2, le=100_000)] = 32
    """Sentences of a step; all their pairs are compared."""
    train_sentences: Annotated[Integer, Field(ge=0, le=1_000_000)] = 0
    """So many of the training part; 0: all."""
    seed: Seed = 0
    """Random seed of the head, the order and the dropout."""

    @field_validator("train_sentences")
    @classmethod
    def _fills_a_batch(cls, value: int, info: ValidationInfo) -> int:
        if 0 < value < info.data.get("batch_size", 0):
            raise ValueError(f"0 (all), or batch_size ({info.data['batch_size']}) or more")
        return value


def bradley_terry_loss(scores: Tensor, ratings: Tensor) -> Tensor:
    """−log σ(r_i − r_j) of scores, ratings (B,), mean over pairs with rating_i > rating_j; 0 without."""
    margins = (scores[:, None] - scores[None, :])[ratings[:, None] > ratings[None, :]]
    losses = F.softplus(-margins)
    return losses.mean() if len(losses) else losses.sum()


def train_reward_model(reward: RewardModel, rated: Ratings, config: RewardConfig) -> Iterator[Row]:
    """AdamW on Bradley-Terry + 0.1 · squared error; lr warms up, then falls linearly to 0.

    Yields step, steps, loss, lr after every step; the model is in evaluation mode after the last.
    Raises TrainingError where the loss is not finite.
    """
    torch.manual_seed(config.seed)
    rng = random.Random(config.seed)
    optimizer = torch.optim.AdamW(reward.model.parameters(), weight_decay=0.01, fused=True)
    batches = [b for _ in range(config.epochs) for b in _batches(rated, config.batch_size, rng)]
    for step, batch in enumerate(batches, start=1):
        now = config.lr * min(step / WARMUP_STEPS, 1 - (step - 1) / len(batches))
        optimizer.param_groups[0]["lr"] = now
        reward.model.train()
        scores = reward.score([text for text, _ in batch])
        ratings = torch.tensor([rating for _, rating in batch], device=scores.device)
        squared_error = F.mse_loss(scores, ratings)
        loss = bradley_terry_loss(scores, ratings) + SQUARED_ERROR_WEIGHT * squared_error
        if not torch.isfinite(loss):
            raise TrainingError(f"reward model, step {step}: loss is {loss.item()}; lower the lr")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield {"step": step, "steps": len(batches), "loss": loss.item(), "lr": now}
    reward.model.eval()


def run_reward_model(config: RewardConfig) -> Row:
    """Train a reward model on the human ratings, measure it on held-out texts, once.

    Of the run folder, model/ is what an experiment's `reward_model` names; training.jsonl has the
    loss of every step, learning_curve.jsonl the held-out accuracy on the way, held_out.jsonl each
    held-out text with its rating and score. Returns what summary.json holds: accuracy (pairs whose
    ratings differ by more than CLOSE), accuracy_all_pairs, correlation, rmse, each mean, stderr, n;
    train_sentences.

    Raises ConfigError (a parameter cannot be used; nothing was created), TrainingError (loss not finite).
    """
    train, held_out = rated_texts()
    train = train[: config.train_sentences or None]
    if len(train) < config.batch_size:
        given = f"batch_size: {config.batch_size} given"
        raise ConfigError(f"{given}; there are only {len(train)} training sentences")
    torch.manual_seed(config.seed)  # the head is drawn
    reward = RewardModel(*load_classifier(config.reward_body, labels=1))
    if not (config.folder / RESULTS[0]).is_file():  # which is written last
        make_room(config.folder, total_bytes(reward.model))
    about = config, config.folder, {"body_sha256": fingerprint(reward.model)}, RESULTS
    return computed_once(*about, nullcontext(), lambda: _compute(reward, train, held_out, config))


def _compute(reward: RewardModel, train: Ratings, held_out: Ratings, config: RewardConfig) -> Row:
    measured, training, curve, scored = (config.folder / name for name in RESULTS)
    losses, accuracies = list[Row](), list[Row]()
    texts, ratings = [r.text for r in held_out], np.array([r.rating for r in held_out])
    for row in train_reward_model(reward, train, config):
        losses.append(row)
        if row["step"] in (1, row["steps"]) or row["step"] % CURVE_STEPS == 0:
            reward.model.eval()
            scores = reward(texts[:CURVE_TEXTS]).numpy()
            accuracy = pairwise_accuracy(scores, ratings[:CURVE_TEXTS], CLOSE)
            accuracies.append({"step": row["step"], "accuracy": accuracy})
    save_policy(reward.model, reward.tokenizer, config.folder / "model")
    seal_jsonl(training, losses)
    seal_jsonl(curve, accuracies)
    scores = reward(texts).numpy()
    rows = zip(held_out, scores.tolist(), strict=True)
    seal_jsonl(scored, [r._asdict() | {"score": score} for r, score in rows])
    statistics: dict[str, Statistic] = {
        "accuracy": lambda s, r: pairwise_accuracy(s, r, CLOSE),
        "accuracy_all_pairs": pairwise_accuracy,
        "correlation": lambda s, r: float(np.corrcoef(s, r)[0, 1]),
        "rmse": lambda s, r: float(np.sqrt(np.mean((s - r) ** 2))),
    }
    summary: Row = {}
    for name, statistic in statistics.items():
        mean, stderr = statistic(scores, ratings), bootstrap_stderr(statistic, scores, ratings)
        summary[name] = {"mean": mean, "n": len(ratings), "stderr": stderr}
    summary["train_sentences"] = len(train)
    seal_json(measured, summary)
    return summary


def _batches(rated: Ratings, size: int, rng: random.Random) -> Iterator[list[Rated]]:
    """One epoch of full batches in random order, each of texts of about one length."""
    shuffled = rng.sample(rated, len(rated))
    batches = []
    for start in range(0, len(shuffled), size * BUCKET):
        bucket = sorted(shuffled[start : start + size * BUCKET], key=lambda r: len(r.text))
        batches += [bucket[i : i + size] for i in range(0, len(bucket), size)]
    rng.shuffle(batches)
    yield from (batch for batch in batches if len(batch) == size)


def pairwise_accuracy(scores: np.ndarray, ratings: np.ndarray, margin: float = 0.0) -> float:
    """Share of pairs put in the raters' order, among pairs whose ratings differ by > margin."""
    apart = ratings[:, None] - ratings[None, :] > margin
    ordered = scores[:, None] > scores[None, :]
    return float(ordered[apart].mean())


def bootstrap_stderr(
    statistic: Statistic, scores: np.ndarray, ratings: np.ndarray, draws: int = 200
) -> float:
    """Standard error of a statistic of (scores, ratings), by resampling the texts."""
    rng = np.random.default_rng(0)
    picks = rng.integers(len(scores), size=(draws, len(scores)))
    return float(np.std([statistic(scores[i], ratings[i]) for i in picks], ddof=1))


if __name__ == "__main__":
    print(
        f"reward model: pairwise accuracy {run_reward_model(RewardConfig())['accuracy']['mean']:.3f}"
    )
