"""An experiment's curves while it is being computed by hand: what its runs have logged, every few seconds.

The figure stands in one place; the last one replaces the others, and is the only one that a notebook
keeps.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pandas as pd
from IPython.display import DisplayHandle, display

from reports.text import experiment, figures, show
from warp_core.config import WarpConfig
from warp_core.store.files import sealed_jsonl
from warp_core.store.results import Store
from warp_core.warp import Experiment

SECONDS = 5.0  # between two looks
CAPTION = (
    "Эксперимент {}, по шагам: целевая функция (награда со штрафом за KL), награда, KL к якорю (оценка по "
    "сэмплированным токенам, бывает отрицательной) и норма градиента."
)


def logged(asked: Experiment, store: Store) -> pd.DataFrame:
    """Rows of all runs so far, with their iteration and run."""
    rows = [
        {"iteration": i, "run": m} | row
        for i, (thetas, *_) in enumerate(asked.iterations, start=1)
        for m, theta in enumerate(thetas, start=1)
        for row in store.rows(theta)
    ]
    return pd.DataFrame(rows)


def draw(curves: pd.DataFrame, name: str, place: DisplayHandle) -> None:
    """An experiment's curves in their place."""
    caption = CAPTION.format(experiment.label(name))
    show.figure(figures.four_curves(curves), "curves", caption, curves, live=place)


@contextmanager
def curves(config: WarpConfig) -> Iterator[None]:
    """While what stands inside computes the experiment, its curves grow below the cell.

    On Ctrl-C the curves so far stay, with a sentence on how to go on; the error goes on.
    """
    asked, store = Experiment(config), Store(config.folder.parent / "store")
    place, ended, seen = DisplayHandle(), threading.Event(), [0]
    waiting = {"text/plain": "кривые появятся здесь после первого шага"}
    display(waiting, raw=True, display_id=place.display_id)

    def look() -> None:
        rows = logged(asked, store)
        if len(rows) > seen[0]:
            seen[0] = len(rows)
            draw(rows, config.name, place)

    def watch() -> None:
        while not ended.wait(SECONDS):
            look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    except KeyboardInterrupt:
        show.text("Остановлено. Записанные шаги сохранены, та же ячейка продолжит с них.")
        raise
    finally:
        ended.set()
        thread.join()
        metrics = config.folder / "metrics.jsonl"
        if metrics.is_file():  # the store may have been deleted behind a finished experiment
            draw(pd.DataFrame(sealed_jsonl(metrics)), config.name, place)
