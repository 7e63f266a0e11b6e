"""One run: train the arm's phases, judge every split by exact search, keep the result of every query."""

from __future__ import annotations

import json
import random
import shutil
import tempfile
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from core.config import check
from core.files import read_json, write_json
from fusions import plan as plans
from fusions.exact import Corpus
from fusions.teacher import PassageTeacher

FORMAT = 2
BATCH = 64  # queries, and documents, per encoder call while judging
QUERIES = 250
"""At most so many queries of a split are judged, the same ones for every arm."""

REMEMBERED: OrderedDict = OrderedDict()
"""Text states of queries, shared by the runs of one process."""


def configured(raw: dict) -> SimpleNamespace:
    """The validated sections of one phase, as a command gets them from a YAML."""
    import yaml

    from runs.settings import load

    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as handle:
        yaml.safe_dump(raw, handle, sort_keys=False)
        handle.flush()
        return load(handle.name)


@cache
def _dataset(section: str):
    import dataset

    raw = json.loads(section)
    return dataset.build(check(dataset.config_class(raw), raw, "data"))


def data_of(cfg: SimpleNamespace):
    """The data set; the runs of one process share it."""
    return _dataset(cfg.data.model_dump_json())


def prepared(cfg: SimpleNamespace) -> SimpleNamespace:
    """The retriever before its first step, its data, stored features and stored text states (both made before)."""
    from runs.common import visual_source
    from runs.training import build_retriever

    torch.manual_seed(cfg.train.seed)
    retriever = build_retriever(cfg)
    data = data_of(cfg)
    shows = cfg.data.modality != "question"
    visual = visual_source(retriever, cfg.visual.cache) if shows else None
    return SimpleNamespace(retriever=retriever, data=data, visual=visual, states=shared_states(cfg, retriever, data))


def shared_states(cfg: SimpleNamespace, retriever, data):
    """The frozen trunk's states for this config; those of queries are kept for the next run of this process."""
    from runs.training import text_states

    states = text_states(cfg, retriever, data, Path(cfg.run.out))
    if states is not None:
        states._memory = REMEMBERED  # its keys name trunk, length and mask policy
    return states


def train(phases: list[dict], teacher: float | None = None) -> tuple[SimpleNamespace, SimpleNamespace]:
    """Run the phases one after the other; returns the last one's config and parts, the retriever ready to be asked."""
    from runs.training import save_config
    from training.loop import fit

    for raw in phases:
        cfg = configured(raw)
        parts = prepared(cfg)
        save_config(cfg, Path(cfg.run.out))
        objective = None if teacher is None else PassageTeacher(teacher)
        fit(parts.retriever, parts.data, cfg.train, visual=parts.visual, states=parts.states, objective=objective)
    return cfg, parts


@torch.inference_mode()
def judged(cfg: SimpleNamespace, parts: SimpleNamespace, splits: list[str]) -> tuple[dict, float]:
    """{split: {metric: {query id: value}}} by exact search over the whole corpus, and rows per query on average."""
    from evaluation.metrics import evaluate
    from runs.common import encode_corpus, query_encoder

    retriever, data = parts.retriever, parts.data
    retriever.eval()
    retriever.stage = "eval"
    corpus = Corpus(encode_corpus(retriever, data.corpus(), BATCH, None, parts.states))
    encode = query_encoder(retriever, parts.visual, parts.states)
    asked = [(split, query) for split in splits for query in sample(data.queries(split))]
    vectors: list[torch.Tensor] = []
    for start in range(0, len(asked), BATCH):
        vectors += encode([query for _, query in asked[start : start + BATCH]]).unpad()
    found = corpus.search(vectors, cfg.eval.k)
    out = {}
    for split in splits:
        rankings = {query.id: ranking for (where, query), ranking in zip(asked, found) if where == split}
        qrels = data.qrels(split)
        out[split] = evaluate(rankings, {id_: qrels[id_] for id_ in rankings}, cfg.eval.metrics)
    return out, sum(map(len, vectors)) / len(vectors)


def sample(queries: Sequence) -> list:
    """All queries, or ``QUERIES`` of them drawn once and for all."""
    return (
        sorted(random.Random(0).sample(list(queries), QUERIES), key=lambda q: q.id)
        if len(queries) > QUERIES
        else list(queries)
    )


def run(
    plan: plans.Plan, data: str, arm: str, seed: int, result: Path, changes: Mapping[str, Any] | None = None,
    splits: list[str] | None = None,
) -> dict:  # fmt: skip
    """Train and judge one arm; writes ``result`` last. What a killed run left behind is removed first.

    splits: those to judge; None means the validation split and all test splits.
    """
    phases = plan.phases(data, arm, seed, changes)
    folders = [Path(phase["run"]["out"]) for phase in phases]
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    start = time.perf_counter()
    cfg, parts = train(phases, plan.arm(arm).teacher)
    trained = time.perf_counter()
    write_json(result, judged_result(plan, arm, seed, data, phases, cfg, parts, splits, trained - start))
    for twin in plan.twins(arm) if splits is None else []:  # same weights, another config while judging
        its_phases = plan.phases(data, twin.name, seed, changes)
        its_cfg = configured(its_phases[-1])
        parts.retriever.config = its_cfg.model
        parts.states = shared_states(its_cfg, parts.retriever, parts.data)
        made = judged_result(plan, twin.name, seed, data, its_phases, its_cfg, parts, splits, trained - start)
        write_json(result.with_name(f"{twin.name}-{seed}.json"), made)
    for folder in folders:
        shutil.rmtree(folder / "checkpoints")  # the towers in every checkpoint are 180 MB
    return read_json(result, "result")


def judged_result(plan, arm, seed, data, phases, cfg, parts, splits, seconds: float) -> dict:
    """What one result file holds."""
    start = time.perf_counter()
    found, rows = judged(cfg, parts, splits or [parts.data.valid_split, *parts.data.test_splits])
    fusion = getattr(parts.retriever, "fusion", None)
    return {
        "format": FORMAT,
        "key": plans.key(plan.arm(arm), phases, digest(plan, data)),
        "data": data,
        "arm": arm,
        "seed": seed,
        "query_rows": round(rows, 1),
        "head_parameters": trained_parameters(fusion),
        "encode_ms": round(encode_ms(parts), 2),
        "seconds": {"train": round(seconds, 1), "judge": round(time.perf_counter() - start, 1)},
        "splits": found,
    }


def trained_parameters(head: torch.nn.Module | None) -> int:
    """Of the head, those that the last step reached: without patches (``cls``) half of it has nothing to do."""
    return 0 if head is None else sum(p.numel() for p in head.parameters() if p.grad is not None)


@torch.inference_mode()
def encode_ms(parts: SimpleNamespace, count: int = 40) -> float:
    """Milliseconds to encode one query alone, the fastest of some: the text trunk runs, image features are stored."""
    queries = parts.data.queries(parts.data.valid_split)[:count]
    spent = []
    for query in queries:
        batch = parts.retriever.collate_queries([query], parts.visual)
        start = time.perf_counter()
        parts.retriever.encode_queries(batch)
        spent.append(time.perf_counter() - start)
    return 1000 * min(spent)


def make_text_tower(plan: plans.Plan, data: str, changes: Mapping[str, Any] | None = None) -> Path:
    """Train the projection that all arms of a data set start from, and write it with its trunk as a ColBERT folder."""
    from models.originals import save_original

    folder = plan.text_tower(data)
    if not (folder / "config.json").is_file():
        _, parts = train(plan.phases(data, plans.TEXT, 0, changes))
        save_original(parts.retriever, folder)
        shutil.rmtree(plan.folder(data, plans.TEXT, 0) / "checkpoints", ignore_errors=True)
    return folder


def digest(plan: plans.Plan, data: str) -> str:
    """Names the text tower's weights in the key of a result."""
    path = plan.text_tower(data) / "model.safetensors"
    return _digest(path, path.stat().st_mtime_ns)


@cache
def _digest(path: Path, _changed: int) -> str:
    from core.files import sha256

    return sha256(path)[:16]


def is_done(plan: plans.Plan, data: str, arm: str, seed: int, result: Path, changes=None) -> bool:
    """Whether ``result`` and its twins are there and were made with the present config and text tower."""
    if not all(
        is_done(plan, data, t.name, seed, result.with_name(f"{t.name}-{seed}.json"), changes) for t in plan.twins(arm)
    ):
        return False
    if not result.is_file():
        return False
    return read_json(result, "result").get("key") == plans.key(
        plan.arm(arm), plan.phases(data, arm, seed, changes), digest(plan, data)
    )
