"""The reward model r(x, y), a sequence classifier that scores texts; and sums of several rewards."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from warp_core.store.errors import ConfigError, RewardError
from warp_core.world.models import fingerprint, load_classifier, rendered_chat
from warp_core.world.own_reward import OwnReward, place_of
from warp_core.world.prompts import Conversation, Prompt, as_text, with_completion
from warp_core.world.scorer import PYTHON, VADER, Scorer
from warp_core.world.vader import PROGRAM, Vader

SOURCE, NAME = "reward.py", "name.txt"  # in the store
SCORE_BATCH = 64
Reward = Callable[[Sequence[Prompt]], Tensor]  # texts or conversations -> (B,) float32
NO_LIMIT = 1_000_000  # tokens; tokenizers that know of no limit name an astronomical number


class RewardModel:
    """r: texts (prompt + completion) or conversations -> (B,) float32 rewards, on the CPU.

    With one label the reward is its logit; with two it is the log-odds of the positive one. A text
    longer than `max_tokens`, what the model can read, is cut there, with a warning.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, positive_label: str = ""
    ) -> None:
        labels = {str(name): int(index) for index, name in (model.config.id2label or {}).items()}
        given = f"positive_label: {positive_label!r} given"
        if len(labels) > 2 or (len(labels) == 2 and positive_label not in labels):
            has = f"the reward model has the labels {', '.join(labels)}"
            raise ConfigError(f"{given}; {has}: of two, name the good one; more cannot be a reward")
        if len(labels) == 1 and positive_label:
            raise ConfigError(f"{given}; a reward model with one label has none")
        self.model, self.tokenizer = model.eval(), tokenizer
        longest = getattr(model.config, "max_position_embeddings", None)  # ALiBi has no limit
        self.max_tokens = min(longest or NO_LIMIT, tokenizer.model_max_length, NO_LIMIT)
        self.positive = labels[positive_label] if positive_label else None

    @cached_property
    def digest(self) -> str:
        """`fingerprint` of its model."""
        return fingerprint(self.model)

    @torch.no_grad()
    def __call__(self, scored: Sequence[Prompt]) -> Tensor:
        texts = self.rendered(scored)
        rewards = torch.empty(len(texts))
        by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # little padding
        for start in range(0, len(texts), SCORE_BATCH):
            batch = by_length[start : start + SCORE_BATCH]
            rewards[batch] = self.score([texts[i] for i in batch]).float().cpu()
        return rewards

    def rendered(self, scored: Sequence[Prompt]) -> list[str]:
        """Conversations by the model's own chat template, if it has one; else as plain texts."""
        if not self.tokenizer.chat_template:
            return [as_text(each) for each in scored]
        chats = (each if isinstance(each, str) else self._chat(each) for each in scored)
        return list(chats)

    def _chat(self, messages: Conversation) -> str:
        """Without the token that the tokenizer puts first itself."""
        text, bos = rendered_chat(self.tokenizer, messages, False), self.tokenizer.bos_token_id
        puts_it = bos is not None and self.tokenizer("a")["input_ids"][0] == bos
        return text.removeprefix(str(self.tokenizer.bos_token)) if puts_it else text

    def score(self, texts: Sequence[str]) -> Tensor:
        """Rewards of one batch, with their graph."""
        encode = partial(self.tokenizer, list(texts), padding=True, return_tensors="pt")
        batch, limit = encode(), self.max_tokens
        if batch["input_ids"].shape[1] > limit:
            said = f"the reward model reads {limit} tokens; what stands behind them is not scored"
            warnings.warn(said, stacklevel=2)
            batch = encode(truncation=True, max_length=limit)
        logits = self.model(**batch.to(self.model.device)).logits  # (B, 1) or (B, 2)
        if self.positive is None:
            return logits[:, 0]
        return logits[:, self.positive] - logits[:, 1 - self.positive]


def load_reward(
    spec: str, positive_label: str = "", key: str = "reward_model", gpus: int = 1
) -> RewardModel:
    """The reward model of a folder or hub id; raises ConfigError where it can be no reward.

    Args:
        key: the parameter that names it, for errors.
        gpus: 0: it stays in main memory.
    """
    return RewardModel(*load_classifier(spec, key=key, gpus=gpus), positive_label)


def load_scorer(
    scorer: Scorer, prompts: Sequence[Prompt], key: str = "reward_model"
) -> RewardModel | OwnReward:
    """What scores, by its name, in main memory; the user's own function is tried on the first prompts.

    Raises ConfigError where it cannot be used.
    """
    if not scorer.model.startswith(PYTHON):
        return load_reward(scorer.model, scorer.positive_label, key, gpus=0)
    try:
        own = OwnReward(*place_of(scorer.model), scorer.model)
        own([with_completion(prompt, " yes") for prompt in prompts[:2]])
    except RewardError as error:
        raise ConfigError(f"{key}: {scorer.model!r} given; {error}") from error
    return own


def load_judge(scorer: Scorer, prompts: Sequence[Prompt]) -> RewardModel | OwnReward | Vader:
    """`vader`, or what could be a reward; raises ConfigError where it cannot be used."""
    return Vader() if scorer.model == VADER else load_scorer(scorer, prompts, "judge")


def stored_rewards(
    folders: Sequence[Path], how: Sequence[Mapping[str, Any]], half: bool = False
) -> Reward:
    """The sum of the rewards that the store has in these folders, each by its weight.

    Args:
        how: of each what `scorer.plain` gives.
        half: models have bfloat16 weights.
    """
    rewards = [_stored(*each) for each in zip(folders, how, strict=True)]
    for each in rewards:
        if half and isinstance(each, RewardModel):
            each.model.bfloat16()
    weights = [each.get("weight", 1.0) for each in how]
    if weights == [1.0]:
        return rewards[0]
    return lambda scored: sum(
        (w * r(scored) for w, r in zip(weights, rewards, strict=True)), torch.zeros(len(scored))
    )


def _stored(folder: Path, how: Mapping[str, Any]) -> Reward:
    if how.get("function"):
        return OwnReward(folder / SOURCE, how["function"], (folder / NAME).read_text("utf-8"))
    if (folder / PROGRAM).is_file():
        return Vader(folder)
    return load_reward(str(folder), how.get("positive_label", ""))
