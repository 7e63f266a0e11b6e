"""M2KR by flags instead of a YAML: ``--dataset_name m2kr.<subset>``. Not a command of its own."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

from core.errors import UserError
from runs.common import need, open_retriever, plan, query_encoder, with_lengths

PREFIX = "m2kr."
KS = (1, 5, 10, 20, 50, 100, 500)
FOLDER = "data/m2kr"
DOC_MAXLEN = 512


def is_m2kr(name: str | None) -> bool:
    return (name or "").startswith(PREFIX)


def data_of(args):
    """The data set of --dataset_name, --dataset_hf_path and --image_dir."""
    from dataset import m2kr

    subset, place = args.dataset_name.removeprefix(PREFIX), args.dataset_hf_path or FOLDER
    if subset not in get_args(m2kr.Subset):
        raise UserError(f"--dataset_name is '{args.dataset_name}'; write m2kr. and one of {get_args(m2kr.Subset)}.")
    where = {"path": place} if args.dataset_hf_path is None or Path(place).is_dir() else {"path": FOLDER, "repo": place}
    # As PreFLMR's script asks: a question without picture comes with a black one.
    return m2kr.build(m2kr.Config(subset=subset, image_dir=args.image_dir or ".", blank_image=True, **where))


def evaluate_m2kr(args) -> None:
    """Writes FLMR's report of every question to --save_path, and the means into report.json beside it."""
    from core.device import pick_device
    from core.files import read_json, write_json
    from evaluation import flmr
    from evaluation.loop import run as search_all
    from evaluation.report import entry, table
    from index import open_index
    from runs.indexing import index_device
    from runs.judging import Judges
    from runs.leaving import leave, sample

    index_name = need(args.index_name, "give --index_name, as run_indexer --exp_name wrote it.")
    subset, experiment = args.dataset_name.removeprefix(PREFIX), index_name.split(".nbits")[0]
    folder = args.index or Path("experiments") / experiment / "indexes" / index_name
    checkpoint = need(args.checkpoint or args.mire_ckpt or args.colbert_ckpt, "give --checkpoint, the retriever.")
    if args.check:
        return plan(f"judge '{checkpoint}' on '{args.dataset_name}' with the index '{folder}'", folder, args.image_dir)
    data = data_of(args)
    queries = list(data.queries("test")[: args.limit])
    qrels = data.qrels("test")
    index = open_index(folder)
    same_passages(index, data.corpus(), qrels)
    device = pick_device(args.device or "auto")
    retriever = open_retriever(checkpoint, device)
    length = index.manifest["encoder"].get("doc_maxlen", retriever.config.eval.doc_maxlen)
    retriever = with_lengths(retriever, doc_maxlen=length)
    index = open_index(index.path, encoder=retriever.identity(), device=index_device(device))
    if args.use_instruction and retriever.config.name != "flmr":  # FLMR asks with it anyway
        queries = with_instruction(queries)
    if retriever.config.name == "colbert":
        queries = [replace(query, images=()) for query in queries]  # the text-only baseline
    images_are_here(queries)
    ks = sorted(set(args.Ks or KS))
    rankings, milliseconds = search_all(query_encoder(retriever), index, queries, min(ks[-1], len(index)))
    metrics = [f"Success@{k}" for k in ks]
    if any(query.meta["answers"] for query in queries):
        metrics += [f"PseudoRecall@{k}" for k in ks] + [f"PseudoSuccess@{k}" for k in ks]
    judges = Judges(data, metrics, Path("experiments") / "relevance" / f"{args.dataset_name}.npz")
    judgement = judges.judge("test", queries, rankings, sample(queries))
    scores = judgement.scores
    save = Path(args.save_path or f"experiments/m2kr/{subset}_{experiment}.json")
    known = {name: values for name, values in scores.items() if not name.startswith("PseudoSuccess")}
    write_json(save, flmr.original_report(known, rankings))
    report = read_json(save.parent / "report.json") if (save.parent / "report.json").is_file() else {}
    name = Path(checkpoint).name + ("" if args.limit is None else f", first {args.limit}")
    report.setdefault(args.dataset_name, {})[name] = entry(scores, milliseconds)
    write_json(save.parent / "report.json", report)
    leave(save.parent / "runs", args.dataset_name, name, queries, rankings, judgement, tag=index_name)
    print(table({args.dataset_name: {name: report[args.dataset_name][name]}}))
    print(f"every question: '{save}', report: '{save.parent / 'report.json'}'")


def with_instruction(queries) -> list:
    """Each with its instruction before its words."""
    return [replace(query, text=f"{query.instruction} {query.text}".strip()) for query in queries]


def same_passages(index, corpus, qrels) -> None:
    """The index must hold this subset's passages. Questions whose answers M2KR itself lacks count as 0, with a note."""
    known = set(index.ids())
    if known != (wanted := {document.id for document in corpus}):
        odd = min(known ^ wanted)
        raise UserError(
            f"the index '{index.path}' is of other passages: '{odd}' is in only one of the two ({len(known)} there, "
            f"{len(wanted)} in the data set); index them anew (python -m runs.run_indexer --overwrite)."
        )
    lost = [query for query, judged in qrels.items() if not known & judged.keys()]
    if lost:
        print(
            f"note: none of the relevant passages of {len(lost)} questions, such as '{lost[0]}', is among the "
            f"{len(known)} passages; they count as 0",
            file=sys.stderr,
        )


def images_are_here(queries) -> None:
    """Before any work: the pictures that the questions show."""
    from dataset.m2kr import missing_images

    missing = missing_images(queries)
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(
            f"{len(missing)} pictures are missing: {', '.join(missing[:3])}{more}; give the folder that img_path is "
            "relative to with --image_dir (docs/M2KR.md says where each subset's pictures are)."
        )
