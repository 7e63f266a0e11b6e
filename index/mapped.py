"""Files of a segment as arrays: mapped, and held open so that they can be read after they were removed."""

from __future__ import annotations

import contextlib
import errno
import io
import mmap
import os
import types
import weakref
from pathlib import Path
from typing import IO

import numpy as np

from core.errors import UserError
from core.files import atomic_file

SMALL = 1 << 18
"""Files up to this size are read whole: thousands of small segments then need neither maps nor open files."""


def damaged(path: Path, why: object) -> UserError:
    if isinstance(why, OSError) and why.errno in (errno.EMFILE, errno.ENFILE):
        return UserError(
            f"too many files are open to open '{path}' too; compact the index, or allow more with `ulimit -n`."
        )
    return UserError(f"index file '{path}' is missing or damaged ({why}); build the index again.")


def save_array(path: Path, array: np.ndarray) -> None:
    with atomic_file(path) as handle:
        # (numpy writes to a real file by itself, and then does not say why it failed)
        np.save(types.SimpleNamespace(write=handle.write), array)


def load_array(path: Path) -> np.ndarray:
    """A whole .npy file."""
    try:
        with open(path, "rb") as handle:
            dtype, shape, offset = _header(handle)
            count = int(np.prod(shape, dtype=object))
            if os.fstat(handle.fileno()).st_size != offset + count * dtype.itemsize:
                raise ValueError("its size does not fit its header")
            return np.fromfile(handle, dtype, count).reshape(shape)
    except UserError:
        raise
    except Exception as error:  # whatever numpy makes of foreign bytes
        raise damaged(path, error) from None


def _header(handle: IO[bytes]) -> tuple[np.dtype, tuple[int, ...], int]:
    """dtype, shape and where the data begins, of .npy files as ``save_array`` writes them."""
    if np.lib.format.read_magic(handle) != (1, 0):
        raise ValueError("another version of .npy")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(handle)
    if fortran or dtype.kind not in "iuf" or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError("not an array of numbers")
    return dtype, shape, handle.tell()


class HeldFile:
    """A file of a known size. ``bytes`` [size] uint8, read-only."""

    def __init__(self, path: Path, size: int) -> None:
        self.path, self._fd = path, -1
        try:
            fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise damaged(path, error) from None
        try:
            found = os.fstat(fd).st_size
            if found != size:
                raise ValueError(f"it has {found} bytes, not {size}")
            if size > SMALL:
                pages = mmap.mmap(fd, size, access=mmap.ACCESS_READ)
                with contextlib.suppress(AttributeError, OSError):  # not on every system; only a hint
                    pages.madvise(mmap.MADV_RANDOM)
                self.bytes = np.frombuffer(pages, np.uint8)
                self._fd = os.dup(fd)
                weakref.finalize(self, os.close, self._fd)
            else:
                self.bytes = np.frombuffer(os.read(fd, size) if size else b"", np.uint8)
                if len(self.bytes) != size:
                    raise ValueError("it became shorter while it was read")
        except (OSError, ValueError) as error:
            raise damaged(path, error) from None
        finally:
            os.close(fd)

    @property
    def descriptor(self) -> int:
        """The open file, -1 for one that is held in memory."""
        return self._fd

    def read(self, start: int, stop: int) -> np.ndarray:
        """Bytes start .. stop - 1 as a copy, read without the map: what passes through leaves no trace in memory."""
        if not 0 <= start <= stop <= len(self.bytes):
            raise damaged(self.path, f"bytes {start} to {stop} do not exist")
        if self._fd < 0 or not hasattr(os, "preadv"):
            return self.bytes[start:stop].copy()
        out = np.empty(stop - start, np.uint8)
        done = 0
        while done < len(out):
            try:
                got = os.preadv(self._fd, [memoryview(out)[done:]], start + done)
            except OSError as error:
                raise damaged(self.path, error) from None
            if not got:
                raise damaged(self.path, "it ends early")
            done += got
        return out

    def table(self, dtype: str, length: int) -> np.ndarray:
        """The array [length] of a .npy file."""
        try:
            found, shape, offset = _header(io.BytesIO(self.bytes[:4096].tobytes()))
            if (found, shape) != (np.dtype(dtype), (length,)) or len(self.bytes) != offset + length * found.itemsize:
                raise ValueError(f"it holds {found}{list(shape)}, not {dtype}[{length}]")
            return self.bytes[offset:].view(found)
        except Exception as error:  # whatever numpy makes of foreign bytes
            raise damaged(self.path, error) from None
