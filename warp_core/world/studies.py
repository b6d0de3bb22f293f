"""What a study asks: arms, the policies of them that are evaluated, and what is compared, in params/.

The hypothesis and the direction of a comparison stand there before anything is computed.
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from warp_core.store.parameters import Eta, Integer, Name, Number, Parameters, Seed, Text

FOLDER = Path("reports/studies")
OWN = {"name", "title", "seed", "run_dir"}  # parameters that a study sets for each training
Count = Annotated[Integer, Field(ge=1, le=1_000_000)]


class Point(Parameters):
    """One policy of an arm; a key that it does not need is None."""

    arm: str = ""
    """Of the study; empty: θ_sft."""
    what: Literal["sft", "run", "ema", "average", "slerp", "lerp", "warp"] = "sft"
    """run: θ^m; ema: its θ_ema; average: the mean of its weights at the steps t; slerp, lerp: of the
    first m runs; warp: θ_init behind the last LITI."""
    iteration: Count | None = None
    m: Count | None = None
    """Which run; or how many are merged."""
    t: Count | list[Count] | None = None
    lam: Annotated[Number, Field(ge=0, le=1)] | None = None
    eta: Eta | None = None
    """(1 − η)·θ_sft + η·policy."""


class Points(Parameters):
    """Policies of an arm: every combination of what is listed. Not given: its last iteration, of merges
    all runs, of runs the first at its step T, and η = 1."""

    arm: Text = "?"
    what: Literal["run", "ema", "average", "slerp", "lerp", "warp"] = "warp"
    seeds: Annotated[Integer, Field(ge=0)] = 0
    """The first so many of the study's; 0: all."""
    iteration: list[Count] = []  # noqa: RUF012 (pydantic copies it)
    m: list[Count] = []  # noqa: RUF012
    t: list[Count] = []  # noqa: RUF012
    lam: list[Number] = []  # noqa: RUF012
    eta: list[Eta] = [1.0]  # noqa: RUF012

    def beyond(self, iterations: int, runs: int, steps: int, max_kl: float) -> str:
        """What an arm of so many iterations, runs and steps does not have; empty if it has all."""
        merged = self.what in ("slerp", "lerp")
        asked = {
            "iteration": (self.iteration, iterations),
            "m": (self.m, runs),
            "t": (self.t, steps),
        }
        for key, (values, most) in asked.items():
            if max(values, default=1) > most:
                return f"{key}: {max(values)} given; it has {most}"
        if self.what == "ema" and max_kl:
            return f"max_kl: {max_kl:g}; an EMA has followed the update that it takes back, so 0 is needed"
        if self.lam and not (merged and (self.m or [runs]) == [2]):
            return "lam: given, and weighs the second of two: m: [2] is needed"
        return (
            "t: given, and a merge has none" if self.t and (merged or self.what == "warp") else ""
        )

    def points(self, iterations: int, runs: int, steps: int) -> Iterator[Point]:
        """Each of them."""
        merged, at = self.what in ("slerp", "lerp"), self.iteration or [iterations]
        of, t_of_runs = self.m or [runs if merged else 1], self.t or [steps]
        t: Sequence[Any] = [None] if merged else t_of_runs
        if self.what == "average":
            t = [t_of_runs]
        if self.what == "warp":
            of, t, at = [None], [None], [iterations]
        for i, m, step, lam, eta in itertools.product(at, of, t, self.lam or [None], self.eta):
            keys = {"iteration": i, "m": m, "t": step, "lam": lam, "eta": eta}
            yield Point(arm=self.arm, what=self.what, **keys)


class Comparison(Parameters):
    """Two policies, or two curves of them, of trainings with one seed."""

    name: Name = "comparison"
    claim: Text = "?"
    """A sentence for people: what `ours` is said to be."""
    hypothesis: Text = "?"
    """What is expected here, and why, written before it was computed."""
    source: Text = "?"
    """Where the claim is from, and its figure there."""
    primary: bool = False
    """Whether Holm's correction counts it."""
    ours: dict[str, Any] = Field(default_factory=dict)
    theirs: dict[str, Any] = Field(default_factory=dict)
    """Keys of the rows that are compared."""
    measure: Literal["reward", "judge", "kl", "length", "repetition", "distinct_pairs"] = "reward"
    at: Literal["policy", "equal_kl"] = "policy"
    """equal_kl: of the curves through the policies, the mean difference over the √KL that both have."""
    share: Annotated[Number, Field(gt=0)] = 1.0
    """Of `theirs`, that `ours` is compared with."""
    expected: Literal["more", "less", "not_less", "not_more"] = "more"
    """What the claim says of ours − share · theirs; not_less and not_more: but for a small difference."""


class Study(Parameters):
    """What is computed, and what it is to show."""

    name: Name = "study"
    title: Text = "Study"
    claim: Text = "?"
    """What is asked, in a sentence or two for people."""
    seeds: list[Seed] = [1, 2, 3]  # noqa: RUF012
    """Of the trainings."""
    base: list[str] = ["params/base.yaml", "params/studies.yaml"]  # noqa: RUF012
    """Files of parameters that all arms have."""
    parameters: dict[str, Any] = Field(default_factory=dict)
    """And further ones."""
    arms: dict[str, dict[str, Any]] = Field(
        default_factory=dict, min_length=1, validate_default=True
    )
    """Name of an arm -> the parameters that make it."""
    policies: list[dict[str, Any]] = Field(default_factory=list)
    """`Points` that are evaluated."""
    comparisons: list[dict[str, Any]] = Field(default_factory=list)
    """`Comparison`s that are made of them."""
    curves: list[dict[str, Any]] = Field(default_factory=list)
    """Of its figure: a label and the keys of the rows through which a curve goes."""

    @field_validator("seeds")
    @classmethod
    def _several(cls, value: list[int]) -> list[int]:
        if len(set(value)) != len(value) or len(value) < 2:
            raise ValueError(
                "two or more different seeds; one training has no error between trainings"
            )
        return value

    @field_validator("parameters", "arms")
    @classmethod
    def _leave_the_names(cls, value: dict[str, Any]) -> dict[str, Any]:
        for params in (value, *(each for each in value.values() if isinstance(each, dict))):
            if own := sorted(OWN & params.keys()):
                raise ValueError(f"no {', '.join(own)}: a training's name and seed are the study's")
        return value

    @field_validator("policies")
    @classmethod
    def _of_arms(cls, value: list[dict[str, Any]], info: ValidationInfo) -> list[dict[str, Any]]:
        for arm in (Points(**each).arm for each in value):
            if arm not in info.data.get("arms", {}):
                raise ValueError(f"policies of the arms; there is no arm {arm!r}")
        return value

    @property
    def path(self) -> Path:
        """Its rows."""
        return FOLDER / f"{self.name}.jsonl"


class StudyChoice(Parameters):
    """Which study a notebook shows."""

    study: Name = "iterations"
    """Of params/study_NAME.yaml."""
