"""The run folder that people look at: whose it is, who works in it, what it has taken.

params.yaml and meta.json say what it holds; metrics.jsonl, summary.json, samples.jsonl, front.jsonl
are its results, weights/ shows policies of the store (README has the table).
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from warp_core.store.errors import BusyError, ConfigError, DamagedError, Interrupted
from warp_core.store.files import make_room, seal_json, seal_text, sealed_json, sealed_text, sweep
from warp_core.store.machine import describe_machine
from warp_core.store.parameters import Parameters
from warp_core.store.signals import terminated_as_interrupted

LAYOUT = 2  # of a run folder; in 1 the folder itself held what the store holds now
PATIENCE = 10  # seconds; the processes of one that was killed need a moment to end
# They change no number.
NOT_COMPARED = {"title", "workers", "gpus", "engine", "run_dir", "checkpoint_every"}
NOT_COMPARED |= {"keep_weights", "tracker"}


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


def check_run(params: Parameters, run_dir: Path, identity: dict[str, str]) -> None:
    """Raises ConfigError where the folder holds another experiment; lists what differs.

    A parameter that came later than the folder has its default there.

    Args:
        identity: fingerprints of what the parameters name but do not hold: weights, prompts.
    """
    there = read_run(run_dir)
    if there is None:
        return
    of = {n: f.get_default(call_default_factory=True) for n, f in type(params).model_fields.items()}
    there = of | there
    differences = [
        f"  {key}: {there.get(key)!r} there, {value!r} asked for"
        for key, value in (params.model_dump() | identity).items()
        if key not in NOT_COMPARED and there.get(key) != value
    ]
    if differences:
        lines = [f"run_dir: {str(run_dir)!r} holds another experiment:", *differences]
        raise ConfigError("\n".join([*lines, "choose another run_dir, or delete that folder"]))


def read_run(run_dir: Path) -> dict[str, Any] | None:
    """Parameters and identity of what a run folder holds; None where nothing is there yet.

    Raises ConfigError where it is no run folder of this version, DamagedError where it is not what
    was written.
    """
    if not (run_dir / "params.yaml").is_file():
        if any((run_dir / name).exists() for name in ("summary.json", "metrics.jsonl", "weights")):
            raise ConfigError(
                f"run_dir: {str(run_dir)!r} is another run's folder (it has no params.yaml)"
            )
        return None
    try:
        there = yaml.safe_load(sealed_text(run_dir / "params.yaml"))
        meta = sealed_json(run_dir / "meta.json")
    except (DamagedError, OSError) as error:
        raise DamagedError(
            f"{str(error).partition(';')[0]}; it says what the folder holds: delete "
            f"all of {run_dir}, or choose another run_dir"
        ) from None
    if meta.get("layout") != LAYOUT:
        raise ConfigError(
            f"run_dir: {str(run_dir)!r} was made by an older version, which this one does not "
            "continue; its summary.json and weights stay readable: move the folder away (and the "
            "folder sft beside it), or choose another run_dir"
        )
    return there | meta["identity"]


def finished(run_dir: Path, results: Sequence[str]) -> dict[str, Any] | None:
    """What the first of the result files holds, if all are there; DamagedError if one is spoilt."""
    if not all((run_dir / name).is_file() for name in results):
        return None
    for name in results[1:]:
        sealed_text(run_dir / name)
    return sealed_json(run_dir / results[0])


def computed_once(
    params: Parameters,
    run_dir: Path,
    identity: dict[str, str],
    results: Sequence[str],
    resources: AbstractContextManager[Any],
    compute: Callable[[], dict[str, Any]],
) -> dict[str, Any]:
    """What `compute` gives, which writes the result files; if they are there, what they hold.

    Args:
        resources: entered before anything is created; refuses where memory or disk are short.
    """
    check_run(params, run_dir, identity)
    if summary := finished(run_dir, results):
        return summary
    with resources, open_run(params, run_dir, identity):
        return finished(run_dir, results) or compute()


@contextmanager
def open_run(params: Parameters, run_dir: Path, identity: dict[str, str]) -> Iterator[None]:
    """Work in a run folder, alone: `check_run`, and a lock that does not outlive a killed process.

    What killed processes had begun to write is removed, and the time that this one takes is added to
    timing.json. Raises BusyError where another is at work; Ctrl-C and SIGTERM raise Interrupted.
    """
    check_run(params, run_dir, identity)
    make_room(run_dir, 0)
    run_dir.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(run_dir / ".lock", timeout=PATIENCE):
            check_run(params, run_dir, identity)  # again: who had it meanwhile may be another
            sweep(run_dir)
            sweep(run_dir / "weights", "**/.*")
            if not (run_dir / "params.yaml").is_file():
                about = {"layout": LAYOUT, "identity": identity}
                seal_json(run_dir / "meta.json", describe_machine() | about)
                text = yaml.safe_dump(params.model_dump(), allow_unicode=True, sort_keys=False)
                seal_text(run_dir / "params.yaml", text)
            start, before = time.monotonic(), seconds_of(run_dir)
            try:
                with terminated_as_interrupted():
                    yield
            except KeyboardInterrupt as error:
                if isinstance(error, Interrupted):  # it says more
                    raise
                raise Interrupted(
                    f"{run_dir}: stopped; all that was done is kept, and the same command goes on "
                    "from there"
                ) from None
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
