"""Our training and our merge beside TRL's and mergekit's, and beside the machine's floor.

`notebooks/performance.ipynb` calls `run_bench` with `measure: true` (`make bench`) and shows what
it wrote; every part is kept in the results file as soon as it is measured.
"""

import platform
import time
from pathlib import Path
from typing import Any

from reports.bench.checkpoints import prepare
from reports.bench.config import BenchConfig
from reports.bench.growth import measure_growth
from reports.bench.merge import measure_merge
from reports.bench.resume import measure_resume
from reports.bench.steps import measure_steps
from warp_core.store.errors import ConfigError
from warp_core.store.files import read_json, write_json

PARTS = {
    "steps": measure_steps,
    "merge": measure_merge,
    "resume": measure_resume,
    "growth": measure_growth,
}


def run_bench(config: BenchConfig) -> dict[str, Any]:
    """The results, measured first if `measure` says so.

    Raises ConfigError where there are no results to show, or a peer's environment is missing.
    """
    path = Path(config.results)
    if not config.measure:
        if not path.is_file():
            raise ConfigError(
                f"results: {config.results!r} given; there is no such file. measure: true makes "
                "it, as `make bench` does"
            )
        return read_json(path)
    for key in ("trl_python", "mergekit_python"):
        python = getattr(config, key)
        if python and not Path(python).is_file():
            raise ConfigError(
                f"{key}: {python!r} given; there is no such file; `make bench` makes it, and '' "
                "does without"
            )
    if config.reward_model.startswith("runs/") and not Path(config.reward_model).is_dir():
        raise ConfigError(
            f"reward_model: {config.reward_model!r} given; there is no such folder; `make report` "
            "trains it"
        )
    results: dict[str, Any] = {"machine": machine(), "parameters": config.model_dump()}
    folder = Path(config.folder)
    prompts = prepare(config, folder)
    for name, measure in PARTS.items():
        start = time.monotonic()
        results[name] = measure(config, folder, prompts)
        print(f"{name}: measured in {time.monotonic() - start:.0f} s", flush=True)
        write_json(path, results)
    return results


def machine() -> dict[str, Any]:
    """What the measurements were made on."""
    import torch

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    vector = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    return {
        "processor": (names or [platform.processor()])[0],
        "vector": [flag for flag in vector if flag in flags],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }
