"""The feature cache: every image through the frozen vision tower once. Not a command of its own.

Its key, what a worker does with one image, and the tower; the loop itself is ``core/features.py``.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from core import distributed
from core.device import encoding_precision
from core.errors import UserError
from core.features import Looked, fill, share
from core.files import only_writer, read_json, write_json
from core.records import ImageRef
from core.store import Store, StoreWriter, check_place, read_spec
from core.visual import is_original, stamp_of
from core.workers import default_workers
from runs.common import seconds

SKIPPED = "skipped.json"
SHOWN = 20
"""Broken images named on the screen; the file beside the store names all."""

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def build(refs: Sequence[ImageRef], tower, pixels, out: str | Path, visual) -> Store:
    """Encode what is missing in the store ``out`` and finish it; every process of a torchrun calls this.

    tower: a VisionTower on the device to use. pixels: its PixelSource. visual: the ``visual`` section.
    """
    check_out(out)
    start, main, part = time.time(), distributed.is_main(), (distributed.rank(), distributed.world())
    device = next(tower.parameters()).device
    precision = pick_precision(visual.precision, device, out)
    edge = pixels.edge if visual.draft else None
    workers = visual.workers or default_workers(part[1])
    spec = feature_spec(tower, pixels, visual.dtype, precision, visual.draft)
    refs = list({ref.key: ref for ref in refs}.values())
    with only_writer(out, "feature cache") if main else contextlib.nullcontext():
        writer = StoreWriter(out, spec, part=part) if main else None
        if main:
            writer.tidy()
            print(f"visual features: {len(refs)} images, {workers} workers, tower in {precision} on {device}")
        distributed.patient_barrier()  # the folder and its spec are there
        writer = writer or StoreWriter(out, spec, part=part)
        distributed.patient_barrier()  # all know the same shards; from here on they write
        encode = encoder(tower, pixels, precision, torch.float16 if visual.dtype == "float16" else torch.float32)
        seen = functools.partial(look, writer=writer, pixels=pixels, edge=edge)
        skip = visual.on_error == "skip"
        tally = fill(writer, share(refs, *part), seen, encode, visual.batch_size, workers, skip)
        distributed.patient_barrier()  # all shards are there
        found = distributed.gather_objects(tally)
        bad = [line for part in found for line in part.bad]
        if main:
            report_replaced(sum(part.replaced for part in found), out)
            report_skipped(bad, Path(out) / SKIPPED)
            writer.finish(skipped=len(bad))
        distributed.patient_barrier()
    store, spent = Store(out), time.time() - start
    if main:
        made = sum(part.encoded for part in found)
        rate = f", {made / spent:.0f} images/s" if made else ""
        print(f"visual features: {len(store)} images in '{out}', {made} encoded now in {seconds(spent)}{rate}")
    return store


def check_out(out: str | Path) -> None:
    """Raise when no feature cache of ours can be written in ``out``."""
    if is_original(out):
        raise UserError(f"'{out}' holds one .npy per image and is only read; give the new cache another folder.")
    check_place(out)


def feature_spec(tower, pixels, dtype: str, precision: str, draft: bool) -> dict:
    """Key of the store. What changes no number is left out, so that plain fp32 features keep their key."""
    more = {**({} if precision == "fp32" else {"precision": precision}), **({"draft": True} if draft else {})}
    return {**tower.fingerprint(pixels.describe()), "dtype": dtype, **more}


def pick_precision(asked: str, device: torch.device, out: str | Path) -> str:
    """auto: what the store was begun with, else fp16 on CUDA and fp32 elsewhere."""
    if asked != "auto":
        return asked
    if (Path(out) / "spec.json").is_file():
        return read_spec(Path(out)).get("precision", "fp32")
    return encoding_precision(asked, device)


# ---- one image, in a worker


def look(ref: ImageRef, writer: StoreWriter, pixels, edge: int | None) -> Looked:
    """Read, hash, decode and resize, as far as the store makes it necessary.

    Images come into the store in order, so whatever it knows by now stands before this one: the outcome does not depend
    on when a worker looks.
    """
    from models.towers import images

    stamp = None
    try:
        stamp = stamp_of(ref)
        if stamp is not None and writer.stamps.get(ref.key) == stamp:
            return Looked(stamp)
        data = images.read_bytes(ref)
        digest = hashlib.sha256(data)
        digest.update(repr(ref.box).encode())
        name = digest.hexdigest()[:24]
        if writer.knows(name):
            return Looked(stamp, name)
        return Looked(stamp, name, pixels.prepare(images.decode(ref, data, edge)))
    except UserError as error:
        return Looked(stamp, error=error)


# ---- the tower


def encoder(tower, pixels, precision: str, dtype: torch.dtype) -> Callable[[list[np.ndarray]], torch.Tensor]:
    """A function from prepared images to their rows [n, 1 + P, v] of ``dtype`` on the tower's device."""
    device = next(tower.parameters()).device
    if precision != "fp32":  # a copy: the retriever goes on with its own weights
        tower = copy.deepcopy(tower).to(PRECISIONS[precision])

    def encode(prepared: list[np.ndarray]) -> torch.Tensor:
        images = torch.from_numpy(np.stack(prepared))
        if device.type == "cuda":
            images = images.pin_memory()
        global_, patches = tower(pixels.finish(images.to(device, non_blocking=True)))
        return torch.cat([global_[:, None], patches], 1).to(dtype)

    return encode


def report_replaced(count: int, out: str | Path) -> None:
    """Changed images look like another data set's of the same names; only the user knows which they are."""
    if count:
        print(
            f"note: {count} images stood in '{out}' with other content, which is replaced; if that was another data "
            "set's, give each its own visual.cache"
        )


def report_skipped(bad: list[dict], path: Path) -> None:
    """Name the images left out: some on the screen, all in the file, which is absent when there are none."""
    for line in bad[:SHOWN]:
        print(f"skipped: {line['reason']}")
    if bad:
        write_json(path, bad)
        print(f"{len(bad)} images were left out; '{path}' names them all with the reason.")
    else:
        path.unlink(missing_ok=True)


def listed(data_path: str, image_dir: str) -> Iterator[ImageRef]:
    """Image references of a JSON list; an ``image_id`` alone names <12 digits>.jpg, as COCO does."""
    try:
        rows = read_json(data_path, "data file")
    except OSError as error:
        raise UserError(f"data file '{data_path}' cannot be read ({error.strerror}); give a JSON file.") from None
    if not isinstance(rows, list):
        raise UserError(f"data file '{data_path}' holds a {type(rows).__name__}; write a JSON list of records.")
    if not rows:
        raise UserError(f"data file '{data_path}' has no records, so there is nothing to cache; give another file.")
    for position, row in enumerate(rows):
        where = f"record {position} of '{data_path}'"
        if not isinstance(row, dict):
            raise UserError(f"{where} is {row!r:.40}; write an object with 'image' or 'image_id'.")
        name = row.get("image")
        if name is None:
            name = coco_name(row.get("image_id"), where)
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"{where} has the image {name!r:.40}; write a file name below '{image_dir}'.")
        yield ImageRef(name, path=str(Path(image_dir) / name))


def coco_name(number: object, where: str) -> str:
    if number is None:
        raise UserError(f"{where} has neither 'image' nor 'image_id'; add one.")
    if isinstance(number, bool) or not (isinstance(number, int) or str(number).isdecimal()) or int(number) < 0:
        raise UserError(f"{where} has the image_id {number!r:.40}; write a whole number, or the file name as 'image'.")
    return f"{int(number):012d}.jpg"
