"""Algorithm 1, lines 1 to 14, and its output, the front.

`Experiment` writes the algorithm down as tasks, of the functions in folders.py. An engine computes
those that the store does not have, side by side where it can.
"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from warp_core.config import FrontConfig, WarpConfig
from warp_core.engine.local import LocalEngine
from warp_core.engine.memory import Sizes, needed_bytes
from warp_core.engine.precision import check_precision
from warp_core.engine.progress import bar
from warp_core.engine.tracking import check_tracker, tracked_run
from warp_core.evaluate import BATCH, Completions, Estimate, estimate, front_summary
from warp_core.folders import FROM_SFT, JUDGED, evaluate, judge, merge, rl_run
from warp_core.store.errors import ConfigError
from warp_core.store.files import seal_json, seal_jsonl, sealed_json, sealed_jsonl
from warp_core.store.results import Store, Task
from warp_core.store.run_folder import computed_once, open_run
from warp_core.world.card import write_cards
from warp_core.world.inputs import Inputs, StoredInputs, read_prompts
from warp_core.world.prompts import as_text
from warp_core.world.texts import text_statistics

RESULTS, FRONT = ("summary.json", "metrics.jsonl", "samples.jsonl"), "front.jsonl"
Summary = dict[str, Any]


class Experiment:
    """Algorithm 1 as tasks: θ_sft, and of each iteration its θ^m, its θ_slerp and the next θ_init.

    Raises ConfigError with all that cannot be used. `given`: what `stored_inputs` has loaded.
    """

    def __init__(self, config: WarpConfig, given: StoredInputs | None = None) -> None:
        self.config = c = config
        check_tracker(c.tracker)
        self.given = given or stored_inputs(c)
        self.run_bytes = needed_bytes(self.sizes())
        self.identity, self.theta_sft = self.given.identity, self.given.theta_sft
        rank = c.lora_rank * c.runs * c.iterations  # of the last adapter
        self.size = 4 * rank * self.given.adapter if rank else self.theta_sft.size
        self.iterations: list[tuple[list[Task], Task, Task]] = []

        theta_init = self.theta_sft  # line 1
        for i in range(1, c.iterations + 1):  # line 2
            thetas = [self.rl_run(theta_init, i, m) for m in range(1, c.runs + 1)]  # lines 3 to 11
            label = f"iteration {i}, {c.merge.upper()}"
            theta_slerp = self.merged(theta_init, thetas, label, method=c.merge)  # line 12
            theta_init = self.merged(theta_init, [theta_slerp], f"iteration {i}, LITI", c.eta)  # 13
            self.iterations.append((thetas, theta_slerp, theta_init))
        self.warp = theta_init

    def sizes(self) -> Sizes:
        """What the memory of its runs follows from."""
        c, given = self.config, self.given
        return Sizes(
            *given.policy_shape,
            given.prompt_tokens,
            c.max_new_tokens,
            c.batch_size,
            c.micro_batch,
            trained=c.lora_rank * given.adapter,
            adapters=c.lora_rank * given.adapter * c.runs * (c.iterations - 1),
            rewards=sum(each.size for each in given.rewards) // 4,
            copies=(c.anchor == "sft") + (c.max_kl > 0),
            recomputed=c.gradient_checkpointing,
            evaluated=min(BATCH, c.eval_prompts),
        )

    def rl_run(
        self, theta_init: Task, i: int, m: int, steps: int | None = None, output: str = "policy"
    ) -> Task:
        """θ^m: run m of iteration i, or its θ_ema (output: "ema"); after `steps`, which are T if None."""
        c, given, steps = self.config, self.given, steps or self.config.steps
        inputs = {"theta_init": theta_init, "rewards": given.rewards, "prompts": given.train}
        inputs |= {"theta_sft": self.theta_sft} if c.anchor == "sft" or c.lora_rank else {}
        arguments = {"scored": given.scored, "seed": run_seed(c, i, m)}
        training = c.training.model_dump(exclude_defaults=True)  # so that later keys change no name
        arguments |= {"training": training | {"steps": steps}}
        arguments |= {} if output == "policy" else {"output": output}
        hints = {"checkpoint_every": c.checkpoint_every, "body": c.policy}
        label = f"{c.name}, iteration {i}, run {m}"
        hints |= tracked_run(c.model_dump(), i, m, arguments["seed"])
        states = 2 if 0 < c.checkpoint_every < steps else 1  # the new one beside the old
        states *= 4 + (c.max_kl > 0)  # weights, anchor, two moments; weights before the last update
        endless = arguments | {"training": training | {"steps": 0}, "output": ""}
        way = Task("run", rl_run, endless, inputs).name
        sizes = {"steps": steps, "size": self.size, "scratch": states * self.size}
        return Task("run", rl_run, arguments, inputs, hints, label, way=way, **sizes)

    def merged(
        self,
        theta_init: Task,
        thetas: list[Task],
        label: str,
        eta: float = 1.0,
        method: str = "slerp",
        lam: float | None = None,
    ) -> Task:
        """(1 − η)·θ_init + η·slerp(θ_init, θ^1 … θ^M); at η = 0 θ_init itself."""
        inputs, label = {"theta_init": theta_init, "thetas": thetas}, f"{self.config.name}, {label}"
        arguments: dict[str, Any] = {"eta": eta} | ({} if lam is None else {"lam": lam})
        arguments |= {} if method == "slerp" else {"method": method}
        task = Task("merged", merge, arguments, inputs, label=label, size=self.size)
        return task if eta else theta_init

    def evaluation(self, policy: Task, label: str = "", both_ways: bool = False) -> Task:
        """What a policy answers to the held-out prompts, its rewards, its KL to θ_sft and θ_sft's to it."""
        c, given = self.config, self.given
        inputs = {"policy": policy, "theta_sft": self.theta_sft}
        inputs |= {"rewards": given.rewards, "prompts": given.held_out}
        inputs |= {"of_sft": self.evaluation(self.theta_sft, "SFT")} if both_ways else {}
        arguments = {"max_new_tokens": c.max_new_tokens, "temperature": c.temperature}
        arguments |= {"scored": given.scored, "seed": c.eval_seed}
        label, cost = f"{c.name}, {label} evaluated", 1 + c.eval_prompts // (2 * c.batch_size)
        return Task("evaluation", evaluate, arguments, inputs, label=label, cost=cost)

    def judged(self, evaluation: Task) -> Task:
        """What the judge says of a policy's completions."""
        given, label = self.given, f"{evaluation.label}, judged"
        inputs = {"evaluation": evaluation, "prompts": given.held_out, "judges": given.judges}
        return Task("judged", judge, {"scored": given.of_judge}, inputs, label=label)

    def front(self, etas: Sequence[float]) -> list[tuple[dict[str, float], Task]]:
        """Its points, evaluated: by η from θ_sft to θ_slerp^I; by run the last θ^m that stay."""
        thetas, end, _ = self.iterations[-1]
        swept = [(x, self.merged(self.theta_sft, [end], f"front, η = {x:g}", x)) for x in etas]
        runs = list(enumerate(thetas, start=1)) if self.config.keep_weights == "all" else []
        points: list[tuple[dict[str, float], Task]] = []
        points += [({"eta": x}, self.evaluation(p, f"front, η = {x:g}")) for x, p in swept]
        return points + [({"run": m}, self.evaluation(p, f"front, run {m}")) for m, p in runs]

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
        warp = self.evaluation(self.warp, "WARP", both_ways=True)
        return [self.evaluation(self.theta_sft, "SFT"), warp]

    def wanted(self) -> list[Task]:
        """All that a summary tells of."""
        weights = [task for thetas, *merged in self.iterations for task in (*thetas, *merged)]
        evaluated = [task for _, task in self.trajectory()] + self.evaluations()
        judged = [self.judged(each) for each in evaluated] if self.config.judge else []
        return [*weights, *evaluated, *judged]

    def measured(self, store: Store, evaluation: Task) -> dict[str, Estimate]:
        """An evaluated policy's reward, KL to θ_sft and, where there is a judge, what it says."""
        answers = Completions.load(store.path(evaluation))
        values = {"reward": estimate(answers.rewards), "kl": estimate(answers.kls)}
        if self.config.judge:
            values["judge"] = estimate(self.scores_of_judge(store, evaluation))
        return values

    def scores_of_judge(self, store: Store, evaluation: Task) -> list[float]:
        """What the judge says of each completion."""
        folder = store.path(self.judged(evaluation))
        return [row["judge"] for row in sealed_jsonl(folder / JUDGED, folder)]

    def shown(self) -> dict[str, Task]:
        """Place in the run folder's weights/ -> whose weights stay and lie there."""
        places: dict[str, Task] = {}
        last = len(self.iterations)
        for i, (thetas, theta_slerp, theta_init) in enumerate(self.iterations, start=1):
            places |= {f"iteration_{i}/run_{m}": theta for m, theta in enumerate(thetas, start=1)}
            places[f"iteration_{i}/slerp"] = theta_slerp
            places["warp" if i == last else f"iteration_{i}/liti"] = theta_init
        if self.config.lora_rank:  # the body, which the adapters need
            places["sft"] = self.theta_sft
        result = {
            p: each for p, each in places.items() if p in (f"iteration_{last}/slerp", "warp", "sft")
        }
        return places if self.config.keep_weights == "all" else result

    def show(self, store: Store, run_dir: Path) -> None:
        """Those of `shown` that are there."""
        for place, task in self.shown().items():
            if store.has(task, weights=True):
                store.show(task, run_dir / "weights" / place)

    def kept(self) -> list[Task]:
        """Those whose weights stay."""
        return [self.theta_sft, *self.given.rewards, *self.shown().values()]

    @contextmanager
    def resources(self, store: Store) -> Iterator[None]:
        """Memory and disk for what is missing, and a precision that this machine can do."""
        check_precision(self.config.precision)
        with self.engine().resources(self.run_bytes, store, self.wanted(), self.kept()):
            yield

    def engine(self) -> LocalEngine:
        """Its runs side by side, as many as differ."""
        c = self.config
        return LocalEngine(c.workers, 1 if c.shared_run_seed else c.runs, bar(c.name))


# What people call


def run_warp(config: WarpConfig, run_dir: Path | str | None = None) -> Summary:
    """Algorithm 1 and its evaluation; everything goes to the run folder and to the store beside it.

    Returns what summary.json holds: sft_reward, warp_reward, reward_difference (paired by prompt),
    kl_sft_warp, kl_warp_sft (nats per completion), each an `estimate`; `text_statistics` of both;
    angles (degrees by iteration, group, pair of runs); training_reward (mean of an iteration); front;
    with a judge sft_judge, warp_judge, with eval_every trajectory: iteration, run, step, what it gave.

    Raises ConfigError (nothing was created then), TrainingError, EvaluationError (something was not
    finite), DiedError (a process was killed), DamagedError (a file is not what was written),
    StorageError (no room), BusyError (another process is at work on it), Interrupted (Ctrl-C).
    """
    run_dir = Path(run_dir or config.folder)
    e, store = Experiment(config), Store(run_dir.parent / "store")
    about = config, run_dir, e.identity, RESULTS, e.resources(store)
    return computed_once(*about, lambda: _run(e, store, run_dir))


def _run(e: Experiment, store: Store, run_dir: Path) -> Summary:
    wanted = e.wanted()
    try:
        e.engine().make(store, wanted, e.kept())
    finally:  # what was logged stays, whatever happened
        runs = [list(enumerate(thetas, start=1)) for thetas, *_ in e.iterations]
        rows = [
            [{"iteration": i, "run": m} | row for m, theta in thetas for row in store.rows(theta)]
            for i, thetas in enumerate(runs, start=1)
        ]
        seal_jsonl(run_dir / "metrics.jsonl", itertools.chain(*rows))
    e.show(store, run_dir)
    of_policies = e.evaluations()
    sft, warp = (Completions.load(store.path(evaluation)) for evaluation in of_policies)
    of_warp, of = store.path(of_policies[1]), [store.path(slerp) for _, slerp, _ in e.iterations]
    from_sft = [row["kl"] for row in sealed_jsonl(of_warp / FROM_SFT, of_warp)]
    prompts = map(as_text, read_prompts(store.path(e.given.held_out)))
    columns = zip(prompts, sft.texts, warp.texts, sft.rewards, warp.rewards, strict=True)
    names = ("prompt", "sft", "warp", "sft_reward", "warp_reward")
    seal_jsonl(run_dir / "samples.jsonl", [dict(zip(names, row, strict=True)) for row in columns])
    summary = {
        "sft_reward": estimate(sft.rewards),
        "warp_reward": estimate(warp.rewards),
        "reward_difference": estimate(np.subtract(warp.rewards, sft.rewards)),
        "kl_sft_warp": estimate(from_sft),
        "kl_warp_sft": estimate(warp.kls),
        "text": {"sft": text_statistics(sft.texts), "warp": text_statistics(warp.texts)},
        "angles": [sealed_json(slerp / "angles.json", slerp) for slerp in of],
        "training_reward": [float(np.mean([row["reward"] for row in each])) for each in rows],
        "front": [],
    }
    if e.config.eval_every:
        along = [where | e.measured(store, each) for where, each in e.trajectory()]
        summary["trajectory"] = along
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
            e.engine().make(store, wanted, e.kept())
            e.show(store, run_dir)
        for point, evaluation in missing:
            answers = Completions.load(store.path(evaluation))
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


def stored_inputs(config: WarpConfig) -> StoredInputs:
    """θ_sft, r and X, loaded, checked and named; experiments that have them in common share it."""
    return StoredInputs(Inputs(*config.inputs))


def run_seed(config: WarpConfig, iteration: int, run: int) -> int:
    """Seed of run m of iteration i: one for all if shared_run_seed, else one for each."""
    if config.shared_run_seed:
        return config.seed
    entropy = np.random.SeedSequence([config.seed, iteration, run])
    return int(entropy.generate_state(1)[0])
