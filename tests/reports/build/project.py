"""Projects to build: one of stand-in notebooks, one of real experiments at tiny sizes."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import yaml

from reports.build.__main__ import ROOT
from warp_core.config import WarpConfig

MODEL_TEXT = "<script>alert(1)</script> $x$ | [a](b) **c** &amp; `d`"
SECTIONS = "reports/build/sections.yaml"
ORDER = "from pathlib import Path\nwith open('order.txt', 'a') as file:\n    file.write('{}\\n')\n"
FOLDER = """
from warp_core.store.files import seal_json, seal_text
from warp_core.store.machine import code_of_the_method
from warp_core.store.run_folder import LAYOUT
Path(run_dir).mkdir(parents=True, exist_ok=True)
origin = {"commit": "abc123", "code": code_of_the_method()}
seal_json(Path(run_dir, "meta.json"), origin | {"layout": LAYOUT, "identity": {}})
seal_text(Path(run_dir, "params.yaml"), "{}")
"""
REWARD = f"""{FOLDER}
seal_json(Path(run_dir, "timing.json"), {{"seconds": 60}})
Path(run_dir, "summary.json").write_text("{{}}")
if Path("broken").exists():
    raise ValueError("\\x1b[31mno ratings\\x1b[0m")
"""
FIGURE = """
from reports.text import figures, show
ax = figures.new_axes()
ax.plot([0, 1], [0, 1])
show.figure(ax, "line", "Прямая <b>линия</b>; см. [@summary].", [{"x": 1.5}], picture=True)
"""
EXPERIMENT = f"""{FOLDER}
import html
from IPython.display import HTML, Markdown, display
folder = Path(run_dir)
(folder / "samples.jsonl").write_text(str(lr))
(folder / "summary.json").write_text("{{}}")
seal_json(folder / "origins.json", {{"run-1": origin | {{"seconds": 120}}}})
print("printed by the cell")
display(HTML("<table><tr><td>" + html.escape({MODEL_TEXT!r}) + "</td></tr></table>"))
from reports.text import show
show.table("<table><tr><td>1</td></tr></table>", "one", "Таблица опыта.", fold=True)
display(Markdown(f"lr = {{float(lr)}}, $\\\\theta_{{{{slerp}}}}$, reward from {{reward_model}}"))
"""
SENTENCES = """
from IPython.display import Markdown, display
display(Markdown("1. **Первое**: одно.\\n2. Второе."))
"""
WARP_KEYS = "".join(f"{k} = {f.default!r}\n" for k, f in WarpConfig.model_fields.items())


def notebook(path: Path, heading: str, parameters: str, code: str) -> None:
    """A title, its parameters, a heading, one cell of code."""
    cells = [
        nbformat.v4.new_markdown_cell(f"# {heading}\n\nВступление."),
        nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        nbformat.v4.new_markdown_cell("## Результаты\n\nФормула: $r_\\beta$."),
        nbformat.v4.new_code_cell(code),
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)


def make_project(root: Path) -> Path:
    """Three sections of stand-ins and a text; none is for the pool, which computes real ones alone."""
    for folder in ("notebooks", "params", "reports/build", "reports/text"):
        (root / folder).mkdir(parents=True)
    notebook(
        root / "notebooks/reward_model.ipynb",
        "Модель награды",
        "epochs = 1\nrun_dir = ''",
        ORDER.format("reward_model") + REWARD,
    )
    notebook(
        root / "notebooks/experiment.ipynb",
        "Заготовка",
        WARP_KEYS,
        ORDER.format("experiment") + EXPERIMENT,
    )
    notebook(
        root / "notebooks/summary.ipynb",
        "Сводка",
        "runs_dir = 'runs'",
        ORDER.format("summary") + SENTENCES + FIGURE + "print(runs_dir)",
    )
    params = {
        "base.yaml": {"lr": 1e-6, "reward_model": "runs/reward_model/model"},
        "one.yaml": {"name": "one", "title": "Опыт <b>$x$</b>", "lr": 1e-4},
        "smoke.yaml": {"steps": 2},
    }
    for name, content in params.items():
        (root / "params" / name).write_text(yaml.safe_dump(content, allow_unicode=True))
    one = {
        "id": "one",
        "notebook": "experiment.ipynb",
        "smoke": "smoke.yaml",
        "params": ["base.yaml", "one.yaml"],
        "reads": ["{id}/samples.jsonl"],
    }
    summary = {"id": "summary", "notebook": "summary.ipynb", "reads": ["*/summary.json"]}
    stages = {
        "first": [{"id": "reward_model", "notebook": "reward_model.ipynb"}],
        "last": [one, summary | {"after": ["one"]}],
    }
    plan = {"title": "Отчёт", "run": stages, "picture": "summary"}
    plan |= {"report": ["summary", "method.md", "reward_model"], "appendices": ["one"]}
    write_plan(root, plan)
    text = "# Метод\n\n## Результаты\n\n$$\\frac{1}{2}$$\n\n### Ещё\n\nСм. [@summary:line], [@one:one].\n"
    (root / "reports/text/method.md").write_text(text)
    return root


def make_real_project(root: Path, base: dict[str, Any], **experiments: dict[str, Any]) -> Path:
    """The notebooks of the project itself, for such experiments; the front is that of the first."""
    for folder in ("notebooks", "params", "reports/build"):
        (root / folder).mkdir(parents=True)
    (root / "reports/text").symlink_to(ROOT / "reports/text")  # the notebooks import it from here
    for name in ("experiment", "pareto_front"):
        shutil.copy(ROOT / f"notebooks/{name}.ipynb", root / "notebooks")
    for name, params in {"base": base, "front": {"etas": [0.0, 1.0]}, **experiments}.items():
        (root / f"params/{name}.yaml").write_text(yaml.safe_dump(params))
    first = next(iter(experiments))
    sections = [
        {
            "id": name,
            "notebook": "experiment.ipynb",
            "params": ["base.yaml", f"{name}.yaml"],
            "reads": ["{id}/samples.jsonl"],
        }
        for name in experiments
    ]
    front = {"id": "front", "notebook": "pareto_front.ipynb", "params": ["front.yaml"]}
    front |= {"run_dir": first, "reads": [f"{first}/summary.json"], "after": [first]}
    plan = {"title": "Отчёт", "run": {"experiments": [*sections, front]}, "picture": "front"}
    write_plan(root, plan | {"report": [*experiments, "front"]})
    return root


def read_plan(root: Path) -> dict[str, Any]:
    return yaml.safe_load((root / SECTIONS).read_text(encoding="utf-8"))


def write_plan(root: Path, plan: dict[str, Any]) -> None:
    (root / SECTIONS).write_text(yaml.safe_dump(plan, allow_unicode=True, sort_keys=False))


def order(root: Path) -> list[str]:
    """The stand-ins that were run, in their order."""
    file = root / "order.txt"
    return file.read_text().split() if file.is_file() else []


def files_below(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Of each file its bytes and when it was written."""
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)


def is_alive(pid: int) -> bool:
    command = ["ps", "-o", "stat=", "-p", str(pid)]
    state = subprocess.run(command, capture_output=True, text=True).stdout
    return bool(state.strip()) and not state.startswith("Z")


def start_build(root: Path) -> subprocess.Popen[str]:
    """`main` in a process group of its own, as in a terminal; with two cores."""
    code = "import signal, sys; from pathlib import Path; from reports.build.__main__ import main\n"
    code += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # as in `python -m`
    code += f"sys.exit(main([], Path({str(root)!r})))"
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "2"},
    )
