"""Algorithm 1's inputs as results of the store: every task finds them there, on any machine."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from warp_core.store.errors import ConfigError
from warp_core.store.files import sealed_json, write_json
from warp_core.store.results import WEIGHTS, Task
from warp_core.world import models
from warp_core.world.inputs import Inputs

TEXTS = "prompts.json"


class StoredInputs:
    """θ_sft, the reward model r, and the prompts X for training and for the evaluation, as tasks."""

    def __init__(self, inputs: Inputs, policy: str, reward_model: str) -> None:
        sft, r = (inputs.sft, inputs.tokenizer), (inputs.reward.model, inputs.reward.tokenizer)
        self.theta_sft = _model("sft", models.load_policy, policy, *sft)
        self.reward = _model("reward", models.load_classifier, reward_model, *r)
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
