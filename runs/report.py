"""Join the reports of several runs into one table, JSON and plot, beside published numbers where there are some.

python -m runs.report --out experiments/quickstart experiments/quickstart/image+question
python -m runs.report --out experiments/m2kr/table --published m2kr experiments/m2kr
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from core.cli import main
from core.errors import UserError
from runs.common import parse, parser


def arguments():
    made = parser(__doc__, "python -m runs.report", config=False)
    made.add_argument("runs", nargs="+", help="folders that evaluate_retrieval wrote a report.json into")
    made.add_argument("--out", required=True, help="folder for report.json, .md, .csv and .png")
    made.add_argument("--published", metavar="NAME", help="published numbers to stand beside the runs: m2kr")
    return made


def run(argv: Sequence[str]) -> None:
    args = parse(arguments(), argv)
    from core.files import atomic_file, read_json, write_json
    from evaluation.against import published, side_by_side
    from evaluation.report import csv_text, plot, results_table, rows

    joined: dict = {}
    for folder in args.runs[: args.limit]:
        report = read_json(Path(folder) / "report.json", "report (python -m runs.evaluate_retrieval writes it)")
        for split, cells in report.items():
            for kind, row in cells.items():
                if kind in joined.setdefault(split, {}):
                    raise UserError(
                        f"'{kind}' of split '{split}' stands in two of the given runs; give each kind once."
                    )
                joined[split][kind] = row
    shown = rows(joined) if args.published is None else side_by_side(joined, args.published)
    out = Path(args.out)
    write_json(out / "report.json", joined)
    metrics = [n for kinds in joined.values() for row in kinds.values() for n in row if "@" in n]
    plot(joined, out / "report.png", "Success@5" if "Success@5" in metrics else metrics[0])
    text = results_table(shown)
    if args.published is not None:
        text += f"\nPublished numbers: {published(args.published)['source']}.\n"
    for name, content in (("report.md", text), ("report.csv", csv_text(shown))):
        with atomic_file(out / name, "w") as handle:
            handle.write(content)
    print(text)
    print(f"report: '{out / 'report.json'}', also as .md and .csv, plot: '{out / 'report.png'}'")


if __name__ == "__main__":
    main(run)
