"""A cluster of a head and two machines of one CPU each: the same bits, deaths, bad input.

One cluster serves all tests; a machine that a test kills is replaced. Skipped where Ray has no wheel.
"""

import ast
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file
from test_local import calls, interrupt, make_task, text_of, unfinished

from warp_core.config import WarpConfig
from warp_core.engine.choice import engine_of
from warp_core.engine.needs import Needs
from warp_core.engine.tables import Entry, Table, complete, forecast
from warp_core.store.errors import ConfigError, DiedError, Interrupted, TrainingError
from warp_core.store.files import read_jsonl, sealed_json
from warp_core.store.machine import PACKAGES, code_of_the_method
from warp_core.store.results import Store
from warp_core.warp import Experiment, run_warp

# Ray reads it once, when it is imported.
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}
ray = pytest.importorskip("ray", reason="Ray has no wheel for this Python or system")
from ray.cluster_utils import Cluster  # noqa: E402

from warp_core.engine.ray_cluster import (  # noqa: E402
    Machine,
    RayEngine,
    _seen,
    connected,
    environment,
    side_by_side,
)

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"object_store_memory": 80 * 2**20, "memory": 4 * 10**9}
# So that a dead machine is noticed within two seconds.
CHECKS = {
    "period_ms": "300",
    "timeout_ms": "500",
    "failure_threshold": "3",
    "initial_delay_ms": "0",
}
RUN = """
import json, sys
from warp_core.config import WarpConfig
from warp_core.warp import run_warp
run_warp(WarpConfig(**json.loads(sys.argv[1])))
"""


class Machines:
    """Those of the cluster that compute."""

    def __init__(self) -> None:
        self.cluster = Cluster(
            True, head_node_args={"num_cpus": 0, "include_dashboard": False} | SMALL
        )
        self.nodes = [self.cluster.add_node(num_cpus=1, **SMALL) for _ in range(2)]

    def kill(self, node) -> None:
        """Its power fails; another one comes."""
        self.nodes.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)
        self.nodes.append(self.cluster.add_node(num_cpus=1, **SMALL))

    def computing(self, label: str):
        """The machine on which a task runs, once one does."""

        def found():
            for node in self.nodes:
                (raylet,) = node.all_processes["raylet"]
                with suppress(psutil.Error):  # its machine has just been killed
                    if at_work(label, psutil.Process(raylet.process.pid).children(recursive=True)):
                        return node

        return wait_for(found)


def at_work(label: str, processes: Iterable[psutil.Process]) -> bool:
    """Whether one of them computes such a task."""

    def title(process: psutil.Process) -> str:
        with suppress(psutil.Error):  # one that ends while it is asked
            return " ".join(process.cmdline())
        return ""

    return any(label in title(process) for process in processes)


def wait_for(what: Callable, seconds: float = 60):
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)
    return found


@pytest.fixture(scope="module")
def machines():
    with pytest.MonkeyPatch.context() as patch:
        for check, value in CHECKS.items():
            patch.setenv(f"RAY_health_check_{check}", value)
        for name in ("memory_monitor_refresh_ms", "worker_niceness"):  # whatever else runs here
            patch.setenv(f"RAY_{name}", "0")
        tests = Path(__file__).parent
        patch.setenv(
            "PYTHONPATH", os.pathsep.join(map(str, (tests.parents[1], tests.parent, tests)))
        )
        machines = Machines()
        patch.setenv("RAY_ADDRESS", machines.cluster.address)
        yield machines
        ray.shutdown()
        machines.cluster.shutdown()


@pytest.fixture(scope="module")
def connection(machines):
    """One for the tests from here on: each would begin its machines' processes anew."""
    with connected():
        yield


@pytest.fixture
def journal(tmp_path) -> Path:
    return tmp_path / "journal.jsonl"


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store")


def bits(folder: Path) -> dict[str, object]:
    """What must be the same: numbers, texts, weights."""
    rows = [
        {k: v for k, v in row.items() if k != "seconds"}
        for row in read_jsonl(folder / "metrics.jsonl")
    ]
    found: dict[str, object] = {"metrics": rows, "summary": sealed_json(folder / "summary.json")}
    for path in sorted((folder / "weights").rglob("model.safetensors")):
        tensors = load_file(path)
        found[str(path.relative_to(folder))] = [
            tensors[name].numpy().tobytes() for name in sorted(tensors)
        ]
    return found


@pytest.fixture(scope="module")
def params(make_tiny_params):
    return make_tiny_params(iterations=1, steps=40, checkpoint_every=10, workers=2, judge="vader")


# Room


def test_threads_are_the_most_with_which_all_have_room():
    def machine(cpus, gpus=0, memory=64):
        return Machine("", "host", cpus, gpus, memory)

    for machines, asked, useful, each, gpus, found in (
        ([machine(1), machine(1)], 0, 2, 0, 0, (2, 1)),
        ([machine(16), machine(16)], 0, 2, 0, 0, (2, 16)),
        ([machine(16), machine(16)], 0, 8, 0, 0, (8, 4)),
        ([machine(16), machine(8)], 3, 0, 0, 0, (3, 8)),
        ([machine(16), machine(16)], 0, 0, 16, 0, (8, 4)),
        ([machine(32, 8), machine(32, 8)], 0, 8, 0, 1, (8, 8)),
        ([machine(32, 8), machine(64)], 0, 0, 0, 1, (8, 4)),
        ([machine(32, 8), machine(32, 3)], 0, 0, 0, 2, (5, 8)),
        ([machine(3)], 0, 9, 0, 0, (3, 1)),
    ):
        assert side_by_side(machines, asked, useful, each, gpus) == found
    for machines, asked, each, gpus, said in (
        (
            [machine(2)],
            3,
            0,
            0,
            "workers: 3 given; each wants a CPU, and the cluster has room for 2",
        ),
        (
            [machine(8, 2)],
            4,
            0,
            1,
            "workers: 4 given; each wants a CPU and a GPU, and .* room for 2",
        ),
        ([machine(8, 2)], 0, 0, 4, "a run wants a CPU and 4 GPUs, and no machine"),
        ([machine(2, memory=10**9)], 0, 5 * 10**9, 0, "a run wants a CPU and about 5.0 GB, and no"),
        ([], 0, 0, 0, "no machine of the cluster has that"),
    ):
        with pytest.raises(ConfigError, match=said):
            side_by_side(machines, asked, 0, each, gpus)


def test_environment_of_a_task(monkeypatch):
    monkeypatch.setenv("MKL_CBWR", "AUTO,STRICT")
    monkeypatch.setenv("HF_TOKEN", "secret")
    found = environment(3)
    assert (found["MKL_CBWR"], found["OMP_NUM_THREADS"]) == ("AUTO,STRICT", "3")
    assert "HF_TOKEN" not in found


# Bad input: one sentence each, and nothing created


def refused(params, tmp_path, said, **changes):
    with pytest.raises(ConfigError, match=said) as caught:
        run_warp(
            WarpConfig(**params | {"engine": "ray", "run_dir": str(tmp_path / "run")} | changes)
        )
    assert "\n" not in str(caught.value)
    assert not [*tmp_path.iterdir()]


def imported_at_once(module: ast.Module) -> set[str]:
    """The packages that are imported as soon as the module is; not those of a function that is called."""
    found, within = set(), [*module.body]
    for node in within:
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {str(node.module).partition(".")[0], str(node.module)}
        elif not isinstance(node, ast.FunctionDef):
            within += ast.iter_child_nodes(node)
    return found


def test_ray_is_imported_only_when_it_is_asked_for():
    modules = {path.stem: ast.parse(path.read_text()) for path in ROOT.glob("warp_core/**/*.py")}
    at_once = {name: imported_at_once(module) for name, module in modules.items()}
    assert [name for name, found in at_once.items() if "ray" in found] == ["ray_cluster"]
    assert not [n for n, found in at_once.items() if "warp_core.engine.ray_cluster" in found]
    assert type(engine_of("local", Needs(), 1)).__name__ == "LocalEngine"


def test_ray_that_is_not_installed(params, monkeypatch, tmp_path):
    monkeypatch.setattr("warp_core.engine.choice.find_spec", lambda name: None)
    refused(params, tmp_path, "engine: 'ray' given; Ray is not installed: `pip install -e")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "192.0.2.77:6379", "nowhere.invalid:6379", "x"])
def test_an_address_where_nothing_answers(params, tmp_path, monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    start = time.monotonic()
    refused(params, tmp_path, f"RAY_ADDRESS is '{address}'; nothing answers there")
    assert time.monotonic() - start < 20


def test_a_cluster_of_another_version(machines, params, tmp_path, monkeypatch):
    monkeypatch.setattr(ray, "__version__", "2.0.0")
    refused(params, tmp_path, "it has another version of Ray or Python than this program")


def test_more_workers_than_the_cluster_has(connection, params, tmp_path):
    said = "workers: 9 given; each wants a CPU and about .* GB, and the cluster has room for 2"
    refused(params, tmp_path, said, workers=9, runs=9)


def test_more_memory_than_a_machine_has(connection, params, tmp_path, monkeypatch):
    monkeypatch.setattr("warp_core.warp.needed_bytes", lambda sizes: 7 * 10**9)
    said = r"a run wants a CPU and about 7.0 GB, and no machine of the cluster has that \(.* 4.0 GB"
    refused(params, tmp_path, said)


def test_each_machine_judges_its_own_precision(tmp_path, monkeypatch):
    monkeypatch.setattr("warp_core.engine.precision.bf16_ratio", lambda: 400.0)
    RayEngine(needs=Needs(precision="bf16")).check()  # where the command is run
    (tmp_path / "mark").write_text("word")
    known = code_of_the_method(), [version(package) for package in PACKAGES]
    there = partial(_seen, tmp_path / "mark", "word", tmp_path, known)
    assert there("fp32") == ""
    assert "400.0 times slower" in there("bf16")


def test_a_folder_that_is_not_shared(connection, params, tmp_path):
    """/proc/self/fd/N is a folder of this process alone."""
    handle = os.open(tmp_path, os.O_RDONLY)
    try:
        folder = f"/proc/self/fd/{handle}/run"
        said = (
            f"machine .* has another folder as /proc/self/fd/{handle}; all machines must share it"
        )
        refused(params, tmp_path, said, run_dir=folder)
    finally:
        os.close(handle)


# The same bits, whatever happens


@pytest.fixture(scope="module")
def undisturbed(params, tmp_path_factory):
    """By this process alone."""
    folder = tmp_path_factory.mktemp("local") / "run"
    run_warp(WarpConfig(**params | {"workers": 1}, run_dir=str(folder)))
    found = bits(folder)
    assert len(found) == 6
    return found


def test_the_driver_is_killed_and_a_machine_while_it_trains_merges_and_evaluates(
    machines, connection, params, undisturbed, tmp_path
):
    params = params | {"engine": "ray", "run_dir": str(tmp_path / "run")}
    config = WarpConfig(**params)
    e, store = Experiment(config), Store(tmp_path / "store")
    (thetas, slerp, _), (_, warp) = e.iterations[0], e.evaluations()

    driver = subprocess.Popen([sys.executable, "-c", RUN, json.dumps(params)])
    wait_for(lambda: len(store.rows(thetas[1])) > 15)
    driver.kill()
    driver.wait()
    wait_for(lambda: not at_work("ray::tiny", psutil.process_iter()))
    assert unfinished(store)

    killed = []
    with ThreadPoolExecutor(1) as pool, ExitStack() as merge, ExitStack() as evaluation:
        merge.enter_context(
            store._locked(slerp.name)
        )  # so that they are at work when they are killed
        evaluation.enter_context(store._locked(warp.name))
        driver = pool.submit(run_warp, config)
        for task, lock in ((thetas[1], None), (slerp, merge), (warp, evaluation)):
            machines.kill(machines.computing(f"ray::{task.label}"))
            killed.append(task.label)
            if lock:
                lock.close()
        driver.result(60)
    assert killed == [
        "tiny, iteration 1, run 2",
        "tiny, iteration 1, SLERP",
        "tiny, WARP evaluated",
    ]
    assert bits(tmp_path / "run") == undisturbed


# Tasks


def test_ours_is_not_retried_a_death_is_until_nothing_comes_of_it_and_the_rest_is_kept(
    connection, store, journal
):
    first = make_task(journal, "first")
    raised, broken, killed = (
        make_task(journal, fault, first, fault=fault, steps=steps)
        for fault, steps in (("raises", 0), ("breaks", 0), ("killed", 3))
    )
    needs, fine = make_task(journal, "needs", killed), make_task(journal, "fine", first)
    errors = RayEngine().compute(store, [raised, broken, killed, needs, fine])
    said = errors[raised.name]
    assert (type(said), str(said)) == (TrainingError, "task raises: said so")
    assert isinstance(errors[broken.name], KeyError)
    assert errors[needs.name] is errors[killed.name]
    assert isinstance(errors[killed.name], DiedError)
    assert str(errors[killed.name]) == (
        "task killed behind step 2: 3 times its process died, killed or out of memory; all else is kept, "
        "and the same command goes on"
    )
    killed_at_step_2 = ["killed"] * 4  # the first of them came further
    assert sorted(calls(journal)) == ["breaks", "fine", "first", *killed_at_step_2, "raises"]
    assert text_of(store, fine) == "firstfine"
    assert {row["threads"] for row in read_jsonl(journal) if row["what"] != "first"} == {1}


def test_tables_of_studies_are_filled_by_the_cluster(connection, store, journal, tmp_path):
    first = make_task(journal, "first")
    task = make_task(journal, "row", first)
    entry = Entry(
        "digest", 0, [task], lambda store: {"text": text_of(store, task)}, [], Needs(10**9)
    )
    table = Table(tmp_path / "rows.jsonl", [entry.digest], [entry])
    assert "2 side by side" in forecast([table], store, "ray")
    complete([table], store, "studies", "ray")
    assert read_jsonl(table.path)[0]["text"] == "firstrow"
    assert [row["pid"] == os.getpid() for row in read_jsonl(journal)] == [True, False]


def test_ctrl_c_ends_the_tasks_and_says_where_they_stood(connection, store, journal):
    first = make_task(journal, "first")
    waiting = [make_task(journal, what, first, fault="waits", steps=3) for what in "ab"]
    threading.Thread(target=interrupt, args=(journal, ["a", "b"]), daemon=True).start()
    with pytest.raises(Interrupted, match="task a behind step 2, task b"):
        RayEngine().compute(store, waiting)
    assert {"a interrupted", "b interrupted"} <= {*calls(journal)}
    assert len(unfinished(store)) == 2


# On SLURM


def test_the_slurm_script_begins_a_cluster_and_its_lines_are_sbatchs(tmp_path):
    script = ROOT / "params/slurm.sh"
    text = script.read_text()
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    head = text[: text.index("set -euo pipefail")].splitlines()
    asked = [line.split() for line in head if line.startswith("#SBATCH")]
    known = {"job-name", "nodes", "ntasks-per-node", "cpus-per-task", "mem", "time", "output"}
    known |= {"exclusive"}
    assert {re.fullmatch(r"--([a-z-]+)(=\S+)?", line[1])[1] for line in asked} == known
    assert all(len(line) == 2 for line in asked)
    assert "#SBATCH" not in text[text.index("set -euo pipefail") :]  # sbatch reads no further
    bin = tmp_path / ".venv/bin"
    bin.mkdir(parents=True)
    said = 'echo "$RAY_AUTH_MODE $(cat "$RAY_AUTH_TOKEN_PATH" | wc -c) $*"'
    for name, does in (
        ("srun", '"$@"'),
        ("scontrol", "echo one; sleep 0.3; echo two"),
        ("ray", said),
    ):
        (bin / name).write_text(f"#!/bin/bash\n{does}\n")
        (bin / name).chmod(0o755)
    (bin / "python").symlink_to(sys.executable)
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "x", "SLURM_NNODES": "2"}
    job |= {"SLURM_CPUS_PER_TASK": "8", "SLURM_MEM_PER_NODE": "32768"}
    ran = subprocess.run(
        [script, "-p", "name", "a b"],
        cwd=tmp_path,
        env=os.environ | job,
        capture_output=True,
        text=True,
    )
    start, command = ran.stdout.split(" -- ")
    assert start.startswith(
        "token 65 symmetric-run --address one:6379 --min-nodes 2 --num-cpus 8 --memory 26214400000 "
    )
    assert command.startswith("env RAY_ADDRESS=one:6379 papermill notebooks/experiment.ipynb runs/")
    assert command.endswith("-p name a b\n")
    assert not [*(tmp_path / "runs").iterdir()]  # the token is gone
