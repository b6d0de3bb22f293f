"""What one process of all machines holds, and none when that has ended: killed, or cut off.

The kernel's lock is exact between the processes of a machine. On a file system that machines share it
may be missing, or be seen by one machine alone; there a lease counts, a file whose owner renews it, and
which others take when it has not been renewed for so long by their own clocks. Who then finds that it
has lost its lease ends at once: what it was at work on is another's.
"""

import errno
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, LeaseCompromise, SoftFileLease, Timeout

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
        stack.enter_context(_leased(path, seconds))
        yield


def holder(path: Path) -> str:
    """The machine whose process holds it; empty if none does."""
    owner = _lease(path).owner
    return owner.hostname.partition("?")[0] if owner else ""


def _leased(path: Path, seconds: float) -> AbstractContextManager[Any]:
    """Within the lease. filelock takes one that has run out by exchanging two names, which network
    file systems refuse; there it is removed, a little later."""
    lease, marker = _lease(path), Path(f"{path}.lease")
    begin = since = time.monotonic()
    seen = _version(marker)
    while True:
        left = seconds - (time.monotonic() - begin) if seconds >= 0 else RENEWED
        try:
            return lease.acquire(timeout=max(0.0, min(left, RENEWED)))
        except Timeout:
            now, version = time.monotonic(), _version(marker)
            if 0 <= seconds <= now - begin:
                raise
            if version != seen:
                seen, since = version, now
            elif version and now - since > LASTS + 2 * RENEWED:
                _remove(marker, version)


def _version(marker: Path) -> tuple[int, int] | None:
    """Another one whenever it is renewed or taken; None if it is not there."""
    with suppress(OSError):
        about = marker.lstat()
        return about.st_ino, about.st_mtime_ns
    return None


def _remove(marker: Path, version: tuple[int, int]) -> None:
    """This version of it; what has come in its place meanwhile stays."""
    aside = marker.with_name(f".{marker.name}.{secrets.token_hex(8)}")
    with suppress(OSError):
        marker.rename(aside)
        if _version(aside) != version:
            os.link(aside, marker)
    aside.unlink(missing_ok=True)


def _lease(path: Path) -> SoftFileLease:
    return SoftFileLease(
        f"{path}.lease", lease_duration=LASTS, heartbeat_interval=RENEWED, on_compromise=_lost
    )


def _lost(how: LeaseCompromise) -> None:
    said = f"{how.lock_file}: this process has lost it ({how.reason}) and ends; the same command goes on\n"
    os.write(2, said.encode())
    os._exit(1)
