"""Responses to passages for ``runs.convert_tasks``, for one shard. Not a command of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from core.errors import UserError
from core.files import read_json
from dataset import vid2r_passages
from dataset.conversations import Item, is_unicode
from dataset.knowledge_base import KnowledgeBase
from dataset.ledger import Ledger
from runs import recipe, recipe_search, shares

LENGTHS = {"clean": (80, 256), "legacy-mire": (80, 256), "legacy-xknow": (128, 384)}
"""(tokens of a response, tokens of an article), as the published scripts of the templates had them."""


def run(args) -> dict | None:
    """Returns the counts; None while other shards are not done."""
    from core import distributed

    shard = shares.shard_of(args.shard)
    source = shares.Source([args.data_path], args.limit)
    base = KnowledgeBase(args.db_pool)
    recipe_search.check_candidates(args.n_cands, len(base), f"articles of '{args.db_pool}'")
    index = Path(args.index or f"experiments/infoseek/indexes/infoseek.nbits={args.n_bits}")
    job = {
        "command": "convert_tasks", "inputs": source.facts(), "db_pool": shares.Source([str(base.path)]).facts(),
        "template": args.template, "remove_bracket": args.remove_bracket, "n_cands": args.n_cands,
        "n_bits": args.n_bits, "colbert_ckpt": args.colbert_ckpt, "batch_size": args.batch_size, "index": str(index),
        "precision": args.precision,
    }  # fmt: skip
    work = recipe.Work(args.save_path, job, shard, args.overwrite)
    if work.finished:
        recipe.say([f"complete: '{work.out}'"])
        return read_json(work.counts)
    journal = work.journal("search")
    if not journal.complete:
        expansion = args.template != "clean"  # the published templates searched with [MASK] rows
        searcher = recipe_search.Searcher(
            args.colbert_ckpt, args.device, base, index, *LENGTHS[args.template], args.n_bits, args.batch_size,
            expansion, args.precision,
        )  # fmt: skip
        if args.indexing and distributed.is_main():
            searcher.build()
        elif distributed.is_main():
            recipe_search.check_texts(index, base)
        recipe.patient()
        if not (index / "manifest.json").is_file():
            raise UserError(f"there is no complete index at '{index}'; add --indexing to build it, or go on with it.")
        worker = recipe_search.Searching(searcher.open(), args.n_cands, response, hits_row)
        shares.run_share(journal, source, shard, args.batch_size, worker, "searching the knowledge base")
    parts = work.journals("search")
    if parts is None:
        return None
    ledger = Ledger()
    counts = work.finish(rows(args, source, parts, base, ledger), lambda: checked(ledger))
    recipe.say([*Ledger.of(counts).lines(), f"saved: '{work.out}', counts and samples: '{work.counts}'"])
    if not counts["pairs"]["kept"]:
        raise UserError(f"no record was converted, '{work.out}' is an empty list; the reasons are in '{work.counts}'.")
    return counts


def response(item: Item) -> str | None:
    """What is searched for a record; None when it has none."""
    return None if problem(item) else item.value["document"]


def problem(item: Item) -> str | None:
    if item.problem is not None:
        return item.problem
    if not isinstance(item.value, dict):
        return "not an object"
    text = item.value.get("document")
    if not isinstance(text, str) or not text.strip():
        return "no document"
    return None if is_unicode(json.dumps(item.value, ensure_ascii=False)) else "not UTF-8"


def hits_row(number: int, ranking) -> dict:
    return {"ids": ranking.ids, "scores": [round(score, recipe_search.PLACES) for score in ranking.scores]}


def rows(
    args, source: shares.Source, parts: list[shares.Journal], base: KnowledgeBase, ledger: Ledger
) -> Iterator[dict]:
    """The converted records, in the order of the input, with where their passages come from."""
    for (number, item, _), hit in zip(source.read(), shares.merged(parts), strict=True):
        ledger.read += 1
        if (reason := problem(item)) is not None:
            ledger.skip(reason, number, byte=item.end)
            continue
        ledger.used, ledger.found, ledger.kept = ledger.used + 1, ledger.found + 1, ledger.kept + 1
        articles = [base[int(place)] for place in hit["ids"]]
        leads = [vid2r_passages.lead(article.text, args.template) for article in articles]
        made = vid2r_passages.converted(item.value, leads, args.template, args.remove_bracket)
        made["kb_ids"] = [article.meta["kb_id"] for article in articles]
        made["kb_scores"] = hit["scores"]
        yield made


def checked(ledger: Ledger) -> dict:
    ledger.check()
    return ledger.as_json()
