"""Say what an index is: documents, size and where the bytes are, what encoded it, and whether its files are intact.

  python -m runs.index_info experiments/flagfacts_mire/index
  python -m runs.index_info experiments/flagfacts_mire/index --verify
  python -m runs.index_info experiments/flagfacts_mire/index --json

--verify reads every file again; each problem is printed, and the exit status is 1 when there is one.
What an index would take before it is built: python -m runs.run_indexer --plan
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from core.cli import main
from runs.common import nothing_to_limit, parse, parser


def arguments():
    made = parser(__doc__, "python -m runs.index_info", config=False)
    made.add_argument("path", metavar="PATH", help="index folder of any format, colbert-ai's too")
    made.add_argument("--verify", action="store_true", help="read every file and compare it with its checksum")
    made.add_argument("--json", action="store_true", help="print one JSON object instead")
    return made


def run(argv: Sequence[str]) -> int:
    args = parse(arguments(), argv)
    facts = gather(args.path, args.verify)
    if args.json:
        print(json.dumps(facts, indent=2))
    else:
        nothing_to_limit(args.limit, "an index is described as a whole")
        print("\n".join(described(facts)))
    return 1 if facts.get("problems") else 0


def gather(path: str, verify: bool) -> dict:
    """Everything that is printed."""
    from core.files import fingerprint, read_json
    from index import open_index
    from index.estimate import advice, parts
    from runs.indexing import JOB

    index = open_index(path)
    facts = {"path": str(path), **index.stats()}
    size = parts(path)
    vectors = max(1, facts["vectors"])
    job = read_json(Path(path) / JOB, "index job") if (Path(path) / JOB).is_file() else {}
    facts |= {
        "folder_bytes": sum(size.values()),
        "parts": size,
        "parts_per_vector": {name: round(n / vectors, 2) for name, n in size.items()},
        "encoder_fingerprint": fingerprint(facts["encoder"]) if facts["encoder"] else None,
        "chosen": job.get("chosen"),
        "advice": advice(facts),
    }
    return {**facts, "problems": index.verify()} if verify else facts


def described(facts: dict) -> list[str]:
    """One line per fact."""
    how = f" (chosen automatically: {facts['chosen'].removeprefix('auto: ')})" if facts["chosen"] else ""
    kinds = {"nbits": "bits", "centroids": "centroids"}
    more = [f"{facts[key]} {name}" for key, name in kinds.items() if key in facts]
    more += [facts["dtype"]] if "dtype" in facts else []
    segments, vectors = facts.get("segments", 1), max(1, facts["vectors"])
    out = [
        f"index      '{facts['path']}'",
        f"kind       {facts['format']}{how}" + (f", {facts['library']}" if "library" in facts else ""),
        f"documents  {facts['documents']}, {facts.get('deleted', 0)} deleted, "
        f"{facts['documents_without_vectors']} without vectors, in {segments} segment" + "s" * (segments != 1),
        f"vectors    {facts['vectors']} of {facts['dim']} dimensions" + "".join(f", {m}" for m in more),
        f"size       {facts['folder_bytes'] / 1e6:.2f} MB, {facts['folder_bytes'] / vectors:.2f} bytes a vector",
    ]
    for name, size in sorted(facts["parts"].items(), key=lambda item: -item[1]):
        out.append(f"           {name:<10} {size / 1e6:12.3f} MB {facts['parts_per_vector'][name]:9.2f} bytes a vector")
    encoder = facts["encoder"]
    named = ", ".join(f"{k} {v}" for k, v in encoder.items() if isinstance(v, str | int | float))
    out.append(f"encoder    {facts['encoder_fingerprint']} ({named})" if encoder else "encoder    not known")
    if "problems" not in facts:
        out.append("integrity  not checked; --verify reads every file")
    elif facts["problems"]:
        out += [f"problem    {problem}" for problem in facts["problems"]]
    else:
        out.append("integrity  every file is as it was written")
    return out + [f"advice     {line}" for line in facts["advice"]]


if __name__ == "__main__":
    main(run)
