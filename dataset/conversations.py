"""Visual-instruction files (LLaVA, LVIS-Instruct4V) as a stream: JSON arrays and JSON lines, never loaded whole.

An item is one element of the array or one line. Reading can go on behind any item, given the byte where it ended.
"""

from __future__ import annotations

import codecs
import gzip
import json
import os
import posixpath
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from core.errors import UserError
from dataset.lines import unreadable

CHUNK = 1 << 20
"""Bytes that are read at a time."""

LARGEST = 1 << 26
"""Characters that one element may have: what is longer is a broken array."""

BLANK = re.compile(r"[ \t\n\r]*")
DECODE = json.JSONDecoder().raw_decode


@dataclass(frozen=True)
class Item:
    """number: its place among the items, from 0. end: the byte behind it. problem: why there is no value."""

    number: int
    value: Any
    end: int
    problem: str | None = None


def items(path: str | Path, start: int = 0, number: int = 0) -> Iterator[Item]:
    """The elements of a JSON array or the lines of a JSON-lines file, packed with gzip or not.

    start, number: go on behind the item that ended at this byte; the next one's number. A line that is no JSON, and an
    element or line that is not UTF-8, comes with its ``problem``; a broken array is a UserError that names the byte.
    """
    try:
        with _opened(path) as handle:
            if _is_array(handle, path):
                yield from _Array(handle, path, start, number)
            else:
                yield from _lines(handle, path, start, number)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"data file '{path}' is damaged ({error}); download it again.") from None
    except OSError as error:
        raise UserError(unreadable("data file", path, error)) from None


def size(path: str | Path) -> int:
    """Bytes as ``Item.end`` counts them; of a packed file its size on disk, for want of the true one."""
    try:
        return Path(path).stat().st_size
    except OSError as error:
        raise UserError(unreadable("data file", path, error)) from None


def _opened(path: str | Path) -> IO[bytes]:
    handle = open(path, "rb")  # noqa: SIM115 (the caller closes it)
    packed = handle.read(2) == b"\x1f\x8b"
    handle.seek(0)
    return gzip.open(handle) if packed else handle


def _is_array(handle: IO[bytes], path: str | Path) -> bool:
    head = handle.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()
    if not head:
        raise UserError(f"data file '{path}' is empty; download or write it again.")
    return head[:1] == b"["


# ---- JSON lines


def _lines(handle: IO[bytes], path: str | Path, start: int, number: int) -> Iterator[Item]:
    handle.seek(start)
    at = start
    for line in handle:
        at += len(line)
        if not line.strip():
            continue
        try:
            item = Item(number, json.loads(line.decode("utf-8-sig" if not start and not number else "utf-8")), at)
        except UnicodeDecodeError:
            item = Item(number, None, at, "not UTF-8")
        except (ValueError, RecursionError) as error:
            if number == 0:
                raise UserError(
                    f"data file '{path}' is neither a JSON array nor JSON lines: its first line ends in the middle of "
                    f"a value ({error}); give a list of conversations, or one conversation per line."
                ) from None
            item = Item(number, None, at, "broken JSON")
        yield item
        number += 1


# ---- a JSON array


class _Array:
    """Decodes one element at a time out of a window of text; ``byte`` is where the window begins."""

    def __init__(self, handle: IO[bytes], path: str | Path, start: int, number: int) -> None:
        self.handle, self.path, self.number = handle, path, number
        handle.seek(start)
        # Bytes that are no UTF-8 become lone surrogates, so that one bad conversation does not end the reading.
        self.decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self.text, self.at, self.byte, self.ended = "", 0, start, False
        self.begins = start == 0

    def __iter__(self) -> Iterator[Item]:
        if self.begins:
            if self._next() == "\ufeff":
                self.at += 1
                self._next()
            self.at += 1  # the bracket
        first = self.begins
        while True:
            sign = self._next()
            if sign == "]":
                self.at += 1
                if rest := self._next():
                    raise self._broken(f"{rest!r} stands behind the end of the list")
                return
            if not first:
                if sign != ",":
                    raise self._broken("a comma or the end of the list is missing" if sign else "the file ends")
                self.at += 1
                self._next()
            first = False
            yield self._element()

    def _element(self) -> Item:
        while True:
            try:
                value, end = DECODE(self.text, self.at)
                if end < len(self.text) or self.ended:  # a number at the end of the window may go on
                    break
            except (ValueError, RecursionError) as error:
                place = getattr(error, "pos", self.at)
                if self.ended or len(self.text) - self.at > LARGEST:
                    self.at = min(place, len(self.text))
                    raise self._broken(getattr(error, "msg", "nested too deeply")) from None
            self._read()
        raw, self.at = self.text[self.at : end], end
        problem = None if raw.isascii() or is_unicode(raw) else "not UTF-8"
        item = Item(self.number, None if problem else value, self._byte(), problem)
        self.number += 1
        return item

    def _next(self) -> str:
        """The next sign that is no blank; "" at the end of the file."""
        while True:
            self.at = BLANK.match(self.text, self.at).end()
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self._read()

    def _read(self) -> None:
        self.byte = self._byte()
        piece = self.handle.read(CHUNK)
        self.ended = not piece
        self.text, self.at = self.text[self.at :] + self.decoder.decode(piece, final=not piece), 0

    def _byte(self) -> int:
        """Where ``at`` is in the file. What lies before it is let go, once it is long."""
        passed = _bytes(self.text[: self.at])
        if self.at > CHUNK // 16:
            self.text, self.at, self.byte, passed = self.text[self.at :], 0, self.byte + passed, 0
        return self.byte + passed

    def _broken(self, reason: str) -> UserError:
        return UserError(
            f"data file '{self.path}' is not valid JSON at byte {self._byte()}, behind {self.number} conversations "
            f"({reason}); download it again or correct it there."
        )


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogateescape"))


def is_unicode(text: str) -> bool:
    """False for halves of surrogate pairs, which JSON can escape and no file or tokenizer takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


# ---- conversations


def why_not(item: Item, image_dir: str | Path | None = None) -> str | None:
    """Why a whole conversation is of no use; None when its turns are to be looked at.

    image_dir: when given, the image must lie in it.
    """
    if item.problem is not None:
        return item.problem
    value = item.value
    if not isinstance(value, dict):
        return "not an object"
    image = value.get("image")
    if not isinstance(image, str) or not image.strip():
        return "no image"
    if not is_unicode(image) or not is_unicode(str(value.get("id"))):
        return "not UTF-8"
    if "VG_100K" in image:
        return "image of Visual Genome"
    if escapes(image):
        return "image path leaves its folder"
    if image_dir is not None and not os.path.isfile(Path(image_dir) / image):
        return "image file missing"
    turns = value.get("conversations")
    if not isinstance(turns, list) or len(turns) < 2:
        return "no turns"
    return None


def escapes(image: str) -> bool:
    """Whether a relative path would lead out of the folder it is relative to."""
    path = posixpath.normpath(image.replace("\\", "/"))
    return path.startswith("/") or path == ".." or path.startswith("../") or re.match("[A-Za-z]:", path) is not None


def turn_pairs(turns: list) -> Iterator[tuple[int, str, str, str | None]]:
    """(turn, question as written, response as written, problem) for every two turns; a last single turn is no pair.

    From the first pair on that is not human, then gpt, everything has the problem "turn order".
    """
    broken = False
    for t in range(0, len(turns) - 1, 2):
        asked, told = turns[t], turns[t + 1]
        broken = broken or not (_speaks(asked, "human") and _speaks(told, "gpt"))
        if broken:
            yield t, "", "", "turn order"
            continue
        texts = asked.get("value"), told.get("value")
        if not all(isinstance(text, str) for text in texts):
            yield t, "", "", "turn without text"
        elif not all(text.isascii() or is_unicode(text) for text in texts):
            yield t, "", "", "not UTF-8"
        else:
            yield t, *texts, None


def _speaks(turn: Any, who: str) -> bool:
    return isinstance(turn, dict) and turn.get("from") == who
