"""Flat parameters: the same keys in `params/*.yaml`, in a notebook's `parameters` cell and in code.

Every mistake is found at once and named: the key, what was given, what is allowed.
"""

import ast
import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from warp_core.store.errors import ConfigError


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


def _names(value: Any) -> Any:
    several = value if isinstance(value, list) else [value]
    if not several or any(not isinstance(each, str) or not each.strip() for each in several):
        raise ValueError("a text, or a list of texts, that are not empty")
    return value


# YAML 1.1 reads `1e-6` as a text, so numbers may come as texts; booleans may not.
Number = Annotated[float, BeforeValidator(_not_bool), Field(allow_inf_nan=False)]
Integer = Annotated[int, BeforeValidator(_not_bool)]
Text = Annotated[str, AfterValidator(_not_blank)]
Names = Annotated[str | list[str], BeforeValidator(_names)]
Folder = Annotated[str, AfterValidator(_no_nul)]
Name = Annotated[str, AfterValidator(_plain_name)]
Eta = Annotated[Number, Field(ge=0, le=3)]  # beyond 1 it goes on where the interpolation ends
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
        """From a notebook's globals: our keys that are there, and all that papermill was asked to set.

        papermill lets an unknown name pass; it writes what it sets into a cell of its own, which
        begins `# Parameters`, and `In` has the sources of the cells run so far.
        """
        injected = [cell for cell in namespace["In"] if cell.startswith("# Parameters\n")]
        nodes = ast.walk(ast.parse("".join(injected[-1:])))
        names = [n for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
        keys = [*(cls.model_fields.keys() & namespace.keys()), *(name.id for name in names)]
        return cls(**{key: namespace[key] for key in keys})


class RunParameters(Parameters):
    """Parameters of something that has a run folder."""

    name: Name = "run"
    """Name of the run folder."""
    run_dir: Folder = ""
    """Run folder; empty: runs/NAME."""

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.run_dir) if self.run_dir else Path("runs") / self.name


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
    guess = f"did you mean {close[0]!r}?" if close else "known: " + ", ".join(known)
    return f"unknown parameter; {guess}"


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
