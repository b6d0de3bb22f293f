"""Algorithm 1's inputs: one frozen, validated description of an experiment, and of its front."""

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from warp_core.store.errors import ConfigError
from warp_core.store.parameters import (
    Eta,
    Integer,
    LearningRate,
    Name,
    Names,
    Number,
    Parameters,
    RunParameters,
    Seed,
    Text,
    load_params,
)
from warp_core.world.setting import World

__all__ = ["ConfigError", "FrontConfig", "Training", "WarpConfig", "load_params"]


class Training(Parameters):
    """All that the training of one run reads (lines 4 to 10), beside weights, prompts, r and seed."""

    steps: Annotated[Integer, Field(ge=1, le=1_000_000)] = 10
    """T: policy-gradient steps of a run."""
    beta: Annotated[Number, Field(ge=0)] = 0.1
    """β: weight of the KL to the anchor, reward per nat."""
    mu: Annotated[Number, Field(ge=0, le=1)] = 0.01
    """μ: update rate of the EMA anchor."""
    lr: LearningRate = 1e-6
    """Adam's learning rate."""
    warmup_steps: Annotated[Integer, Field(ge=0, le=1_000_000_000)] = 0
    """Steps over which lr grows linearly; 0: none. More than T is allowed."""
    batch_size: Annotated[Integer, Field(ge=1, le=100_000)] = 16
    """B: completions of a step."""
    completions_per_prompt: Annotated[Integer, Field(ge=1, le=100_000)] = 1
    """k: of a prompt, which then are each other's leave-one-out; B / k prompts a step."""
    micro_batch: Annotated[Integer, Field(ge=0, le=100_000)] = 0
    """Completions whose gradient is taken at a time: less memory, one more pass; 0: all of the batch."""
    gradient_checkpointing: bool = False
    """The gradient computes each layer's inside again: far less memory, a third more time."""
    max_grad_norm: Annotated[Number, Field(ge=0)] = 0.0
    """A longer gradient is shortened to this norm; 0: none is."""
    max_new_tokens: Annotated[Integer, Field(ge=1, le=100_000)] = 24
    """N: longest completion, tokens."""
    temperature: Annotated[Number, Field(gt=0, le=100)] = 1.0
    """π is softmax(logits / temperature), in sampling, log-probabilities and KL alike."""
    baseline: Literal["none", "loo"] = "none"
    """b of the policy gradient: none (the algorithm as printed) or leave-one-out: of the prompt's own
    completions (RLOO), or of the batch's where each prompt has one."""
    missing_eos_penalty: Annotated[Number, Field(ge=0)] = 0.0
    """Points that a completion without a stop token loses in training."""
    anchor: Literal["ema", "sft"] = "ema"
    """What the KL of r_β is measured to: θ_ema, or θ_sft throughout."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of training alone. What is trained stays float32; on a GPU what it only reads does not."""
    lora_rank: Annotated[Integer, Field(ge=0, le=100_000)] = 0
    """r: adapted matrices are W + lora_alpha / r · B·A; A and B alone are trained. 0: all weights are."""
    lora_alpha: Annotated[Number, Field(gt=0)] = 16.0
    """What r divides in the scale of an adapter."""
    lora_targets: Names = "all-linear"
    """Layers that are adapted, by the ends of their names, or a pattern for whole names."""
    max_kl: Annotated[Number, Field(ge=0)] = 0.0
    """KL to the anchor, nats, mean of a batch, beyond which a run ends with the weights before its
    last update; 0: no limit."""

    @field_validator("completions_per_prompt")
    @classmethod
    def _divides_the_batch(cls, value: int, info: ValidationInfo) -> int:
        if info.data.get("batch_size", value) % value:
            raise ValueError(f"a number that divides batch_size ({info.data['batch_size']})")
        return value

    @field_validator("baseline")
    @classmethod
    def _fits_the_batch(cls, value: str, info: ValidationInfo) -> str:
        if value == "loo" and info.data.get("batch_size") == 1:
            raise ValueError("'none', for 'loo' needs a batch_size of 2 or more")
        return value


class WarpConfig(RunParameters, World, Training):
    """An experiment: Algorithm 1's inputs, the world it runs in and where its results go."""

    name: Name = "experiment"
    """Name of the run folder."""
    title: Text = "Experiment"
    """Heading in the report."""

    iterations: Annotated[Integer, Field(ge=1, le=100)] = 2
    """I: WARP iterations."""
    runs: Annotated[Integer, Field(ge=1, le=64)] = 2
    """M: RL runs of an iteration."""
    merge: Literal["slerp", "lerp"] = "slerp"
    """How the runs of an iteration are merged (line 12)."""
    eta: Annotated[Number, Field(ge=0, le=1)] = 0.5
    """η: LITI update rate of the loop (line 13)."""
    seed: Seed = 0
    """Random seed of training: what is sampled, and the order of the prompts."""
    shared_run_seed: bool = False
    """True: every run of every iteration draws the same random numbers."""
    eval_seed: Seed = 0
    """Random seed of the evaluation; policies that are compared, of any training, have one."""
    eval_every: Annotated[Integer, Field(ge=0, le=1_000_000)] = 0
    """Steps from one evaluation of a run on its way to the next; 0: none. Each takes as long as that of
    the result, and a copy of the weights until it is done."""

    workers: Annotated[Integer, Field(ge=0, le=64)] = 0
    """Runs side by side, each with its share of the cores; 0: as many as differ and have a core."""
    gpus: Annotated[Integer, Field(ge=1, le=64)] = 1
    """GPUs of each run, which share the policy's layers; where there are none, 1 alone is taken."""
    engine: Literal["local", "ray"] = "local"
    """Where: processes of this machine, or tasks of a Ray cluster; results are the same."""
    checkpoint_every: Annotated[Integer, Field(ge=0, le=1_000_000)] = 25
    """Steps from one checkpoint of a run to the next; 0: only when it is interrupted."""
    tracker: Literal["", "tensorboard", "wandb", "mlflow", "trackio"] = ""
    """Where runs can be watched too; what it keeps lies in runs/tracking."""
    keep_weights: Literal["all", "result"] = "all"
    """`result`: only the last θ_slerp and the WARP policy stay; the front has no runs beside it then."""

    @property
    def training(self) -> Training:
        """What a run reads of this; nothing else can decide its bits."""
        return Training(**{key: getattr(self, key) for key in Training.model_fields})

    @property
    def inputs(self) -> tuple[World, int, str | list[str] | None]:
        """What `warp_core.world.inputs.Inputs` is given."""
        world = World(**{key: getattr(self, key) for key in World.model_fields})
        return world, self.max_new_tokens, self.lora_targets if self.lora_rank else None


class FrontConfig(Parameters):
    """The front of a finished experiment."""

    run_dir: Text = "runs/experiment_4_control"
    """The experiment's run folder."""
    etas: Annotated[list[Eta], Field(min_length=1)] = [0.0, 0.1, 0.3, 0.5, 0.8, 1.0]  # noqa: RUF012 (pydantic copies it)
    """η of each point, the paper's grid."""
