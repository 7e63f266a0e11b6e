"""What the steps of ViD2R are worth: pre-train MIRe on its records with and without neural filter and conversion.

  python scripts/prepare_towers.py
  python scripts/build_triviawiki.py --fetch && python scripts/build_wikilens.py --fetch
  python benchmarks/triviawiki.py                 # trains the text retriever that takes ColBERTv2's place
  python benchmarks/vid2r_ablation.py             # three seeds; given again, it goes on where it was stopped
  python benchmarks/vid2r_ablation.py --report    # only the tables of what is finished

Conversations are written from FlagFacts' training facts (benchmarks/vid2r_conversations.py), the knowledge base are
TriviaWiki's 10,033 Wikipedia leads, and the three files come from the commands themselves. Each trains the same fusion
head for the same number of steps, visual rows alone, everything else frozen; the questions of FlagFacts and WikiLens
are then searched with all rows, zero-shot. Writes <out>/results.json and <out>/table.md (docs/VID2R.md).
"""

from __future__ import annotations

import argparse
import gc
import random
import shutil
import sys
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

ARMS = {
    "rules": "text rules", "filtered": "+ neural filter", "converted": "+ conversion",
    "unfiltered": "text rules, conversion, no filter",
}  # fmt: skip
TEXT = "text only"
PAIRS = (
    ("filtered", "rules"), ("converted", "filtered"), ("converted", "rules"), ("unfiltered", "rules"),
    ("converted", "unfiltered"), ("converted", TEXT),
)  # fmt: skip
DATA = {"flagfacts": (("test", "test_artwork"), "country"), "wikilens": (("test",), "concept")}
"""Test splits, and the fact of a query that makes it one observation with others."""

METRICS, MAIN, QUERIES, K = ["Success@1", "Success@5", "MRR@10"], "MRR@10", 600, 10
LENGTHS = {"query_maxlen": 32, "doc_maxlen": 96}


def arguments() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", default="experiments/vid2r_ablation")
    made.add_argument("--text", default="experiments/triviawiki/trained", help="text retriever (%(default)s)")
    made.add_argument("--leads", default="data/triviawiki/passages.jsonl", help="knowledge base (%(default)s)")
    made.add_argument("--features", default="experiments/vid2r_ablation/features", help="(%(default)s)")
    made.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    made.add_argument("--steps", type=int, default=200)
    made.add_argument("--report", action="store_true", help="run nothing")
    return made


def text_tower(source: str, out: Path) -> Path:
    """The text retriever as the folder that both the commands and ``model.text_tower`` read."""
    from models.multivector import save_sentence_transformers
    from runs.common import open_retriever

    if not out.is_dir():
        save_sentence_transformers(open_retriever(source), out)
    return out


def records(out: Path, tower: Path, leads: str) -> dict[str, Path]:
    """The arms' files, by the commands."""
    from vid2r_conversations import write

    from runs import convert_tasks, neural_filtering

    given = write(Path("data/flagfacts"), out / "conversations.json")
    files = {name: out / f"{name}.json" for name in ARMS}
    common = ["--data_paths", str(given), "--image_dir", "data/flagfacts"]
    neural_filtering.run([*common, "--skip_neural", "--save_path", str(files["rules"])])
    text = ["--colbert_ckpt", str(tower), "--precision", "bf16", "--batch_size", "64", "--device", "cpu"]
    neural_filtering.run([*common, *text, "--save_path", str(files["filtered"])])
    for source, name in (("filtered", "converted"), ("rules", "unfiltered")):
        convert_tasks.run(["--data_path", str(files[source]), *text, "--db_pool", leads, "--indexing", "--index",
                           str(out / "kb_index"), "--save_path", str(files[name])])  # fmt: skip
    return files


def config(args: argparse.Namespace, tower: Path, file: Path, arm: str, seed: int) -> dict:
    """A run's YAML: cfgs/flagfacts_mire.yaml's model in phase A."""
    from core.config import load_yaml

    base = load_yaml("cfgs/flagfacts_mire.yaml")
    rows = {"rows": ["global", "pooled"], "query_maxlen": 32, "doc_maxlen": 128, "temperature": 2.0}
    model = {**base["model"], "text_tower": str(tower), "fresh": ["fusion"], "frozen": ["text", "linear", "vision"],
             "train": rows, "eval": LENGTHS}  # fmt: skip
    data = {"name": "vid2r", "path": str(file), "image_dir": "data/flagfacts", "valid_samples": 32}
    train = {"steps": args.steps, "batch_size": 48, "lr": 1e-3, "weight_decay": 0.05, "warmup_steps": args.steps // 10,
             "schedule": "cosine", "cache_text_states": True, "seed": seed, "eval_first": False, "keep": 1,
             "log_every": 20}  # fmt: skip
    return {"run": {"out": str(Path(args.out) / "runs" / f"{arm}-{seed}"), "device": "cpu"}, "data": data,
            "model": model, "visual": {"cache": args.features}, "train": train,
            "eval": {"valid_queries": 32, "valid_documents": 32}}  # fmt: skip


class Judge:
    """Every test question over all passages. The text side is frozen: one index serves all arms."""

    def __init__(self, out: Path, tower: Path, features: str) -> None:
        import dataset
        from core.config import check
        from runs.common import open_retriever, with_lengths
        from runs.indexing import build
        from runs.settings import IndexSection

        text = with_lengths(open_retriever(tower), **LENGTHS)
        self.features, self.parts, self.questions = features, {}, OrderedDict()
        for name, (splits, _) in DATA.items():
            data = dataset.build(check(dataset.config_class({"name": name}), {"name": name}, "data"))
            section = IndexSection(name="plaid", precision="bf16", options={"nbits": 4})
            index = build(text, data.corpus(), section, out / f"{name}_index")
            asked = {split: sample(data.queries(split)) for split in splits}
            self.parts[name] = data, index, asked

    def images(self) -> list:
        refs = {image.key: image for _, _, asked in self.parts.values() for qs in asked.values()
                for q in qs for image in q.images}  # fmt: skip
        return list(refs.values())

    def __call__(self, retriever, show: bool = True) -> dict:
        """{data set: {split: {metric: {query id: value}}}}"""
        from dataclasses import replace

        from evaluation.metrics import evaluate
        from runs.common import query_encoder, visual_source
        from training.states import TextStates

        retriever.eval()
        retriever.stage = "eval"
        visual = visual_source(retriever, self.features) if show else None
        states = None
        if show:  # the trunk's, which all arms share
            states = TextStates(retriever)
            states._memory = self.questions
        encode = query_encoder(retriever, visual, states)
        out: dict = {}
        for name, (data, index, asked) in self.parts.items():
            for split, queries in asked.items():
                rankings = {}
                for at in range(0, len(queries), 64):
                    part = [q if show else replace(q, images=()) for q in queries[at : at + 64]]
                    found = index.search(encode(part), K)
                    rankings |= {q.id: ranking for q, ranking in zip(part, found, strict=True)}
                qrels = data.qrels(split)
                values = evaluate(rankings, {id_: qrels[id_] for id_ in rankings}, METRICS)
                out.setdefault(name, {})[split] = values
        return out


def sample(queries: Sequence) -> list:
    chosen = random.Random(0).sample(list(queries), QUERIES) if len(queries) > QUERIES else list(queries)
    return sorted(chosen, key=lambda q: q.id)


def complete_features(judge: Judge, raw: dict) -> None:
    """The stored features of every picture that is asked about."""
    from fusions import one

    from runs.features import build
    from runs.training import build_retriever

    cfg = one.configured(raw)
    retriever = build_retriever(cfg)
    build(judge.images(), retriever.vision, retriever.pixel_source(), cfg.visual.cache, cfg.visual)


def remember_questions() -> None:
    """The frozen trunk's states of a question are the same in every run: kept from run to run. Those of passages are
    made in bf16."""
    import torch

    from runs import training

    made, memory = training.text_states, OrderedDict()

    def shared(*args):
        with torch.autocast("cpu", torch.bfloat16):
            states = made(*args)
        states._memory = memory  # its keys name trunk, length and mask policy
        return states

    training.text_states = shared


def trained(raw: dict, judge: Judge) -> dict:
    """Train with train_retrieval.py, judge, and let the checkpoints go."""
    import yaml

    import train_retrieval
    from core.errors import UserError
    from core.files import atomic_file
    from runs.common import open_retriever

    out = Path(raw["run"]["out"])
    with atomic_file(out.with_suffix(".yaml"), "w") as handle:
        yaml.safe_dump(raw, handle, sort_keys=False)
    start = time.perf_counter()
    if train_retrieval.run(["--config_path", str(out.with_suffix(".yaml"))]):
        raise UserError(f"the run '{out}' was stopped; give the same command again.")
    seconds = time.perf_counter() - start
    result = {"seconds": round(seconds), "splits": judge(open_retriever(out))}
    shutil.rmtree(out / "checkpoints")
    return result


def run(argv: Sequence[str]) -> None:
    args = arguments().parse_args(argv)
    out = Path(args.out)
    from vid2r_tables import report

    from core.files import read_json, write_json

    tower = text_tower(args.text, out / "text_tower")
    results = out / "results"
    if not args.report:
        files = records(out, tower, args.leads)
        judge = Judge(out, tower, args.features)
        complete_features(judge, config(args, tower, files["rules"], "rules", 0))
        remember_questions()
        for seed in args.seeds:
            for arm in ARMS:
                place = results / f"{arm}-{seed}.json"
                if not place.is_file():
                    write_json(place, trained(config(args, tower, files[arm], arm, seed), judge))
                    print(f"{arm}, seed {seed}: done", flush=True)
                    gc.collect()
        if not (results / f"{TEXT}-0.json").is_file():
            from runs.common import open_retriever, with_lengths

            bare = with_lengths(open_retriever(tower), **LENGTHS)
            write_json(results / f"{TEXT}-0.json", {"splits": judge(bare, show=False)})
    runs = {name: [read_json(p) for p in sorted(results.glob(f"{name}-*.json"))] for name in (TEXT, *ARMS)}
    found = report(runs, {TEXT: TEXT, **ARMS}, DATA, PAIRS, METRICS, MAIN)
    counts = {arm: read_json(out / f"{arm}.counts.json") for arm in ARMS if runs[arm]}
    write_json(out / "results.json", {"steps": args.steps, "counts": counts, **found["facts"]})
    (out / "table.md").write_text(found["table"], encoding="utf-8")
    print(found["table"])


if __name__ == "__main__":
    from core import cli

    cli.main(run)
