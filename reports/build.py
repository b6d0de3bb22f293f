"""Run the notebooks that are not done, then compile the report.

    python -m reports.build [--smoke] [--only-compile]

1. `sections.yaml` is read and all that it names is checked before anything runs: notebooks,
   parameter names (papermill only warns of unknown ones), values;
2. each section that is not done runs in a papermill process of its own, two of them side by side
   where neither waits for the other, and is kept as RUNS/ID/executed.ipynb, with fingerprints of
   its parameters, its sources and the results it read;
3. `page.py` makes one HTML file of the executed notebooks and the texts; the README's picture is
   one of its figures.
"""

import argparse
import ast
import base64
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

import nbformat
import psutil
import yaml
from filelock import FileLock, Timeout

import warp_core
from reports.bench import BenchConfig
from reports.page import INSERTED, Part, ReportError, compile_page
from reports.status import Status
from warp_core.config import (
    ConfigError,
    FrontConfig,
    Parameters,
    RewardConfig,
    WarpConfig,
    load_params,
    unknown_parameter,
)
from warp_core.errors import DamagedError, StorageError
from warp_core.files import sealed_json, write_bytes
from warp_core.runs import seconds_of

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENT = "experiment.ipynb"
CONFIGS: dict[str, type[Parameters]] = {  # what checks a notebook's parameters
    EXPERIMENT: WarpConfig, "reward_model.ipynb": RewardConfig, "pareto_front.ipynb": FrontConfig,
    "performance.ipynb": BenchConfig,
}  # fmt: skip
LIBRARY = Path(warp_core.__file__).parent
SHOWING = (  # the code of tables, sentences and figures
    LIBRARY / "narrative.py",
    LIBRARY / "plots.py",
    Path(__file__).with_name("comparison.py"),
    Path(__file__).with_name("performance.py"),
)
LANE = Path(__file__).with_name("lane.py")
POLL_SECONDS = 1
SAVING_SECONDS = 60  # that an interrupted notebook has to save what it trains
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
LANES = min(2, CORES)  # notebooks side by side; more would want more memory


@dataclass(frozen=True)
class Section:
    """One notebook and what it is run with."""

    id: str
    notebook: Path
    files: list[Path]  # papermill's -f; a later one overrides an earlier one
    folders: dict[str, str]  # papermill's -r
    parameters: dict[str, Any]  # what the notebook ends up with
    reads: list[str]  # patterns of the results that it shows: below runs/, or reports/…
    after: list[str]  # sections that must be done before
    alone: bool  # it has all cores, and nothing runs beside it
    minutes: float  # estimate, in its lane on two cores
    total_steps: int  # of an experiment; 0: its log says it, or it has none
    root: Path
    runs: Path

    @property
    def executed(self) -> Path:
        return self.runs / self.id / "executed.ipynb"

    def source_fingerprint(self) -> str:
        """Of what decides how the notebook comes out: parameters, cells, tables and figures."""
        cells = [[cell.cell_type, cell.source] for cell in _read(self.notebook).cells]
        code = [_sha256(file) for file in SHOWING]
        return hashlib.sha256(json.dumps([self.parameters, cells, code]).encode()).hexdigest()

    def results_fingerprint(self) -> str:
        places = [(self.root if pattern.startswith("reports/") else self.runs, pattern)
                  for pattern in self.reads]  # fmt: skip
        files = sorted({file for folder, pattern in places for file in folder.glob(pattern)})
        named = [[str(file.relative_to(self.root)), _sha256(file)] for file in files]
        return hashlib.sha256(json.dumps(named).encode()).hexdigest()

    def is_done(self) -> bool:
        try:
            recorded = _read(self.executed).metadata.get("warp_report")
        except (OSError, ValueError):  # it is not there, or damaged
            return False
        return recorded == [self.source_fingerprint(), self.results_fingerprint()]

    def steps(self) -> tuple[int, int]:
        """Training steps logged so far, and how many there will be; 0, 0 where nothing says it."""
        run_dir = self.root / self.parameters.get("run_dir", "")
        if self.notebook.name == EXPERIMENT:
            # Runs that share a seed are computed once.
            runs = "1" if self.parameters["shared_run_seed"] else "*"
            logs = run_dir.glob(f"steps/*_run_{runs}.jsonl")
            return sum(log.read_bytes().count(b"\n") for log in logs), self.total_steps
        log = run_dir / "training.jsonl"
        lines = log.read_bytes().split(b"\n")[:-1] if log.is_file() else []  # whole lines
        last = json.loads(lines[-1]) if lines else {}
        return last.get("step", 0), last.get("steps", 0)


@dataclass(frozen=True)
class Project:
    """What `sections.yaml` says, checked."""

    title: str
    sections: list[Section]
    report: list[str]  # section ids and Markdown files, in the order of the page
    picture: str  # the section whose first figure is the README's picture
    texts: Path
    runs: Path
    page: Path
    smoke: bool


def load_project(root: Path, smoke: bool) -> Project:
    """Read sections.yaml and check all that it names.

    Raises ReportError with every mistake: notebooks, their parameters, names, values, texts.
    """
    texts = root / "reports"
    plan = yaml.safe_load((texts / "sections.yaml").read_text(encoding="utf-8"))
    runs = root / "runs" / "smoke" if smoke else root / "runs"
    mistakes: list[str] = []
    left_out = {e["id"] for e in plan["run"] if smoke and e.get("smoke") is False}
    entries = [entry for entry in plan["run"] if entry["id"] not in left_out]
    sections = [_load_section(entry, root, runs, smoke, mistakes) for entry in entries]
    ids = [entry["id"] for entry in plan["run"]]
    mistakes += [f"sections.yaml: {i!r} is there twice" for i in ids if ids.count(i) > 1]
    known = {"id", "notebook", "params", "smoke", "run_dir", "reads", "after", "alone", "minutes",
             "smoke_minutes"}  # fmt: skip
    for position, entry in enumerate(plan["run"]):
        mistakes += [f"sections.yaml: {entry['id']}: {key!r} is no key of a section"
                     for key in entry.keys() - known]  # fmt: skip
        mistakes += [f"sections.yaml: {entry['id']}: after: {i!r} is no section above it"
                     for i in entry.get("after", []) if i not in ids[:position]]  # fmt: skip
    for name in plan["report"]:
        if name not in ids and not (name.endswith(".md") and (texts / name).is_file()):
            mistakes.append(f"sections.yaml: {name!r} is neither a section nor a file of reports/")
    if plan["picture"] not in {section.id for section in sections if section}:
        mistakes.append(f"sections.yaml: picture: {plan['picture']!r} is no section")
    if mistakes:
        lines = ["nothing was run; correct this first:", *dict.fromkeys(mistakes)]
        raise ReportError("\n".join(lines), code=2)
    page = (runs if smoke else texts) / "warp_report.html"
    found = [section for section in sections if section]
    report = [name for name in plan["report"] if name not in left_out]
    return Project(plan["title"], found, report, plan["picture"], texts, runs, page, smoke)


def _load_section(
    entry: dict[str, Any], root: Path, runs: Path, smoke: bool, mistakes: list[str]
) -> Section | None:
    notebook = root / "notebooks" / entry["notebook"]
    names = [*entry.get("params", []), *([entry["smoke"]] if smoke and "smoke" in entry else [])]
    files = [root / "params" / name for name in names]
    where = f"{entry['id']} (notebooks/{notebook.name})"
    try:
        parameters = own = parameters_of(notebook)
        for file in files:
            loaded = load_params(file)
            mistakes += [f"{where}: params/{file.name}: {key}: {unknown_parameter(key, list(own))}"
                         for key in loaded if key not in own]  # fmt: skip
            parameters = parameters | {key: loaded[key] for key in loaded if key in own}
    except (ReportError, ConfigError) as error:
        mistakes.append(f"{where}: {error}")
        return None
    below = runs.relative_to(root).as_posix()
    folders = {"run_dir": f"{below}/{entry.get('run_dir', entry['id'])}", "runs_dir": below}
    # In a trial, what other sections have made is looked for among the trial's own.
    folders = {key: value.replace("runs/", f"{below}/", 1) for key, value in parameters.items()
               if isinstance(value, str) and value.startswith("runs/")} | folders  # fmt: skip
    folders = {key: value for key, value in folders.items() if key in own}
    parameters = parameters | folders
    total = 0
    if config_class := CONFIGS.get(notebook.name):
        try:
            config = config_class(**parameters)
            if isinstance(config, WarpConfig):
                total = config.iterations * config.steps
                total *= 1 if config.shared_run_seed else config.runs
        except ConfigError as error:
            mistakes.append(f"{where}: {error}")
    minutes = entry["smoke_minutes" if smoke else "minutes"]
    reads = [pattern.format(id=entry["id"]) for pattern in entry.get("reads", [])]
    return Section(entry["id"], notebook, files, folders, parameters, reads,
                   entry.get("after", []), entry.get("alone", False), minutes, total, root,
                   runs)  # fmt: skip


def parameters_of(notebook: Path) -> dict[str, Any]:
    """Names and values that the notebook's cell tagged `parameters` assigns.

    Raises ReportError unless there is exactly one such cell and it holds literals alone.
    """
    try:
        cells = _read(notebook).cells
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


@dataclass(frozen=True)
class Running:
    """A notebook in a papermill process of its own."""

    section: Section
    child: subprocess.Popen[bytes]
    log: IO[bytes]
    source: str  # fingerprint of what was started


def run_sections(sections: list[Section]) -> None:
    """Run what is not done, side by side where nothing waits for the other.

    Raises ReportError with the cell and its error if one fails; what the run folders hold stays.
    """
    status = Status(sections, LANES)
    waiting, running = list(sections), list[Running]()
    try:
        while waiting or running:
            for section in list(waiting):
                if _may_start(section, waiting, running):
                    waiting.remove(section)
                    if not section.is_done():  # asked anew: it may read what has just been written
                        running.append(_start(section))
                        status.start(section)
            if running:
                time.sleep(POLL_SECONDS)
                status.tick()
            for one in [one for one in running if one.child.poll() is not None]:
                running.remove(one)
                _finish(one)
                status.finish(one.section)
    finally:
        for one in running:  # Ctrl-C, or another one failed
            _interrupt(one.child)
        for one in running:
            _end(one.child)


def _may_start(section: Section, waiting: list[Section], running: list[Running]) -> bool:
    """A section that is alone shares the cores with none; the others run LANES at a time."""
    unfinished = {other.id for other in waiting} | {one.section.id for one in running}
    lanes = 1 if section.alone or any(one.section.alone for one in running) else LANES
    return len(running) < lanes and not unfinished.intersection(section.after)


def _start(section: Section) -> Running:
    executing = _executing(section)
    executing.parent.mkdir(parents=True, exist_ok=True)
    executing.unlink(missing_ok=True)
    command = [sys.executable, str(LANE), str(section.notebook), str(executing),
               "--cwd", str(section.root), "-k", "python3", "-l", "python",
               "--no-progress-bar"]  # fmt: skip
    command += [part for file in section.files for part in ("-f", str(file))]
    command += [part for pair in section.folders.items() for part in ("-r", *pair)]
    # One that runs in a lane has its share of the cores, whether or not another is beside it: the
    # last bits of its numbers may depend on it.
    share = {} if section.alone else {"OMP_NUM_THREADS": str(max(1, CORES // LANES))}
    log = tempfile.TemporaryFile()  # noqa: SIM115 (`_finish` closes it)
    # Its own session: Ctrl-C reaches this process alone, which then stops the others in order.
    child = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True,
                             env=os.environ | share)  # fmt: skip
    return Running(section, child, log, section.source_fingerprint())


def _finish(one: Running) -> None:
    executing = _executing(one.section)
    with one.log as log:
        if one.child.returncode:
            log.seek(0)
            _explain(one.section, executing, log.read().decode(errors="replace"))
    notebook = _read(executing)
    notebook.metadata["warp_report"] = [one.source, one.section.results_fingerprint()]
    nbformat.write(notebook, executing)
    executing.replace(one.section.executed)


def _executing(section: Section) -> Path:
    return section.executed.with_name("executing.ipynb")


def _interrupt(child: subprocess.Popen[bytes]) -> None:
    """Ctrl-C for the notebook's kernel, whose runs then save what they have."""
    if child.poll() is None:
        for process in psutil.Process(child.pid).children():
            process.send_signal(signal.SIGINT)


def _end(child: subprocess.Popen[bytes]) -> None:
    """Wait for it; papermill, interrupted, kills the kernel and the processes that it has."""
    for patience, signal_number in ((SAVING_SECONDS, signal.SIGINT), (20, signal.SIGKILL)):
        try:
            child.wait(patience)
        except subprocess.TimeoutExpired:
            child.send_signal(signal_number)
    child.wait()


def _explain(section: Section, executing: Path, log: str) -> NoReturn:
    """Say which cell failed and how; a kernel may also have died without a word."""
    lines = [f"\n{section.id}: notebooks/{section.notebook.name} failed"]
    cells = _read(executing).cells if executing.is_file() else []
    cells = [cell for cell in cells if not INSERTED & set(cell.metadata.get("tags", []))]
    errors = [(number, cell.source, output) for number, cell in enumerate(cells, 1)
              for output in cell.get("outputs", []) if output.output_type == "error"]  # fmt: skip
    for number, source, error in errors[:1]:
        lines += [f"in cell {number} of {len(cells)}:",
                  *(f"    {line}" for line in source.splitlines()[:3]),
                  re.sub(r"\x1b\[[0-9;]*m", "", f"{error.ename}: {error.evalue}")]  # fmt: skip
    if not errors:
        lines += ["without an error of its own; papermill said:", log.strip()[-2000:]]
    if executing.is_file():
        lines.append(f"The notebook as far as it got: {executing.relative_to(section.root)}")
    lines.append("All that was done is kept; the same command goes on from there.")
    raise ReportError("\n".join(lines))


def compile_report(project: Project) -> str:
    """The page, from what has been executed. Raises ReportError."""
    sections = {section.id: section for section in project.sections}
    missing = [n for n in project.report if n in sections and not sections[n].executed.is_file()]
    if missing:
        raise ReportError(f"nothing to compile, for these were not run: {', '.join(missing)}")
    parts = []
    for name in project.report:
        if section := sections.get(name):
            own_title = section.notebook.name == EXPERIMENT
            title = section.parameters["title"] if own_title else None
            parts.append(Part(name, section.executed, title))
        else:
            parts.append(Part(Path(name).stem, project.texts / name))
    return compile_page(parts, project.title, provenance(project), project.smoke)


def picture(project: Project) -> bytes:
    """The first figure of the section that sections.yaml names for it, as PNG; or ReportError."""
    cells = _read(project.runs / project.picture / "executed.ipynb").cells
    figures = (output["data"]["image/png"] for cell in cells for output in cell.get("outputs", [])
               if "image/png" in output.get("data", {}))  # fmt: skip
    png = next(figures, None)
    if png is None:
        raise ReportError(f"{project.picture}: it has no figure, and sections.yaml wants one")
    return base64.b64decode(png)


def provenance(project: Project) -> str:
    """When, from which commit and in how long the numbers were made; in Russian."""
    folders = [project.runs / section.id for section in project.sections]
    seconds = sum(seconds_of(folder) for folder in folders)
    paths = [folder / "meta.json" for folder in folders]
    commits = {sealed_json(path)["commit"] for path in paths if path.is_file()}
    ended = max(_read(section.executed).metadata["papermill"]["end_time"]
                for section in project.sections if section.executed.is_file())  # fmt: skip
    year, month, day = ended[:10].split("-")
    return (f"Вычисления закончены {day}.{month}.{year}; счёт занял {seconds / 60:.0f} мин в сумме по "
            f"ноутбукам, которые шли по два; "
            f"коммит: {', '.join(sorted(commits)) or 'неизвестен'}.")  # fmt: skip


def _read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    """Exit status: 0 all done, 1 a notebook or the page failed, 2 nothing was run, 130 stopped."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="a trial at tiny sizes, in runs/smoke")
    parser.add_argument("--only-compile", action="store_true", help="run nothing")
    options = parser.parse_args(argv)
    try:
        project = load_project(root, options.smoke)
        project.runs.mkdir(parents=True, exist_ok=True)
        with FileLock(project.runs / ".build.lock", timeout=0):
            if not options.only_compile:
                run_sections(project.sections)
            page = compile_report(project).encode()
            new = not project.page.is_file() or project.page.read_bytes() != page
            if new:
                write_bytes(project.page, page)
                write_bytes(project.page.with_name("results.png"), picture(project))
            print(f"{'report' if new else 'nothing to do, all is done'}: {project.page}")
    except Timeout:
        print(f"another build is at work in {root / 'runs'}; let it end first", file=sys.stderr)
        return 2
    except ReportError as error:
        print(error, file=sys.stderr)
        return error.code
    except (DamagedError, StorageError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; all that was done is kept, the same command goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    # Also where SIGINT is ignored, as in a script's background job: papermill would inherit that.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup stays what it is
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    sys.exit(main())
