"""Our step and our merge beside TRL's and mergekit's, in turn in one session, and beside the floor.

`notebooks/performance.ipynb` calls `run_bench` with `measure: true` (`make bench`) and shows what
it wrote; every measurement is kept in the results file as soon as it is made.

1. steps: each round is a step of TRL, a pair of ours side by side, one of ours alone; the machine's
   peak is measured in the same rounds, and the operations are counted by torch;
2. merge: SLERP of two checkpoints by our command, by mergekit, and the reading and writing alone;
3. stream: the same for a large sharded checkpoint, with the peak memory;
4. growth: seconds a step against batch, new tokens, model size, and runs side by side.
"""

import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from warp_core.config import ConfigError, Folder, Integer, LearningRate, Parameters, Text
from warp_core.files import SUMS, read_json, write_json

HERE = Path(__file__).resolve().parent
NEVER = "<jupyter_script>"  # the end token of the benchmark's policy: a word that is never drawn
FIXED = {"beta": 0.1, "mu": 0.01}
Count = Annotated[Integer, Field(ge=1, le=100_000)]


class BenchConfig(Parameters):
    """What is measured and with what; defaults are the figures of the report."""

    results: Text = "reports/performance.json"
    """Where the measurements are kept, and what the notebook shows."""
    measure: bool = False
    """False: show the results that are there. True: measure anew first (half an hour on two cores)."""
    policy: Text = "asset:smollm2-135m-instruct"
    """θ_sft, as in an experiment."""
    reward_model: Text = "runs/reward_model/model"
    """r: a reward model with one label."""
    batch_size: Count = 16
    prompt_tokens: Count = 16
    max_new_tokens: Count = 24
    lr: LearningRate = 1e-5
    rounds: Count = 5
    """Measured rounds of the steps and of the merge, behind `warmup_rounds`."""
    warmup_rounds: Count = 2
    stream_gb: Annotated[float, Field(gt=0, le=100)] = 2.0
    """Size of the large checkpoint that is merged by streaming, GB; four of them and θ_init."""
    trl_python: Folder = ".venv-trl/bin/python"
    """Python of an environment with trl; empty: do without the comparison."""
    mergekit_python: Folder = ".venv-mergekit/bin/python"
    """Python of an environment with mergekit; empty: do without."""
    folder: Folder = "runs/bench"
    """Where models for the measurements are made."""


@dataclass
class Process:
    """A program that answers each line with a line."""

    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    def __enter__(self) -> "Process":
        self.child = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env=self.environment,
        )  # fmt: skip
        return self

    def __exit__(self, *_: Any) -> None:
        self.child.kill()
        self.child.communicate()

    def ask(self, **question: Any) -> None:
        assert self.child.stdin
        self.child.stdin.write(json.dumps(question) + "\n")
        self.child.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """Raises RuntimeError with the program's last words where it has ended."""
        assert self.child.stdout
        line = self.child.stdout.readline()
        if not line:
            said = self.child.communicate()[1].strip()[-2000:]
            raise RuntimeError(f"{self.command[-2]} ended with {self.child.returncode}: {said}")
        return json.loads(line)


def run_bench(config: BenchConfig) -> dict[str, Any]:
    """The results, measured first if `measure` says so.

    Raises ConfigError where there are no results to show, or a peer's environment is missing.
    """
    path = Path(config.results)
    if not config.measure:
        if not path.is_file():
            raise ConfigError(f"results: {config.results!r} given; there is no such file. "
                              "measure: true makes it, as `make bench` does")  # fmt: skip
        return read_json(path)
    for key in ("trl_python", "mergekit_python"):
        python = getattr(config, key)
        if python and not Path(python).is_file():
            raise ConfigError(f"{key}: {python!r} given; there is no such file; `make bench` makes "
                              "it, and '' does without")  # fmt: skip
    if config.reward_model.startswith("runs/") and not Path(config.reward_model).is_dir():
        raise ConfigError(f"reward_model: {config.reward_model!r} given; there is no such folder; "
                          "`make report` trains it")  # fmt: skip
    results: dict[str, Any] = {"machine": machine(), "parameters": config.model_dump()}
    folder = Path(config.folder)
    prompts = prepare(config, folder)
    for name, part in (("steps", measure_steps), ("merge", measure_merge),
                       ("stream", measure_stream), ("growth", measure_growth)):  # fmt: skip
        start = time.monotonic()
        results[name] = part(config, folder, prompts)
        print(f"{name}: measured in {time.monotonic() - start:.0f} s", flush=True)
        write_json(path, results)
    return results


def machine() -> dict[str, Any]:
    """What the measurements were made on."""
    import torch

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    vector = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"processor": (names or [platform.processor()])[0], "vector": vector, "gpu": gpu,
            "threads": torch.get_num_threads(), "torch": torch.__version__,
            "python": platform.python_version(), "date": time.strftime("%Y-%m-%d")}  # fmt: skip


def prepare(config: BenchConfig, folder: Path) -> Path:
    """The policy with an end token that is never drawn, and prompts of just so many tokens."""
    from warp_core.models import load_policy, save_policy
    from warp_core.prompts import rated_texts

    model, tokenizer = load_policy(config.policy)
    prompts = []
    for text, _ in rated_texts()[0]:
        ids = tokenizer(text)["input_ids"][: config.prompt_tokens]
        prompt = tokenizer.decode(ids)
        if len(tokenizer(prompt)["input_ids"]) == config.prompt_tokens == len(ids):
            prompts.append(prompt)
    if NEVER not in tokenizer.get_vocab():
        raise ConfigError(f"policy: {config.policy!r} given; the benchmark wants a tokenizer with "
                          f"{NEVER!r}, as SmolLM2's")  # fmt: skip
    tokenizer.eos_token = NEVER
    model.config.eos_token_id = model.config.pad_token_id = tokenizer.eos_token_id
    save_policy(model, tokenizer, folder / "policy")
    (folder / "policy" / SUMS).unlink()  # a peer's checkpoint has none, and none is compared
    path = folder / "prompts.json"
    path.write_text(json.dumps(prompts[:1024]), encoding="utf-8")
    return path


# Steps


def worker(config: BenchConfig, folder: Path, prompts: Path, seed: int = 0,
           **changes: Any) -> Process:  # fmt: skip
    """One of our runs; it waits for `do: step`."""
    settings = {
        "policy": str(folder / "policy"), "reward_model": config.reward_model, "steps": 10_000,
        "batch_size": config.batch_size, "max_new_tokens": config.max_new_tokens, "seed": seed,
    }  # fmt: skip
    settings |= FIXED | {"lr": config.lr} | changes
    return Process([sys.executable, "-m", "reports.bench_worker",
                    json.dumps({"config": settings, "prompts": str(prompts)})])  # fmt: skip


def trl(config: BenchConfig, folder: Path, prompts: Path, threads: int, precision: str) -> Process:
    """TRL's trainer; it waits for a line."""
    settings = FIXED | {
        "policy": str(folder / "policy"), "reward_model": config.reward_model, "lr": config.lr,
        "batch_size": config.batch_size, "max_new_tokens": config.max_new_tokens,
        "precision": precision,
    }  # fmt: skip
    asked = {"config": settings, "prompts": str(prompts), "threads": threads,
             "folder": str(folder / "trl")}  # fmt: skip
    command = [config.trl_python, str(HERE / "bench_trl.py"), json.dumps(asked)]
    return Process(command, peers_environment())


def peers_environment() -> dict[str, str]:
    """Without what our package sets for itself: a peer is measured as it is by default."""
    ours = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_",
            "OPENBLAS_NUM_THREADS", "MKL_CBWR")  # fmt: skip
    return {key: value for key, value in os.environ.items() if key not in ours}


def measure_steps(config: BenchConfig, folder: Path, prompts: Path) -> dict[str, Any]:
    """Rounds of a step of each, and the operations of a step of ours by part."""
    import torch

    cores = torch.get_num_threads()
    half = max(1, cores // 2)
    rounds: list[dict[str, Any]] = []
    with (
        worker(config, folder, prompts, seed=1) as one,
        worker(config, folder, prompts, seed=2) as two,
    ):
        ours = (one, two)
        peer = trl(config, folder, prompts, cores, "fp32") if config.trl_python else None
        for process in ours:
            process.answer()
        operations: dict[str, int] = {}
        if peer:
            peer.__enter__().answer()
        try:
            for number in range(config.warmup_rounds + config.rounds):
                row: dict[str, Any] = {"peaks": _peaks(ours, cores, half)}
                if peer:
                    peer.ask()
                    row["trl"] = peer.answer()
                row["pair"] = _together(ours, half)
                row["alone"] = _together(ours[:1], cores)[0]
                for answer in (*row["pair"], row["alone"]):
                    operations |= answer.pop("operations", {})
                print(f"round {number}: {_brief(row)}", flush=True)
                if number >= config.warmup_rounds:
                    rounds.append(row)
        finally:
            if peer:
                peer.__exit__()
    return {"threads": {"pair": half, "alone": cores}, "operations": operations,
            "rounds": rounds}  # fmt: skip


def _together(processes: Sequence[Process], threads: int) -> list[dict[str, Any]]:
    for process in processes:
        process.ask(do="step", threads=threads)
    return [process.answer() for process in processes]


def _peaks(ours: Sequence[Process], cores: int, half: int) -> dict[str, float]:
    """GFLOP/s: of one process with all cores, of one of two side by side, and of bf16."""

    def asked(processes: Sequence[Process], **how: Any) -> float:
        for process in processes:
            process.ask(do="peak", **how)
        answers = [process.answer()["gflops"] for process in processes]
        return sum(answers) / len(answers)

    return {"alone": asked(ours[:1], threads=cores), "pair": asked(ours, threads=half),
            "bf16": asked(ours[:1], threads=cores, dtype="bfloat16")}  # fmt: skip


def _brief(row: Mapping[str, Any]) -> dict[str, float]:
    pair = max(answer["seconds"] for answer in row["pair"])
    seconds = {"pair": pair, "alone": row["alone"]["seconds"]}
    seconds |= {"trl": row["trl"]["seconds"]} if "trl" in row else {}
    return {name: round(value, 2) for name, value in seconds.items()}


# Merge


def measure_merge(config: BenchConfig, folder: Path, _: Path) -> dict[str, Any]:
    """Whole processes, from files to files, in turn; and how far the results are apart."""
    start = folder / "policy"
    runs = [perturbed(start, folder / f"run_{m}", seed=m) for m in (1, 2)]
    out, peers = folder / "merged", folder / "merged_by_mergekit"
    ours = [sys.executable, "-m", "warp_core.merge_files", str(start), *map(str, runs), "--out",
            str(out), "--granularity", "tensor"]  # fmt: skip
    recipe = folder / "nuslerp.yml"
    recipe.write_text(json.dumps({  # JSON is YAML
        "merge_method": "nuslerp", "base_model": str(start.resolve()), "dtype": "float32",
        "models": [{"model": str(run.resolve()), "parameters": {"weight": 0.5}} for run in runs],
    }))  # fmt: skip
    theirs = [str(Path(config.mergekit_python).parent / "mergekit-yaml"), str(recipe), str(peers),
              "--quiet"]  # fmt: skip
    copying = [sys.executable, "-c", COPY, str(folder / "copied"), str(start), *map(str, runs)]
    rounds = []
    for number in range(1 + config.rounds):
        row = {"ours": timed(ours, out), "copying": timed(copying, folder / "copied")}
        if config.mergekit_python:
            row["mergekit"] = timed(theirs, peers, peers_environment())
        print(f"merge {number}: {row}", flush=True)
        rounds += [row] if number else []
    return {
        "rounds": rounds,
        "difference": difference(out, peers) if config.mergekit_python else None,
    }


def measure_stream(config: BenchConfig, folder: Path, _: Path) -> dict[str, Any]:
    """Four runs of a large sharded checkpoint: seconds and peak memory."""
    large = folder / "large"
    sizes = make_large(large / "init", config.stream_gb, seed=0)
    runs = [large / f"run_{m}" for m in range(1, 5)]
    for m, run in enumerate(runs, start=1):
        make_large(run, config.stream_gb, seed=m)
    ours = [sys.executable, "-m", "warp_core.merge_files", str(large / "init"), *map(str, runs),
            "--out", str(large / "merged")]  # fmt: skip
    copying = [sys.executable, "-c", COPY, str(large / "copied"), str(large / "init"),
               *map(str, runs)]  # fmt: skip
    rounds = []
    for _round in range(3):
        row = {"ours": timed(ours, large / "merged"), "copying": timed(copying, large / "copied")}
        print(f"stream: {row}", flush=True)
        rounds.append(row)
    shutil.rmtree(large)
    return {"rounds": rounds, "runs": len(runs)} | sizes


# Reads every checkpoint and writes one of the last one's size: what no merge can do without.
COPY = """
import shutil, sys
from pathlib import Path
out, *folders = map(Path, sys.argv[1:])
out.mkdir()
for folder in folders:
    for file in sorted(folder.glob("*.safetensors")):
        target = out / file.name if folder == folders[-1] else Path("/dev/null")
        with file.open("rb") as source, target.open("wb") as copy:
            shutil.copyfileobj(source, copy, 2**24)
"""


# A small process in between: a child's peak memory begins with that of the one that forks it.
LAUNCH = """
import json, os, subprocess, sys, time
start = time.perf_counter()
child = subprocess.Popen(sys.argv[1:], stdout=sys.stderr)
_, status, usage = os.wait4(child.pid, 0)
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "memory_mb": usage.ru_maxrss / 1024}))
sys.exit(os.waitstatus_to_exitcode(status))
"""


def timed(
    command: Sequence[str], out: Path, environment: Mapping[str, str] = os.environ
) -> dict[str, float]:
    """Wall seconds and peak memory (MB) of a whole process that makes the folder `out`."""
    shutil.rmtree(out, ignore_errors=True)
    done = subprocess.run([sys.executable, "-c", LAUNCH, *command], capture_output=True, text=True,
                          env=environment)  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout)


def perturbed(source: Path, folder: Path, seed: int) -> Path:
    """A checkpoint a little away from another: noise of 0.001 on every weight."""
    import torch
    from safetensors.torch import load_file, save_file

    generator = torch.Generator().manual_seed(seed)
    weights = {name: tensor + 1e-3 * torch.randn(tensor.shape, generator=generator)
               for name, tensor in load_file(source / "model.safetensors").items()}  # fmt: skip
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def difference(ours: Path, theirs: Path) -> float:
    """Largest absolute difference between the weights of two folders."""
    from safetensors import safe_open

    worst, seen = 0.0, 0
    for file in theirs.glob("*.safetensors"):
        with safe_open(file, "pt") as b, safe_open(ours / "model.safetensors", "pt") as a:
            for name in b.keys():  # noqa: SIM118 (no mapping)
                worst = max(worst, float((a.get_tensor(name) - b.get_tensor(name)).abs().max()))
                seen += 1
    if not seen:
        raise RuntimeError(f"{theirs}: mergekit wrote no weights")
    return worst


def make_large(folder: Path, gigabytes: float, seed: int) -> dict[str, Any]:
    """A sharded checkpoint of random float32 weights, in layers of 100 MB, two to a shard."""
    import torch
    from safetensors.torch import save_file

    side = 2500
    layers = max(1, round(gigabytes * 1e9 / (4 * 4 * side**2)))
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    where = {}
    for shard, first in enumerate(range(0, layers, 2)):
        name = f"model-{shard + 1:05d}.safetensors"
        tensors = {
            f"model.layers.{layer}.{part}.weight": torch.randn(side, side, generator=generator)
            for layer in range(first, min(first + 2, layers)) for part in ("q", "k", "v", "o")
        }  # fmt: skip
        save_file(tensors, folder / name, metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, name)
    index = {"metadata": {"total_size": layers * 16 * side**2}, "weight_map": where}
    write_json(folder / "model.safetensors.index.json", index)
    return {"gigabytes": layers * 16 * side**2 / 1e9, "group_mb": 16 * side**2 / 1e6}


# Growth

SIZES = {  # hidden, layers, heads, key-value heads, feed-forward: of the Llama family
    "30M": (320, 10, 5, 5, 864), "360M": (960, 32, 15, 5, 2560),
}  # fmt: skip


def measure_growth(config: BenchConfig, folder: Path, prompts: Path) -> list[dict[str, Any]]:
    """Seconds of three steps of one run with all cores, changing one thing at a time.

    The benchmark's own setting is measured once and stands in every curve.
    """
    import torch

    cores = torch.get_num_threads()

    def steps(threads: int = cores, workers: int = 1, **changes: Any) -> list[float]:
        with ExitStack() as stack:
            processes = [stack.enter_context(worker(config, folder, prompts, seed=s, **changes))
                         for s in range(workers)]  # fmt: skip
            for process in processes:
                process.answer()
            rounds = [_together(processes, threads) for _ in range(4)][1:]
        took = [max(answer["seconds"] for answer in one) for one in rounds]
        print(f"growth: {workers} x {threads} {changes}: {took}", flush=True)
        return took

    usual = steps()
    rows = []
    for what, middle, others in (("batch_size", config.batch_size, (4, 8, 32)),
                                 ("max_new_tokens", config.max_new_tokens, (12, 48))):  # fmt: skip
        of = {value: steps(**{what: value}) for value in others} | {middle: usual}
        rows += [{"what": what, "value": value, "seconds": of[value]} for value in sorted(of)]
    paths = {name: random_policy(folder, name, shape) for name, shape in SIZES.items()}
    sizes = {parameters_of(path): steps(policy=str(path)) for path in paths.values()}
    sizes[parameters_of(folder / "policy")] = usual
    rows += [{"what": "parameters", "value": millions, "seconds": sizes[millions]}
             for millions in sorted(sizes)]  # fmt: skip
    half = max(1, cores // 2)
    beside = {(1, half): steps(threads=half), (1, cores): usual,
              (2, half): steps(threads=half, workers=2)}  # fmt: skip
    rows += [{"what": "side_by_side", "value": workers, "threads": threads, "seconds": took}
             for (workers, threads), took in beside.items()]  # fmt: skip
    return rows


def parameters_of(folder: Path) -> int:
    """Parameters of a checkpoint, millions."""
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    return round(sum(math.prod(shape) for shape in shapes) / 1e6)


def random_policy(folder: Path, name: str, shape: tuple[int, int, int, int, int]) -> Path:
    """A policy of another size with the benchmark's tokenizer; its weights are drawn."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    from warp_core.models import save_policy

    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    hidden, layers, heads, groups, inner = shape
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=hidden, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=groups, intermediate_size=inner,
        tie_word_embeddings=True, eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    ), dtype=torch.float32)  # fmt: skip
    save_policy(model, tokenizer, folder / name)
    return folder / name
