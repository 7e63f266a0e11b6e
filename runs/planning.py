"""``runs.run_indexer --plan``: size, disk, time and memory of an index before it is built. Not a command of its own."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from core.errors import UserError
from runs.common import encode_corpus, seconds

PASSAGES = 64
"""Passages that are encoded to know how long all of them take."""


def from_flags(args) -> None:
    """--documents, --vectors_per_document, --dim and --n_bits, without any model."""
    from core.device import pick_device
    from index import choose
    from index.estimate import Plan
    from runs.backends import BACKENDS
    from runs.indexing import index_device

    if args.documents is None:
        raise UserError("give --documents (and --vectors_per_document, --dim), or --config_path, to --plan.")
    name = BACKENDS[args.backend or "plaid"]
    if name == "auto":
        name, why = choose(args.documents)
        print(f"index: {name} ({why})")
    options = {} if args.n_bits is None or name == "exact" else {"nbits": args.n_bits}
    plan = Plan(args.documents, args.vectors_per_document or 80.0, args.dim or 128, name, options)
    show(plan, Path("."), index_device(pick_device(args.device or "auto")))


def from_corpus(args, retriever, corpus: Sequence, section, place: Path, device: str, visual=None) -> None:
    """As ``from_flags`` of a run: its passages are counted, and a few are encoded."""
    from index.estimate import Plan
    from runs.backends import resolved

    section, _ = resolved(section, args.documents or len(corpus))
    step = max(1, len(corpus) // PASSAGES)
    some = list(corpus[::step])[:PASSAGES]
    how = {"batch_size": section.batch_size, "visual": visual, "precision": section.precision}
    list(encode_corpus(retriever, some[:1], **how))  # the first call takes longer
    start = time.perf_counter()
    lengths = [len(vectors) for _, vectors in encode_corpus(retriever, some, **how)]
    each = (time.perf_counter() - start) / len(some)
    documents = args.documents or len(corpus)
    names = sum(len(d.id.encode()) for d in some) / len(some)
    mean = args.vectors_per_document or max(1, sum(lengths)) / len(lengths)
    plan = Plan(documents, mean, retriever.config.dim, section.name, section.options, names)
    show(plan, place, device, each * documents, len(some))


def show(plan, place: Path, device: str, encoding: float | None = None, encoded: int = 0) -> None:
    """Print the table; place: where the index would go."""
    from index.estimate import building_bytes, measure, peak_memory, planned_bytes

    while not place.is_dir():
        place = place.parent
    size, disk = planned_bytes(plan), building_bytes(plan)
    times = {} if encoding is None else {f"encode ({encoded} tried)": encoding}
    times |= measure(plan, place, device)
    kind = f"{plan.format}, {plan.nbits} bits, {plan.centroids} centroids" if plan.format == "plaid" else plan.format
    print(f"plan: {plan.documents} documents, {plan.vectors} vectors of {plan.dim} dimensions, {kind}, on {device}")
    total = sum(size.values())
    print(f"  size            {megabytes(total)}, {total / plan.vectors:.1f} bytes a vector")
    for name, n in sorted(size.items(), key=lambda item: -item[1]):
        print(f"    {name:<22}{megabytes(n)}")
    free = shutil.disk_usage(place).free
    short = f"; only {megabytes(free).strip()} are free in '{place}'" if free < disk else ""
    print(f"  disk to build   {megabytes(disk)}{short}")
    print(f"  time            {seconds(sum(times.values())):>13}")
    for name, n in times.items():
        print(f"    {name:<22}{seconds(n):>13}")
    print(f"  memory, peak    {megabytes(peak_memory(plan, resident()))}")
    if encoding is None:
        print("  the time to encode the documents comes on top; --config_path measures it")


def megabytes(n: float) -> str:
    return f"{n / 1e6:>10.2f} MB"


def resident() -> int:
    """Bytes of memory this process takes now (0 where that cannot be read)."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0
    import resource

    return pages * resource.getpagesize()
