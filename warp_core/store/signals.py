"""Ctrl-C, SIGTERM and SIGKILL: what may be broken by them, and who ends with whom."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def held_back() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until the block has ended."""
    came: list[int] = []
    try:
        with _handled(lambda number, _: came.append(number)):
            yield
    finally:
        if came:
            signal.raise_signal(came[0])


def terminated_as_interrupted() -> AbstractContextManager[None]:
    """SIGTERM raises KeyboardInterrupt, as Ctrl-C does; SIGINT too where it was ignored."""
    return _handled(signal.default_int_handler)


@contextmanager
def _handled(by: Callable[[int, Any], Any]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # signals come to the main thread
        yield
        return
    before = {number: signal.signal(number, by) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_with_parent(parent: int) -> None:
    """End this process when the one that started it is gone: nobody waits for it any more.

    Args:
        parent: its number, for it may be gone before this process can ask.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
