"""Judge a trained retriever on a data set's test splits, and print one table.

  python -m runs.evaluate_retrieval --config_path cfgs/flagfacts_mire.yaml

Writes <run.out>/report.json, and per split and kind a TREC run file and a per-query jsonl under <run.out>/runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from core.cli import dead_flag, main
from core.errors import UserError
from runs.common import check_option, open_retriever, parse, parser, plan, query_encoder, visual_source
from runs.m2kr import evaluate_m2kr, is_m2kr


def arguments():
    made = parser(__doc__, "python -m runs.evaluate_retrieval")
    made.add_argument("--checkpoint", help="checkpoint folder, run folder, .pth or ColBERT folder (default <run.out>)")
    made.add_argument("--index", help="index folder (default index.path or <run.out>/index)")
    made.add_argument("--device", default=None, help="auto, cpu, cuda, mps")
    made.add_argument("--reuse", action="store_true", help="keep a report of the same weights, index and settings")
    check_option(made)
    legacy = made.add_argument_group("flags of the original command")
    legacy.add_argument("--colbert_ckpt", help="ColBERT folder or hub name: the text-only baseline")
    legacy.add_argument("--mire_ckpt", help="MIRe .pth or checkpoint folder")
    legacy.add_argument("--index_name", help="<experiment>.nbits=<b>, as run_indexer --exp_name wrote it")
    legacy.add_argument("--anno_file", help="queries of the data set")
    legacy.add_argument("--all_blocks_file", help="passages file of the data set")
    legacy.add_argument("--save_path", help="JSON with the original's metric names (P@1, MRR, P@5, R@5, ...)")
    legacy.add_argument("--image_dir", help="folder that the queries' images are relative to")
    legacy.add_argument("--save_pairs", action="store_true", help="also write the top 5 passages of every query")
    legacy.add_argument(
        "--dataset_name", help="vid2r, the data set of --anno_file, or m2kr.EVQA and the like (docs/M2KR.md)"
    )
    legacy.add_argument(
        "--use_instruction", action="store_true", default=None, help="M2KR: put the instruction before the question"
    )
    legacy.add_argument("--dataset_hf_path", help="M2KR: its folder (default data/m2kr), or a hub name to download")
    legacy.add_argument("--Ks", type=int, nargs="+", help="M2KR: cutoffs (default 1 5 10 20 50 100 500)")
    return made


def run(argv: Sequence[str]) -> None:
    args = parse(arguments(), argv)
    if not is_m2kr(args.dataset_name):
        dead_flag("--use_instruction", args.use_instruction, "the data sets here carry no instructions")
    if not args.config_path:
        from runs.original_evaluation import evaluate_original

        return evaluate_m2kr(args) if is_m2kr(args.dataset_name) else evaluate_original(args)
    import dataset
    from core import distributed
    from core.device import pick_device
    from core.files import atomic_file, fingerprint, write_json
    from evaluation.report import table
    from models.artifacts import weight_digest
    from runs.indexing import encoder_of, opened
    from runs.judging import Judges
    from runs.original_evaluation import golds_indexed
    from runs.settings import load
    from training.states import TextStates

    cfg = load(args.config_path, args.overrides, args.limit)
    out = Path(cfg.run.out)
    checkpoint, path = args.checkpoint or args.mire_ckpt or out, args.index or cfg.index.path or out / "index"
    if args.check:
        return plan(f"judge '{checkpoint}' on '{cfg.data.name}' with the index '{path}'", checkpoint, path)
    distributed.init(args.device or cfg.run.device)
    device = pick_device(args.device or cfg.run.device)
    retriever = open_retriever(checkpoint, device)
    data = dataset.build(cfg.data)
    index = opened(cfg.index, path, encoder_of(retriever, data.corpus()), device)
    key = fingerprint(
        [weight_digest(retriever), index.manifest, cfg.data.model_dump(), cfg.eval.model_dump(), cfg.index.model_dump()]
    )
    if args.reuse and (out / "report.key").is_file() and (out / "report.key").read_text() == key:
        print(f"report was complete: '{out / 'report.json'}'")
        return
    # A frozen trunk sees each distinct question once, however many pictures it is asked about.
    states = TextStates(retriever) if retriever.frozen_text_key("query") else None
    # A feature cache is only asked for where there are images to look up.
    cache = cfg.visual.cache if cfg.data.modality != "question" else None
    encode = query_encoder(retriever, visual_source(retriever, cache), states)
    effort = {} if cfg.index.effort is None else {"effort": cfg.index.effort}
    report: dict = {}
    judges = Judges(data, cfg.eval.metrics)
    for split in cfg.eval.splits or data.test_splits:
        golds_indexed(index, judges.qrels(split))
    for split in cfg.eval.splits or data.test_splits:
        report[split] = {}
        for kind, queries in kinds(cfg.data.modality, cfg.eval.ablations, data.queries(split)):
            where = out / "runs" / f"{split}.{kind.replace(' ', '_').replace(',', '')}"
            report[split][kind] = judged(encode, index, queries, judges, split, cfg.eval, effort, where)
    if not distributed.is_main():  # every process has the whole answer
        return
    write_json(out / "report.json", report)
    with atomic_file(out / "report.key", "w") as handle:
        handle.write(key)
    print(table(report))
    print(f"report: '{out / 'report.json'}', runs and per-query results: '{out / 'runs'}'")


def kinds(modality: str, ablations: Sequence[str], queries: Sequence) -> list[tuple[str, list]]:
    """(kind, queries): the run's own modality, and the same queries with one modality taken away."""
    found = [(modality, list(queries))]
    for ablation in ablations:
        if modality != "image+question":
            raise UserError(f"eval.ablations asks for '{ablation}' but data.modality is '{modality}'; empty the list.")
        empty = {"images": ()} if ablation == "no image" else {"text": ""}
        found.append((f"{modality}, {ablation}", [replace(q, **empty) for q in queries]))
    return found


def judged(encode, index, queries, judges, split: str, settings, effort: dict, where: Path) -> dict:
    """Search, judge, write the run and the per-query file; returns one row of the report."""
    from core import distributed
    from evaluation.files import write_per_query, write_run
    from evaluation.loop import run as search_all
    from evaluation.report import entry

    rankings, milliseconds = search_all(
        encode, index, queries, min(settings.k, len(index)), settings.batch_size, **effort
    )
    scores = judges.scores(rankings, queries, split)
    if distributed.is_main():
        write_run(where.with_name(where.name + ".trec"), rankings, tag=where.parent.parent.name)
        write_per_query(where.with_name(where.name + ".jsonl"), scores, rankings)
    return entry(scores, milliseconds)


if __name__ == "__main__":
    main(run)
