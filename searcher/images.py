"""What clients send as an image: refused before anything of it is decoded when it is too large or no image."""

from __future__ import annotations

import io
import re

from PIL import Image

from core.records import ImageRef
from models.towers.images import NARROW, decode
from searcher.errors import Refused

TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif"}
"""Pillow's names of what is accepted, and the media types. Its other formats have rarely used decoders."""


MAX_SCANS, MAX_SEGMENTS = 100, 2000
"""Of a JPEG. Programs write about ten scans; each goes over all pixels again, in as little as 60 bytes of the file."""

MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")
"""Of a JPEG segment. Coded pixels hold 0xff only before 0 or a restart marker."""


def sniff(data: bytes) -> str | None:
    """The format by the file's own first bytes; names and headers that a client gives are not looked at."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    return "WEBP" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None


def opened(data: bytes, max_pixels: int) -> Image.Image:
    """Upright RGB pixels of an uploaded image. Of an animation only the first frame is read, however many there are.

    The size stands in the header, so a small file that would unfold to gigabytes is refused unread.
    """
    if not data:
        raise Refused(422, "the image is empty; send the bytes of a file.")
    if (kind := sniff(data)) is None:
        raise Refused(415, f"the image's {len(data)} bytes are none of {', '.join(TYPES)}; convert it to one of them.")
    if kind == "JPEG" and endless(data):
        raise Refused(422, f"the image has over {MAX_SCANS} scans or {MAX_SEGMENTS} segments; save it again.")
    wanted = f"{max_pixels / 1e6:g} megapixels at most"
    try:
        with Image.open(io.BytesIO(data), formats=(kind,)) as header:
            width, height = header.size
        if width * height > max_pixels:
            raise Refused(413, f"the image has {width} x {height} pixels; send {wanted}.")
        if max(width, height) > NARROW * min(width, height):
            raise Refused(422, f"the image has {width} x {height} pixels; crop it to at most {NARROW} to 1.")
        return decode(ImageRef("upload", data=data))
    except Refused:
        raise
    except Image.DecompressionBombError:  # Pillow's own limit, for headers that promise still more
        raise Refused(413, f"the image has far too many pixels; send {wanted}.") from None
    except Exception as error:  # Pillow's plugins raise whatever a broken file makes them stumble over
        raise Refused(422, f"the image is a damaged {kind} file ({_reason(error)}); save it again.") from None


def endless(data: bytes) -> bool:
    """Whether a JPEG would keep its decoder busy for minutes or hours."""
    place = scans = 0
    for _ in range(MAX_SEGMENTS):
        marker = MARKER.search(data, place)
        if marker is None or marker[1] == b"\xd9":
            return scans > MAX_SCANS
        place = marker.end()
        if marker[1] not in b"\x01\xd8":  # these two have no length; what others hold is no marker
            place += max(2, int.from_bytes(data[place : place + 2]))
        scans += marker[1] == b"\xda"
    return True


def _reason(error: Exception) -> str:
    """Short, without addresses of objects."""
    return type(error).__name__ if "object at 0x" in str(error) else str(error).split(";")[0][:120] or "unreadable"
