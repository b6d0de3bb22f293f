"""The parts of Algorithm 1 as tasks: all that decides a result, of a function in folders.py."""

from typing import Any

import numpy as np

from warp_core.config import WarpConfig
from warp_core.engine.memory import Sizes
from warp_core.engine.tracking import tracked_run
from warp_core.evaluate import BATCH, Estimate, estimate
from warp_core.folders import JUDGED, evaluate, judge, merge, read_completions, rl_run
from warp_core.store.files import sealed_json, sealed_jsonl
from warp_core.store.results import Store, Task
from warp_core.world.inputs import Inputs, StoredInputs
from warp_core.world.texts import text_statistics


class Parts:
    """Of an experiment's parameters and of what it is given."""

    def __init__(self, config: WarpConfig, given: StoredInputs) -> None:
        self.config, self.given, self.theta_sft = config, given, given.theta_sft
        rank = config.lora_rank * config.runs * config.iterations  # of the last adapter
        self.size = 4 * rank * given.adapter if rank else self.theta_sft.size

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
        arguments |= {"body": c.policy} if c.lora_rank else {}  # which the adapter names
        hints = {"checkpoint_every": c.checkpoint_every, "gpus": c.gpus}
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
        inputs |= {"of_sft": self.of_sft} if both_ways else {}
        arguments = {"max_new_tokens": c.max_new_tokens, "temperature": c.temperature}
        arguments |= {"scored": given.scored, "seed": c.eval_seed}
        hints, label = {"gpus": c.gpus}, f"{c.name}, {label} evaluated"
        cost = 1 + c.eval_prompts // (2 * c.batch_size)
        return Task("evaluation", evaluate, arguments, inputs, hints, label, cost=cost)

    @property
    def of_sft(self) -> Task:
        """θ_sft's evaluation, beside which others stand."""
        return self.evaluation(self.theta_sft, "SFT")

    def judged(self, evaluation: Task) -> Task:
        """What the judge says of a policy's completions."""
        given, label = self.given, f"{evaluation.label}, judged"
        inputs = {"evaluation": evaluation, "prompts": given.held_out, "judges": given.judges}
        return Task("judged", judge, {"scored": given.of_judge}, inputs, label=label)

    def measured(self, store: Store, evaluation: Task) -> dict[str, Estimate]:
        """An evaluated policy's reward, KL to θ_sft and, where there is a judge, what it says."""
        answers = read_completions(store.path(evaluation))
        values = {"reward": estimate(answers.rewards), "kl": estimate(answers.kls)}
        if self.config.judge:
            values["judge"] = estimate(self.scores_of_judge(store, evaluation))
        return values

    def described(self, store: Store, evaluation: Task) -> dict[str, Any]:
        """Of an evaluated policy's completions: their looks, θ_sft's reward beside them, what made them."""
        folder = store.path(evaluation)
        texts = text_statistics(read_completions(folder).texts)
        rewards = read_completions(store.path(self.of_sft)).rewards
        found = {"length": texts["words"], "sft_reward": estimate(rewards)["mean"]}
        found |= {key: texts[key] for key in ("repetition", "distinct_pairs")}
        origin = sealed_json(folder / "origin.json", folder)
        found |= {key: origin[key] for key in ("commit", "code", "device")}
        reward_model = self.given.identity["reward_sha256"][:16]
        return found | {"precision": self.config.precision, "reward_model": reward_model}

    def scores_of_judge(self, store: Store, evaluation: Task) -> list[float]:
        """What the judge says of each completion."""
        folder = store.path(self.judged(evaluation))
        return [row["judge"] for row in sealed_jsonl(folder / JUDGED, folder)]


def stored_inputs(config: WarpConfig) -> StoredInputs:
    """θ_sft, r and X, loaded, checked and named; experiments that have them in common share it."""
    return StoredInputs(Inputs(*config.inputs))


def run_seed(config: WarpConfig, iteration: int, run: int) -> int:
    """Seed of run m of iteration i: one for all if shared_run_seed, else one for each."""
    if config.shared_run_seed:
        return config.seed
    entropy = np.random.SeedSequence([config.seed, iteration, run])
    return int(entropy.generate_state(1)[0])
