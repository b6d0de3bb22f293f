"""What numbers were made with: code, versions, device."""

import ast
import hashlib
import platform
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import joblib

PACKAGES = ("torch", "transformers", "safetensors", "numpy")
# They decide numbers too.
MORE = (
    "engine/draw.py",
    "engine/factors.py",
    "engine/loop.py",
    "engine/memory.py",
    "engine/pieces.py",
    "engine/tape.py",
    "store/adapter.py",
    "store/tensors.py",
)
LIBRARY = Path(__file__).resolve().parent.parent


def describe_machine() -> dict[str, Any]:
    """Versions, commit, code of the method, device, cores, threads."""
    import torch  # seconds, which those who only read results need not wait

    cuda = torch.cuda.is_available()
    return {
        "commit": _commit(),
        "code": code_of_the_method(),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
        "device": torch.cuda.get_device_name() if cuda else _cpu_name(),
        "cores": joblib.cpu_count(),  # that this process may use
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
    }


class _NoDocstrings(ast.NodeTransformer):
    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        return None if isinstance(node.value, ast.Constant) else node


@cache
def code_of_the_method() -> str:
    """Digest of what decides numbers: the paper's files, world/ and MORE; not their comments, nor
    studies, which ask for numbers, nor model cards, which tell of them.

    Results made by other code are told apart by it, though what names a result leaves it out: a
    change of a sentence must not cost a day of computing.
    """
    files = [*LIBRARY.glob("*.py"), *(LIBRARY / "world").glob("*.py")]
    digest = hashlib.sha256()
    files = [file for file in files if file.stem not in ("study", "studies", "card")]
    for file in sorted([*files, *(LIBRARY / name for name in MORE)]):
        tree = _NoDocstrings().visit(ast.parse(file.read_text(encoding="utf-8")))
        digest.update(ast.unparse(tree).encode())
    return digest.hexdigest()[:16]


@cache
def _commit() -> str:
    """Of the code; «-dirty» where it or the parameters are others than there. Results that grow beside
    them, the studies' rows for one, are no other code."""

    def git(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", "-C", str(LIBRARY), *words], capture_output=True, text=True)

    try:
        said = git("describe", "--always", "--abbrev=12").stdout.strip()
        differs = git("diff", "--quiet", "HEAD", "--", ".", "../params").returncode == 1
    except OSError:  # no git
        return "unknown"
    return f"{said}{'-dirty' * differs}" if said else "unknown"


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
