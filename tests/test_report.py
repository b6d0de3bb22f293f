"""The builder and the page: a tiny project of stand-in notebooks, run by the real papermill."""

import base64
import html
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
import yaml
from filelock import FileLock

from reports import build, status
from reports.page import Part, ReportError, compile_page, page_faults
from warp_core.config import WarpConfig

MODEL_TEXT = "<script>alert(1)</script> $x$ | [a](b) **c** &amp; `d`"
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
ORDER = "from pathlib import Path\nwith open('order.txt', 'a') as file:\n    file.write('{}\\n')\n"
REWARD = """
from warp_core.files import seal_json
Path(run_dir).mkdir(parents=True, exist_ok=True)
seal_json(Path(run_dir, "timing.json"), {"seconds": 60})
Path(run_dir, "summary.json").write_text("{}")
Path(run_dir, "training.jsonl").write_text('{"step": 5, "steps": 5}\\n')
if Path("broken").exists():
    raise ValueError("\\x1b[31mno ratings\\x1b[0m")
"""
FIGURE = f"from IPython.display import Image, display\ndisplay(Image(data={PNG!r}, format='png'))\n"
EXPERIMENT = f"""
import html, json
from IPython.display import HTML, Image, Markdown, display
from warp_core.files import seal_json
folder = Path(run_dir)
(folder / "steps").mkdir(parents=True, exist_ok=True)
(folder / "steps" / "iteration_1_run_1.jsonl").write_text("{{}}\\n" * 3)
(folder / "samples.jsonl").write_text(str(lr))
seal_json(folder / "timing.json", {{"seconds": 120}})
(folder / "summary.json").write_text("{{}}")
seal_json(folder / "meta.json", {{"commit": "abc123"}})
print("printed by the cell")
display(HTML("<table><tr><td>" + html.escape({MODEL_TEXT!r}) + "</td></tr></table>"))
display(Image(data={PNG!r}, format="png"), metadata={{"image/png": {{"alt": 'a "curve"'}}}})
display(Markdown(f"lr = {{float(lr)}}, $\\\\theta_{{{{slerp}}}}$, reward from {{reward_model}}"))
"""


def notebook(path: Path, heading: str, parameters: str, code: str) -> None:
    cells = [
        nbformat.v4.new_markdown_cell(f"# {heading}\n\nВступление."),
        nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        nbformat.v4.new_markdown_cell("## Результаты\n\nФормула: $r_\\beta$."),
        nbformat.v4.new_code_cell(code),
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)


def make_project(root: Path) -> Path:
    """Three sections and a text; `params/` and `notebooks/` as in the real project."""
    for folder in ("notebooks", "params", "reports"):
        (root / folder).mkdir(parents=True)
    warp_keys = "".join(f"{k} = {f.default!r}\n" for k, f in WarpConfig.model_fields.items())
    notebook(root / "notebooks/reward_model.ipynb", "Модель награды", "epochs = 1\nrun_dir = ''",
             ORDER.format("reward_model") + REWARD)  # fmt: skip
    notebook(root / "notebooks/experiment.ipynb", "Заготовка", warp_keys,
             ORDER.format("experiment") + EXPERIMENT)  # fmt: skip
    notebook(root / "notebooks/summary.ipynb", "Сводка", "runs_dir = 'runs'",
             ORDER.format("summary") + FIGURE + "print(runs_dir)")  # fmt: skip
    params = {
        "base.yaml": {"lr": 1e-6, "reward_model": "runs/reward_model/model"},
        "one.yaml": {"name": "one", "title": "Опыт <b>$x$</b>", "lr": 1e-4},
        "smoke.yaml": {"steps": 2},
    }
    for name, content in params.items():
        (root / "params" / name).write_text(yaml.safe_dump(content, allow_unicode=True))
    section = {"minutes": 1, "smoke_minutes": 1}
    plan = {
        "title": "Отчёт",
        "run": [
            section | {"id": "reward_model", "notebook": "reward_model.ipynb", "alone": True},
            section | {"id": "one", "notebook": "experiment.ipynb", "smoke": "smoke.yaml",
                       "params": ["base.yaml", "one.yaml"], "reads": ["{id}/samples.jsonl"],
                       "after": ["reward_model"]},
            section | {"id": "summary", "notebook": "summary.ipynb", "reads": ["*/summary.json"],
                       "after": ["reward_model", "one"]},
        ],
        "report": ["summary", "method.md", "reward_model", "one"],
        "picture": "one",
    }  # fmt: skip
    (root / "reports/sections.yaml").write_text(yaml.safe_dump(plan, allow_unicode=True))
    (root / "reports/method.md").write_text("# Метод\n\n## Результаты\n\n$$\\frac{1}{2}$$\n")
    return root


def order(root: Path) -> list[str]:
    file = root / "order.txt"
    return file.read_text().split() if file.is_file() else []


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_project(tmp_path_factory.mktemp("built"))
    assert build.main([], root) == 0
    return root


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    """The built project, to change at will."""
    return shutil.copytree(built, tmp_path / "copy")


@pytest.fixture(scope="module")
def page(built: Path) -> str:
    return (built / "reports/warp_report.html").read_text(encoding="utf-8")


class Elements(HTMLParser):
    """Elements with their attributes, and the text inside <td>."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag == "td":
            self.in_cell, self.cells = True, [*self.cells, ""]

    def handle_endtag(self, tag: str) -> None:
        self.in_cell = self.in_cell and tag != "td"

    def handle_data(self, data: str) -> None:
        if self.in_cell:
            self.cells[-1] += data


# Running


def test_sections_run_in_order_into_their_folders(built: Path) -> None:
    assert order(built) == ["reward_model", "experiment", "summary"]
    for name in ("reward_model", "one", "summary"):
        assert [p.name for p in (built / "runs" / name).glob("*.ipynb")] == ["executed.ipynb"]
    assert (built / "runs/one/samples.jsonl").read_text() == "0.0001"  # the later file's lr


def test_the_picture_is_a_figure_of_the_report(built: Path) -> None:
    assert (built / "reports/results.png").read_bytes() == PNG


def test_second_build_does_nothing(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (copy / "reports/warp_report.html").stat().st_mtime_ns
    assert build.main([], copy) == 0
    assert order(copy) == ["reward_model", "experiment", "summary"]
    assert (copy / "reports/warp_report.html").stat().st_mtime_ns == before
    assert capsys.readouterr().out.startswith("nothing to do, all is done: ")


@pytest.mark.parametrize(
    ("file", "change", "again"),
    [
        ("params/one.yaml", lambda text: text.replace("0.0001", "0.001"), {"one"}),
        ("params/base.yaml", lambda text: text + "beta: 0.1\n", set()),  # the default
        ("notebooks/experiment.ipynb", lambda text: text.replace("Вступ", "Вы"), {"one"}),
        ("runs/one/samples.jsonl", lambda text: text + " ", {"one"}),
        ("runs/one/summary.json", lambda text: text + " ", {"summary"}),
    ],
)
def test_what_changed_is_not_done(copy: Path, file: str, change, again: set[str]) -> None:
    path = copy / file
    changed = change(path.read_text(encoding="utf-8"))
    path.write_text(changed, encoding="utf-8")
    sections = build.load_project(copy, smoke=False).sections
    assert {section.id for section in sections if not section.is_done()} == again


def test_a_failure_names_the_cell_and_the_next_build_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_project(tmp_path / "project")
    plan = yaml.safe_load((root / "reports/sections.yaml").read_text())
    plan["run"] = [plan["run"][2], plan["run"][0]]  # summary, then the one that fails
    plan["run"][0] |= {"reads": [], "after": []}
    plan["run"][1]["after"] = ["summary"]
    plan["report"], plan["picture"] = ["summary", "reward_model"], "summary"
    (root / "reports/sections.yaml").write_text(yaml.safe_dump(plan))
    (root / "broken").touch()

    assert build.main([], root) == 1
    said = capsys.readouterr().err
    assert "reward_model: notebooks/reward_model.ipynb failed\nin cell 4 of 4:\n" in said
    assert "    from pathlib import Path\n" in said
    assert "\nValueError: no ratings\n" in said  # without the colour codes
    assert "All that was done is kept" in said
    assert not (root / "reports/warp_report.html").exists()

    assert build.main(["--only-compile"], root) == 1
    assert "reward_model" in capsys.readouterr().err

    (root / "broken").unlink()
    assert build.main([], root) == 0
    assert order(root) == ["summary", "reward_model", "reward_model"]


MEETING = """
import os, time
Path(run_dir).mkdir(parents=True, exist_ok=True)
Path(run_dir, "here").write_text(os.environ.get("OMP_NUM_THREADS", "all"))
others = [Path("runs/one/here"), Path("runs/two/here")]
end = time.monotonic() + 60
while not all(other.exists() for other in others):
    assert time.monotonic() < end, "nobody came"
    time.sleep(0.1)
if name == "two":
    raise ValueError("two failed")
time.sleep(300)
"""


def test_two_sections_share_the_cores_and_one_that_fails_stops_the_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "CORES", 6)
    monkeypatch.setattr(build, "LANES", 2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    root = make_project(tmp_path / "project")
    warp_keys = "".join(f"{k} = {f.default!r}\n" for k, f in WarpConfig.model_fields.items())
    notebook(root / "notebooks/experiment.ipynb", "Встреча", warp_keys,
             "from pathlib import Path" + MEETING)  # fmt: skip
    notebook(
        root / "notebooks/reward_model.ipynb",
        "Одна",
        "run_dir = ''",
        "import os\n"
        "with open('alone.txt', 'w') as file:\n    file.write(str(os.environ.get('OMP_NUM_THREADS')))",
    )
    (root / "params/two.yaml").write_text("name: two\n")
    plan = yaml.safe_load((root / "reports/sections.yaml").read_text())
    alone, one, _ = plan["run"]
    plan["run"] = [alone, one, one | {"id": "two", "params": ["base.yaml", "two.yaml"]}]
    plan["report"] = ["one", "two"]
    (root / "reports/sections.yaml").write_text(yaml.safe_dump(plan, allow_unicode=True))
    start = time.monotonic()
    assert build.main([], root) == 1
    assert time.monotonic() - start < 100
    assert "two: notebooks/experiment.ipynb failed" in capsys.readouterr().err
    assert (root / "alone.txt").read_text() == "None"
    for name in ("one", "two"):
        assert (root / f"runs/{name}/here").read_text() == "3"
    assert not (root / "runs/one/executed.ipynb").exists()


def test_smoke_has_its_own_folders_and_says_so(tmp_path: Path) -> None:
    root = make_project(tmp_path / "project")
    plan = yaml.safe_load((root / "reports/sections.yaml").read_text())
    plan["run"] = [plan["run"][0] | {"smoke": False}, plan["run"][1]]
    plan["report"] = ["reward_model", "one"]
    (root / "reports/sections.yaml").write_text(yaml.safe_dump(plan, allow_unicode=True))
    assert build.main(["--smoke"], root) == 0
    assert order(root) == ["experiment"]  # the reward model was left out
    page = (root / "runs/smoke/warp_report.html").read_text(encoding="utf-8")
    assert "Это пробный запуск." in page
    assert "Числа, графики и выводы ниже ничего не значат." in page
    assert "runs/smoke/reward_model/model" in page  # what the notebook was given
    assert [p.name for p in (root / "runs").iterdir()] == ["smoke"]
    assert not (root / "reports/warp_report.html").exists()


def test_interrupted_build_leaves_no_process(tmp_path: Path) -> None:
    root = make_project(tmp_path / "project")
    code = "import os, subprocess, time\nchild = subprocess.Popen(['sleep', '300'])\n"
    code += "from pathlib import Path\nPath('pids.tmp').write_text(f'{os.getpid()} {child.pid}')\n"
    code += "Path('pids.tmp').rename('pids')\ntime.sleep(300)"
    notebook(root / "notebooks/reward_model.ipynb", "Долго", "run_dir = ''", code)
    start = "import signal, sys; from pathlib import Path; from reports.build import main\n"
    start += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # as in `python -m`
    builder = subprocess.Popen([sys.executable, "-c", f"{start}sys.exit(main([], Path({str(root)!r})))"],
                               stderr=subprocess.PIPE, text=True, cwd=build.ROOT)  # fmt: skip
    pids = root / "pids"
    wait_for(pids.is_file, 120)
    builder.send_signal(signal.SIGINT)
    _, said = builder.communicate(timeout=60)
    assert builder.returncode == 130
    assert "stopped" in said
    kernel, child = pids.read_text().split()
    wait_for(lambda: not (is_alive(kernel) or is_alive(child)), 20)


def wait_for(condition, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)


def is_alive(pid: str) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", pid], capture_output=True, text=True).stdout
    return bool(state.strip()) and not state.startswith("Z")


def test_two_builds_at_once_are_refused(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FileLock(copy / "runs/.build.lock"):
        assert build.main([], copy) == 2
    assert "another build is at work" in capsys.readouterr().err


def test_what_is_damaged_is_named_or_made_again(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, meta = copy / "reports/warp_report.html", copy / "runs/one/meta.json"
    whole = page.read_bytes()
    page.write_bytes(b"\xff" + whole[:1000])
    assert build.main([], copy) == 0
    assert page.read_bytes() == whole
    meta.write_bytes(meta.read_bytes()[:-3])
    assert build.main([], copy) == 1
    assert f"{meta}: is not what was written" in capsys.readouterr().err
    assert page.read_bytes() == whole


def test_status_line_counts_steps_and_time(
    built: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sections = build.load_project(built, smoke=False).sections
    assert [section.steps() for section in sections] == [(5, 5), (3, 40), (0, 0)]
    line = status.Status(sections, lanes=2)
    line.todo = sections[1:]
    line.measured, line.estimated = 4.0, 2.0  # twice as slow as estimated
    now = [1000.0]
    monkeypatch.setattr(status.time, "monotonic", lambda: now[0])
    line.start(sections[1])
    line.start(sections[2])
    log = built / "runs/one/steps/iteration_1_run_2.jsonl"
    log.write_text("{}\n" * 17)
    now[0] += 10
    line.tick()  # too soon for a log
    now[0] += 80
    line.tick()
    now[0] += 60
    line.finish(sections[1])
    log.unlink()
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "[2/3] one: step 3 of 40 · 0 s so far · about 2 min left",
        "[2/3] one: step 3 of 40 · 0 s so far | [3/3] summary: 0 s so far · about 2 min left",
        "[2/3] one: step 20 of 40 · 2 min so far | [3/3] summary: 2 min so far · about 1 min left",
        "[2/3] one: done in 2 min",
    ]


# Checks before anything runs


def test_every_mistake_is_found_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_project(tmp_path / "project")
    (root / "params/one.yaml").write_text("learning_rat: 1\nitertions: 3\nbeta: -1\n")
    notebook(root / "notebooks/summary.ipynb", "Сводка", "runs_dir = str(1)", "")
    (root / "notebooks/reward_model.ipynb").unlink()
    notebook(root / "notebooks/pareto_front.ipynb", "Фронт", "etas = [0, 2]\nrun_dir = ''", "")
    plan = yaml.safe_load((root / "reports/sections.yaml").read_text())
    plan["run"].append({"id": "front", "notebook": "pareto_front.ipynb", "minutes": 1,
                        "after": ["two"], "befor": ["summary"]})  # fmt: skip
    (root / "reports/sections.yaml").write_text(yaml.safe_dump(plan))
    (root / "reports/method.md").unlink()
    assert build.main([], root) == 2
    said = capsys.readouterr().err
    assert "one (notebooks/experiment.ipynb): params/one.yaml: itertions: unknown parameter" in said
    assert "did you mean 'iterations'?" in said
    assert "learning_rat: unknown parameter" in said
    assert "beta: -1 given" in said
    assert "etas.1: 2 given" in said
    assert (
        "summary (notebooks/summary.ipynb): the parameters cell needs lines `name = literal`"
        in said
    )
    assert "reward_model (notebooks/reward_model.ipynb): cannot be read as a notebook" in said
    assert "front: after: 'two' is no section above it" in said
    assert "front: 'befor' is no key of a section" in said
    assert "'method.md' is neither a section nor a file" in said
    assert not (root / "runs").exists()
    assert not order(root)


@pytest.mark.parametrize("tags", [[], ["parameters", "parameters"]])
def test_exactly_one_parameters_cell(tmp_path: Path, tags: list[str]) -> None:
    cells = [nbformat.v4.new_code_cell("a = 1", metadata={"tags": [tag]}) for tag in tags]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "n.ipynb")
    with pytest.raises(ReportError, match=f"{len(tags)} cells are tagged"):
        build.parameters_of(tmp_path / "n.ipynb")


# The page


def test_page_stands_on_its_own(page: str) -> None:
    assert page_faults(page) == []
    elements = Elements(page).found
    assert ("html", {"lang": "ru"}) in elements
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert ("meta", {"http-equiv": "Content-Security-Policy", "content": policy}) in elements
    for _, attrs in elements:
        for key in ("src", "href"):
            assert attrs.get(key, "#").startswith(("#", "data:image/png;base64,"))
    assert not re.search(r"https?://(?!www\.w3\.org/1998/Math/MathML)", page)


def test_table_of_contents_resolves(page: str) -> None:
    elements = Elements(page).found
    ids = [attrs["id"] for _, attrs in elements if "id" in attrs]
    links = [attrs["href"][1:] for tag, attrs in elements if tag == "a"]
    assert len(ids) == len(set(ids))
    assert set(links) <= set(ids)
    top = [link for link in links if "-" not in link]
    assert top == ["summary", "method", "reward_model", "one"]
    assert "one-результаты" in links
    assert "method-результаты" in links


def test_model_text_stays_text(page: str) -> None:
    elements = Elements(page)
    assert MODEL_TEXT in elements.cells
    assert "script" not in {tag for tag, _ in elements.found}
    assert html.escape("Опыт <b>$x$</b>", quote=False) in page  # a title is text, too
    assert "Заготовка" not in page


def test_outputs_are_kept_and_code_is_not(page: str) -> None:
    images = [attrs for tag, attrs in Elements(page).found if tag == "img"]
    assert [image["alt"] for image in images] == ["Рисунок: Результаты", 'a "curve"']
    assert "reward from runs/reward_model/model" in page
    assert "<math" in page
    for absent in ("import html", "printed by the cell", "reward_model = "):
        assert absent not in page


def test_foot_says_when_from_what_and_how_long(page: str) -> None:
    took = "счёт занял 3 мин в сумме по ноутбукам, которые шли по два"
    assert re.search(rf"закончены \d\d\.\d\d\.\d{{4}}; {took}; коммит: abc123\.", page)


@pytest.mark.parametrize(
    "fault",
    [
        '<img src="http://example.org/a.png">', '<a href="https://example.org">a</a>',
        '<a href="local.html">a</a>', "<script>1</script>", '<link rel="stylesheet" href="a.css">',
        "<style>p {background: url(a.png)}</style>", '<p style="background: url(//a)">',
        "<style>@import 'a.css';</style>", '<img src="data:image/png;base64,AA" onload="f()">',
        '<meta http-equiv="refresh" content="0; url=a">', '<p id="a"></p><p id="a"></p>',
        '<a href="#nowhere">a</a>', '<iframe src="data:text/html,a"></iframe>',
    ],
)  # fmt: skip
def test_faults_of_a_page_are_found(fault: str) -> None:
    assert len(page_faults(f"<html><body>{fault}</body></html>")) >= 1


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("No heading.", "its first line must be its heading"),
        ("# A\n\n[a](https://example.org)", "does not stand on its own"),
        ("# A\n\n$\\unknowncommand{x}$", "pandoc"),
    ],
)
def test_texts_that_make_no_page(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "a.md").write_text(text)
    with pytest.raises(ReportError, match=complaint):
        compile_page([Part("a", tmp_path / "a.md")], "T", "now", trial=False)


def test_markdown_left_open_does_not_swallow_outputs(tmp_path: Path) -> None:
    shown = nbformat.v4.new_output("display_data", {"text/html": "<p>shown</p>"})
    cells = [nbformat.v4.new_markdown_cell("# A\n\n```\nopen"),
             nbformat.v4.new_code_cell("1", outputs=[shown])]  # fmt: skip
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "a.ipynb")
    with pytest.raises(ReportError, match="leaves something open"):
        compile_page([Part("a", tmp_path / "a.ipynb")], "T", "now", trial=False)


def test_html_in_markdown_is_text(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# A\n\n<script>f()</script>\n\nb <img src=x onerror=f()>")
    page = compile_page([Part("a", tmp_path / "a.md")], "T", "now", trial=False)
    assert "&lt;script&gt;" in page
    assert {"script", "img"}.isdisjoint(tag for tag, _ in Elements(page).found)


def test_only_compile_is_quick_and_runs_nothing(copy: Path) -> None:
    (copy / "reports/warp_report.html").unlink()
    assert build.main(["--only-compile"], copy) == 0
    assert (copy / "reports/warp_report.html").is_file()
    assert len(order(copy)) == 3
    record = json.loads((copy / "runs/one/executed.ipynb").read_text())["metadata"]["warp_report"]
    assert len(record) == 2
