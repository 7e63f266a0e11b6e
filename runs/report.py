"""Many runs as one page to look at, beside it as tables: report.html, .md, .csv, .json and .png.

python -m runs.report --out experiments/quickstart experiments/quickstart/image+question experiments/quickstart/question
python -m runs.report --out experiments/compared mire=experiments/flagfacts_mire xknow=experiments/flagfacts_xknow
python -m runs.report --out experiments/m2kr/table --published m2kr experiments/m2kr

The page is one file that opens from disk and asks for nothing else: results with best and second, Success over k, the
sample of questions with their pictures and passages, means by type of question, published numbers of the same splits.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from core.cli import main
from core.errors import UserError
from runs.common import parse, parser


def arguments():
    made = parser(__doc__, "python -m runs.report", config=False)
    made.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="folders that evaluate_retrieval wrote, or NAME=FOLDER",
    )
    made.add_argument("--out", required=True, help="folder for report.html, .md, .csv, .json and .png")
    made.add_argument("--examples", type=int, metavar="N", help="queries a split to look at (default 100; 0: none)")
    made.add_argument(
        "--published", metavar="NAME", help="tables beside a paper's numbers: m2kr, mbeir, okvqa or visdial"
    )
    return made


def run(argv: Sequence[str]) -> None:
    args = parse(arguments(), argv)
    if args.examples is not None and args.examples < 0:
        raise UserError(f"--examples {args.examples} is below 0; give how many queries a split to show, 0 for none.")
    from core.files import atomic_file, write_json
    from evaluation import report_page
    from evaluation.against import side_by_side, sources
    from evaluation.report import csv_text, plot, results_table, rows
    from evaluation.report_examples import EXAMPLES
    from evaluation.report_marks import KEY, by_split, marked_rows
    from evaluation.report_runs import joined, open_runs, systems

    out, runs = Path(args.out), open_runs(args.runs[: args.limit])
    if any(run.folder.resolve() == out.resolve() for run in runs):
        raise UserError(f"--out '{out}' is one of the runs, whose report.json it would replace; give another folder.")
    found = systems(runs)
    report = joined(found)
    metrics = [n for kinds in report.values() for row in kinds.values() for n in row if "@" in n]
    if not metrics:
        raise UserError(f"no report.json of {', '.join(args.runs)} holds a metric; evaluate again.")
    against = args.published and side_by_side(report, args.published)
    marked = by_split(report, found)
    examples = EXAMPLES if args.examples is None else args.examples
    shown = report_page.write(out / "report.html", out.resolve().name, found, marked, examples)
    write_json(out / "report.json", report)
    plot(report, out / "report.png", "Success@5" if "Success@5" in metrics else metrics[0])
    if against:
        text = results_table(against)
        text += "\nPublished numbers:\n\n" + "".join(f"- {source}.\n" for source in sources(args.published))
    else:
        text = results_table(marked_rows(report, marked)) + f"\n{KEY}\n"
    for name, content in (("report.md", text), ("report.csv", csv_text(against or rows(report)))):
        with atomic_file(out / name, "w") as handle:
            handle.write(content)
    print(text)
    for split, (some, of) in shown.items():
        print(f"examples of '{split}': {some} of {of} queries")
    if not shown:
        print("no examples: the runs' folders hold none (python -m runs.evaluate_retrieval writes them)")
    print(f"report: '{out / 'report.html'}', also as .md, .csv and .json, plot: '{out / 'report.png'}'")


if __name__ == "__main__":
    main(run)
