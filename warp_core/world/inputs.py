"""Algorithm 1's inputs, θ_sft, the reward model r and the prompts X: loaded and checked, then results
of the store, where every task finds them, on any machine."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from warp_core.store.errors import ConfigError
from warp_core.store.files import sealed_json, write_json
from warp_core.store.results import WEIGHTS, Task
from warp_core.world import models
from warp_core.world.assets import AssetError
from warp_core.world.prompts import load_prompts
from warp_core.world.reward import load_reward

TEXTS = "prompts.json"


class Inputs:
    """What an experiment loads before it begins.

    Attributes:
        sft and tokenizer, reward, prompts: θ_sft, r, X (for RL and for the evaluation).
        prompt_tokens: length of the longest prompt, tokens of the policy.
        identity: policy_sha256, reward_sha256, prompts_sha256: what they are, wherever they lie.

    Raises ConfigError where they cannot be used or do not fit; one line for each mistake.
    """

    def __init__(
        self,
        policy: str,
        reward_model: str,
        positive_label: str,
        prompts: str,
        prompt_words: int,
        eval_prompts: int,
        max_new_tokens: int,
    ) -> None:
        mistakes: list[str] = []
        texts: list[str] = []
        read: list[Any] = []  # the prompts, and what both models see of them
        with _noted(mistakes):
            self.prompts = load_prompts(prompts, prompt_words, eval_prompts)
            texts = [*self.prompts.train, *self.prompts.evaluation]
            read.append(self.prompts)
        with _noted(mistakes):
            self.reward = r = load_reward(reward_model, positive_label)
            read.append(_fitting(texts, r.tokenizer, max_new_tokens, r.max_tokens, "reward model"))
        with _noted(mistakes):
            self.sft, self.tokenizer = models.load_policy(policy)
            limit = getattr(self.sft.config, "max_position_embeddings", None) or math.inf
            read.append(_fitting(texts, self.tokenizer, max_new_tokens, limit, "policy"))
            self.prompt_tokens = max(map(len, read[-1]), default=0)
        if mistakes:
            raise ConfigError("\n".join(mistakes))
        self.identity = {
            "policy_sha256": models.fingerprint(self.sft),
            "reward_sha256": models.fingerprint(self.reward.model),
            "prompts_sha256": hashlib.sha256(json.dumps(read).encode()).hexdigest(),
        }


@contextmanager
def _noted(mistakes: list[str]) -> Iterator[None]:
    """Go on after what cannot be used, so that all of it is told at once."""
    try:
        yield
    except (AssetError, ConfigError) as error:
        mistakes.append(str(error))


def _fitting(texts: list[str], tokenizer: Any, new: int, limit: float, whose: str) -> list[Any]:
    """The prompts' tokens; raises ConfigError where a completion may not fit behind them."""
    if not texts:  # they could not be loaded, which is told already
        return []
    tokens = tokenizer(texts)["input_ids"]
    length, longest = max(zip(map(len, tokens), texts, strict=True), key=lambda pair: pair[0])
    if length + new > limit:
        has = f"the longest prompt has {length} tokens ({longest[:60]!r} …)"
        reads = f"the {whose} reads only {limit}; lower max_new_tokens or prompt_words"
        raise ConfigError(f"max_new_tokens: {new} given; {has}, and {reads}")
    return tokens


class StoredInputs:
    """θ_sft, the reward model r, and the prompts X for training and for the evaluation, as tasks.

    Attributes:
        identity, prompt_tokens: as of `Inputs`.
        policy_shape: the policy's configuration, and how many weights it has.
    """

    def __init__(self, inputs: Inputs, policy: str, reward_model: str) -> None:
        sft, r = (inputs.sft, inputs.tokenizer), (inputs.reward.model, inputs.reward.tokenizer)
        self.theta_sft = _model("sft", models.load_policy, policy, *sft)
        self.reward = _model("reward", models.load_classifier, reward_model, *r)
        self.identity, self.prompt_tokens = inputs.identity, inputs.prompt_tokens
        weights = sum(parameter.numel() for parameter in inputs.sft.parameters())
        self.policy_shape = inputs.sft.config, weights
        given = [{"texts": texts} for texts in inputs.prompts]
        self.train, self.held_out = (Task("prompts", prompts_of, x, label="prompts") for x in given)


def model_of(load: Callable[[str], models.Loaded], out: Path, spec: str, **digests: str) -> None:
    """A model from wherever it is, as float32 files of our own; ConfigError if it has changed."""
    model, tokenizer = load(spec)
    if models.digests(model, tokenizer) != digests:
        raise ConfigError(f"{spec!r} has changed since the experiment was begun")
    models.write_policy(model, tokenizer, out / WEIGHTS)


def prompts_of(out: Path, texts: Sequence[str]) -> None:
    """Prompts as they are."""
    write_json(out / TEXTS, texts)


def read_prompts(folder: Path) -> list[str]:
    """What `prompts_of` wrote."""
    return sealed_json(folder / TEXTS, folder)


def _model(kind: str, load: Callable[[str], models.Loaded], spec: str, *loaded: Any) -> Task:
    how = partial(model_of, load), models.digests(*loaded), {}, {"spec": spec}
    return Task(kind, *how, label=spec, size=models.total_bytes(loaded[0]))
