"""Files that are whole or absent: write to a temporary name, fsync, rename; manifests last."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from core.errors import UserError


@contextlib.contextmanager
def atomic_file(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary neighbour of ``path``; on success fsync it and rename it over ``path``, else remove it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, tmp = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(fd, mode, encoding=None if "b" in mode else "utf-8") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.chmod(tmp, 0o666 & ~_umask())  # mkstemp makes 0600, ordinary files follow the umask
        os.replace(tmp, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(tmp)
        raise
    _sync_folder(path.parent)


def append_line(path: str | Path, line: str) -> None:
    """Append a line (without its end) to a diary, whole or not at all: a full disk might take half of it.

    Errors: OSError, and the file is as before.
    """
    data = f"{line}\n".encode()
    with open(path, "ab", buffering=0) as handle:
        before = os.fstat(handle.fileno()).st_size
        try:
            if handle.write(data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            handle.truncate(before)
            raise


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Fill a temporary sibling folder; on success it takes the place of ``path`` in one rename.

    An existing ``path`` stays until the new one is complete (see ``restore_folder`` for a kill between two renames).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    restore_folder(path)
    tmp = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
    try:
        yield tmp
        os.chmod(tmp, 0o777 & ~_umask())
        for file in tmp.rglob("*"):
            if file.is_file():
                with open(file, "rb") as handle:
                    os.fsync(handle.fileno())
        replace_folder(tmp, path)
    except BaseException:
        shutil.rmtree(tmp, ignore_errors=True)
        raise
    _sync_folder(path.parent)


def replace_folder(new: Path, path: Path) -> None:
    """Put the complete folder ``new`` in the place of ``path``, which may exist."""
    old = _set_aside(path)
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(path, old)
    os.replace(new, path)
    shutil.rmtree(old, ignore_errors=True)


def restore_folder(path: str | Path) -> None:
    """Put an old folder back that a process, killed while replacing it, had set aside."""
    path = Path(path)
    if not path.exists() and _set_aside(path).exists():
        os.replace(_set_aside(path), path)


def _set_aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


@contextlib.contextmanager
def only_writer(path: str | Path, what: str) -> Iterator[None]:
    """Hold the folder ``path`` (made when absent) against other processes; UserError when one of them holds it.

    what: what stands in it, for the sentence. Where the system has no such locks nothing is held.
    """
    Path(path).mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process is writing the {what} '{path}'; wait until it has ended, or stop it."
            ) from None
        yield
    finally:
        os.close(handle)


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON atomically (UTF-8, two blanks of indent, keys in the order given)."""
    with atomic_file(path, "w") as handle:
        json.dump(value, handle, indent=2, ensure_ascii=False)
        handle.write("\n")


def read_json(path: str | Path, what: str = "file") -> Any:
    """Read JSON; a missing or damaged file is one clear sentence."""
    try:
        with open(path, encoding="utf-8") as handle:
            return json.load(handle)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{what} '{path}' does not exist; check the path.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{what} '{path}' is not UTF-8 (byte {error.start}); save it as UTF-8.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{what} '{path}' is not valid JSON ({error}); write it again.") from None


def read_object(path: str | Path, what: str = "file") -> dict[str, Any]:
    """Read a JSON object; anything else in the file is one clear sentence too."""
    found = read_json(path, what)
    if not isinstance(found, dict):
        raise UserError(f"{what} '{path}' holds a {type(found).__name__}, not an object of keys; write it again.")
    return found


def sha256(path: str | Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fingerprint(value: Any) -> str:
    """16 hex digits that name a JSON-able value; the key of every cache and index."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
