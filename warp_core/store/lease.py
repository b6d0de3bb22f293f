"""What one process of all machines holds, and none when that has ended: killed, or cut off.

The kernel's lock is exact between the processes of a machine. On a file system that machines share it
may be missing, or be seen by one machine alone; there a lease counts, a file whose owner renews it, and
which others take when it has not been renewed for so long by their own clocks. Who then finds that it
has lost its lease ends at once: what it was at work on is another's.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, LeaseCompromise, SoftFileLease

LASTS, RENEWED = 30.0, 2.0  # seconds
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@contextmanager
def held(path: Path, seconds: float = -1) -> Iterator[None]:
    """Hold it; wait for it so long, for ever if -1. Raises filelock.Timeout."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(FileLock(f"{path}.lock", seconds, fallback_to_soft=False))
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        stack.enter_context(_lease(path, seconds))
        yield


def holder(path: Path) -> str:
    """The machine whose process holds it; empty if none does."""
    owner = _lease(path).owner
    return owner.hostname.partition("?")[0] if owner else ""


def _lease(path: Path, seconds: float = -1) -> SoftFileLease:
    return SoftFileLease(
        f"{path}.lease",
        timeout=seconds,
        lease_duration=LASTS,
        heartbeat_interval=RENEWED,
        on_compromise=_lost,
    )


def _lost(how: LeaseCompromise) -> None:
    if how.reason == "owner-changed":
        os._exit(1)
