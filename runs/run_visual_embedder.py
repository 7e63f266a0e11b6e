"""Cache visual features: every image of a data set through the frozen vision tower, once.

  python -m runs.run_visual_embedder --config_path cfgs/flagfacts_mire.yaml
  python -m runs.run_visual_embedder --model_name openai/clip-vit-base-patch32 --data_path d.json --image_dir images

The cache is keyed by tower weights, layers, preprocessing and dtype; another tower is refused, never mixed in.
Complete images are skipped on a second run, so a killed run goes on where it was.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence

from core.cli import main
from core.errors import UserError
from runs.common import check_option, parse, parser, plan, seconds

COMMIT_IMAGES = 128
"""Images per shard of the cache: a killed run loses at most so many, and what is in its last batch."""


def arguments():
    made = parser(__doc__, "python -m runs.run_visual_embedder")
    made.add_argument("--model_name", help="vision tower, hub name or folder (default openai/clip-vit-base-patch32)")
    made.add_argument("--data_path", help="JSON list with 'image' (or 'image_id') per record")
    made.add_argument("--image_dir", help="folder that the images are relative to")
    made.add_argument("--batch_size", type=int, help="images per tower call")
    made.add_argument("--out", help="folder of the cache (default experiments/features/<tower name>)")
    made.add_argument("--device", default=None, help="auto, cpu, cuda, mps")
    check_option(made)
    return made


def run(argv: Sequence[str]) -> None:
    args = parse(arguments(), argv)
    from core.device import pick_device
    from models.towers.images import PixelSource
    from models.towers.vision import VisionConfig, load_vision_tower
    from runs.settings import Visual

    if args.config_path:
        from dataset import build
        from runs.settings import load

        cfg = load(args.config_path, args.overrides, args.limit)
        visual, vision, device = cfg.visual, getattr(cfg.model, "vision", None), args.device or cfg.run.device
        if vision is None:
            raise UserError(f"model.name '{cfg.model.name}' has no vision tower, so there are no features to cache.")
        out = args.out or visual.cache
        if out is None:
            raise UserError("visual.cache is null, so there is nowhere to put the features; set it to a folder.")
    else:
        if not (args.data_path and args.image_dir):
            raise UserError("give --config_path, or --data_path and --image_dir.")
        visual, device = Visual(), args.device or "auto"
        vision = VisionConfig(tower=args.model_name or "openai/clip-vit-base-patch32")
        out = args.out or f"experiments/features/{vision.tower.strip('/').split('/')[-1]}"
    if args.check:
        needed = (args.data_path, args.image_dir) if not args.config_path else ()
        return plan(f"cache the features of '{vision.tower}' in '{out}'", *needed)
    if args.config_path:
        refs = list(build(cfg.data).images())
    else:
        refs = listed(args.data_path, args.image_dir)[: args.limit]
    tower, missing, folder = load_vision_tower(vision)
    if missing:
        raise UserError(f"the vision tower '{vision.tower}' lacks weights: {missing[:5]}; download it again.")
    device = pick_device(device)
    built(refs, tower.to(device), PixelSource(folder), out, visual, args.batch_size or visual.batch_size)


def listed(data_path: str, image_dir: str) -> list:
    """Image references of a JSON list; an ``image_id`` alone names <12 digits>.jpg, as COCO does."""
    from pathlib import Path

    from core.records import ImageRef
    from dataset.records_json import read_json

    names = {}
    for row in read_json(data_path, "data file"):
        name = row.get("image") or (f"{int(row['image_id']):012d}.jpg" if "image_id" in row else None)
        if name is None:
            raise UserError(f"a record of '{data_path}' has neither 'image' nor 'image_id'; add one.")
        names[name] = ImageRef(name, path=str(Path(image_dir) / name))
    return list(names.values())


def built(refs: Sequence, tower, pixels, out: str, visual, batch_size: int):
    """Encode what is missing and finish the store. Returns it."""
    import torch

    from core.progress import progress
    from core.store import StoreWriter
    from models.towers.images import decode, read_bytes

    spec = {**tower.fingerprint(pixels.describe()), "dtype": visual.dtype}
    writer = StoreWriter(out, spec)
    device = next(tower.parameters()).device
    pending, bad, start, made = [], [], time.time(), 0

    def flush() -> None:
        nonlocal made
        if pending:
            images = pixels.pixels([image for _, _, image in pending]).pixels.to(device)
            global_, patches = tower(images)
            rows = torch.cat([global_[:, None], patches], 1).cpu().numpy()
            writer.shard_rows = COMMIT_IMAGES * rows.shape[1]
            for (key, digest, _), item in zip(pending, rows):
                writer.add(key, digest, item)
            made += len(pending)
            pending.clear()

    for ref in progress(refs, "visual features", unit="image"):
        try:
            data = read_bytes(ref)
            digest = hashlib.sha256(data + repr(ref.box).encode()).hexdigest()[:24]
            if writer.has(ref.key, digest) or writer.link(ref.key, digest):
                continue
            if any(digest == d for _, d, _ in pending):
                flush()
                writer.link(ref.key, digest)
                continue
            pending.append((ref.key, digest, decode(ref, data)))
        except UserError as error:
            if visual.on_error == "fatal":
                flush()
                writer.commit()  # what was encoded stays
                raise
            bad.append(str(error))
        if len(pending) >= batch_size:
            flush()
    flush()
    for line in bad:
        print(f"skipped: {line}")
    store = writer.finish(skipped=len(bad))
    print(f"visual features: {len(store)} images in '{out}', {made} encoded now in {seconds(time.time() - start)}")
    return store


if __name__ == "__main__":
    main(run)
