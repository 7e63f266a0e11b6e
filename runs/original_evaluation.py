"""``runs.evaluate_retrieval`` with the original's flags: an annotation file, a passages file, an index by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from core.errors import UserError
from runs.common import need, open_retriever, plan, query_encoder, with_lengths

QUERY_MAXLEN = 64
"""Query length of every original evaluation, the ColBERT baseline's too (a MIRe checkpoint says it itself)."""


def evaluate_original(args) -> None:
    """Runs what --dataset_name names, writes --save_path in the original's JSON and prints it."""
    from core.device import pick_device
    from core.files import write_json
    from evaluation.legacy import by_its_rules
    from evaluation.loop import run as search_all
    from index import open_index
    from runs.indexing import index_device

    name = need(args.dataset_name, "give --config_path, or --dataset_name with --anno_file and --index_name.")
    if name != "vid2r":
        raise UserError(
            f"--dataset_name '{name}' is still to come; vid2r and m2kr.<subset> are here, and data sets of your own: "
            "see README."
        )
    need(args.anno_file, "give --anno_file, the queries.")
    index_name = need(args.index_name, "give --index_name, as run_indexer --exp_name wrote it.")
    folder = args.index or Path("experiments") / index_name.split(".")[0] / "indexes" / index_name
    checkpoint = args.checkpoint or args.mire_ckpt or args.colbert_ckpt or "ckpts/colbertv2.0"
    if args.check:
        what = f"judge '{checkpoint}' on '{args.anno_file}' with the index '{folder}'"
        return plan(what, checkpoint, args.anno_file, args.image_dir, args.all_blocks_file, folder)
    queries, qrels, corpus = judged_queries(args)
    index = open_index(folder)
    golds_indexed(index, qrels)
    device = pick_device(args.device or "auto")
    retriever = open_retriever(checkpoint, device)
    if retriever.config.name == "colbert":
        with_lengths(retriever, query_maxlen=QUERY_MAXLEN)
        queries = [replace(query, images=()) for query in queries]  # the text-only baseline
    # --max_doc_len is a choice of the indexer; the queries do not depend on it, the weights must still agree.
    length = index.manifest["encoder"].get("doc_maxlen", retriever.config.eval.doc_maxlen)
    encoder = with_lengths(retriever, doc_maxlen=length).identity()
    index = open_index(index.path, encoder=encoder, device=index_device(device))
    rankings, _ = search_all(query_encoder(retriever), index, queries, min(100, len(index)))
    result = by_its_rules(rankings, lambda query, document: document in qrels[query])
    save = Path(args.save_path or f"results/{index_name}.json")
    write_json(save, result)
    if args.save_pairs:
        texts = {d.id: d.text for d in corpus}
        write_json(save.with_name(save.stem + "_docs.json"), [pair(q, rankings[q.id], texts) for q in queries])
    print("  ".join(f"{key} {value:.4f}" for key, value in result.items()))


def judged_queries(args) -> tuple:
    """(queries, qrels, corpus) of --anno_file: by its ``positive`` fields with a passages file, else as published."""
    from dataset import vid2r
    from dataset.records_json import is_json_list

    folder, blocks = args.image_dir or ".", args.all_blocks_file
    if blocks is None or is_json_list(blocks):
        data = vid2r.Published(args.anno_file, folder)
        queries, qrels = data.queries()[: args.limit], data.qrels()
        return queries, {q.id: qrels[q.id] for q in queries}, data.corpus()
    data = vid2r.build(
        vid2r.Config(
            path=args.anno_file,
            valid_path=args.anno_file,
            test_path=args.anno_file,
            image_dir=folder,
            passages=blocks,
            limit=args.limit,
        )
    )
    return data.queries("test"), data.qrels("test"), data.corpus()


def golds_indexed(index, qrels) -> None:
    """An answer that the index does not hold can never be found: an error, not a low number."""
    known = set(index.ids())
    lost = [(query, id_) for query, judged in qrels.items() for id_ in judged if id_ not in known]
    if lost:
        query, id_ = lost[0]
        raise UserError(
            f"the index '{index.path}' does not hold '{id_}', the answer of query '{query}' ({len(lost)} such); "
            "index the passages of this data set anew (python -m runs.run_indexer --overwrite)."
        )


def pair(query, ranking, texts: dict[str, str]) -> dict:
    """One entry of ``<save_path>_docs.json``."""
    ids = list(ranking.ids[:5])
    return {"question_id": query.id, "question": query.text, "passages": [texts.get(i, "") for i in ids], "pid": ids,
            "retrieval_score": list(ranking.scores[:5])}  # fmt: skip
