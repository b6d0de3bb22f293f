"""The engine that is asked for."""

import os
from importlib.util import find_spec

from warp_core.engine.driver import Engine, Look
from warp_core.engine.local import LocalEngine
from warp_core.store.errors import ConfigError


def engine_of(
    engine: str,
    each: int,
    workers: int = 0,
    useful: int = 0,
    look: Look = lambda _: None,
    gpus: int = 1,
    precision: str = "fp32",
) -> Engine:
    """Processes of this machine (`local`), or tasks of a cluster (`ray`).

    Args:
        each: bytes of memory that a run wants.
        workers: how many side by side; 0: as many as there is room for, but no more than are `useful`
            (0: all are).
        gpus: of each, where there are GPUs.
        precision: of the runs; "bf16" where one is.
    """
    if engine == "local":
        return LocalEngine(workers, useful, look, each, gpus, precision)
    if not find_spec("ray"):
        raise ConfigError(
            "engine: 'ray' given; Ray is not installed: `pip install -e .[ray]` does that, and engine: "
            "local needs nothing"
        )
    # Read when ray is imported, and when a cluster begins: seconds that it has to answer, and no niceness.
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "12")
    os.environ.setdefault("RAY_worker_niceness", "0")
    from warp_core.engine.ray_cluster import RayEngine

    return RayEngine(workers, useful, look, each, gpus, precision)
