"""Notebooks by the real papermill: their order, their folders, failures, Ctrl-C."""

import signal
import subprocess
import time
from pathlib import Path

import project
import pytest
from filelock import FileLock

from reports.build import run
from reports.build.__main__ import main
from reports.build.plan import load_project


def test_sections_run_in_order_into_their_folders(built: Path) -> None:
    assert project.order(built) == ["reward_model", "experiment", "summary"]
    for name in ("reward_model", "one", "summary"):
        assert [p.name for p in (built / "runs" / name).glob("*.ipynb")] == ["executed.ipynb"]
    assert (built / "runs/one/samples.jsonl").read_text() == "0.0001"  # the later file's lr


def test_second_build_does_nothing(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = project.files_below(copy)
    assert main([], copy) == 0
    assert project.files_below(copy) == before
    assert capsys.readouterr().out.startswith("nothing to do, all is done: ")


def test_stages_follow_each_other_and_at_most_two_notebooks_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first stage one at a time; what shows all of it behind everything; `after` is waited for."""
    root = project.make_project(tmp_path / "project")
    front = root / "notebooks/pareto_front.ipynb"
    project.notebook(front, "Фронт", "run_dir = 'runs/a'\netas = [1.0]", "")
    plan, experiment = project.read_plan(root), {"notebook": "experiment.ipynb"}
    shows = {"notebook": "summary.ipynb"}
    plan["run"] = {
        "last": [shows | {"id": "x", "after": ["a"]}, shows | {"id": "y", "after": ["x"]}],
        "experiments": [
            experiment | {"id": "a"},
            {"notebook": "pareto_front.ipynb", "id": "f", "run_dir": "a", "after": ["a"]},
            *(experiment | {"id": name} for name in "bc"),
        ],
        "first": [{"notebook": "reward_model.ipynb", "id": name} for name in "rs"],
    }
    project.write_plan(root, plan | {"report": list("xy"), "appendices": [], "picture": "x"})
    begun, ended = {}, {}

    def start(section: run.Section) -> run.Running:
        begun[section.id] = time.monotonic()
        child = subprocess.Popen(["sleep", "0.6" if section.id == "a" else "0.2"])
        return run.Running(section, child, None, "", begun[section.id])

    monkeypatch.setattr(run, "_start", start)
    monkeypatch.setattr(
        run, "_finish", lambda one: ended.update({one.section.id: time.monotonic()})
    )
    monkeypatch.setattr(run, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(
        "reports.build.pool.compute", lambda *_: begun.update(pool=time.monotonic())
    )
    run.run_sections(load_project(root, smoke=False))
    assert list(begun) == ["r", "s", "pool", "a", "b", "c", "f", "x", "y"]
    for one, other in ("rs", "af", "xy", "fx", "cx"):
        assert begun[other] >= ended[one]
    for one, other in ("ab", "ac"):
        assert begun[other] < ended[one]
    moments = [sum(begun[n] <= at < ended[n] for n in ended) for at in ended.values()]
    assert max(moments) <= 2


def test_a_failure_names_the_cell_and_the_next_build_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = project.make_project(tmp_path / "project")
    plan = project.read_plan(root)
    reward_model, summary = plan["run"]["first"][0], plan["run"]["last"][1]
    plan["run"] = {"first": [summary | {"reads": [], "after": []}, reward_model]}
    project.write_plan(root, plan | {"report": ["summary", "reward_model"], "appendices": []})
    (root / "broken").touch()

    assert main([], root) == 1
    said = capsys.readouterr().err
    assert "reward_model: notebooks/reward_model.ipynb failed\nin cell 4 of 4:\n" in said
    assert "    from pathlib import Path\n" in said
    assert "\nValueError: no ratings\n" in said  # without the colour codes
    assert "as far as it got: runs/reward_model/executing.ipynb" in said
    assert "All that was done is kept" in said
    assert not (root / "runs/warp_report.html").exists()

    assert main(["--only-compile"], root) == 1
    assert "these were not run: reward_model" in capsys.readouterr().err

    (root / "broken").unlink()
    assert main([], root) == 0
    assert project.order(root) == ["summary", "reward_model", "reward_model"]


MEETING = """
import os, time
from pathlib import Path
Path(run_dir).mkdir(parents=True, exist_ok=True)
Path(run_dir, "here").touch()
others = [Path("runs/one/here"), Path("runs/two/here")]
end = time.monotonic() + 150
while not all(other.exists() for other in others):
    assert time.monotonic() < end, "nobody came"
    time.sleep(0.1)
if name == "two":
    os._exit(3)
try:
    time.sleep(600)
except KeyboardInterrupt:
    Path(run_dir, "saved").touch()
    raise
"""


def test_one_that_fails_stops_the_other_which_saves_what_it_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A kernel that dies without a word, here."""
    root = project.make_project(tmp_path / "project")
    path = root / "notebooks/experiment.ipynb"
    project.notebook(path, "Встреча", project.WARP_KEYS, MEETING)
    (root / "params/two.yaml").write_text("name: two\n")
    plan = project.read_plan(root)
    one = plan["run"]["last"][0]
    two = one | {"id": "two", "params": ["base.yaml", "two.yaml"]}
    plan |= {"appendices": []}
    project.write_plan(
        root, plan | {"run": {"last": [one, two]}, "report": ["one", "two"], "picture": "one"}
    )
    start = time.monotonic()
    assert main([], root) == 1
    assert time.monotonic() - start < 400
    said = capsys.readouterr().err
    assert "two: notebooks/experiment.ipynb failed\nwithout an error of its own; papermill" in said
    assert "DeadKernelError" in said
    assert (root / "runs/one/saved").is_file()
    assert not list((root / "runs").glob("*/executed.ipynb"))


def test_smoke_has_its_own_folders_and_says_so(tmp_path: Path) -> None:
    root = project.make_project(tmp_path / "project")
    plan = project.read_plan(root)
    plan["run"]["first"][0]["smoke"] = False
    plan["run"]["last"].pop()
    plan |= {"appendices": []}
    project.write_plan(root, plan | {"report": ["reward_model", "one"], "picture": "one"})
    assert main(["--smoke"], root) == 0
    assert project.order(root) == ["experiment"]  # the reward model was left out
    page = (root / "runs/smoke/warp_report.html").read_text(encoding="utf-8")
    assert "Это пробный запуск." in page
    assert "Числа, графики и выводы ниже ничего не значат." in page
    assert "runs/smoke/reward_model/model" in page  # what the notebook was given
    assert [p.name for p in (root / "runs").iterdir()] == ["smoke"]
    assert not (root / "runs/warp_report.html").exists()


def test_an_interrupted_build_leaves_no_process(tmp_path: Path) -> None:
    root = project.make_project(tmp_path / "project")
    code = "import os, subprocess, time\nchild = subprocess.Popen(['sleep', '300'])\n"
    code += "from pathlib import Path\nPath('pids.tmp').write_text(f'{os.getpid()} {child.pid}')\n"
    code += "Path('pids.tmp').rename('pids')\ntime.sleep(300)"
    project.notebook(root / "notebooks/reward_model.ipynb", "Долго", "run_dir = ''", code)
    builder = project.start_build(root)
    pids = root / "pids"
    project.wait_for(pids.is_file, 200)
    builder.send_signal(signal.SIGINT)
    _, said = builder.communicate(timeout=200)
    assert builder.returncode == 130
    assert "stopped; all that was done is kept" in said
    processes = [int(pid) for pid in pids.read_text().split()]
    project.wait_for(lambda: not any(map(project.is_alive, processes)), 100)


def test_two_builds_at_once_are_refused(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FileLock(copy / "runs/.build.lock"):
        assert main([], copy) == 2
    assert "another build is at work" in capsys.readouterr().err
