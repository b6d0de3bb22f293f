"""Studies: arms × training seeds, every policy evaluated, and what holds between trainings.

A study, params/study_*.yaml, says before anything runs which policies it evaluates, what it compares
and how that is expected to come out. Its rows, reports/studies/NAME.jsonl, are kept in the
repository: what has a row is not computed again, on any machine.

    python -m warp_core.study params/study_*.yaml [--dry-run] [--smoke]
"""

import argparse
import hashlib
import itertools
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from filelock import FileLock, Timeout
from pydantic import Field, ValidationInfo, field_validator

from warp_core.config import ConfigError, Eta, WarpConfig, load_params
from warp_core.engine.local import LocalEngine, Schedule
from warp_core.engine.progress import Progress, bar, seconds_a_step
from warp_core.evaluate import Completions
from warp_core.merge import angles_of, geometry_of_files
from warp_core.store.errors import BusyError, MessageOnly
from warp_core.store.files import read_jsonl, sealed_json, write_json, write_jsonl
from warp_core.store.parameters import Integer, Name, Number, Parameters, Seed, Text
from warp_core.store.results import Store, Task
from warp_core.store.run_folder import NOT_COMPARED
from warp_core.warp import Experiment, stored_inputs
from warp_core.world.inputs import StoredInputs
from warp_core.world.texts import text_statistics

VERSION = 1  # of the rows
STORE = Path("runs/store")
GEOMETRY = "geometry.json"
# What `stored_inputs` reads.
INPUTS = ("policy", "reward_model", "positive_label", "prompts", "prompt_words", "eval_prompts")
INPUTS += ("max_new_tokens",)
Row = dict[str, Any]
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
    """Policies of an arm: every combination of what is listed."""

    arm: Text = "?"
    what: Literal["run", "ema", "average", "slerp", "lerp", "warp"] = "warp"
    seeds: Annotated[Integer, Field(ge=0)] = 0
    """The first so many of the study's; 0: all."""
    iteration: list[Count] = [1]  # noqa: RUF012 (pydantic copies it)
    m: list[Count] = []  # noqa: RUF012
    t: list[Count] = []  # noqa: RUF012
    lam: list[Number] = []  # noqa: RUF012
    eta: list[Eta] = [1.0]  # noqa: RUF012

    def points(self, config: WarpConfig) -> Iterator[Point]:
        """Each of them; m is 1 or all runs, t is T, where they are not given."""
        merged, iterations = self.what in ("slerp", "lerp"), self.iteration
        of, steps = self.m or [config.runs if merged else 1], self.t or [config.steps]
        t: Sequence[Any] = [None] if merged else [steps] if self.what == "average" else steps
        if self.what == "warp":
            of, t, iterations = [None], [None], [config.iterations]
        for i, m, step, lam, eta in itertools.product(
            iterations, of, t, self.lam or [None], self.eta
        ):
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
    """equal_kl: of the curves through the policies, the mean difference over the KLs that both have."""
    share: Annotated[Number, Field(gt=0)] = 1.0
    """Of `theirs`, that `ours` is compared with."""
    expected: Literal["more", "less"] = "more"
    """What the claim says of ours − share · theirs."""


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
    arms: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Name of an arm -> the parameters that make it."""
    policies: list[dict[str, Any]] = Field(default_factory=list)
    """`Points` that are evaluated."""
    comparisons: list[dict[str, Any]] = Field(default_factory=list)
    """`Comparison`s that are made of them."""

    @field_validator("seeds")
    @classmethod
    def _several(cls, value: list[int]) -> list[int]:
        if len(set(value)) != len(value) or len(value) < 2:
            raise ValueError(
                "two or more different seeds; one training has no error between trainings"
            )
        return value

    @field_validator("policies")
    @classmethod
    def _of_arms(cls, value: list[dict[str, Any]], info: ValidationInfo) -> list[dict[str, Any]]:
        for arm in (Points(**each).arm for each in value):
            if arm not in info.data.get("arms", {}):
                raise ValueError(f"policies of the arms; there is no arm {arm!r}")
        return value

    def config(self, arm: str, seed: int) -> WarpConfig:
        """Parameters of an arm's training."""
        params = load_params(*self.base) | self.parameters | self.arms[arm]
        return WarpConfig(**params | {"name": f"{self.name}.{arm}.{seed}", "seed": seed})

    def wanted(self) -> list[tuple[int | None, Point]]:
        """(seed, policy) of each row, in the order of the file; θ_sft, which no training changed, once."""
        rows: list[tuple[int | None, Point]] = [(None, Point())]
        for each in (Points(**policies) for policies in self.policies):
            seeds = self.seeds[: each.seeds or None]
            points = list(each.points(self.config(each.arm, seeds[0])))
            rows += [(seed, point) for point in points for seed in seeds]
        return list(dict(zip(map(_key, rows), rows, strict=True)).values())

    def compared(self) -> list[Comparison]:
        """Raises ConfigError where one compares what is not evaluated, or a thing with itself."""
        points = {point.model_dump_json(): point for _, point in self.wanted()}.values()
        compared = [Comparison(**each) for each in self.comparisons]
        mistakes = []
        for each in compared:
            where = f"{self.name}: comparison {each.name!r}"
            if each.ours == each.theirs:
                mistakes.append(f"{where}: compares a thing with itself: {each.ours}")
            for side in (each.ours, each.theirs):
                found = [point for point in points if _matches(point.model_dump(), side)]
                if not found or (each.at == "policy" and len(found) > 1):
                    mistakes.append(f"{where}: {side} fits {len(found)} of the evaluated policies")
        if mistakes:
            raise ConfigError("\n".join(mistakes))
        return compared

    @property
    def path(self) -> Path:
        """Its rows."""
        return Path("reports/studies") / f"{self.name}.jsonl"


def load_study(path: Path | str) -> Study:
    """A study of a file, checked; raises ConfigError with what cannot be computed or compared."""
    try:
        study = Study(**load_params(path))
        study.compared()
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return study


def _matches(row: Mapping[str, Any], side: Mapping[str, Any]) -> bool:
    return all(row[key] == value for key, value in side.items())


def _key(row: tuple[int | None, Point]) -> str:
    seed, point = row
    return json.dumps({"seed": seed, **point.model_dump()}, sort_keys=True)


# What is computed


class Measurement:
    """A row of a study: the tasks that it needs, and what it says of them."""

    def __init__(self, study: Study, seed: int | None, point: Point, e: Experiment) -> None:
        self.study, self.seed, self.point, self.e = study, seed, point, e
        self.policy, runs = _policy(e, point)
        label = f"{point.what} {point.arm}" if point.arm else "SFT"
        self.evaluation = e.evaluation(self.policy, label)
        self.tasks = [self.evaluation, *([e.judged(self.evaluation)] if e.config.judge else [])]
        self.geometry: Task | None = None
        if len(runs) > 1 and point.eta == 1 and point.iteration == 1:
            inputs = {"theta_init": e.theta_sft, "thetas": [*runs, self.policy]}
            self.geometry = Task("geometry", geometry, {}, inputs, label=f"{label}, geometry")
            self.tasks.append(self.geometry)
        decides = e.config.model_dump(
            exclude={*NOT_COMPARED, "name", "eval_every"}, exclude_defaults=True
        )
        text = json.dumps([decides, point.model_dump(), seed], sort_keys=True)
        self.digest = hashlib.sha256(text.encode()).hexdigest()[:16]

    def is_there(self, store: Store) -> bool:
        """Whether all of it has been computed."""
        return all(store.has(task) for task in self.tasks)

    def row(self, store: Store) -> Row:
        """DESIGN's row; raises DamagedError where a result is not what was written."""
        folder, e = store.path(self.evaluation), self.e
        texts = text_statistics(Completions.load(folder).texts)
        origin = sealed_json(folder / "origin.json", folder)
        row = {"version": VERSION, "study": self.study.name, "seed": self.seed}
        row |= self.point.model_dump() | e.measured(store, self.evaluation)
        row |= {"length": texts["words"]} | {k: texts[k] for k in ("repetition", "distinct_pairs")}
        if self.geometry:
            row["geometry"] = sealed_json(store.path(self.geometry) / GEOMETRY)
        row |= {"digest": self.digest, "reward_model": e.identity["reward_sha256"][:16]}
        row |= {key: origin[key] for key in ("commit", "code", "device")}
        return row | {"precision": e.config.precision, "seconds": _seconds(store, self.evaluation)}


def _policy(e: Experiment, p: Point) -> tuple[Task, list[Task]]:
    """The policy, and the runs that it merges."""
    if p.what == "sft":
        return e.theta_sft, []
    i = p.iteration or 1
    init = [e.theta_sft, *(theta_init for *_, theta_init in e.iterations)][i - 1]
    m, t, label, runs = p.m or 1, p.t, f"{p.what} of {p.m}", list[Task]()
    match p.what:
        case "warp":
            policy = e.warp
        case "average":
            assert isinstance(t, list)
            runs = [e.rl_run(init, i, m, step) for step in t]
            policy = e.merged(init, runs, label, method="lerp")
        case "slerp" | "lerp":
            runs = [e.rl_run(init, i, k) for k in range(1, m + 1)]
            policy = e.merged(init, runs, label, method=p.what, lam=p.lam)
        case _:
            assert not isinstance(t, list)
            policy = e.rl_run(init, i, m, t, "ema" if p.what == "ema" else "policy")
    if p.eta in (None, 1.0):
        return policy, runs
    return e.merged(e.theta_sft, [policy], f"{label}, η = {p.eta:g}", p.eta), runs


def geometry(out: Path, theta_init: Path, thetas: Sequence[Path]) -> None:
    """Of runs and, last, their merge: angles between runs, degrees, over all groups; the inner products
    of all task vectors; the smallest cosine of two whole weights, θ_init's among them."""
    grams, whole = geometry_of_files(theta_init, thetas)
    upper = np.triu_indices(len(thetas) - 1, 1)
    angles = np.concatenate(
        [np.degrees(angles_of(gram))[:-1, :-1][upper] for gram in grams.values()]
    )
    norms = np.sqrt(whole.diagonal())
    about = {"angle": [float(f(angles)) for f in (np.nanmin, np.nanmean, np.nanmax)]}
    about |= {"gram": np.sum(list(grams.values()), axis=0).tolist()}
    write_json(out / GEOMETRY, about | {"cosine": float((whole / np.outer(norms, norms)).min())})


def _seconds(store: Store, task: Task) -> dict[str, float]:
    """What training this took: all runs together, and the longest chain of them."""
    runs: dict[str, float] = {}

    def longest(task: Task) -> float:
        behind = max(map(longest, task.reads), default=0.0)
        if task.kind == "run" and store.has(task):
            folder = store.path(task)
            runs[task.name] = sealed_json(folder / "origin.json", folder)["seconds"]
        return behind + runs.get(task.name, 0.0)

    chain = longest(task)
    return {"all": sum(runs.values()), "chain": chain}


def run_study(study: Study) -> list[Row]:
    """Compute what has no row yet, and return all rows."""
    return run_studies([study])[0]


def run_studies(studies: Sequence[Study], dry_run: bool = False) -> list[list[Row]]:
    """`run_study` of each, in one pool, a seed of all of them at a time: runs that they share are
    computed once, and their weights dropped behind the last evaluation.

    Raises ConfigError (parameters; rows that are not of these studies; nothing was computed then),
    BusyError, what `LocalEngine.compute` raises, and at the end what a task raised; the rest has its
    rows then.
    """
    given: dict[str, StoredInputs] = {}
    planned = [_plan(study, given) for study in studies]
    rows = [_known_rows(study, plan) for study, plan in zip(studies, planned, strict=True)]
    missing = [
        m for plan, known in zip(planned, rows, strict=True) for m in plan if m.digest not in known
    ]
    missing.sort(key=lambda m: -1 if m.seed is None else m.study.seeds.index(m.seed))
    store, wanted = Store(STORE), [task for m in missing for task in m.tasks]
    keep = [task for m in missing for task in (m.e.theta_sft, m.e.given.reward)]
    engine = LocalEngine()
    if dry_run:
        print(_forecast(missing, store, engine))
        return []

    def write(only_if: Callable[[Measurement], bool] = lambda m: True) -> None:
        for study, plan, known in zip(studies, planned, rows, strict=True):
            new = [m for m in plan if m.digest not in known and only_if(m) and m.is_there(store)]
            if new:
                known |= {m.digest: m.row(store) for m in new}
                write_jsonl(study.path, [known[m.digest] for m in plan if m.digest in known])

    def look(progress: Progress) -> None:
        finished = {task.name for task in list(progress.finished)}
        write(lambda m: not finished.isdisjoint(task.name for task in m.tasks))
        shown(progress)

    shown, engine.look = bar("studies"), look
    errors: dict[str, Exception] = {}
    try:
        with FileLock(store.folder.with_name(".studies.lock"), timeout=0):
            write()  # of what others, or an attempt that was killed, have computed
            if wanted:
                each = max(m.e.run_bytes for m in missing)
                with engine.resources(each, store, wanted, keep):
                    errors = engine.compute(store, wanted, keep)
                write()
    except Timeout:
        raise BusyError("runs/: another program computes studies there; let it end first") from None
    for error in errors.values():
        raise error
    pairs = zip(planned, rows, strict=True)
    return [[known[m.digest] for m in plan] for plan, known in pairs]


def _plan(study: Study, given: dict[str, StoredInputs]) -> list[Measurement]:
    """All rows to be; inputs that experiments have in common are loaded once."""
    experiments: dict[tuple[str, int], Experiment] = {}
    plan = []
    for seed, point in study.wanted():
        which = point.arm or next(iter(study.arms)), study.seeds[0] if seed is None else seed
        if which not in experiments:
            config = study.config(*which)
            key = json.dumps([getattr(config, key) for key in INPUTS])
            if key not in given:
                given[key] = stored_inputs(config)
            experiments[which] = Experiment(config, given[key])
        plan.append(Measurement(study, seed, point, experiments[which]))
    return plan


def _known_rows(study: Study, plan: Sequence[Measurement]) -> dict[str, Row]:
    """The rows that are there, by digest; raises ConfigError where they are not this study's."""
    move = f"{study.path}: move it away, or take it back from git; nothing in it was touched"
    try:
        rows = read_jsonl(study.path)
        if study.path.is_file() and not study.path.read_bytes().endswith(b"\n"):
            raise ValueError("it ends within a line")
        known = {row["digest"]: row for row in rows if row["version"] == VERSION}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{move}; it is damaged: {error!r}") from None
    if len(known) != len(rows):
        raise ConfigError(f"{move}; it has rows of another version, or a row twice")
    if strange := known.keys() - {m.digest for m in plan}:
        row = known[min(strange)]
        of = f"{len(strange)} of its rows, such as {row['what']} of arm {row['arm']!r}, seed {row['seed']}"
        raise ConfigError(f"{move}; {of}, are not what {study.name} asks for now")
    return known


def _forecast(missing: Sequence[Measurement], store: Store, engine: LocalEngine) -> str:
    """What would be computed, and how long that takes by what has been computed here."""
    schedule = Schedule(store, [task for m in missing for task in m.tasks], [])
    progress = Progress(store, schedule.tasks, schedule.passed)
    kinds = Counter(task.kind for task in schedule.tasks if task.name not in schedule.passed)
    lines = [f"{Counter(m.study.name for m in missing)}"]
    lines += [f"{number} × {kind}" for kind, number in sorted(kinds.items())]
    lines.append(f"work of {progress.total} steps, {engine.workers} side by side")
    if seconds := seconds_a_step(store):
        hours = progress.total * seconds / engine.workers / 3600
        lines.append(f"about {hours:.1f} h, at {seconds:.1f} s a step as in this machine's results")
    else:
        lines.append("how long that takes is not known: nothing has been trained here yet")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 computed, 1 something failed, 2 refused, 130 stopped."""
    parser = argparse.ArgumentParser(prog="python -m warp_core.study", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--dry-run", action="store_true", help="say what would be computed")
    options = parser.parse_args(argv)
    try:
        studies = [load_study(path) for path in options.files]
        for study, rows in zip(studies, run_studies(studies, options.dry_run), strict=False):
            print(f"{study.path}: {len(rows)} rows")
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except (KeyboardInterrupt, Exception) as error:
        if not isinstance(error, MessageOnly):
            raise
        print(error, file=sys.stderr)
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    return 0


if __name__ == "__main__":
    from warp_core import study  # its functions go to other processes by this name

    sys.exit(study.main())
