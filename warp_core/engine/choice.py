"""The engine that is asked for."""

import os
from importlib.util import find_spec

from warp_core.engine.driver import Engine, Look
from warp_core.engine.local import LocalEngine
from warp_core.engine.needs import Needs
from warp_core.store.errors import ConfigError


def engine_of(
    engine: str, needs: Needs, workers: int = 0, useful: int = 0, look: Look = lambda _: None
) -> Engine:
    """Processes of this machine (`local`), or tasks of a cluster (`ray`).

    Args:
        needs: of a worker.
        workers: how many side by side; 0: as many as there is room for, but no more than are `useful`
            (0: all are).
    """
    if engine == "local":
        return LocalEngine(workers, useful, look, needs)
    if not find_spec("ray"):
        raise ConfigError(
            "engine: 'ray' given; Ray is not installed: `pip install -e .[ray]` does that, and engine: "
            "local needs nothing"
        )
    # Read when ray is imported, and when a cluster begins: seconds that it has to answer, and no niceness.
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "12")
    os.environ.setdefault("RAY_worker_niceness", "0")
    from warp_core.engine.ray_cluster import RayEngine

    return RayEngine(workers, useful, look, needs)
