"""A step of training, ours beside TRL's: like beside like, in turn in one session.

Each round is a step of two of our processes side by side, each with half the cores, and of two of
TRL's with the same threads; then of one of each with all cores. The machine's peak is measured in
the same rounds. Float32 first, then bf16 where the processor multiplies it faster. All four live as
long as their precision is measured: one that waits costs memory alone (4.5 GB at 135M).
"""

import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from reports.bench.config import BenchConfig
from reports.bench.programs import Process, peers_environment

HERE = Path(__file__).resolve().parent
MODES = {"pair": 2, "alone": 1}  # processes side by side


def worker(
    config: BenchConfig, folder: Path, prompts: Path, seed: int = 0, **changes: Any
) -> Process:
    """One of our runs; it waits for `do: step`."""
    settings = run_settings(config, folder) | {"seed": seed, "steps": 10_000} | changes
    asked = {"config": settings, "prompts": str(prompts)}
    return Process([sys.executable, "-m", "reports.bench.worker", json.dumps(asked)])


def trl(
    config: BenchConfig, script: str, folder: Path, prompts: Path, seed: int = 0, **changes: Any
) -> Process:
    """One of the scripts that run TRL's trainer."""
    settings = {"precision": "fp32", "seed": seed} | run_settings(config, folder) | changes
    out = str(folder / f"trl_{seed}")
    asked = {"config": settings, "prompts": str(prompts), "folder": out}
    return Process([config.trl_python, str(HERE / script), json.dumps(asked)], peers_environment())


def run_settings(config: BenchConfig, folder: Path) -> dict[str, Any]:
    """What a run of ours and a run of TRL's have in common."""
    settings = config.model_dump(include={"reward_model", "batch_size", "max_new_tokens", "lr"})
    return settings | {"policy": str(folder / "policy"), "beta": 0.1, "mu": 0.01}


def measure_steps(config: BenchConfig, folder: Path, prompts: Path) -> dict[str, Any]:
    """Rounds by precision, the peaks that decided which, and the operations of a step by part."""
    import torch

    cores = torch.get_num_threads()
    threads = {"pair": max(1, cores // 2), "alone": cores}
    with worker(config, folder, prompts) as one:
        one.answer()
        peaks = {precision: _peak([one], cores, precision) for precision in ("fp32", "bf16")}
    rounds = {}
    for precision in peaks if peaks["bf16"] > peaks["fp32"] else ("fp32",):
        rounds[precision] = _rounds(config, folder, prompts, threads, precision)
    answers = [answer for row in rounds["fp32"] for answer in row["ours"]["pair"]]
    operations = answers[0]["operations"]  # the first step's
    rounds = {precision: rows[config.warmup_rounds :] for precision, rows in rounds.items()}
    return {"threads": threads, "peaks": peaks, "operations": operations, "rounds": rounds}


def _rounds(
    config: BenchConfig, folder: Path, prompts: Path, threads: dict[str, int], precision: str
) -> list[dict[str, Any]]:
    """What each answered, by who and mode, and one process's peak by mode, GFLOP/s."""
    changes: list[dict[str, Any]] = [{"seed": seed, "precision": precision} for seed in (1, 2)]
    programs = {"ours": [worker(config, folder, prompts, **each) for each in changes]}
    if config.trl_python:
        script = "trl_step.py"
        programs["trl"] = [trl(config, script, folder, prompts, **each) for each in changes]
    rows = []
    with ExitStack() as stack:
        started = [stack.enter_context(each) for both in programs.values() for each in both]
        for process in started:
            process.answer()
        for number in range(config.warmup_rounds + config.rounds):
            row: dict[str, Any] = {"peaks": {}} | {who: {} for who in programs}
            for mode, count in MODES.items():
                row["peaks"][mode] = _peak(programs["ours"][:count], threads[mode], precision)
                for who, both in programs.items():
                    answers = together(both[:count], do="step", threads=threads[mode])
                    row[who][mode] = answers
                    took = max(answer["seconds"] for answer in answers)
                    print(f"{precision}, {number}: {who} {mode} {took:.2f} s", flush=True)
            rows.append(row)
    return rows


def _peak(ours: Sequence[Process], threads: int, precision: str) -> float:
    answers = together(ours, do="peak", threads=threads, precision=precision)
    return sum(answer["gflops"] for answer in answers) / len(answers)


def together(processes: Sequence[Process], **question: Any) -> list[dict[str, Any]]:
    """What each answers; all are asked before the first answer is waited for."""
    for process in processes:
        process.ask(**question)
    return [process.answer() for process in processes]
