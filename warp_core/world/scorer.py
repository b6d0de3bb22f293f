"""What scores completions, as params name it: `reward_model` and `judge`."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator

from warp_core.store.errors import ConfigError
from warp_core.store.parameters import Number, Parameters, Text

PYTHON, VADER = "python:", "vader"


class Scorer(Parameters):
    """A reward, or one of several; or a judge."""

    model: Text = "?"
    """A folder or hub id of a sequence classifier with one or two labels; `python:FILE:FUNCTION`, your
    own code; a judge may also be `vader`."""
    positive_label: str = ""
    """Which label of two is the good one; empty for a model with one."""
    weight: Number = 1.0
    """Of several rewards, which are added."""


def _one(value: Any) -> str | Scorer:
    if isinstance(value, str | Scorer):
        return value
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ValueError("a text, or keys and values: model, positive_label, weight")
    try:
        return Scorer(**value)
    except ConfigError as error:
        raise ValueError("; ".join(line.strip() for line in str(error).splitlines()[1:])) from None


def _several(value: Any) -> str | list[Scorer]:
    if isinstance(value, str):
        if value.strip() and "\0" not in value:
            return value
    elif isinstance(value, list) and value:
        ones = ({"model": each} if isinstance(each, str) else each for each in value)
        return [each for each in map(_one, ones) if isinstance(each, Scorer)]
    raise ValueError("a text, or a list of rewards: model, positive_label, weight of each")


Judge = Annotated[str | Scorer, BeforeValidator(_one)]
Rewards = Annotated[str | list[Scorer], BeforeValidator(_several)]


def scorers(given: str | Scorer | Sequence[Scorer], positive_label: str = "") -> list[Scorer]:
    """Those that a parameter names; a text is one of weight 1, with its label beside it."""
    if isinstance(given, str):
        return [Scorer(model=given, positive_label=positive_label)] if given else []
    return [given] if isinstance(given, Scorer) else list(given)


def plain(each: Scorer) -> dict[str, Any]:
    """How it scores, wherever it lies: what decides a result, beside the content of its files."""
    function = each.model.rpartition(":")[2] if each.model.startswith(PYTHON) else ""
    how = {"positive_label": each.positive_label, "weight": each.weight, "function": function}
    return {key: value for key, value in how.items() if value not in ("", 1.0)}
