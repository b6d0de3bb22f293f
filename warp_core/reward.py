"""The reward model r(x, y): scoring, and its training on human ratings.

Training minimises the Bradley-Terry loss (1952) over all pairs of a batch, −log σ(r_i − r_j) where
i is rated above j, plus a small squared error to the ratings, which fixes the scale: a reward is
then read as a rating from −4 to 4.
"""

import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from warp_core.config import RewardConfig
from warp_core.errors import ConfigError
from warp_core.files import (
    append_jsonl,
    make_room,
    read_jsonl,
    seal_json,
    seal_jsonl,
    write_jsonl,
)
from warp_core.models import fingerprint, load_classifier, save_policy, total_bytes, weights_of
from warp_core.prompts import Rated, rated_texts
from warp_core.runs import check_run, finished, open_run

RESULTS = ("summary.json", "training.jsonl", "learning_curve.jsonl", "held_out.jsonl")
SCORE_BATCH = 64
NO_LIMIT = 1_000_000  # tokens; tokenizers that know of no limit name an astronomical number
BUCKET = 16  # batches sorted by length together, so that little is spent on padding
WARMUP_STEPS = 20
SQUARED_ERROR_WEIGHT = 0.1
CLOSE = 0.5  # points; a mean rating has an error of 0.22, so closer texts have no sure order
CURVE_TEXTS, CURVE_STEPS = 300, 40  # of the learning curve: held-out texts, steps between points


class RewardModel:
    """r: texts (prompt + completion) -> (B,) float32 rewards, on the CPU.

    With one label the reward is its logit; with two it is the log-odds of the positive one. A text
    longer than `max_tokens`, what the model can read, is cut there, with a warning.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, positive_label: str = ""
    ) -> None:
        labels = {str(name): int(index) for index, name in (model.config.id2label or {}).items()}
        if len(labels) > 2 or (len(labels) == 2 and positive_label not in labels):
            raise ConfigError(
                f"positive_label: {positive_label!r} given; the reward model has the labels "
                f"{', '.join(labels)}: of two, name the good one; more cannot be a reward"
            )
        if len(labels) == 1 and positive_label:
            raise ConfigError(
                f"positive_label: {positive_label!r} given; a reward model with one label has none"
            )
        self.model, self.tokenizer = model.eval(), tokenizer
        longest = getattr(model.config, "max_position_embeddings", None)  # ALiBi has no limit
        self.max_tokens = min(longest or NO_LIMIT, tokenizer.model_max_length, NO_LIMIT)
        self.positive = labels[positive_label] if positive_label else None

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        rewards = torch.empty(len(texts))
        by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # little padding
        for start in range(0, len(texts), SCORE_BATCH):
            batch = by_length[start : start + SCORE_BATCH]
            rewards[batch] = self.score([texts[i] for i in batch]).float().cpu()
        return rewards

    def score(self, texts: Sequence[str]) -> Tensor:
        """Rewards of one batch, with their graph."""
        batch = self.tokenizer(list(texts), padding=True, return_tensors="pt")
        if batch["input_ids"].shape[1] > self.max_tokens:
            warnings.warn(f"the reward model reads {self.max_tokens} tokens; what stands behind "
                          "them in longer texts is not scored", stacklevel=2)  # fmt: skip
            batch = self.tokenizer(list(texts), padding=True, truncation=True,
                                   max_length=self.max_tokens, return_tensors="pt")  # fmt: skip
        logits = self.model(**batch.to(self.model.device)).logits  # (B, 1) or (B, 2)
        if self.positive is None:
            return logits[:, 0]
        return logits[:, self.positive] - logits[:, 1 - self.positive]


def load_reward(spec: str, positive_label: str = "") -> RewardModel:
    """The reward model of a folder or hub id; raises ConfigError where it can be no reward."""
    return RewardModel(*load_classifier(spec), positive_label)


def bradley_terry_loss(scores: Tensor, ratings: Tensor) -> Tensor:
    """−log σ(r_i − r_j), mean over all pairs of the batch with rating_i > rating_j.

    Args:
        scores, ratings: (B,)
    """
    margins = (scores[:, None] - scores[None, :])[ratings[:, None] > ratings[None, :]]
    return F.softplus(-margins).mean()


def train_reward_model(
    reward: RewardModel,
    rated: Sequence[Rated],
    config: RewardConfig,
    on_step: Callable[[dict[str, Any]], None],
) -> None:
    """AdamW on Bradley-Terry + 0.1 · squared error; lr warms up, then falls linearly to 0.

    Calls `on_step` with step, steps, loss, lr after every step.
    Raises FloatingPointError where the loss is not finite.
    """
    torch.manual_seed(config.seed)
    rng = random.Random(config.seed)
    model = reward.model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=0.01,
                                  fused=True)  # fmt: skip
    batches = [b for _ in range(config.epochs) for b in _batches(rated, config.batch_size, rng)]
    for step, batch in enumerate(batches, start=1):
        now = config.lr * min(step / WARMUP_STEPS, 1 - (step - 1) / len(batches))
        optimizer.param_groups[0]["lr"] = now
        scores = reward.score([text for text, _ in batch])
        ratings = torch.tensor([rating for _, rating in batch], device=scores.device)
        squared_error = F.mse_loss(scores, ratings)
        loss = bradley_terry_loss(scores, ratings) + SQUARED_ERROR_WEIGHT * squared_error
        if not torch.isfinite(loss):
            raise FloatingPointError(f"reward model, step {step}: loss is {loss.item()}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        on_step({"step": step, "steps": len(batches), "loss": loss.item(), "lr": now})
    model.eval()


def run_reward_model(config: RewardConfig) -> dict[str, Any]:
    """Train a reward model on the human ratings, measure it on held-out texts, keep all in a folder.

    model/ in the run folder is the folder that an experiment's `reward_model` names; training.jsonl has the
    loss of every step, learning_curve.jsonl the held-out accuracy on the way, held_out.jsonl each
    held-out text with its rating and score. What is there already is not done again.

    Returns:
        What summary.json holds: accuracy (pairs whose ratings differ by more than CLOSE),
        accuracy_all_pairs, correlation, rmse, each mean, stderr, n; train_sentences.

    Raises:
        ConfigError: the parameters, or what they name, cannot be used; nothing was created then.
    """
    run_dir = config.folder
    train, held_out = rated_texts()
    train = train[: config.train_sentences or None]
    if len(train) < config.batch_size:
        raise ConfigError(f"batch_size: {config.batch_size} given; there are only {len(train)} "
                          "training sentences")  # fmt: skip
    torch.manual_seed(config.seed)  # the head is drawn
    body, tokenizer = load_classifier(config.reward_body, labels=1)
    reward = RewardModel(body, tokenizer)
    about = config.model_dump(), run_dir, {"body_sha256": fingerprint(body)}
    check_run(*about)
    if summary := finished(run_dir, RESULTS):
        return summary
    make_room(run_dir, total_bytes(weights_of(body)))
    with open_run(*about):
        return finished(run_dir, RESULTS) or _train_and_measure(reward, train, held_out, config)


def _train_and_measure(
    reward: RewardModel, train: Sequence[Rated], held_out: Sequence[Rated], config: RewardConfig
) -> dict[str, Any]:
    run_dir = config.folder
    logs = [run_dir / name for name in ("training.jsonl", "learning_curve.jsonl")]
    for log in logs:
        write_jsonl(log, [])
    ratings = np.array([r.rating for r in held_out])
    few = slice(0, CURVE_TEXTS)

    def on_step(row: dict[str, Any]) -> None:
        append_jsonl(logs[0], row)
        if row["step"] in (1, row["steps"]) or row["step"] % CURVE_STEPS == 0:
            reward.model.eval()
            scores = reward([r.text for r in held_out[few]]).numpy()
            accuracy = pairwise_accuracy(scores, ratings[few], CLOSE)
            append_jsonl(logs[1], {"step": row["step"], "accuracy": accuracy})
            reward.model.train()

    train_reward_model(reward, train, config, on_step)
    save_policy(reward.model, reward.tokenizer, run_dir / "model")
    for log in logs:
        seal_jsonl(log, read_jsonl(log))
    scores = reward([r.text for r in held_out]).numpy()
    rows = zip(held_out, scores.tolist(), strict=True)
    seal_jsonl(run_dir / "held_out.jsonl", [r._asdict() | {"score": score} for r, score in rows])
    statistics: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
        "accuracy": lambda s, r: pairwise_accuracy(s, r, CLOSE),
        "accuracy_all_pairs": pairwise_accuracy,
        "correlation": lambda s, r: float(np.corrcoef(s, r)[0, 1]),
        "rmse": lambda s, r: float(np.sqrt(np.mean((s - r) ** 2))),
    }
    summary: dict[str, Any] = {
        name: {"mean": statistic(scores, ratings), "n": len(ratings),
               "stderr": bootstrap_stderr(statistic, scores, ratings)}
        for name, statistic in statistics.items()
    }  # fmt: skip
    summary["train_sentences"] = len(train)
    seal_json(run_dir / "summary.json", summary)
    return summary


def _batches(rated: Sequence[Rated], size: int, rng: random.Random) -> Iterator[list[Rated]]:
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
    statistic: Callable[[np.ndarray, np.ndarray], float],
    scores: np.ndarray,
    ratings: np.ndarray,
    draws: int = 200,
) -> float:
    """Standard error of a statistic of (scores, ratings), by resampling the texts."""
    rng = np.random.default_rng(0)
    picks = rng.integers(len(scores), size=(draws, len(scores)))
    return float(np.std([statistic(scores[i], ratings[i]) for i in picks], ddof=1))
