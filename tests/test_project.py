"""The repository holds together: dependencies, notebooks, parameters, sections, layers, README."""

import ast
import importlib
import re
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from reports.build.plan import CONFIGS, load_project, parameters_of
from reports.text.readme import marks
from reports.text.statistics import load_study
from reports.text.verdicts import MAIN
from warp_core.config import WarpConfig, load_params

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PARAMS = sorted((ROOT / "params").glob("*.yaml"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAPER = ["config", "rollout", "train", "merge", "evaluate", "warp", "study"]
# In the order of the report.
STUDIES = [
    "next_step",
    "seed_report",
    "anchor",
    "merge",
    "liti",
    "iterations",
    "text",
    "sensitivity",
]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def plain(name: str) -> str:
    """A distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if not line.startswith("#")]
    return {plain(name): version for name, version in pins}


# Dependencies


def test_constraints_pin_every_dependency_within_its_range() -> None:
    pins = pinned()
    assert pins["torch"] == "2.13.0"
    for line in sum(PROJECT["optional-dependencies"].values(), PROJECT["dependencies"]):
        requirement = Requirement(line)
        assert pins[plain(requirement.name)] in requirement.specifier, line


def test_conda_environment_is_the_same_project() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    *packages, with_pip = environment["dependencies"]
    assert with_pip == {"pip": ["-c constraints.txt", "-e .[dev]"]}
    assert {"make", "git", "pip"} < set(packages)
    python = next(p.removeprefix("python=") for p in packages if p.startswith("python="))
    assert f"{python}.0" in SpecifierSet(PROJECT["requires-python"])


# Notebooks


def test_the_notebooks_are_there() -> None:
    names = {path.stem for path in NOTEBOOKS}
    assert {"experiment", "overview", "pareto_front", "reward_model", "summary"} <= names


@each_notebook
def test_notebook_layout(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    assert cells[0].cell_type == "markdown"
    assert cells[0].source.startswith("# ")
    assert "parameters" in cells[1].metadata.get("tags", [])
    parameters_of(path)  # raises unless there is one such cell, of literals alone
    markdown = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    assert len(re.findall(r"^# ", markdown, re.MULTILINE)) == 1


@each_notebook
def test_notebook_is_stored_without_outputs_and_in_small_cells(path: Path) -> None:
    for number, cell in enumerate(nbformat.read(path, as_version=4).cells, start=1):
        if "parameters" not in cell.metadata.get("tags", []):
            assert len(cell.source.splitlines()) <= 20, f"cell {number}"
        if cell.cell_type == "code":
            assert not cell.outputs, f"cell {number}"
            assert cell.execution_count is None, f"cell {number}"
            assert not re.search(r"^\s*class |\.backward\(", cell.source, re.MULTILINE)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_notebook_has_the_keys_and_defaults_of_its_configuration(name: str) -> None:
    defaults = {key: field.default for key, field in CONFIGS[name].model_fields.items()}
    assert parameters_of(ROOT / "notebooks" / name) == defaults


# Parameters and sections


@pytest.mark.parametrize("path", PARAMS, ids=lambda path: path.stem)
def test_params_file_loads_and_its_keys_are_the_notebooks(path: Path) -> None:
    params = load_params(path)
    if path.stem.startswith("study_"):
        study = load_study(path)
        assert study.name == path.stem.removeprefix("study_")
        return
    others = {"smoke_reward_model": "reward_model", "smoke_pareto_front": "pareto_front"}
    notebook = others.get(path.stem, "experiment")
    assert set(params) <= set(parameters_of(ROOT / f"notebooks/{notebook}.ipynb"))
    if notebook == "experiment":
        WarpConfig(**load_params(ROOT / "params/base.yaml", path))


@pytest.mark.parametrize("smoke", [False, True])
def test_sections_are_the_seeds_experiments_with_controls_and_the_front(smoke: bool) -> None:
    project = load_project(ROOT, smoke)
    experiments = ["experiment_1", "experiment_1_control", "experiment_2", "experiment_3"]
    experiments += ["experiment_4", "experiment_4_control"]
    if smoke:
        experiments = ["experiment_4_control"]
    measured = [] if smoke else ["performance"]
    stages = {
        stage: {section.id: section for section in project.stage(stage)}
        for stage in ("first", "experiments", "last")
    }
    assert list(stages["first"]) == ["reward_model"]
    assert sorted(stages["experiments"]) == sorted([*experiments, "pareto_front"])
    studies = [] if smoke else [f"study_{study}" for study in STUDIES]
    shows = ["overview", "seed_report", "experiments", "summary", "reproduction"]
    assert sorted(stages["last"]) == sorted([*shows, *studies, *measured])
    front = stages["experiments"]["pareto_front"]
    assert front.config.run_dir == str(project.runs.relative_to(ROOT) / "experiment_4_control")
    assert front.after == ["experiment_4_control"]
    for name in experiments:
        assert {"reward_model/summary.json", f"{name}/metrics.jsonl"} < {
            *stages["experiments"][name].reads
        }
    answers = [study for study in studies if study != "study_seed_report"]
    assert project.report[:5] == [
        "overview",
        "seed_report",
        "reward_model",
        "method.md",
        "experiments",
    ]
    assert project.report[5:] == [*answers, "summary"]
    assert {*experiments, "pareto_front", *measured} < {*project.appendices}
    assert "bibliography.md" in project.appendices
    assert project.left_out == [] or smoke


def test_experiments_are_the_seeds() -> None:
    sections = {section.id: section for section in load_project(ROOT, smoke=False).sections}
    common = {"iterations": 2, "runs": 2, "steps": 10, "beta": 0.1, "mu": 0.01, "eta": 0.5}
    learning = {1: (1e-6, True), 2: (1e-6, False), 3: (1e-3, False), 4: (1e-4, False)}
    for number, (lr, warms_up) in learning.items():
        parameters = sections[f"experiment_{number}"].parameters
        assert parameters | common == parameters
        assert parameters["lr"] == lr
        assert (parameters["warmup_steps"] > parameters["steps"]) == warms_up
        assert parameters["shared_run_seed"]
    for number in (1, 4):
        own = sections[f"experiment_{number}"].parameters
        control = sections[f"experiment_{number}_control"].parameters
        different = {key for key in own if own[key] != control[key]} - {"keep_weights"}
        assert different == {"name", "title", "shared_run_seed", "run_dir"}
    # The front shows the runs beside it.
    assert sections["experiment_4_control"].parameters["keep_weights"] == "all"


def test_what_a_trial_makes_stays_in_its_folder() -> None:
    for section in load_project(ROOT, smoke=True).sections:
        for value in section.parameters.values():
            assert not str(value).startswith("runs") or str(value).startswith("runs/smoke")


def test_what_shows_rows_runs_again_where_others_are_asked_for() -> None:
    decide = {ROOT / "params" / name for name in ("base.yaml", "studies.yaml")}
    decide |= {*(ROOT / "params").glob("study_*.yaml"), *(ROOT / "reports/studies").glob("*.jsonl")}
    sections = load_project(ROOT, smoke=False).sections
    showing = [s for s in sections if "verdicts.load_" in s.notebook.read_text(encoding="utf-8")]
    assert len(showing) == 13
    for section in showing:
        read = {file for pattern in section.reads for file in ROOT.glob(pattern)}
        assert decide <= read, section.id


# The house


def modules(*folders: str) -> dict[str, Path]:
    """Dotted name -> file."""
    files = [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]
    names = (".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files)
    return dict(zip((name.removesuffix(".__init__") for name in names), files, strict=True))


def imports() -> dict[str, set[str]]:
    """Module of warp_core and reports -> those of them that it imports, wherever it does."""
    known = modules("warp_core", "reports")
    found: dict[str, set[str]] = {}
    for name, file in known.items():
        found[name] = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names} & known.keys()
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{name}: a relative import"
                inner = [f"{node.module}.{alias.name}" for alias in node.names]
                found[name] |= {each if each in known else node.module for each in inner} & (
                    known.keys()
                )
    return found


def folder_of(module: str) -> str:
    """The files at warp_core's top are one folder."""
    return module.rpartition(".")[0] or module


def test_imports_run_one_way() -> None:
    """No circle between modules or folders; store <- world <- engine <- the paper <- reports."""
    graph = imports()
    assert len(graph) > 40
    assert graph["warp_core.warp"] > {"warp_core.folders", "warp_core.engine.choice"}
    assert graph["warp_core.folders"] > {"warp_core.train", "warp_core.merge"}
    TopologicalSorter(graph).prepare()  # CycleError names the circle
    folders: dict[str, set[str]] = {}
    for module, imported in graph.items():
        others = {folder_of(each) for each in imported}
        folders.setdefault(folder_of(module), set()).update(others - {folder_of(module)})
    TopologicalSorter(folders).prepare()
    store, world, engine = (f"warp_core.{name}" for name in ("store", "world", "engine"))
    assert folders[store] == set()
    assert folders[world] == {store}
    assert folders[engine] <= {store, world}
    assert folders["warp_core"] == {store, world, engine}
    assert not folders["reports.text"] & {"reports.build", "reports.bench"}


def lines(*files: Path) -> int:
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


def test_the_paper_is_seven_files_of_1300_lines() -> None:
    top = {file.stem: file for file in (ROOT / "warp_core").glob("*.py")}
    assert sorted(top) == sorted(["__init__", "folders", "summary", "tasks", *PAPER])
    assert lines(*(top[name] for name in PAPER)) <= 1300


def test_the_formatter_lays_out_the_code() -> None:
    """But for tables of values."""
    skip = "# fmt: " + "skip"
    files = [*modules("warp_core", "reports", "tests").values(), *NOTEBOOKS]
    texts = [file.read_text(encoding="utf-8") for file in files]
    assert sum(text.count(skip) for text in texts) <= 30
    assert not any("# fmt: " + "off" in text for text in texts)


# README


def section(heading: str) -> str:
    """Of the README."""
    return README.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def test_the_tree_in_the_readme_has_a_line_for_each_file() -> None:
    tree = section("Where everything lies").split("```")[1]
    named: list[str] = []
    folder = ""
    for line in tree.strip().splitlines():
        match = re.fullmatch(r"(  )?(\S+) {2,}\S.*", line)
        assert match, line
        inner, name = match.groups()
        folder = folder if inner else name
        named.append(folder + name if inner else name)
    assert len(named) == len(set(named))
    code = modules("warp_core", "reports").values()
    wanted = {f.relative_to(ROOT).as_posix() for f in code if f.name != "__init__.py"}
    assert {name for name in named if name.endswith(".py")} == wanted
    assert all((ROOT / name).exists() for name in named if name != "runs/")


def test_paths_in_the_readme_exist() -> None:
    top = "warp_core|reports|notebooks|params|tests"
    paths = set(re.findall(rf"(?<![\w/.-])(?:{top})/[\w/.*-]*", README))
    assert len(paths) > 10
    missing = {path for path in paths if not list(ROOT.glob(path.rstrip("./")))}
    assert not missing


def test_functions_in_the_table_from_paper_to_code_exist() -> None:
    rows = [row.split("|") for row in section("Paper → code").splitlines() if row.startswith("|")]
    names = [re.findall(r"`([\w.]+)`", row[2]) for row in rows[2:]]
    assert len(names) > 10
    for row in names:
        assert row
        for name in row:
            full = row[0].rpartition(".")[0] + name if name.startswith(".") else name
            if name not in ("none", "loo"):  # values
                assert callable(resolved(full)), full


def resolved(name: str):
    """What a dotted name stands for: a module, or something in one."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        holder, _, last = name.rpartition(".")
        return getattr(resolved(holder), last)


def test_the_results_in_the_readme_are_the_reports() -> None:
    """Row by row; README has decimal points, and calls a control a control."""
    page = (ROOT / "reports/warp_report.html").read_text(encoding="utf-8").replace("\u00a0", " ")
    _, found, shown = page.partition('id="table-experiments-table"')
    if not found:
        pytest.skip("reports/warp_report.html is of an older layout; `make publish` makes it anew")
    in_page = [re.findall(r"<t[dh]\b[^>]*>(.*?)</t[dh]>", row) for row in shown.split("<tr>")[2:8]]
    rows = readme_table("results")
    assert [row[0] for row in rows] == ["1", "1 control", "2", "3", "4", "4 control"]
    for (name, *numbers), cells in zip(rows, in_page, strict=True):
        assert name.replace(" control", ", контроль") == cells[0]
        assert [number.replace(".", ",") for number in numbers] == cells[4:7]
    claims = readme_table("claims")
    assert len(claims) == len(MAIN)
    for _, _, effect, *_ in claims:
        assert effect.replace(".", ",").replace(" to ", "; ") in page


def readme_table(name: str) -> list[list[str]]:
    """Its rows, without those of its head."""
    begin, end = marks(name)
    lines = README.partition(begin)[2].partition(end)[0].strip().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
