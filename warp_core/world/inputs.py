"""Algorithm 1's inputs, θ_sft, the reward model r and the prompts X: loaded and checked, then results
of the store, where every task finds them, on any machine."""

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from warp_core.store.errors import ConfigError
from warp_core.store.files import sealed_json, write_bytes, write_json, write_text
from warp_core.store.results import WEIGHTS, Task
from warp_core.world import models
from warp_core.world.assets import AssetError, asset_path
from warp_core.world.lora import adapted_sizes
from warp_core.world.own_reward import OwnReward, place_of
from warp_core.world.prompts import Prompt, as_text, load_prompts
from warp_core.world.reward import NAME, SOURCE, RewardModel, load_judge, load_scorer
from warp_core.world.scorer import Scorer, plain
from warp_core.world.setting import World
from warp_core.world.vader import ASSET, Vader

TEXTS = "prompts.json"
WRONG = 0.01  # nats; rounding is 1e-5


class Inputs:
    """What an experiment loads before it begins.

    Attributes:
        world: where it is from.
        sft and tokenizer, rewards, judges, prompts: θ_sft, what r is the sum of, the judge if there is
            one, X (for RL and for the evaluation).
        prompt_tokens: length of the longest prompt, tokens of the policy.
        adapted: sizes of the matrices that have adapters, (out, in) by name; none where all is trained.
        identity: policy_sha256, reward_sha256, prompts_sha256: what they are, wherever they lie.

    Args:
        max_new_tokens: which must fit behind each prompt.
        lora_targets: layers that get adapters; None: none do.

    Raises ConfigError where they cannot be used or do not fit; one line for each mistake.
    """

    def __init__(
        self, world: World, max_new_tokens: int, lora_targets: str | Sequence[str] | None = None
    ) -> None:
        self.world = world
        mistakes: list[str] = []
        texts: list[Prompt] = []
        read: list[Any] = []  # the prompts, and what both models see of them
        loaded: list[models.Loaded] = []
        with _noted(mistakes):
            loaded.append(models.load_policy(world.policy, gpus=0))
        with _noted(mistakes):
            tokenizer = loaded[0][1] if loaded else None
            prepared = partial(_prepared, tokenizer, world)
            where = world.prompts, world.prompt_words, world.eval_prompts
            columns = world.prompts_column, world.prompts_split
            self.prompts = load_prompts(*where, *columns, prepared)
            texts = [*self.prompts.train, *self.prompts.evaluation]
            read.append(self.prompts)
        self.rewards: list[RewardModel | OwnReward] = []
        for each in world.rewards:
            with _noted(mistakes):
                self.rewards.append(r := load_scorer(each, texts))
                if isinstance(r, RewardModel):
                    ids = _rewards_tokens(r, texts) if texts else []
                    read.append(_fitting(texts, ids, max_new_tokens, r.max_tokens, "reward model"))
        with _noted(mistakes):
            self.judges = [load_judge(each, texts) for each in world.judges]
            if {each.digest for each in self.judges} & {r.digest for r in self.rewards}:
                raise ConfigError("judge: the reward itself given; it must be another one")
        self.adapted: dict[str, tuple[int, int]] = {}
        for self.sft, self.tokenizer in loaded:
            with _noted(mistakes):
                self.adapted = adapted_sizes(self.sft, lora_targets) if lora_targets else {}
            with _noted(mistakes):
                limit = getattr(self.sft.config, "max_position_embeddings", None) or math.inf
                ids = models.prompt_ids(self.tokenizer, texts) if texts else []
                read.append(_fitting(texts, ids, max_new_tokens, limit, "policy"))
                if more := models.stop_tokens(self.sft, self.tokenizer)[1:]:
                    read.append(more)
                self.prompt_tokens = max(map(len, ids), default=0)
                error = models.cache_error(self.sft, ids[0]) if ids else 0.0
                if error > WRONG:
                    raise ConfigError(
                        f"policy: {world.policy!r} given; decoded a token at a time its log-probabilities "
                        f"are off by {error:.2g} nats: it keeps no key-value cache, and cannot be sampled "
                        "here"
                    )
        if mistakes:
            raise ConfigError("\n".join(mistakes))
        self.identity = {
            "policy_sha256": models.fingerprint(self.sft),
            "reward_sha256": self._of_rewards(world.rewards),
            "prompts_sha256": hashlib.sha256(json.dumps(read).encode()).hexdigest(),
        }

    def _of_rewards(self, how: Sequence[Scorer]) -> str:
        """Of one reward its own digest."""
        if len(self.rewards) == 1:
            return self.rewards[0].digest
        about = [[r.digest, plain(each)] for r, each in zip(self.rewards, how, strict=True)]
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()


def _rewards_tokens(r: RewardModel, texts: Sequence[Prompt]) -> list[list[int]]:
    try:
        return r.tokenizer(r.rendered(texts))["input_ids"]
    except Exception as error:  # a template is a program; its errors have no common class
        raise ConfigError(f"reward_model: its chat template fails: {error!r:.300}") from error


@contextmanager
def _noted(mistakes: list[str]) -> Iterator[None]:
    """Go on after what cannot be used, so that all of it is told at once."""
    try:
        yield
    except (AssetError, ConfigError) as error:
        mistakes.append(str(error))


def _prepared(
    tokenizer: PreTrainedTokenizerBase | None, world: World, prompts: list[Prompt]
) -> list[Prompt]:
    """Prompts as the policy gets them: whole texts as a user's message where it has a chat template;
    without those that are too long."""
    if tokenizer is None:  # it could not be loaded, which is told already
        return prompts
    if world.chat_template == "none":
        prompts = [as_text(prompt) for prompt in prompts]
    elif tokenizer.chat_template and not world.prompt_words:
        said = ([{"role": "user", "content": p}] if isinstance(p, str) else p for p in prompts)
        prompts = list(said)
    elif any(not isinstance(prompt, str) for prompt in prompts):
        raise ConfigError(
            "chat_template: 'auto' given; the prompts are conversations, and the policy's tokenizer has no "
            "chat template: 'none' takes their messages as one text"
        )
    if not prompts or (
        not world.max_prompt_tokens and all(isinstance(prompt, str) for prompt in prompts)
    ):
        return prompts
    try:
        lengths = [len(ids) for ids in models.prompt_ids(tokenizer, prompts)]
    except Exception as error:  # a template is a program; its errors have no common class
        raise ConfigError(f"chat_template: the policy's fails: {error!r:.300}") from error
    longest = world.max_prompt_tokens or max(lengths)
    fit = [prompt for prompt, length in zip(prompts, lengths, strict=True) if length <= longest]
    if not fit:
        raise ConfigError(
            f"max_prompt_tokens: {longest} given; all {len(prompts)} prompts are longer, the shortest has "
            f"{min(lengths)}"
        )
    if left_out := len(prompts) - len(fit):
        said = (
            f"{left_out} of {len(prompts)} prompts have more than {longest} tokens and are left out"
        )
        warnings.warn(said, stacklevel=2)
    return fit


def _fitting(
    texts: list[Prompt], tokens: list[list[int]], new: int, limit: float, whose: str
) -> list[list[int]]:
    """The prompts' tokens; raises ConfigError where a completion may not fit behind them."""
    if not texts:  # they could not be loaded, which is told already
        return []
    length, longest = max(zip(map(len, tokens), texts, strict=True), key=lambda pair: pair[0])
    if length + new > limit:
        has = f"the longest prompt has {length} tokens ({as_text(longest)[:60]!r} …)"
        reads = f"the {whose} reads only {limit}; lower max_new_tokens or prompt_words"
        raise ConfigError(f"max_new_tokens: {new} given; {has}, and {reads}")
    return tokens


class StoredInputs:
    """θ_sft, the rewards, the judge, and the prompts X for training and for the evaluation, as tasks.

    Attributes:
        scored: of each reward how it scores, `scorer.plain`; of_judge: of the judge.
        identity, prompt_tokens: as of `Inputs`.
        policy_shape: the policy's configuration, and how many weights it has.
        adapter: weights of an adapter of rank 1; 0 where all weights are trained.
    """

    def __init__(self, inputs: Inputs) -> None:
        world = inputs.world
        sft = inputs.sft, inputs.tokenizer
        self.theta_sft = _model("sft", models.load_policy, world.policy, *sft)
        self.rewards = [_scorer(*each) for each in zip(world.rewards, inputs.rewards, strict=True)]
        of_judges = zip(world.judges, inputs.judges, strict=True)
        self.judges = [_scorer(how, judge) for how, judge in of_judges]
        self.scored = [plain(each) for each in world.rewards]
        self.of_judge = [plain(each) for each in world.judges]
        self.identity, self.prompt_tokens = inputs.identity, inputs.prompt_tokens
        weights = sum(parameter.numel() for parameter in inputs.sft.parameters())
        self.policy_shape = inputs.sft.config, weights
        self.adapter = sum(out + inner for out, inner in inputs.adapted.values())
        given = [{"texts": texts} for texts in inputs.prompts]
        self.train, self.held_out = (Task("prompts", prompts_of, x, label="prompts") for x in given)


def model_of(load: Callable[..., models.Loaded], out: Path, spec: str, **digests: str) -> None:
    """A model from wherever it is, as float32 files of our own; ConfigError if it has changed."""
    model, tokenizer = load(spec, gpus=0)
    if models.digests(model, tokenizer) != digests:
        raise ConfigError(f"{spec!r} has changed since the experiment was begun")
    models.write_policy(model, tokenizer, out / WEIGHTS)


def source_of(out: Path, spec: str, digest: str) -> None:
    """The file of a reward of the user's own; ConfigError if it has changed."""
    path, function = place_of(spec)
    write_bytes(out / SOURCE, path.read_bytes())
    write_text(out / NAME, spec)
    if OwnReward(out / SOURCE, function, spec).digest != digest:
        raise ConfigError(f"{spec!r} has changed since the experiment was begun")


def vader_of(out: Path, digest: str) -> None:
    """The program and its lexicons, for machines that have no package index; ConfigError if they have
    changed."""
    for file in asset_path(ASSET).iterdir():
        write_bytes(out / file.name, file.read_bytes())
    if Vader(out).digest != digest:
        raise ConfigError(f"{ASSET!r} has changed since the experiment was begun")


def prompts_of(out: Path, texts: Sequence[Prompt]) -> None:
    """Prompts as they are."""
    write_json(out / TEXTS, texts)


def read_prompts(folder: Path) -> list[Prompt]:
    """What `prompts_of` wrote."""
    return sealed_json(folder / TEXTS, folder)


def _model(kind: str, load: Callable[..., models.Loaded], spec: str, *loaded: Any) -> Task:
    how = partial(model_of, load), models.digests(*loaded), {}, {"spec": spec}
    return Task(kind, *how, label=spec, size=models.total_bytes(loaded[0]))


def _scorer(scorer: Scorer, loaded: RewardModel | OwnReward | Vader) -> Task:
    if isinstance(loaded, RewardModel):
        of = loaded.model, loaded.tokenizer
        return _model("reward", models.load_classifier, scorer.model, *of)
    if isinstance(loaded, Vader):
        return Task("vader", vader_of, {"digest": loaded.digest}, label=scorer.model)
    how = source_of, {"digest": loaded.digest}, {}, {"spec": scorer.model}
    return Task("own_reward", *how, label=scorer.model)
