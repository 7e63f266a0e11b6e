"""An image processor's pixels with less work, bit for bit.

The processors of CLIP, SigLIP and DINOv2 resize an 8-bit image, crop its centre, and send every value through one
function per channel (rescale, normalise) in float arithmetic. That function has 256 arguments: here it is a table, made
by the processor itself. Images stay 8-bit until they are on the tower's device, a quarter of the bytes.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SHAPES = [(37, 53), (61, 29), (301, 200), (200, 301), (224, 224), (1000, 41), (333, 640), (3, 2)]
"""Widths and heights on which ``quick`` compares with the processor: odd, small, long, up and down."""

STEPS = {"do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"}


class QuickPixels:
    """PIL image -> 8-bit [3, H, W] by ``prepare`` (any thread) -> float32 [N, 3, H, W] by ``finish`` (any device)."""

    def __init__(self, processor, settings: dict) -> None:
        """settings: ``PixelSource.describe()``. Use ``quick``, which knows whether a processor can be followed."""
        self.size, self.resample = settings["size"], settings["resample"]
        self.crop = settings["crop_size"] if settings.get("do_center_crop") else None
        ramp = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, 2)
        steps = {"do_resize": False, "do_center_crop": False, "return_tensors": "np"}
        values = processor(images=[Image.fromarray(ramp)], **steps)["pixel_values"]
        self.table = torch.from_numpy(np.ascontiguousarray(values[0].reshape(3, 256), dtype=np.float32))

    def prepare(self, image: Image.Image) -> np.ndarray:
        """RGB image -> uint8 [3, H, W]: resized and cropped."""
        if set(self.size) == {"height", "width"}:
            size = (self.size["width"], self.size["height"])
        else:
            short = self.size["shortest_edge"]
            width, height = image.size
            size = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
        image = image.resize(size, self.resample)
        if self.crop is not None:
            width, height = self.crop["width"], self.crop["height"]
            left, top = (image.width - width) // 2, (image.height - height) // 2
            image = image.crop((left, top, left + width, top + height))
        return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))

    def finish(self, images: Tensor) -> Tensor:
        """uint8 [N, 3, H, W] -> float32 of the same shape, on the same device."""
        table = self.table.to(images.device)
        channels = [table[c].index_select(0, images[:, c].flatten().int()) for c in range(3)]
        return torch.stack([c.view(len(images), *images.shape[2:]) for c in channels], 1)


def quick(processor, settings: dict) -> QuickPixels | None:
    """The quick way for this processor when it gives exactly its pixels on images of all ``SHAPES``, else None."""
    sizes = ({"shortest_edge"}, {"height", "width"})
    steps = {k for k in settings if k.startswith("do_")}
    if not settings.get("do_resize") or not steps <= STEPS or set(settings.get("size", ())) not in sizes:
        return None
    made, rng = QuickPixels(processor, settings), np.random.default_rng(0)
    for width, height in SHAPES:
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        wanted = np.asarray(processor(images=[image], return_tensors="np")["pixel_values"])
        found = made.prepare(image)
        if found.shape != wanted.shape[1:] or not np.array_equal(made.finish(torch.from_numpy(found[None])), wanted):
            return None
    return made
