"""Tasks of a Ray cluster: which machines have room, what they share, what if one of them dies.

The cluster is the one at RAY_ADDRESS, else the one that `ray start` began here, else one of this machine
alone. Its machines see the store under one name, and have this code and these versions. A task gets
paths, parameters and a seed, and leaves files: no tensor travels.
"""

import logging
import os
import secrets
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ray
from ray._private.services import canonicalize_bootstrap_address
from ray.exceptions import (
    AuthenticationError,
    NodeDiedError,
    OutOfMemoryError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from warp_core.engine.driver import LOOK, Ended, Engine, Hands, made_here, make_in_process
from warp_core.engine.precision import check_precision
from warp_core.engine.progress import steps_of
from warp_core.store.errors import ConfigError, DiedError, MessageOnly
from warp_core.store.files import make_room
from warp_core.store.machine import PACKAGES, code_of_the_method
from warp_core.store.results import Store, Task

TRIES = 3  # of a task whose process or machine dies, and which comes no further
ANSWER, MARK = 5.0, 300.0  # seconds: of an address, of a mark
# Of the environment, what decides bits, speed, or where things lie; no keys of anybody.
PREFIXES = ("MKL_", "OMP_", "GOMP_", "OPENBLAS_", "MALLOC_", "TOKENIZERS_", "HF_HUB_", "WARP_")
PREFIXES += ("WANDB_MODE", "MLFLOW_TRACKING_URI", "TRACKIO_DIR", "TRACKIO_SPACE_ID")
GB = 1e9


@dataclass(frozen=True)
class Machine:
    """A live one of the cluster, and what it has for tasks."""

    id: str
    name: str
    cpus: int
    gpus: int
    memory: int

    def room(self, threads: int, each: int, gpus: int) -> int:
        """How many tasks with so many threads, so much memory, so many GPUs it can have at once."""
        return min(
            self.cpus // threads,
            self.memory // each if each else self.cpus,
            self.gpus // gpus if gpus else self.cpus,
        )


class RayEngine(Engine):
    """So many tasks of the cluster side by side, each with so many CPUs and, where it has some, GPUs."""

    @contextmanager
    def opened(self, store: Store) -> Iterator[None]:
        """Connected; ConfigError where the machines have no room, or do not share what they must."""
        with connected():
            machines = machines_of_the_cluster()
            some = self.needs.gpus > 1 or any(machine.gpus for machine in machines)
            gpus = self.needs.gpus if some else 0
            memory = 0 if gpus else self.needs.bytes  # of a GPU, Ray knows none
            sizes = memory, gpus
            self.workers, self.threads = side_by_side(machines, self.asked, self.useful, *sizes)
            runtime_env = {"env_vars": environment(self.threads)}
            sizes_of_one = {"num_cpus": self.threads, "num_gpus": gpus, "memory": memory}
            self.wants = sizes_of_one | {"runtime_env": runtime_env}
            used = [machine for machine in machines if machine.room(self.threads, memory, gpus)]
            check_machines(store.folder, used, runtime_env, self.needs.precision)
            yield

    def hands(self, store: Store, tasks: int) -> Hands:
        return _Cluster(store, self.threads, self.wants)


def side_by_side(
    machines: Sequence[Machine], asked: int, useful: int, each: int, gpus: int
) -> tuple[int, int]:
    """How many tasks at once, and the threads of each: the most with which all of them have room.

    Raises ConfigError where there is no room for one, or for as many as are asked for.
    """

    def room(threads: int) -> int:
        return sum(machine.room(threads, each, gpus) for machine in machines)

    wish = "a CPU" + ("", " and a GPU", f" and {gpus} GPUs")[min(gpus, 2)]
    wish += f" and about {each / GB:.1f} GB" if each else ""
    has = "; ".join(
        f"{m.name}: {m.cpus} CPUs, {m.gpus} GPUs, {m.memory / GB:.1f} GB" for m in machines
    )
    if not room(1):
        raise ConfigError(
            f"engine: 'ray' given; a run wants {wish}, and no machine of the cluster has that ({has})"
        )
    workers = min(asked or room(1), useful or asked or room(1))
    if workers > room(1):
        raise ConfigError(
            f"workers: {asked} given; each wants {wish}, and the cluster has room for {room(1)} ({has})"
        )
    most = max(machine.cpus for machine in machines)
    return workers, max(threads for threads in range(1, most + 1) if room(threads) >= workers)


def machines_of_the_cluster() -> list[Machine]:
    """Those that live."""
    return [
        Machine(
            node["NodeID"],
            node["NodeManagerHostname"],
            *(int(node["Resources"].get(key, 0)) for key in ("CPU", "GPU", "memory")),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def environment(threads: int) -> dict[str, str]:
    """Variables of every task; with the same ones a machine's processes give the same bits."""
    ours = {key: value for key, value in os.environ.items() if key.startswith(PREFIXES)}
    return ours | {"OMP_NUM_THREADS": str(threads)}


# The cluster


@contextmanager
def connected() -> Iterator[None]:
    """With a cluster, within it; ConfigError where none answers, or one of another kind."""
    if ray.is_initialized():
        yield
        return
    here = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        address = _answering()
        store = None if address else 100 * 1024 * 1024  # bytes, of which nothing is used
        where = {"address": None if address else "local", "object_store_memory": store}
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **where)
    except (OSError, ValueError, RuntimeError, RayError) as error:
        raise ConfigError(_not_connected(error)) from None
    finally:
        if here:  # Ray has set its own
            signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        ray.shutdown()


def _answering() -> str | None:
    """The cluster's address; None where one is to begin here. OSError where that given is nobody's."""
    address = canonicalize_bootstrap_address(None)  # type: ignore[arg-type]
    if address:
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), ANSWER).close()
        except OSError:
            if os.environ.get("RAY_ADDRESS"):
                raise
            return None  # of a cluster that has ended
    return address


def _not_connected(error: Exception) -> str:
    given = os.environ.get("RAY_ADDRESS")
    where = f"RAY_ADDRESS is {given!r}" if given else "a cluster was begun on this machine"
    said = " ".join(f"{error} {error.__cause__ or ''}".split())
    if "ersion mismatch" in said:
        why = f"it has another version of Ray or Python than this program: {said:.300}"
    elif "InvalidAuthToken" in said or isinstance(error, AuthenticationError):
        why = "it refused this program's token: RAY_AUTH_MODE=token and one ~/.ray/auth_token are needed"
        why += " on every machine"
    else:
        why = f"nothing answers there ({said:.200}): `ray start --head` begins a cluster"
    return f"engine: 'ray' given; {where}; {why}"


def check_machines(
    folder: Path, machines: Sequence[Machine], runtime_env: dict[str, Any], precision: str
) -> None:
    """Raises ConfigError where a machine does not see what this one writes into the store's folder, has
    other code, or is slow at the precision; nothing stays there."""
    make_room(folder, 0)
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists()).absolute()
    word = secrets.token_hex(16)
    with tempfile.NamedTemporaryFile("w", dir=there, prefix=".mark-") as mark:
        mark.write(word)
        mark.flush()
        os.fsync(mark.fileno())
        known = code_of_the_method(), [version(package) for package in PACKAGES]
        call = Path(mark.name), word, Path.cwd(), known, precision
        how = {
            "name": "shared folder?",
            "num_cpus": 0,
            "max_retries": 0,
            "runtime_env": runtime_env,
        }
        on = [NodeAffinitySchedulingStrategy(machine.id, soft=False) for machine in machines]
        look = ray.remote(_seen)
        looks = [look.options(scheduling_strategy=each, **how).remote(*call) for each in on]
        for machine, one in zip(machines, looks, strict=True):
            try:
                wrong = ray.get(one, timeout=MARK)
            except RayTaskError as error:
                wrong = f"cannot compute: {error.cause!r:.300}"
            except RayError as error:
                wrong = f"does not answer: {str(error).splitlines()[0]:.200}"
            if wrong:
                raise ConfigError(f"engine: 'ray' given; machine {machine.name} {wrong}")


def _seen(mark: Path, word: str, cwd: Path, known: tuple[str, list[str]], precision: str) -> str:
    """On another machine: what is wrong with it; empty if nothing is."""
    try:
        same = mark.read_text() == word
    except OSError:
        same = False
    if not same:
        return f"has another folder as {mark.parent}; all machines must share it, under one name"
    if not cwd.is_dir():
        return f"has no {cwd}, in which the command is run; all machines must share it"
    here = code_of_the_method(), [version(package) for package in PACKAGES]
    if here != known:
        return f"has other code or versions, {here}, than this one, {known}"
    try:
        check_precision(precision)
    except ConfigError as error:
        return f"cannot do what was asked for: {error}"
    return ""


# Its tasks


@dataclass(frozen=True)
class _Call:
    task: Task
    passing: Sequence[Task]
    tries: int = 1
    step: int = 0
    """Steps that it had logged when it died before."""


class _Cluster:
    """Ray's workers. What reads nothing of the store is made here, where it lies: θ_sft, prompts."""

    def __init__(self, store: Store, threads: int, wants: Mapping[str, Any]) -> None:
        self.store, self.threads, self.wants = store, threads, wants
        self.busy: dict[ray.ObjectRef, _Call] = {}
        self.done = Ended()

    def start(self, task: Task, passing: Sequence[Task]) -> None:
        if task.reads:
            self._submit(_Call(task, passing))
            return
        self.done.append((task, made_here(self.store, task, passing)))

    def _submit(self, call: _Call) -> None:
        name = call.task.label or call.task.kind
        options = ray.remote(_make).options(name=name, max_retries=0, **self.wants)
        where = Path.cwd(), self.store.folder.absolute()
        self.busy[options.remote(*where, call.task, call.passing, self.threads)] = call

    def ended(self) -> Ended:
        if not self.done:
            for ref in ray.wait(list(self.busy), timeout=LOOK)[0]:
                call = self.busy.pop(ref)
                error = _error_of(ref)
                if isinstance(error, _Died):
                    again = self._again(call, error)
                    if again.tries <= TRIES:
                        self._submit(again)
                        continue
                    error = DiedError(
                        f"{TRIES} times {error}; all else is kept, and the same command goes on"
                    )
                self.done.append((call.task, error))
            if self.busy and not self._room():
                lost = DiedError(
                    "no machine of the cluster has room for it any more; all of it is kept"
                )
                self.done += [(call.task, lost) for call in self.busy.values()]
                self.release()
        done, self.done = self.done, Ended()
        return done

    def _again(self, call: _Call, died: "_Died") -> _Call:
        """Its next try; the first one again where it came further, but not where memory ran out."""
        step = steps_of(self.store.log(call.task)) if call.task.steps else 0
        further = step > call.step and not died.of_memory
        tries = 1 if further else call.tries + 1
        return _Call(call.task, call.passing, tries, max(step, call.step))

    def _room(self) -> int:
        sizes = self.threads, self.wants["memory"], self.wants["num_gpus"]
        return sum(machine.room(*sizes) for machine in machines_of_the_cluster())

    def interrupt(self) -> None:
        for ref in self.busy:
            ray.cancel(ref)
        if self.busy:
            ray.wait(list(self.busy), num_returns=len(self.busy))
        self.busy = {}

    def release(self) -> None:
        if self.busy:  # one that has just ended must not be cancelled: Ray ends the program then
            for ref in ray.wait(list(self.busy), num_returns=len(self.busy), timeout=0)[1]:
                ray.cancel(ref, force=True)
        self.busy = {}


class _Died(Exception):
    """A task's process or machine did."""

    of_memory = False


class _OutOfMemory(_Died):
    of_memory = True


def _error_of(ref: ray.ObjectRef) -> Exception | None:
    try:
        ray.get(ref)
    except RayTaskError as error:  # of the task itself
        cause = error.cause
        return cause if isinstance(cause, MessageOnly) and isinstance(cause, Exception) else error
    except OutOfMemoryError:
        return _OutOfMemory(
            "its machine ran out of memory (a smaller batch_size or max_new_tokens helps)"
        )
    except NodeDiedError:
        return _Died("its machine died")
    except WorkerCrashedError:
        return _Died("its process died, killed or out of memory")
    except RayError as error:
        return _Died(f"Ray could not run it: {str(error).partition(chr(10))[0]:.300}")
    return None


def _make(cwd: Path, folder: Path, task: Task, passing: Sequence[Task], threads: int) -> None:
    """On a machine of the cluster."""
    os.chdir(cwd)
    make_in_process(folder, task, passing, threads)
