"""A run's steps, as they come, for a tracker that people watch: TensorBoard, W&B, MLflow or trackio.

accelerate.tracking speaks to them. What they keep lies in the folder `tracking` beside the store, on
this machine and without a network, unless a tracker's own variables (WANDB_MODE, MLFLOW_TRACKING_URI,
TRACKIO_DIR, TRACKIO_SPACE_ID) say otherwise; a process stays with the first such folder, for trackio
asks once. A tracker decides nothing: one that fails costs no run.
"""

import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from warp_core.store.errors import ConfigError

FOLDER = "tracking"
Log = Callable[[Mapping[str, Any]], None]


def check_tracker(name: str) -> None:
    """Raises ConfigError where there is to be a tracker and it is not installed."""
    if not name:
        return
    from accelerate.tracking import get_available_trackers  # slow to import, and needed here alone

    if name not in map(str, get_available_trackers()):
        raise ConfigError(
            f"tracker: {name!r} given; it is not installed: `pip install {name}` does that, and with "
            "tracker: '' nothing is tracked"
        )


def tracked_run(params: Mapping[str, Any], i: int, m: int, seed: int) -> dict[str, Any]:
    """The hint that tells run m of iteration i where it is tracked and as what; none without a tracker.

    Args:
        params: of the experiment, all of them.
        seed: the run's own.
    """
    if not params["tracker"]:
        return {}
    about = {"experiment": params["name"], "iteration": i, "run": m, "run_seed": seed}
    return {"tracking": {"tracker": params["tracker"], "about": {**params, **about}}}


@contextmanager
def tracked(run: Mapping[str, Any] | None, work: Path) -> Iterator[Log]:
    """What takes a run's rows, from the first one on; it does nothing without a tracker.

    A resumed run gives all of its rows again: TensorBoard's curve is replaced, W&B's goes on, and in
    MLflow and trackio what was interrupted stays, as a run of the same name.

    Args:
        run: what `tracked_run` gave.
        work: the run's folder, STORE/unfinished/NAME.
    """
    tracker: Any = None
    if run:
        with _tolerated(run):
            starting = _tracker(run, work.absolute().parents[2] / FOLDER, work.name)
            tracker = starting

    def log(row: Mapping[str, Any]) -> None:
        nonlocal tracker
        if tracker and run:
            watching, tracker = tracker, None
            with _tolerated(run):
                values = {key: float(value) for key, value in row.items() if key != "step"}
                watching.log(values, step=row["step"])
                tracker = watching

    try:
        yield log
    finally:
        if tracker and run:
            with _tolerated(run):
                tracker.finish()


@contextmanager
def _tolerated(run: Mapping[str, Any]) -> Iterator[None]:
    """A tracker's errors, which have no common class, become a warning."""
    try:
        yield
    except Exception as error:
        said = f"{run['tracker']} failed, so this run is tracked no further: {error!r:.300}"
        warnings.warn(said, stacklevel=3)


def _tracker(run: Mapping[str, Any], folder: Path, digest: str) -> Any:
    """A tracker that has begun, and knows the run's parameters."""
    from accelerate import PartialState, tracking

    PartialState()  # accelerate's own log wants it
    about = run["about"]
    experiment, name = about["experiment"], f"iteration_{about['iteration']}_run_{about['run']}"
    folder.mkdir(parents=True, exist_ok=True)
    for variable, value in (
        ("WANDB_MODE", "offline"),
        ("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}"),
        ("TRACKIO_DIR", str(folder / "trackio")),
    ):
        os.environ.setdefault(variable, value)
    match run["tracker"]:
        case "tensorboard":
            shutil.rmtree(folder / experiment / name, ignore_errors=True)
            tracker = tracking.TensorBoardTracker(f"{experiment}/{name}", folder)
        case "wandb":
            same = {"id": digest, "resume": "allow"}
            tracker = tracking.WandBTracker(experiment, name=name, dir=str(folder), **same)
        case "mlflow":
            tracker = tracking.MLflowTracker(experiment, run_name=name)
        case _:
            tracker = tracking.TrackioTracker(experiment, name=name)
    # Each of our processes computes a run of its own.
    tracker.main_process_only = False
    with FileLock(folder / ".lock"):  # two runs that begin at once make one database
        tracker.start()
    plain = (bool, int, float, str)
    values = {k: v if isinstance(v, plain) else json.dumps(v) for k, v in about.items()}
    tracker.store_init_configuration(values)
    return tracker
