"""Files that appear whole, with their checksums; nothing half written or damaged is read.

A file is written under another name, brought to the disk (fsync) and renamed. `sealed` files and
folders have their sha256 in a file SHA256SUMS beside them (`sha256sum --check SHA256SUMS` reads it);
who reads them compares. While a sealed file is replaced both its old and its new checksum stand
there, so that a process killed at any moment leaves files that are in order.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from warp_core.store.errors import DamagedError, StorageError

SUMS = "SHA256SUMS"
GB = 1e9
FULL = (errno.ENOSPC, errno.EDQUOT)
CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM)
# What tempfile names: of a process that was killed while it wrote.
_LEFT = re.compile(r"\..+-\w{8}\.tmp")


# Plain files


def write_text(path: Path, text: str) -> None:
    """`write_bytes`, in UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Replace the file at once; a reader sees the old or the new, never half of it."""
    with writing(path, len(data)):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(**beside(path))
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _to_disk(path.parent)


def write_json(path: Path, data: Any) -> None:
    """Strict JSON: NaN and infinities are refused by ValueError."""
    write_text(path, _json(data))


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object a line, strict as `write_json`."""
    write_text(path, _jsonl(rows))


def append_jsonl(path: Path, row: Mapping[str, Any]) -> None:
    """Add one line to a log."""
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write(_jsonl([row]))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file; none if there is no file."""
    return _rows(path.read_bytes()) if path.is_file() else []


def _json(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def _jsonl(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def _rows(data: bytes) -> list[dict[str, Any]]:
    # Not splitlines: a policy may write U+0085 or U+2028, which end a line there. What stands
    # behind the last line end was cut off while it was written.
    return [json.loads(line) for line in data.decode(errors="replace").split("\n")[:-1]]


# Sealed files: results


def seal_json(path: Path, data: Any) -> None:
    """`write_json`, with a checksum in the folder's SHA256SUMS."""
    _seal(path, _json(data).encode())


def seal_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object a line, with a checksum in the folder's SHA256SUMS."""
    _seal(path, _jsonl(rows).encode())


def seal_text(path: Path, text: str) -> None:
    """`write_text`, with a checksum in the folder's SHA256SUMS."""
    _seal(path, text.encode())


def sealed_text(path: Path) -> str:
    """The content of a sealed text file; DamagedError where it is not what was written."""
    return _sealed(path).decode()


def sealed_json(path: Path, folder: Path | None = None) -> Any:
    """The content of a sealed JSON file; DamagedError where it is not what was written.

    Args:
        folder: that it is a part of, if it cannot be made again without it.
    """
    return json.loads(_sealed(path, folder))


def sealed_jsonl(path: Path, folder: Path | None = None) -> list[dict[str, Any]]:
    """The rows of a sealed JSON-lines file, as `sealed_json`."""
    return _rows(_sealed(path, folder))


def _seal(path: Path, data: bytes) -> None:
    """Only one process at a time may seal files of a folder."""
    sums = _sums(path.parent)
    new = hashlib.sha256(data).hexdigest()
    _write_sums(path.parent, sums | {path.name: [*sums.get(path.name, []), new]})
    write_bytes(path, data)
    _write_sums(path.parent, sums | {path.name: [new]})


def _sealed(path: Path, folder: Path | None = None) -> bytes:
    data = path.read_bytes() if path.is_file() else None
    if data is None or hashlib.sha256(data).hexdigest() not in _sums(path.parent).get(
        path.name, []
    ):
        raise _damaged(path, folder)
    return data


def _damaged(path: Path, folder: Path | None) -> DamagedError:
    fault = f"is not what was written ({SUMS} says so)" if path.is_file() else "is missing"
    what = f"the folder {folder}" if folder else "it" if path.is_file() else f"all of {path.parent}"
    return DamagedError(
        f"{path}: {fault}; delete {what}, and the command that made it makes it again"
    )


def _sums(folder: Path) -> dict[str, list[str]]:
    """File name -> its checksums, of a folder's SHA256SUMS."""
    sums: dict[str, list[str]] = {}
    if (folder / SUMS).is_file():
        for line in (folder / SUMS).read_text(encoding="utf-8", errors="replace").splitlines():
            digest, _, name = line.partition("  ")
            sums.setdefault(name, []).append(digest)
    return sums


def _write_sums(folder: Path, sums: Mapping[str, Iterable[str]]) -> None:
    lines = [f"{digest}  {name}\n" for name, digests in sums.items() for digest in digests]
    write_text(folder / SUMS, "".join(lines))


# Sealed folders: weights


@contextmanager
def appearing(folder: Path, size: int, seal: bool = True) -> Iterator[Path]:
    """A folder to write into, which then appears as `folder`: whole, or not at all.

    Args:
        size: bytes that will be written; StorageError where they have no room.
        seal: it and the folders in it get their checksums and are brought to the disk.
    """
    make_room(folder, size)
    with writing(folder, size):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(**beside(folder)) as temporary:
            staging = Path(temporary) / "model"
            staging.mkdir()
            yield staging
            if seal:
                for each in [*(path for path in staging.rglob("*") if path.is_dir()), staging]:
                    _seal_folder(each)
            if folder.exists():  # of an attempt that ended before its results were whole
                shutil.rmtree(folder)
            staging.rename(folder)
        _to_disk(folder.parent)


def _seal_folder(folder: Path) -> None:
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != SUMS)
    _write_sums(folder, {path.name: [_digest(path)] for path in files})
    for path in files:
        _to_disk(path)
    _to_disk(folder)


def verify(folder: Path, *names: str) -> None:
    """Raises DamagedError where a file of a sealed folder is not what was written.

    Args:
        names: files that must have a checksum; without any, a folder from a hub is passed.
    """
    needed: dict[str, list[str]] = {name: [] for name in names}
    for name, digests in (needed | _sums(folder)).items():
        path = folder / name
        if not path.is_file() or _digest(path) not in digests:
            raise _damaged(path, folder)


def beside(path: Path) -> dict[str, Any]:
    """What tempfile is given, to name what goes to `path`, or comes from it to be removed."""
    return {"dir": path.parent, "prefix": f".{path.name}-", "suffix": ".tmp"}


def sweep(folder: Path, pattern: str = ".*") -> None:
    """Remove what processes that were killed had begun to write; none may be at work there. What a network
    file system keeps for a reader goes another time.

    Args:
        pattern: for what lies in `folder`; of it only what has a name of `beside` is removed.
    """
    for path in [path for path in folder.glob(pattern) if _LEFT.fullmatch(path.name)]:
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _to_disk(path: Path) -> None:
    """A file, or the names in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# Room


def make_room(path: Path, size: int) -> None:
    """Raises StorageError where `size` bytes have no room at `path`, or nothing can be written."""
    there = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if not os.access(there, os.W_OK):
        raise StorageError(f"{path}: {there} cannot be written to; choose another folder")
    free = shutil.disk_usage(there).free
    if free < size:
        raise StorageError(_no_room(path, size, free))


@contextmanager
def writing(path: Path, size: int | None = None) -> Iterator[None]:
    """Errors of a full or a read-only disk, with the path and the bytes."""
    try:
        yield
    except StorageError:
        raise
    except Exception as error:  # safetensors has errors of its own for the system's
        number = getattr(error, "errno", None)
        if number in FULL or "No space left on device" in str(error):
            there = next(parent for parent in path.absolute().parents if parent.exists())
            raise StorageError(_no_room(path, size, shutil.disk_usage(there).free)) from error
        if number in CLOSED:
            raise StorageError(
                f"{path}: cannot be written ({error}); choose another folder"
            ) from error
        raise


def _no_room(path: Path, size: int | None, free: int) -> str:
    needed = f"{size} bytes ({size / GB:.2f} GB) are needed" if size else "more room is needed"
    return (
        f"{path}: {needed}, {free} bytes are free on its disk; make room, and the same command "
        "goes on from what is there"
    )
