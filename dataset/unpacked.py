"""A packed file as a file of JSON lines beside it, made once: single lines cannot be read out of a packed one."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import json
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from core.errors import UserError
from core.files import atomic_file
from core.progress import progress
from dataset.lines import unreadable

BLOCK = 1 << 20


def gunzipped(path: str | Path) -> Path:
    """``x.jsonl`` beside ``x.jsonl.gz``; made when it is not there. Any other path stays as it is."""
    path = Path(path)
    if path.suffix != ".gz":
        return path
    return made(path, path.with_suffix(""), lambda packed: iter(lambda: packed.read(BLOCK), b""))


def made(path: Path, target: Path, write: Callable[[IO[bytes]], Iterable[bytes]]) -> Path:
    """``target``, made of the content of ``path`` when it is not there, or older. The content streams through."""
    if target.is_file() and not (path.is_file() and path.stat().st_mtime > target.stat().st_mtime):
        return target
    try:
        with _alone(target.parent):
            if target.is_file() and target.stat().st_mtime >= path.stat().st_mtime:
                return target  # another process made it meanwhile
            print(f"note: '{path}' is unpacked once into '{target}'.", file=sys.stderr)
            with open(path, "rb") as packed, atomic_file(target) as out:
                bar = progress(None, f"unpacking {path.name}", total=path.stat().st_size >> 20, unit="MB")
                with _content(path, packed) as content:
                    for block in write(content):
                        out.write(block)
                        bar.update((packed.tell() >> 20) - bar.n)
                bar.close()
    except (EOFError, zlib.error, zipfile.BadZipFile, gzip.BadGzipFile) as error:
        raise UserError(f"'{path}' is damaged ({error}); download it again.") from None
    except OSError as error:
        if not path.is_file():
            raise UserError(unreadable("passages file", path, error)) from None
        raise UserError(f"'{path}' cannot be unpacked into '{target}' ({error.strerror}); make room there.") from None
    return target


@contextlib.contextmanager
def _content(path: Path, packed: IO[bytes]) -> Iterator[IO[bytes]]:
    if path.suffix == ".gz":
        with gzip.open(packed) as content:
            yield content
    elif path.suffix == ".zip":
        with zipfile.ZipFile(packed) as archive:
            names = [name for name in archive.namelist() if name.endswith(".json")]
            if len(names) != 1:
                raise UserError(f"'{path}' holds {len(names)} .json files; it must hold one.")
            with archive.open(names[0]) as content:
                yield content
    else:
        yield packed


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time; the others wait. Where the system has no such locks nothing is held."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with open(folder / ".unpacking.lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def members(content: IO[bytes], what: str | Path) -> Iterator[tuple[str, Any]]:
    """(key, value) of one huge JSON object, one after another, without holding the others."""
    decoder = json.JSONDecoder()
    buffer, at, ended = "", 0, False
    utf8 = _decoder()

    def more() -> None:
        nonlocal buffer, at, ended
        block = content.read(BLOCK)
        ended = not block
        buffer, at = buffer[at:] + utf8.decode(block, final=ended), 0

    def token(wanted: str) -> str:
        nonlocal at
        while True:
            while at < len(buffer) and buffer[at] in " \t\r\n":
                at += 1
            if at < len(buffer):
                break
            if ended:
                raise UserError(f"'{what}' ends in the middle of its JSON; download it again.")
            more()
        if buffer[at] not in wanted:
            raise UserError(
                f"'{what}' is not one JSON object of entries ({buffer[at : at + 20]!r}); download it again."
            )
        at += 1
        return buffer[at - 1]

    def value() -> Any:
        nonlocal at
        token(_STARTS)
        at -= 1
        while True:
            try:
                found, end = decoder.raw_decode(buffer, at)
                # A number may go on: with more digits, or behind its point.
                if ended or isinstance(found, (dict, list, str)) or buffer[end : end + 1] in _ENDS:
                    at = end
                    return found
            except ValueError:
                if ended:
                    raise UserError(
                        f"'{what}' is not valid JSON near {buffer[at : at + 40]!r}; download it again."
                    ) from None
            more()

    try:
        token("{")
        following = token('"}')
        while following != "}":
            at -= 1
            key = value()
            token(":")
            yield key, value()
            following = token(",}")
            if following == ",":
                token('"')
    except UnicodeDecodeError as error:
        raise UserError(f"'{what}' is not UTF-8 ({error.reason}); download it again.") from None


_STARTS, _ENDS = '"{[-0123456789tfn', set(",:} \t\r\n")


def _decoder():
    return codecs.getincrementaldecoder("utf-8-sig")()
