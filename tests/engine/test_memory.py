"""Memory: what a run wants, what there is, and what others have asked for and not taken yet."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from types import SimpleNamespace

import psutil
import pytest
import tiny
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from warp_core.config import WarpConfig
from warp_core.engine import memory
from warp_core.engine.memory import LOGITS, PROCESS, Sizes, available_bytes, needed_bytes, reserved
from warp_core.engine.needs import Needs
from warp_core.store.errors import ConfigError

GB = 10**9
FREE = 100 * GB


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """One of 100 GB, without a GPU, cgroups and reservations; its folder of reservations."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=FREE))
    monkeypatch.setattr(memory, "CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "OWN_GROUPS", tmp_path / "own_groups")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"warp-core-memory-{os.getuid()}"


def refusal(workers, each):
    with pytest.raises(ConfigError) as caught, reserved(workers, each):
        pass
    return str(caught.value)


# What a run wants

SMOLLM2_135M = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "vocab_size": 49152,
}


@pytest.fixture
def default():
    """Of the default experiments: prompts of 16 tokens."""
    sizes = SMOLLM2_135M | {"num_key_value_heads": 3, "tie_word_embeddings": True}
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**sizes))
    weights = sum(p.numel() for p in model.parameters())
    assert weights == 134_515_008
    c = WarpConfig()
    return Sizes(model.config, weights, 16, c.max_new_tokens, c.batch_size)


def test_the_default_experiments_need_is_the_one_that_was_measured(default):
    """4.2 GB on two cores (LOG.md, 2026-11-23)."""
    assert needed_bytes(default) == pytest.approx(4.2e9, rel=0.2)
    kept = needed_bytes(replace(default, copies=1))
    assert kept == needed_bytes(default) + 4 * default.weights


def test_what_saves_memory_is_known_to(default):
    larger = replace(default, batch_size=64, max_new_tokens=256, evaluated=1)
    whole = needed_bytes(larger)
    parts = needed_bytes(replace(larger, micro_batch=4))
    again = needed_bytes(replace(larger, recomputed=True))
    both = needed_bytes(replace(larger, micro_batch=4, recomputed=True))
    adapters = needed_bytes(replace(larger, micro_batch=4, recomputed=True, trained=10**6))
    assert whole > again > parts > both > adapters > PROCESS + 4 * larger.weights
    assert needed_bytes(replace(larger, micro_batch=1000)) == whole  # there are no more than B
    more = replace(larger, micro_batch=4, recomputed=True, trained=10**6, rewards=10**8)
    assert needed_bytes(more) == adapters + 4 * 10**8


def test_a_large_vocabulary_is_wanted_by_the_evaluation(default):
    sizes = replace(default, batch_size=1, max_new_tokens=256)
    logits = 64 * 256 * 49152
    assert needed_bytes(sizes) > PROCESS + 4 * (2 * sizes.weights + logits + 2 * LOGITS)
    assert needed_bytes(replace(sizes, evaluated=1)) < 0.5 * needed_bytes(sizes)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_what_a_tiny_policy_wants_by_hand(architecture):
    """Width 16, two layers, a feed-forward of 32 or, where it has no size of its own, of 64."""
    model = tiny.make_policy(architecture, vocabulary=100)
    inner = 64 if architecture in ("gpt2", "opt", "bloom") else 32
    tokens, drawn = 3 * (5 + 7), 3 * 7
    weights = sum(p.numel() for p in model.parameters())
    floats = 5 * weights + tokens * 2 * (14 * 16 + 4 * inner) + 4 * drawn * 100
    wanted = needed_bytes(Sizes(model.config, weights, 5, 7, 3, evaluated=0))
    assert wanted == PROCESS + 4 * floats


# What there is

V2 = {"memory.max": 10 * GB, "memory.current": 4 * GB}
V1 = {"memory/memory.limit_in_bytes": 10 * GB, "memory/memory.usage_in_bytes": 4 * GB}
STAT = "anon 2000000000\n{}inactive_file 1000000000\n{}active_file 500000000\nfile 9000000000\n"


def cgroup(files):
    for name, content in files.items():
        path = memory.CGROUP / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")


@pytest.mark.parametrize(
    ("files", "there"),
    [
        ({}, 100),
        (V2 | {"memory.stat": ""}, 6),
        # Files in the cache give way.
        (V2 | {"memory.stat": STAT.format("", "")}, 7.5),
        (V2 | {"memory.max": "max", "memory.stat": ""}, 100),
        (V2 | {"memory.max": 1000 * GB, "memory.stat": ""}, 100),
        (V2 | {"memory.current": 11 * GB, "memory.stat": ""}, 0),
        (V1 | {"memory/memory.stat": ""}, 6),
        (V1 | {"memory/memory.stat": "active_file 7\n" + STAT.format("total_", "total_")}, 7.5),
        (V1 | {"memory/memory.limit_in_bytes": 2**63 - 4096, "memory/memory.stat": ""}, 100),
    ],
)
def test_a_containers_limit_counts(files, there, machine):
    cgroup(files)
    assert available_bytes() == there * GB


JOB = {"slurm/job_7/" + name: size for name, size in V2.items()} | {"slurm/job_7/memory.stat": ""}


@pytest.mark.parametrize(
    ("own", "files", "there"),
    [
        ("0::/slurm/job_7/step_0/task_0", JOB, 6),
        ("0::/slurm/job_8", JOB, 100),
        ("5:cpu,memory:/job_7", {f"memory/job_7/{k[7:]}": v for k, v in V1.items()}, 6),
        ("0::/", V2 | {"memory.stat": ""}, 6),
        ("0::/../../outside", V2 | {"memory.stat": ""}, 6),
    ],
)
def test_the_limit_of_a_batch_systems_job_counts(own, files, there, machine):
    memory.OWN_GROUPS.write_text(f"12:pids:/else\n{own}\n")
    cgroup(files | ({"memory/job_7/memory.stat": ""} if "job_7" in own and "cpu" in own else {}))
    assert available_bytes() == there * GB


def test_a_child_that_ends_meanwhile_holds_nothing(machine, monkeypatch):
    """And does not make its living parent's reservation another's."""
    ended = psutil.Process()
    monkeypatch.setattr(
        ended, "memory_info", lambda: (_ for _ in ()).throw(psutil.NoSuchProcess(1))
    )
    assert memory._resident(ended) == 0


def test_on_a_gpu_its_memory_counts(machine, monkeypatch):
    cgroup(V2 | {"memory.stat": ""})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (3 * GB, 80 * GB))
    assert available_bytes() == 3 * GB
    # What torch keeps behind an experiment, it gives to the next.
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 5 * GB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: GB)
    assert available_bytes() == 7 * GB


# What is asked for


def test_more_than_there_is_is_refused_with_the_numbers(machine):
    with reserved(2, 50 * GB):
        pass
    said = (
        "workers: 3 runs side by side want about 150.0 GB, 50.0 GB each, and 100.0 GB are available"
    )
    assert refusal(3, 50 * GB) == f"{said}; workers: 2 fits"
    assert refusal(1, FREE + 1).endswith("; a smaller batch_size or max_new_tokens helps")
    assert not list(machine.glob("*.json"))


def test_nothing_is_always_there(machine, monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: -1)
    with reserved(0, GB):
        pass


def test_what_this_process_has_asked_for_is_asked_for_until_it_is_done(machine):
    own = psutil.Process().memory_info().rss
    with reserved(1, 90 * GB):
        assert 10 * GB <= left() < 10 * GB + 2 * own  # some of the 90 it holds already
        assert json.loads((machine / f"{os.getpid()}.json").read_text())["bytes"] == 90 * GB
    with pytest.raises(ZeroDivisionError), reserved(1, 90 * GB):
        raise ZeroDivisionError
    assert not list(machine.glob("*.json"))
    with reserved(1, FREE):
        pass


# What others have asked for

HOLDER = """
import os, sys, tempfile
tempfile.tempdir = sys.argv[1]
from warp_core.engine import memory

def take(wait):
    taken = bytearray(os.urandom(1)) * (400 * 10**6)
    print("taken", flush=True)
    wait()

memory.available_bytes = lambda: 10**12
with memory.reserved(1, 4_000_000_000):
    print("reserved", flush=True)
    sys.stdin.readline()
    ours, parents = os.pipe()
    if not os.fork():
        os.close(parents)
        take(lambda: os.read(ours, 1))  # until the parent has ended
        os._exit(0)
    sys.stdin.readline()
    take(sys.stdin.readline)
"""


@pytest.fixture
def holder(machine, tmp_path):
    """A process that reserves 4 GB and takes 0.4 GB whenever it is told to, in a child first."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen(command, text=True, **pipes)
    assert process.stdout.readline() == "reserved\n"
    yield process
    process.kill()
    process.communicate()


def left():
    """What is there for this process, bytes."""
    return float(refusal(1, 2 * FREE).split(" GB each, and ")[1].split()[0]) * GB


def test_a_reservation_counts_until_its_process_or_a_child_has_taken_it_or_has_ended(
    holder, machine
):
    before = left()  # Python and torch themselves are a part of what it holds
    assert FREE - 4 * GB <= before < FREE - 2.5 * GB
    with reserved(1, int(before - 0.1 * GB)):
        pass
    for _ in ("by its child", "by itself"):
        holder.stdin.write("take\n")
        holder.stdin.flush()
        assert holder.stdout.readline() == "taken\n"
        now = left()
        assert now >= before + 0.3 * GB
        before = now
    assert left() < FREE
    holder.kill()
    holder.wait()
    assert left() == FREE
    assert not list(machine.glob("*.json"))


def test_what_others_have_reserved_has_no_room_for_runs_of_this_program(holder, machine):
    """So that as many as fit are not refused a moment later."""
    runs = memory.fitting(25 * GB)
    assert runs == 3  # of 100 GB, of which 4 are another's
    with reserved(runs, 25 * GB):
        pass


def test_a_reservation_of_a_process_whose_number_another_one_has_now_does_not_count(machine):
    machine.mkdir()
    for number in (os.getpid(), os.getppid()):
        stale = {"bytes": 50 * GB, "started": 1.0}
        (machine / f"{number}.json").write_text(json.dumps(stale))
    with reserved(1, FREE):
        assert [path.stem for path in machine.glob("*.json")] == [str(os.getpid())]
    assert not list(machine.glob("*.json"))


@pytest.mark.parametrize("content", ["", "{", "{}", '{"bytes": 5}'])
def test_a_reservation_that_cannot_be_read_is_none(content, machine):
    machine.mkdir()
    (machine / f"{os.getppid()}.json").write_text(content)
    (machine / "notes.json").write_text(content)
    assert left() == FREE


def test_a_reservation_that_ends_while_it_is_looked_at_is_none(machine, monkeypatch):
    machine.mkdir()
    path = machine / f"{os.getppid()}.json"
    path.write_text(json.dumps({"bytes": 50 * GB, "started": psutil.Process().create_time()}))
    read = memory.read_json

    def gone(path):
        path.unlink()
        return read(path)

    monkeypatch.setattr(memory, "read_json", gone)
    assert left() == FREE


def test_a_worker_that_takes_any_run_needs_the_most_of_each():
    runs = [Needs(3), Needs(2, 4), Needs(1, precision="bf16")]
    assert Needs.of_all(runs) == Needs.of_all(reversed(runs)) == Needs(3, 4, "bf16")
    assert Needs.of_all([]) == Needs()
