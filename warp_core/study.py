"""Studies: arms × training seeds, every policy evaluated, and what holds between trainings.

A study, params/study_*.yaml, says before anything runs which policies it evaluates, what it compares
and how that is expected to come out. Its rows, reports/studies/NAME.jsonl, are kept in the
repository: what has a row is not computed again, on any machine.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from warp_core.config import ConfigError, WarpConfig, load_params
from warp_core.engine.tables import Entry, Row, Table, complete
from warp_core.folders import GEOMETRY, geometry
from warp_core.store.files import sealed_json
from warp_core.store.results import Store, Task, with_all_they_read
from warp_core.store.run_folder import NOT_COMPARED
from warp_core.tasks import stored_inputs
from warp_core.warp import Experiment
from warp_core.world.inputs import StoredInputs
from warp_core.world.studies import Point, Points, Study

STORE = Path("runs/store")
NAMES = {*NOT_COMPARED, "name", "eval_every"}  # keys that decide nothing


def run_study(study: Study, engine: str = "local") -> list[Row]:
    """Compute what has no row yet, and return all rows; raises what `run_studies` raises."""
    return run_studies([study], engine)[0]


def run_studies(studies: Sequence[Study], engine: str = "local") -> list[list[Row]]:
    """`run_study` of each, in one pool, a seed of all of them at a time: runs that they share are
    computed once, and their weights dropped behind their last evaluation.

    Raises ConfigError (parameters; rows that are not of these studies; nothing was computed then), and
    what `warp_core.engine.tables.complete` raises.
    """
    tables = tables_of(studies)
    complete(tables, Store(STORE), "studies", engine)
    return [table.in_order() for table in tables]


def config_of(study: Study, arm: str, seed: int) -> WarpConfig:
    """Parameters of an arm's training."""
    params = load_params(*study.base) if study.base else {}
    params |= study.parameters | study.arms[arm]
    return WarpConfig(**params | {"name": f"{study.name}.{arm}.{seed}", "seed": seed})


def wanted(study: Study) -> list[tuple[int | None, Point]]:
    """(seed, policy) of each row, in the order of the file; θ_sft, which no training changed, once."""
    rows: dict[str, tuple[int | None, Point]] = {"": (None, Point())}
    for each in (Points(**policies) for policies in study.policies):
        c, seeds = config_of(study, each.arm, study.seeds[0]), study.seeds[: each.seeds or None]
        if said := each.beyond(c.iterations, c.runs, c.steps, c.max_kl):
            raise ConfigError(f"{study.name}: policies of arm {each.arm!r}: {said}")
        for point in each.points(c.iterations, c.runs, c.steps):
            rows |= {f"{seed} {point.model_dump_json()}": (seed, point) for seed in seeds}
    return list(rows.values())


def digests(study: Study) -> list[str]:
    """Of `wanted` rows, in their order, by the parameters that the study has now."""
    configs, asked = {arm: config_of(study, arm, 0) for arm in study.arms}, wanted(study)
    rows = zip([_training(study, *each) for each in asked], asked, strict=True)
    return [_digest(configs[a].model_copy(update={"seed": s}), *row) for (a, s), row in rows]


def _training(study: Study, seed: int | None, point: Point) -> tuple[str, int]:
    """Arm and seed of the training that gives a row; θ_sft's is any."""
    return point.arm or next(iter(study.arms)), study.seeds[0] if seed is None else seed


def _digest(config: WarpConfig, seed: int | None, point: Point) -> str:
    decides = config.model_dump(exclude=NAMES, exclude_defaults=True)
    about = json.dumps([decides, point.model_dump(), seed], sort_keys=True)
    return hashlib.sha256(about.encode()).hexdigest()[:16]


def tables_of(studies: Iterable[Study]) -> list[Table]:
    """Of all studies, with what each lacks; inputs that experiments have in common are loaded once."""
    given: dict[str, StoredInputs] = {}
    tables = []
    for study in studies:
        experiments: dict[tuple[str, int], Experiment] = {}
        table = Table(study.path, digests(study))
        asked = zip(table.digests, wanted(study), strict=True)
        for digest, (seed, point) in (each for each in asked if each[0] not in table.rows):
            which = _training(study, seed, point)
            if which not in experiments:
                config = config_of(study, *which)
                key = repr(config.inputs)
                given[key] = given.get(key) or stored_inputs(config)
                experiments[which] = Experiment(config, given[key])
            table.entries.append(_entry(study, seed, point, digest, experiments[which]))
        tables.append(table)
    return tables


def _entry(study: Study, seed: int | None, point: Point, digest: str, e: Experiment) -> Entry:
    policy, runs = policy_of(e, point)
    label = f"{point.what} {point.arm}" if point.arm else "SFT"
    evaluation = e.evaluation(policy, label)
    tasks = [each for each in with_all_they_read([policy]) if each.kind == "run"]  # whose seconds
    tasks += [evaluation, e.of_sft, *([e.judged(evaluation)] if e.config.judge else [])]
    geometric = len(runs) > 1 and (point.iteration, point.eta) == (1, 1) and not e.config.lora_rank
    if geometric:
        inputs = {"theta_init": e.theta_sft, "thetas": [*runs, policy]}
        tasks.append(Task("geometry", geometry, {}, inputs, label=f"{label}, geometry"))

    def row(store: Store) -> Row:
        row = {"study": study.name, "seed": seed, **point.model_dump()}
        row |= {"geometry": sealed_json(store.path(tasks[-1]) / GEOMETRY)} if geometric else {}
        row |= e.measured(store, evaluation) | e.described(store, evaluation)
        return row | {"seconds": store.seconds_behind(policy, "run")}

    turn = -1 if seed is None else study.seeds.index(seed)
    keep = [e.theta_sft, *e.given.rewards]
    return Entry(digest, turn, tasks, row, keep, e.needs)


def policy_of(e: Experiment, p: Point) -> tuple[Task, list[Task]]:
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
            runs = [e.rl_run(init, i, m, step) for step in t] if isinstance(t, list) else []
            policy = e.merged(init, runs, label, method="lerp")
        case "slerp" | "lerp":
            runs = [e.rl_run(init, i, k) for k in range(1, m + 1)]
            policy = e.merged(init, runs, label, method=p.what, lam=p.lam)
        case _:
            steps = t if isinstance(t, int) else None
            policy = e.rl_run(init, i, m, steps, "ema" if p.what == "ema" else "policy")
    if p.eta in (None, 1.0):
        return policy, runs
    return e.merged(e.theta_sft, [policy], f"{label}, η = {p.eta:g}", p.eta), runs
