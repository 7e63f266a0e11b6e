"""The feature cache beside its limit and beside the original scheme, on the same images in the same run.

  python benchmarks/visual_cache.py --images 400 --json visual_cache.json
  python benchmarks/visual_cache.py --tower ckpts/dinov2-small --images 64
  python benchmarks/visual_cache.py --tower openai/clip-vit-base-patch32 --image_dir data/coco/val2017 --device cuda

Rows: reading and decoding alone (the limit when the tower costs nothing); the same and the tower's preprocessing; our
cache, plain and with draft decoding; the original scheme (one thread decodes, the Hugging Face processor prepares, one
float32 .npy is written beside every image). Then random reads from both caches. ``--tower tiny`` costs next to nothing
and gives as many numbers as CLIP B/32, so that what surrounds a tower is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core import cli
from core.device import pick_device
from core.records import ImageRef
from core.store import Store
from core.visual import OriginalVisual, StoredVisual
from core.workers import ahead, default_workers
from models.towers.images import PixelSource, decode
from models.towers.vision import VisionConfig, load_vision_tower
from runs.features import build
from runs.settings import Visual

SIZES = {"500 px": 500, "2000 px": 2000}
"""Longer side of the made JPEGs: a web photo, and a camera's."""


def made_images(folder: Path, count: int, side: int) -> list[ImageRef]:
    """Seeded JPEGs of quality 90: smooth colours with fine noise, about as many bytes as photos of their size."""
    folder.mkdir(parents=True)
    refs = []
    for i in range(count):
        rng = np.random.default_rng(i)
        size = (side, side * 3 // 4) if i % 3 else (side * 3 // 4, side)
        coarse, fine = (rng.integers(0, 256, (size[1] // d, size[0] // d, 3), dtype=np.uint8) for d in (60, 4))
        layers = [Image.fromarray(x).resize(size, Image.Resampling.BICUBIC) for x in (coarse, fine)]
        Image.blend(*layers, 0.25).save(folder / f"{i:06d}.jpg", quality=90)
        refs.append(ImageRef(f"{i:06d}.jpg", path=str(folder / f"{i:06d}.jpg")))
    return refs


def found_images(folder: Path, count: int) -> list[ImageRef]:
    names = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))[:count]
    return [ImageRef(str(p.relative_to(folder)), path=str(p)) for p in names]


class TinyTower(torch.nn.Module):
    """In a tower's place at next to no cost: mean colours of 7 x 7 cells, repeated to CLIP B/32's [50, 768]."""

    hidden_size = 768

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        cells = torch.nn.functional.adaptive_avg_pool2d(pixels.to(self.scale.dtype) * self.scale, 7)
        patches = cells.flatten(2).transpose(1, 2).repeat(1, 1, 256).float()
        return patches.mean(1), patches

    def fingerprint(self, processor: dict) -> dict:
        return {"kind": "visual", "weights": "tiny", "preprocessing": processor}


def tiny_tower(folder: Path) -> tuple[TinyTower, Path]:
    """With the preprocessing of CLIP."""
    settings = {
        "image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": {"shortest_edge": 224}, "resample": 3,
        "do_center_crop": True, "crop_size": {"height": 224, "width": 224}, "do_rescale": True, "do_normalize": True,
        "rescale_factor": 1 / 255, "image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28],
        "do_convert_rgb": True,
    }  # fmt: skip
    folder.mkdir()
    (folder / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return TinyTower(), folder


def original_scheme(refs: Sequence[ImageRef], tower, pixels: PixelSource, out: Path, batch_size: int) -> None:
    """One thread, one float32 .npy per image: beside the image in the original, in a mirror of its folder here."""
    device = next(tower.parameters()).device
    for start in range(0, len(refs), batch_size):
        part = refs[start : start + batch_size]
        images = [Image.open(ref.path).convert("RGB") for ref in part]
        prepared = torch.as_tensor(np.stack(pixels.processor(images=images, return_tensors="np")["pixel_values"]))
        global_, patches = tower(prepared.to(device))
        for ref, rows in zip(part, torch.cat([global_[:, None], patches], 1).cpu().numpy()):
            target = out / f"{ref.id[:-3]}npy"
            target.parent.mkdir(parents=True, exist_ok=True)
            np.save(target, rows)


def drained(work: Callable, refs: Sequence[ImageRef], workers: int) -> None:
    for _ in ahead(work, refs, workers, 2 * workers + 8):
        pass


def disk(folder: Path) -> dict:
    files = [p for p in folder.rglob("*") if p.is_file()]
    return {"bytes": sum(p.stat().st_size for p in files), "files": len(files)}


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """(seconds, seconds of processor time over all threads: what a busy machine changes little)."""
    os.sync()  # what others left to be written is not this row's
    start, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - cpu


def random_reads(source, refs: Sequence[ImageRef], count: int) -> tuple[int, tuple[float, float]]:
    """How many, and ``timed``: batches of 32 drawn at random, the files in memory, as in a second epoch."""
    drawn = np.random.default_rng(0).integers(0, len(refs), (max(1, count // 32), 32))
    batches = [[refs[i] for i in row] for row in drawn]
    source.fetch(batches[0])
    return drawn.size, timed(lambda: [source.fetch(batch) for batch in batches])


def measure(refs: Sequence[ImageRef], tower, pixels: PixelSource, root: Path, args) -> Iterator[dict]:
    """One row per way. Ways alternate over ``--repeats`` and the best of each counts: others use the machine too."""
    workers = args.workers or default_workers()
    visual = Visual(batch_size=args.batch_size, workers=workers)
    ours, draft, theirs = root / "ours", root / "draft", root / "theirs"
    options = {"draft": visual.model_copy(update={"draft": True})}
    ways: dict[str, tuple[Path | None, Callable[[], object]]] = {
        "decode only": (None, lambda: drained(decode, refs, workers)),
        "decode and prepare": (None, lambda: drained(lambda ref: pixels.prepare(decode(ref)), refs, workers)),
        "our cache": (ours, lambda: build(refs, tower, pixels, ours, visual)),
        "our cache, draft": (draft, lambda: build(refs, tower, pixels, draft, options["draft"])),
        "original scheme": (theirs, lambda: original_scheme(refs, tower, pixels, theirs, args.batch_size)),
    }
    best = dict.fromkeys(ways, (float("inf"), float("inf")))
    for _ in range(args.repeats):
        for name, (out, work) in ways.items():
            if out is not None:
                shutil.rmtree(out, ignore_errors=True)
            best[name] = tuple(map(min, best[name], timed(work)))
    again = timed(lambda: build(refs, tower, pixels, ours, visual))
    for name, (out, _) in ways.items():
        yield {"way": name, **rates(len(refs), best[name]), **(disk(out) if out else {})}
    yield {"way": "our cache, nothing to do", **rates(len(refs), again)}
    sources = {"our cache": StoredVisual(Store(ours)), "original .npy": OriginalVisual(theirs, tower.hidden_size)}
    for name, source in sources.items():
        yield {"way": f"random reads, {name}", **rates(*random_reads(source, refs, args.reads))}


def rates(images: int, spent: tuple[float, float]) -> dict:
    return {"images_per_s": images / spent[0], "cpu_ms": spent[1] / images * 1e3}


def table(what: str, rows: Sequence[dict]) -> str:
    """Markdown. The ratio is of processor time: how many times less than the original scheme."""
    by = {row["way"]: row for row in rows}
    lines = [f"| {what} | images/s | CPU ms/image | CPU to the original | bytes/image | files |", "|---|" + "---:|" * 5]
    for row in rows:
        base = by["random reads, original .npy" if row["way"].startswith("random") else "original scheme"]["cpu_ms"]
        size = f"{row['bytes'] / row['images']:,.0f}" if "bytes" in row else ""
        speed = f"{row['images_per_s']:,.0f} | {row['cpu_ms']:.2f} | {base / row['cpu_ms']:.2f}x"
        lines.append(f"| {row['way']} | {speed} | {size} | {row.get('files', '')} |")
    return "\n".join(lines)


def run(argv: Sequence[str]) -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--images", type=int, default=400, help="per set; a quarter of it for the 2000 px set")
    made.add_argument("--image_dir", type=Path, help="measure on these images instead of made ones")
    made.add_argument("--tower", default="tiny", help="folder, hub name, or tiny")
    made.add_argument("--batch_size", type=int, default=32)
    made.add_argument("--workers", type=int, help="default: one per core")
    made.add_argument("--repeats", type=int, default=3)
    made.add_argument("--reads", type=int, default=8192, help="random reads of stored features")
    made.add_argument("--device", default="cpu")
    made.add_argument("--folder", type=Path, help="where everything is written (default: the temporary folder)")
    made.add_argument("--json", type=Path)
    args = made.parse_args(argv)
    root, results = Path(tempfile.mkdtemp(dir=args.folder)), {}
    try:
        if args.tower == "tiny":
            tower, folder = tiny_tower(root / "tower")
        else:
            tower, _, folder = load_vision_tower(VisionConfig(tower=args.tower))
        tower, pixels = tower.to(pick_device(args.device)), PixelSource(folder)
        sets = {str(args.image_dir): lambda: found_images(args.image_dir, args.images)} if args.image_dir else {
            what: lambda what=what, side=side: made_images(root / what, args.images // max(1, side // 500), side)
            for what, side in SIZES.items()
        }  # fmt: skip
        for what, images in sets.items():
            refs = images()
            size = sum(Path(ref.path).stat().st_size for ref in refs) / len(refs)
            rows = [{**row, "images": len(refs)} for row in measure(refs, tower, pixels, root, args)]
            results[what] = {"images": len(refs), "bytes_per_image": size, "rows": rows}
            print(f"\n{table(f'{len(refs)} images, {what}, {size / 1e3:.0f} kB', rows)}\n", flush=True)
    finally:
        shutil.rmtree(root)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    cli.main(run)
