"""The reward model r(x, y): a sequence classifier that scores texts."""

import warnings
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from warp_core.store.errors import ConfigError
from warp_core.world.models import load_classifier, rendered_chat
from warp_core.world.prompts import Conversation, Prompt, as_text

SCORE_BATCH = 64
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


def load_reward(spec: str, positive_label: str = "") -> RewardModel:
    """The reward model of a folder or hub id; raises ConfigError where it can be no reward."""
    return RewardModel(*load_classifier(spec), positive_label)
