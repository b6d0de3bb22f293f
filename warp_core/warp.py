"""Algorithm 1, lines 1 to 14, and its output, the front.

`Experiment` writes the algorithm down as tasks, of the functions in folders.py. An engine computes
those that the store does not have, side by side where it can.
"""

import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from warp_core.config import FrontConfig, WarpConfig
from warp_core.engine.choice import engine_of
from warp_core.engine.memory import needed_bytes
from warp_core.engine.needs import Needs
from warp_core.engine.progress import bar
from warp_core.engine.tracking import check_tracker
from warp_core.folders import FROM_SFT, read_completions
from warp_core.store.errors import ConfigError
from warp_core.store.files import seal_json, seal_jsonl, sealed_json, sealed_jsonl
from warp_core.store.results import Store, Task
from warp_core.store.run_folder import computed_once, open_run
from warp_core.summary import before_and_after, front_summary, samples
from warp_core.tasks import Parts, stored_inputs
from warp_core.world.card import write_cards
from warp_core.world.inputs import StoredInputs, read_prompts
from warp_core.world.prompts import as_text

RESULTS, FRONT = ("summary.json", "metrics.jsonl", "samples.jsonl"), "front.jsonl"
Summary = dict[str, Any]


class Experiment(Parts):
    """Algorithm 1 as tasks: θ_sft, and of each iteration its θ^m, its θ_slerp and the next θ_init.

    Raises ConfigError with all that cannot be used. `given`: what `stored_inputs` has loaded.
    """

    def __init__(self, config: WarpConfig, given: StoredInputs | None = None) -> None:
        check_tracker(config.tracker)
        super().__init__(config, given or stored_inputs(config))
        c, self.identity = config, self.given.identity
        self.needs = Needs(needed_bytes(self.sizes()), c.gpus, c.precision)
        self.iterations: list[tuple[list[Task], Task, Task]] = []

        theta_init = self.theta_sft  # line 1
        for i in range(1, c.iterations + 1):  # line 2
            thetas = [self.rl_run(theta_init, i, m) for m in range(1, c.runs + 1)]  # lines 3 to 11
            label = f"iteration {i}, {c.merge.upper()}"
            theta_slerp = self.merged(theta_init, thetas, label, method=c.merge)  # line 12
            theta_init = self.merged(theta_init, [theta_slerp], f"iteration {i}, LITI", c.eta)  # 13
            self.iterations.append((thetas, theta_slerp, theta_init))
        self.warp = theta_init
        differ = 1 if c.shared_run_seed else c.runs
        self.engine = engine_of(c.engine, self.needs, c.workers, differ, bar(c.name))

    def front(self, etas: Sequence[float]) -> list[tuple[dict[str, float], Task]]:
        """Its points, evaluated: by η from θ_sft to θ_slerp^I; by run the last θ^m that stay."""
        thetas, end, _ = self.iterations[-1]
        start, label = self.theta_sft, "front, η = {:g}".format
        swept = [(x, self.merged(start, [end], label(x), x) if x != 1 else end) for x in etas]
        runs = list(enumerate(thetas, start=1)) if self.config.keep_weights == "all" else []
        of_eta = [({"eta": x}, self.evaluation(p, label(x))) for x, p in swept]
        return of_eta + [({"run": m}, self.evaluation(p, f"front, run {m}")) for m, p in runs]

    def trajectory(self) -> list[tuple[dict[str, int], Task]]:
        """Each run on its way, evaluated: iteration, run, step."""
        c, points = self.config, list[tuple[dict[str, int], Task]]()
        starts = [self.theta_sft, *(theta_init for *_, theta_init in self.iterations)]
        for i, m in itertools.product(range(1, c.iterations + 1), range(1, c.runs + 1)):
            for t in range(c.eval_every, c.steps + 1, c.eval_every) if c.eval_every else ():
                policy = self.rl_run(starts[i - 1], i, m, t)
                where = {"iteration": i, "run": m, "step": t}
                points.append((where, self.evaluation(policy, f"{policy.label}, step {t}")))
        return points

    def evaluations(self) -> list[Task]:
        """Of θ_sft and of WARP."""
        return [self.of_sft, self.evaluation(self.warp, "WARP", both_ways=True)]

    def wanted(self) -> list[Task]:
        """All that a summary tells of."""
        weights = [task for thetas, *merged in self.iterations for task in (*thetas, *merged)]
        evaluated = [task for _, task in self.trajectory()] + self.evaluations()
        judged = [self.judged(each) for each in evaluated] if self.config.judge else []
        return [*weights, *evaluated, *judged]

    def shown(self) -> dict[str, Task]:
        """Place in the run folder's weights/ -> whose weights stay and lie there."""
        places, last = dict[str, Task](), len(self.iterations)
        for i, (thetas, theta_slerp, theta_init) in enumerate(self.iterations, start=1):
            places |= {f"iteration_{i}/run_{m}": theta for m, theta in enumerate(thetas, start=1)}
            places[f"iteration_{i}/slerp"] = theta_slerp
            places["warp" if i == last else f"iteration_{i}/liti"] = theta_init
        if self.config.lora_rank:  # the body, which the adapters need
            places["sft"] = self.theta_sft
        if self.config.keep_weights == "all":
            return places
        result = f"iteration_{last}/slerp", "warp", "sft"
        return {place: each for place, each in places.items() if place in result}

    def show(self, store: Store, run_dir: Path) -> bool:
        """Those of `shown` that are there; whether all are."""
        places = self.shown().items()
        return all([store.show(task, run_dir / "weights" / place) for place, task in places])

    def kept(self) -> list[Task]:
        """Those whose weights stay."""
        return [self.theta_sft, *self.given.rewards, *self.shown().values()]

    def resources(self, store: Store) -> AbstractContextManager[None]:
        """Memory and disk for what is missing, and machines that can do it."""
        return self.engine.resources(store, self.wanted(), self.kept())


# What people call


def run_warp(config: WarpConfig, run_dir: Path | str | None = None) -> Summary:
    """Algorithm 1 and its evaluation; everything goes to the run folder and to the store beside it.

    Returns what summary.json holds: `before_and_after`; angles (degrees by iteration, group, pair of runs);
    training_reward (mean of an iteration); front; with a judge sft_judge, warp_judge, with eval_every
    trajectory: iteration, run, step, what it gave.

    Raises ConfigError (nothing was created then), TrainingError, EvaluationError (something was not
    finite), DiedError (a process was killed), DamagedError (a file is not what was written),
    StorageError (no room), BusyError (another process is at work on it), Interrupted (Ctrl-C).
    """
    run_dir = Path(run_dir or config.folder)
    e, store = Experiment(config), Store(run_dir.parent / "store")
    about = config, run_dir, e.identity, RESULTS, e.resources(store)
    return computed_once(*about, lambda: _run(e, store, run_dir))


def _run(e: Experiment, store: Store, run_dir: Path) -> Summary:
    wanted = [*e.wanted(), *e.shown().values()]
    try:
        e.engine.make(store, wanted, e.kept())
        while not e.show(store, run_dir):  # another program has dropped some
            e.engine.make(store, wanted, e.kept())
    finally:  # what was logged stays, whatever happened
        runs = [list(enumerate(thetas, start=1)) for thetas, *_ in e.iterations]
        rows = [
            [{"iteration": i, "run": m} | row for m, theta in thetas for row in store.rows(theta)]
            for i, thetas in enumerate(runs, start=1)
        ]
        seal_jsonl(run_dir / "metrics.jsonl", itertools.chain(*rows))
    of_policies = e.evaluations()
    sft, warp = (read_completions(store.path(evaluation)) for evaluation in of_policies)
    of_warp, of = store.path(of_policies[1]), [store.path(slerp) for _, slerp, _ in e.iterations]
    from_sft = [row["kl"] for row in sealed_jsonl(of_warp / FROM_SFT, of_warp)]
    prompts = [as_text(prompt) for prompt in read_prompts(store.path(e.given.held_out))]
    seal_jsonl(run_dir / "samples.jsonl", samples(prompts, sft, warp))
    summary = before_and_after(sft, warp, from_sft) | {
        "angles": [sealed_json(slerp / "angles.json", slerp) for slerp in of],
        "training_reward": [float(np.mean([row["reward"] for row in each])) for each in rows],
        "front": [],
    }
    if e.config.eval_every:
        summary["trajectory"] = [where | e.measured(store, each) for where, each in e.trajectory()]
    if e.config.judge:
        judges = (e.measured(store, each)["judge"] for each in of_policies)
        summary |= dict(zip(("sft_judge", "warp_judge"), judges, strict=True))
    write_cards(run_dir, e.config.model_dump(), summary)
    seal_json(run_dir / "origins.json", store.origins(wanted))
    seal_json(run_dir / "summary.json", summary)
    return summary


def run_front(
    config: WarpConfig,
    run_dir: Path | str | None = None,
    etas: Sequence[float] = FrontConfig().etas,
) -> Summary:
    """The output of Algorithm 1: {(1 − η)·θ_sft + η·θ_slerp^I}, evaluated at each η.

    Adds what `front_summary` gives to summary.json; front.jsonl keeps what each evaluation prompt gave.
    Raises ConfigError where the experiment has not been run, and what `run_warp` raises.
    """
    run_dir = Path(run_dir or config.folder)
    if not (run_dir / "summary.json").is_file():
        raise ConfigError(f"run_dir: {str(run_dir)!r} has no finished experiment; run it first")
    e, store, path = Experiment(config), Store(run_dir.parent / "store"), run_dir / FRONT
    with open_run(config, run_dir, e.identity):
        points = sealed_jsonl(path) if path.is_file() else []
        missing = missing_of_front(e, run_dir, etas)
        wanted = [evaluation for _, evaluation in missing]
        wanted += [e.judged(each) for each in wanted] if config.judge else []
        if wanted:
            with e.engine.resources(store, wanted, e.kept()):
                e.engine.make(store, wanted, e.kept())
            e.show(store, run_dir)
            origins = sealed_json(run_dir / "origins.json") | store.origins(wanted)
            seal_json(run_dir / "origins.json", origins)
        for point, evaluation in missing:
            answers = read_completions(store.path(evaluation))
            points.append(point | {"rewards": answers.rewards, "kls": answers.kls})
            points[-1] |= {"judge": e.scores_of_judge(store, evaluation)} if config.judge else {}
        seal_jsonl(path, points)
        of_sft = [row["sft_reward"] for row in sealed_jsonl(run_dir / "samples.jsonl")]
        summary = sealed_json(run_dir / "summary.json") | front_summary(points, of_sft)
        write_cards(run_dir, config.model_dump(), summary)
        seal_json(run_dir / "summary.json", summary)
        return summary


def missing_of_front(
    e: Experiment, run_dir: Path, etas: Sequence[float]
) -> list[tuple[dict[str, float], Task]]:
    """Points of the front that a run folder does not have."""
    path = run_dir / FRONT
    there = sealed_jsonl(path) if path.is_file() else []
    return [
        (point, evaluation)
        for point, evaluation in e.front(etas)
        if not any(point.items() <= row.items() for row in there)
    ]
