"""Parameters: every mistake at once and by name."""

import math
import re

import pytest
from pydantic import ValidationError

from warp_core.config import ConfigError, FrontConfig, RewardConfig, WarpConfig, load_params

BAD = {
    "name": ["", "a/b", "../up", ".hidden", "a b", "x" * 101, 7, None],
    "title": ["", "  ", None],
    "policy": ["", " ", "a\0b", None, 3],
    "reward_model": [""],
    "prompts": [""],
    "positive_label": [1, None],
    "iterations": [0, -1, 1.5, "two", True, None, 1001],
    "runs": [0, 65, False],
    "steps": [0, "1.5"],
    "beta": [-0.1, math.nan, math.inf, True, "much"],
    "mu": [-0.01, 1.01, math.nan],
    "eta": [-0.01, 1.01],
    "lr": [0, -1e-6, 11, math.inf, math.nan, "1e", True, None],
    "warmup_steps": [-1, 0.5],
    "batch_size": [0, "many"],
    "prompt_words": [0],
    "max_new_tokens": [0],
    "temperature": [0, -1, 101, math.inf],
    "baseline": ["mean", "LOO", None],
    "anchor": ["init", ""],
    "seed": [-1, 2**63, 0.5, True],
    "shared_run_seed": ["maybe", 2],
    "eval_prompts": [0, 1],
    "precision": ["fp16", "float32"],
    "workers": [-1, 65, 0.5, True],
    "max_kl": [-1, math.nan, math.inf, "much"],
    "checkpoint_every": [-1, 0.5, True],
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


def test_all_mistakes_are_reported_at_once_with_what_is_allowed():
    lines = refusal(lr=-1, mu=2, baseline="mean", runs=0, colour="red").splitlines()[1:]
    assert lines == [
        "  runs: 0 given; allowed: greater than or equal to 1",
        "  mu: 2 given; allowed: less than or equal to 1",
        "  lr: -1 given; allowed: greater than 0",
        "  baseline: 'mean' given; allowed: 'none' or 'loo'",
        f"  colour: unknown parameter; known: {', '.join(WarpConfig.model_fields)}",
    ]


def test_an_unknown_key_is_named_with_its_likely_meaning():
    assert "learning_rat: unknown parameter" in refusal(learning_rat=1)
    assert "itertions: unknown parameter; did you mean 'iterations'?" in refusal(itertions=3)


def test_leave_one_out_needs_two_completions():
    message = refusal(baseline="loo", batch_size=1, lr=-1)
    assert "baseline: 'loo' given; allowed: 'none', for 'loo' needs a batch_size of 2 or" in message
    assert "lr: -1 given" in message
    assert WarpConfig(baseline="loo", batch_size=2).batch_size == 2


@pytest.mark.parametrize(
    ("config_class", "key", "value"),
    [(RewardConfig, key, value) for key, values in {
        "reward_body": ["", None], "epochs": [0, 1.5, True], "lr": [0, "2e", math.nan],
        "batch_size": [1, 2.5], "train_sentences": [-1, "all"], "seed": [-1], "name": ["../up"],
        "run_dir": ["\0"],
    }.items() for value in values]
    + [(FrontConfig, "run_dir", "")]
    + [(FrontConfig, "etas", value) for value in ([], 0.5, "all", None)]
    + [(FrontConfig, "etas.1", [0.0, value]) for value in (-0.1, 1.1, math.nan, True, "x")],
)  # fmt: skip
def test_other_notebooks_refuse_bad_values_too(config_class, key, value):
    with pytest.raises(ConfigError, match=rf"^these [^\n]+\n  {key}: .* given; allowed: [^\n]+$"):
        config_class(**{key.split(".")[0]: value})


def test_a_notebook_takes_what_papermill_was_asked_to_set():
    own = {**{k: f.default for k, f in WarpConfig.model_fields.items()}, "os": math, "In": [""]}
    assert WarpConfig.of_notebook(own) == WarpConfig()
    cells = ["", "lr = 1e-6", "# Parameters\nlr = 1e-3\n", "import os\nother = 5"]
    assert WarpConfig.of_notebook(own | {"lr": 1e-3, "other": 5, "In": cells}).lr == 1e-3
    cells[2] = "# Parameters\nlr = 1e-3\nitertions = 5\n"
    with pytest.raises(ConfigError, match="itertions: unknown parameter; did you mean 'iter"):
        WarpConfig.of_notebook(own | {"itertions": 5, "In": cells})
    # Run by hand once more, after papermill's cell has been deleted or corrected.
    cells.append("# Parameters\nlr = 1e-2\n")
    assert WarpConfig.of_notebook(own | {"lr": 1e-2, "In": cells}).lr == 1e-2


def test_numbers_may_come_as_texts_as_yaml_reads_them():
    assert WarpConfig(lr="1e-6").lr == 1e-6
    assert WarpConfig(steps="7").steps == 7


@pytest.mark.parametrize("key", ["iterations", "runs", "steps", "batch_size", "eval_prompts"])
def test_whole_floats_are_whole_numbers(key):
    value = getattr(WarpConfig(**{key: 4.0}), key)
    assert (value, type(value)) == (4, int)


def test_endpoints_are_allowed():
    WarpConfig(beta=0, mu=0, eta=0, seed=0, warmup_steps=0)
    WarpConfig(mu=1, eta=1, seed=2**63 - 1, warmup_steps=10**6, steps=1, runs=1, iterations=1)


def test_a_config_error_is_a_value_error():
    assert issubclass(ConfigError, ValueError)


def test_a_config_cannot_be_changed():
    config = WarpConfig()
    with pytest.raises(ValidationError):
        config.lr = 1.0
    assert config.lr == 1e-6


def test_names_are_plain_and_may_be_cyrillic():
    assert WarpConfig(name="опыт_4.1-b").name == "опыт_4.1-b"


def test_run_folder_is_named_after_the_experiment_unless_given():
    assert WarpConfig(name="mine").folder.as_posix() == "runs/mine"
    assert WarpConfig(name="mine", run_dir="/somewhere/else").folder.as_posix() == "/somewhere/else"


def test_a_config_survives_its_own_dump():
    config = WarpConfig(lr="3e-5", name="a", shared_run_seed=True)
    assert WarpConfig(**config.model_dump()) == config


# Files


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_a_later_file_overrides_an_earlier_one(tmp_path):
    base = write(tmp_path / "base.yaml", "lr: 1e-6\nsteps: 10\n")
    own = write(tmp_path / "own.yaml", "lr: 1.0e-4\n")
    params = load_params(base, own)
    assert WarpConfig(**params) == WarpConfig(lr=1e-4, steps=10)
    assert WarpConfig(**load_params(base)).lr == 1e-6


@pytest.mark.parametrize(
    "text", ["- lr\n- steps\n", "just words", "", "1: 2\n", "lr: [1\n", "\tlr: 1"]
)
def test_a_file_that_holds_no_parameters_is_refused_by_name(tmp_path, text):
    path = write(tmp_path / "broken.yaml", text)
    with pytest.raises(ConfigError, match=r"broken\.yaml"):
        load_params(path)


def test_a_file_that_cannot_be_read_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.yaml"):
        load_params(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00lr")
    with pytest.raises(ConfigError, match=r"binary\.yaml"):
        load_params(tmp_path / "binary.yaml")


def test_yaml_makes_no_objects(tmp_path):
    path = write(tmp_path / "evil.yaml", "lr: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(ConfigError, match=r"evil\.yaml"):
        load_params(path)
