"""``runs.evaluate_retrieval`` with the original's flags: an annotation file, a passages file, an index by name."""

from __future__ import annotations

from pathlib import Path

from core.errors import UserError
from runs.common import need, open_retriever, query_encoder


def evaluate_original(args) -> None:
    """Runs what --dataset_name names, writes --save_path in the original's JSON and prints it."""
    from core.device import pick_device
    from core.files import write_json
    from dataset import vid2r
    from evaluation.legacy import by_its_rules
    from evaluation.loop import run as search_all
    from runs.settings import index_module

    name = need(args.dataset_name, "give --config_path, or --dataset_name with --anno_file and --index_name.")
    if name != "vid2r":
        raise UserError(
            f"--dataset_name '{name}' is still to come; vid2r is here, and data sets of your own: see README."
        )
    anno = need(args.anno_file, "give --anno_file, the queries.")
    index_name = need(args.index_name, "give --index_name, as run_indexer --exp_name wrote it.")
    data = vid2r.build(
        vid2r.Config(
            path=anno,
            test_path=anno,
            valid_samples=1,
            image_dir=args.image_dir or ".",
            passages=args.all_blocks_file,
            limit=args.limit,
        )
    )
    checkpoint = args.checkpoint or args.mire_ckpt or args.colbert_ckpt or "ckpts/colbertv2.0"
    retriever = open_retriever(checkpoint, pick_device(args.device or "auto"))
    folder = Path("experiments") / index_name.split(".")[0] / "indexes" / index_name
    index = index_module("plaid").Index.open(args.index or folder)
    queries = data.queries("test")
    rankings, _ = search_all(query_encoder(retriever), index, queries, min(100, len(index)))
    qrels = data.qrels("test")
    result = by_its_rules(rankings, lambda query, document: document in qrels[query])
    save = Path(args.save_path or f"results/{index_name}.json")
    write_json(save, result)
    if args.save_pairs:
        texts = {d.id: d.text for d in data.corpus()}
        write_json(save.with_name(save.stem + "_docs.json"), [pair(q, rankings[q.id], texts) for q in queries])
    print("  ".join(f"{key} {value:.4f}" for key, value in result.items()))


def pair(query, ranking, texts: dict[str, str]) -> dict:
    """One entry of ``<save_path>_docs.json``."""
    ids = list(ranking.ids[:5])
    return {"question_id": query.id, "question": query.text, "passages": [texts.get(i, "") for i in ids], "pid": ids,
            "retrieval_score": list(ranking.scores[:5])}  # fmt: skip
