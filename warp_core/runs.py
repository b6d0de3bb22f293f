"""The run folder: open it, lock it, know what is done in it.

params.yaml, meta.json, metrics.jsonl, summary.json, samples.jsonl, timing.json, weights/ (README has
the table).
"""

import os
import platform
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from warp_core.errors import BusyError, ConfigError, DamagedError, Interrupted
from warp_core.files import (
    make_room,
    seal_json,
    seal_text,
    sealed_json,
    sealed_text,
    sweep,
)
from warp_core.interrupts import terminated_as_interrupted

PACKAGES = ("torch", "transformers", "safetensors", "numpy")
PATIENCE = 10  # seconds; the processes of one that was killed need a moment to end
NOT_COMPARED = {"title", "workers", "run_dir", "checkpoint_every"}  # they change no number


def project_root() -> Path:
    """The folder above the working directory (or itself) that holds params/base.yaml.

    A notebook goes there first, so that relative paths in the parameters mean the same in Jupyter
    and under papermill. Raises FileNotFoundError outside a clone.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "params" / "base.yaml").is_file():
            return folder
    raise FileNotFoundError(
        f"{here} is not inside a clone of the project (no params/base.yaml above)"
    )


def check_run(params: dict[str, Any], run_dir: Path, identity: dict[str, str]) -> None:
    """Raises ConfigError where the folder holds another experiment; lists what differs.

    Args:
        params: flat parameters, as in params.yaml.
        identity: fingerprints of what the parameters name but do not hold: weights, prompts.
    """
    if not (run_dir / "params.yaml").is_file():
        if any((run_dir / name).exists() for name in ("summary.json", "metrics.jsonl", "weights")):
            raise ConfigError(
                f"run_dir: {str(run_dir)!r} is another run's folder (it has no params.yaml)"
            )
        return
    try:
        there = yaml.safe_load(sealed_text(run_dir / "params.yaml"))
        there |= sealed_json(run_dir / "meta.json")["identity"]
    except (DamagedError, OSError) as error:
        raise DamagedError(f"{str(error).partition(';')[0]}; it says what the folder holds: delete "
                           f"all of {run_dir}, or choose another run_dir") from None  # fmt: skip
    differences = [
        f"  {key}: {there.get(key)!r} there, {value!r} asked for"
        for key, value in (params | identity).items()
        if key not in NOT_COMPARED and there.get(key) != value
    ]
    if differences:
        raise ConfigError("\n".join([
            f"run_dir: {str(run_dir)!r} holds another experiment:", *differences,
            "choose another run_dir, or delete that folder",
        ]))  # fmt: skip


def finished(run_dir: Path, results: Sequence[str]) -> dict[str, Any] | None:
    """What the first of the result files holds, if all are there; DamagedError if one is spoilt."""
    if not all((run_dir / name).is_file() for name in results):
        return None
    for name in results[1:]:
        sealed_text(run_dir / name)
    return sealed_json(run_dir / results[0])


@contextmanager
def open_run(params: dict[str, Any], run_dir: Path, identity: dict[str, str]) -> Iterator[None]:
    """Work in a run folder, alone: `check_run`, and a lock that does not outlive a killed process.

    What killed processes had begun to write is removed, and the time that this one takes is added to
    timing.json. Raises BusyError where another is at work; Ctrl-C and SIGTERM raise Interrupted.
    """
    check_run(params, run_dir, identity)
    make_room(run_dir, 0)
    run_dir.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(run_dir / ".lock", timeout=PATIENCE):
            sweep(run_dir)
            if not (run_dir / "params.yaml").is_file():
                seal_json(run_dir / "meta.json", describe_machine() | {"identity": identity})
                text = yaml.safe_dump(params, allow_unicode=True, sort_keys=False)
                seal_text(run_dir / "params.yaml", text)
            start, before = time.monotonic(), seconds_of(run_dir)
            try:
                with terminated_as_interrupted():
                    yield
            except KeyboardInterrupt as error:
                if isinstance(error, Interrupted):  # it says more
                    raise
                raise Interrupted(f"{run_dir}: stopped; all that was done is kept, and the same "
                                  "command goes on from there") from None  # fmt: skip
            finally:
                seconds = before + time.monotonic() - start
                seal_json(run_dir / "timing.json", {"seconds": seconds})
    except Timeout:
        raise BusyError(
            f"run_dir: {str(run_dir)!r}: another process is at work in it; let it end first, or "
            "choose another run_dir"
        ) from None


def seconds_of(run_dir: Path) -> float:
    """What the folder's results have taken up to now, all attempts together."""
    path = run_dir / "timing.json"
    return float(sealed_json(path)["seconds"]) if path.is_file() else 0.0


def load_summaries(runs_dir: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """summary.json of those of the named runs that are finished, in the order of the names."""
    paths = {name: runs_dir / name / "summary.json" for name in names}
    found = {name: sealed_json(path) for name, path in paths.items() if path.is_file()}
    if not found:
        raise FileNotFoundError(
            f"{runs_dir}: none of {', '.join(paths)} is finished in it; run the experiments first"
        )
    return found


def describe_machine() -> dict[str, Any]:
    """What the numbers were made with: versions, commit, device, cores, threads."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty",
           "--abbrev=12"]  # fmt: skip
    try:
        commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    except OSError:  # no git
        commit = ""
    import torch  # seconds, which those who only read results need not wait

    cuda = torch.cuda.is_available()
    return {
        "commit": commit or "unknown",
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
        "device": torch.cuda.get_device_name() if cuda else _cpu_name(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
    }


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
