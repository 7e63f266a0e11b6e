"""``runs.evaluate_retrieval`` with the originals' flags: an annotation file, a passages file, an index by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from core.records import Query
from runs import original_data
from runs.common import need, open_retriever, plan, query_encoder, with_lengths
from runs.judging import Judges, golds_indexed, knows_answers, named
from runs.m2kr import with_instruction
from runs.original_numbers import legacy_numbers, saved_pairs

QUERY_MAXLEN = 64
"""Query length of every original evaluation, the ColBERT baseline's too (a MIRe checkpoint says it itself)."""
DEPTH = 100
CUTS = (1, 5, 10, 20, 50, 100)
BY_GOLD = [*(f"Success@{k}" for k in CUTS), "Recall@100", "Precision@5", "MRR@5", "MRR@100", "nDCG@10"]
BY_ANSWERS = [*(f"PseudoSuccess@{k}" for k in CUTS), "PseudoPrecision@5", "PseudoMRR@5", "PseudoMRR@100"]


class Published:
    """``vid2r.Published`` as the data set that ``Judges`` wants: one split."""

    def __init__(self, path: str, image_dir: str, limit: int | None) -> None:
        from dataset import vid2r

        self._data, self.limit = vid2r.Published(path, image_dir), limit
        self.config = type("Config", (), {"name": "vid2r"})()

    def corpus(self):
        return self._data.corpus()

    def queries(self, split: str) -> Sequence[Query]:
        return self._data.queries()[: self.limit]

    def qrels(self, split: str) -> Mapping[str, Mapping[str, int]]:
        found = self._data.qrels()
        return {query.id: found[query.id] for query in self.queries(split)}


def evaluate_original(args) -> None:
    """Runs what --dataset_name names, writes --save_path and what goes beside it, and prints a table."""
    from core.device import pick_device
    from core.files import read_json, write_json
    from evaluation.loop import run as search_all
    from evaluation.metrics import means
    from evaluation.report import entry, table
    from index import open_index
    from runs.indexing import encoder_of, index_device
    from runs.leaving import leave, sample

    name = need(args.dataset_name, "give --config_path, or --dataset_name with --anno_file and --index_name.")
    index_name = need(args.index_name, "give --index_name, as run_indexer --exp_name wrote it.")
    folder = args.index or Path("experiments") / index_name.split(".")[0] / "indexes" / index_name
    checkpoint = args.checkpoint or args.mire_ckpt or args.xknow_ckpt or args.colbert_ckpt or "ckpts/colbertv2.0"
    if args.check:
        what = f"judge '{checkpoint}' on '{args.anno_file or name}' with the index '{folder}'"
        return plan(what, checkpoint, args.anno_file, args.image_dir, args.all_blocks_file, folder)
    data = asked_data(args)
    queries = list(data.queries("test"))
    if args.use_instruction:
        queries = with_instruction(queries)
    judges = Judges(data, metrics_of(name, data), Path("experiments") / "relevance" / f"{name}.npz")
    index = named(open_index(folder), judges.passages("test").corpus)
    golds_indexed(index, judges.qrels("test"), judges.passages("test"))
    device = pick_device(args.device or "auto")
    retriever = open_retriever(checkpoint, device)
    if retriever.config.name == "colbert":
        with_lengths(retriever, query_maxlen=QUERY_MAXLEN)
        queries = [replace(query, images=()) for query in queries]  # the text-only baseline
    # --max_doc_len is a choice of the indexer; the queries do not depend on it, the weights must still agree.
    length = index.manifest["encoder"].get("doc_maxlen", retriever.config.eval.doc_maxlen)
    passages = judges.passages("test").corpus
    encoder = encoder_of(with_lengths(retriever, doc_maxlen=length), passages[:1])  # they are all of one kind
    opened = open_index(index.path, encoder=encoder, device=index_device(device))
    index = named(opened, passages)
    save = Path(args.save_path or f"results/{index_name}.json")
    known = save.parent / "report.json"
    report = read_json(known) if known.is_file() else {}
    kinds = {"": queries}
    if args.text_only:
        kinds[", no image"] = [replace(query, images=()) for query in queries]
    if args.image_only:
        kinds[", no question"] = [replace(query, text="") for query in queries]
    for ablation, asked in kinds.items():
        kind, file = save.stem + ablation, save.stem + ablation.replace(", ", ".").replace(" ", "_")
        rankings, milliseconds = search_all(query_encoder(retriever), index, asked, min(DEPTH, len(index)))
        judgement = judges.judge("test", asked, rankings, sample(asked))
        leave(save.parent / "runs", name, kind, asked, rankings, judgement, tag=index_name)
        report.setdefault(name, {})[kind] = entry(judgement.scores, milliseconds)
        numbers = means(judgement.scores)
        if args.legacy_metrics:
            style = "xknow" if args.legacy_metrics == "auto" and args.xknow_ckpt else args.legacy_metrics
            numbers = legacy_numbers(style, data, "test", asked, rankings, judgement.passages, name)
        write_json(save.with_name(f"{file}.json"), numbers)
        if args.save_pairs:
            write_json(
                save.with_name(f"{file}_docs.json"), saved_pairs(args, data, asked, rankings, judgement.passages)
            )
    write_json(known, report)
    print(table({name: {save.stem + ablation: report[name][save.stem + ablation] for ablation in kinds}}))
    hint = "" if args.legacy_metrics else " (the original's P@1, MRR, R@5, ... with --legacy_metrics)"
    print(f"means: '{save}'{hint}, with intervals: '{known}', runs and per-query results: '{save.parent / 'runs'}'")


def asked_data(args):
    """The data set of the flags; its split "test" is asked."""
    from dataset import vid2r
    from dataset.records_json import is_json_list

    name, folder, blocks = args.dataset_name, args.image_dir or ".", args.all_blocks_file
    if name == "vid2r":
        anno = need(args.anno_file, "give --anno_file, the queries.")
        if blocks is None or is_json_list(blocks):
            return Published(anno, folder, args.limit)
        paths = {"path": anno, "valid_path": anno, "test_path": anno, "passages": blocks}
        return vid2r.build(vid2r.Config(**paths, image_dir=folder, limit=args.limit))
    if original_data.original(name).anno is not None:
        need(args.anno_file, "give --anno_file, the queries.")
    return original_data.built(name, args, args.anno_file)


def metrics_of(name: str, data) -> list[str]:
    """By ids, by answers, or by both, as the data set can be judged."""
    pattern = name in original_data.TABLE and original_data.TABLE[name].judged == "pattern"
    return [*([] if pattern else BY_GOLD), *(BY_ANSWERS if knows_answers(data) else [])]
