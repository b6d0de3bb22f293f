"""Tasks of one thread side by side: by processes of this machine, and by Ray on it, in turn.

PYTHONPATH=. python -m reports.bench.cluster [ROUNDS]

A task multiplies matrices for some seconds. The time counts from the first task's begin to the last
one's end; what comes before is the start of processes.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from warp_core.engine.choice import engine_of
from warp_core.engine.needs import Needs
from warp_core.store.files import read_json, write_json
from warp_core.store.results import Store, Task

SIDE_BY_SIDE = 2
TASKS = (1, 2, 4, 8)
TRIVIAL = 40
PRODUCTS = 300


def work(out: Path, products: int, k: int, first: Path | None = None) -> None:
    """Matrices multiplied; when it began and ended."""
    began, x = time.time(), torch.eye(1024)
    for _ in range(products):
        x = x @ x
    write_json(out / "times.json", [began, time.time()])


def spans(engine: str, count: int, products: int) -> tuple[float, float]:
    """Seconds until the first of so many tasks begins, and from there to the end of the last."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "store")
        first = Task("first", work, {"products": 1, "k": 0}, label="first")
        inputs = {"first": first}  # what reads nothing is computed where the command runs
        tasks = [
            Task("work", work, {"products": products, "k": k}, inputs, label=f"work {k}")
            for k in range(count)
        ]
        store.make(first)
        start = time.time()
        engine_of(engine, Needs(), SIDE_BY_SIDE).make(store, tasks, [])
        times = [read_json(store.path(task) / "times.json") for task in tasks]
    begins, ends = zip(*times, strict=True)
    return min(begins) - start, max(ends) - min(begins)


@contextmanager
def connected_to_ray() -> Iterator[None]:
    """Once for all rounds, as an experiment is."""
    from warp_core.engine.ray_cluster import connected

    with connected():
        yield


def main() -> None:
    """A table of ratios, Ray's time over ours: median and range."""
    rounds, engines = int(sys.argv[1]) if len(sys.argv) > 1 else 3, ("local", "ray")
    engine_of("ray", Needs())  # so that Ray is imported as the engine does it
    begin = time.time()
    with connected_to_ray():
        print(f"Ray begun in {time.time() - begin:.1f} s")
        took = {(e, m): [] for e in engines for m in (*TASKS, TRIVIAL)}
        for _ in range(rounds):
            for m in (*TASKS, TRIVIAL):
                for engine in engines:
                    took[engine, m].append(spans(engine, m, 1 if m == TRIVIAL else PRODUCTS))
        for m in (*TASKS, TRIVIAL):
            ours, theirs = ([span for _, span in took[engine, m]] for engine in engines)
            ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
            print(
                f"{m:2} tasks: local {statistics.median(ours):.2f} s, Ray {statistics.median(theirs):.2f}"
                f" s, ratio {statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
            )
        for engine in engines:
            starts = [s for (e, _), each in took.items() if e == engine for s, _ in each]
            print(
                f"{engine}: {statistics.median(starts):.1f} s until the first task begins "
                f"({min(starts):.1f}–{max(starts):.1f})"
            )


if __name__ == "__main__":
    main()
