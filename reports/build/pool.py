"""All experiments of a report through one pool of processes, which keeps every core busy."""

import traceback
from collections.abc import Callable, Sequence

from reports.build.faults import ReportError
from reports.build.plan import Project, Section
from warp_core.config import ConfigError, FrontConfig, WarpConfig
from warp_core.engine.choice import engine_of
from warp_core.engine.needs import Needs
from warp_core.engine.progress import Progress
from warp_core.store.errors import MessageOnly
from warp_core.store.results import Store, Task
from warp_core.store.run_folder import check_run, finished
from warp_core.warp import RESULTS, Experiment, missing_of_front


def compute(
    project: Project,
    sections: Sequence[Section],
    look: Callable[[Progress], None],
    engine: str = "local",
) -> None:
    """Make what the notebooks of these sections will show; they find it in the store.

    Raises ReportError where something could not be computed; the rest was, and is kept.
    """
    experiments: dict[str, Experiment] = {}  # by run folder
    wanted: list[Task] = []
    keep: list[Task] = []
    for section in sections:
        asked = section.config
        assert isinstance(asked, WarpConfig | FrontConfig)  # the plan has checked it
        if asked.run_dir not in experiments:
            experiments[asked.run_dir] = _experiment(project, section, asked.run_dir)
        experiment = experiments[asked.run_dir]
        folder = section.root / experiment.config.folder
        if isinstance(asked, FrontConfig):
            wanted += [task for _, task in missing_of_front(experiment, folder, asked.etas)]
        elif not finished(folder, RESULTS):
            wanted += experiment.wanted()
        keep += experiment.kept()
    needs = Needs.of_all(experiment.needs for experiment in experiments.values())
    store = Store(project.runs / "store")
    everything = engine_of(engine, needs, look=look)
    with everything.resources(store, wanted, keep):
        errors = everything.compute(store, wanted, keep)
    if errors:
        said = dict.fromkeys(_said(error) for error in errors.values())
        raise ReportError(
            "\n".join([*said, "All else is kept; the same command goes on from there."])
        )


def _experiment(project: Project, section: Section, run_dir: str) -> Experiment:
    """Its run folder is looked at now: a notebook that refuses it after the work would be late."""
    config = project.experiment(run_dir)
    try:
        experiment = Experiment(config)
        check_run(config, section.root / config.folder, experiment.identity)
    except ConfigError as error:
        raise ReportError(f"{section.place}: {error}") from None
    return experiment


def _said(error: Exception) -> str:
    """Its message if it is for people; else all there is to know."""
    if isinstance(error, MessageOnly):
        return str(error)
    return "".join(traceback.format_exception(error))
