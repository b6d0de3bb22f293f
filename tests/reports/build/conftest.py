"""The stand-in project, built once."""

import shutil
from pathlib import Path

import project
import pytest

from reports.build.__main__ import main


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = project.make_project(tmp_path_factory.mktemp("built"))
    assert main([], root) == 0
    return root


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    """The built project, to change at will."""
    return shutil.copytree(built, tmp_path / "copy")


@pytest.fixture(scope="session")
def page(built: Path) -> str:
    return (built / "runs/warp_report.html").read_text(encoding="utf-8")
