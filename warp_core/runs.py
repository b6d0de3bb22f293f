"""The run folder: write, load, skip what is done.

params.yaml, meta.json, metrics.jsonl, summary.json, samples.jsonl, weights/ (README has the table).
Files appear whole or not at all; the steps of a run are appended as they happen.
"""

import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from warp_core.config import ConfigError

PACKAGES = ("torch", "transformers", "safetensors", "numpy")
NOT_COMPARED = {"title", "workers", "run_dir"}  # they change no number


def project_root() -> Path:
    """The folder above the working directory (or itself) that holds params/base.yaml.

    A notebook goes there first, so that relative paths in the parameters mean the same in Jupyter
    and under papermill. Raises FileNotFoundError outside a clone.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "params" / "base.yaml").is_file():
            return folder
    raise FileNotFoundError(
        f"{here} is not inside a clone of the project (no params/base.yaml above)"
    )


def write_text(path: Path, text: str) -> None:
    """`write_bytes`, in UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Replace the file at once; a reader sees the old or the new, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, data: Any) -> None:
    """Strict JSON: NaN and infinities are refused by ValueError."""
    text = json.dumps(data, ensure_ascii=False, indent=1, allow_nan=False)
    write_text(path, text + "\n")


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """One JSON object a line."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def append_jsonl(path: Path, row: dict[str, Any]) -> None:
    """Add one line, on disk when this returns."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file; none if there is no file."""
    if not path.is_file():
        return []
    # Not splitlines: a policy may write U+0085 or U+2028, which end a line there. What stands
    # behind the last line end was cut off while it was written.
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    return [json.loads(line) for line in lines]


def open_run(params: dict[str, Any], run_dir: Path, identity: dict[str, str]) -> None:
    """Create the run folder, or check that the one that is there is of the same experiment.

    Args:
        params: flat parameters, for params.yaml.
        identity: fingerprints of what the parameters name but do not hold: weights, prompts.

    Raises:
        ConfigError: the folder holds another experiment; lists what differs.
    """
    if (run_dir / "params.yaml").is_file():
        there = yaml.safe_load((run_dir / "params.yaml").read_text(encoding="utf-8"))
        there |= read_json(run_dir / "meta.json")["identity"]
        differences = [
            f"  {key}: {there.get(key)!r} there, {value!r} asked for"
            for key, value in (params | identity).items()
            if key not in NOT_COMPARED and there.get(key) != value
        ]
        if differences:
            raise ConfigError("\n".join([
                f"run_dir: {str(run_dir)!r} holds another experiment:", *differences,
                "choose another run_dir, or delete that folder",
            ]))  # fmt: skip
        return
    if any((run_dir / name).exists() for name in ("summary.json", "metrics.jsonl", "weights")):
        raise ConfigError(
            f"run_dir: {str(run_dir)!r} is another run's folder (it has no params.yaml)"
        )
    write_json(run_dir / "meta.json", describe_machine() | {"identity": identity})
    write_text(run_dir / "params.yaml", yaml.safe_dump(params, allow_unicode=True, sort_keys=False))


def load_summaries(runs_dir: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """summary.json of those of the named runs that are finished, in the order of the names."""
    paths = {name: runs_dir / name / "summary.json" for name in names}
    found = {name: read_json(path) for name, path in paths.items() if path.is_file()}
    if not found:
        raise FileNotFoundError(
            f"{runs_dir}: none of {', '.join(paths)} is finished in it; run the experiments first"
        )
    return found


def describe_machine() -> dict[str, Any]:
    """What the numbers were made with: versions, commit, device, cores."""
    git = [
        "git",
        "-C",
        str(Path(__file__).parent),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=12",
    ]
    try:
        commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    except OSError:  # no git
        commit = ""
    import torch  # seconds, which those who only read results need not wait

    cuda = torch.cuda.is_available()
    return {
        "commit": commit or "unknown",
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
        "device": torch.cuda.get_device_name() if cuda else _cpu_name(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "system": platform.platform(),
    }


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
