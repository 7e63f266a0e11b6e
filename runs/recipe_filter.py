"""The two stages of ``runs.neural_filtering`` in order, for one shard. Not a command of its own."""

from __future__ import annotations

from collections.abc import Iterator

from core.errors import UserError
from core.files import read_json, write_json
from dataset.ledger import Ledger
from dataset.lines import LineCorpus, Lines
from dataset.vid2r_ids import Negatives, hashes
from runs import recipe, recipe_search, recipe_text, shares

DEPTH = 100
"""Results that are looked at for the rank of the own response, so that another --n_cands can be chosen afterwards."""

QUERY_MAXLEN, DOC_MAXLEN = 64, 256
SOLVED = "answered without its image"


def run(args, paths: list[str]) -> dict | None:
    """Returns the counts; None while other shards are not done."""
    shard = shares.shard_of(args.shard)
    source = shares.Source(paths, args.limit)
    nouns = None if args.rules == "legacy-xknow" else recipe_text.noun_tagger()
    job = {
        "command": "neural_filtering", "inputs": source.facts(), "rules": args.rules, "drop_len": args.drop_len,
        "image_dir": args.image_dir, "nouns": nouns is not None, "save_negative": args.save_negative,
    }  # fmt: skip
    if not args.skip_neural:
        job |= {"n_cands": args.n_cands, "n_bits": args.n_bits, "colbert_ckpt": args.colbert_ckpt,
                "batch_size": args.batch_size, "precision": args.precision}  # fmt: skip
    work = recipe.Work(args.save_path, job, shard, args.overwrite)
    if work.finished:
        recipe.say([f"complete: '{work.out}'"])
        return read_json(work.counts)
    rules = recipe_text.TextRules(args.rules, args.drop_len, nouns, args.image_dir)
    shares.run_share(work.journal("text"), source, shard, recipe_text.BLOCK, rules, "text rules")
    parts = work.journals("text")
    if parts is None:
        return None
    work.once("text.json", lambda: write_text(work, parts, args.rules))
    found = read_json(work.folder / "text.json")
    ledger = Ledger.of(found)
    hits = None
    if not args.skip_neural and ledger.kept:
        if not search(args, work):
            return None
        hits = work.journals("search")
        if hits is None:
            return None
    counts = work.finish(rows(args, work, ledger, hits), lambda: checked(ledger))
    recipe.say([*Ledger.of(counts).lines(), f"saved: '{work.out}', counts and samples: '{work.counts}'"])
    if not counts["pairs"]["kept"]:
        raise UserError(f"no pair was kept, '{work.out}' is an empty list; the reasons are counted in '{work.counts}'.")
    return counts


def write_text(work: recipe.Work, parts: list[shares.Journal], rules: str) -> None:
    ledger = Ledger.sum(Ledger.of(part.state["worker"]["ledger"]) for part in parts)
    ledger.notes["id changed because it stood twice"] += recipe_text.write_pairs(
        work.folder, lambda: shares.merged(parts), rules
    )
    write_json(work.folder / "text.json", ledger.as_json())


def search(args, work: recipe.Work) -> bool:
    """This shard's questions, searched without their images among all distinct responses."""
    journal = work.journal("search")
    if journal.complete:
        return True
    responses = LineCorpus(work.folder / "responses.jsonl")
    recipe_search.check_candidates(args.n_cands, len(responses), "distinct responses")
    searcher = recipe_search.Searcher(
        args.colbert_ckpt, args.device, responses, work.folder / "index", QUERY_MAXLEN, DOC_MAXLEN, args.n_bits,
        args.batch_size, precision=args.precision,
    )  # fmt: skip
    work.once("index/manifest.json", searcher.build)
    keys = hashes(row["document"] for row in pairs(work))

    def row(number: int, ranking) -> dict:
        rank = recipe_search.rank_of(number, ranking.ids, keys)
        score = None if rank is None else round(ranking.scores[rank - 1], recipe_search.PLACES)
        return {"rank": rank, "score": score}

    worker = recipe_search.Searching(searcher.open(), max(DEPTH, args.n_cands), lambda i: i.value["question"], row)
    source = shares.Source([str(work.folder / "pairs.jsonl")])
    shares.run_share(journal, source, work.shard, args.batch_size, worker, "neural filter")
    return True


def pairs(work: recipe.Work) -> Lines[dict]:
    return Lines(work.folder / "pairs.jsonl", lambda _, row: row, ())


def rows(args, work: recipe.Work, ledger: Ledger, hits: list[shares.Journal] | None) -> Iterator[dict]:
    """What is saved; the ledger learns what the neural filter drops."""
    found = pairs(work)
    negatives = Negatives(found) if args.save_negative else None
    ranks = None if hits is None else shares.merged(hits)
    for number, pair in enumerate(found):
        if ranks is not None:
            hit = next(ranks)
            rank = hit.get("rank")
            if rank is not None and rank <= args.n_cands:
                ledger.kept -= 1
                ledger.drop(SOLVED, number, id=pair["id"], question=pair["question"], response=pair["document"],
                            rank=rank)  # fmt: skip
                continue
            pair = {**pair, "filter_rank": rank, "filter_score": hit.get("score")}
        if negatives is not None:
            pair = {**pair, "negs": negatives.of(pair)}
        yield pair


def checked(ledger: Ledger) -> dict:
    ledger.check()
    return ledger.as_json()
