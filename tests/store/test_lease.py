"""What one process of all machines holds: while it lives, and no longer."""

import errno
import multiprocessing
import os
import signal
import threading
import time

import pytest
from filelock import Timeout

from warp_core.store import lease
from warp_core.store.lease import held, holder

OF_ANOTHER = "filelock/2\npid=7\nhost=node-b\nmode=lease\ntoken=0f\nduration={}\n"
spawned = multiprocessing.get_context("fork")


@pytest.fixture(params=["with locks", "without", "without exchange"])
def path(request, tmp_path, monkeypatch):
    """On file systems that have locks, that have none, and that exchange no names (NFS)."""
    if request.param == "without exchange":
        monkeypatch.setattr("filelock._soft.exchange_names", lambda *_: False)
        monkeypatch.setattr(lease, "LASTS", 1.0)
        monkeypatch.setattr(lease, "RENEWED", 0.1)
    if request.param == "without":

        def missing(*_, **__):
            raise OSError(errno.ENOLCK, "no locks")

        monkeypatch.setattr(lease, "FileLock", missing)
    return tmp_path / "locks" / "it"


def hold(path, holds, seconds):
    with held(path):
        holds.set()
        time.sleep(seconds)


def start(path, seconds=600.0):
    holds = spawned.Event()
    process = spawned.Process(target=hold, args=(path, holds, seconds))
    process.start()
    assert holds.wait(150)
    return process


def test_one_process_holds_it_at_a_time(path):
    process = start(path, 1)
    with pytest.raises(Timeout), held(path, 0.2):
        pass
    assert holder(path) == os.uname().nodename
    with held(path, 150):
        assert path.with_name("it.lease").exists()
    assert not path.with_name("it.lease").exists()
    process.join()
    assert holder(path) == ""


def test_a_killed_process_holds_it_no_longer(path):
    process = start(path)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with held(path, 15):  # half of LASTS
        pass


def test_it_is_anothers_while_it_is_renewed_and_no_longer(path, monkeypatch):
    """By this process's clock; the other machine may have any."""
    monkeypatch.setattr(lease, "LASTS", 1.0)
    monkeypatch.setattr(lease, "RENEWED", 0.1)
    path.parent.mkdir()
    marker = path.with_name("it.lease")
    marker.write_text(OF_ANOTHER.format(1.0))
    assert holder(path) == "node-b"

    def renew():
        for k in range(20):
            os.utime(marker, (k, k))  # its clock is wrong
            time.sleep(0.1)

    other = threading.Thread(target=renew)
    other.start()
    with pytest.raises(Timeout), held(path, 1.5):
        pass
    other.join()
    with held(path, 15):
        assert holder(path) == os.uname().nodename


def test_who_has_lost_it_ends(path, monkeypatch):
    monkeypatch.setattr(lease, "RENEWED", 0.1)
    process = start(path)
    taken = path.with_name("taken")
    taken.write_text(OF_ANOTHER.format(30.0))
    taken.replace(path.with_name("it.lease"))
    process.join(150)
    assert process.exitcode == 1


def test_who_cannot_renew_it_ends(path, monkeypatch, capfd):
    """Removed by another machine; and its folder, by whoever makes room."""
    monkeypatch.setattr(lease, "RENEWED", 0.1)
    process = start(path)
    path.with_name("it.lease").unlink()
    process.join(150)
    assert process.exitcode == 1
    assert "has lost it (marker-missing) and ends" in capfd.readouterr().err


def test_a_lease_that_was_renewed_meanwhile_is_put_back(tmp_path):
    marker = tmp_path / "it.lease"
    marker.write_text("of another")
    old = lease._version(marker)
    os.utime(marker, (1, 1))
    lease._remove(marker, old)
    assert marker.read_text() == "of another"
    lease._remove(marker, lease._version(marker))
    assert not [*tmp_path.iterdir()]
