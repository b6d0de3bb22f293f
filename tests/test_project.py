"""The repository holds together: dependencies, notebooks, parameters, sections."""

import re
import subprocess
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from reports.build import CONFIGS, load_project, parameters_of
from warp_core.config import WarpConfig, load_params

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PARAMS = sorted((ROOT / "params").glob("*.yaml"))
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
    for line in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]:
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
    others = {"smoke_reward_model": "reward_model", "smoke_pareto_front": "pareto_front"}
    notebook = others.get(path.stem, "experiment")
    assert set(params) <= set(parameters_of(ROOT / f"notebooks/{notebook}.ipynb"))
    if notebook == "experiment":
        WarpConfig(**load_params(ROOT / "params/base.yaml", path))


@pytest.mark.parametrize("smoke", [False, True])
def test_sections_are_the_seeds_experiments_with_controls_and_the_front(smoke: bool) -> None:
    project = load_project(ROOT, smoke)
    experiments = ["experiment_1", "experiment_1_control", "experiment_2", "experiment_2_control",
                   "experiment_3", "experiment_4"]  # fmt: skip
    if smoke:
        experiments = ["experiment_4"]
    measured = [] if smoke else ["performance"]
    made = ["reward_model", *experiments, "pareto_front"]
    assert sorted(section.id for section in project.sections) == sorted(
        [*made, *measured, "summary", "overview"]
    )
    for section in project.sections:  # what reads another's results waits for it
        waits = {"reward_model": [], "performance": [], "pareto_front": ["experiment_4"]}.get(
            section.id
        )
        if waits is None:
            waits = ["reward_model"] if section.id in experiments else made
        assert set(waits) == set(section.after) & {*made}
        assert section.alone == (section.id == "reward_model")
    assert project.report == [
        "overview", "method.md", "reward_model", *experiments, "pareto_front", *measured,
        "summary",
    ]  # fmt: skip


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
    for number in (1, 2):
        own = sections[f"experiment_{number}"].parameters
        control = sections[f"experiment_{number}_control"].parameters
        different = {key for key in own if own[key] != control[key]}
        assert different == {"name", "title", "shared_run_seed", "run_dir"}


def test_what_a_trial_makes_stays_in_its_folder() -> None:
    for section in load_project(ROOT, smoke=True).sections:
        for value in section.parameters.values():
            assert not str(value).startswith("runs") or str(value).startswith("runs/smoke")


# README


def test_the_results_in_the_readme_are_the_reports() -> None:
    """Row by row; the README has decimal points, and calls a control a control."""
    changed = ["git", "-C", str(ROOT), "diff", "--quiet", "HEAD", "--", "reports/warp_report.html"]
    if subprocess.run(changed).returncode:
        pytest.skip("reports/warp_report.html is not the one that was committed")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = readme.partition("## Results at a glance")[2].partition("\n\n|")[2].partition("\n\n")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]
    ]
    assert len(rows) == 6
    page = (ROOT / "reports/warp_report.html").read_text(encoding="utf-8").replace("\u00a0", " ")
    shown = [re.findall(r"<td>(.*?)</td>", row) for row in page.split("<tr>")]
    for name, *numbers in rows:
        russian = [number.replace(".", ",") for number in numbers]
        assert [name.replace(" control", ", контроль"), *russian] in shown, name
