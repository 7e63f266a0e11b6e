"""Compare two evaluated runs query by query: what differs, by how much, how surely, and where.

  python -m runs.compare experiments/a experiments/b
  python -m runs.compare a/runs/test.image+question.jsonl a/runs/test.image+question_no_image.jsonl
  python -m runs.compare experiments/a experiments/b --metrics Success@5 MRR@10 --by field --together country --out cmp

A run is the folder of an evaluation, or one per-query file. Prints Markdown; --out also writes it, and JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from core.cli import main
from core.errors import UserError
from runs.common import parse, parser


def arguments():
    made = parser(__doc__, "python -m runs.compare", config=False)
    made.add_argument("a", metavar="RUN_A", help="folder of an evaluated run, or a per-query .jsonl")
    made.add_argument("b", metavar="RUN_B", help="the other; differences are B minus A")
    made.add_argument("--metrics", nargs="+", metavar="M", help="default: all that both have")
    made.add_argument("--by", metavar="FIELD", help="also a row for each value of this field of the queries' meta")
    made.add_argument(
        "--together", metavar="FIELD", help="queries with one value of this field count as one observation"
    )
    made.add_argument("--changed", type=int, default=10, metavar="N", help="queries shown in each direction (10)")
    made.add_argument("--seed", type=int, default=0, help="of the resampling (0)")
    made.add_argument("--out", metavar="PATH", help="write PATH.md and PATH.json")
    return made


def run(argv: Sequence[str]) -> None:
    args = parse(arguments(), argv)
    if args.changed < 0:
        raise UserError(f"--changed {args.changed} is no number of queries; give 0 or more.")
    if args.seed < 0:
        raise UserError(f"--seed {args.seed} is below 0; give 0 or more.")
    from core.files import atomic_file, write_json
    from evaluation.compare import compared, markdown
    from evaluation.files import read_per_query

    pairs = {}
    for name, (a, b) in files(Path(args.a), Path(args.b)).items():
        pairs[name] = tuple(first(read_per_query(path), args.limit) for path in (a, b))
    result = compared(pairs, args.metrics, args.by, args.together, args.changed, args.seed)
    text = markdown(result, args.a, args.b)
    print(text)
    if args.out is not None:
        write_json(f"{args.out}.json", {"A": args.a, "B": args.b, **result})
        with atomic_file(f"{args.out}.md", "w") as handle:
            handle.write(text)
        print(f"written: '{args.out}.md', '{args.out}.json'")


def files(a: Path, b: Path) -> dict[str, tuple[Path, Path]]:
    """What is compared with what: files of one name, or, where each run has a single one, these."""
    ours, theirs = per_query(a), per_query(b)
    if len(ours) == len(theirs) == 1:
        (left, right) = (*ours.values(), *theirs.values())
        return {left.stem if left.stem == right.stem else f"{left.stem} and {right.stem}": (left, right)}
    both = [name for name in ours if name in theirs]
    if not both:
        raise UserError(
            f"'{a}' has {', '.join(ours)} and '{b}' {', '.join(theirs)}: nothing of one name; give the two per-query "
            "files."
        )
    for run, found in ((a, ours), (b, theirs)):
        if left := [name for name in found if name not in both]:
            print(f"note: only '{run}' has {', '.join(left)}; left out")
    return {name: (ours[name], theirs[name]) for name in both}


def per_query(run: Path) -> dict[str, Path]:
    """Name -> per-query file of a run's folder, of its runs/ folder, or the file itself."""
    if run.is_file():
        return {run.stem: run}
    folder = run / "runs" if (run / "runs").is_dir() else run
    found = {path.stem: path for path in sorted(folder.glob("*.jsonl"))}
    if not found:
        raise UserError(
            f"'{run}' has no per-query results (runs/*.jsonl); evaluate it first (python -m runs.evaluate_retrieval)."
        )
    return found


def first(found, limit: int | None):
    """The first queries of a per-query file."""
    if limit is None:
        return found
    from evaluation.files import PerQuery

    ids = list(found.rankings)[:limit]
    scores = {name: {qid: values[qid] for qid in ids if qid in values} for name, values in found.scores.items()}
    return PerQuery(scores, {qid: found.rankings[qid] for qid in ids}, {qid: found.facts[qid] for qid in ids})


if __name__ == "__main__":
    main(run)
