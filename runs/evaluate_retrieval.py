"""Judge a trained retriever on a data set's test splits, and print one table.

  python -m runs.evaluate_retrieval --config_path cfgs/flagfacts_mire.yaml
  python -m runs.evaluate_retrieval --config_path cfgs/flagfacts_mire.yaml --text_only --image_only

Writes <run.out>/report.json, and per split and kind of query a TREC run, qrels, a line per query and examples to look
at under <run.out>/runs. What each metric means: docs/EVALUATION.md.
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
    made.add_argument("--index", help="index folder, colbert-ai's too (default index.path or <run.out>/index)")
    made.add_argument("--device", default=None, help="auto, cpu, cuda, mps")
    made.add_argument("--reuse", action="store_true", help="keep a report of the same weights, index and settings")
    made.add_argument("--text_only", action="store_true", help="also ask without the images (eval.ablations: no image)")
    made.add_argument("--image_only", action="store_true", help="also ask without the words (no question)")
    made.add_argument("--save_pairs", action="store_true", help="also write the top 5 passages of every query")
    made.add_argument(
        "--legacy_metrics", nargs="?", const="auto", choices=["auto", "mire", "xknow", "flmr", "uniir"],
        help="also the numbers of an original evaluation, under its own names; auto: of the data set's first system",
    )  # fmt: skip
    check_option(made)
    legacy = made.add_argument_group("flags of the original commands")
    legacy.add_argument("--colbert_ckpt", help="ColBERT folder or hub name: the text-only baseline")
    legacy.add_argument("--mire_ckpt", help="MIRe .pth or checkpoint folder")
    legacy.add_argument("--xknow_ckpt", help="Ret-XKnow .pth or checkpoint folder")
    legacy.add_argument("--index_name", help="<experiment>.nbits=<b>, as run_indexer --exp_name wrote it")
    legacy.add_argument("--anno_file", help="queries of the data set")
    legacy.add_argument("--all_blocks_file", help="passages file of the data set")
    legacy.add_argument("--save_path", help="JSON with the means; with --legacy_metrics the original's (P@1, MRR, ...)")
    legacy.add_argument("--image_dir", help="folder that the queries' images are relative to")
    legacy.add_argument(
        "--dataset_name", help="okvqa, okvqa_gs, remuq, ... (docs/EVALUATION.md), or m2kr.EVQA and the like"
    )
    legacy.add_argument(
        "--use_instruction", action="store_true", default=None, help="M2KR: put the instruction before the question"
    )
    legacy.add_argument("--dataset_hf_path", help="M2KR: its folder (default data/m2kr), or a hub name to download")
    legacy.add_argument("--Ks", type=int, nargs="+", help="M2KR: cutoffs (default 1 5 10 20 50 100 500)")
    return made


def run(argv: Sequence[str]) -> None:
    args = parse(arguments(), argv)
    if not args.config_path:
        from runs.original_evaluation import evaluate_original

        return evaluate_m2kr(args) if is_m2kr(args.dataset_name) else evaluate_original(args)
    dead_flag("--use_instruction", args.use_instruction, "the YAML says what is asked (data.instructions)")
    import dataset
    from core import distributed
    from core.device import pick_device
    from core.files import atomic_file, fingerprint, write_json
    from evaluation.report import table
    from models.artifacts import weight_digest
    from runs.indexing import encoder_of, opened
    from runs.judging import Judges, golds_indexed, named
    from runs.settings import load
    from training.states import TextStates

    cfg = load(args.config_path, args.overrides, args.limit)
    flags = {"no image": args.text_only, "no question": args.image_only}
    cfg.eval.ablations = list(dict.fromkeys([*cfg.eval.ablations, *(name for name, wanted in flags.items() if wanted)]))
    out = Path(cfg.run.out)
    checkpoint = args.checkpoint or args.mire_ckpt or args.xknow_ckpt or out
    path = args.index or cfg.index.path or out / "index"
    if args.check:
        return plan(f"judge '{checkpoint}' on '{cfg.data.name}' with the index '{path}'", checkpoint, path)
    distributed.init(args.device or cfg.run.device)
    device = pick_device(args.device or cfg.run.device)
    retriever = open_retriever(checkpoint, device)
    data = dataset.build(cfg.data)
    corpus = data.corpus()
    index = named(opened(cfg.index, path, encoder_of(retriever, corpus), device), corpus)
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
    report: dict = {}
    judges = Judges(data, cfg.eval.metrics, out.parent / "relevance" / f"{cfg.data.name}.npz")
    for split in cfg.eval.splits or data.test_splits:
        golds_indexed(index, judges.qrels(split), judges.passages(split))
    for split in cfg.eval.splits or data.test_splits:
        for kind, queries in kinds(cfg.data.modality, cfg.eval.ablations, data.queries(split)):
            row = judged(encode, index, queries, judges, (split, kind), cfg, args)
            report.setdefault(split, {})[kind] = row
    if not distributed.is_main():  # every process has searched, one has judged
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


def judged(encode, index, queries, judges, of: tuple[str, str], cfg, args) -> dict | None:
    """Search, judge, write what there is to read; returns one row of the report (of the main process only)."""
    from core import distributed
    from core.files import write_json
    from evaluation.files import stem
    from evaluation.loop import run as search_all
    from evaluation.report import entry
    from runs.leaving import leave, pairs, sample
    from runs.original_numbers import legacy_numbers

    asked = [query for query in queries if query.text.strip() or query.images]
    if len(asked) < len(queries):
        print(f"note: {len(queries) - len(asked)} queries of {', '.join(of)} are empty; they count as unanswered")
    effort = {} if cfg.index.effort is None else {"effort": cfg.index.effort}
    settings, out = cfg.eval, Path(cfg.run.out)
    rankings, milliseconds = search_all(
        encode, index, asked, min(settings.k, len(index)), settings.batch_size, **effort
    )
    if not distributed.is_main():
        return None
    judgement = judges.judge(of[0], queries, rankings, sample(queries))
    leave(out / "runs", *of, queries, rankings, judgement, tag=out.name)
    base = stem(*of)
    if args.save_pairs:
        write_json(out / "runs" / f"{base}.pairs.json", pairs(queries, rankings, judgement.passages))
    if args.legacy_metrics:
        numbers = legacy_numbers(args.legacy_metrics, judges.data, of[0], queries, rankings, judgement.passages)
        write_json(out / "runs" / f"{base}.legacy.json", numbers)
    return entry(judgement.scores, milliseconds)


if __name__ == "__main__":
    main(run)
