"""Converting responses in batches against one at a time: colbert-ai's way, and ours.

  python benchmarks/conversion.py                       # needs ckpts/minilm-l6 (scripts/prepare_towers.py)
  python benchmarks/conversion.py --leads data/triviawiki/passages.jsonl --articles 4000
  python benchmarks/conversion.py --no_peer --responses 512
  python benchmarks/conversion.py --device cuda --no_peer

The knowledge base is FlagFacts' passages or other JSON lines, the responses are sentences of FlagFacts, the retriever
is MiniLM-L6 with a random projection to 128 (its answers are of no interest, its work is). colbert-ai builds the index,
once; ours reads the same centroids, codes and residuals out of it. All take turns in rounds, on the same responses, so
that the load of the machine meets all; a ratio is the median over rounds. Encoding and search are timed, loading and
the first texts are not. Processor time is what a process used, whatever else ran on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from peers.runner import environment, python_of

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / "experiments" / "index_bench"
FAST, PEER = "batches", "colbert-ai, one at a time"
LENGTHS = {"query_maxlen": 80, "doc_maxlen": 256}
"""Of the published conversion."""


def arguments() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--tower", default="ckpts/minilm-l6")
    made.add_argument("--leads", type=Path, default=ROOT / "data" / "flagfacts" / "passages.jsonl", help="articles")
    made.add_argument("--articles", type=int, default=6123)
    made.add_argument("--responses", type=int, default=384, help="divided among the rounds")
    made.add_argument("--longest", type=int, help="characters a response may have (default: any number)")
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--batch", type=int, default=256)
    made.add_argument("--n_cands", type=int, default=3)
    made.add_argument("--n_bits", type=int, default=2)
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--precision", default="bf16", help="of our fast arms; fp32 is measured in any case")
    made.add_argument("--device", default="cpu")
    made.add_argument("--no_peer", action="store_true", help="ours only; our own index instead of colbert-ai's")
    made.add_argument(
        "--wheels", type=Path, help="pip download -r benchmarks/peers/requirements-colbert-ai.txt into it"
    )
    made.add_argument("--json", type=Path)
    return made


def colbert_folder(tower: Path, out: Path) -> Path:
    """The tower as an HF ColBERT folder that both read: ``bert.*`` and a projection."""
    import torch
    from safetensors.torch import load_file, save_file

    from core.files import write_json

    out.mkdir(parents=True, exist_ok=True)
    for file in tower.iterdir():
        if file.suffix in (".json", ".txt") and file.name != "provenance.json":
            shutil.copy(file, out)
    state = {f"bert.{k}": v for k, v in load_file(tower / "model.safetensors").items() if "position_ids" not in k}
    hidden = state["bert.embeddings.word_embeddings.weight"].shape[1]
    torch.manual_seed(0)
    state["linear.weight"] = torch.randn(128, hidden) / hidden**0.5
    save_file(state, out / "model.safetensors", metadata={"format": "pt"})
    write_json(out / "artifact.metadata", {**LENGTHS, "dim": 128})
    return out


def texts(leads: Path, articles: int, responses: int, longest: int | None) -> tuple[list[str], list[str]]:
    from dataset import sentences

    knowledge, facts = (
        [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
        for path in (leads, ROOT / "data" / "flagfacts" / "passages.jsonl")
    )
    pieces = [s.strip() for text in facts[::-1] for s in sentences.split(text)]
    pieces = [piece for piece in pieces if 30 <= len(piece) <= (longest or len(piece))]
    step = max(1, len(pieces) // responses)
    return knowledge[:articles], pieces[::step][:responses]


@dataclass(frozen=True)
class Arm:
    """masks: fill short texts with [MASK] rows, as the published conversion."""

    batch: int
    masks: bool
    precision: str


class Peer:
    def __init__(self, args: argparse.Namespace, work: Path, checkpoint: Path) -> None:
        python = python_of("colbert-ai", HOME / "venvs", args.wheels)
        given = {"work": str(work), "checkpoint": str(checkpoint), "lengths": LENGTHS, "nbits": args.n_bits,
                 "threads": args.threads}  # fmt: skip
        self.log = open(work / "colbert-ai.log", "w")  # noqa: SIM115
        script = Path(__file__).parent / "peers" / "run_conversion.py"
        self.process = subprocess.Popen(
            [str(python), str(script), json.dumps(given)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self.log, text=True, env=environment(args.threads, args.device),
        )  # fmt: skip

    def ask(self, **order) -> dict:
        from core.errors import UserError

        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": f"ended with status {self.process.wait()}"}
        if "error" in answer:
            raise UserError(f"colbert-ai failed: {answer['error']}; its log is {self.log.name}.")
        return answer

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.log.close()


def run(argv: Sequence[str]) -> None:
    args = arguments().parse_args(argv)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import torch

    from core.files import fingerprint, write_json
    from core.progress import resident
    from core.records import Document
    from runs.common import open_retriever, query_encoder, with_lengths
    from runs.indexing import index_device
    from runs.recipe_search import GROUP, GROUPS, Searcher

    torch.set_num_threads(args.threads)
    articles, responses = texts(args.leads, args.articles, args.responses, args.longest)
    work = HOME / f"conversion-{fingerprint([articles, args.tower, args.n_bits])}"
    checkpoint = colbert_folder(ROOT / args.tower, work / "checkpoint")
    (work / "articles.json").write_text(json.dumps(articles))
    (work / "responses.json").write_text(json.dumps(responses))
    retriever = with_lengths(open_retriever(checkpoint, args.device), **LENGTHS)
    peer = None if args.no_peer else Peer(args, work, checkpoint)
    if peer:
        peer.ask(do="build")
        from index.convert import convert

        shutil.rmtree(work / "ours", ignore_errors=True)
        index = convert(work / "index", work / "ours")
    else:
        from runs.indexing import build
        from runs.settings import IndexSection

        section = IndexSection(name="plaid", options={"nbits": args.n_bits})
        corpus = [Document(str(i), text) for i, text in enumerate(articles)]
        index = build(retriever, corpus, section, work / "own", device=index_device(args.device))
    search = Searcher.__new__(Searcher)  # as the command searches, in an index that is here already
    search.index, search.encode, search.device = index, query_encoder(retriever), next(retriever.parameters()).device
    search.retriever, search.group = retriever, GROUPS.get(search.device.type, GROUP)
    conventions = retriever.tokenizer.conventions

    def ours(first: int, last: int, arm: Arm) -> tuple[float, float, list[list[int]]]:
        retriever.tokenizer.conventions = replace(conventions, expansion=arm.masks)
        search.precision = arm.precision
        found, start, used = [], time.perf_counter(), time.process_time()
        for at in range(first, last, arm.batch):
            rankings = search(responses[at : min(last, at + arm.batch)], args.n_cands)
            found += [[int(i) for i in ranking.ids] for ranking in rankings]
        return time.perf_counter() - start, time.process_time() - used, found

    def theirs(first: int, last: int) -> tuple[float, float, list[list[int]]]:
        answer = peer.ask(do="search", first=first, last=last, k=args.n_cands)
        return answer["seconds"], answer["used"], answer["ids"]

    arms = {
        FAST: Arm(args.batch, False, args.precision),
        "batches, fp32": Arm(args.batch, False, "fp32"),
        "batches, fp32, [MASK] rows": Arm(args.batch, True, "fp32"),
        f"one at a time, {args.precision}": Arm(1, False, args.precision),
        "one at a time, fp32": Arm(1, False, "fp32"),
        "one at a time, fp32, [MASK] rows": Arm(1, True, "fp32"),
    }
    warm = min(16, len(responses))
    for arm in arms.values():
        ours(0, warm, arm)
    if peer:
        theirs(0, warm)
    share = len(responses) // args.rounds
    rounds: list[dict[str, tuple[float, float]]] = []
    same: dict[str, int] = dict.fromkeys(arms, 0)
    for number in range(args.rounds):
        part = number * share, (number + 1) * share
        found = {name: ours(*part, arm) for name, arm in arms.items()}
        if peer:
            found[PEER] = theirs(*part)
        against = found[PEER if peer else "one at a time, fp32, [MASK] rows"][2]
        for name in arms:
            same[name] += sum(len(set(a) & set(b)) for a, b in zip(found[name][2], against))
        rounds.append({name: (wall / share * 1000, used / share * 1000) for name, (wall, used, _) in found.items()})
        print("  ".join(f"{name}: {ms:.1f} ({used:.1f}) ms" for name, (ms, used) in rounds[-1].items()), flush=True)
    report = {
        "date": f"{datetime.now():%Y-%m-%d %H:%M}", "articles": len(articles), "responses": share * args.rounds,
        "longest": args.longest,
        "threads": args.threads, "device": args.device, "load": os.getloadavg()[0], "memory_bytes": resident(),
    }  # fmt: skip
    for place, what in enumerate(("wall", "processor")):
        report[f"{what} ms"] = {name: statistics.median(r[name][place] for r in rounds) for name in rounds[0]}
        report[f"{what}, times the fast arm"] = {
            name: statistics.median(r[name][place] / r[FAST][place] for r in rounds) for name in rounds[0]
        }
    report["results shared with the peer" if peer else "results shared with the last arm"] = {
        name: n / (share * args.rounds * args.n_cands) for name, n in same.items()
    }
    if peer:
        peer.close()
    print(json.dumps(report, indent=1))
    if args.json:
        write_json(args.json, report)


if __name__ == "__main__":
    from core import cli

    cli.main(run)
