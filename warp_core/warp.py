"""Algorithm 1, lines 1 to 14: iterations, runs, merge; then the evaluation and the front.

The M runs of an iteration do not know each other, so they run side by side in processes of their
own, each with its share of the cores (on CUDA one after the other); weights pass through the run
folder. Runs that share a seed are one run, computed once. What the run folder already holds is not
computed again.
"""

import copy
import hashlib
import json
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from warp_core.assets import AssetError
from warp_core.checkpoint import Checkpoint
from warp_core.config import FrontConfig, WarpConfig
from warp_core.errors import ConfigError, Interrupted, TrainingError
from warp_core.evaluate import Completions, complete, evaluate_pair, front_summary
from warp_core.files import (
    appearing,
    append_jsonl,
    make_room,
    read_jsonl,
    seal_json,
    seal_jsonl,
    sealed_json,
    sealed_jsonl,
    verify,
    write_jsonl,
)
from warp_core.merge import liti, slerp_with_angles
from warp_core.models import (
    STEPS_FILE,
    best_device,
    copy_policy,
    fingerprint,
    load_policy,
    load_weights,
    save_policy,
    set_weights,
    total_bytes,
    weights_of,
)
from warp_core.prompts import Prompts, load_prompts
from warp_core.reward import NO_LIMIT, RewardModel, load_reward
from warp_core.rollout import Rollout
from warp_core.runs import check_run, finished, open_run
from warp_core.side_by_side import Died, refuse_too_many, run_all
from warp_core.train import train_run

FIELDS = ("tokens", "attention_mask", "completion_mask")  # of a Rollout
RESULTS = ("summary.json", "metrics.jsonl", "samples.jsonl")
COMPLETIONS = "completions.safetensors"


class World:
    """Everything an experiment loads: θ_sft, tokenizer, reward model, prompts.

    Raises ConfigError, which lists all that cannot be used.
    """

    prompts: Prompts
    reward: RewardModel
    sft: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    prompt_tokens: int  # of the longest prompt

    def __init__(self, config: WarpConfig) -> None:
        problems: list[str] = []
        prompts: list[str] = []
        read: list[Any] = []  # the prompts, and what both models see of them
        with _noted(problems):
            self.prompts = load_prompts(config)
            prompts = [*self.prompts.train, *self.prompts.evaluation]
            read.append(self.prompts)
        with _noted(problems):
            self.reward = load_reward(config.reward_model, config.positive_label)
            limit = self.reward.max_tokens
            read.append(_tokens(prompts, self.reward.tokenizer, limit, "reward model", config))
        with _noted(problems):
            self.sft, self.tokenizer = load_policy(config.policy)
            limit = getattr(self.sft.config, "max_position_embeddings", None) or NO_LIMIT
            read.append(_tokens(prompts, self.tokenizer, limit, "policy", config))
            self.prompt_tokens = max(map(len, read[-1]), default=0)
        if problems:
            raise ConfigError("\n".join(problems))
        self.identity = {
            "policy_sha256": fingerprint(self.sft),
            "reward_sha256": fingerprint(self.reward.model),
            "prompts_sha256": hashlib.sha256(json.dumps(read).encode()).hexdigest(),
        }

    def policy(self, theta: Mapping[str, Tensor]) -> PreTrainedModel:
        """A model of θ_sft's kind with these weights."""
        model = copy.deepcopy(self.sft)
        set_weights(model, theta)
        return model


@contextmanager
def _noted(problems: list[str]) -> Iterator[None]:
    """Go on after what cannot be used, so that all of it is told at once."""
    try:
        yield
    except (AssetError, ConfigError) as error:
        problems.append(str(error))


def _tokens(
    prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase, limit: int, whose: str,
    config: WarpConfig,
) -> list[list[int]]:  # fmt: skip
    """The prompts' tokens; raises ConfigError where a completion may not fit behind them."""
    if not prompts:  # they could not be loaded, which is told already
        return []
    tokens = tokenizer(list(prompts))["input_ids"]
    longest = max(range(len(prompts)), key=lambda i: len(tokens[i]))
    if len(tokens[longest]) + config.max_new_tokens > limit:
        raise ConfigError(
            f"max_new_tokens: {config.max_new_tokens} given; the longest prompt has "
            f"{len(tokens[longest])} tokens ({prompts[longest][:60]!r} …), and the {whose} reads "
            f"only {limit}; lower max_new_tokens or prompt_words"
        )
    return tokens


def run_warp(config: WarpConfig, run_dir: Path | str | None = None) -> dict[str, Any]:
    """Algorithm 1 and its evaluation; everything goes to the run folder.

    What θ_sft answered goes to `sft/` beside it, for the experiments that share it.

    Returns:
        What summary.json holds: sft_reward, warp_reward, reward_difference, kl_sft_warp,
        kl_warp_sft (each mean, stderr, n; KL in nats per completion), text, angles,
        training_reward (mean over an iteration's batches, one for each), front.

    Raises:
        ConfigError: the parameters, or what they name, cannot be used; nothing was created then.
        TrainingError: something was not finite; says at which iteration, run and step.
        DamagedError: a result or weights are not what was written; says what to delete.
        StorageError, BusyError: there is no room for it; another process is at work on it.
        Interrupted: Ctrl-C or SIGTERM; the same call goes on.
    """
    run_dir = Path(run_dir or config.folder)
    world = World(config)
    about = config.model_dump(), run_dir, world.identity
    check_run(*about)
    if summary := finished(run_dir, RESULTS):
        return summary
    refuse_too_many(world.sft, config, world.prompt_tokens, workers_of(config))
    make_room(run_dir, _needed_on_disk(world, config, run_dir))
    with open_run(*about):
        return finished(run_dir, RESULTS) or _run(world, config, run_dir)


def _run(world: World, config: WarpConfig, run_dir: Path) -> dict[str, Any]:
    """Algorithm 1 and its evaluation, but for what is done."""
    theta_sft = weights_of(world.sft)
    angles: list[dict[str, Any]] = []
    theta_init: Mapping[str, Tensor] = theta_sft  # line 1
    for i in range(1, config.iterations + 1):  # line 2
        _train_runs(config, run_dir, i)  # lines 3 to 11
        folder = run_dir / "weights" / f"iteration_{i}"
        thetas = [load_weights(folder / f"run_{m}") for m in range(1, config.runs + 1)]
        theta_slerp, omega = slerp_with_angles(_cpu(theta_init), thetas)  # line 12
        angles.append(_degrees(omega))
        save_policy(world.sft, world.tokenizer, folder / "slerp", theta_slerp)
        theta_init = liti(_cpu(theta_init), theta_slerp, config.eta)  # line 13
        save_policy(world.sft, world.tokenizer, _liti_folder(config, run_dir, i), theta_init)

    warp = world.policy(theta_init)
    of_sft = sft_completions(world, config, run_dir.parent / "sft")
    of_warp = complete(warp, world.tokenizer, world.reward, world.prompts.evaluation, config,
                       reference=world.sft)  # fmt: skip
    samples = [
        {"prompt": prompt, "sft": sft, "warp": text, "sft_reward": r_sft, "warp_reward": r_warp}
        for prompt, sft, text, r_sft, r_warp in zip(
            world.prompts.evaluation, of_sft.texts, of_warp.texts, of_sft.rewards, of_warp.rewards,
            strict=True,
        )
    ]  # fmt: skip
    seal_jsonl(run_dir / "samples.jsonl", samples)
    summary = evaluate_pair(world.sft, warp, of_sft, of_warp, config)
    summary |= {"angles": angles, "training_reward": _training_reward(config, run_dir), "front": []}
    seal_json(run_dir / "summary.json", summary)
    return summary


def _needed_on_disk(world: World, config: WarpConfig, run_dir: Path) -> int:
    """Bytes of the weights that are not there yet, and of each run's checkpoint: four of them."""
    distinct = len(set(distinct_runs(config, 1).values()))
    there = len(list((run_dir / "weights").rglob("model.safetensors")))
    policies = max(0, config.iterations * (distinct + 2) - there)
    states = 2 if 0 < config.checkpoint_every < config.steps else 1  # the new one beside the old
    return total_bytes(weights_of(world.sft)) * (policies + 4 * states * workers_of(config))


def run_front(
    config: WarpConfig,
    run_dir: Path | str | None = None,
    etas: Sequence[float] = FrontConfig().etas,
) -> dict[str, Any]:
    """The output of Algorithm 1: {(1 − η)·θ_sft + η·θ_slerp^I}, evaluated at each η.

    Adds `front` and, for the last iteration's RL policies, `front_runs` to summary.json, as
    `front_summary` gives them. front.jsonl keeps what each evaluation prompt
    gave; the points that it has are not evaluated again.

    Raises ConfigError where the experiment has not been run, and what `run_warp` raises.
    """
    run_dir = Path(run_dir or config.folder)
    if not (run_dir / "summary.json").is_file():
        raise ConfigError(f"run_dir: {str(run_dir)!r} has no finished experiment; run it first")
    world = World(config)
    with open_run(config.model_dump(), run_dir, world.identity):
        return _sweep_front(world, config, run_dir, etas)


def _sweep_front(
    world: World, config: WarpConfig, run_dir: Path, etas: Sequence[float]
) -> dict[str, Any]:
    summary = sealed_json(run_dir / "summary.json")
    folder = run_dir / "weights" / f"iteration_{config.iterations}"
    theta_sft = _cpu(weights_of(world.sft))
    theta_slerp = load_weights(folder / "slerp")
    of_sft = sft_completions(world, config, run_dir.parent / "sft")
    path = run_dir / "front.jsonl"
    points = sealed_jsonl(path) if path.is_file() else []

    def add(name: dict[str, float], theta: Mapping[str, Tensor]) -> None:
        model = world.policy(theta)
        answers = complete(model, world.tokenizer, world.reward, world.prompts.evaluation, config,
                           reference=world.sft)  # fmt: skip
        keep(name | {"rewards": answers.rewards, "kls": answers.kls})

    def keep(point: dict[str, Any]) -> None:
        points.append(point)
        seal_jsonl(path, points)

    for eta in tqdm(etas, desc="front", mininterval=5):
        if any(point.get("eta") == eta for point in points):
            continue
        if eta == 0:  # θ_sft itself
            zeros = [0.0] * len(of_sft.rewards)
            keep({"eta": eta, "rewards": of_sft.rewards, "kls": zeros})
        else:
            add({"eta": eta}, liti(theta_sft, theta_slerp, eta))
    for m, first in distinct_runs(config, config.iterations).items():
        if any(point.get("run") == m for point in points):
            continue
        if m == first:
            add({"run": m}, load_weights(folder / f"run_{m}"))
        else:  # the same policy bit for bit
            same = next(point for point in points if point.get("run") == first)
            keep(same | {"run": m})
    swept = summary | front_summary(points, of_sft.rewards)
    if swept != summary:
        seal_json(run_dir / "summary.json", swept)
    return swept


def run_seed(config: WarpConfig, iteration: int, run: int) -> int:
    """Seed of run m of iteration i: one for all if shared_run_seed, else one for each."""
    if config.shared_run_seed:
        return config.seed
    entropy = np.random.SeedSequence([config.seed, iteration, run])
    return int(entropy.generate_state(1)[0])


def distinct_runs(config: WarpConfig, iteration: int) -> dict[int, int]:
    """Each run of an iteration -> the first run that has its seed, which is the same run bit for bit.

    With `shared_run_seed` all are run 1: what a run does depends on θ_init and its seed alone.
    """
    first: dict[int, int] = {}
    return {m: first.setdefault(run_seed(config, iteration, m), m)
            for m in range(1, config.runs + 1)}  # fmt: skip


def workers_of(config: WarpConfig) -> int:
    """Runs side by side: what is asked for, else one a core; on CUDA one after the other."""
    distinct = len(set(distinct_runs(config, 1).values()))
    cores = 1 if best_device().type == "cuda" else torch.get_num_threads()
    return min(config.workers or cores, distinct)


def _train_runs(config: WarpConfig, run_dir: Path, iteration: int) -> None:
    """Lines 3 to 11: the iteration's runs that are not there yet, side by side where that helps."""
    runs = distinct_runs(config, iteration)
    distinct = sorted(set(runs.values()))
    missing = [m for m in distinct if not _run_folder(run_dir, iteration, m).is_dir()]
    # A run's share of the cores is the same whether or not others are beside it, and so are its bits.
    threads = max(1, torch.get_num_threads() // config.runs)
    try:
        with _progress(config, run_dir, iteration, distinct):
            errors = run_all(_train_one, [(config, run_dir, iteration, m, threads) for m in missing],
                             workers_of(config))  # fmt: skip
        for m, error in zip(missing, errors, strict=True):
            if isinstance(error, Died):
                step = len(read_jsonl(_log_path(run_dir, iteration, m)))
                raise TrainingError(
                    f"{config.name}, iteration {iteration}, run {m}, behind step {step}: {error} The "
                    "other runs are kept; the same command goes on from there"
                ) from None
            if error:
                raise error
        for m, first in runs.items():
            if m != first and not _run_folder(run_dir, iteration, m).is_dir():
                log = _log_path(run_dir, iteration, m)
                rows = _rows(run_dir, iteration, first)
                write_jsonl(log, [row | {"run": m} for row in rows])
                copy_policy(_run_folder(run_dir, iteration, first),
                            _run_folder(run_dir, iteration, m), log)  # fmt: skip
    except KeyboardInterrupt:
        at = ", ".join(f"run {m} behind step {len(_rows(run_dir, iteration, m))}" for m in distinct)
        raise Interrupted(f"{config.name}, iteration {iteration}: stopped, {at}; all of it is kept, "
                          "and the same command goes on from there") from None  # fmt: skip
    finally:  # what was logged stays, whatever happened
        rows = [
            row
            for i in range(1, iteration + 1)
            for m in range(1, config.runs + 1)
            for row in _rows(run_dir, i, m)
        ]
        seal_jsonl(run_dir / "metrics.jsonl", rows)
    shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)


def _train_one(config: WarpConfig, run_dir: Path, iteration: int, run: int, threads: int) -> None:
    """Run m of iteration i, from θ_init on disk to θ^m on disk."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    log = _log_path(run_dir, iteration, run)
    states = run_dir / "checkpoints" / f"iteration_{iteration}_run_{run}"
    checkpoint = Checkpoint(states, log, config.checkpoint_every)
    try:
        prompts = load_prompts(config)
        reward = load_reward(config.reward_model, config.positive_label)
        start = (
            config.policy if iteration == 1 else str(_liti_folder(config, run_dir, iteration - 1))
        )
        policy, tokenizer = load_policy(start)  # line 4
        anchor = copy.deepcopy(policy) if config.anchor == "ema" else load_policy(config.policy)[0]
        train_run(
            policy, anchor, tokenizer, reward, prompts.train, config,
            seed=run_seed(config, iteration, run),
            on_step=lambda row: append_jsonl(log, {"iteration": iteration, "run": run} | row),
            checkpoint=checkpoint,
        )  # fmt: skip
        save_policy(policy, tokenizer, _run_folder(run_dir, iteration, run), log=log)
    except TrainingError as error:
        kept = f". The state behind step {checkpoint.saved} is kept" if checkpoint.saved else ""
        raise TrainingError(
            f"{config.name}, iteration {iteration}, run {run}, {error}{kept}"
        ) from None
    finally:
        torch.set_num_threads(before)


def _rows(run_dir: Path, iteration: int, run: int) -> list[dict[str, Any]]:
    """The steps of a run, from its folder once it is whole, from its log until then."""
    folder = _run_folder(run_dir, iteration, run)
    if folder.is_dir():
        return sealed_jsonl(folder / STEPS_FILE, folder)
    return read_jsonl(_log_path(run_dir, iteration, run))


def _run_folder(run_dir: Path, iteration: int, run: int) -> Path:
    return run_dir / "weights" / f"iteration_{iteration}" / f"run_{run}"


def _log_path(run_dir: Path, iteration: int, run: int) -> Path:
    return run_dir / "steps" / f"iteration_{iteration}_run_{run}.jsonl"


def _liti_folder(config: WarpConfig, run_dir: Path, iteration: int) -> Path:
    """θ_init after an iteration's LITI step; after the last one it is the WARP policy."""
    weights = run_dir / "weights"
    return (
        weights / "warp"
        if iteration == config.iterations
        else weights / f"iteration_{iteration}/liti"
    )


@contextmanager
def _progress(
    config: WarpConfig, run_dir: Path, iteration: int, runs: Sequence[int]
) -> Iterator[None]:
    """A bar that counts the steps that the runs have logged; the runs are in other processes."""
    logs = [_log_path(run_dir, iteration, m) for m in runs]
    finished = threading.Event()

    def watch() -> None:
        def done() -> int:
            return sum(len(read_jsonl(log)) for log in logs)

        with tqdm(desc=f"{config.name}, i = {iteration}", total=len(runs) * config.steps,
                  initial=done(), mininterval=5) as bar:  # fmt: skip
            while True:
                last = finished.wait(1)
                bar.update(done() - bar.n)
                if last:
                    return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


def sft_completions(world: World, config: WarpConfig, folder: Path) -> Completions:
    """θ_sft's completions and rewards, computed once for all experiments that share them."""
    asked = [config.seed, config.temperature, config.max_new_tokens, config.positive_label,
             world.prompts.evaluation]  # fmt: skip
    key = hashlib.sha256(json.dumps([world.identity, asked]).encode()).hexdigest()[:24]
    path = folder / key
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{key}.lock"):  # another experiment may be making them just now
        if not path.is_dir():
            made = complete(
                world.sft, world.tokenizer, world.reward, world.prompts.evaluation, config
            )
            tensors = {"rewards": torch.tensor(made.rewards, dtype=torch.float64)}
            for i, rollout in enumerate(made.rollouts):
                tensors |= {f"{i}.{name}": tensor.cpu() for name, tensor in vars(rollout).items()}
            with appearing(path, total_bytes(tensors)) as staging:
                save_file(tensors, staging / COMPLETIONS)
            return made
    verify(path, COMPLETIONS)
    tensors = load_file(path / COMPLETIONS, device=str(world.sft.device))
    batches = sum(name.endswith(".tokens") for name in tensors)
    rollouts = [Rollout(*(tensors[f"{i}.{name}"] for name in FIELDS)) for i in range(batches)]
    texts = [text for rollout in rollouts for text in rollout.texts(world.tokenizer)]
    return Completions(rollouts, texts, tensors["rewards"].tolist(), kls=[])


def _training_reward(config: WarpConfig, run_dir: Path) -> list[float]:
    rows = sealed_jsonl(run_dir / "metrics.jsonl")
    iterations = range(1, config.iterations + 1)
    return [
        float(np.mean([row["reward"] for row in rows if row["iteration"] == i])) for i in iterations
    ]


def _cpu(theta: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.cpu() for name, tensor in theta.items()}


def _degrees(angles: Mapping[str, Tensor]) -> dict[str, Any]:
    """Group -> angle of each pair of runs in degrees, for JSON; null where a run did not move."""

    def rounded(angle: float) -> float | None:
        return None if np.isnan(angle) else round(float(np.degrees(angle)), 4)

    return {group: [[rounded(a) for a in row] for row in matrix.tolist()]
            for group, matrix in angles.items()}  # fmt: skip
