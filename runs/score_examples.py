"""A teacher's scores of the documents that a run's training examples hold, for train.teacher_scores.

  python -m runs.score_examples --config_path x.yaml --teacher experiments/teacher --save_path experiments/scores.tsv
  python -m runs.score_examples --config_path x.yaml --cross_encoder cross-encoder/ms-marco-MiniLM-L6-v2 ...

The examples are those of the run itself: its data, train.seed and train.nways, for every epoch that it will see (hard
negatives may be drawn anew in each). One of our retrievers sees images; a cross-encoder (pip install
sentence-transformers) reads the question and the passage alone. A killed command goes on where it was.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any

from core.cli import main
from core.errors import UserError
from runs.common import at_least, need, parse, parser, plan
from runs.recipe_options import job_options


def arguments():
    made = parser(__doc__, "python -m runs.score_examples")
    made.add_argument("--teacher", help="checkpoint folder, run folder, .pth or ColBERT folder that scores")
    made.add_argument("--cross_encoder", metavar="NAME", help="instead: a sentence-transformers cross-encoder")
    made.add_argument("--save_path", help="TSV of query id, document id, score")
    made.add_argument("--epochs", type=int, help="epochs whose examples are scored (default: those of the run)")
    made.add_argument("--batch_size", type=int, default=16, help="examples scored at one time (%(default)s)")
    job_options(made, divided=False)
    return made


def run(argv: Sequence[str]) -> None:
    args = parse(arguments(), argv)
    need(args.config_path, "give --config_path, the run whose examples are scored.")
    save = need(args.save_path, "give --save_path, the file to write.")
    if (args.teacher is None) == (args.cross_encoder is None):
        raise UserError("give either --teacher, one of our checkpoints, or --cross_encoder, a name.")
    at_least(1, batch_size=args.batch_size, epochs=args.epochs)
    import dataset
    from core.device import pick_device
    from core.files import atomic_file, write_json
    from runs import recipe, shares
    from runs.settings import load

    cfg = load(args.config_path, args.overrides, args.limit)
    teacher = args.teacher or args.cross_encoder
    if cfg.train.nways < 2:
        raise UserError("train.nways is 1: a teacher compares a query's documents; set it to 2 or more.")
    if args.check:
        return plan(f"score the examples of '{cfg.data.name}' with '{teacher}'", args.teacher)
    with recipe.disk_may_be_full(save):
        data = dataset.build(cfg.data)
        epochs = args.epochs or epochs_of(cfg.train, len(data.examples(cfg.train.split, 0, cfg.train.seed)))
        device = pick_device(args.device or cfg.run.device)
        judge, who = with_retriever(cfg, args.teacher, device) if args.teacher else with_cross_encoder(teacher, device)
        job = {"command": "score_examples", "teacher": who, "data": cfg.data.model_dump(), "epochs": epochs,
               "split": cfg.train.split, "seed": cfg.train.seed, "nways": cfg.train.nways}  # fmt: skip
        work = recipe.Work(save, job, shares.Shard(), args.overwrite)
        if work.finished:
            return
        journal = work.journal("scores")
        if not journal.complete:
            score_all(data, cfg.train, epochs, judge, journal, args.batch_size)
        rows = [f"{row['query']}\t{row['document']}\t{row['score']:.6g}\n" for row in journal.rows()]
        with atomic_file(save, "w") as handle:
            handle.write(f"# scores of {teacher}\n")
            handle.writelines(rows)
        write_json(work.counts, {"job": work.key, "options": job, "pairs": len(rows)})
        shutil.rmtree(work.folder)
        print(f"{len(rows)} pairs scored: {save}")


def epochs_of(train: Any, examples: int) -> int:
    """How many epochs of its examples a run on one process sees."""
    per_epoch = max(1, examples // (train.batch_size * train.accumulation))
    return train.epochs or math.ceil(train.steps / per_epoch)


Judge = Callable[[list], list[list[float]]]
"""[(query, its documents)], equally many each -> scores of the documents."""


def score_all(data, train, epochs: int, judge: Judge, journal, batch_size: int) -> None:
    """Score every pair once, into the journal; what an earlier call committed is not scored again."""
    from core.progress import progress
    from runs import shares
    from training.batches import number_of

    epoch, done = journal.state.get("epoch", 0), journal.state.get("done", 0)
    with journal.writing() as commit:
        known = {number_of(row["query"], row["document"]) for row in journal.rows()}
        rows, since = [], time.monotonic()
        for now in range(epoch, epochs):
            items = data.examples(train.split, now, train.seed)
            for start in progress(range(done, len(items), batch_size), f"scores, epoch {now + 1} of {epochs}"):
                todo = []
                for example in (items[i] for i in range(start, min(start + batch_size, len(items)))):
                    documents = (example.positive, *example.negatives[: train.nways - 1])
                    if len(documents) < train.nways:
                        raise UserError(
                            f"example '{example.query.id}' has {len(documents) - 1} hard negatives, train.nways wants "
                            f"{train.nways - 1}; lower train.nways or add negatives to the data."
                        )
                    names = [number_of(example.query.id, d.id) for d in documents]
                    if not known.issuperset(names):
                        known.update(names)
                        todo.append((example.query, documents))
                for (query, documents), scores in zip(todo, judge(todo) if todo else []):
                    pairs = zip(documents, scores)
                    rows += [{"query": query.id, "document": d.id, "score": score} for d, score in pairs]
                if time.monotonic() - since > shares.COMMIT_SECONDS:
                    commit(rows, {"epoch": now, "done": start + batch_size})
                    rows, since = [], time.monotonic()
            done = 0
        commit(rows, {"complete": True})


def with_retriever(cfg, path: str, device) -> tuple[Judge, str]:
    """MaxSim of one of our retrievers at its inference lengths, and the digest of its weights."""
    import torch

    from core.maxsim import maxsim_pairs
    from models.artifacts import weight_digest
    from runs.common import open_retriever, visual_source

    retriever = open_retriever(path, device)
    cache = cfg.visual.cache if getattr(cfg.data, "modality", "") != "question" else None
    visual = visual_source(retriever, cache)

    @torch.inference_mode()
    def judge(items: list) -> list[list[float]]:
        queries = retriever.collate_queries([query for query, _ in items], visual).to(device)
        documents = retriever.collate_documents([d for _, found in items for d in found], visual).to(device)
        return maxsim_pairs(retriever.encode_queries(queries), retriever.encode_documents(documents)).tolist()

    return judge, weight_digest(retriever)


def with_cross_encoder(name: str, device) -> tuple[Judge, str]:
    try:
        from sentence_transformers import CrossEncoder
    except ImportError:
        raise UserError("--cross_encoder needs sentence-transformers; pip install sentence-transformers") from None
    model = CrossEncoder(name, device=str(device))

    def judge(items: list) -> list[list[float]]:
        pairs = [(query.text, document.text) for query, documents in items for document in documents]
        values = [float(value) for value in model.predict(pairs, show_progress_bar=False)]
        each = len(items[0][1])
        return [values[start : start + each] for start in range(0, len(values), each)]

    return judge, name


if __name__ == "__main__":
    main(run)
