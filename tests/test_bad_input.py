"""Malformed parameters, generated: each ends in one clear message, and nothing is created."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warp_core.config import FrontConfig, WarpConfig
from warp_core.store.errors import ConfigError
from warp_core.world.reward_training import RewardConfig

ROOT = Path(__file__).resolve().parent.parent
NUMBERS = {
    "max_grad_norm",
    "missing_eos_penalty",
    "beta",
    "mu",
    "eta",
    "lr",
    "temperature",
    "max_kl",
    "lora_alpha",
}
INTEGERS = {
    "lora_rank",
    "iterations",
    "runs",
    "steps",
    "warmup_steps",
    "batch_size",
    "completions_per_prompt",
    "micro_batch",
    "prompt_words",
    "max_prompt_tokens",
    "max_new_tokens",
    "seed",
    "eval_prompts",
    "eval_seed",
    "eval_every",
    "workers",
    "gpus",
    "checkpoint_every",
    "epochs",
    "train_sentences",
}
TEXTS = {"prompts_split", "title", "policy", "prompts", "reward_body"}
CHOICES = {"baseline", "anchor", "precision", "keep_weights", "merge", "chat_template", "engine"}

never_a_number = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([math.nan, math.inf, -math.inf, -1e-9, -1, -(10**30)]),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.text(max_size=20).filter(lambda text: not _is_number(text)),
)
never_an_integer = st.one_of(
    never_a_number,
    st.floats(0, 1e6).filter(lambda x: not x.is_integer()),
    st.just(2**70),
    st.just("1.5"),
    st.just("1e400"),
)
never_a_text = st.one_of(
    st.none(),
    st.integers(),
    st.floats(),
    st.lists(st.text(max_size=3), max_size=2),
    st.just(""),
    st.sampled_from([" ", "\t\n", "a\0b", "\0"]),
)
never_a_name = st.one_of(
    never_a_text,
    st.sampled_from(
        [
            "../up",
            "a/b",
            "/root",
            ".hidden",
            "..",
            ".",
            "a b",
            "a\nb",
            "-x",
            "a\\b",
            "x" * 101,
            "~",
            "CON:",
            "%2e%2e%2f",
            "\u202eabc",
        ]
    ),
)
never_a_choice = st.one_of(never_a_text, st.text(min_size=1, max_size=10).map(lambda s: s + "?"))
BAD = (
    dict.fromkeys(NUMBERS, never_a_number)
    | dict.fromkeys(INTEGERS, never_an_integer)
    | dict.fromkeys(TEXTS, never_a_text)
    | dict.fromkeys(CHOICES, never_a_choice)
    | {
        "name": never_a_name,
        "run_dir": st.one_of(st.none(), st.integers(), st.just("a\0b")),
        "shared_run_seed": st.sampled_from([None, "perhaps", 2, -1, [], math.nan]),
        "reward_model": st.sampled_from(
            [None, 1, "", [], [1], [""], {}, [{"weight": "x"}], "a\0b"]
        ),
        "judge": st.sampled_from([None, 1, [], {"model": 1}, ["vader"]]),
        "gradient_checkpointing": st.sampled_from([None, "perhaps", 2, -1, []]),
        "lora_targets": st.sampled_from([None, [], "", " ", [1], {}, 3, ["a", ""]]),
        "tracker": st.sampled_from([None, True, "all", "comet_ml", " "]),
        "prompts_column": st.sampled_from([None, 1, [], {}]),
        "positive_label": st.sampled_from([None, 1, [], {}]),
        "etas": st.sampled_from(
            [None, [], "0", [4], [-1], [math.nan], [None], ["a"], [0, [1]], 0.5]
        ),
    }
)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@st.composite
def malformed(draw, config_class):
    """Parameters, and the keys of those that cannot be: one to four bad values, or unknown keys."""
    known = list(config_class.model_fields)
    keys = draw(st.lists(st.sampled_from(known), min_size=1, max_size=4, unique=True))
    params = {key: draw(BAD[key]) for key in keys}
    for unknown in draw(st.lists(st.text(min_size=1, max_size=12), max_size=2, unique=True)):
        if unknown not in known:
            params[unknown] = draw(st.integers())
    return params


@pytest.mark.parametrize("config_class", [WarpConfig, RewardConfig, FrontConfig])
def test_every_malformed_key_is_named_in_one_message(config_class, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    @given(malformed(config_class))
    @settings(max_examples=300, deadline=None)
    def check(params):
        with pytest.raises(ConfigError) as caught:
            config_class(**params)
        message = str(caught.value)
        assert message.startswith("these parameters cannot be run:\n")
        for key in params:
            assert f"  {key}" in message, (key, message)
        assert not list(tmp_path.iterdir())

    check()


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("reward_body", ["", None]),
        ("epochs", [0, 1.5, True]),
        ("lr", [0, "2e", math.nan]),
        ("batch_size", [1, 2.5]),
        ("train_sentences", [-1, "all", 31]),  # less than a batch
        ("seed", [-1]),
        ("name", ["../up"]),
        ("run_dir", ["\0"]),
    ],
)
def test_the_training_of_a_reward_model_says_what_is_allowed(key, values):
    for value in values:
        with pytest.raises(ConfigError, match=rf"^these [^\n]+\n  {key}: .* given; allowed: .+$"):
            RewardConfig(**{key: value})


def test_a_bad_parameter_ends_a_notebook_with_one_message_and_no_traceback(tmp_path):
    """As a person runs it: papermill from the command line."""
    out = tmp_path / "out.ipynb"
    command = [
        sys.executable,
        "-m",
        "papermill",
        "notebooks/experiment.ipynb",
        str(out),
        "-k",
        "python3",
        "--no-progress-bar",
    ]
    for key, value in (("lr", "-1"), ("name", "../up"), ("stpes", "3")):
        command += ["-p", key, value]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ)
    assert result.returncode != 0
    said = result.stderr
    for line in (
        "lr: -1 given",
        "name: '../up' given",
        "stpes: unknown parameter; did you mean 'steps'",
    ):
        assert said.count(line) >= 1
    assert "ConfigError: these parameters cannot be run" in said
    assert "File /" not in said.split("ConfigError: these")[-1]
    assert "pydantic" not in said
    assert not (ROOT / "runs" / "experiment").exists()
    assert not (ROOT.parent / "up").exists()
