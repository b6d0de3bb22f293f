"""The merge: whole commands from files to files, ours beside mergekit's nuslerp, in turn.

nuslerp with a base model is SLERP of task vectors by tensor, of two models. The cases: a tiny
checkpoint, whose time is the start-up; the policy; a large checkpoint in shards with two runs, and
with four, which mergekit cannot. "copying" reads all and writes one, as any merge must.
"""

import json
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from reports.bench.checkpoints import perturbed, random_llama
from reports.bench.config import BenchConfig
from reports.bench.programs import peers_environment, timed

COPY = """
import shutil, sys
from pathlib import Path
*folders, out = sys.argv[1:]
Path(out).mkdir()
for folder in folders:
    for file in sorted(Path(folder).glob("*.safetensors")):
        target = Path(out, file.name) if folder == folders[-1] else Path("/dev/null")
        with file.open("rb") as source, target.open("wb") as copy:
            shutil.copyfileobj(source, copy, 2**24)
"""


def measure_merge(config: BenchConfig, folder: Path, _: Path) -> dict[str, Any]:
    """By case, "tiny_2" to "large_4": runs, size, rounds, how far the two results are apart."""
    layers = max(1, round(config.stream_gb * 10))  # of 100 MB
    random_llama(folder / "tiny", (64, 1, 1, 1, 64), vocab_size=64)
    random_llama(folder / "large", (2048, layers, 32, 32, 1365), shard="200MB", vocab_size=64)
    cases = {}
    for name, counts in (("tiny", (2,)), ("policy", (2,)), ("large", (2, 4))):
        start = folder / name
        runs = [perturbed(start, folder / f"{name}_{m}", seed=m) for m in range(1, counts[-1] + 1)]
        for count in counts:
            cases[f"{name}_{count}"] = compare(config, start, runs[:count])
        for path in runs:
            shutil.rmtree(path)
    shutil.rmtree(folder / "large")
    return cases


def compare(config: BenchConfig, start: Path, runs: Sequence[Path]) -> dict[str, Any]:
    """Rounds of merging the runs that began at `start`; a first round, not counted, warms up."""
    base, *others = (str(path.resolve()) for path in (start, *runs))  # mergekit wants whole paths
    ours = [sys.executable, "-m", "warp_core.merge", "--granularity", "tensor"]
    commands = {
        "ours": [*ours, base, *others, "--out"],
        "copying": [sys.executable, "-c", COPY, base, *others],
    }
    if config.mergekit_python and len(runs) == 2:
        recipe = start.with_name("nuslerp.yml")
        models = [{"model": path, "parameters": {"weight": 0.5}} for path in others]
        wanted = {"merge_method": "nuslerp", "base_model": base, "models": models}
        recipe.write_text(json.dumps(wanted | {"dtype": "float32"}))  # JSON is YAML
        program = Path(config.mergekit_python).parent / "mergekit-yaml"
        commands["mergekit"] = [str(program), "--quiet", str(recipe)]
    out = {who: start.with_name(f"merged_by_{who}") for who in commands}
    rounds = []
    for number in range(1 + config.rounds):
        row = {}
        for who, command in commands.items():
            environment = peers_environment() if who == "mergekit" else os.environ
            row[who] = timed([*command, str(out[who])], out[who], environment)
        print(f"merge {start.name}, {len(runs)} runs, round {number}: {row}", flush=True)
        rounds.append(row)
    size = sum(file.stat().st_size for file in start.glob("*.safetensors"))
    case = {"runs": len(runs), "gigabytes": size / 1e9, "rounds": rounds[1:]}
    if "mergekit" in out:
        case["difference"] = difference(out["ours"], out["mergekit"])
    for path in out.values():
        shutil.rmtree(path)
    return case


def difference(ours: Path, theirs: Path) -> float:
    """Largest absolute difference between the weights of two folders."""
    from safetensors import safe_open

    with ExitStack() as stack:

        def opened(folder: Path) -> dict[str, Any]:
            files = (stack.enter_context(safe_open(p, "pt")) for p in folder.glob("*.safetensors"))
            return {name: file for file in files for name in file.keys()}  # noqa: SIM118

        a, b = opened(ours), opened(theirs)
        if not b:
            raise RuntimeError(f"{theirs}: mergekit wrote no weights")
        return max(float((a[k].get_tensor(k) - b[k].get_tensor(k)).abs().max()) for k in b)
