"""One frozen, validated description of an experiment; and of what the other notebooks run.

The same flat keys stand in `params/*.yaml`, in the notebooks' `parameters` cell and here.
Every mistake is found at once and named: the key, what was given, what is allowed.
"""

import ast
import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from warp_core.errors import ConfigError


def _not_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number is needed, not true or false")
    return value


def _plain_name(value: str) -> str:
    if not re.fullmatch(r"\w[\w.\-]*", value) or len(value) > 100:
        raise ValueError("letters, digits, '_', '-' and '.' only, at most 100 of them")
    return value


def _not_blank(value: str) -> str:
    if not value.strip():
        raise ValueError("a text that is not empty is needed")
    return _no_nul(value)


def _no_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("a text without the character NUL is needed")
    return value


# YAML 1.1 reads `1e-6` as a text, so numbers may come as texts; booleans may not.
Number = Annotated[float, BeforeValidator(_not_bool), Field(allow_inf_nan=False)]
Integer = Annotated[int, BeforeValidator(_not_bool)]
Text = Annotated[str, AfterValidator(_not_blank)]
Folder = Annotated[str, AfterValidator(_no_nul)]
Name = Annotated[str, AfterValidator(_plain_name)]
LearningRate = Annotated[Number, Field(gt=0, le=10)]
Seed = Annotated[Integer, Field(ge=0, lt=2**63)]


class Parameters(BaseModel):
    """Flat parameters; raises ConfigError, which lists every unknown key and every bad value."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, **params: Any) -> None:
        try:
            super().__init__(**params)
        except ValidationError as error:
            raise ConfigError(_explain(error, list(type(self).model_fields))) from None

    @classmethod
    def of_notebook(cls, namespace: Mapping[str, Any]) -> Self:
        """From a notebook's globals: our keys, and all that papermill was asked to set besides.

        papermill lets an unknown name pass; it writes what it sets into a cell of its own, which
        begins `# Parameters`, and `In` has the sources of the cells run so far.
        """
        injected = [cell for cell in namespace["In"] if cell.startswith("# Parameters\n")]
        assigned = [node.id for node in ast.walk(ast.parse("".join(injected[-1:])))
                    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]  # fmt: skip
        return cls(**{key: namespace[key] for key in [*cls.model_fields, *assigned]})


class WarpConfig(Parameters):
    """An experiment: Algorithm 1's inputs, the world it runs in and where its results go."""

    name: Name = "experiment"
    """Name of the run folder."""
    title: Text = "Эксперимент"
    """Heading in the report."""
    policy: Text = "asset:smollm2-135m-instruct"
    """θ_sft: `asset:NAME`, a GGUF file, a local folder or a hub id."""
    reward_model: Text = "runs/reward_model/model"
    """r: a local folder or a hub id of a sequence classifier with one or two labels."""
    positive_label: str = ""
    """Which label of a two-label reward model is the good one; empty for a one-label model."""
    prompts: Text = "asset:movie-reviews"
    """X: `asset:NAME`, a text file (one text a line), a local data set or a hub id."""

    iterations: Annotated[Integer, Field(ge=1, le=1000)] = 2
    """I: WARP iterations."""
    runs: Annotated[Integer, Field(ge=1, le=64)] = 2
    """M: RL runs of an iteration, merged by SLERP."""
    steps: Annotated[Integer, Field(ge=1, le=1_000_000)] = 10
    """T: policy-gradient steps of a run."""
    beta: Annotated[Number, Field(ge=0)] = 0.1
    """β: weight of the KL to the anchor, reward per nat."""
    mu: Annotated[Number, Field(ge=0, le=1)] = 0.01
    """μ: update rate of the EMA anchor."""
    eta: Annotated[Number, Field(ge=0, le=1)] = 0.5
    """η: LITI update rate of the loop (line 13)."""
    lr: LearningRate = 1e-6
    """Adam's learning rate."""
    warmup_steps: Annotated[Integer, Field(ge=0, le=1_000_000_000)] = 0
    """Steps over which lr grows linearly; 0: none. More than T is allowed."""
    batch_size: Annotated[Integer, Field(ge=1, le=100_000)] = 16
    """B: prompts of a step, one completion each."""
    prompt_words: Annotated[Integer, Field(ge=1, le=10_000)] = 4
    """A prompt is this many first words of a text."""
    max_new_tokens: Annotated[Integer, Field(ge=1, le=100_000)] = 24
    """N: longest completion, tokens."""
    temperature: Annotated[Number, Field(gt=0, le=100)] = 1.0
    """π is softmax(logits / temperature), in sampling, log-probabilities and KL alike."""
    baseline: Literal["none", "loo"] = "none"
    """b of the policy gradient: none (the algorithm as printed) or leave-one-out."""
    anchor: Literal["ema", "sft"] = "ema"
    """What the KL of r_β is measured to: θ_ema, or θ_sft throughout."""
    seed: Seed = 0
    """Random seed of sampling, prompt order and evaluation."""
    shared_run_seed: bool = False
    """True: every run of every iteration draws the same random numbers."""
    eval_prompts: Annotated[Integer, Field(ge=2, le=1_000_000)] = 128
    """Held-out prompts of the evaluation, one completion each."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of training alone; weights and evaluation stay float32."""
    workers: Annotated[Integer, Field(ge=0, le=64)] = 0
    """Runs trained side by side, each in a process of its own; 0: as many as there are cores."""
    max_kl: Annotated[Number, Field(ge=0)] = 0.0
    """KL to the anchor, nats per completion and mean of a batch, at which a run stops and the weights
    before its last update are taken; 0: no limit."""
    checkpoint_every: Annotated[Integer, Field(ge=0, le=1_000_000)] = 25
    """Steps from one checkpoint of a run to the next; 0: only when it is interrupted."""
    run_dir: Folder = ""
    """Run folder; empty: runs/NAME."""

    @field_validator("baseline")
    @classmethod
    def _fits_the_batch(cls, value: str, info: ValidationInfo) -> str:
        if value == "loo" and info.data.get("batch_size") == 1:
            raise ValueError("'none', for 'loo' needs a batch_size of 2 or more")
        return value

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.run_dir) if self.run_dir else Path("runs") / self.name


class RewardConfig(Parameters):
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
    run_dir: Folder = ""
    """Run folder; empty: runs/NAME."""

    @field_validator("train_sentences")
    @classmethod
    def _fills_a_batch(cls, value: int, info: ValidationInfo) -> int:
        if 0 < value < info.data.get("batch_size", 0):
            raise ValueError(f"0 (all), or batch_size ({info.data['batch_size']}) or more")
        return value

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.run_dir) if self.run_dir else Path("runs") / self.name


class FrontConfig(Parameters):
    """The front of a finished experiment."""

    run_dir: Text = "runs/experiment_4"
    """The experiment's run folder."""
    etas: Annotated[list[Annotated[Number, Field(ge=0, le=1)]], Field(min_length=1)] = [
        0.0, 0.1, 0.3, 0.5, 0.8, 1.0
    ]  # fmt: skip
    """η of each point, the paper's grid."""


def _explain(error: ValidationError, known: list[str]) -> str:
    lines = []
    for e in error.errors():
        key = ".".join(str(part) for part in e["loc"])
        if e["type"] == "extra_forbidden":
            lines.append(f"{key}: {unknown_parameter(key, known)}")
            continue
        allowed = e["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        lines.append(f"{key}: {e['input']!r:.200} given; allowed: {allowed}")
    return "\n".join(["these parameters cannot be run:", *(f"  {line}" for line in lines)])


def unknown_parameter(key: str, known: Sequence[str]) -> str:
    """What to say of a key that is not known: the likely meaning, else all known keys."""
    close = difflib.get_close_matches(key, known, n=1)
    return f"unknown parameter; {f'did you mean {close[0]!r}?' if close else 'known: ' + ', '.join(known)}"


def load_params(*paths: Path | str) -> dict[str, Any]:
    """Flat parameters from YAML files; a later file overrides an earlier one, as papermill's -f.

    Raises ConfigError where a file cannot be read or is no mapping of keys to values.
    """
    params: dict[str, Any] = {}
    for path in paths:
        try:
            loaded = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"{path}: cannot be read as YAML: {error}") from None
        if not isinstance(loaded, dict) or not all(isinstance(key, str) for key in loaded):
            raise ConfigError(f"{path}: needs lines of the form `key: value`")
        params |= loaded
    return params
