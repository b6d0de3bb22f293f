"""The report from what was run: the page, the picture, and by what code its numbers were made."""

import base64
import json
import re
from pathlib import Path

import project
import pytest

from reports.build.__main__ import main
from warp_core.store.files import seal_json, sealed_json


def test_the_picture_is_a_figure_of_the_report(built: Path, page: str) -> None:
    picture = (built / "runs/results.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert base64.b64encode(picture).decode() in page


def test_the_head_says_when_from_what_and_how_long_and_what_was_found(page: str) -> None:
    where = r"\d\d\.\d\d\.\d{4} · коммит abc123 · 3 мин вычислений \(исследования — сверх того\)"
    assert re.search(rf'<p class="byline">{where} · Apache-2.0</p>', page)
    assert '<meta name="description" content="Первое.">' in page


def test_a_build_changes_nothing_outside_runs_unless_it_publishes(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def outside() -> set[str]:
        files = {name for name in project.files_below(copy) if not name.startswith("runs/")}
        return files - {"order.txt"}

    before = outside()
    assert not any(name.endswith((".html", ".png")) for name in before)
    (copy / "runs/warp_report.html").unlink()
    assert main([], copy) == 0
    assert "  Второе.\n" in capsys.readouterr().out
    assert outside() == before
    assert main(["--publish"], copy) == 0
    made = {"reports/warp_report.html", "reports/results.png"}
    assert outside() - before == made
    for name in made:
        assert (copy / name).read_bytes() == (copy / "runs" / Path(name).name).read_bytes()


def test_the_same_results_give_the_same_bytes(copy: Path) -> None:
    page = copy / "runs/warp_report.html"
    before = page.read_bytes()
    for notebook in (copy / "runs").glob("*/executed.ipynb"):
        notebook.unlink()
    page.unlink()
    assert main([], copy) == 0
    assert page.read_bytes() == before


def test_only_compile_is_quick_and_runs_nothing(copy: Path) -> None:
    (copy / "runs/warp_report.html").unlink()
    assert main(["--only-compile"], copy) == 0
    assert (copy / "runs/warp_report.html").is_file()
    assert len(project.order(copy)) == 3
    record = json.loads((copy / "runs/one/executed.ipynb").read_text())["metadata"]["warp_report"]
    assert len(record) == 3  # of what it was given here and in the repository, and of results


def test_what_is_damaged_is_named_or_made_again(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = copy / "runs/warp_report.html"
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
    page = (copy / "runs/warp_report.html").read_text(encoding="utf-8")
    made = (
        f"После коммита 0ldc0de, на котором получены числа разделов {name}, код метода изменился; "
    )
    assert "коммит 0ldc0de, abc123" in page
    assert f"{made}make fresh вычисляет их заново." in page

    seal_json(path, origins)
    assert main([], copy) == 0
    assert "other code" not in capsys.readouterr().out
    assert "код метода изменился" not in (copy / "runs/warp_report.html").read_text(
        encoding="utf-8"
    )
