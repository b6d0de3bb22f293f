"""What `sections.yaml` asks for, checked: notebooks, parameters, what is done of it."""

import ast
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import yaml

from reports.bench.config import BenchConfig
from reports.build.faults import ReportError
from warp_core.config import ConfigError, FrontConfig, WarpConfig, load_params
from warp_core.store.errors import DamagedError
from warp_core.store.machine import LIBRARY
from warp_core.store.parameters import Parameters, RunParameters, unknown_parameter
from warp_core.store.run_folder import read_run
from warp_core.world.reward_training import RewardConfig
from warp_core.world.studies import StudyChoice

EXPERIMENT, FRONT, STUDY = "experiment.ipynb", "pareto_front.ipynb", "study.ipynb"
CONFIGS: dict[str, type[Parameters]] = {  # what checks a notebook's parameters
    EXPERIMENT: WarpConfig,
    FRONT: FrontConfig,
    "reward_model.ipynb": RewardConfig,
    "performance.ipynb": BenchConfig,
    STUDY: StudyChoice,
}
STAGES = ("first", "experiments", "last")
KEYS = {"id", "notebook", "params", "smoke", "run_dir", "study", "reads", "after"}
TEXT = Path(__file__).resolve().parent.parent / "text"  # the code of tables, sentences, figures
# What computes the studies' intervals and p, and says which rows they want.
STATISTICS = [LIBRARY / name for name in ("evaluate.py", "study.py", "world/studies.py")]


@dataclass(frozen=True)
class Section:
    """One notebook and what it is run with."""

    id: str
    stage: str
    notebook: Path
    files: list[Path]  # papermill's -f; a later one overrides an earlier one
    folders: dict[str, str]  # papermill's -r
    parameters: dict[str, Any]  # what the notebook ends up with
    config: Parameters | None  # the same, checked; None: a notebook that only shows
    reads: list[str]  # patterns of the results that it shows: below runs/, or reports/…, params/…
    after: list[str]  # sections that must have been run before
    root: Path
    runs: Path

    @property
    def executed(self) -> Path:
        return self.runs / self.id / "executed.ipynb"

    @property
    def title(self) -> str | None:
        """Its heading in the report, where that is not the notebook's own."""
        if isinstance(self.config, StudyChoice):
            return load_params(self.root / f"params/study_{self.config.study}.yaml")["title"]
        return self.config.title if isinstance(self.config, WarpConfig) else None

    @property
    def made_by(self) -> str:
        """The notebook and the params files, for who wants to make its figures anew."""
        files = [f"params/{file.name}" for file in self.files]
        if isinstance(self.config, StudyChoice):
            files = [f"params/study_{self.config.study}.yaml"]
        return ", ".join([f"notebooks/{self.notebook.name}", *files])

    @property
    def place(self) -> str:
        """What people look for when it failed."""
        return f"{self.id}: notebooks/{self.notebook.name}"

    def fingerprint(self) -> list[str]:
        """Of what decides how the notebook comes out: parameters, cells, tables, figures; what it reads of
        the repository; results, which it may write itself."""
        cells = [[cell.cell_type, cell.source] for cell in read_notebook(self.notebook).cells]
        code = [_sha256(file) for file in [*sorted(TEXT.glob("*.py")), *STATISTICS]]
        given = [p for p in self.reads if p.startswith(("reports/", "params/"))]
        of_root = self._contents(self.root, given)
        results = self._contents(self.runs, [p for p in self.reads if p not in given])
        parts = [self.parameters, cells, code], of_root, results
        return [hashlib.sha256(json.dumps(part).encode()).hexdigest() for part in parts]

    def _contents(self, folder: Path, patterns: list[str]) -> list[list[str]]:
        files = sorted({file for pattern in patterns for file in folder.glob(pattern)})
        return [[str(file.relative_to(self.root)), _sha256(file)] for file in files]

    def is_done(self) -> bool:
        try:
            recorded = read_notebook(self.executed).metadata.get("warp_report")
        except (OSError, ValueError):  # it is not there, or damaged
            return False
        return recorded == self.fingerprint()


@dataclass(frozen=True)
class Project:
    """A report: what is run for it, and what it is made of."""

    title: str
    sections: list[Section]
    report: list[str]  # section ids and Markdown files, in the order of the page
    appendices: list[str]  # the same, folded behind them
    left_out: list[str]  # sections that a trial leaves out
    picture: str  # the section that has a picture for README
    texts: Path
    runs: Path
    smoke: bool

    @property
    def page(self) -> Path:
        """A person's own; that of the repository is a copy (`--publish`)."""
        return self.runs / "warp_report.html"

    def stage(self, name: str) -> list[Section]:
        return [section for section in self.sections if section.stage == name]

    def experiment(self, run_dir: str) -> WarpConfig:
        """Of the section that computes this run folder; KeyError without one."""
        configs = (section.config for section in self.sections)
        return {str(c.folder): c for c in configs if isinstance(c, WarpConfig)}[run_dir]

    def check_folders(self) -> None:
        """Raises ReportError where a run folder is damaged, or of an older version."""
        mistakes = []
        for section in self.sections:
            if isinstance(section.config, RunParameters):
                try:
                    read_run(section.root / section.config.folder)
                except (ConfigError, DamagedError) as error:
                    mistakes.append(f"{section.id}: {error}")
        _refuse(mistakes)


def load_project(root: Path, smoke: bool) -> Project:
    """Read sections.yaml and check all that it names.

    Raises ReportError with every mistake: notebooks, their parameters, names, values, texts.
    """
    build, texts = root / "reports" / "build", root / "reports" / "text"
    plan = yaml.safe_load((build / "sections.yaml").read_text(encoding="utf-8"))
    runs = root / "runs" / "smoke" if smoke else root / "runs"
    mistakes = [
        f"sections.yaml: run: {key!r} is no stage" for key in plan["run"].keys() - {*STAGES}
    ]
    entries = [(stage, entry) for stage in STAGES for entry in plan["run"].get(stage) or []]
    left_out = {entry["id"] for _, entry in entries if smoke and entry.get("smoke") is False}
    sections = [
        _load_section(entry, stage, root, runs, smoke, mistakes)
        for stage, entry in entries
        if entry["id"] not in left_out
    ]
    ids = [entry["id"] for _, entry in entries]
    mistakes += [f"sections.yaml: {i!r} is there twice" for i in ids if ids.count(i) > 1]
    for position, (_, entry) in enumerate(entries):
        where = f"sections.yaml: {entry['id']}:"
        mistakes += [f"{where} {key!r} is no key of a section" for key in entry.keys() - KEYS]
        after = set(entry.get("after", [])).difference(ids[:position])
        mistakes += [f"{where} after: {i!r} is no section above it" for i in sorted(after)]
    appendices = plan.get("appendices", [])
    for name in [*plan["report"], *appendices]:
        if name not in ids and not (name.endswith(".md") and (texts / name).is_file()):
            mistakes.append(
                f"sections.yaml: {name!r} is neither a section nor a file of reports/text/"
            )
    if plan["picture"] not in ids:
        mistakes.append(f"sections.yaml: picture: {plan['picture']!r} is no section")
    project = Project(
        plan["title"],
        [section for section in sections if section],
        [name for name in plan["report"] if name not in left_out],
        [name for name in appendices if name not in left_out],
        [name for name in [*plan["report"], *appendices] if name in left_out],
        plan["picture"],
        texts,
        runs,
        smoke,
    )
    mistakes += _what_the_pool_cannot_compute(project)
    _refuse(mistakes)
    return project


def _refuse(mistakes: list[str]) -> None:
    if mistakes:
        lines = ["nothing was run; correct this first:", *dict.fromkeys(mistakes)]
        raise ReportError("\n".join(lines), code=2)


def _what_the_pool_cannot_compute(project: Project) -> list[str]:
    mistakes = []
    for section in project.stage("experiments"):
        if section.notebook.name not in (EXPERIMENT, FRONT):
            mistakes.append(
                f"sections.yaml: {section.id}: the stage experiments takes {EXPERIMENT} and {FRONT} "
                "alone; put it into first or last"
            )
        if isinstance(section.config, FrontConfig):
            try:
                project.experiment(section.config.run_dir)
            except KeyError:
                mistakes.append(
                    f"sections.yaml: {section.id}: no experiment above it has the run folder "
                    f"{section.config.run_dir!r}"
                )
    return mistakes


def _load_section(
    entry: Mapping[str, Any], stage: str, root: Path, runs: Path, smoke: bool, mistakes: list[str]
) -> Section | None:
    notebook = root / "notebooks" / entry["notebook"]
    names = [*entry.get("params", []), *([entry["smoke"]] if smoke and "smoke" in entry else [])]
    files = [root / "params" / name for name in names]
    where = f"{entry['id']} (notebooks/{notebook.name})"
    try:
        parameters = own = parameters_of(notebook)
        for file in files:
            loaded = load_params(file)
            mistakes += [
                f"{where}: params/{file.name}: {key}: {unknown_parameter(key, list(own))}"
                for key in loaded
                if key not in own
            ]
            parameters = parameters | {key: loaded[key] for key in loaded if key in own}
    except (ReportError, ConfigError) as error:
        mistakes.append(f"{where}: {error}")
        return None
    below = runs.relative_to(root).as_posix()
    given = {"run_dir": f"{below}/{entry.get('run_dir', entry['id'])}", "runs_dir": below}
    given |= {"study": entry["study"]} if "study" in entry else {}
    # In a trial, what other sections have made is looked for among the trial's own.
    moved = {
        key: value.replace("runs/", f"{below}/", 1)
        for key, value in parameters.items()
        if isinstance(value, str) and value.startswith("runs/")
    }
    folders = {key: value for key, value in (moved | given).items() if key in own}
    parameters = parameters | folders
    config = None
    try:
        if config_class := CONFIGS.get(notebook.name):
            config = config_class(**parameters)
    except ConfigError as error:
        mistakes.append(f"{where}: {error}")
    reads = [pattern.format(id=entry["id"]) for pattern in entry.get("reads", [])]
    after = list(entry.get("after", []))
    about = entry["id"], stage, notebook, files, folders, parameters, config, reads, after
    return Section(*about, root, runs)


def parameters_of(notebook: Path) -> dict[str, Any]:
    """Names and values that the notebook's cell tagged `parameters` assigns.

    Raises ReportError unless there is exactly one such cell and it holds literals alone.
    """
    try:
        cells = read_notebook(notebook).cells
    except (OSError, ValueError) as error:
        raise ReportError(f"cannot be read as a notebook: {error}") from None
    tagged = [cell.source for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1:
        raise ReportError(f"{len(tagged)} cells are tagged `parameters`; exactly one is needed")
    try:
        return dict(_assignment(statement) for statement in ast.parse(tagged[0]).body)
    except (SyntaxError, ValueError) as error:
        raise ReportError(f"the parameters cell needs lines `name = literal`: {error}") from None


def _assignment(statement: ast.stmt) -> tuple[str, Any]:
    match statement:
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            return name, ast.literal_eval(value)
        case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
            return name, ast.literal_eval(value)
    raise ValueError(f"line {statement.lineno}: {ast.unparse(statement)!r}")


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """A notebook file; OSError, ValueError where it is none."""
    return nbformat.read(path, as_version=4)


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
