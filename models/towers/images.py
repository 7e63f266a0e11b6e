"""From an ImageRef to pixels. Every way an image can be bad is one clear sentence; there is no silent zero image."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from core.errors import UserError
from core.records import ImageRef
from core.visual import VisualBatch
from models.towers.pixels import quick


def read_bytes(ref: ImageRef) -> bytes:
    """The encoded image. ``path`` files, ``data``, or one base64 line of a TSV."""
    if ref.data is not None:
        return ref.data
    try:
        if ref.path is not None:
            return Path(ref.path).read_bytes()
        name, offset = ref.tsv
        with open(name, "rb") as handle:
            handle.seek(offset)
            return base64.b64decode(handle.readline().rstrip(b"\r\n").split(b"\t")[-1], validate=True)
    except FileNotFoundError as error:
        raise UserError(f"image '{ref.id}' is missing: no file '{error.filename}'; check the image folder.") from None
    except IsADirectoryError as error:
        raise UserError(f"image '{ref.id}' is the folder '{error.filename}'; give an image file.") from None
    except binascii.Error as error:
        raise UserError(
            f"image '{ref.id}' is not valid base64 in '{ref.tsv[0]}' ({error}); check the offset."
        ) from None


NARROW = 1000
"""Longest over shortest side at most. Processors enlarge the shortest side to some hundred pixels, so that a longer
one would fill the memory."""


def decode(ref: ImageRef, data: bytes | None = None, draft: int | None = None) -> Image.Image:
    """An RGB PIL image, upright (EXIF), cropped to ``ref.box``.

    draft: a JPEG is decoded at the smallest of 1/1, 1/2, 1/4, 1/8 of its size that leaves both sides so many pixels or
    more: faster, other pixels. Images with a box are not (its numbers mean the full size).
    CMYK and palette images are converted, transparency is laid on white, 16-bit grey is scaled to 8 bits, the first
    frame of an animation is taken. A truncated or unreadable file is an error that names the image.
    """
    data = read_bytes(ref) if data is None else data
    try:
        image = Image.open(io.BytesIO(data))
        image.seek(0)
        if draft is not None and ref.box is None:
            image.draft(None, (draft, draft))
        image.load()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        unknown = isinstance(error, UnidentifiedImageError)  # Pillow would name an object in memory
        reason = f"{len(data)} bytes of no known image format" if unknown else error
        place = ref.path or ref.id
        raise UserError(
            f"image '{ref.id}' cannot be decoded ({place}: {reason}); replace or remove the file."
        ) from None
    image = ImageOps.exif_transpose(image)
    image = _rgb(image)
    if ref.box is not None:
        left, top, right, bottom = ref.box
        if not (0 <= left < right <= image.width and 0 <= top < bottom <= image.height):
            raise UserError(f"image '{ref.id}': box {ref.box} does not lie within {image.width}x{image.height} pixels.")
        image = image.crop(ref.box)
    if max(image.size) > NARROW * min(image.size):
        raise UserError(f"image '{ref.id}' is {image.width}x{image.height} pixels; crop it to at most {NARROW} to 1.")
    return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        out = np.empty((image.height, image.width), np.uint8)
        values = np.asarray(image)
        top = 65535.0 if image.mode.startswith("I") else max(float(values.max()), 1e-12)
        for row, line in zip(out, values):  # row by row: large scans are many times as large in float64
            row[:] = (np.clip(line.astype(np.float64) / top, 0, 1) * 255).round()
        return Image.fromarray(out).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


SETTINGS = {"size", "crop_size", "image_mean", "image_std", "resample", "rescale_factor"}
"""Besides the switches ``do_*``, what an image processor's pixels depend on."""


def _plain(value):
    """Sizes and enums as sorted plain dicts, lists and numbers."""
    if isinstance(value, dict):
        return {k: _plain(value[k]) for k in sorted(value) if value[k] is not None}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return int(value) if isinstance(value, IntEnum) else value


class PixelSource:
    """A VisualSource that decodes images and runs a Hugging Face image processor (PIL-backed)."""

    def __init__(self, folder: str | Path) -> None:
        self.processor = load_processor(folder)
        self._quick = quick(self.processor, self.describe())
        self.fingerprint = {"kind": "pixels", "preprocessing": self.describe()}

    def describe(self) -> dict:
        """The processor's settings that change pixels, the same under every release of transformers."""
        raw = self.processor.to_dict()
        named = {k: _plain(raw[k]) for k in sorted(raw) if k.startswith("do_") or k in SETTINGS}
        return {k: v for k, v in named.items() if v not in (None, False)}  # releases differ in what they spell out

    def fetch(self, refs: Sequence[ImageRef]) -> VisualBatch:
        return self.pixels([decode(ref) for ref in refs])

    def pixels(self, images: Sequence[Image.Image]) -> VisualBatch:
        return VisualBatch(pixels=self.finish(torch.from_numpy(np.stack([self.prepare(i) for i in images]))))

    def prepare(self, image: Image.Image) -> np.ndarray:
        """One image -> [3, H, W], 8-bit where ``finish`` can do the rest, float32 otherwise."""
        if self._quick is not None:
            return self._quick.prepare(image)
        return np.asarray(self.processor(images=[image], return_tensors="np")["pixel_values"][0], dtype=np.float32)

    def finish(self, prepared: Tensor) -> Tensor:
        """Stacked results of ``prepare`` [N, 3, H, W], on any device -> float32 pixels there."""
        return prepared if self._quick is None else self._quick.finish(prepared)

    @property
    def edge(self) -> int:
        """The pixels that images are resized to: what ``decode(draft=...)`` must leave."""
        settings = self.describe()
        if not settings.get("do_resize"):
            raise UserError("visual.draft is true, but this tower's images are not resized; set it to false.")
        return max(settings["size"].values())

    def save(self, folder: Path) -> None:
        self.processor.save_pretrained(folder)


def load_processor(folder: str | Path):
    """The folder's image processor, always the PIL backend: the other needs torchvision."""
    # Not from the top level, which some 5.x replace by a stand-in where torchvision is missing.
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    try:
        try:
            made = AutoImageProcessor.from_pretrained(folder, backend="pil")
        except TypeError:  # 5.x before ``backend``
            made = None
        if made is None or type(made).__name__.endswith("Fast"):  # the argument may also have been ignored
            made = AutoImageProcessor.from_pretrained(folder, use_fast=False)
        return made
    except (OSError, ValueError) as error:
        raise UserError(
            f"no image processor in '{folder}' ({str(error).splitlines()[0]}); "
            "the folder needs the model's preprocessor_config.json."
        ) from None
