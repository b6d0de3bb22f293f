"""sections.yaml, checked before anything runs; what of it is done."""

import io
import shutil
from pathlib import Path
from types import SimpleNamespace

import nbformat
import project
import pytest

from reports.build.__main__ import main
from reports.build.faults import ReportError
from reports.build.plan import STATISTICS, load_project, parameters_of
from reports.build.run import Running, _finish
from warp_core.store.files import seal_json, seal_text


@pytest.mark.parametrize(
    ("file", "change", "again"),
    [
        ("params/one.yaml", lambda text: text.replace("0.0001", "0.001"), {"one"}),
        ("params/base.yaml", lambda text: text + "beta: 0.1\n", set()),  # the default
        ("notebooks/experiment.ipynb", lambda text: text.replace("Вступ", "Вы"), {"one"}),
        ("runs/one/samples.jsonl", lambda text: text + " ", {"one"}),
        ("runs/one/summary.json", lambda text: text + " ", {"summary"}),
        ("runs/one/executed.ipynb", lambda text: text[:-20], {"one"}),
    ],
)
def test_what_changed_is_not_done(copy: Path, file: str, change, again: set[str]) -> None:
    path = copy / file
    changed = change(path.read_text(encoding="utf-8"))
    path.write_text(changed, encoding="utf-8")
    sections = load_project(copy, smoke=False).sections
    assert {section.id for section in sections if not section.is_done()} == again


def test_other_statistics_of_the_studies_show_them_again(copy: Path, monkeypatch) -> None:
    monkeypatch.setattr("reports.build.plan.STATISTICS", STATISTICS[:2])
    assert not any(section.is_done() for section in load_project(copy, smoke=False).sections)


def test_rows_written_while_a_notebook_ran_are_not_done(copy: Path) -> None:
    """It may have read the ones before; what it writes itself below runs/ is another matter."""
    plan = project.read_plan(copy)
    plan["run"]["last"][0]["reads"] = ["reports/studies/*.jsonl", "one/summary.json"]
    project.write_plan(copy, plan)
    section = load_project(copy, smoke=False).stage("last")[0]
    rows = copy / "reports/studies/one.jsonl"
    rows.parent.mkdir(exist_ok=True)

    def run(while_it_runs: Path) -> bool:
        given = section.fingerprint()[:-1]
        shutil.copy(section.executed, section.executed.with_name("executing.ipynb"))
        with while_it_runs.open("a", encoding="utf-8") as file:
            file.write(" ")
        child = SimpleNamespace(returncode=0)
        _finish(Running(section, child, io.BytesIO(), given, 0.0))  # type: ignore[arg-type]
        return section.is_done()

    assert run(copy / "runs/one/summary.json")
    assert not run(rows)
    assert run(copy / "runs/one/summary.json")


def test_every_mistake_is_found_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = project.make_project(tmp_path / "project")
    (root / "params/one.yaml").write_text("learning_rat: 1\nitertions: 3\nbeta: -1\n")
    project.notebook(root / "notebooks/summary.ipynb", "Сводка", "runs_dir = str(1)", "")
    (root / "notebooks/reward_model.ipynb").unlink()
    front = root / "notebooks/pareto_front.ipynb"
    project.notebook(front, "Фронт", "etas = [0, 4]\nrun_dir = ''", "")
    plan = project.read_plan(root)
    wrong = {"notebook": "pareto_front.ipynb", "after": ["two"], "befor": ["summary"]}
    plan["run"]["last"] += [wrong | {"id": "front"}, {"id": "one", "notebook": "summary.ipynb"}]
    plan["run"]["later"] = []
    project.write_plan(root, plan | {"picture": "figure"})
    (root / "reports/text/method.md").unlink()
    assert main([], root) == 2
    said = capsys.readouterr().err
    for words in (
        "one (notebooks/experiment.ipynb): params/one.yaml: itertions: unknown parameter",
        "did you mean 'iterations'?",
        "learning_rat: unknown parameter",
        "beta: -1 given",
        "etas.1: 4 given",
        "summary (notebooks/summary.ipynb): the parameters cell needs lines `name = literal`",
        "reward_model (notebooks/reward_model.ipynb): cannot be read as a notebook",
        "front: after: 'two' is no section above it",
        "front: 'befor' is no key of a section",
        "run: 'later' is no stage",
        "'one' is there twice",
        "'method.md' is neither a section nor a file of reports/text/",
        "picture: 'figure' is no section",
    ):
        assert words in said
    assert not (root / "runs").exists()
    assert not project.order(root)


def test_what_the_pool_cannot_compute_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A front needs its experiment, and a notebook that is neither belongs to another stage."""
    root = project.make_real_project(tmp_path / "project", {}, one={})
    project.notebook(root / "notebooks/summary.ipynb", "Сводка", "runs_dir = 'runs'", "")
    plan = project.read_plan(root)
    plan["run"]["experiments"][1]["run_dir"] = "two"
    plan["run"]["experiments"].append({"id": "summary", "notebook": "summary.ipynb"})
    project.write_plan(root, plan)
    assert main([], root) == 2
    said = capsys.readouterr().err
    assert "front: no experiment above it has the run folder 'runs/two'" in said
    assert "summary: the stage experiments takes experiment.ipynb and pareto_front.ipynb" in said
    assert not (root / "runs").exists()


@pytest.mark.parametrize("tags", [[], ["parameters", "parameters"]])
def test_exactly_one_parameters_cell(tmp_path: Path, tags: list[str]) -> None:
    cells = [nbformat.v4.new_code_cell("a = 1", metadata={"tags": [tag]}) for tag in tags]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "n.ipynb")
    with pytest.raises(ReportError, match=f"{len(tags)} cells are tagged"):
        parameters_of(tmp_path / "n.ipynb")


def old_folder(folder: Path) -> None:
    """As the version before this one left an experiment, with what lay beside its folder."""
    sft = folder.parent / "sft/80968992147affaccec43af2"
    weights = [folder / "weights/iteration_1/run_1", folder / "weights/warp"]
    for each in (folder / "steps", sft, *weights):
        each.mkdir(parents=True)
    seal_json(folder / "meta.json", {"commit": "2d9677d9bc19", "threads": 1, "identity": {}})
    seal_text(folder / "params.yaml", "name: one\nlr: 0.0001\nworkers: 0\n")
    seal_json(folder / "summary.json", {"sft_reward": {"mean": 0.34}, "front": []})
    for log in ("metrics.jsonl", "samples.jsonl", "steps/iteration_1_run_1.jsonl"):
        seal_text(folder / log, '{"iteration": 1, "run": 1, "step": 1}\n')
    seal_json(folder / "timing.json", {"seconds": 445.3})
    for each in weights:
        seal_text(each / "model.safetensors", "weights")
    seal_text(sft / "completions.safetensors", "completions")
    (folder / ".lock").touch()


@pytest.mark.parametrize("options", [[], ["--fresh"], ["--only-compile"]])
@pytest.mark.parametrize("name", ["one", "reward_model"])
def test_a_run_folder_of_the_old_version_is_refused_and_not_touched(
    name: str, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = project.make_project(tmp_path / "project")
    folder = root / "runs" / name
    old_folder(folder)
    before = project.files_below(root / "runs")
    assert main(options, root) == 2
    _, said = capsys.readouterr().err.strip().splitlines()
    assert said.startswith(f"{name}: run_dir: '{folder}' was made by an older version, which this")
    assert "move the folder away (and the folder sft beside it)" in said
    after = project.files_below(root / "runs")
    assert after.pop(".build.lock")[0] == b""
    assert after == before
    assert not project.order(root)  # not even the reward model, which comes first

    folder.rename(root / "moved")
    load_project(root, smoke=False).check_folders()
