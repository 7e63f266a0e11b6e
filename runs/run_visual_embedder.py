"""Cache visual features: every image of a data set through the frozen vision tower, once.

  python -m runs.run_visual_embedder --config_path cfgs/flagfacts_mire.yaml
  python -m runs.run_visual_embedder --model_name openai/clip-vit-base-patch32 --data_path d.json --image_dir images
  python -m torch.distributed.run --nproc_per_node=4 -m runs.run_visual_embedder --config_path cfgs/mire_vid2r.yaml

The cache is keyed by tower weights, layers, preprocessing, precision and dtype; another tower is refused, never mixed
in. Complete images are skipped on a second run, so a killed run goes on where it was, with as many processes as you
like. Without --config_path the keys of its visual section can be given too, such as visual.draft=true.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from core.cli import main
from core.errors import UserError
from runs.common import check_option, parse, parser, plan

if TYPE_CHECKING:
    from core.records import ImageRef


def arguments():
    made = parser(__doc__, "python -m runs.run_visual_embedder")
    made.add_argument("--model_name", help="vision tower, hub name or folder (default openai/clip-vit-base-patch32)")
    made.add_argument("--checkpoint", help="run or checkpoint whose own tower is used in place of the YAML's")
    made.add_argument("--data_path", help="JSON list with 'image' (or 'image_id') per record")
    made.add_argument("--image_dir", help="folder that the images are relative to")
    made.add_argument("--batch_size", type=int, help="images per tower call (visual.batch_size)")
    made.add_argument("--workers", type=int, help="threads that read and decode ahead (visual.workers)")
    made.add_argument("--out", help="folder of the cache (default experiments/features/<tower name>)")
    made.add_argument("--device", default=None, help="auto, cpu, cuda, mps")
    check_option(made)
    return made


def run(argv: Sequence[str]) -> None:
    args = parse(arguments(), argv)
    from core import distributed
    from core.device import pick_device
    from models.towers.vision import VisionConfig
    from runs import features

    if args.config_path:
        import dataset
        from runs.settings import load
        from runs.training import missing_data

        named = [f"--{k}" for k in ("model_name", "data_path", "image_dir") if getattr(args, k) is not None]
        if named:
            raise UserError(
                f"--config_path names the tower and the data, so {named[0]} would be ignored; leave it out, or change "
                "the YAML's keys (model.vision.tower=..., data.image_dir=...)."
            )
        changes = [f"visual.{k}={v}" for k in ("batch_size", "workers") if (v := getattr(args, k)) is not None]
        cfg = load(args.config_path, [*args.overrides, *changes], args.limit)
        visual, vision, device = cfg.visual, getattr(cfg.model, "vision", None), args.device or cfg.run.device
        if vision is None and not args.checkpoint:
            raise UserError(f"model.name '{cfg.model.name}' has no vision tower, so there are no features to cache.")
        out = args.out or visual.cache
        if out is None:
            raise UserError("visual.cache is null, so there is nowhere to put the features; set it to a folder.")
        absent = missing_data(cfg)
    else:
        if not (args.data_path and args.image_dir):
            raise UserError("give --config_path, or --data_path and --image_dir.")
        if args.checkpoint:
            raise UserError("--checkpoint belongs to --config_path, which says whose images; give both.")
        visual, device = section(args), args.device or "auto"
        vision = VisionConfig(tower=args.model_name or "openai/clip-vit-base-patch32")
        out = args.out or visual.cache or f"experiments/features/{vision.tower.strip('/').split('/')[-1]}"
        absent = [path for path in (args.data_path, args.image_dir) if not Path(path).exists()]

    def images() -> list[ImageRef]:
        if args.config_path:
            return list(dataset.build(cfg.data).images())
        return list(features.listed(args.data_path, args.image_dir))[: args.limit]

    features.check_out(out)
    chosen = pick_device(device)
    if args.check:
        return check(args.checkpoint, vision and vision.tower, out, absent, images)
    refs = images()
    distributed.init(device)
    try:
        features.build(refs, *tower_of(args.checkpoint, vision, chosen), out, visual)
    finally:
        distributed.close()


def tower_of(checkpoint: str | None, vision, device) -> tuple:
    """The vision tower and its image processor, out of a checkpoint or as the config says."""
    from models.towers.images import PixelSource
    from models.towers.vision import load_vision_tower
    from runs.common import open_retriever

    if checkpoint:
        retriever = open_retriever(checkpoint, device)
        if getattr(retriever, "vision", None) is None:
            raise UserError(f"the checkpoint '{checkpoint}' has no vision tower, so there are no features to cache.")
        return retriever.vision, retriever.pixel_source()
    tower, missing, folder = load_vision_tower(vision)
    if missing:
        raise UserError(f"the vision tower '{vision.tower}' lacks weights: {missing[:5]}; download it again.")
    return tower.to(device), PixelSource(folder)


def check(
    checkpoint: str | None, tower: str | None, out: str, absent: Sequence[str], images: Callable[[], list[ImageRef]]
) -> None:
    """What --check prints. absent: files of the data; when there are none the images are counted and looked for."""
    from core.visual import stamp_of
    from models.towers.folders import is_hub_name

    what, needed = f"cache the features of '{checkpoint or tower}' in '{out}'", list(absent)
    if not absent:
        refs = images()
        lost = [ref.path for ref in refs if ref.path is not None and stamp_of(ref) is None]
        what += f" for {len(refs)} images"
        needed += [*lost[:3], *([f"{len(lost) - 3} more images"] if len(lost) > 3 else [])]
    if checkpoint:
        needed.append(checkpoint)
    elif is_hub_name(tower):
        what += " (a hub name: the tower is downloaded unless it was before)"
    else:
        needed.append(str(Path(tower) / "config.json"))
    plan(what, *needed)


def section(args):
    """The visual section where there is no YAML: its defaults, with what the command line says."""
    from core.config import override, validate
    from runs.settings import Visual

    given = {k: v for k in ("batch_size", "workers") if (v := getattr(args, k)) is not None}
    return validate(override({"visual": given}, args.overrides), {"visual": Visual})["visual"]


if __name__ == "__main__":
    main(run)
