"""Long fault tests: `make torture`. Kills, interrupts and damages whole programs, and compares.

Each fault is injected into a program of its own, with processes and notebooks as a person has them;
the same command is then run again, and every number and weight is compared with those of a program
that nothing disturbed. Prints a table: faults injected, survived, bytes lost. Exit status 1 if one
was not survived.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import tiny
from safetensors.torch import load_file

from warp_core.store.files import read_jsonl

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests" / "reports" / "build"))
from project import make_real_project  # noqa: E402

EXPERIMENT = {"iterations": 2, "runs": 2, "steps": 6, "workers": 2, "checkpoint_every": 2}
EXPERIMENT |= {"batch_size": 8, "lr": 1e-2, "prompt_words": 3, "max_new_tokens": 8}
EXPERIMENT |= {"eval_prompts": 16}
RUN = """
import json, sys
from warp_core.config import WarpConfig
from warp_core.warp import run_front, run_warp
config = WarpConfig(**json.loads(sys.argv[1]))
run_warp(config)
run_front(config)
"""
BUILD = """
import sys
from pathlib import Path
from reports.build.__main__ import main
sys.exit(main([], Path(sys.argv[1])))
"""
# The file that an error names, and what it tells to delete.
NAMED = re.compile(
    r"(/\S+): is (?:missing|not what was written)[^;\n]*;.*? delete (it|all of \S+|the folder \S+),"
)
Fault = Callable[[subprocess.Popen[bytes], Path], None]


def start(command: list[str], said: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=said,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "2"},
    )


def finish(command: list[str]) -> None:
    """Run to the end, as a person does who deletes what the program says is damaged."""
    for _ in range(10):  # a list of checksums that was cut spoils several files
        child = start(command, subprocess.PIPE)
        said = child.communicate(timeout=300)[1].decode()
        named = NAMED.search(said)
        if child.returncode == 0 or not named:
            break
        path = Path(named[1] if named[2] == "it" else named[2].split()[-1])
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if child.returncode:
        raise RuntimeError(f"{command[-1][:200]}: {said[-2000:]}")


def kill(child: subprocess.Popen[bytes], _: Path) -> None:
    """The program alone; whom it had started must end by themselves."""
    child.kill()
    child.wait()


def kill_all(child: subprocess.Popen[bytes], _: Path) -> None:
    """As when the machine loses its power."""
    for process in [*psutil.Process(child.pid).children(recursive=True), psutil.Process(child.pid)]:
        process.kill()
    child.wait()


def kill_a_child(child: subprocess.Popen[bytes], _: Path) -> None:
    """One process that it has started, as the kernel does when memory is short; else itself."""
    children = psutil.Process(child.pid).children(recursive=True)
    victims = [
        process for process in children if "resource_tracker" not in " ".join(process.cmdline())
    ]
    random.choice(victims or [psutil.Process(child.pid)]).kill()
    child.wait(120)


def interrupt(number: signal.Signals) -> Fault:
    def send(child: subprocess.Popen[bytes], _: Path) -> None:
        child.send_signal(number)
        child.wait(120)

    return send


def damage(child: subprocess.Popen[bytes], folder: Path) -> None:
    """Killed, and then a file of the run folder or the store is cut, or has one bit changed."""
    kill_all(child, folder)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size]
    if not files:
        return
    path = random.choice(files)
    data = bytearray(path.read_bytes())
    place = random.randrange(len(data))
    if random.random() < 0.5:
        data[place] ^= 1 << random.randrange(8)
        path.write_bytes(data)
    else:
        path.write_bytes(data[:place])
    print(f"damaged: {path.relative_to(folder)}", flush=True)


def content(folder: Path) -> dict[str, bytes]:
    """What run folders must have the same: weights, numbers, texts; not the times of metrics."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name.startswith("store/"):
            continue
        if path.name == "model.safetensors":
            tensors = load_file(path)
            found[name] = b"".join(tensors[key].numpy().tobytes() for key in sorted(tensors))
        elif path.name in ("summary.json", "samples.jsonl", "front.jsonl"):
            found[name] = path.read_bytes()
        elif path.name == "metrics.jsonl":
            rows = [{k: v for k, v in row.items() if k != "seconds"} for row in read_jsonl(path)]
            found[name] = json.dumps(rows).encode()
    return found


def lost(ours: dict[str, bytes], theirs: dict[str, bytes]) -> int:
    """Bytes that are not there, or not the same."""
    count = 0
    for name in ours.keys() | theirs.keys():
        a, b = ours.get(name, b""), theirs.get(name, b"")
        count += sum(x != y for x, y in zip(a, b, strict=False)) + abs(len(a) - len(b))
    return count


@dataclass
class Program:
    """Something that is run, and what it leaves in `below` where nothing disturbs it."""

    name: str
    command: Callable[[Path], list[str]]
    below: str
    folder: Path

    def __post_init__(self) -> None:
        undisturbed = self.folder / self.name
        begin = time.monotonic()
        finish(self.command(undisturbed))
        self.seconds = time.monotonic() - begin
        self.wanted = content(undisturbed / self.below)


def torture(program: Program, name: str, fault: Fault, times: int) -> dict[str, Any]:
    """Inject the fault at so many moments spread over the program, each in a fresh folder."""
    row = {"fault": f"{program.name}: {name}", "injected": 0, "survived": 0, "of": times, "lost": 0}
    for k in range(times):
        begin = time.monotonic()
        fresh = program.folder / f"{program.name}_{k}"
        command = program.command(fresh)
        child = start(command)
        time.sleep(program.seconds * (k + random.random()) / times)
        if child.poll() is None:
            fault(child, fresh / program.below)
            row["injected"] += 1
        try:
            finish(command)
            missing = lost(content(fresh / program.below), program.wanted)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            print(error, file=sys.stderr)
            missing = sum(map(len, program.wanted.values()))
        row["survived"] += missing == 0
        row["lost"] += missing
        shutil.rmtree(fresh)
        seconds = f"{time.monotonic() - begin:.0f} s"
        print(f"{row['fault']}: {k + 1} of {times}, lost {row['lost']}, {seconds}", flush=True)
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--times", type=int, default=10, help="faults of each kind (default 10)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random.seed(options.seed)
    with tempfile.TemporaryDirectory() as temporary:
        world = Path(temporary)
        tokenizer, padded = tiny.make_tokenizer(), tiny.make_tokenizer(pad=True)
        policy = tiny.make_policy("llama", len(tokenizer))
        reward = tiny.make_reward_model(len(tokenizer), ["reward"])
        params = EXPERIMENT | {
            "policy": str(tiny.save(policy, tokenizer, world / "policy")),
            "reward_model": str(tiny.save(reward, padded, world / "reward")),
            "prompts": str(tiny.write_prompts(world / "prompts.txt")),
        }

        def script(folder: Path) -> list[str]:
            config = params | {"run_dir": str(folder / "runs" / "run")}
            return [sys.executable, "-c", RUN, json.dumps(config)]

        def report(folder: Path) -> list[str]:
            if not folder.exists():
                make_real_project(folder, params, one={"name": "one"})
            return [sys.executable, "-c", BUILD, str(folder)]

        experiment = Program("experiment", script, "runs", world)
        build = Program("report", report, "runs", world)
        ctrl_c, terminate = interrupt(signal.SIGINT), interrupt(signal.SIGTERM)
        many, some = options.times, options.times // 2
        rows = [
            torture(experiment, "SIGKILL", kill, many),
            torture(experiment, "power failure", kill_all, many),
            torture(experiment, "a process of its own killed", kill_a_child, some),
            torture(experiment, "Ctrl-C", ctrl_c, some),
            torture(experiment, "SIGTERM", terminate, some),
            torture(experiment, "a damaged file", damage, many),
            torture(build, "SIGKILL", kill, some),
            torture(build, "power failure", kill_all, some),
            torture(build, "Ctrl-C", ctrl_c, some),
        ]
    print(f"\n{'fault':40} {'injected':>9} {'survived':>15} {'bytes lost':>11}")
    for row in rows:
        survived = f"{row['survived']:9} of {row['of']:2}"
        print(f"{row['fault']:40} {row['injected']:9} {survived} {row['lost']:6}")
    return int(any(row["survived"] < row["of"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
