"""What numbers were made with: the code that decides them, and nothing of its words."""

import ast
import os
import platform
import shutil
import subprocess

import pytest
import torch

from warp_core.store import machine
from warp_core.store.machine import LIBRARY, code_of_the_method, describe_machine


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A copy of the library's code, to change."""
    ignored = shutil.ignore_patterns("__pycache__")
    monkeypatch.setattr(
        machine, "LIBRARY", shutil.copytree(LIBRARY, tmp_path / "lib", ignore=ignored)
    )
    yield tmp_path / "lib"
    code_of_the_method.cache_clear()


def digest():
    code_of_the_method.cache_clear()
    return code_of_the_method()


def test_it_is_that_of_the_code_that_runs(library):
    of_the_copy = digest()
    assert len(of_the_copy) == 16
    assert digest() == of_the_copy


DECIDES = (
    "config.py",
    "merge.py",
    "rollout.py",
    "train.py",
    "evaluate.py",
    "warp.py",
    "__init__.py",
    "world/models.py",
    "world/reward_training.py",
    "engine/draw.py",
    "engine/factors.py",
    "store/adapter.py",
    "engine/loop.py",
    "engine/tape.py",
    "store/tensors.py",
)


@pytest.mark.parametrize("file", DECIDES)
def test_a_change_of_code_changes_it(file, library):
    before = digest()
    path = library / file
    code = path.read_text()
    path.write_text(code + "\nx_y_z = 1\n")
    one = digest()
    path.write_text(code + "\nx_y_z = 2\n")
    assert len({before, one, digest()}) == 3
    path.write_text(code)
    assert digest() == before


@pytest.mark.parametrize(
    "file",
    [
        "engine/progress.py",
        "engine/local.py",
        "store/files.py",
        "store/machine.py",
        "world/card.py",
    ],
)
def test_code_that_decides_no_number_is_not_in_it(file, library):
    before = digest()
    with (library / file).open("a") as code:
        code.write("\nx_y_z = 1\n")
    assert digest() == before


def test_a_number_in_a_formula_is_code(library):
    before = digest()
    path = library / "merge.py"
    code = path.read_text()
    assert "1 / (m + 1)" in code
    path.write_text(code.replace("1 / (m + 1)", "1 / (m + 2)"))
    assert digest() != before


def test_comments_docstrings_and_white_space_are_not_in_it(library):
    before = digest()
    for path in library.rglob("*.py"):
        code = path.read_text()
        words = [
            (node.body[0].lineno, node.body[0].end_lineno)
            for node in ast.walk(ast.parse(code))
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and ast.get_docstring(node)
            and len(node.body) > 1
        ]
        lines = code.splitlines()
        for first, last in sorted(words, reverse=True):
            lines[first - 1 : last] = []
        path.write_text("\n\n".join([*lines, "# The end.", ""]))
    assert "SLERP" not in (library / "merge.py").read_text().partition("import")[0]
    assert digest() == before


def test_a_machine_is_described_by_what_bits_may_depend_on():
    about = describe_machine()
    assert about["code"] == code_of_the_method()
    assert about["python"] == platform.python_version()
    assert about["versions"].keys() == {"torch", "transformers", "safetensors", "numpy"}
    assert about["versions"]["torch"] == torch.__version__
    assert about["threads"] == torch.get_num_threads()
    assert 1 <= about["cores"] <= (os.cpu_count() or 1)
    assert about["commit"]
    assert about["device"]


def test_rows_that_grow_beside_the_code_are_no_other_code(tmp_path, monkeypatch):
    rows, params = tmp_path / "reports/studies/a.jsonl", tmp_path / "params/a.yaml"
    code = tmp_path / "warp_core/a.py"
    for file in (rows, params, code):
        file.parent.mkdir(parents=True)
        file.write_text("1\n")
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "a"]):
        subprocess.run(["git", "-C", tmp_path, *words], check=True)
    monkeypatch.setattr(machine, "LIBRARY", code.parent)
    for file, dirty in ((rows, False), (params, True), (code, True)):
        file.write_text("2\n")
        machine._commit.cache_clear()
        assert machine._commit().endswith("-dirty") == dirty
        if file is params:
            file.write_text("1\n")
    machine._commit.cache_clear()


def test_a_clone_without_git_is_no_fault(monkeypatch):
    monkeypatch.setenv("PATH", "")
    machine._commit.cache_clear()
    assert machine._commit() == "unknown"
    machine._commit.cache_clear()
