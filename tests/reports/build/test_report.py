"""The report from what was run: the page, the picture, and by what code its numbers were made."""

import json
import re
from pathlib import Path

import project
import pytest

from reports.build.__main__ import main
from warp_core.store.files import seal_json, sealed_json


def test_the_picture_is_a_figure_of_the_report(built: Path) -> None:
    assert (built / "reports/results.png").read_bytes() == project.PNG


def test_the_foot_says_when_from_what_and_how_long(page: str) -> None:
    took = "суммарное время задач — 3 мин"
    assert re.search(rf"закончены \d\d\.\d\d\.\d{{4}}; {took}; коммит: abc123\.</footer>", page)


def test_only_compile_is_quick_and_runs_nothing(copy: Path) -> None:
    (copy / "reports/warp_report.html").unlink()
    assert main(["--only-compile"], copy) == 0
    assert (copy / "reports/warp_report.html").is_file()
    assert len(project.order(copy)) == 3
    record = json.loads((copy / "runs/one/executed.ipynb").read_text())["metadata"]["warp_report"]
    assert len(record) == 2


def test_what_is_damaged_is_named_or_made_again(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = copy / "reports/warp_report.html"
    whole = page.read_bytes()
    page.write_bytes(b"\xff" + whole[:1000])
    assert main([], copy) == 0
    assert page.read_bytes() == whole
    for name, code in (("origins.json", 1), ("meta.json", 2)):  # without the second nothing is run
        damaged = copy / "runs/one" / name
        damaged.write_bytes(damaged.read_bytes()[:-3])
        assert main([], copy) == code
        assert f"{damaged}: is not what was written" in capsys.readouterr().err
        assert page.read_bytes() == whole


@pytest.mark.parametrize("name", ["one", "reward_model"])
def test_numbers_made_by_other_code_are_named(
    name: str, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of an experiment by each result behind it, of the reward model by its run folder."""
    path = copy / "runs" / name / ("origins.json" if name == "one" else "meta.json")
    origins = sealed_json(path)
    older = {"commit": "0ldc0de", "code": "0" * 16}
    new = origins | {"run-2": older | {"seconds": 60}} if name == "one" else origins | older
    seal_json(path, new)
    assert main([], copy) == 0
    said = capsys.readouterr().out
    assert f"numbers of {name} were made by other code of the method; `make fresh` makes" in said
    page = (copy / "reports/warp_report.html").read_text(encoding="utf-8")
    made = (
        f"Другой версией кода метода получены числа разделов (раздел — коммит): {name} — 0ldc0de; "
    )
    assert f"коммит: 0ldc0de, abc123. {made}make fresh вычисляет их заново." in page

    seal_json(path, origins)
    assert main([], copy) == 0
    assert "other code" not in capsys.readouterr().out
    assert "Другой версией" not in (copy / "reports/warp_report.html").read_text(encoding="utf-8")
