"""Flat parameters: every mistake at once and by name, from code, notebooks and files."""

from typing import Annotated

import pytest
from pydantic import Field, ValidationError

from warp_core.store.errors import ConfigError
from warp_core.store.parameters import (
    Integer,
    LearningRate,
    Name,
    Number,
    RunParameters,
    Seed,
    Text,
    load_params,
)


class Baking(RunParameters):
    name: Name = "cake"
    flour: Annotated[Integer, Field(ge=1)] = 500
    sugar: Annotated[Number, Field(ge=0)] = 0.1
    lr: LearningRate = 1e-6
    seed: Seed = 0
    recipe: Text = "of the house"


def refusal(**params):
    with pytest.raises(ConfigError) as caught:
        Baking(**params)
    return str(caught.value)


def test_all_mistakes_are_reported_at_once_in_order_with_what_is_allowed():
    message = refusal(recipe=" ", lr=-1, oven="hot", sugar=True, name="../up", flour=0)
    assert message.splitlines() == [
        "these parameters cannot be run:",
        "  name: '../up' given; allowed: letters, digits, '_', '-' and '.' only, at most 100 of them",
        "  flour: 0 given; allowed: greater than or equal to 1",
        "  sugar: True given; allowed: a number is needed, not true or false",
        "  lr: -1 given; allowed: greater than 0",
        "  recipe: ' ' given; allowed: a text that is not empty is needed",
        "  oven: unknown parameter; known: name, run_dir, flour, sugar, lr, seed, recipe",
    ]


def test_an_unknown_key_is_named_with_its_likely_meaning():
    assert "  flower: unknown parameter; did you mean 'flour'?" in refusal(flower=3).splitlines()
    assert "  zzz: unknown parameter; known: name, " in refusal(zzz=1)


def test_a_long_value_is_cut():
    assert len(refusal(flour="x" * 10_000)) < 400


@pytest.mark.parametrize("bad", ["a\0b", "\0"])
def test_nul_is_in_no_text(bad):
    for key in ("recipe", "run_dir", "name"):
        assert f"  {key}: " in refusal(**{key: bad})


def test_a_config_error_is_a_value_error():
    assert issubclass(ConfigError, ValueError)


def test_parameters_cannot_be_changed():
    baking = Baking()
    with pytest.raises(ValidationError):
        baking.lr = 1.0
    assert baking.lr == 1e-6


def test_numbers_may_come_as_texts_as_yaml_reads_them():
    assert Baking(lr="1e-6").lr == 1e-6
    assert Baking(flour="7").flour == 7


def test_names_are_plain_and_may_be_cyrillic():
    assert Baking(name="опыт_4.1-b").name == "опыт_4.1-b"


def test_the_run_folder_is_named_after_it_unless_given():
    assert Baking(name="mine").folder.as_posix() == "runs/mine"
    assert Baking(name="mine", run_dir="/somewhere/else").folder.as_posix() == "/somewhere/else"


# Notebooks


def test_a_notebook_takes_what_papermill_was_asked_to_set():
    own = {**{k: f.default for k, f in Baking.model_fields.items()}, "os": object(), "In": [""]}
    assert Baking.of_notebook(own) == Baking()
    cells = ["", "lr = 1e-6", "# Parameters\nlr = 1e-3\n", "import os\nother = 5"]
    assert Baking.of_notebook(own | {"lr": 1e-3, "other": 5, "In": cells}).lr == 1e-3
    cells[2] = "# Parameters\nlr = 1e-3\nflower = 5\n"
    with pytest.raises(ConfigError, match="flower: unknown parameter; did you mean 'flour'"):
        Baking.of_notebook(own | {"flower": 5, "In": cells})
    # Run by hand once more, after papermill's cell has been deleted or corrected.
    cells.append("# Parameters\nlr = 1e-2\n")
    assert Baking.of_notebook(own | {"lr": 1e-2, "In": cells}).lr == 1e-2


# Files


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_a_later_file_overrides_an_earlier_one(tmp_path):
    base = write(tmp_path / "base.yaml", "lr: 1e-6\nflour: 10\n")
    own = write(tmp_path / "own.yaml", "lr: 1.0e-4\n")
    assert Baking(**load_params(base, own)) == Baking(lr=1e-4, flour=10)
    assert Baking(**load_params(base)).lr == 1e-6
    assert load_params() == {}


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
