"""What ``train_retrieval.py`` puts together before it learns. Not a command of its own."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import models
from core import distributed
from core.errors import UserError
from core.files import atomic_file
from runs.common import corpus_of, encode_corpus, open_retriever, query_encoder, states_folder, visual_source


def build_retriever(cfg):
    """The retriever of ``model``, with pretrained towers, or with the weights of ``run.init``."""
    from models.artifacts import check_compatible

    if cfg.run.init is None:
        retriever = models.module(cfg.model.name).build(cfg.model)
        retriever.check_lengths(cfg.model)
        return retriever
    retriever = open_retriever(cfg.run.init)
    there, wanted = retriever.config, cfg.model
    if there.name == wanted.name:
        there, wanted = retriever.resolved(there), retriever.resolved(wanted)
    check_compatible(there, wanted, f"run.init '{cfg.run.init}'")
    retriever.check_lengths(cfg.model)
    if cfg.model.fresh and "fresh" in cfg.model.model_fields_set:
        raise UserError(
            f"model.fresh names {cfg.model.fresh}, but run.init '{cfg.run.init}' contains every weight; "
            "set model.fresh: []."
        )
    retriever.config = cfg.model
    retriever.freeze(cfg.model.frozen)
    return retriever


def save_config(cfg, out: Path) -> None:
    """Write the resolved config beside the run, so that later commands need nothing else."""
    import yaml

    if distributed.is_main():
        own = {**cfg.raw, "train": {k: v for k, v in cfg.raw["train"].items() if k not in ("out", "device")}}
        with atomic_file(out / "config.yaml", "w") as handle:
            yaml.safe_dump(own, handle, sort_keys=False)


def missing_data(cfg) -> list[str]:
    """The files and folders of the data set that are not here."""
    files = [getattr(cfg.data, key, None) for key in ("root", "path", "valid_path", "test_path", "passages")]
    return [name for name in files if name is not None and not Path(name).exists()]


def check_data(cfg) -> None:
    """What --check says of the data: how much there is, or which of its files are missing."""
    import dataset

    if missing := missing_data(cfg):
        print(f"check: the data is not here yet: {', '.join(missing)}")
    else:
        data = dataset.build(cfg.data)
        counts = {split: len(data.queries(split)) for split in (data.train_split, data.valid_split)}
        print(f"check: {counts} queries, {len(data.corpus())} passages")


def cap_batch(cfg, data) -> None:
    """With --limit fewer records than a batch may be left: make the batch as large as what every process gets."""
    records = len(data.examples(cfg.train.split, 0, cfg.train.seed)) // distributed.world()
    if cfg.train.batch_size > records >= 1:
        if distributed.is_main():
            print(f"note: --limit leaves {records} records per process, so train.batch_size is {records} here")
        cfg.train = cfg.train.model_copy(update={"batch_size": records})


def visual_features(cfg, retriever, data):
    """The feature cache, completed first when images are missing in it. None for a retriever or run without images."""
    if cfg.visual.cache is None or not hasattr(retriever, "visual_spec") or cfg.data.modality == "question":
        return None
    from core.visual import is_original
    from runs.features import build

    if not is_original(cfg.visual.cache):
        build(data.images(), retriever.vision, retriever.pixel_source(), cfg.visual.cache, cfg.visual)
    return visual_source(retriever, cfg.visual.cache)


def text_states(cfg, retriever, data, out: Path):
    """The frozen text trunk's states, when asked for: every passage once on disk, queries remembered in memory."""
    from training.states import for_training, frozen_key

    if not cfg.train.cache_text_states:
        return None
    retriever.stage = "train"
    key = frozen_key(retriever, "document")  # a UserError when the trunk trains
    return for_training(retriever, corpus_of(data, data.train_split), cfg.train, states_folder(out, key))


def some_passages(corpus, answers: set[str], cfg) -> list:
    """The answers, then others up to ``eval.valid_documents``. A corpus that finds ids itself is not read whole."""
    if hasattr(corpus, "get"):
        found = [d for d in map(corpus.get, sorted(answers)) if d is not None]
    else:
        found = [d for d in corpus if d.id in answers]
    others = (d for d in corpus if d.id not in answers)
    return [*found, *islice(others, max(0, cfg.eval.valid_documents - len(found)))]


def validation(cfg, data, visual, states) -> Callable:
    """A function from the retriever to its metrics on part of the validation split: exact MaxSim over passages.

    Every process encodes its share of the passages, in the batches that one process makes: the same numbers.
    """
    from core.protocols import Ranking
    from evaluation.metrics import evaluate, means

    rng = random.Random(0)
    queries = list(data.queries(data.valid_split))
    queries = rng.sample(queries, min(len(queries), cfg.eval.valid_queries))
    judged = data.qrels(data.valid_split)
    qrels = {q.id: judged[q.id] for q in queries}
    corpus = some_passages(corpus_of(data, data.valid_split), {d for j in qrels.values() for d in j}, cfg)
    corpus.sort(key=lambda d: len(d.text))  # little padding

    def validate(retriever) -> dict[str, float]:
        encode = query_encoder(retriever, visual, states)
        asked = [encode(queries[s : s + 32]) for s in range(0, len(queries), 32)]
        found = {
            q.id: Ranking(tuple(corpus[i].id for i in row), tuple(values))
            for q, row, values in zip(queries, *best(retriever, asked, corpus, visual, states))
        }
        return means(evaluate(found, qrels, ["Success@1", "Success@5", "MRR@10"]))

    return validate


def best(retriever, asked: list, corpus: list, visual=None, states=None, k: int = 10, size: int = 128):
    """The ``k`` passages of each query with the highest scores: places in ``corpus`` and scores, two lists of rows.

    Process r of W encodes every W-th batch from the r-th on. All encode equally often, so that they may compute
    together (slices of one model) and agree to stop: in the last round a process without a batch takes the last again.
    Slices also want batches that go through the same layers: where only some passages have images all encode all.
    """
    import torch

    from core.maxsim import maxsim
    from core.tokens import TokenBatch
    from training.sharding import is_sharded

    sliced, shown = is_sharded(retriever), {bool(d.images) for d in corpus}
    states = None if sliced else states  # a text that is not stored would be computed by one process
    visual = visual if True in shown else None
    share, rank = (1, 0) if sliced and len(shown) > 1 else (distributed.world(), distributed.rank())
    batches = [range(s, min(s + size, len(corpus))) for s in range(0, len(corpus), size)]
    places, scores = [], []
    for first in range(0, len(batches), share):
        turn = first + rank
        rows = batches[min(turn, len(batches) - 1)]
        vectors = [v for _, v in encode_corpus(retriever, [corpus[i] for i in rows], size, visual, states)]
        documents = TokenBatch.pad([torch.from_numpy(v) for v in vectors]).to(asked[0].embeddings.device)
        if turn < len(batches):
            places += rows
            scores.append(torch.cat([maxsim(q, documents) for q in asked]).cpu())
    own = torch.cat(scores, 1) if scores else torch.empty(sum(map(len, asked)), 0)
    values, rows = (part[:, :k] for part in own.sort(descending=True, stable=True))
    parts = distributed.gather_objects((torch.tensor(places, dtype=torch.int64)[rows], values))[:share]
    every = torch.cat([p for p, _ in parts], 1).sort()  # so that equal scores keep the passages' order
    ranked = torch.cat([v for _, v in parts], 1).gather(1, every.indices).sort(descending=True, stable=True)
    chosen = every.values.gather(1, ranked.indices)
    return chosen[:, :k].tolist(), ranked.values[:, :k].tolist()
