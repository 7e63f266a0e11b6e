"""The loop behind a feature cache: images are looked at ahead by threads, encoded in batches, written in order.

What the threads make is taken in the order of the images, so the store's bytes do not depend on how many there are.
Several processes share the images: each takes every world-th stretch of them and writes shards of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from core import distributed
from core.errors import UserError
from core.progress import progress
from core.records import ImageRef
from core.store import StoreWriter
from core.workers import ahead

COMMIT_IMAGES = 128
"""Images per shard, and per stretch that one process takes: a killed run loses at most so many per process, and what is
in its last two batches."""


@dataclass
class Looked:
    """What a worker found of one image. A stamp alone: unchanged since it was stored. No pixels: known content."""

    stamp: str | None
    digest: str | None = None
    pixels: np.ndarray | None = None  # [3, H, W]
    error: UserError | None = None


@dataclass
class Tally:
    encoded: int = 0
    replaced: int = 0  # images that were stored with other content
    bad: list[dict] = field(default_factory=list)  # {"id", "reason"} of images left out


def share(refs: Sequence[ImageRef], rank: int, world: int) -> list[ImageRef]:
    """This process's images: stretches, because neighbours are often duplicates and lie together on the disk."""
    return [ref for i, ref in enumerate(refs) if i // COMMIT_IMAGES % world == rank]


def fill(
    writer: StoreWriter,
    refs: Sequence[ImageRef],
    look: Callable[[ImageRef], Looked],
    encode: Callable[[list[np.ndarray]], torch.Tensor],
    size: int,
    workers: int,
    skip: bool,
) -> Tally:
    """Look at all images, encode those that are new, write them. However it ends, what was encoded is committed.

    look: run by ``workers`` threads. encode: ``size`` prepared images to rows [n, 1 + P, v] on the tower's device, not
    waited for. skip: list broken images instead of stopping at the first.
    """
    tally, names, batch = Tally(), {}, []  # names: digest -> (key, stamp) of every image in flight with this content
    launched: list[tuple[list[str], torch.Tensor]] = []

    def accept(ref: ImageRef, seen: Looked) -> None:
        if seen.digest in names:
            names[seen.digest].append((ref.key, seen.stamp))
        elif not writer.link(ref.key, seen.digest, seen.stamp):  # known: another name, or a new stamp
            names[seen.digest] = [(ref.key, seen.stamp)]
            batch.append((seen.digest, seen.pixels))

    def launch() -> None:
        """The tower begins with the batch; meanwhile the one before is written."""
        if batch:
            launched.append(([digest for digest, _ in batch], encode([pixels for _, pixels in batch])))
            batch.clear()

    def write(keep: int) -> None:
        while len(launched) > keep:
            digests, rows = launched.pop(0)
            rows = rows.cpu().numpy()
            writer.shard_rows = COMMIT_IMAGES * rows.shape[1]
            for digest, item in zip(digests, rows):
                (key, stamp), *others = names.pop(digest)
                try:
                    writer.add(key, digest, item, stamp)
                except UserError:
                    launched.clear()  # this error ends it; another in the next batch must not take its place
                    raise
                for other, its_stamp in others:
                    writer.link(other, digest, its_stamp)
            tally.encoded += len(digests)

    done = ahead(look, refs, workers, 2 * size + workers)
    shown = progress(None, "visual features", total=len(refs), unit="image") if distributed.is_main() else None
    with shown or contextlib.nullcontext(), contextlib.closing(done):
        try:
            for ref, seen in done:
                if shown is not None:
                    shown.update(1)
                if seen.error is not None:
                    if not skip:
                        launch()
                        raise seen.error
                    tally.bad.append({"id": ref.id, "reason": str(seen.error)})
                elif seen.digest is None or unchanged(writer, ref, seen):
                    continue
                else:
                    tally.replaced += writer.digests.get(ref.key, seen.digest) != seen.digest
                    accept(ref, seen)
                if len(batch) >= size:
                    launch()
                    write(keep=1)
            launch()
        finally:
            write(keep=0)
            writer.commit()
    return tally


def unchanged(writer: StoreWriter, ref: ImageRef, seen: Looked) -> bool:
    return writer.has(ref.key, seen.digest) and writer.stamps[ref.key] == seen.stamp
