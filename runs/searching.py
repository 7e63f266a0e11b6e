"""From a run's folder (or a checkpoint, an index and a passages file) to a ``searcher.engine.Engine``. No command."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from core.errors import UserError

QUICKSTART = "experiments/quickstart/image+question"


def options(made: argparse.ArgumentParser) -> None:
    """What says which retriever searches which passages."""
    made.add_argument("--run", help=f"folder of a run: config, checkpoints, index (default {QUICKSTART})")
    made.add_argument("--index", help="index folder (default: the run's); one in a run's folder also names the run")
    made.add_argument("--checkpoint", help="another checkpoint than the run's best: a folder or a .pth")
    made.add_argument(
        "--passages", metavar="FILE", help="the passages' texts (JSON lines, CSV or TSV), when there is no run"
    )
    made.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")


def run_of(args: argparse.Namespace) -> Path | None:
    """The run's folder; None when checkpoint, index and passages are named instead."""
    if args.run:
        return Path(args.run)
    if args.index and ((beside := Path(args.index).resolve().parent) / "config.yaml").is_file():
        return beside
    if args.passages and args.index and args.checkpoint:
        return None
    return Path(QUICKSTART)


def run_config(run: str | Path):
    """The config of a run's folder."""
    from runs.settings import load

    config = Path(run) / "config.yaml"
    if not config.is_file():
        raise UserError(
            f"'{run}' is not a run's folder (no config.yaml); train one first (bash scripts/quickstart.sh), name one "
            "with --run, or give --checkpoint, --index and --passages."
        )
    return load(str(config))


def open_engine(args: argparse.Namespace):
    """(engine, data set or None) of parsed ``options`` and ``--limit``."""
    from core.device import pick_device
    from runs.common import open_retriever
    from runs.settings import IndexSection

    run = run_of(args)
    cfg = None if run is None else run_config(run)
    data = None
    if args.passages:
        from dataset.lines import LineCorpus

        corpus = LineCorpus(args.passages)
    if cfg is not None:
        import dataset

        data = dataset.build(cfg.data)
        corpus = corpus if args.passages else data.corpus()
    section = IndexSection(name="auto") if cfg is None else cfg.index
    device = pick_device(args.device)
    retriever = open_retriever(args.checkpoint or run, device)
    engine = engine_of(retriever, section, args.index or section.path or run / "index", corpus, device, args.limit)
    name = Path(args.checkpoint or run).name  # no folders of this machine
    engine.facts["model"] = {"checkpoint": name}
    engine.facts["data"] = None if cfg is None else cfg.data.name
    return engine, data


def engine_of(retriever, section, path, corpus: Sequence, device, limit: int | None = None):
    """An engine on the index at ``path``. limit: only its first so many passages may answer."""
    from runs.explaining import explain
    from searcher.engine import Engine

    index = _opened(section, path, retriever, device)
    allowed = None if limit is None else index.ids()[:limit]
    return Engine(retriever, index, finder(corpus), explain, section.effort, allowed)


def finder(corpus: Sequence) -> Callable:
    """id -> document or None. A corpus of millions finds them on disk itself."""
    return corpus.get if hasattr(corpus, "get") else {d.id: d for d in corpus}.get


def _opened(section, path, retriever, device):
    """The index, when these weights made it. Which identity to compare its manifest tells: one of passages with images
    names more of the weights."""
    from core.files import read_json
    from runs.indexing import opened

    manifest = Path(path) / "manifest.json"
    built_by = read_json(manifest, "index manifest").get("encoder") if manifest.is_file() else None
    encoder = retriever.identity()
    if isinstance(built_by, dict) and set(built_by) > set(encoder):
        encoder = retriever.identity(images=True)
    return opened(section, path, encoder, device)
