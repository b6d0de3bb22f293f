"""The KL to the EMA anchor behind a resume: our checkpoint holds the anchor, TRL's does not."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

from reports.bench.config import BenchConfig
from reports.bench.steps import run_settings, trl

# A μ and an lr at which the anchor's loss can be seen after two steps.
CHANGES = {"mu": 0.5, "lr": 1e-3, "batch_size": 8, "max_new_tokens": 8, "seed": 1}


def measure_resume(config: BenchConfig, folder: Path, prompts: Path) -> dict[str, Any]:
    """KL at each of four steps, nats per completion: run through, and resumed behind the second."""
    results: dict[str, Any] = {"settings": CHANGES, "ours": ours(config, folder, prompts)}
    if config.trl_python:
        with trl(config, "trl_resume.py", folder, prompts, **CHANGES) as process:
            results["trl"] = process.answer()
        shutil.rmtree(folder / f"trl_{CHANGES['seed']}", ignore_errors=True)
    print(f"resume: {results}", flush=True)
    return results


def ours(config: BenchConfig, folder: Path, prompts: Path) -> dict[str, list[float]]:
    from warp_core.config import WarpConfig
    from warp_core.engine.tape import taped
    from warp_core.store.checkpoint import Checkpoint
    from warp_core.train import Run
    from warp_core.world.models import load_policy
    from warp_core.world.reward import load_reward

    training = WarpConfig(**run_settings(config, folder) | CHANGES)
    reward = load_reward(str(training.reward_model), training.positive_label)
    texts = json.loads(prompts.read_text(encoding="utf-8"))

    def started() -> Run:
        policy, tokenizer = load_policy(training.policy)
        anchor = copy.deepcopy(policy)
        return Run(policy, anchor, tokenizer, reward, texts, training, training.seed)

    def kl_of(run: Run, steps: int) -> list[float]:
        with taped(run.policy, training.max_new_tokens):
            return [run.step()["kl_anchor"] for _ in range(steps)]

    straight = kl_of(started(), 4)
    first, second, checkpoint = started(), started(), Checkpoint(folder / "resume", 4, every=0)
    resumed = kl_of(first, 2)
    checkpoint.save(first.state())
    second.restore(checkpoint.restore() or {})
    shutil.rmtree(checkpoint.folder)
    return {"straight": straight, "resumed": resumed + kl_of(second, 2)}
