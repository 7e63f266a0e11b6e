"""What several commands do: options they share, opening a retriever, encoding a corpus."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from core.errors import UserError


def parser(doc: str, prog: str, config: bool = True) -> argparse.ArgumentParser:
    """A parser with the options every command has. Importing this module imports no torch."""
    made = argparse.ArgumentParser(prog=prog, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if config:
        made.add_argument("--config_path", metavar="YAML", help="the run's YAML, e.g. cfgs/flagfacts_mire.yaml")
        made.add_argument("overrides", nargs="*", metavar="section.key=value", help="change single keys of the YAML")
    made.add_argument("--limit", type=int, metavar="N", help="use only the first N records, for trying things out")
    return made


def check_option(made: argparse.ArgumentParser) -> None:
    made.add_argument("--check", action="store_true", help="say what would be done and what is missing, then stop")


def plan(what: str, *needed: str | Path | None) -> None:
    """What --check prints: the work, and the files and folders it needs that are not here."""
    missing = [str(path) for path in needed if path is not None and not Path(path).exists()]
    print(f"check: would {what}; " + (f"missing: {', '.join(missing)}" if missing else "nothing is missing"))


def parse(made: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Options and ``section.key=value`` words in any order (plain argparse refuses words behind an option)."""
    args = made.parse_intermixed_args(list(argv))
    if args.limit is not None and args.limit < 1:
        made.error(f"--limit {args.limit} leaves nothing; give 1 or more")
    return args


def at_least(lowest: int, /, **given: int | None) -> None:
    """A UserError for the first of these options that was given and is below ``lowest``."""
    for name, value in given.items():
        if value is not None and value < lowest:
            raise UserError(f"--{name} {value}: give {lowest} or more.")


def nothing_to_limit(limit: int | None, why: str) -> None:
    """The note of a command to whose work --limit has no meaning."""
    if limit is not None:
        print(f"note: --limit {limit} has nothing to limit here: {why}")


def seconds(value: float) -> str:
    """85.3 -> "1 min 25 s"."""
    return f"{value:.1f} s" if value < 60 else f"{int(value // 60)} min {int(value % 60)} s"


def open_retriever(path: str | Path, device: Any = "cpu"):
    """A retriever in eval stage from our checkpoint folder, a run's folder, an original .pth, or a ColBERT folder."""
    import models
    from core.files import read_object
    from models.originals import load_original

    path = Path(path)
    if (path / "checkpoints").is_dir():
        path = best_checkpoint(path)
    if path.is_dir() and "retriever" in (read_object(path / "config.json") if (path / "config.json").is_file() else {}):
        retriever = models.from_pretrained(path)
    else:
        retriever = load_original(path)
    retriever.eval()
    return retriever.to(device)


def best_checkpoint(out: str | Path) -> Path:
    """The weights folder of a run: the best by validation when there is one, else the latest."""
    from core.files import read_json

    folder = Path(out) / "checkpoints"
    for name in ("best.json", "latest.json"):
        if (folder / name).is_file():
            return folder / read_json(folder / name, "checkpoint pointer")["folder"]
    raise UserError(f"the run '{out}' has no finished checkpoint yet; train it first (train_retrieval.py).")


def states_folder(out: str | Path, key: dict) -> Path:
    """Where the frozen trunk's passage states are: beside the runs, since runs of one trunk share them."""
    from core.files import fingerprint

    return Path(out).parent / "text_states" / fingerprint(key)


def visual_source(retriever, cache: str | None):
    """The stored features when the run has a cache, else None (the retriever decodes images itself)."""
    if cache is None or not hasattr(retriever, "visual_spec"):
        return None
    from core.store import Store, check_spec
    from core.visual import OriginalVisual, StoredVisual, as_stored, is_original

    if is_original(cache):
        print(
            f"note: '{cache}' holds one .npy per image, which name no tower: only their width is checked, "
            "whether they were made by this model's vision tower is not."
        )
        return OriginalVisual(cache, retriever.vision.hidden_size, retriever.config.vision.grid)
    store = Store(cache)
    check_spec(store.path, store.spec, as_stored(retriever.visual_spec(), store.spec))
    return StoredVisual(store)


def with_lengths(retriever, **lengths: int):
    """The retriever, its eval lengths changed (``query_maxlen``, ``doc_maxlen``)."""
    stage = retriever.config.eval.model_copy(update=lengths)
    retriever.config = retriever.config.model_copy(update={"eval": stage})
    return retriever


def encode_corpus(
    retriever, documents: Sequence, batch_size: int, visual=None, states=None, skip: int = 0, precision: str = "auto"
) -> Iterator:
    """(id, [n, dim] float32 array) per document, in order. The first ``skip`` documents come with None.

    Documents are encoded in windows, sorted by length within each: little padding, and a bounded memory.
    precision: of the encoder: auto, fp32, fp16 or bf16.
    """
    import torch

    from core.device import autocast, encoding_precision

    device = next(retriever.parameters()).device
    precision = encoding_precision(precision, device)
    for document in documents[:skip]:
        yield document.id, None
    window = batch_size * 32
    for start in range(skip, len(documents), window):
        part = list(documents[start : start + window])
        order = sorted(range(len(part)), key=lambda i: len(part[i].text))
        out: list = [None] * len(part)
        for s in range(0, len(order), batch_size):
            rows = order[s : s + batch_size]
            with torch.inference_mode(), autocast(device, precision):
                batch = retriever.collate_documents([part[i] for i in rows], visual, states).to(device)
                tokens = retriever.encode_documents(batch)
            if precision == "fp16" and not bool(tokens.embeddings.isfinite().all()):
                raise UserError(
                    f"a passage like '{part[rows[0]].id}' leaves the range of fp16 in this model's encoder; set "
                    "index.precision: bf16 or fp32."
                )
            for i, vectors in zip(rows, tokens.unpad()):
                out[i] = vectors.float().cpu().numpy()
        yield from ((d.id, v) for d, v in zip(part, out))


def query_encoder(retriever, visual=None, states=None):
    """A function from queries to a TokenBatch, at the retriever's present stage."""
    import torch

    device = next(retriever.parameters()).device

    def encode(queries):
        with torch.inference_mode():
            return retriever.encode_queries(retriever.collate_queries(queries, visual, states).to(device))

    return encode


def corpus_of(data, split: str) -> Sequence:
    """The passages that a split is judged on."""
    return data.corpus_of(split) if hasattr(data, "corpus_of") else data.corpus()


def need(value: Any, message: str) -> Any:
    """``value``, or one clear sentence when it was not given."""
    if value is None:
        raise UserError(message)
    return value
