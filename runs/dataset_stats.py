"""What is in a file of ViD2R records (or any JSON list with question and document): numbers, and a page to look at.

  python -m runs.dataset_stats data/vid2r/ViD2R.json --image_dir data/vid2r/images
  python -m runs.dataset_stats data/vid2r/ViD2R.json --test other.json --out experiments/stats

Counts per rule (from the .counts.json beside the file), lengths, duplicates, images that are missing, answers that
stand in their question, near-duplicates, overlap with the --test files, and random samples with their images. Writes
stats.json and index.html into --out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from core.cli import main
from runs.common import at_least, check_option, parse, parser, plan


def arguments():
    made = parser(__doc__, "python -m runs.dataset_stats", config=False)
    made.add_argument("file", help="JSON list or JSON lines")
    made.add_argument("--image_dir", help="folder of the images: the missing ones are counted, the samples shown")
    made.add_argument("--test", nargs="+", default=[], metavar="FILE", help="files that must not overlap with it")
    made.add_argument("--out", help="folder (default: the file's path without its ending, and .stats)")
    made.add_argument("--samples", type=int, default=20, help="records on the page (%(default)s)")
    made.add_argument("--seed", type=int, default=0, help="which samples are drawn (%(default)s)")
    check_option(made)
    return made


def run(argv: Sequence[str]) -> None:
    args = parse(arguments(), argv)
    at_least(0, samples=args.samples)
    if args.check:
        return plan(f"look at '{args.file}'", args.file, args.image_dir, *args.test)
    from core.files import atomic_file, write_json
    from runs import recipe, stats_page
    from runs.stats import Stats, overlap

    file = Path(args.file)
    out = Path(args.out) if args.out else file.with_name(f"{file.stem}.stats")
    with recipe.disk_may_be_full(out):
        stats = Stats.of(args.file, args.image_dir, args.samples, args.seed, args.limit)
        report = stats.report()
        for test in args.test:
            report[f"overlap with {Path(test).name}"] = overlap(stats, Stats.of(test, None, 0, 0, None))
        cards = [
            stats_page.card(r, stats_page.thumbnail(str(r.get("image") or ""), args.image_dir)) for r in stats.drawn
        ]
        write_json(out / "stats.json", report)
        with atomic_file(out / "index.html", "w") as handle:
            handle.write(stats_page.render(file.name, report, stats.lengths, cards))
    for name, part in report.items():
        numbers = {k: v for k, v in part.items() if isinstance(v, (int, float))}
        print(f"{name}: " + ", ".join(f"{value} {key}" for key, value in numbers.items()))
    print(f"saved: '{out / 'stats.json'}' and '{out / 'index.html'}'")


if __name__ == "__main__":
    main(run)
