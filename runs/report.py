"""Join the reports of several runs into one table, JSON and plot.

python -m runs.report --out experiments/quickstart experiments/quickstart/image+question
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
    made.add_argument("--out", required=True, help="folder for report.json and report.png")
    return made


def run(argv: Sequence[str]) -> None:
    args = parse(arguments(), argv)
    from core.files import read_json, write_json
    from evaluation.report import plot, table

    joined: dict = {}
    for folder in args.runs[: args.limit]:
        report = read_json(Path(folder) / "report.json", "report (python -m runs.evaluate_retrieval writes it)")
        for split, rows in report.items():
            for kind, row in rows.items():
                if kind in joined.setdefault(split, {}):
                    raise UserError(
                        f"'{kind}' of split '{split}' stands in two of the given runs; give each kind once."
                    )
                joined[split][kind] = row
    out = Path(args.out)
    write_json(out / "report.json", joined)
    shown = [n for kinds in joined.values() for row in kinds.values() for n in row if "@" in n]
    plot(joined, out / "report.png", "Success@5" if "Success@5" in shown else shown[0])
    print(table(joined))
    print(f"report: '{out / 'report.json'}', plot: '{out / 'report.png'}'")


if __name__ == "__main__":
    main(run)
